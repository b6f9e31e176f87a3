# At a login: says that files wait for a decision, since an update changed them as well as
# this machine, or left them out (halogenctl changes). Only root may look, as the lists of
# all directories are root's; others see what was found last.
if [ -e /run/halogen/boot.json ] && [ -t 1 ]; then
	if [ "$(id -u)" -eq 0 ]; then
		halogenctl changes --summary 2>/dev/null
	elif [ -r /run/halogen/conflicts ]; then
		cat /run/halogen/conflicts
	fi
fi
