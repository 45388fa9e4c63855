#!/bin/busybox sh
# The initrd's /init: insert the modules that the root disk needs, mount it, hand over.
mount -t devtmpfs dev /dev
for module in /modules/*; do insmod "$module"; done
mount -t ext4 -o noatime /dev/vda /root || {
    echo "initrd: /dev/vda cannot be mounted as ext4; switching off" >/dev/console
    mount -t proc proc /proc
    read -r arguments </proc/cmdline
    # A Firecracker cannot be switched off; it ends when the machine is reset.
    case " $arguments " in *" hatch.vmm=firecracker "*) reboot -f ;; esac
    poweroff -f
}
[ -b /dev/vdb ] && for module in /modules-seed/*; do insmod "$module"; done
mount -o move /dev /root/dev
exec switch_root /root /sbin/init
