package wifi

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/godbus/dbus/v5"
)

// Flags of access points as NetworkManager gives them: what it showed for real ones, by
// `nmcli -f ssid,wpa-flags,rsn-flags`.
const (
	wpa2       = 0x188 // pair_ccmp group_ccmp psk
	wpa2wpa3   = 0x588
	wpa3       = 0x488
	enterprise = 0x288
	oweOnly    = 0x888
)

func TestSecurity(t *testing.T) {
	for p, want := range map[[3]uint32]Security{
		{0, 0, 0}: Open, {1, 0, wpa2}: Personal, {1, 0x144, wpa2}: Personal, {1, 0x144, 0}: Personal, {1, 0, wpa2wpa3}: Personal, {1, 0, wpa3}: Personal3,
		{1, 0, enterprise}: Enterprise, {1, 0, 0x2000}: Enterprise, {1, 0, wpa2 | enterprise}: Personal, {1, 0, oweOnly}: Enhanced, {0, 0, 0x1000}: Open,
		{1, 0, 0}: Weak, {0, 0x11, 0}: Weak, {1, 0, 1 << 31}: Weak,
	} {
		if have := (point{flags: p[0], wpa: p[1], rsn: p[2]}).security(); have != want {
			t.Errorf("%#x is %v, want %v", p, have, want)
		}
	}
	for s, want := range map[Security]string{Open: "", Enhanced: "", Personal: "", Personal3: "", Enterprise: "enterprise", Weak: "WEP", 0: "WEP"} {
		if err := s.Refused(); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v", s, err)
		}
	}
}

func TestNetworks(t *testing.T) {
	all := []point{
		{ssid: []byte("Home"), rsn: wpa2, strength: 40}, {ssid: []byte("Home"), rsn: wpa2, strength: 80}, {ssid: []byte("Home"), rsn: wpa2, strength: 20},
		{ssid: []byte("Home"), strength: 90}, // somebody else's, with no password
		{}, {ssid: make([]byte, 8), strength: 99}, {ssid: bytes.Repeat([]byte("x"), 33), strength: 99},
		{ssid: []byte("far"), strength: 255}, {ssid: []byte("near"), rsn: wpa3, strength: 80},
	}
	var have []string
	for _, n := range networks(all) {
		have = append(have, fmt.Sprintf("%s %v %d", n.SSID, n.Security, n.Strength))
	}
	if want := "far open 100, Home open 90, Home password 80, near password (WPA3) 80"; strings.Join(have, ", ") != want {
		t.Errorf("%q", have)
	}
	all = nil
	for i := range 5000 {
		all = append(all, point{ssid: fmt.Append(nil, i), strength: byte(i % 100)})
	}
	if found := networks(all); len(found) != maxNetworks || found[0].Strength != 99 {
		t.Errorf("%d networks", len(found))
	}
}

func TestName(t *testing.T) {
	for ssid, want := range map[string]string{
		"Home": "Home", "Café Zürich": "Café Zürich", "家": "家", "it's a-net_5G (2)": "it's a-net_5G (2)",
		"": `""`, " Home": `" Home"`, "Home ": `"Home "`, `"Home"`: `"\"Home\""`, `a\x1b`: `"a\\x1b"`,
		"\x1b[2J\x1b]0;x\a": `"\x1b[2J\x1b]0;x\a"`, "a\nb\rc": `"a\nb\rc"`, "\u202eevil": `"\u202eevil"`, "\u009b31m": `"\u009b31m"`, "a\u200bb": `"a\u200bb"`,
		"\xff\xfe": `"\xff\xfe"`, "e\u0301\u0301": "\"e\u0301\u0301\"", "\x00": `"\x00"`, "a\u00a0b": `"a\u00a0b"`,
	} {
		if have := Name([]byte(ssid)); have != want {
			t.Errorf("%q is shown as %s, want %s", ssid, have, want)
		}
	}
}

// Whatever an access point calls itself, no terminal obeys it, and no two names look alike
// that are not.
func FuzzName(f *testing.F) {
	f.Add([]byte("Home"), []byte("\x1b[2J"))
	f.Add([]byte(`"a"`), []byte("a"))
	f.Add([]byte("\xff"), []byte(`\xff`))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		name := Name(a)
		if !utf8.ValidString(name) || strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("%q is shown as %q", a, name)
		}
		if !bytes.Equal(a, b) && name == Name(b) {
			t.Errorf("%q and %q are both shown as %s", a, b, name)
		}
	})
}

