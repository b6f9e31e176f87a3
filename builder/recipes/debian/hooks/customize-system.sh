#!/bin/sh
# Makes of Debian's packages a system that runs from a read-only image.
set -eu
root=$1

# Name and network. What was copied from the building machine goes.
echo halogen >"$root/etc/hostname"
printf '127.0.0.1\tlocalhost halogen\n::1\t\tlocalhost halogen\n' >"$root/etc/hosts"
chmod 644 "$root/etc/hostname" "$root/etc/hosts"
ln -sf ../run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"
rm -f "$root/etc/.resolv.conf.systemd-resolved.bak"
printf '[Match]\nType=ether\n\n[Network]\nDHCP=yes\n' >"$root/etc/systemd/network/80-ethernet.network"
chroot "$root" systemctl --quiet enable systemd-networkd.service systemd-resolved.service
# Nothing waits for a network that may not come.
chroot "$root" systemctl --quiet disable systemd-networkd-wait-online.service

# Each machine makes its own ID. An empty file, not a missing one: at a "first
# boot" systemd would set all units to its presets, and ask at the console.
: >"$root/etc/machine-id"
rm -f "$root/var/lib/dbus/machine-id"
ln -sf /dev/null "$root/etc/systemd/system/systemd-firstboot.service"
echo LANG=C.UTF-8 >"$root/etc/locale.conf"
ln -sf /usr/share/zoneinfo/Etc/UTC "$root/etc/localtime"
: >"$root/etc/fstab"

# systemd takes over the watchdog that it is handed, see Watchdog= in uki.conf.
mkdir -p "$root/etc/systemd/system.conf.d"
printf '[Manager]\nRuntimeWatchdogSec=60s\nRebootWatchdogSec=3min\n' >"$root/etc/systemd/system.conf.d/watchdog.conf"

# Work for a system that changes its own packages or file system.
chroot "$root" systemctl --quiet disable dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service

# Caches that belong to /usr are right as they are: nothing is to be updated
# at the start (systemd-update-done.service(8)).
touch --date="@${SOURCE_DATE_EPOCH:-$(date +%s)}" "$root/etc/.updated" "$root/var/.updated"

# What dpkg knows describes /usr, and changes with it; /var is the machine's.
mkdir -p "$root/usr/lib/sysimage"
mv "$root/var/lib/dpkg" "$root/usr/lib/sysimage/dpkg"
ln -s ../../usr/lib/sysimage/dpkg "$root/var/lib/dpkg"

# A login. The hash has a fixed salt, so that the image stays the same.
if [ "$DEV" = 1 ]; then
	hash=$(printf halogen | openssl passwd -6 -salt halogen -stdin)
	chroot "$root" usermod --password "$hash" root
	printf 'Debian on HalogenOS, DEVELOPMENT IMAGE: root, password halogen\n\\n \\l\n\n' >"$root/etc/issue"
fi

# Second names, backups, logs and leftovers.
rm -f "$root"/vmlinuz "$root"/vmlinuz.old "$root"/initrd.img "$root"/initrd.img.old
rm -f "$root"/etc/passwd- "$root"/etc/group- "$root"/etc/shadow- "$root"/etc/gshadow- "$root"/etc/.pwd.lock
rm -f "$root"/etc/apt/apt.conf.d/99mmdebstrap "$root"/etc/dpkg/dpkg.cfg.d/99mmdebstrap
rm -rf "$root"/etc/apt/sources.list.d/* "$root"/etc/apt/sources.list "$root"/etc/apt/preferences.d/point-release
rm -rf "$root"/var/cache/ldconfig "$root"/var/cache/debconf/*-old "$root"/var/lib/apt "$root"/var/cache/apt
rm -f "$root"/usr/lib/sysimage/dpkg/*-old "$root"/usr/lib/sysimage/dpkg/lock*
find "$root/var/log" -type f -delete
