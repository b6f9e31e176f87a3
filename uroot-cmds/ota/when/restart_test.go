package when

import (
	"fmt"
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
		"somebody has a plan":    {Idle, func(u *Use) { u.Scheduled = true }, false, "is scheduled already"},
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

// login1 restarts a machine.
type login1 struct {
	called   []string
	sessions []session
}

type session struct {
	ID   string
	UID  uint32
	User string
	Seat string
	Path dbus.ObjectPath
}

// ListSessions implements org.freedesktop.login1.Manager.
func (l *login1) ListSessions() ([]session, *dbus.Error) { return l.sessions, nil }

// RebootWithFlags implements org.freedesktop.login1.Manager.
func (l *login1) RebootWithFlags(flags uint64) *dbus.Error {
	l.called = append(l.called, fmt.Sprintf("reboot with flags %d", flags))
	return nil
}

// Reboot implements org.freedesktop.login1.Manager.
func (l *login1) Reboot(bool) *dbus.Error { l.called = append(l.called, "reboot"); return nil }

// scheduled is logind's ScheduledShutdown.
type scheduled struct {
	Kind string
	At   uint64
}

// SetWallMessage implements org.freedesktop.login1.Manager.
func (l *login1) SetWallMessage(text string, _ bool) *dbus.Error {
	l.called = append(l.called, "say "+text)
	return nil
}

// ScheduleShutdown implements org.freedesktop.login1.Manager.
func (l *login1) ScheduleShutdown(kind string, at uint64) *dbus.Error {
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
	if err := p.Reboot(t.Context(), Order{}); err == nil || !strings.Contains(err.Error(), "restart the machine: ") {
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
	l := new(login1)
	if err := conn.Export(l, loginPath, manager); err != nil {
		t.Fatal(err)
	}
	props, err := prop.Export(conn, loginPath, prop.Map{manager: {"IdleHint": {Value: false}, "IdleSinceHint": {Value: uint64(0)}, "BlockInhibited": {Value: ""}, "ScheduledShutdown": {Value: scheduled{}}}})
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
	if err := p.Reboot(t.Context(), Order{}); err != nil {
		t.Error(err)
	}
	if err := p.Reboot(t.Context(), Order{At: now, Message: "an update", Careful: true}); err != nil {
		t.Error(err)
	}
	if err := p.Reboot(t.Context(), Order{Careful: true}); err != nil {
		t.Error(err)
	}
	if want := []string{"reboot", "say an update", "reboot at 03:00:00", "reboot with flags 1"}; !slices.Equal(l.called, want) {
		t.Errorf("called %q, want %q", l.called, want)
	}
}

// What logind would ask its caller about is known for a user: programs, other users who are
// logged in, and what is scheduled.
func TestObstacles(t *testing.T) {
	address := bus(t)
	p := Places{Bus: strings.TrimPrefix(address, "unix:path="), Now: time.Now}
	if _, err := p.Obstacles(t.Context(), 1000); err == nil || !strings.Contains(err.Error(), "whether the machine may restart") {
		t.Errorf("without logind: %v", err)
	}
	conn, err := dbus.Connect(address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	l := new(login1)
	if err := conn.Export(l, loginPath, manager); err != nil {
		t.Fatal(err)
	}
	props, err := prop.Export(conn, loginPath, prop.Map{manager: {"BlockInhibited": {Value: ""}, "ScheduledShutdown": {Value: scheduled{}}}})
	if err != nil {
		t.Fatal(err)
	}
	for class, path := range map[string]dbus.ObjectPath{"user": loginPath + "/session/_31", "greeter": loginPath + "/session/_32"} {
		if _, err := prop.Export(conn, path, prop.Map{login + ".Session": {"Class": {Value: class}}}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := conn.RequestName(login, 0); err != nil {
		t.Fatal(err)
	}
	person := session{"1", 1000, "ann", "seat0", loginPath + "/session/_31"}
	screen := session{"c1", 120, "gdm", "seat0", loginPath + "/session/_32"}
	unknown := session{"9", 1002, "x", "", loginPath + "/session/_39"}
	for name, c := range map[string]struct {
		inhibited string
		scheduled scheduled
		sessions  []session
		user      uint32
		want      Obstacles
	}{
		"nothing":              {"sleep:idle", scheduled{}, []session{person, screen}, 1000, Obstacles{}},
		"a program":            {"sleep:shutdown", scheduled{}, nil, 1000, Obstacles{Inhibited: true}},
		"another user":         {"", scheduled{}, []session{person, screen}, 1001, Obstacles{Others: true}},
		"one who is not known": {"", scheduled{}, []session{unknown}, 1000, Obstacles{Others: true}},
		"a plan":               {"", scheduled{"poweroff", 5}, nil, 1000, Obstacles{Scheduled: true}},
	} {
		l.sessions = append([]session{}, c.sessions...)
		props.SetMust(manager, "BlockInhibited", c.inhibited)
		props.SetMust(manager, "ScheduledShutdown", c.scheduled)
		if o, err := p.Obstacles(t.Context(), c.user); err != nil || o != c.want {
			t.Errorf("%s: %+v, %v", name, o, err)
		}
	}
}
