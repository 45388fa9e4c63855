#!/bin/busybox sh
# The initrd's /init: insert the modules that the root disk needs, mount it, hand over.
mount -t devtmpfs dev /dev
for module in /modules/*; do insmod "$module"; done
mount -t ext4 -o noatime /dev/vda /root || {
    echo "initrd: /dev/vda cannot be mounted as ext4; switching off" >/dev/console
    poweroff -f
}
[ -b /dev/vdb ] && for module in /modules-seed/*; do insmod "$module"; done
mount -o move /dev /root/dev
exec switch_root /root /sbin/init
