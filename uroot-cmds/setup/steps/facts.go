// Package steps says what a machine's first start does: which commands run and which files
// are written for the answers that somebody gave.
//
// It opens no file and runs nothing: it has the facts of the machine, and returns the
// steps. It refuses an answer that the image cannot follow before there is any step.
package steps

import (
	"slices"
	"strings"

	"halogenos.internal/boot/questions"
)

// Facts are what an image has, and what the machine is now.
type Facts struct {
	// Locales are those of the image that have UTF-8, as answers.Language takes them.
	Locales []string
	Layouts []Layout // of keyboards
	Zones   []Zone   // of time
	// Files are the contents of those files below /etc that are changed in part, by
	// their paths. A link is not among them.
	Files map[string]string
	// Links are the symbolic links at the places of such files.
	Links map[string]string
	// Directories are those that say whose ways the image follows.
	Directories map[string]bool
	Users       []User
	Groups      []string
	// Homes are the owners of the directories in /home, by name.
	Homes map[string]uint32
	Tools map[string]bool // programs, by name
	// Keymaps is systemd's table of the console's keymaps for XKB's layouts.
	Keymaps string
	Updates Updates
	// Begun is the account that a run before began with, and did not end: "" for none.
	Begun string
	// First is what the note of the first start says: "" where there is none.
	First string
	// Systemd: systemd runs here.
	Systemd bool
	// Wireless: the kernel has a wireless device.
	Wireless bool
}

// What the questions have it as.
type (
	Layout = questions.Layout
	Zone   = questions.Zone
	User   = questions.User
)

// Updates says whether releases are fetched without being asked for.
type Updates int

// The states of Updates.
const (
	// Unknown: the image has no server, or nothing that fetches.
	Unknown Updates = iota
	Off
	On
)

// LivedIn reports whether there is a person's account with a password: the machine is not
// at its first start, whatever its notes say.
func (f *Facts) LivedIn() bool {
	return questions.LivedIn(f.Users)
}

// FirstStart reports whether this is the first start of a machine, or one after a first
// start that was put off. The version is that of the running system.
func (f *Facts) FirstStart(version string) bool {
	return f.First == asking || f.First != "" && f.First == version
}

func (f *Facts) user(name string) (User, bool) {
	i := slices.IndexFunc(f.Users, func(u User) bool { return u.Name == name })
	if i < 0 {
		return User{}, false
	}
	return f.Users[i], true
}

// Accounts reports whether the image has what makes an account.
func (f *Facts) Accounts() bool {
	return f.Tools["useradd"] && f.Tools["usermod"] && f.Tools["userdel"] && f.Tools["groupdel"] && f.Tools["chpasswd"]
}

// AsksWireless reports whether somebody may be asked for a wireless network: there is a device,
// and NetworkManager, which is to keep the password.
func (f *Facts) AsksWireless() bool { return f.Wireless && f.Tools["NetworkManager"] }

// Choices are what somebody can be asked.
func (f *Facts) Choices() *questions.Choices {
	_, zone, _ := strings.Cut(f.Links[localtime], "/zoneinfo/")
	c := &questions.Choices{
		Version: questions.Version, Languages: f.Locales, Keyboards: f.Layouts, TimeZones: f.Zones,
		Language: f.language(), TimeZone: zone, HostName: strings.TrimSpace(f.Files[hostname]), Accounts: f.Accounts(),
	}
	if c.Keyboard = questions.Value(f.Files[defaultKeyboard], "XKBLAYOUT"); c.Keyboard == "" {
		c.Keyboard = questions.Value(f.Files[vconsoleConf], "XKBLAYOUT")
	}
	c.SetUsers(f.Users)
	// What a run before began with can be had again.
	c.Groups = slices.DeleteFunc(slices.Clone(f.Groups), func(g string) bool { return g == f.Begun })
	if f.Updates != Unknown {
		on := f.Updates == On
		c.AutomaticUpdates = &on
	}
	return c
}

// language is the machine's now: "" for none that the image has.
func (f *Facts) language() string {
	for _, name := range []string{localeConf, defaultLocale} {
		if l := questions.Value(f.Files[name], "LANG"); slices.Contains(f.Locales, l) {
			return l
		}
	}
	return ""
}
