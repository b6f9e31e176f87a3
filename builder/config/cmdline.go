package config

import (
	"fmt"
	"slices"
	"strings"
)

// fixed are the arguments that every command line ends with: no unsigned code
// in the kernel; memory is erased when it is freed, so that what a process has
// wiped or dropped stays nowhere; a panic restarts the machine so that the
// boot manager's counting of tries works. And systemd takes nothing that only it
// would read and that nothing authenticates: no credentials from SMBIOS or fw_cfg,
// of which one can be a unit that runs as root, and no partitions that it finds by
// their types, of which one can be swap space that somebody else reads.
var fixed = []string{
	"lockdown=integrity", "module.sig_enforce=1", "init_on_free=1", "init_on_alloc=1", "panic=10",
	"systemd.import_credentials=no", "systemd.gpt_auto=0",
}

// stricter are what may stand in the place of a fixed argument.
var stricter = map[string]string{"lockdown=confidentiality": "lockdown=integrity"}

// forbidden are arguments that would take initagent's place, each with its
// reason.
var forbidden = map[string]string{
	"rdinit":        "the initramfs starts initagent",
	"initrd":        "the initramfs is the UKI's",
	"noinitrd":      "the initramfs holds initagent",
	"root":          "the system is found by the root hash in the boot contract",
	"dm_mod.create": "device mapper is set up by initagent",
	"--":            "what follows it would not reach the kernel",
}

const maxCmdline = 2000 // bytes; the kernel takes 2048 on x86

// completeCmdline returns the words of a command line and the fixed arguments
// after them. A word that contradicts these is refused.
func completeCmdline(text string) (string, error) {
	var words []string
	ending := slices.Clone(fixed)
	for _, word := range strings.Fields(text) {
		name := kernelName(word)
		if why, ok := forbidden[name]; ok {
			return "", fmt.Errorf("%q is refused: %s: take it out", word, why)
		}
		if weaker, ok := stricter[word]; ok {
			ending[slices.Index(fixed, weaker)] = word
			continue
		}
		for _, f := range fixed {
			if name == kernelName(f) && word != f {
				return "", fmt.Errorf("%q contradicts the fixed %q: take it out", word, f)
			}
		}
		if !slices.Contains(fixed, word) {
			words = append(words, word)
		}
	}
	line := strings.Join(append(words, ending...), " ")
	if len(line) > maxCmdline {
		return "", fmt.Errorf("has %d bytes, more than %d", len(line), maxCmdline)
	}
	for i := range len(line) {
		if line[i] < ' ' || line[i] == 0x7f {
			return "", fmt.Errorf("has the control character 0x%02x", line[i])
		}
	}
	return line, nil
}

// kernelName returns the name of an argument as the kernel compares it:
// without quotes, '-' like '_'.
func kernelName(word string) string {
	if word == "--" {
		return word
	}
	name, _, _ := strings.Cut(strings.Trim(word, `"`), "=")
	return strings.ReplaceAll(name, "-", "_")
}
