// Package wifi brings a machine into a wireless network by NetworkManager.
//
// Anyone nearby can announce networks: their number is bounded, and each gets a name that a
// terminal can show ([Name]). It sets up open networks and those with one password
// for all (WPA, WPA2 and WPA3 personal), and refuses WEP, which protects nothing. A password goes to
// NetworkManager alone, in a message that no other process reads.
package wifi

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/godbus/dbus/v5"
)

// Security is how a network is protected. The zero value is invalid.
type Security int

// The kinds of Security.
const (
	Open       Security = iota + 1
	Enhanced            // open and encrypted (OWE, RFC 8110)
	Personal            // one password for all: WPA2, WPA2 and WPA3, or WPA alone
	Personal3           // one password for all: WPA3 alone
	Enterprise          // a name and a password, or a certificate, for each person
	Weak                // WEP, or what is not known
)

// String says it for people.
func (s Security) String() string {
	switch s {
	case Open:
		return "open"
	case Enhanced:
		return "open, encrypted"
	case Personal:
		return "password"
	case Personal3:
		return "password (WPA3)"
	case Enterprise:
		return "enterprise"
	case Weak:
		return "unsafe (WEP)"
	}
	return "unknown"
}

// HasPassword reports whether a network has one password for all.
func (s Security) HasPassword() bool { return s == Personal || s == Personal3 }

// Refused says why a network cannot be set up here; nil where it can.
func (s Security) Refused() error {
	switch s {
	case Open, Enhanced, Personal, Personal3:
		return nil
	case Enterprise:
		return errors.New("it wants a name or a certificate for each person (enterprise): set it up later, in the desktop's network settings or with nmtui(1)")
	}
	return errors.New("it is protected by WEP or by something older, which anybody can break: choose another one, or set up the access point for WPA2 or WPA3")
}

// A Network is one that can be seen, or the hidden one that somebody names.
type Network struct {
	SSID     []byte // 1 to 32 bytes of any kind
	Security Security
	Strength int // of its best access point, in percent
	Hidden   bool
}

// point is what an access point says of itself (NetworkManager's D-Bus interface
// org.freedesktop.NetworkManager.AccessPoint).
type point struct {
	ssid            []byte
	flags, wpa, rsn uint32
	strength        byte
}

// Bits of an access point (NM80211ApFlags, NM80211ApSecurityFlags).
const (
	private   = 0x1
	psk       = 0x100
	ieee8021x = 0x200
	sae       = 0x400
	owe       = 0x800
	oweMode   = 0x1000 // an open network that has an encrypted one beside it
	suiteB    = 0x2000
)

func (p point) security() Security {
	switch all := p.wpa | p.rsn; {
	case all&psk != 0:
		return Personal
	case all&sae != 0:
		return Personal3
	case all&(ieee8021x|suiteB) != 0:
		return Enterprise
	case all&owe != 0:
		return Enhanced
	case all&^oweMode != 0 || p.flags&private != 0:
		return Weak
	}
	return Open
}

// maxSSID bounds a network's name in bytes (IEEE 802.11-2020, 9.4.2.2).
const maxSSID = 32

// maxNetworks bounds how many networks somebody is shown.
const maxNetworks = 500

// networks are those of access points, the strongest first. Two that have a name in common
// and differ in how they are protected are two: one may be somebody else's.
func networks(all []point) []Network {
	best := map[string]Network{}
	for _, p := range all {
		if len(p.ssid) == 0 || len(p.ssid) > maxSSID || len(bytes.Trim(p.ssid, "\x00")) == 0 {
			continue // it is hidden, or no name at all
		}
		n := Network{SSID: p.ssid, Security: p.security(), Strength: min(int(p.strength), 100)}
		key := strconv.Itoa(int(n.Security)) + string(p.ssid)
		if have, seen := best[key]; !seen || have.Strength < n.Strength {
			best[key] = n
		}
	}
	var found []Network
	for _, n := range best {
		found = append(found, n)
	}
	slices.SortFunc(found, func(a, b Network) int {
		return cmp.Or(cmp.Compare(b.Strength, a.Strength), bytes.Compare(a.SSID, b.SSID), cmp.Compare(a.Security, b.Security))
	})
	return found[:min(len(found), maxNetworks)]
}

// Name is a network's name as a terminal can show it: what is not plain text is quoted as in
// Go, bytes that are not UTF-8 among it. Two networks never have the same.
func Name(ssid []byte) string {
	name := string(ssid)
	quoted := strconv.Quote(name)
	if quoted == `"`+name+`"` && name != "" && strings.TrimSpace(name) == name && !strings.ContainsFunc(name, unicode.IsMark) {
		return name
	}
	return quoted
}

