package steps

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"halogenos.internal/boot/answers"
	"halogenos.internal/boot/questions"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/bootinfo"
)

// Files of the system that are written.
const (
	localeConf      = "/etc/locale.conf"
	defaultLocale   = "/etc/default/locale"
	vconsoleConf    = "/etc/vconsole.conf"
	defaultKeyboard = "/etc/default/keyboard"
	xorgKeyboard    = "/etc/X11/xorg.conf.d/00-keyboard.conf"
	localtime       = "/etc/localtime"
	timezone        = "/etc/timezone"
	hostname        = "/etc/hostname"
	hosts           = "/etc/hosts"
	nsswitch        = "/etc/nsswitch.conf"
	subuid          = "/etc/subuid"
	subgid          = "/etc/subgid"
)

// Files of our own.
const (
	// FirstFile says that this machine is at its first start: the boot leaves it where it
	// has made the root partition. It lies where all systems of the machine see it, so that
	// none asks again what another was told.
	FirstFile = bootinfo.Directory + "/" + bootinfo.FirstStart
	// HandedFile has the answers that an installer left: the boot puts it there where it has
	// made the root partition.
	HandedFile = bootinfo.Directory + "/" + answers.HandedOver
	// BegunFile names the account that is being made. It is about this system's /etc, and
	// lies there.
	BegunFile = "/etc/halogen/setup-begun"
)

// Looked are the files, some of which are only read, whose contents and links Facts has, as far as they are there.
func Looked() []string {
	return []string{localeConf, defaultLocale, vconsoleConf, defaultKeyboard, localtime, timezone, hostname, hosts, nsswitch, subuid, subgid}
}

// LookedDirectories are the directories that Facts knows of.
func LookedDirectories() []string { return []string{"/etc/default", "/etc/X11"} }

// LookedTools are the programs that Facts knows of.
func LookedTools() []string {
	return []string{"useradd", "usermod", "userdel", "groupdel", "chpasswd", "systemctl", "setupcon", "loadkeys", "udevadm", "bash", "NetworkManager", "halogenctl"}
}

// A Kind is what a step does. The zero value is none.
type Kind int

// The kinds of steps.
const (
	Write   Kind = iota + 1 // a file, in one step, with Text
	Symlink                 // Path leads to Text
	Remove                  // a file or an empty directory; one that is missing is fine
	Run                     // Args, with Input
	Name                    // the kernel's name of the machine is Text
)

// A Step is one of what is done.
type Step struct {
	Kind Kind
	// Does says it for people, where they have to know.
	Does string
	Path string
	Text string
	Args []string
	// Input is the standard input of a command, whose owner clears it.
	Input []byte
	// Fine is an exit code of a command that is as good as 0.
	Fine int
	// Try: it may fail, as it has something take effect at once that does so at the next
	// start anyway, or which not every machine can (a serial line has no keymap, and not every
	// firmware takes a variable).
	Try bool
}

// Plan returns what is done for the answers, in order.
//
// The power may fail at any point: each step may be done again, and the note that this is
// the first start goes last, so that a start with it asks again. Of the account that was being
// made the machine has a note of its own; see account.
func Plan(a *answers.Answers, f *Facts) ([]Step, error) {
	if err := follow(a, f); err != nil {
		return nil, err
	}
	var all []Step
	if a.Language != "" {
		all = append(all, locale(a.Language, f)...)
	}
	if a.Keyboard != "" {
		all = append(all, Keyboard(a.Keyboard, f)...)
	}
	if a.TimeZone != "" {
		all = append(all, zone(a.TimeZone, f)...)
	}
	if a.HostName != "" {
		all = append(all, name(a.HostName, f)...)
	}
	if a.AutomaticUpdates != nil {
		all = append(all, updates(*a.AutomaticUpdates, f)...)
	}
	if a.Account != nil {
		all = append(all, account(a.Account, f)...)
	}
	return append(all, Done()...), nil
}

// Done takes the note of the first start away: it was seen to, for all systems. The
// installer's answers go before it: cut between the two, the next start asks what they have
// not said, or finds the account that they have made.
func Done() []Step {
	return []Step{{Kind: Remove, Path: HandedFile}, {Kind: Remove, Path: FirstFile}}
}

// asking is what the note of the first start says once a system that asks has seen it.
const asking = "asking"

