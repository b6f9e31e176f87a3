// Package answers reads setup.json: what a machine is told at its first start in the place
// of a person, such as its language, its name and its first account.
//
// It refuses a password that anybody could read, a hash that is not yescrypt's, and
// whatever it does not know: a misspelled answer would otherwise be one that is missing.
// Whether the image has what is asked for, such as a language, is not its business.
package answers

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"halogenos.internal/boot/strictjson"
	"halogenos.internal/boot/words"
)

// Version is that of the format.
const Version = 1

// MaxSize bounds the file in bytes.
const MaxSize = 16 << 10

// OnESP is where an installer leaves the file on the EFI system partition, for the boot that
// makes the root partition.
const OnESP = "EFI/halogen/setup.json"

// HandedOver is the file's name in the directory that the boot shares with the running
// system, once the root partition is made.
const HandedOver = "setup.json"

// Answers are what the file says. What is missing stays as the image has it.
type Answers struct {
	Version int `json:"version"`
	// Language is a locale by its name in setlocale(3), such as de_DE.UTF-8.
	Language string `json:"language,omitempty"`
	// Keyboard is a layout as XKB writes it, such as de or de(nodeadkeys).
	Keyboard string `json:"keyboard,omitempty"`
	// TimeZone is a name of the time zone database, such as Europe/Berlin.
	TimeZone string   `json:"time_zone,omitempty"`
	HostName string   `json:"host_name,omitempty"`
	Account  *Account `json:"account,omitempty"`
	// AutomaticUpdates says whether releases are fetched without being asked for.
	AutomaticUpdates *bool `json:"automatic_updates,omitempty"`
	// Ask are the keys of what a first start asks a person for, beside these answers. Where
	// nobody can be asked it takes the answers alone.
	Ask []string `json:"ask,omitempty"`
}

// The keys of what can be asked for.
const (
	KeyLanguage = "language"
	KeyKeyboard = "keyboard"
	KeyTimeZone = "time_zone"
	KeyHostName = "host_name"
	KeyAccount  = "account"
	KeyUpdates  = "automatic_updates"
	// KeyWireless is a wireless network, whose password is in no file.
	KeyWireless = "wireless"
)

// asked are the keys, with how a summary calls them.
var asked = [][2]string{
	{KeyLanguage, words.SumLanguage}, {KeyKeyboard, words.SumKeyboard}, {KeyTimeZone, words.SumTimeZone}, {KeyHostName, words.SumHostName},
	{KeyUpdates, words.SumUpdates}, {KeyAccount, words.SumAccount}, {KeyWireless, words.SumWireless},
}

// An Account is that of the person who uses the machine.
type Account struct {
	Name     string `json:"name"`
	FullName string `json:"full_name,omitempty"`
	// PasswordHash is as crypt(5) describes it, of yescrypt.
	PasswordHash string `json:"password_hash,omitempty"`
	// Administrator: the account may become root. By default it may, as nobody else can.
	Administrator *bool `json:"administrator,omitempty"`

	// Plain is for what somebody may have written in good faith; it is refused.
	Plain *string `json:"password,omitempty"`

	// Typed is the password that a person typed, whose owner clears it. It is in no file.
	Typed []byte `json:"-"`
}

// Administers reports whether the account may become root.
func (a *Account) Administers() bool { return a.Administrator == nil || *a.Administrator }

// Parse reads the file.
func Parse(text []byte) (*Answers, error) {
	if len(text) > MaxSize {
		return nil, fmt.Errorf("has %d bytes, more than %d", len(text), MaxSize)
	}
	if !utf8.Valid(text) {
		return nil, errors.New("is not UTF-8 text")
	}
	a := new(Answers)
	// Another version has other names, which would be refused first.
	var of struct {
		Version *int `json:"version"`
	}
	if err := strictjson.Unmarshal(text, &of); err != nil {
		return nil, err
	}
	switch {
	case of.Version == nil:
		return nil, fmt.Errorf("has no version: write \"version\": %d", Version)
	case *of.Version != Version:
		return nil, fmt.Errorf("has version %d, and this program knows %d alone", *of.Version, Version)
	}
	if err := strictjson.Decode(text, a); err != nil {
		return nil, err
	}
	if len(a.Ask) == 0 {
		a.Ask = nil
	}
	return a, a.check()
}

