package ask

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/questions"
	"halogenos.internal/uroot-cmds/setup/wifi"
)

// device is a wireless device that says what a test has it say.
type device struct {
	off, bySwitch bool
	found         []wifi.Network
	fails         error
	results       []error // of attempts, nil after the last
	tried         []string
	secrets       [][]byte // as they are after each attempt
	looked        int
}

func (d *device) IsOff(context.Context) (off, bySwitch bool, err error) {
	off, bySwitch = d.off, d.bySwitch
	if bySwitch {
		d.off, d.bySwitch = false, false // somebody has turned it by the next look
	}
	return off, bySwitch, nil
}

func (d *device) SwitchOn(context.Context) error {
	d.off = false
	return nil
}

func (d *device) Networks(context.Context) ([]wifi.Network, error) {
	d.looked++
	return d.found, d.fails
}

func (d *device) Connect(_ context.Context, n wifi.Network, password []byte, tell func(string)) error {
	d.tried = append(d.tried, fmt.Sprintf("%s %v hidden=%v %s", wifi.Name(n.SSID), n.Security, n.Hidden, password))
	d.secrets = append(d.secrets, password)
	tell("on the way ...")
	if len(d.results) == 0 {
		return nil
	}
	err := d.results[0]
	d.results = d.results[1:]
	return err
}

func around() []wifi.Network {
	return []wifi.Network{
		{SSID: []byte("Home"), Security: wifi.Personal, Strength: 100}, {SSID: []byte("\x1b[2J"), Security: wifi.Open, Strength: 50},
		{SSID: []byte("Campus"), Security: wifi.Enterprise, Strength: 30}, {SSID: []byte("1999"), Security: wifi.Weak},
	}
}

func wireless(t *testing.T, d *device, lines ...string) (said string, err error) {
	t.Helper()
	who := &typist{lines: lines}
	err = Wireless(t.Context(), &questions.Person{Terminal: who}, d)
	if len(who.lines) > 0 {
		t.Errorf("%q were not asked for", who.lines)
	}
	said = who.said.String()
	if strings.ContainsFunc(said, func(r rune) bool { return r != '\n' && (r < ' ' || r == 0x7f) }) {
		t.Errorf("the terminal is told %q", said)
	}
	for _, secret := range d.secrets {
		if slices.Max(append(secret, 0)) != 0 {
			t.Errorf("a password is not cleared: %q", secret)
		}
	}
	return said, err
}

func has(t *testing.T, said string, all ...string) {
	t.Helper()
	for _, s := range all {
		if !strings.Contains(said, s) {
			t.Errorf("nothing says %q:\n%s", s, said)
		}
	}
}

func TestWireless(t *testing.T) {
	d := &device{found: around()}
	said, err := wireless(t, d, "1", "correct horse")
	if err != nil || len(d.tried) != 1 || d.tried[0] != "Home password hidden=false correct horse" {
		t.Errorf("%v, %q", err, d.tried)
	}
	has(t, said, "    1  ####  password          Home\n", "    2  ##    open              \"\\x1b[2J\"\n", "    3  ##    enterprise        Campus\n", "    4  #     unsafe (WEP)      1999\n",
		"Connecting to Home ...\n  on the way ...\nThe machine is in the network Home.\n")
	if strings.Contains(said, "correct horse") {
		t.Errorf("the password is shown:\n%s", said)
	}
}

// What cannot be done is said, and asked again.
func TestWirelessAgain(t *testing.T) {
	d := &device{found: around(), results: []error{wifi.ErrPassword, wifi.ErrAddress, wifi.ErrSlow}}
	said, err := wireless(t, d,
		"0", "5", "x", "3", // enterprise
		"4",          // WEP
		"r",          // look again
		"?camp", "?", // list
		"1", "short", "a\tbcdefgh", "wrong horse", "right horse", // wrong password, then no address
		"1", "", // back
		"2", // open, too slow
		"h", "", strings.Repeat("x", 33), "Attic", "perhaps", "yes", "hidden horse")
	want := []string{"Home password hidden=false wrong horse", "Home password hidden=false right horse", `"\x1b[2J" open hidden=false `, "Attic password hidden=true hidden horse"}
	if err != nil || !slices.Equal(d.tried, want) || d.looked != 2 {
		t.Errorf("%v, looked %d times, tried %q\n%s", err, d.looked, d.tried, said)
	}
	has(t, said, `"0" is not the number of a network`, `"5" is not`, `"x" is not`, "Campus cannot be set up here: it wants a name or a certificate for each person (enterprise)", "1999 cannot be set up here: it is protected by WEP",
		"has 8 to 63 characters, and this has 5", "the password has a control character", "Home: wrong password", "Home: the network lets this machine in and gives it no address", `"\x1b[2J": it took too long`,
		"the name is empty", "the name has 33 bytes", "type yes or no", "The machine is in the network Attic.")
	if strings.Contains(said, "wrong horse") || strings.Contains(said, "right horse") {
		t.Errorf("a password is shown:\n%s", said)
	}
}

