#!/bin/sh
# Says whether this system is healthy: whether what its first start was to do has
# worked, every program in these directories ends well, and nothing has failed at this
# start that did not fail before the update. What is wrong is left for the boot journal.
set -eu
unhealthy=/run/halogen/unhealthy
ill() {
	echo "$*" >&2
	echo "$*" >"$unhealthy" || true
	exit 1
}
rm -f "$unhealthy"
# May this fail, by a list of patterns? A line that is more than one counts for nothing.
may_fail() {
	for list in /usr/lib/halogen/health-ignore.default /usr/lib/halogen/health-ignore /etc/halogen/health-ignore; do
		[ -r "$list" ] || continue
		while read -r pattern rest || [ -n "$pattern" ]; do
			case $pattern in '' | '#'* | *[!-A-Za-z0-9:_.@+*?]*) continue ;; esac
			case $rest in '' | '#'*) ;; *) continue ;; esac
			# shellcheck disable=SC2254 # it is a pattern
			case $1 in $pattern) return 0 ;; esac
		done <"$list"
	done
	return 1
}
updated=/run/halogen/updated
failed=
if [ -s "$updated" ]; then
	while read -r name; do
		if may_fail "${name##*/}"; then
			echo "failed at the first start of this image, and may: $name"
		else
			failed="$failed $name"
		fi
	done <"$updated"
fi
if [ -n "$failed" ]; then
	ill "at the first start of this image failed:$failed"
fi
for check in /usr/lib/halogen/health.d/* /etc/halogen/health.d/*; do
	if [ -f "$check" ] && [ -x "$check" ]; then
		"$check" || ill "health check $check failed: exit status $?"
	fi
done
# In a system that is no trial it is ota-failures.service that waits for the start to
# settle, so that nothing else has to.
if ! grep -qs '"trial": true' /run/halogen/boot.json; then
	exit 0
fi
# What it says of failures is for the journal, all else for people.
code=0
{ said=$(ota health 2>&1 >&3) || code=$?; } 3>&1
said=${said#ota health: }
if [ "$code" -ne 0 ]; then
	ill "${said:-ota health: exit status $code}"
elif [ -n "$said" ]; then
	echo "$said" >&2
fi
