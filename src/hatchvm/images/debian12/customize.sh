# Run by mmdebstrap when all packages are installed, as root of the new system's namespace; $1 is the system's folder.
# What takes out a service gives up seconds: a guest without hardware virtualisation needs 0.2 s for every program started.
set -eu
cd "$1"

put() { mkdir -p "${1%/*}" && cat >"$1"; }
mask() { for unit; do ln -sf /dev/null "etc/systemd/system/$unit"; done; }
mask_generators() { for name; do ln -sf /dev/null "etc/systemd/system-generators/$name"; done; }
wanted_by() { mkdir -p "etc/systemd/system/$1.wants" && ln -sf "/lib/systemd/system/$2" "etc/systemd/system/$1.wants/"; }

# cloud-init in two runs instead of four: its imports alone take 4 s of emulation each time. The seed is a disk, so it is
# found without the run before the network; what was the third run is the beginning of the last one. Modules are left out
# that print keys, set up boot loaders and keyboards, or speak to services that are not here. No key is of another machine.
put etc/cloud/cloud.cfg.d/90_hatch.cfg <<'END'
datasource_list: [NoCloud, None]
network: {config: disabled}
disable_root: false
locale: C.UTF-8
ssh_genkeytypes: [ed25519]
cloud_init_modules:
  [bootcmd, write-files, disk_setup, mounts, set_hostname, update_hostname, update_etc_hosts, ca-certs, users-groups,
  ssh]
cloud_config_modules: []
cloud_final_modules:
  [ssh-import-id, set-passwords, locale, timezone, ntp, apt-configure, runcmd, package-update-upgrade-install,
  write-files-deferred, scripts-vendor, scripts-per-once, scripts-per-boot, scripts-per-instance, scripts-user,
  phone-home, final-message, power-state-change]
END
# The only user is root, unless the user data says otherwise.
sed -i '/^users:/,/^ *- default/d' etc/cloud/cloud.cfg
echo LANG=C.UTF-8 >etc/default/locale
mask cloud-init-local.service cloud-config.service cloud-init-hotplugd.socket
# What the run before the network would do: forget the last boot's instance, so that a new instance id is noticed.
put etc/systemd/system/cloud-init.service.d/hatch.conf <<'END'
[Service]
ExecStartPre=/bin/rm -f /var/lib/cloud/instance/obj.pkl /var/lib/cloud/instance/boot-finished
END
# The generator looks for clouds at every boot.
mkdir -p etc/systemd/system-generators
mask_generators cloud-init-generator
wanted_by multi-user.target cloud-init.target
put etc/tmpfiles.d/hatch.conf <<'END'
d /run/cloud-init 0755
f /run/cloud-init/enabled 0644
END

# One card, one address. The name is the one that cloud-init waits for; eth0 is there before udev is.
put etc/systemd/system/networking.service <<'END'
[Unit]
Description=DHCP on eth0
DefaultDependencies=no
ConditionPathExists=/sys/class/net/eth0
Wants=network.target
After=local-fs.target network-pre.target
Before=network.target network-online.target shutdown.target
Conflicts=shutdown.target

[Service]
Type=forking
PIDFile=/run/udhcpc.pid
ExecStart=/sbin/udhcpc -i eth0 -p /run/udhcpc.pid -b -S -t 3 -T 1

[Install]
WantedBy=multi-user.target
END
mkdir -p etc/systemd/system/multi-user.target.wants etc/systemd/system/network-online.target.wants
ln -sf ../networking.service etc/systemd/system/multi-user.target.wants/
ln -sf ../networking.service etc/systemd/system/network-online.target.wants/
rm -f etc/resolv.conf
: >etc/resolv.conf

# Keys only. In the file that cloud-init edits, so that `ssh_pwauth` can change it.
sed -i 's/^#PasswordAuthentication yes/PasswordAuthentication no/' etc/ssh/sshd_config
put etc/systemd/system/ssh.service.d/hatch.conf <<'END'
[Service]
ExecStartPre=
END

# Under Firecracker the agent is asked over vsock, at whatever address the machine has, and at the port that the host
# knows. A machine there cannot be switched off; it ends when it is reset.
put etc/systemd/system/hatch-agent.service <<'END'
[Unit]
Description=QEMU Guest Agent over vsock
ConditionKernelCommandLine=hatch.vmm=firecracker

[Service]
ExecStartPre=/sbin/modprobe vmw_vsock_virtio_transport
ExecStart=/usr/sbin/qemu-ga --method=vsock-listen --path=4294967295:1024
Restart=always
RestartSec=1
END
ln -sf ../hatch-agent.service etc/systemd/system/multi-user.target.wants/
put usr/lib/systemd/system-shutdown/hatch <<'END'
#!/bin/sh
# systemd runs this when everything is written and unmounted; $1 is how the machine is to end.
read -r arguments </proc/cmdline
case "$1 $arguments " in
    "poweroff "*" hatch.vmm=firecracker "* | "halt "*" hatch.vmm=firecracker "*) exec /bin/busybox reboot -f ;;
esac
END
chmod 755 usr/lib/systemd/system-shutdown/hatch

# Only what has a driver or a name to get: not the 90 terminals.
put etc/systemd/system/systemd-udev-trigger.service.d/hatch.conf <<'END'
[Service]
ExecStart=
ExecStart=-/bin/udevadm trigger --action=add -s block -s virtio -s virtio-ports -s input -s net
END

# Nobody can type at the console. A machine that sleeps must not wake to a day's worth of timers.
mask getty.target serial-getty@ttyS0.service systemd-ask-password-console.path systemd-ask-password-wall.path
mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer
# The disk is mounted, the users are there, virtio-rng gives the entropy; there is no firmware, TPM, or boot loader.
mask systemd-remount-fs.service systemd-repart.service systemd-sysusers.service systemd-firstboot.service
mask systemd-machine-id-commit.service systemd-random-seed.service systemd-pstore.service systemd-pcrphase.service
mask systemd-pcrphase-sysinit.service systemd-update-utmp.service systemd-update-utmp-runlevel.service
mask systemd-initctl.socket systemd-binfmt.service proc-sys-fs-binfmt_misc.automount modprobe@.service
mask dev-hugepages.mount dev-mqueue.mount sys-fs-fuse-connections.mount sys-kernel-config.mount
mask sys-kernel-debug.mount sys-kernel-tracing.mount
mask_generators systemd-cryptsetup-generator systemd-debug-generator systemd-getty-generator \
    systemd-gpt-auto-generator systemd-hibernate-resume-generator systemd-integritysetup-generator \
    systemd-rc-local-generator systemd-run-generator systemd-system-update-generator systemd-sysv-generator \
    systemd-veritysetup-generator

rm -f boot/initrd.img* initrd.img*

# Nothing of the host that built it, and nothing that two guests may not share.
echo debian >etc/hostname
printf '127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n' >etc/hosts
: >etc/machine-id
rm -f etc/ssh/ssh_host_* etc/apt/apt.conf.d/00host etc/apt/apt.conf.d/99mmdebstrap var/lib/dbus/machine-id
sed -i 's#//[^/@]*@#//#' etc/apt/sources.list
