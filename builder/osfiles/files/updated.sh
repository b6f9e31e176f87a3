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

# Once a start, no matter who calls it.
if [ -e "$failed" ]; then
	[ ! -s "$failed" ]
	exit
fi
# Not by test -w: that of busybox says yes to root on a read-only file system.
writable() { { true >"$1/.updated.new" && rm -f "$1/.updated.new"; } 2>/dev/null; }
# shellcheck disable=SC3013 # dash and busybox have -nt
current() { [ -e "$1/.updated" ] && [ ! /usr -nt "$1/.updated" ]; }
if current /etc && current /var; then
	exit 0
fi
# What cannot be written to is not brought up to date (ConditionNeedsUpdate=).
etc=
var=
if writable /etc; then etc=/etc; fi
if writable /var; then var=/var; fi
if { [ -z "$etc" ] || current "$etc"; } && { [ -z "$var" ] || current "$var"; }; then
	exit 0
fi

# Killed before its end, as by a timeout, this itself is what has failed.
names=
end='updated
'
keep() { printf '%s' "$names$end" >"$failed"; }
mkdir -p "${failed%/*}" && keep || exit
run() {
	"$@" && return
	echo "updated: $1 failed: exit status $?: it is run again at the next start" >&2
	names="$names$1
"
	keep
}
there() { command -v "$1" >/dev/null; }
# A cut leaves the old cache or the new one.
replace_ld_so_cache() {
	{ cp "$new" /etc/ld.so.cache.new && sync && mv -f /etc/ld.so.cache.new /etc/ld.so.cache; } || {
		rm -f /etc/ld.so.cache.new
		return 1
	}
}

if [ -n "$etc" ] && there systemd-sysusers; then
	run systemd-sysusers
fi
# An /etc/ld.so.cache that is right as it is stays the image's.
if [ -n "$etc" ] && [ -e /etc/ld.so.cache ] && there ldconfig; then
	new=/run/halogen/ld.so.cache
	run ldconfig -X -C "$new"
	if [ -s "$new" ] && ! cmp -s "$new" /etc/ld.so.cache; then
		run replace_ld_so_cache
	fi
	rm -f "$new"
fi
# A database in /etc hides the image's.
if [ -n "$etc" ] && there systemd-hwdb && { [ -e /etc/udev/hwdb.bin ] || ls /etc/udev/hwdb.d/*.hwdb >/dev/null 2>&1; }; then
	run systemd-hwdb update
fi
if [ -n "$var" ] && [ -d /usr/lib/systemd/catalog ] && there journalctl; then
	run journalctl --update-catalog
fi
for script in "$scripts"/*; do
	if [ -f "$script" ] && [ -x "$script" ]; then
		run "$script"
	fi
done

if [ -z "$names" ]; then
	# Cut before, all of it runs again.
	sync
	run touch -r /usr ${etc:+"$etc/.updated"} ${var:+"$var/.updated"}
fi
end=
keep
[ -z "$names" ]