// Claim has the first start last until somebody answers, or an account is there: whatever
// releases come meanwhile.
func Claim() Step { return write(FirstFile, asking+"\n") }

// follow refuses what the image cannot do.
func follow(a *answers.Answers, f *Facts) error {
	c := f.Choices()
	switch {
	case a.Language != "" && !slices.Contains(f.Locales, a.Language):
		return fmt.Errorf("language: the image has no %s; `locale -a` lists what it has", a.Language)
	case a.Keyboard != "" && len(f.Layouts) == 0:
		return errors.New("keyboard: the image has no list of keyboard layouts (Debian: the package xkb-data)")
	case a.Keyboard != "" && !c.HasKeyboard(a.Keyboard):
		return fmt.Errorf("keyboard: the image knows no layout %s", a.Keyboard)
	case a.TimeZone != "" && !c.HasTimeZone(a.TimeZone):
		return fmt.Errorf("time_zone: the image knows no %s (below /usr/share/zoneinfo; Debian: the packages tzdata and tzdata-legacy)", a.TimeZone)
	case a.AutomaticUpdates != nil && f.Updates == Unknown:
		return errors.New("automatic_updates: the image has no ota-fetch.timer, or no server (ota.conf(5)): nothing can be switched")
	case a.Account == nil:
		return nil
	case !f.Accounts():
		return errors.New("account: the image lacks useradd, usermod, userdel, groupdel or chpasswd (Debian: the package passwd)")
	}
	return c.Free(a.Account.Name)
}

func (f *Facts) isLink(path string) bool { return f.Links[path] != "" }

func write(path, text string) Step { return Step{Kind: Write, Path: path, Text: text} }

// locale sets the language. systemd and most others read locale.conf; Debian's PAM reads
// its own file, which is a link to the other since Debian 13.
func locale(language string, f *Facts) []Step {
	all := []Step{write(localeConf, set(f.Files[localeConf], "LANG", language))}
	all[0].Does = "the language is " + language
	if f.Directories["/etc/default"] && !f.isLink(defaultLocale) {
		all = append(all, write(defaultLocale, set(f.Files[defaultLocale], "LANG", language)))
	}
	if f.Tools["systemctl"] && f.Systemd {
		// systemd has read it when it started: the display manager is started with this.
		all = append(all, Step{Kind: Run, Args: []string{"systemctl", "set-environment", "LANG=" + language}, Try: true})
	}
	if l, known := words.OfLocale(language); known && f.Tools["halogenctl"] {
		// The screens before the system, too. A machine without UEFI's variables has them in the image's language.
		all = append(all, Step{Kind: Run, Args: []string{"halogenctl", "language", l.Code()}, Try: true})
	}
	return all
}

// foreign are layouts without Latin letters: US comes with them, as accounts and commands
// are written in it. Alt and Shift change between them, as Debian's installer has it.
var foreign = strings.Fields("af am ara bd bg by bt et ge gr il in iq ir kg kh kz la lk ma mk mm mn mv np pk rs ru sy th tj ua")

const toggle = "grp:alt_shift_toggle"

// Keyboard are the steps that set a layout. They are done before anything else is asked,
// so that a password is typed on the keyboard that will be used.
func Keyboard(name string, f *Facts) []Step {
	layout, variant := answers.SplitKeyboard(name)
	keymap := keymap(f.Keymaps, layout, variant)
	options := ""
	if slices.Contains(foreign, layout) && !strings.HasPrefix(variant, "latin") {
		layout, variant, options = "us,"+layout, ","+variant, toggle
	}
	xkb := func(text string) string {
		for _, kv := range [][2]string{{"XKBMODEL", "pc105"}, {"XKBLAYOUT", layout}, {"XKBVARIANT", variant}} {
			text = set(text, kv[0], `"`+kv[1]+`"`)
		}
		// Options of somebody's own stay.
		if options != "" || questions.Value(text, "XKBOPTIONS") == toggle {
			text = set(text, "XKBOPTIONS", `"`+options+`"`)
		}
		return text
	}
	var all []Step
	debian := f.Files[defaultKeyboard] != ""
	if debian {
		all = append(all, write(defaultKeyboard, xkb(f.Files[defaultKeyboard])))
	}
	if !debian || f.Files[vconsoleConf] != "" {
		all = append(all, write(vconsoleConf, set(xkb(f.Files[vconsoleConf]), "KEYMAP", `"`+keymap+`"`)))
	}
	if !debian && f.Directories["/etc/X11"] {
		all = append(all, write(xorgKeyboard, xorg(layout, variant, options)))
	}
	all[0].Does = "the keyboard is " + name
	switch {
	case debian && f.Tools["setupcon"]:
		all = append(all, Step{Kind: Run, Args: []string{"setupcon", "--keyboard-only", "--force"}, Try: true})
	case f.Tools["loadkeys"]:
		all = append(all, Step{Kind: Run, Args: []string{"loadkeys", "--quiet", keymap}, Try: true})
	}
	if debian && f.Tools["udevadm"] {
		// Debian's X has the layout from udev, which has seen the keyboard before.
		all = append(all, Step{Kind: Run, Args: []string{"udevadm", "trigger", "--subsystem-match=input", "--action=change"}, Try: true})
	}
	return all
}