// Summary is [Answers.SummaryIn] in English.
func (a *Answers) Summary() string { return a.SummaryIn(words.English) }

// SummaryIn says what the answers are, a line each; of a password, that there is one.
func (a *Answers) SummaryIn(l words.Language) string {
	var b strings.Builder
	line := func(what, value string) {
		if value != "" {
			fmt.Fprintf(&b, "  %-10s %s\n", l.Text(what), value)
		}
	}
	line(words.SumLanguage, a.Language)
	line(words.SumKeyboard, a.Keyboard)
	line(words.SumTimeZone, a.TimeZone)
	line(words.SumHostName, a.HostName)
	if a.AutomaticUpdates != nil {
		line(words.SumUpdates, l.Text(map[bool]string{true: words.SumThemselves, false: words.SumWhenAsked}[*a.AutomaticUpdates]))
	}
	switch c := a.Account; {
	case c == nil && slices.Contains(a.Ask, KeyAccount):
	case c == nil:
		line(words.SumAccount, l.Text(words.SumNone))
	case c.Administers():
		line(words.SumAccount, l.Say(words.SumAdministers, strings.TrimSpace(c.Name+"  "+c.FullName)))
	default:
		line(words.SumAccount, strings.TrimSpace(c.Name+"  "+c.FullName))
	}
	var later []string
	for _, key := range asked {
		if slices.Contains(a.Ask, key[0]) {
			later = append(later, l.Text(key[1]))
		}
	}
	if len(later) > 0 {
		line(words.SumAsked, l.Say(words.SumAtFirstStart, strings.Join(later, ", ")))
	}
	return b.String()
}

// check refuses what no machine could take.
func (a *Answers) check() error {
	for _, c := range []struct {
		key, value string
		check      func(string) error
	}{
		{"language", a.Language, Language}, {"keyboard", a.Keyboard, Keyboard},
		{"time_zone", a.TimeZone, TimeZone}, {"host_name", a.HostName, HostName},
	} {
		if c.value == "" {
			continue
		}
		if err := c.check(c.value); err != nil {
			return fmt.Errorf("%s: %w", c.key, err)
		}
	}
	if err := a.checkAsk(); err != nil {
		return err
	}
	if a.Account == nil {
		return nil
	}
	if err := a.Account.check(); err != nil {
		return fmt.Errorf("account: %w", err)
	}
	return nil
}

// checkAsk refuses what cannot be asked for, and what has its answer.
func (a *Answers) checkAsk() error {
	has := map[string]bool{
		KeyLanguage: a.Language != "", KeyKeyboard: a.Keyboard != "", KeyTimeZone: a.TimeZone != "", KeyHostName: a.HostName != "",
		KeyUpdates: a.AutomaticUpdates != nil, KeyAccount: a.Account != nil,
	}
	for n, key := range a.Ask {
		switch {
		case !slices.ContainsFunc(asked, func(k [2]string) bool { return k[0] == key }):
			return fmt.Errorf("ask: %.40q is nothing that a first start asks for", key)
		case slices.Contains(a.Ask[:n], key):
			return fmt.Errorf("ask: %s comes twice", key)
		case has[key]:
			return fmt.Errorf("ask: %s has its answer: leave one of them out", key)
		}
	}
	return nil
}

func (a *Account) check() error {
	if a.Plain != nil {
		return errors.New("password: a password that can be read is not taken: write password_hash in its place, which `mkpasswd --method=yescrypt` makes")
	}
	if err := UserName(a.Name); err != nil {
		return fmt.Errorf("name: %w", err)
	}
	if err := FullName(a.FullName); err != nil {
		return fmt.Errorf("full_name: %w", err)
	}
	if a.PasswordHash == "" {
		return errors.New("has no password_hash, which `mkpasswd --method=yescrypt` makes: nobody could log in")
	}
	if err := Hash(a.PasswordHash); err != nil {
		return fmt.Errorf("password_hash: %w", err)
	}
	return nil
}