// It can be left at each question.
func TestWirelessLater(t *testing.T) {
	for _, lines := range [][]string{{""}, {"later"}, {"1", "later"}, {"h", "later"}, {"h", "Attic", "later"}, {"r", "later"}} {
		d := &device{found: around()}
		if said, err := wireless(t, d, lines...); !errors.Is(err, questions.ErrLater) || d.tried != nil {
			t.Errorf("%q: %v, %q\n%s", lines, err, d.tried, said)
		}
	}
	d := &device{}
	if said, err := wireless(t, d, ""); !errors.Is(err, questions.ErrLater) || !strings.Contains(said, "None is seen.\n") {
		t.Errorf("no network: %v\n%s", err, said)
	}
	d.fails = errors.New("no firmware")
	if _, err := wireless(t, d); !errors.Is(err, d.fails) {
		t.Errorf("%v", err)
	}
}

func TestWirelessOff(t *testing.T) {
	for _, c := range []struct {
		device device
		line   string
		later  bool
		said   string
	}{
		{device{off: true}, "", false, "Wi-Fi is switched off. Switch it on? [yes]: "}, {device{off: true}, "no", true, "Switch it on?"}, {device{off: true}, "later", true, "Switch it on?"},
		{device{off: true, bySwitch: true}, "", false, "by a switch or a key of this machine"}, {device{off: true, bySwitch: true}, "no", true, "Is it on now? [yes]: "},
	} {
		d := c.device
		lines := []string{c.line}
		if !c.later {
			lines = append(lines, "later")
		}
		said, err := wireless(t, &d, lines...)
		if !errors.Is(err, questions.ErrLater) || (d.looked == 0) != c.later {
			t.Errorf("%+v, %q: %v, looked %d times", c.device, c.line, err, d.looked)
		}
		has(t, said, c.said)
	}
}

// No name that somebody nearby chooses takes the room of the others, and nothing is lost above
// the first line of a screen.
func TestWirelessLong(t *testing.T) {
	var all []wifi.Network
	for i := range 40 {
		all = append(all, wifi.Network{SSID: append([]byte(strings.Repeat("\x1b", 31)), byte(i)), Security: wifi.Personal3, Strength: 99})
	}
	all = append(all, wifi.Network{SSID: []byte(strings.Repeat("n", 32)), Security: wifi.Personal3})
	d := &device{found: all}
	said, err := wireless(t, d, "?", "?", "?", "41", "long horse")
	if err != nil || len(d.tried) != 1 {
		t.Errorf("%v, %q", err, d.tried)
	}
	for line := range strings.Lines(said) {
		if len(line) > 80 {
			t.Errorf("%d columns: %s", len(line), line)
		}
	}
	for i, screen := range strings.Split(said, "Number of a network") {
		if n := strings.Count(screen, "\n"); n > 23 {
			t.Errorf("screen %d has %d lines:\n%s", i, n, screen)
		}
	}
	has(t, said, strings.Repeat("n", 32)+"\n", "  41 ", "  and 21 more: ", "  and 1 more: ")
}

// Thousands of networks fill no more than a screen until somebody asks for more.
func TestWirelessMany(t *testing.T) {
	var all []wifi.Network
	for i := range 500 {
		all = append(all, wifi.Network{SSID: fmt.Append(nil, "net-", i), Security: wifi.Open, Strength: 100 - i/5})
	}
	d := &device{found: all}
	said, err := wireless(t, d, "?net-47", "500")
	if err != nil || len(d.tried) != 1 || !strings.HasPrefix(d.tried[0], "net-499 ") || strings.Count(said, "\n") > 40 {
		t.Errorf("%v, %q\n%s", err, d.tried, said)
	}
	has(t, said, "  and 485 more: ? lists them", "net-47\n", "net-479\n")
}
