// Package settings reads ota.conf: where this machine's updates come from and
// how they are fetched.
//
// It refuses a value that it does not understand, because a machine that
// silently follows another channel or server than its owner wrote down is worse
// than one that says so. Keys that it does not know are left alone. It opens no
// file: the caller has the texts.
package settings

import (
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"

	"halogenos.internal/boot/manifest"
	reader "halogenos.internal/uroot-cmds/ota/server"
	"halogenos.internal/uroot-cmds/ota/when"
)

// Where the two files lie. What the owner wrote goes over what the image says,
// key by key.
const (
	ImageFile = "/usr/lib/halogen/ota.conf"
	OwnerFile = "/etc/halogen/ota.conf"
)

// MaxSize bounds each file in bytes.
const MaxSize = 64 << 10

// A Demand says whether a manifest must be signed.
type Demand string

// The choices of RequireSignedManifest.
const (
	Always Demand = "yes"
	Never  Demand = "no"
	// Once a signed manifest was seen, an unsigned one is not accepted any more.
	Auto Demand = "auto"
)

// Settings are what both files say together.
type Settings struct {
	Server         string           `json:"server"` // http, https or file URL, or an absolute path; without a '/' at its end
	Channel        manifest.Channel `json:"channel"`
	RateLimit      int64            `json:"rate_limit"` // bytes a second; 0 is none
	UserAgent      string           `json:"user_agent"`
	SignedManifest Demand           `json:"require_signed_manifest"`
	// Proxy is the URL of what requests go through, or "none"; empty is what the
	// environment says.
	Proxy string `json:"proxy"`
	// CA is the absolute path of a file with certificates of authorities, in PEM
	// form, that count beside the system's.
	CA string `json:"ca"`
	// When says when a release may be fetched.
	When when.Rules `json:"when"`
	// ReportTo is the http or https URL of a directory that takes reports of updates; empty
	// is none. That the owner allows them is kept elsewhere, where no image reaches.
	ReportTo string `json:"report_to"`
	// Restart says whether the machine restarts by itself into what was fetched.
	Restart when.Restart `json:"restart"`
	// Grow says whether the machine asks by itself for the larger slots that a release needs.
	Grow Grow `json:"grow"`
}

// A Grow says who asks for larger slots.
type Grow string

// The choices of Grow=.
const (
	GrowAsk  Grow = "ask"  // somebody does, by `ota grow`
	GrowAuto Grow = "auto" // a fetch does, where a release needs them
)

// DefaultUserAgent is what the server sees. It says nothing about the machine.
const DefaultUserAgent = "halogen-ota/1"

// Load reads what the image and the owner say; either may be empty.
func Load(image, owner []byte) (Settings, error) {
	s := Settings{Channel: manifest.Stable, UserAgent: DefaultUserAgent, SignedManifest: Auto, When: when.Usual(), Restart: when.Ask, Grow: GrowAsk}
	for _, file := range []struct {
		name string
		text []byte
	}{{ImageFile, image}, {OwnerFile, owner}} {
		if err := s.read(file.text); err != nil {
			return Settings{}, fmt.Errorf("%s: %w", file.name, err)
		}
	}
	return s, nil
}

func (s *Settings) read(text []byte) error {
	if len(text) > MaxSize {
		return fmt.Errorf("has %d bytes, more than %d", len(text), MaxSize)
	}
	seen := map[string]bool{}
	number := 0
	for line := range strings.SplitSeq(string(text), "\n") {
		number++
		key, value, ok, err := assignment(line)
		if err == nil && ok && seen[key] {
			err = fmt.Errorf("%s is set twice: take one of them out", key)
		}
		if err == nil && ok {
			seen[key] = true
			err = s.set(key, value)
		}
		if err != nil {
			return fmt.Errorf("line %d: %w", number, err)
		}
	}
	return nil
}

// assignment reads one line; ok is false for an empty one and a comment.
func assignment(line string) (key, value string, ok bool, err error) {
	line = strings.TrimSpace(line)
	if line == "" || line[0] == '#' {
		return "", "", false, nil
	}
	key, value, found := strings.Cut(line, "=")
	key, value = strings.TrimSpace(key), strings.TrimSpace(value)
	if !found || key == "" || strings.ContainsAny(key, " \t\"'") {
		return "", "", false, fmt.Errorf("%.60q is not KEY=VALUE, like Server=https://updates.example.org/os", line)
	}
	if n := len(value); n >= 2 && (value[0] == '"' || value[0] == '\'') && value[n-1] == value[0] {
		value = value[1 : n-1]
	}
	for _, r := range value {
		if r < ' ' || r == 0x7f {
			return "", "", false, fmt.Errorf("%s holds the control character %#02x", key, r)
		}
	}
	return key, value, true, nil
}

