package when

import (
	"context"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/prop"

	"halogenos.internal/boot/testkit"
)

func clock(s string) time.Time {
	t, err := time.Parse("15:04", s)
	if err != nil {
		panic(err)
	}
	return t
}

func TestUnfit(t *testing.T) {
	fine := Conditions{Now: clock("12:00"), Battery: -1}
	for name, c := range map[string]struct {
		rules  func(r *Rules)
		now    func(c *Conditions)
		reason string // part of it; "" is fit
	}{
		"a server":                       {func(*Rules) {}, func(*Conditions) {}, ""},
		"metered":                        {func(*Rules) {}, func(c *Conditions) { c.Metered = true }, "metered"},
		"metered, and the owner says so": {func(r *Rules) { r.Metered = true }, func(c *Conditions) { c.Metered = true }, ""},
		"metered, from a stick":          {func(*Rules) {}, func(c *Conditions) { c.Metered, c.Local = true, true }, ""},
		"a full battery":                 {func(*Rules) {}, func(c *Conditions) { c.Battery = 100 }, ""},
		"just above":                     {func(*Rules) {}, func(c *Conditions) { c.Battery = 31 }, ""},
		"not above":                      {func(*Rules) {}, func(c *Conditions) { c.Battery = 30 }, "has 30 %, and more than 30 %"},
		"empty":                          {func(*Rules) {}, func(c *Conditions) { c.Battery = 0 }, "battery"},
		"never on battery":               {func(r *Rules) { r.BatteryAbove = 100 }, func(c *Conditions) { c.Battery = 100 }, "battery"},
		"battery does not matter but when it is empty": {func(r *Rules) { r.BatteryAbove = 0 }, func(c *Conditions) { c.Battery = 1 }, ""},
		"quiet hours":          {func(r *Rules) { r.Quiet = Hours{{11 * 60, 13 * 60}} }, func(*Conditions) {}, "it is 12:00, and quiet hours are 11:00-13:00"},
		"after quiet hours":    {func(r *Rules) { r.Quiet = Hours{{11 * 60, 12 * 60}} }, func(*Conditions) {}, ""},
		"busy":                 {func(r *Rules) { r.MaxLoad = 1.5 }, func(c *Conditions) { c.Load = 1.6 }, "the load is 1.6"},
		"not that busy":        {func(r *Rules) { r.MaxLoad = 1.5 }, func(c *Conditions) { c.Load = 1.5 }, ""},
		"load does not matter": {func(*Rules) {}, func(c *Conditions) { c.Load = 900 }, ""},
	} {
		r, now := Usual(), fine
		c.rules(&r)
		c.now(&now)
		if got := r.Unfit(now); (got == "") != (c.reason == "") || !strings.Contains(got, c.reason) {
			t.Errorf("%s: %q, want %q", name, got, c.reason)
		}
	}
}

func TestHours(t *testing.T) {
	for _, c := range []struct {
		hours, in, out string
	}{
		{"08:00-18:00", "08:00 12:30 17:59", "07:59 18:00 00:00"},
		{"22:00-06:30", "22:00 23:59 00:00 06:29", "06:30 12:00 21:59"},
		{"22:00-24:00, 00:00-01:00", "22:00 23:59 00:59", "01:00 21:59"},
		{"", "", "00:00 12:00"},
	} {
		h, err := ParseHours(c.hours)
		if err != nil {
			t.Fatal(err)
		}
		for _, now := range strings.Fields(c.in) {
			if !h.Hold(clock(now)) {
				t.Errorf("%s does not hold %s", c.hours, now)
			}
		}
		for _, now := range strings.Fields(c.out) {
			if h.Hold(clock(now)) {
				t.Errorf("%s holds %s", c.hours, now)
			}
		}
		if again, err := ParseHours(h.String()); err != nil || again.String() != h.String() {
			t.Errorf("%s is written %s, %v", c.hours, h, err)
		}
	}
	for _, bad := range []string{"8-18", "08:00", "08:00-08:00", "08:00-25:00", "8:00-9:00", "08:00-09:00,", "08:00-18:00-20:00", "-", ",", strings.Repeat("08:00-09:00,", 20) + "08:00-09:00"} {
		if h, err := ParseHours(bad); err == nil {
			t.Errorf("%q is %v", bad, h)
		}
	}
	text, err := json.Marshal(Rules{Quiet: Hours{{60, 120}}})
	if err != nil || !strings.Contains(string(text), `"quiet_hours":"01:00-02:00"`) {
		t.Errorf("%s, %v", text, err)
	}
}