// NewHidden is the network of a name that somebody types, as it sends no name. Nothing says how
// it is protected: with a password it is by WPA2 or WPA3, which NetworkManager finds out.
func NewHidden(name string, password bool) (Network, error) {
	switch {
	case name == "":
		return Network{}, errors.New("the name is empty")
	case len(name) > maxSSID:
		return Network{}, fmt.Errorf("the name has %d bytes, and a network's has %d at most", len(name), maxSSID)
	case strings.ContainsFunc(name, unicode.IsControl):
		return Network{}, errors.New("the name has a control character, as an arrow key or Tab types it")
	}
	n := Network{SSID: []byte(name), Security: Open, Hidden: true}
	if password {
		n.Security = Personal
	}
	return n, nil
}

// Lengths of a passphrase in bytes, and of a key in hexadecimal digits (IEEE 802.11-2020,
// J.4.1). WPA3 alone takes other lengths; NetworkManager takes up to maxSAE.
const (
	minPassphrase, maxPassphrase = 8, 63
	keyDigits                    = 64
	maxSAE                       = 128
)

// CheckPassword refuses what cannot be the password of a network. The error does not show it.
func (n Network) CheckPassword(p []byte) error {
	for _, b := range p {
		if b < ' ' || b == 0x7f {
			return errors.New("the password has a control character, as an arrow key or Tab types it")
		}
	}
	switch {
	case !utf8.Valid(p):
		return errors.New("the password is not UTF-8, which NetworkManager takes alone: this terminal sends its letters in another form; a password of ASCII characters is the same in both")
	case n.Security == Personal3 && len(p) > maxSAE:
		return fmt.Errorf("the password has %d bytes, more than %d", len(p), maxSAE)
	case n.Security == Personal3 && len(p) > 0, len(p) >= minPassphrase && len(p) <= maxPassphrase:
		return nil
	case len(p) == keyDigits:
		if _, err := hex.Decode(make([]byte, keyDigits/2), p); err == nil {
			return nil
		}
	}
	return fmt.Errorf("a network's password has %d to %d characters, and this has %d", minPassphrase, maxPassphrase, len(p))
}

// settings is a connection as NetworkManager has it (nm-settings-dbus(5)). What is missing it
// adds: a UUID, and addresses by DHCP and router advertisements. "wpa-psk" is WPA2 or WPA3.
func (n Network) settings(password []byte) map[string]map[string]dbus.Variant {
	const kind, security = "802-11-wireless", "802-11-wireless-security"
	all := map[string]map[string]dbus.Variant{
		"connection": {"id": dbus.MakeVariant(Name(n.SSID)), "type": dbus.MakeVariant(kind)},
		kind:         {"ssid": dbus.MakeVariant(n.SSID), "mode": dbus.MakeVariant("infrastructure")},
	}
	if n.Hidden {
		all[kind]["hidden"] = dbus.MakeVariant(true)
	}
	management := map[Security]string{Enhanced: "owe", Personal: "wpa-psk", Personal3: "sae"}[n.Security]
	if management != "" {
		all[security] = map[string]dbus.Variant{"key-mgmt": dbus.MakeVariant(management)}
	}
	if n.Security.HasPassword() {
		all[security]["psk"] = dbus.MakeVariant(string(password))
	}
	return all
}

// Why a network was not reached.
var (
	// ErrPassword says that the password is wrong, as far as can be told.
	ErrPassword = errors.New("wrong password, or the signal is too weak to tell")
	// ErrAddress says that the network gave no address.
	ErrAddress = errors.New("the network lets this machine in and gives it no address: its router may be down or full")
	// ErrNotFound says that the network is not there.
	ErrNotFound = errors.New("the network is not there any more, or its name is another one")
	// ErrSlow says that it took too long.
	ErrSlow = errors.New("it took too long: come closer to the access point, or try again")
)

// Reasons of a device that failed (NMDeviceStateReason).
const (
	unknown                                                                    = 0
	ipUnavailable, ipExpired, noSecrets                                        = 5, 6, 7
	supplicantDisconnected, supplicantConfig, supplicantFailed, supplicantSlow = 8, 9, 10, 11
	dhcpStart, dhcpError, dhcpFailed                                           = 15, 16, 17
	ssidNotFound                                                               = 53
)

// failure is why a device failed. A supplicant cannot tell a wrong password from an access
// point that does not answer; where there is one it is named first.
func failure(n Network, reason uint32) error {
	switch reason {
	case ipUnavailable, ipExpired, dhcpStart, dhcpError, dhcpFailed:
		return ErrAddress
	case ssidNotFound:
		return ErrNotFound
	case noSecrets, supplicantDisconnected, supplicantFailed, supplicantSlow:
		if n.Security.HasPassword() {
			return ErrPassword
		}
		return errors.New("the access point does not let this machine in")
	case supplicantConfig:
		return errors.New("the wireless device cannot do what this network wants")
	case unknown:
		return errors.New("it failed, and NetworkManager does not say why; `journalctl -b -u NetworkManager` may")
	}
	return fmt.Errorf("it failed, and NetworkManager gives reason %d (NMDeviceStateReason); `journalctl -b -u NetworkManager` says more", reason)
}