func TestPassword(t *testing.T) {
	hexadecimal := strings.Repeat("0aF", 21) + "9"
	for _, c := range []struct {
		security Security
		password string
		want     string
	}{
		{Personal, "12345678", ""}, {Personal, strings.Repeat("x", 63), ""}, {Personal, hexadecimal, ""}, {Personal3, "x", ""}, {Personal3, strings.Repeat("x", 128), ""},
		{Personal, "1234567", "has 8 to 63 characters, and this has 7"}, {Personal, strings.Repeat("x", 64), "this has 64"}, {Personal, strings.Repeat("x", 65), "this has 65"},
		{Personal, "", "this has 0"}, {Personal3, "", "this has 0"}, {Personal3, strings.Repeat("x", 129), "more than 128"}, {Personal, "1234567\t", "control character"}, {Personal3, "\x1b[A", "control character"},
		{Personal, "Stra\xdfe 12", "is not UTF-8"}, {Personal3, "\xff", "is not UTF-8"}, {Personal, "Straße 12", ""},
	} {
		err := Network{Security: c.security}.CheckPassword([]byte(c.password))
		if (err == nil) != (c.want == "") || err != nil && (!strings.Contains(err.Error(), c.want) || c.password != "" && len(c.password) > 2 && strings.Contains(err.Error(), c.password)) {
			t.Errorf("%v %q: %v", c.security, c.password, err)
		}
	}
}

func TestHidden(t *testing.T) {
	for _, name := range []string{"", strings.Repeat("ä", 17), "Attic\x1b[D", "Attic\x7f", "At\ttic"} {
		if _, err := NewHidden(name, true); err == nil {
			t.Errorf("%q is taken", name)
		}
	}
	n, err := NewHidden("Attic", true)
	if err != nil || n.Security != Personal || n.settings([]byte("12345678"))["802-11-wireless"]["hidden"] != dbus.MakeVariant(true) {
		t.Errorf("%+v, %v", n, err)
	}
	if n, err := NewHidden("Attic", false); err != nil || n.Security != Open {
		t.Errorf("%+v, %v", n, err)
	}
}

func TestSettings(t *testing.T) {
	for s, want := range map[Security]string{Open: "", Enhanced: "owe", Personal: "wpa-psk", Personal3: "sae"} {
		all := Network{SSID: []byte("a\x1b"), Security: s}.settings([]byte("12345678"))
		key, has := all["802-11-wireless-security"]
		if want == "" && has || want != "" && key["key-mgmt"].Value() != want {
			t.Errorf("%v: %v", s, all)
		}
		if _, secret := key["psk"]; secret != s.HasPassword() {
			t.Errorf("%v: %v", s, all)
		}
		if all["connection"]["id"].Value() != `"a\x1b"` || !bytes.Equal(all["802-11-wireless"]["ssid"].Value().([]byte), []byte("a\x1b")) {
			t.Errorf("%v: %v", s, all)
		}
	}
}

// Whatever properties an access point has, reading them fails or has them all.
func TestParsePoint(t *testing.T) {
	good := map[string]dbus.Variant{"Ssid": dbus.MakeVariant([]byte("a")), "Flags": dbus.MakeVariant(uint32(1)), "WpaFlags": dbus.MakeVariant(uint32(0)), "RsnFlags": dbus.MakeVariant(uint32(wpa2)), "Strength": dbus.MakeVariant(byte(7))}
	if p, ok := parsePoint(good); !ok || string(p.ssid) != "a" || p.rsn != wpa2 || p.strength != 7 {
		t.Errorf("%+v, %v", p, ok)
	}
	for name := range good {
		for _, v := range []dbus.Variant{dbus.MakeVariant("x"), dbus.MakeVariant([]string{"x"}), {}} {
			bad := map[string]dbus.Variant{}
			for k, v := range good {
				bad[k] = v
			}
			bad[name] = v
			if p, ok := parsePoint(bad); ok {
				t.Errorf("%s %v: %+v", name, v, p)
			}
		}
	}
}

func TestFailure(t *testing.T) {
	home, cafe := Network{Security: Personal}, Network{Security: Open}
	for reason, want := range map[uint32]error{5: ErrAddress, 6: ErrAddress, 7: ErrPassword, 8: ErrPassword, 10: ErrPassword, 11: ErrPassword, 15: ErrAddress, 17: ErrAddress, 53: ErrNotFound} {
		if err := failure(home, reason); !errors.Is(err, want) {
			t.Errorf("reason %d: %v", reason, err)
		}
	}
	if err := failure(cafe, 7); errors.Is(err, ErrPassword) || !strings.Contains(err.Error(), "does not let this machine in") {
		t.Errorf("an open one: %v", err)
	}
	if err := failure(home, 9); !strings.Contains(err.Error(), "cannot do") {
		t.Errorf("%v", err)
	}
	if err := failure(home, 0); !strings.Contains(err.Error(), "does not say why") {
		t.Errorf("%v", err)
	}
	if err := failure(home, 99); !strings.Contains(err.Error(), "reason 99") {
		t.Errorf("%v", err)
	}
}