func xorg(layout, variant, options string) string {
	return fmt.Sprintf(`# Written by setup(8); localectl(1) changes it.
Section "InputClass"
        Identifier "system-keyboard"
        MatchIsKeyboard "on"
        Option "XkbLayout" "%s"
        Option "XkbModel" "pc105"
        Option "XkbVariant" "%s"
        Option "XkbOptions" "%s"
EndSection
`, layout, variant, options)
}

// keymap is the console's keymap for a layout: by systemd's table, whose columns are the
// keymap, XKB's layout, model, variant and options, or else of the same name.
func keymap(table, layout, variant string) string {
	best := layout
	if variant != "" {
		best += "-" + variant
	}
	plain := ""
	for line := range strings.Lines(table) {
		c := strings.Fields(line)
		if len(c) < 4 || strings.HasPrefix(c[0], "#") || c[1] != layout {
			continue
		}
		of := strings.TrimSuffix(c[3], "-")
		if of == variant {
			return c[0]
		}
		if of == "" && plain == "" {
			plain = c[0]
		}
	}
	if plain != "" {
		return plain
	}
	return best
}

// zone sets the time zone. Debian up to 12 and others have its name in a file, too.
func zone(name string, f *Facts) []Step {
	all := []Step{{Kind: Symlink, Path: localtime, Text: "../usr/share/zoneinfo/" + name, Does: "the time zone is " + name}}
	if _, has := f.Files[timezone]; has {
		all = append(all, write(timezone, name+"\n"))
	}
	return all
}

// name sets the machine's. It resolves to the machine itself: by systemd's module, or else
// by a line, as Debian has it.
func name(name string, f *Facts) []Step {
	all := []Step{
		{Kind: Write, Path: hostname, Text: name + "\n", Does: "the machine's name is " + name},
	}
	if !resolvesItself(f.Files[nsswitch]) {
		all = append(all, write(hosts, setHost(f.Files[hosts], name)))
	}
	return append(all, Step{Kind: Name, Text: name, Try: true})
}

func resolvesItself(nsswitch string) bool {
	for line := range strings.Lines(nsswitch) {
		if words := strings.Fields(line); len(words) > 0 && words[0] == "hosts:" {
			return slices.Contains(words, "myhostname")
		}
	}
	return false
}

// The timer by which releases are fetched, and the link that has it started.
const (
	Timer     = "ota-fetch.timer"
	TimerLink = "/etc/systemd/system/timers.target.wants/" + Timer
	timerUnit = "/usr/lib/systemd/system/" + Timer
)

// updates switches the timer, as `systemctl enable` and `disable` do. Nobody waits for it
// to start: it may wait for this.
func updates(automatic bool, f *Facts) []Step {
	s := Step{Kind: Symlink, Path: TimerLink, Text: timerUnit, Does: "releases are fetched by themselves"}
	verb := "start"
	if !automatic {
		s = Step{Kind: Remove, Path: TimerLink, Does: "releases are fetched when somebody asks for them (ota fetch)"}
		verb = "stop"
	}
	all := []Step{s}
	if f.Tools["systemctl"] && f.Systemd {
		all = append(all, Step{Kind: Run, Args: []string{"systemctl", "--no-block", verb, Timer}, Try: true})
	}
	return all
}
