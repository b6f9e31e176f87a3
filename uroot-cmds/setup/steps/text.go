package steps

import (
	"strings"

	"halogenos.internal/boot/questions"
)

// set gives a key a value, which is quoted where it has to be. All else stays as it is; of
// several lines with the key one is left.
func set(text, key, value string) string {
	var b strings.Builder
	done := false
	for line := range strings.Lines(text) {
		if k, _ := questions.Assignment(line); k != key {
			b.WriteString(strings.TrimRight(line, "\n") + "\n")
			continue
		}
		if !done {
			b.WriteString(key + "=" + value + "\n")
		}
		done = true
	}
	if !done {
		b.WriteString(key + "=" + value + "\n")
	}
	return b.String()
}

// ownAddress is where Debian has the machine's own name.
const ownAddress = "127.0.1.1"

// setHost gives the machine a name in a file like /etc/hosts.
func setHost(text, name string) string {
	short, _, domain := strings.Cut(name, ".")
	entry := ownAddress + "\t" + name
	if domain {
		entry += " " + short
	}
	var b strings.Builder
	done := false
	for line := range strings.Lines(text) {
		if words := strings.Fields(line); len(words) == 0 || words[0] != ownAddress {
			b.WriteString(strings.TrimRight(line, "\n") + "\n")
			continue
		}
		if !done {
			b.WriteString(entry + "\n")
		}
		done = true
	}
	if !done {
		b.WriteString(entry + "\n")
	}
	return b.String()
}
