#!/bin/sh
# For a system without systemd, or with one that has no systemd-update-done.service:
# brings /etc and /var up to the image at the first start of each, as systemd does
# (systemd-update-done.service(8)). It runs what waits for an update and is there, and
# then the image's own scripts in /usr/lib/halogen/updated.d, in the order of their
# names. What fails is run again at the next start, with all the others, and counts
# against a trial: /usr/lib/halogen/health looks for it.
set -u
scripts=/usr/lib/halogen/updated.d
failed=/run/halogen/updated # the names of what failed; empty where all went well

# Once a start, whoever calls it.
if [ -e "$failed" ]; then
	[ ! -s "$failed" ]
	exit
fi
# shellcheck disable=SC3013 # dash and busybox have -nt
current() { [ -e "$1/.updated" ] && [ ! /usr -nt "$1/.updated" ]; }
if current /etc && current /var; then
	exit 0
fi
mkdir -p "${failed%/*}" && : >"$failed" || exit

run() {
	"$@" && return
	echo "updated: $1 failed: exit status $?: it is run again at the next start" >&2
	echo "$1" >>"$failed"
}
there() { command -v "$1" >/dev/null; }

if there systemd-sysusers; then
	run systemd-sysusers
fi
# An /etc/ld.so.cache that is right as it is stays the image's.
if [ -e /etc/ld.so.cache ] && there ldconfig; then
	new=/run/halogen/ld.so.cache
	run ldconfig -X -C "$new"
	if [ -s "$new" ] && ! cmp -s "$new" /etc/ld.so.cache; then
		run cp "$new" /etc/ld.so.cache
	fi
	rm -f "$new"
fi
# A database in /etc hides the image's.
if there systemd-hwdb && { [ -e /etc/udev/hwdb.bin ] || ls /etc/udev/hwdb.d/*.hwdb >/dev/null 2>&1; }; then
	run systemd-hwdb update
fi
if [ -d /usr/lib/systemd/catalog ] && there journalctl; then
	run journalctl --update-catalog
fi
for script in "$scripts"/*; do
	if [ -f "$script" ] && [ -x "$script" ]; then
		run "$script"
	fi
done

[ ! -s "$failed" ] || exit 1
# Cut before, all of it runs again.
touch -r /usr /etc/.updated /var/.updated
