#!/bin/sh
# Gives up a trial whose health check has failed, has not ended in time, or that
# came no further than emergency mode: notes what failed, and restarts. With each
# start a try is used up; without any left the system before it is back.
failed=$(systemctl list-units --state=failed --plain --no-legend --no-pager | cut -d' ' -f1 | tr '\n' ' ')
if [ -s /run/halogen/unhealthy ]; then
	ota bless --failed "$(cat /run/halogen/unhealthy)"
elif [ -n "$failed" ]; then
	ota bless --failed "failed: ${failed% }"
else
	ota bless --failed 'the boot was not complete in time'
fi
systemctl --no-block reboot || exec systemctl --force reboot
