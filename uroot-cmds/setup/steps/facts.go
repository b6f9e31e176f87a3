// Package steps says what a machine's first start does: which commands run and which files
// are written for the answers that somebody gave.
//
// It opens no file and runs nothing: it has the facts of the machine, and returns the
// steps. It refuses an answer that the image cannot follow before there is any step.
package steps

import (
	"slices"
	"strings"

	"halogenos.internal/boot/answers"
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

// A Layout is one of a keyboard.
type Layout struct {
	Name string // as answers.Keyboard takes it, with a variant if it has one
	Text string // what XKB calls it, in English
}

// A Zone is a time zone.
type Zone struct {
	Name string
	// Country is the one that it is the only zone of, by its code of two letters, or "".
	Country string
}

// A User is an account.
type User struct {
	Name string
	UID  uint32
	// Password: somebody can log in with one.
	Password bool
}

// Updates says whether releases are fetched without being asked for.
type Updates int

// The states of Updates.
const (
	// Unknown: the image has no server, or nothing that fetches.
	Unknown Updates = iota
	Off
	On
)

// Accounts of people have these numbers, as useradd(8) and systemd have it.
const (
	FirstPerson = 1000
	LastPerson  = 59999
)

// person reports whether an account is that of a person.
func (u User) person() bool { return u.UID >= FirstPerson && u.UID <= LastPerson }

// LivedIn reports whether there is a person's account with a password: the machine is not
// at its first start, whatever its notes say.
func (f *Facts) LivedIn() bool {
	return slices.ContainsFunc(f.Users, func(u User) bool { return u.person() && u.Password })
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

// HasLayout reports whether the image knows a keyboard layout.
func (f *Facts) HasLayout(name string) bool {
	return slices.ContainsFunc(f.Layouts, func(l Layout) bool { return l.Name == name })
}

// HasZone reports whether the image knows a time zone.
func (f *Facts) HasZone(name string) bool {
	return slices.ContainsFunc(f.Zones, func(z Zone) bool { return z.Name == name })
}

// Language is the machine's now: "" for none that the image has.
func (f *Facts) Language() string {
	for _, name := range []string{localeConf, defaultLocale} {
		if l := get(f.Files[name], "LANG"); slices.Contains(f.Locales, l) {
			return l
		}
	}
	return ""
}

// DefaultKeyboard is the layout that most people have who speak a language, and otherwise
// the machine's.
func (f *Facts) DefaultKeyboard(language string) string {
	speech, country := parts(language)
	guess := strings.ToLower(country)
	switch {
	case country == "":
	case speech == "en" && country != "GB" && country != "ZA" && country != "IE":
		guess = "us"
	case speech == "es" && country != "ES":
		guess = "latam"
	case speech == "fr" && country == "CH":
		guess = "ch(fr)"
	case speech == "ar":
		guess = "ara"
	}
	now := get(f.Files[defaultKeyboard], "XKBLAYOUT")
	if now == "" {
		now = get(f.Files[vconsoleConf], "XKBLAYOUT")
	}
	for _, name := range []string{guess, now, "us"} {
		if f.HasLayout(name) {
			return name
		}
	}
	return ""
}

// DefaultZone is the only time zone of a language's country, and otherwise the machine's.
func (f *Facts) DefaultZone(language string) string {
	_, country := parts(language)
	for _, z := range f.Zones {
		if country != "" && z.Country == country {
			return z.Name
		}
	}
	_, now, _ := strings.Cut(f.Links[localtime], "/zoneinfo/")
	for _, name := range []string{now, "Etc/UTC", "UTC"} {
		if f.HasZone(name) {
			return name
		}
	}
	return ""
}

// DefaultHostName is the machine's name now, or else what it is.
func (f *Facts) DefaultHostName() string {
	if now := strings.ToLower(strings.TrimSpace(f.Files[hostname])); answers.HostName(now) == nil {
		return now
	}
	return "computer"
}

// parts are the language and the country of a locale's name.
func parts(locale string) (speech, country string) {
	locale, _, _ = strings.Cut(locale, ".")
	speech, country, _ = strings.Cut(locale, "_")
	return speech, country
}