func TestNumbers(t *testing.T) {
	for s, want := range map[string]int{"0": 0, "40": 40, "100 %": 100, "101": -1, "-1": -1, "": -1, "4x": -1} {
		if n, err := ParsePercent(s); (err != nil) != (want < 0) || err == nil && n != want {
			t.Errorf("%q is %d, %v", s, n, err)
		}
	}
	for s, want := range map[string]float64{"0": 0, "1.5": 1.5, "-1": -1, "NaN": -1, "Inf": -1, "1e9": -1, "": -1} {
		if n, err := ParseLoad(s); (err != nil) != (want < 0) || err == nil && n != want {
			t.Errorf("%q is %v, %v", s, n, err)
		}
	}
}

// supplies are files of sysfs, each "directory/name=content".
func supplies(lines ...string) fstest.MapFS {
	out := fstest.MapFS{}
	for _, l := range lines {
		name, content, _ := strings.Cut(l, "=")
		out[name] = &fstest.MapFile{Data: []byte(content + "\n")}
	}
	return out
}

func TestBattery(t *testing.T) {
	laptop := []string{"BAT0/type=Battery", "BAT0/capacity=50", "BAT0/status=Discharging", "BAT0/present=1"}
	for name, c := range map[string]struct {
		files []string
		want  int
	}{
		"a server":              {nil, -1},
		"unplugged":             {append([]string{"AC/type=Mains", "AC/online=0"}, laptop...), 50},
		"plugged in":            {append([]string{"AC/type=Mains", "AC/online=1"}, laptop...), -1},
		"by USB":                {append([]string{"usb/type=USB", "usb/online=1"}, laptop...), -1},
		"says nothing of mains": {laptop, 50},
		"charging":              {[]string{"BAT0/type=Battery", "BAT0/capacity=5", "BAT0/status=Charging"}, -1},
		"two":                   {append([]string{"BAT1/type=Battery", "BAT1/capacity=100", "BAT1/status=Full"}, laptop...), 75},
		"a mouse":               {[]string{"hid/type=Battery", "hid/scope=Device", "hid/capacity=5", "hid/status=Discharging"}, -1},
		"no charge":             {[]string{"BAT0/type=Battery", "BAT0/capacity=much", "BAT0/status=Discharging"}, -1},
		"taken out":             {[]string{"BAT0/type=Battery", "BAT0/capacity=5", "BAT0/status=Discharging", "BAT0/present=0"}, -1},
		"long":                  {[]string{"BAT0/type=Battery", "BAT0/capacity=" + strings.Repeat("1", 500), "BAT0/status=Discharging"}, -1},
	} {
		if got := battery(supplies(c.files...)); got != c.want {
			t.Errorf("%s: %d %%, want %d", name, got, c.want)
		}
	}
}

// bus starts a message bus of its own.
func bus(t *testing.T) string {
	t.Helper()
	program := testkit.Need(t, "dbus-daemon")
	address := "unix:path=" + filepath.Join(t.TempDir(), "bus")
	c := exec.Command(program, "--session", "--nofork", "--nopidfile", "--address="+address)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	for range 200 {
		if conn, err := dbus.Connect(address); err == nil {
			_ = conn.Close()
			return address
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal("the bus does not come up")
	return ""
}

func TestMetered(t *testing.T) {
	address := bus(t)
	p := Places{Root: t.TempDir(), Bus: strings.TrimPrefix(address, "unix:path="), Now: time.Now}
	if p.Look(t.Context()).Metered {
		t.Error("metered without NetworkManager")
	}
	conn, err := dbus.Connect(address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	const name = "org.freedesktop.NetworkManager"
	if _, err := conn.RequestName(name, 0); err != nil {
		t.Fatal(err)
	}
	for value, want := range map[any]bool{uint32(0): false, uint32(1): true, uint32(2): false, uint32(3): true, uint32(4): false, "yes": false} {
		// Exported again for each: what is set later has to be of the first one's type.
		_, err := prop.Export(conn, "/org/freedesktop/NetworkManager", prop.Map{name: {"Metered": {Value: value}}})
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Look(t.Context()).Metered; got != want {
			t.Errorf("NetworkManager says %v: metered is %v", value, got)
		}
	}
	// A bus that is away, and one that never answers.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, p := range []Places{{Bus: "/nowhere", Now: time.Now}, {Bus: strings.TrimPrefix(address, "unix:path="), Now: time.Now}} {
		if p.Look(ctx).Metered {
			t.Error("metered without an answer")
		}
	}
}