func (s *Settings) set(key, value string) (err error) {
	switch key {
	case "Server":
		s.Server, err = server(value)
	case "Channel":
		s.Channel, err = manifest.ParseChannel(value)
	case "RateLimit":
		s.RateLimit, err = rate(value)
	case "UserAgent":
		s.UserAgent = value
		if value == "" || len(value) > 200 {
			err = fmt.Errorf("has %d characters, want 1 to 200", len(value))
		}
	case "Proxy":
		s.Proxy, err = proxy(value)
	case "CA":
		s.CA = ""
		if value != "" {
			s.CA = filepath.Clean(value)
		}
		if s.CA != "" && !filepath.IsAbs(s.CA) {
			err = fmt.Errorf("%.100q is not the absolute path of a file with certificates, like /etc/ssl/our-ca.pem", value)
		}
	case "FetchMetered":
		s.When.Metered, err = yes(value)
	case "BatteryAbove":
		s.When.BatteryAbove, err = when.ParsePercent(value)
	case "QuietHours":
		s.When.Quiet, err = when.ParseHours(value)
	case "MaxLoad":
		s.When.MaxLoad, err = when.ParseLoad(value)
	case "ReportTo":
		s.ReportTo, err = reportTo(value)
	case "Restart":
		s.Restart, err = when.ParseRestart(value)
	case "Grow":
		if s.Grow = Grow(value); s.Grow != GrowAsk && s.Grow != GrowAuto {
			err = fmt.Errorf("is %.60q, want ask or auto", value)
		}
	case "RequireSignedManifest":
		switch d := Demand(value); d {
		case Always, Never, Auto:
			s.SignedManifest = d
		default:
			err = fmt.Errorf("is %.60q, want yes, no or auto", value)
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	return nil
}

func yes(value string) (bool, error) {
	if value != "yes" && value != "no" {
		return false, fmt.Errorf("is %.60q, want yes or no", value)
	}
	return value == "yes", nil
}

// server checks the form of a server's address.
func server(value string) (string, error) {
	if filepath.IsAbs(value) {
		return filepath.Clean(value), nil
	}
	u, err := url.Parse(value)
	switch {
	case err != nil:
		return "", errors.New("cannot be read as an address: write one like https://host.example.org/path") // which may hold a password
	case u.Scheme == "file" && u.Host == "" && filepath.IsAbs(u.Path):
		return filepath.Clean(u.Path), nil
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		return "", fmt.Errorf("%.100q is neither an http, https or file address nor an absolute path: write one like https://updates.example.org/os", u.Redacted())
	case u.RawQuery != "" || u.Fragment != "":
		return "", fmt.Errorf("%.100q has a query or a fragment, and names are put after it: leave out what follows the path", u.Redacted())
	}
	return strings.TrimRight(value, "/"), nil
}

// reportTo checks the form of an address that takes reports. Empty takes back what the
// image says.
func reportTo(value string) (string, error) {
	if value == "" {
		return "", nil
	}
	address, err := server(value)
	if err == nil && filepath.IsAbs(address) {
		err = fmt.Errorf("%.100q is a directory of this machine: reports go to an http or https address", value)
	}
	return address, err
}

// proxy checks the form of a proxy's address. Empty takes back what the image says.
func proxy(value string) (string, error) {
	if value == "" || value == reader.NoProxy {
		return value, nil
	}
	_, err := reader.ParseProxy(value)
	return value, err
}

// rate reads a number of bytes a second, with the suffixes K, M and G (1024).
func rate(value string) (int64, error) {
	digits := strings.TrimRight(value, "KMG")
	n, err := strconv.ParseInt(digits, 10, 40)
	shift, ok := map[string]uint{"": 0, "K": 10, "M": 20, "G": 30}[value[len(digits):]]
	if err != nil || n < 0 || !ok || n > 1<<40>>shift {
		return 0, fmt.Errorf("%.60q is not a number of bytes a second, like 500K or 2M", value)
	}
	if n<<shift > 0 && n<<shift < 1<<10 {
		return 0, fmt.Errorf("%s bytes a second are less than 1K, and nothing would ever be fetched: allow more, or take the line out", value)
	}
	return n << shift, nil
}

// SetChannel returns the owner's file with another channel; all else in it
// stays as it is.
func SetChannel(owner []byte, c manifest.Channel) ([]byte, error) {
	if _, err := manifest.ParseChannel(string(c)); err != nil {
		return nil, err
	}
	return with(owner, "Channel", string(c))
}

// with returns a file in which a key has a value.
func with(owner []byte, name, value string) ([]byte, error) {
	set := name + "=" + value
	var lines []string
	done := false
	if len(owner) > 0 {
		lines = strings.Split(strings.TrimSuffix(string(owner), "\n"), "\n")
	}
	for i, line := range lines {
		if key, _, ok, _ := assignment(line); ok && key == name {
			lines[i], done = set, true
		}
	}
	if !done {
		lines = append(lines, set)
	}
	out := []byte(strings.Join(lines, "\n") + "\n")
	if _, err := Load(nil, out); err != nil {
		return nil, err
	}
	return out, nil
}