var (
	language = regexp.MustCompile(`^([a-z]{2,3}(_[A-Z]{2})?|C)\.UTF-8(@[a-z]{1,16})?$`)
	keyboard = regexp.MustCompile(`^([a-z][a-z0-9_]{0,15})(?:\(([A-Za-z0-9][A-Za-z0-9_-]{0,31})\))?$`)
	zonePart = regexp.MustCompile(`^[A-Za-z0-9_+-]{1,32}$`)
	label    = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	userName = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,30}$`)
	// crypt(5), yescrypt; the parameters are those that crypt_gensalt(3) of libxcrypt
	// makes, for costs of 1 to 11: others may take more memory than a machine has. A
	// salt has 64 bits at least.
	yescrypt = regexp.MustCompile(`^\$y\$j(?:75|85|[789A-F]T)\$[./A-Za-z0-9]{11,86}\$[./A-Za-z0-9]{43}$`)
)

// Language checks the form of a locale's name. Only UTF-8 is taken.
func Language(s string) error {
	if !language.MatchString(s) {
		return fmt.Errorf("%.60q is not a language like de_DE.UTF-8", s)
	}
	return nil
}

// Keyboard checks the form of a layout.
func Keyboard(s string) error {
	if !keyboard.MatchString(s) {
		return fmt.Errorf("%.60q is not a keyboard layout like de or de(nodeadkeys)", s)
	}
	return nil
}

// SplitKeyboard returns a layout and its variant, which is empty for the plain one.
func SplitKeyboard(s string) (layout, variant string) {
	layout, variant, _ = strings.Cut(strings.TrimSuffix(s, ")"), "(")
	return layout, variant
}

// TimeZone checks the form of a time zone's name. It is the name of a file below a
// directory, which it does not leave.
func TimeZone(s string) error {
	parts := strings.Split(s, "/")
	if len(parts) > 3 {
		parts = []string{""}
	}
	for _, p := range parts {
		if !zonePart.MatchString(p) {
			return fmt.Errorf("%.60q is not a time zone like Europe/Berlin", s)
		}
	}
	return nil
}

// maxHostName is Linux's limit in bytes.
const maxHostName = 64

// HostName checks a machine's name (RFC 1123, section 2.1), with or without a domain.
func HostName(s string) error {
	if len(s) > maxHostName {
		return words.Errorf(words.AskHostLong, s, len(s), maxHostName)
	}
	for part := range strings.SplitSeq(s, ".") {
		if !label.MatchString(part) {
			return words.Errorf(words.AskHostForm, s)
		}
	}
	if s == "localhost" {
		return words.Errorf(words.AskLocalhost)
	}
	return nil
}

// UserName checks the name of an account, as useradd(8) takes it everywhere.
func UserName(s string) error {
	if !userName.MatchString(s) {
		return words.Errorf(words.AskUserForm, s)
	}
	return nil
}

// maxFullName bounds it in bytes.
const maxFullName = 128

// FullName checks a person's name. It lies in a field of a line of /etc/passwd, whose
// parts are separated by commas. It may be empty.
func FullName(s string) error {
	odd := func(r rune) bool { return r == ':' || r == ',' || r == '=' || !unicode.IsPrint(r) }
	switch {
	case len(s) > maxFullName:
		return words.Errorf(words.AskNameLong, len(s), maxFullName)
	case strings.ContainsFunc(s, odd), !utf8.ValidString(s), strings.TrimSpace(s) != s:
		return words.Errorf(words.AskNameForm, s)
	}
	return nil
}

// Hash checks that a password's hash is yescrypt's. The error does not show it.
func Hash(s string) error {
	if !yescrypt.MatchString(s) {
		return errors.New("is not a yescrypt hash ($y$...) as `mkpasswd --method=yescrypt` makes it")
	}
	return nil
}

// maxPassword is PAM's limit in bytes (PAM_MAX_RESP_SIZE).
const maxPassword = 511

// Password checks a password that was typed.
func Password(s []byte) error {
	switch {
	case len(s) == 0:
		return words.Errorf(words.AskPasswordEmpty)
	case len(s) > maxPassword:
		return words.Errorf(words.AskPasswordLong, len(s), maxPassword)
	}
	for _, b := range s {
		if b < ' ' || b == 0x7f {
			return words.Errorf(words.AskPasswordControl)
		}
	}
	return nil
}
