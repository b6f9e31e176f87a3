# At a login: says that files wait for a decision, since an update changed them as well as
# this machine, or left them out (halogenctl changes). Only root may look, as the lists of
# all directories are root's; others see what was found last. And that a new version runs,
# until somebody has read what it brings (ota notes). To root also that nobody has shown to
# have written the recovery key down.
if [ -e /run/halogen/boot.json ] && [ -t 1 ]; then
	if [ "$(id -u)" -eq 0 ]; then
		ota notes --summary 2>/dev/null || true
		halogenctl changes --summary 2>/dev/null
		if grep -qs '"unconfirmed":true' /var/lib/halogen/recovery-key.json; then
			echo "Nobody has shown to have written this machine's recovery key down: halogenctl recovery-key new"
		fi
	else
		for halogen_said in /run/halogen/news /run/halogen/conflicts; do
			[ -r "$halogen_said" ] && cat "$halogen_said"
		done
		unset halogen_said
	fi
fi
