#!/bin/sh
# Makes of Debian's packages a system that runs from a read-only image.
set -eu
root=$1

# Work for a system that changes its own packages or file system.
chroot "$root" systemctl --quiet disable dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service

# What dpkg knows describes /usr, and changes with it; /var is the machine's.
mkdir -p "$root/usr/lib/sysimage"
mv "$root/var/lib/dpkg" "$root/usr/lib/sysimage/dpkg"
ln -s ../../usr/lib/sysimage/dpkg "$root/var/lib/dpkg"

# A login. The hash has a fixed salt, so that the image stays the same. A desktop's first
# start makes an account besides.
if [ "$DEV" = 1 ]; then
	hash=$(printf halogen | openssl passwd -6 -salt halogen -stdin)
	chroot "$root" usermod --password "$hash" root
	printf 'Debian on HalogenOS, DEVELOPMENT IMAGE: root, password halogen\n\\n \\l\n\n' >"$root/etc/issue"
fi

# Second names, backups and leftovers.
rm -f "$root"/vmlinuz "$root"/vmlinuz.old "$root"/initrd.img "$root"/initrd.img.old
rm -f "$root"/etc/apt/apt.conf.d/99mmdebstrap "$root"/etc/dpkg/dpkg.cfg.d/99mmdebstrap
rm -rf "$root"/etc/apt/sources.list.d/* "$root"/etc/apt/sources.list "$root"/etc/apt/preferences.d/point-release
rm -rf "$root"/var/cache/debconf/*-old "$root"/var/lib/apt "$root"/var/cache/apt
rm -f "$root"/usr/lib/sysimage/dpkg/*-old "$root"/usr/lib/sysimage/dpkg/lock*

recipes=$(dirname "$0")/../..
"$recipes/finish-system" "$root"
if [ -n "$DESKTOP" ]; then
	"$recipes/desktop/finish" "$root"
fi
