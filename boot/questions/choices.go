// Package questions is what a person is asked about a new machine, such as its language, its
// name and its first account: which questions there are, in which words, what Enter takes,
// and what an answer must be.
//
// It asks at the first start and in the installer alike. It refuses an answer that the image
// cannot follow, and opens no file: [Choices] has what the image has to choose from.
package questions

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"halogenos.internal/boot/answers"
	"halogenos.internal/boot/words"
)

// Choices are what an image has to choose from, and what its machines have where nobody
// chooses.
type Choices struct {
	Version int `json:"version"`
	// Languages are the locales with UTF-8, as answers.Language takes them.
	Languages []string `json:"languages,omitempty"`
	Keyboards []Layout `json:"keyboards,omitempty"`
	TimeZones []Zone   `json:"time_zones,omitempty"`

	Language string `json:"language,omitempty"` // now; "" for none of Languages
	Keyboard string `json:"keyboard,omitempty"` // now; "" for none that is known
	TimeZone string `json:"time_zone,omitempty"`
	HostName string `json:"host_name,omitempty"`

	// Accounts: the image has what makes an account.
	Accounts bool `json:"accounts,omitempty"`
	// Users are accounts of the system, whose names nobody can have, and Groups are the
	// groups whose names a new account cannot have.
	Users  []string `json:"users,omitempty"`
	Groups []string `json:"groups,omitempty"`
	// People are accounts of persons that are there: they get a new password.
	People []string `json:"people,omitempty"`
	// AutomaticUpdates says whether releases are fetched without being asked for; nil where
	// the image has no server, or nothing that fetches.
	AutomaticUpdates *bool `json:"automatic_updates,omitempty"`
}

// A Layout is one of a keyboard.
type Layout struct {
	Name string `json:"name"`           // as answers.Keyboard takes it, with a variant if it has one
	Text string `json:"text,omitempty"` // what XKB calls it, in English
}

// A Zone is a time zone.
type Zone struct {
	Name string `json:"name"`
	// Country is the one that it is the only zone of, by its code of two letters, or "".
	Country string `json:"country,omitempty"`
}

// HasKeyboard reports whether the image knows a keyboard layout.
func (c *Choices) HasKeyboard(name string) bool {
	return slices.ContainsFunc(c.Keyboards, func(l Layout) bool { return l.Name == name })
}

// HasTimeZone reports whether the image knows a time zone.
func (c *Choices) HasTimeZone(name string) bool {
	return slices.ContainsFunc(c.TimeZones, func(z Zone) bool { return z.Name == name })
}

// DefaultKeyboard is the layout that most people have who speak a language, and otherwise
// the machine's.
func (c *Choices) DefaultKeyboard(language string) string {
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
	for _, name := range []string{guess, c.Keyboard, "us"} {
		if c.HasKeyboard(name) {
			return name
		}
	}
	return ""
}

// DefaultTimeZone is the only time zone of a language's country, and otherwise the machine's.
func (c *Choices) DefaultTimeZone(language string) string {
	_, country := parts(language)
	for _, z := range c.TimeZones {
		if country != "" && z.Country == country {
			return z.Name
		}
	}
	for _, name := range []string{c.TimeZone, "Etc/UTC", "UTC"} {
		if c.HasTimeZone(name) {
			return name
		}
	}
	return ""
}

// DefaultHostName is the machine's name now, or else what it is.
func (c *Choices) DefaultHostName() string {
	if now := strings.ToLower(strings.TrimSpace(c.HostName)); answers.HostName(now) == nil {
		return now
	}
	return "computer"
}

// Free refuses the name of an account that is the image's own, or of a group.
func (c *Choices) Free(name string) error {
	switch {
	case slices.Contains(c.Users, name):
		return words.Errorf(words.AskUserTaken, name)
	case slices.Contains(c.Groups, name) && !slices.Contains(c.People, name):
		return words.Errorf(words.AskGroupTaken, name)
	}
	return nil
}

