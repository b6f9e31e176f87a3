package hw

import "strings"

// moduleOptions is what a kernel command line says about modules, as modprobe(8) reads
// it: the parameters of each, as "nvme_core.default_ps_max_latency_us=0", and those that
// no device is to get of itself (modprobe.blacklist=). What follows "--" is for init.
func moduleOptions(cmdline string) (options map[string]string, banned map[string]bool) {
	options, banned = map[string]string{}, map[string]bool{}
	for _, word := range commandWords(cmdline) {
		if word == "--" {
			break
		}
		name, value, _ := strings.Cut(word, "=")
		module, parameter, dotted := strings.Cut(name, ".")
		switch {
		case name == "modprobe.blacklist":
			for _, m := range strings.Split(value, ",") {
				banned[canonical(m)] = true
			}
		case dotted && module != "" && parameter != "":
			m := canonical(module)
			if strings.ContainsAny(value, " \t") && !strings.Contains(value, `"`) { // the quotes were around the whole
				parameter += `="` + value + `"`
			} else {
				parameter = word[len(module)+1:]
			}
			options[m] = strings.TrimSpace(options[m] + " " + parameter)
		}
	}
	return options, banned
}

// commandWords splits as the kernel does (lib/cmdline.c, next_arg): at spaces that are
// outside of double quotes. Quotes around a whole word are for that alone.
func commandWords(cmdline string) (words []string) {
	quoted := false
	for _, word := range strings.FieldsFunc(cmdline, func(r rune) bool {
		if r == '"' {
			quoted = !quoted
		}
		return !quoted && (r == ' ' || r == '\n' || r == '\t')
	}) {
		if len(word) > 1 && word[0] == '"' && word[len(word)-1] == '"' {
			word = word[1 : len(word)-1]
		}
		words = append(words, word)
	}
	return words
}

// withOptions loads a module with its parameters. What it depends on gets its own first,
// the deepest before the others: loaded on the way it would get none.
func (k *LinuxKernel) withOptions(probe func(module, options string) error, options map[string]string) func(string) error {
	return func(module string) error {
		needs := k.needs[canonical(module)]
		for i := len(needs) - 1; i >= 0; i-- {
			if o := options[needs[i]]; o != "" {
				if err := probe(needs[i], o); err != nil {
					return err
				}
			}
		}
		return probe(module, options[canonical(module)])
	}
}
