package when

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/prop"
)

func TestDue(t *testing.T) {
	unusedAtNight := Use{Now: clock("03:00"), Up: time.Hour, Idle: time.Hour}
	for name, c := range map[string]struct {
		restart Restart
		change  func(u *Use)
		due     bool
		why     string
	}{
		"ask":                    {Ask, func(*Use) {}, false, "Restart=ask"},
		"nothing is set":         {"", func(*Use) {}, false, "Restart=ask"},
		"idle":                   {Idle, func(*Use) {}, true, "for 60 minutes"},
		"idle by day":            {Idle, func(u *Use) { u.Now = clock("12:00") }, true, "Restart=idle"},
		"in use":                 {Idle, func(u *Use) { u.Idle = 29 * time.Minute }, false, "somebody has used"},
		"nothing is known":       {Idle, func(u *Use) { u.Idle = -1 }, false, "no systemd-logind"},
		"just started":           {Idle, func(u *Use) { u.Up = 29 * time.Minute }, false, "was started less than 30"},
		"a CD is written":        {Idle, func(u *Use) { u.Inhibited = true }, false, "keeps the machine from"},
		"at night":               {Night, func(*Use) {}, true, "Restart=night"},
		"by day":                 {Night, func(u *Use) { u.Now = clock("12:00") }, false, "it is 12:00, and the machine restarts by itself between 02:00-05:00"},
		"in use at night":        {Night, func(u *Use) { u.Idle = 0 }, false, "somebody has used"},
		"the last minute of it":  {Night, func(u *Use) { u.Now = clock("04:59") }, true, ""},
		"when the night is over": {Night, func(u *Use) { u.Now = clock("05:00") }, false, "it is 05:00"},
	} {
		u := unusedAtNight
		c.change(&u)
		if due, why := c.restart.Due(u); due != c.due || !strings.Contains(why, c.why) {
			t.Errorf("%s: %v, %s", name, due, why)
		}
	}
	if r, err := ParseRestart("night"); err != nil || r != Night {
		t.Errorf("%s, %v", r, err)
	}
	if _, err := ParseRestart("always"); err == nil {
		t.Error("Restart=always")
	}
}

// logind restarts a machine.
type logind struct{ called []string }

// Reboot implements org.freedesktop.login1.Manager.
func (l *logind) Reboot(bool) *dbus.Error { l.called = append(l.called, "reboot"); return nil }

// SetWallMessage implements org.freedesktop.login1.Manager.
func (l *logind) SetWallMessage(text string, _ bool) *dbus.Error {
	l.called = append(l.called, "say "+text)
	return nil
}

// ScheduleShutdown implements org.freedesktop.login1.Manager.
func (l *logind) ScheduleShutdown(kind string, at uint64) *dbus.Error {
	l.called = append(l.called, kind+" at "+time.UnixMicro(int64(at)).UTC().Format(time.TimeOnly))
	return nil
}

func TestUse(t *testing.T) {
	address, root := bus(t), t.TempDir()
	now := time.Date(2026, 11, 29, 3, 0, 0, 0, time.UTC)
	p := Places{Root: root, Bus: strings.TrimPrefix(address, "unix:path="), Now: func() time.Time { return now }}
	if u := p.Use(t.Context()); u.Idle >= 0 || u.Up != 0 {
		t.Errorf("without logind: %+v", u)
	}
	if err := p.Reboot(t.Context(), time.Time{}, ""); err == nil || !strings.Contains(err.Error(), "restart the machine: ") {
		t.Errorf("without logind: %v", err)
	}
	if err := os.MkdirAll(filepath.Join(root, "proc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "proc/uptime"), []byte("7200.50 100.00\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	conn, err := dbus.Connect(address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	l := new(logind)
	if err := conn.Export(l, loginPath, manager); err != nil {
		t.Fatal(err)
	}
	props, err := prop.Export(conn, loginPath, prop.Map{manager: {"IdleHint": {Value: false}, "IdleSinceHint": {Value: uint64(0)}, "BlockInhibited": {Value: ""}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.RequestName(login, 0); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		idle      bool
		since     uint64
		inhibited string
		want      time.Duration
	}{
		{false, 1, "", 0}, {true, 0, "", 7200500 * time.Millisecond}, {true, uint64(now.Add(-40 * time.Minute).UnixMicro()), "sleep", 40 * time.Minute},
		{true, uint64(now.Add(time.Hour).UnixMicro()), "sleep:shutdown", 0},
	} {
		props.SetMust(manager, "IdleHint", c.idle)
		props.SetMust(manager, "IdleSinceHint", c.since)
		props.SetMust(manager, "BlockInhibited", c.inhibited)
		if u := p.Use(t.Context()); u.Idle != c.want || u.Inhibited != strings.Contains(c.inhibited, "shutdown") || u.Up != 7200500*time.Millisecond {
			t.Errorf("%+v: %+v", c, u)
		}
	}
	if err := p.Reboot(t.Context(), time.Time{}, ""); err != nil {
		t.Error(err)
	}
	if err := p.Reboot(t.Context(), now, "an update"); err != nil {
		t.Error(err)
	}
	if want := []string{"reboot", "say an update", "reboot at 03:00:00"}; !slices.Equal(l.called, want) {
		t.Errorf("called %q, want %q", l.called, want)
	}
}