// Follow refuses answers that a machine of the image could not take at its first start, since
// the image lacks what they name. The error begins with the answer's key.
func (c *Choices) Follow(a *answers.Answers) error {
	const lacks = "%s: the image has no %s"
	switch {
	case a.Language != "" && !slices.Contains(c.Languages, a.Language):
		return fmt.Errorf(lacks, answers.KeyLanguage, a.Language)
	case a.Keyboard != "" && !c.HasKeyboard(a.Keyboard):
		return fmt.Errorf(lacks, answers.KeyKeyboard, "layout "+a.Keyboard)
	case a.TimeZone != "" && !c.HasTimeZone(a.TimeZone):
		return fmt.Errorf(lacks, answers.KeyTimeZone, a.TimeZone)
	case a.AutomaticUpdates != nil && c.AutomaticUpdates == nil:
		return fmt.Errorf(lacks, answers.KeyUpdates, "server to fetch releases from, or nothing that fetches")
	case a.Account == nil:
		return nil
	case !c.Accounts:
		return fmt.Errorf(lacks, answers.KeyAccount, "programs that make one")
	}
	if err := c.Free(a.Account.Name); err != nil {
		return fmt.Errorf("%s: %w", answers.KeyAccount, err)
	}
	return nil
}

// parts are the language and the country of a locale's name.
func parts(locale string) (speech, country string) {
	locale, _, _ = strings.Cut(locale, ".")
	speech, country, _ = strings.Cut(locale, "_")
	return speech, country
}

// MaxEntries bounds the lists that an image may have of each thing.
const MaxEntries = 10000

// maxText bounds what a keyboard layout is called, in bytes.
const maxText = 200

// maxName bounds the name of an account or a group, in bytes: Linux's LOGIN_NAME_MAX.
const maxName = 256

// check refuses what no image of ours says, and what a terminal might obey.
func (c *Choices) check() error {
	for what, n := range map[string]int{
		"languages": len(c.Languages), "keyboards": len(c.Keyboards), "time_zones": len(c.TimeZones),
		"users": len(c.Users), "groups": len(c.Groups), "people": len(c.People),
	} {
		if n > MaxEntries {
			return fmt.Errorf("%s: %d entries, more than %d", what, n, MaxEntries)
		}
	}
	for _, l := range c.Languages {
		if err := answers.Language(l); err != nil {
			return fmt.Errorf("languages: %w", err)
		}
	}
	for _, l := range c.Keyboards {
		if err := answers.Keyboard(l.Name); err != nil {
			return fmt.Errorf("keyboards: %w", err)
		}
		if err := printable(l.Text, maxText); err != nil {
			return fmt.Errorf("keyboards: %s: %w", l.Name, err)
		}
	}
	for _, z := range c.TimeZones {
		if err := answers.TimeZone(z.Name); err != nil {
			return fmt.Errorf("time_zones: %w", err)
		}
		if z.Country != "" && (len(z.Country) != 2 || strings.Trim(z.Country, upper) != "") {
			return fmt.Errorf("time_zones: %s: %.20q is not a country's code of two letters", z.Name, z.Country)
		}
	}
	for _, name := range slices.Concat(c.Users, c.Groups, c.People) {
		if err := printable(name, maxName); err != nil || name == "" {
			return errors.Join(errors.New("the name of an account or a group"), err)
		}
	}
	return c.checkNow()
}

const upper = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

// checkNow refuses what a machine cannot have.
func (c *Choices) checkNow() error {
	for _, now := range []struct {
		key, value string
		check      func(string) error
	}{{"language", c.Language, answers.Language}, {"keyboard", c.Keyboard, answers.Keyboard}, {"time_zone", c.TimeZone, answers.TimeZone}, {"host_name", c.HostName, answers.HostName}} {
		if now.value == "" {
			continue
		}
		if err := now.check(now.value); err != nil {
			return fmt.Errorf("%s: %w", now.key, err)
		}
	}
	return nil
}

// printable refuses text that is too long, or has what a terminal might obey.
func printable(s string, most int) error {
	switch {
	case len(s) > most:
		return fmt.Errorf("%.20q has %d bytes, more than %d", s, len(s), most)
	case !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }):
		return fmt.Errorf("%.60q has a control character, or is not UTF-8", s)
	}
	return nil
}
