# bash completion for ota and halogenctl, by what their --help says.

_halogen_words() {
	# Commands are the first words of lines that begin with two spaces; flags are
	# whatever begins with two dashes.
	"$@" --help 2>/dev/null | sed -n \
		-e 's/^  \([a-z][a-z-]*\)  *[^ ].*/\1/p' \
		-e 's/[^-]*\(--[a-z][a-z-]*\)/\1\n/gp' | grep -E '^(--)?[a-z][a-z-]*$' | sort -u
}

_halogen() {
	local command=$1 current=$2 previous=$3
	COMPREPLY=()
	if [ "$COMP_CWORD" -eq 1 ]; then
		mapfile -t COMPREPLY < <(compgen -W "$(_halogen_words "$command")" -- "$current")
		return
	fi
	case "$command ${COMP_WORDS[1]} $previous" in
	"halogenctl changes "*)
		mapfile -t COMPREPLY < <(compgen -W "$(_halogen_words "$command" changes | grep '^--')" -- "$current"; compgen -f -- "$current")
		return
		;;
	"halogenctl recovery-key recovery-key")
		mapfile -t COMPREPLY < <(compgen -W "new --help" -- "$current")
		return
		;;
	"halogenctl phrase phrase")
		mapfile -t COMPREPLY < <(compgen -W "new --help" -- "$current")
		return
		;;
	"halogenctl module-trust module-trust")
		mapfile -t COMPREPLY < <(compgen -W "ask no --help" -- "$current")
		return
		;;
	"halogenctl language language")
		# It says "de (the image's); there are de, en".
		mapfile -t COMPREPLY < <(compgen -W "$("$command" language 2>/dev/null | sed -n 's/.*there are //; s/,//gp') --help" -- "$current")
		return
		;;
	"halogenctl pin pin")
		mapfile -t COMPREPLY < <(compgen -W "set change remove --help" -- "$current")
		return
		;;
	"halogenctl setup --check" | *" --from") mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
	*"ota extension extension") mapfile -t COMPREPLY < <(compgen -W "list enable disable --help" -- "$current"); return ;;
	*"ota extension enable" | *"ota extension disable")
		mapfile -t COMPREPLY < <(compgen -W "$("$command" extension list 2>/dev/null | sed -n 's/^  \([a-z][a-z0-9-]*\) (.*/\1/p' | sort -u) --json --help" -- "$current")
		return
		;;
	*"ota channel channel") mapfile -t COMPREPLY < <(compgen -W "stable beta alpha --json --help" -- "$current"); return ;;
	*"halogenctl verify"* | *"halogenctl repair"*)
		mapfile -t COMPREPLY < <(compgen -W "a b --json --help" -- "$current")
		return
		;;
	esac
	mapfile -t COMPREPLY < <(compgen -W "$(_halogen_words "$command" "${COMP_WORDS[1]}" | grep '^--')" -- "$current")
}

complete -F _halogen ota halogenctl
