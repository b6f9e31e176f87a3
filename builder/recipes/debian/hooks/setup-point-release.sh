#!/bin/sh
# With POINT_RELEASE=1 the packages are those of the last point release, but for
# the kernel: a system that lacks what was updated since.
set -eu
root=$1
[ "$POINT_RELEASE" = 1 ] || exit 0
mkdir -p "$root/etc/apt/preferences.d"
for archive in updates security; do
	printf 'Package: *\nPin: release n=%s-%s\nPin-Priority: 1\n\n' "$SUITE" "$archive"
	printf 'Package: linux-*\nPin: release n=%s-%s\nPin-Priority: 500\n\n' "$SUITE" "$archive"
done >"$root/etc/apt/preferences.d/point-release"
