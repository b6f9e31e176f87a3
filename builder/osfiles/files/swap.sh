#!/bin/sh
# Swap space (Swap= in uki.conf): a file on the root partition, and over it encryption
# with a key that is random at each start and lies in the kernel alone. So nobody reads
# what an earlier start has swapped out, not even who can open the root partition.
# Nothing here is worth a start or a trial: what goes wrong is said, and all the
# rest goes on.
set -u
umask 077
shared=/var/lib/halogen # a mount of the boot's, in no snapshot
directory=$shared/swap
file=$directory/file
name=halogen-swap
device=/dev/mapper/$name
least=1024 # MiB that stay free on the root partition

without() {
	echo "swap: $*: this start goes on without swap space" >&2
	exit 0
}

# wanted sets mib to what the settings say, the owner's after the image's.
wanted() {
	size=off
	for settings in /usr/lib/halogen/swap.conf /etc/halogen/swap.conf; do
		[ -r "$settings" ] || continue
		while read -r line || [ -n "$line" ]; do
			case $line in Size=*) size=${line#Size=} from=$settings ;; esac
		done <"$settings"
	done
	mib=0
	[ "$size" != off ] || return 0
	mib=${size%[MG]}
	case $mib in '' | 0* | *[!0-9]* | ????????*) without "Size=$size in $from: want a number with M or G, such as 4G, or off" ;; esac
	case $size in
	*G) mib=$((mib * 1024)) ;;
	*M) ;;
	*) without "Size=$size in $from: want a number with M or G, such as 4G, or off" ;;
	esac
}

# fill writes the file: with holes, or what a file system has promised but not written,
# swapping out would need memory and room when there is none.
fill() {
	rm -f "$file"
	: >"$file.new" || return
	if [ "$(stat -f -c %T "$directory")" = btrfs ]; then
		chattr +C "$file.new" || return # written in place, without checksums
	fi
	dd if=/dev/zero of="$file.new" bs=1048576 count="$mib" conv=fsync 2>/dev/null || return
	mv "$file.new" "$file"
}

# provide makes the file where it is missing or has another size. It keeps nothing from
# start to start, so the old one just goes; where a new one does not fit, it stays in use.
provide() {
	mountpoint -q "$shared" || without "$shared is not mounted"
	mkdir -p "$directory" || without "$directory cannot be made"
	rm -f "$file.new" # cut while it was written
	have=0
	if [ -e "$file" ]; then
		have=$(($(stat -c %s "$file") / 1048576))
	fi
	[ "$have" -ne "$mib" ] || return 0
	# shellcheck disable=SC2046 # two numbers
	set -- $(stat -f -c '%a %S' "$directory")
	room=$(($1 * $2 / 1048576 + have - least))
	if [ "$mib" -gt "$room" ]; then
		said="the root partition has room for $((room > 0 ? room : 0)) MiB beside the $least that stay free, and Size=$size wants $mib"
		[ "$have" -gt 0 ] || without "$said"
		echo "swap: $said: it keeps its $have" >&2
		return 0
	fi
	fill && return
	rm -f "$file.new"
	without "$file of $mib MiB cannot be written"
}

# switch_on sets swap space up on the file. The loop device goes with what uses it.
switch_on() {
	loop=$(losetup --find --show --nooverlap --direct-io=on --sector-size 4096 "$file") || without 'there is no loop device for it'
	cryptsetup open --batch-mode --type plain --cipher aes-xts-plain64 --key-size 512 --sector-size 4096 --key-file /dev/urandom "$loop" "$name"
	code=$?
	losetup --detach "$loop"
	[ "$code" -eq 0 ] || without 'it cannot be encrypted'
	mkswap "$device" >/dev/null && swapon "$device" && return
	cryptsetup close "$name"
	without 'the kernel does not take it'
}

case ${1-} in
start)
	wanted
	if [ "$mib" -eq 0 ]; then
		rm -rf "$directory"
		exit 0
	fi
	if [ -e "$device" ] && ! cryptsetup close "$name" 2>/dev/null; then
		exit 0 # in use
	fi
	provide
	switch_on
	;;
stop)
	# What is swapped out and has no room in memory stays; it is gone with the power.
	if [ -e "$device" ]; then
		swapoff "$device" && cryptsetup close "$name"
	fi
	;;
*)
	echo 'usage: /usr/lib/halogen/swap start|stop' >&2
	exit 2
	;;
esac
