package when

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"

	"halogenos.internal/uroot-cmds/ota/systembus"
)

// A Restart says whether the machine restarts by itself into a release that waits.
type Restart string

// The choices of Restart=.
const (
	Ask   Restart = "ask"   // never: somebody restarts it
	Idle  Restart = "idle"  // when nobody has used it for a while
	Night Restart = "night" // likewise, and only at night
)

// ParseRestart reads one of them.
func ParseRestart(s string) (Restart, error) {
	switch r := Restart(s); r {
	case Ask, Idle, Night:
		return r, nil
	}
	return "", fmt.Errorf("is %.60q, want ask, idle or night", s)
}

const (
	// unused is for how long nobody has used a machine that restarts by itself.
	unused = 30 * time.Minute
	// settled is how long it has run: one whose release fails is not restarted each time.
	settled = 30 * time.Minute
)

// night is when Night restarts.
var night = Hours{{2 * 60, 5 * 60}}

// Use is how a machine is used.
type Use struct {
	Now       time.Time // in the machine's time zone
	Up        time.Duration
	Idle      time.Duration // nobody has used it for so long; negative: not known
	Inhibited bool          // a program does not want it to restart, such as one that writes a CD
}

// Due reports whether it is time to restart, and why or why not.
func (r Restart) Due(u Use) (due bool, why string) {
	switch {
	case r != Idle && r != Night:
		return false, "the machine does not restart by itself (Restart=ask)"
	case u.Inhibited:
		return false, "a program keeps the machine from restarting (`systemd-inhibit --list` says which)"
	case u.Up < settled:
		return false, fmt.Sprintf("the machine was started less than %d minutes ago", int(settled.Minutes()))
	case u.Idle < 0:
		return false, "nothing says whether somebody uses the machine: there is no systemd-logind"
	case u.Idle < unused:
		return false, fmt.Sprintf("somebody has used the machine within the last %d minutes", int(unused.Minutes()))
	case r == Night && !night.Hold(u.Now):
		return false, fmt.Sprintf("it is %s, and the machine restarts by itself between %s (Restart=night)", u.Now.Format("15:04"), night)
	}
	return true, fmt.Sprintf("nobody has used the machine for %d minutes (Restart=%s)", int(u.Idle.Minutes()), r)
}

const (
	login     = "org.freedesktop.login1"
	loginPath = "/org/freedesktop/login1"
	manager   = login + ".Manager"
)

// Use says how the machine is used, as systemd-logind sees it.
func (p Places) Use(ctx context.Context) Use {
	u := Use{Now: p.Now(), Idle: -1}
	first, _, _ := strings.Cut(small(os.DirFS(filepath.Join(p.Root, "proc")), "uptime"), " ")
	if seconds, err := strconv.ParseFloat(first, 64); err == nil {
		u.Up = time.Duration(seconds * float64(time.Second))
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	bus, err := systembus.Connect(ctx, p.Bus)
	if err != nil {
		return u
	}
	defer bus.Close()
	property := func(name string, into any) bool {
		var v dbus.Variant
		call := bus.Object(login, loginPath).CallWithContext(ctx, "org.freedesktop.DBus.Properties.Get", dbus.FlagNoAutoStart, manager, name)
		return call.Store(&v) == nil && v.Store(into) == nil
	}
	var idle bool
	var since uint64 // microseconds since 1970; 0 where nobody has logged in
	var inhibited string
	if !property("IdleHint", &idle) || !property("IdleSinceHint", &since) || !property("BlockInhibited", &inhibited) {
		return u
	}
	u.Inhibited = strings.Contains(":"+inhibited+":", ":shutdown:")
	switch {
	case !idle:
		u.Idle = 0
	case since == 0:
		u.Idle = u.Up
	default:
		u.Idle = max(u.Now.Sub(time.UnixMicro(int64(min(since, 1<<62)))), 0)
	}
	return u
}

// Reboot has systemd-logind restart the machine, now, or at a time and then announced to
// those who are logged in.
func (p Places) Reboot(ctx context.Context, at time.Time, message string) error {
	bus, err := systembus.Connect(ctx, p.Bus)
	if err != nil {
		return fmt.Errorf("restart the machine: %w", err)
	}
	defer bus.Close()
	call := func(method string, args ...any) error {
		if err := bus.Object(login, loginPath).CallWithContext(ctx, manager+"."+method, 0, args...).Err; err != nil {
			return fmt.Errorf("restart the machine: %w", err)
		}
		return nil
	}
	if at.IsZero() {
		return call("Reboot", false)
	}
	if err := call("SetWallMessage", message, true); err != nil {
		return err
	}
	return call("ScheduleShutdown", "reboot", uint64(at.UnixMicro()))
}
