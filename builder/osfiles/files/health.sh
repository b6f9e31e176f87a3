#!/bin/sh
# Says whether this system is healthy: whether every program in these directories
# ends well. Without any, a system that starts is healthy.
set -eu
for check in /usr/lib/halogen/health.d/* /etc/halogen/health.d/*; do
	if [ -f "$check" ] && [ -x "$check" ]; then
		"$check" || { echo "health check $check failed: exit status $?" >&2; exit 1; }
	fi
done
