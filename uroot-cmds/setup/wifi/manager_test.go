package wifi

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"halogenos.internal/boot/testkit"
	"halogenos.internal/uroot-cmds/setup/wifi/wifitest"
)

// quick are waits for tests: those for what comes are long, those for what does not, short.
func quick() Waits {
	return Waits{Call: 10 * time.Second, Start: 10 * time.Second, Device: 10 * time.Second, Scan: 10 * time.Second, Connect: 10 * time.Second, Look: 5 * time.Millisecond}
}

func radio(t *testing.T, m *wifitest.Manager, w Waits) *Radio {
	t.Helper()
	r, err := Connect(t.Context(), m.Path, w)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func access1(ssid string, rsn uint32, strength byte) wifitest.Point {
	return wifitest.Point{"Ssid": []byte(ssid), "Flags": uint32(0), "WpaFlags": uint32(0), "RsnFlags": rsn, "Strength": strength}
}

// Where there is nothing to ask for, nobody is asked.
func TestNotAsked(t *testing.T) {
	short := quick()
	short.Start, short.Device = 50*time.Millisecond, 50*time.Millisecond
	if _, err := Connect(t.Context(), filepath.Join(t.TempDir(), "none"), short); !errors.Is(err, ErrNotAsked) {
		t.Errorf("no bus: %v", err)
	}
	if _, err := Connect(t.Context(), testkit.Bus(t), short); !errors.Is(err, ErrNotAsked) || !strings.Contains(err.Error(), "not on the bus") {
		t.Errorf("no NetworkManager: %v", err)
	}
	m := wifitest.New(t)
	for _, state := range []uint32{60, 70} {
		m.SetState(wifitest.Properties{"State": state})
		if _, err := Connect(t.Context(), m.Path, quick()); !errors.Is(err, ErrNotAsked) || !strings.Contains(err.Error(), "there is a connection") {
			t.Errorf("state %d: %v", state, err)
		}
	}
	m.SetState(wifitest.Properties{"State": uint32(20)})
	r := radio(t, m, short)
	m.SetRadio(wifitest.Properties{"State": uint32(10)})
	if _, err := r.Networks(t.Context()); !errors.Is(err, ErrNotAsked) {
		t.Errorf("a device that is somebody else's: %v", err)
	}
	m.SetRadio(wifitest.Properties{"State": uint32(20)})
	if _, err := r.Networks(t.Context()); errors.Is(err, ErrNotAsked) || err == nil || !strings.Contains(err.Error(), "firmware or wpa_supplicant may be missing") || strings.Contains(err.Error(), "-u NetworkManager -k") {
		t.Errorf("a device without its firmware: %v", err)
	}
	m.Remove(wifitest.Radio)
	if _, err := r.Networks(t.Context()); !errors.Is(err, ErrNotAsked) {
		t.Errorf("no device: %v", err)
	}
}

// A cable that is being seen to is waited for, and one that comes to nothing as well.
func TestStarts(t *testing.T) {
	for to, want := range map[uint32]bool{70: false, 20: true, 50: true} {
		m := wifitest.New(t)
		m.SetState(wifitest.Properties{"State": uint32(40), "Startup": true})
		m.SetRadio(wifitest.Properties{"State": uint32(20)})
		time.AfterFunc(100*time.Millisecond, func() {
			m.SetState(wifitest.Properties{"State": to, "Startup": false})
			m.SetRadio(wifitest.Properties{"State": uint32(30)})
		})
		r, err := Connect(t.Context(), m.Path, quick())
		if (err == nil) != want {
			t.Errorf("state %d: %v", to, err)
		}
		if err == nil {
			if _, err := r.Networks(t.Context()); err != nil {
				t.Errorf("state %d: %v", to, err)
			}
			_ = r.Close()
		}
	}
}

func TestSwitch(t *testing.T) {
	m := wifitest.New(t)
	r := radio(t, m, quick())
	state := func() string {
		off, bySwitch, err := r.IsOff(t.Context())
		return fmt.Sprint(off, bySwitch, err)
	}
	if have := state(); have != "false false <nil>" {
		t.Error(have)
	}
	m.SetState(wifitest.Properties{"WirelessEnabled": false})
	if have := state(); have != "true false <nil>" {
		t.Error(have)
	}
	if err := r.SwitchOn(t.Context()); err != nil || state() != "false false <nil>" {
		t.Error(err, state())
	}
	m.SetState(wifitest.Properties{"WirelessHardwareEnabled": false})
	if have := state(); have != "true true <nil>" {
		t.Error(have)
	}
	m.SetState(wifitest.Properties{"WirelessHardwareEnabled": "maybe"})
	if _, _, err := r.IsOff(t.Context()); err == nil || !strings.Contains(err.Error(), "WirelessHardwareEnabled is not what") {
		t.Error(err)
	}
}

func TestScan(t *testing.T) {
	m := wifitest.New(t)
	r := radio(t, m, quick())
	if all, err := r.Networks(t.Context()); err != nil || len(all) != 0 || m.Scans() != 1 {
		t.Errorf("%v, %v", all, err)
	}
	// Those of hostile access points, and some that are gone or are not access points.
	points := []wifitest.Point{access1("Home", wpa2, 60), nil, {"Ssid": "Home"}, access1("\x1b[2J", 0, 99), access1(strings.Repeat("x", 4000), 0, 99), access1("", wpa2, 99)}
	for i := range 3000 {
		points = append(points, access1(fmt.Sprintf("\xff%d", i), wpa2, 1))
	}
	m.See(points...)
	m.NoScan()
	all, err := r.Networks(t.Context())
	if err != nil || len(all) != maxNetworks || string(all[0].SSID) != "\x1b[2J" || string(all[1].SSID) != "Home" || all[1].Security != Personal {
		t.Errorf("%d networks, %v: %v", len(all), err, all[:min(len(all), 3)])
	}
}

func TestConnect(t *testing.T) {
	m := wifitest.New(t)
	r := radio(t, m, quick())
	const secret = "correct horse"
	m.Outcome = func(p wifitest.Profile) uint32 {
		switch {
		case p.SSID() == "\x1bHome" && p.Secret() == secret, p.SSID() == "Cafe" && p.Secret() == "":
			return wifitest.Connects
		case p.SSID() == "Far":
			return 53
		case p.SSID() == "Full":
			return 5
		}
		return 7
	}
	home := Network{SSID: []byte("\x1bHome"), Security: Personal}
	for _, c := range []struct {
		network  Network
		password string
		want     error
		told     string
	}{
		{home, "wrong horse", ErrPassword, "the access point is asked to let this machine in ..."},
		{home, secret, nil, "the access point is asked to let this machine in ...\nit does; an address is asked for ..."},
		{Network{SSID: []byte("Cafe"), Security: Open}, "", nil, "the access point is asked to let this machine in ...\nit does; an address is asked for ..."},
		{Network{SSID: []byte("Far"), Security: Open}, "", ErrNotFound, "the access point is asked to let this machine in ..."},
		{Network{SSID: []byte("Full"), Security: Open}, "", ErrAddress, "the access point is asked to let this machine in ...\nit does; an address is asked for ..."},
	} {
		before := len(m.Profiles())
		var told []string
		err := r.Connect(t.Context(), c.network, []byte(c.password), func(text string) { told = append(told, text) })
		if !errors.Is(err, c.want) || err != nil && c.want == nil {
			t.Errorf("%s: %v, want %v", Name(c.network.SSID), err, c.want)
		}
		if strings.Join(told, "\n") != c.told {
			t.Errorf("%s: told %q", Name(c.network.SSID), told)
		}
		all := m.Profiles()
		if len(all) != before+1 {
			t.Fatalf("%d profiles, %d before", len(all), before)
		}
		// It is on the disk where it stands, and gone where it does not.
		p := all[before]
		if p.OnDisk != (c.want == nil) || p.Deleted != (c.want != nil) || p.Options["persist"].Value() != "memory" || p.SSID() != string(c.network.SSID) || p.Secret() != c.password {
			t.Errorf("%s: %+v", Name(c.network.SSID), p)
		}
	}
}

// What NetworkManager says may hold anything; and what it does not say is not waited for.
func TestConnectFails(t *testing.T) {
	m := wifitest.New(t)
	short := quick()
	short.Connect = 100 * time.Millisecond
	r := radio(t, m, short)
	n := Network{SSID: []byte("Home"), Security: Personal}
	quiet := func(string) {}
	m.Outcome, m.Failure = func(wifitest.Profile) uint32 { return wifitest.Refused }, "bad \x1b[2J"
	if err := r.Connect(t.Context(), n, []byte("12345678"), quiet); err == nil || strings.ContainsRune(err.Error(), '\x1b') || !strings.Contains(err.Error(), `bad \x1b[2J`) {
		t.Errorf("%v", err)
	}
	m.Outcome = func(wifitest.Profile) uint32 { return wifitest.Hangs }
	if err := r.Connect(t.Context(), n, []byte("12345678"), quiet); !errors.Is(err, ErrSlow) {
		t.Errorf("%v", err)
	}
	for _, s := range []Security{Weak, Enterprise} {
		if err := r.Connect(t.Context(), Network{SSID: []byte("Old"), Security: s}, nil, quiet); err == nil {
			t.Errorf("%v is set up", s)
		}
	}
	// Ctrl-C ends the context that all of it has.
	ctx, stop := context.WithCancel(t.Context())
	interrupted, err := Connect(ctx, m.Path, quick())
	if err != nil {
		t.Fatal(err)
	}
	defer interrupted.Close()
	m.Outcome = func(wifitest.Profile) uint32 {
		stop()
		return wifitest.Hangs
	}
	if err := interrupted.Connect(ctx, n, []byte("12345678"), quiet); err == nil || err.Error() != "interrupted" {
		t.Errorf("%v", err)
	}
	all := m.Profiles()
	if len(all) != 2 {
		t.Errorf("%d attempts", len(all))
	}
	for i, p := range all {
		if !p.Deleted || p.OnDisk {
			t.Errorf("attempt %d is left: %+v", i, p)
		}
	}
}

// One that takes its time for each of many devices does not add up.
func TestSlow(t *testing.T) {
	m := wifitest.New(t)
	short := quick()
	short.Device, short.Call = 50*time.Millisecond, 500*time.Millisecond
	r := radio(t, m, short)
	m.SetRadio(wifitest.Properties{"State": uint32(20)})
	m.Slow(100*time.Millisecond, 60)
	begun := time.Now()
	if _, err := r.Networks(t.Context()); err == nil || errors.Is(err, ErrNotAsked) {
		t.Errorf("%v", err)
	}
	if took := time.Since(begun); took > 4*time.Second {
		t.Errorf("it takes %v", took)
	}
}

// One that ends is not waited for, and no other program that takes its name is asked.
func TestEnds(t *testing.T) {
	m := wifitest.New(t)
	r := radio(t, m, quick())
	m.Stop()
	if _, err := r.Networks(t.Context()); err == nil {
		t.Error("a NetworkManager that has stopped has networks")
	}
}

// Anybody on the bus may send what NetworkManager sends: it is not believed.
func TestStranger(t *testing.T) {
	a := &attempt{at: wifitest.Radio, owner: ":1.1", tell: func(string) { t.Error("a stranger is heard") }}
	body := []any{uint32(120), uint32(50), uint32(7)}
	for _, s := range []*dbus.Signal{
		{Sender: ":1.2", Path: wifitest.Radio, Name: device + ".StateChanged", Body: body},
		{Sender: ":1.1", Path: wifitest.Cable, Name: device + ".StateChanged", Body: body},
		{Sender: ":1.1", Path: wifitest.Radio, Name: device + ".Other", Body: body},
		{Sender: ":1.1", Path: wifitest.Radio, Name: device + ".StateChanged", Body: body[:2]},
		{Sender: ":1.1", Path: wifitest.Radio, Name: device + ".StateChanged", Body: []any{"x", 1, uint32(7)}},
	} {
		if a.one(s); a.reason != 0 {
			t.Errorf("%+v is believed", s)
		}
	}
	if a.one(&dbus.Signal{Sender: ":1.1", Path: wifitest.Radio, Name: device + ".StateChanged", Body: body}); a.reason != 7 {
		t.Error("NetworkManager is not believed")
	}
}
