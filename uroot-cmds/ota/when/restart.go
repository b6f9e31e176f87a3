package when

import (
	"context"
	"errors"
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
	Scheduled bool          // somebody has it shut down or restart later
}

// Due reports whether it is time to restart, and why or why not.
func (r Restart) Due(u Use) (due bool, why string) {
	switch {
	case r != Idle && r != Night:
		return false, "the machine does not restart by itself (Restart=ask)"
	case u.Inhibited:
		return false, "a program keeps the machine from restarting (`systemd-inhibit --list` says which)"
	case u.Scheduled:
		return false, "a shutdown is scheduled already (`shutdown --show` says when)"
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
	l, err := p.login(ctx)
	if err != nil {
		return u
	}
	defer l.bus.Close()
	var idle bool
	var since uint64 // microseconds since 1970; 0 where nobody has logged in
	err = errors.Join(l.property(ctx, loginPath, manager, "IdleHint", &idle), l.property(ctx, loginPath, manager, "IdleSinceHint", &since))
	var o Obstacles
	if err != nil || l.obstacles(ctx, &o) != nil {
		return u
	}
	u.Inhibited, u.Scheduled = o.Inhibited, o.Scheduled
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

// Obstacles are what systemd-logind has polkit asked about before somebody restarts the
// machine, and would not ask root about.
type Obstacles struct {
	Inhibited bool // a program does not want it to restart
	Others    bool // other users are logged in
	Scheduled bool // somebody has it shut down or restart later: there is room for one
}

// Obstacles says what stands against a restart that a user asks for.
func (p Places) Obstacles(ctx context.Context, user uint32) (o Obstacles, _ error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	l, err := p.login(ctx)
	if err != nil {
		return o, fmt.Errorf("find out whether the machine may restart: %w", err)
	}
	defer l.bus.Close()
	err = l.obstacles(ctx, &o)
	if err == nil {
		o.Others, err = l.others(ctx, user)
	}
	if err != nil {
		return o, fmt.Errorf("find out whether the machine may restart: %w", err)
	}
	return o, nil
}

// A logind is systemd-logind on a bus (org.freedesktop.login1(5)).
type logind struct{ bus *dbus.Conn }

func (p Places) login(ctx context.Context) (logind, error) {
	bus, err := systembus.Connect(ctx, p.Bus)
	return logind{bus}, err
}

// property reads one.
func (l logind) property(ctx context.Context, path dbus.ObjectPath, face, name string, into any) error {
	var v dbus.Variant
	call := l.bus.Object(login, path).CallWithContext(ctx, "org.freedesktop.DBus.Properties.Get", dbus.FlagNoAutoStart, face, name)
	if err := call.Store(&v); err != nil {
		return err
	}
	return v.Store(into)
}

// obstacles reads those that are so for each user.
func (l logind) obstacles(ctx context.Context, o *Obstacles) error {
	var inhibited string
	var scheduled struct {
		Kind string
		At   uint64
	}
	err := errors.Join(l.property(ctx, loginPath, manager, "BlockInhibited", &inhibited), l.property(ctx, loginPath, manager, "ScheduledShutdown", &scheduled))
	o.Inhibited, o.Scheduled = strings.Contains(":"+inhibited+":", ":shutdown:"), scheduled.Kind != ""
	return err
}

// others reports whether another user is logged in. Login screens and what systemd runs for
// a user do not count, as logind does not count them.
func (l logind) others(ctx context.Context, user uint32) (bool, error) {
	var all []struct {
		ID   string
		UID  uint32
		User string
		Seat string
		Path dbus.ObjectPath
	}
	if err := l.bus.Object(login, loginPath).CallWithContext(ctx, manager+".ListSessions", dbus.FlagNoAutoStart).Store(&all); err != nil {
		return false, err
	}
	for _, s := range all {
		if s.UID == user {
			continue
		}
		var class string
		if err := l.property(ctx, s.Path, login+".Session", "Class", &class); err != nil || strings.HasPrefix(class, "user") {
			return true, nil // one that cannot be asked may be somebody's
		}
	}
	return false, nil
}

// An Order is one to restart the machine.
type Order struct {
	At time.Time // zero is now
	// Message is for those who are logged in, where it is later.
	Message string
	// Careful has logind refuse where a program does not want it.
	Careful bool
}

// rootCheckInhibitors is SD_LOGIND_ROOT_CHECK_INHIBITORS.
const rootCheckInhibitors = 1

// Reboot has systemd-logind restart the machine.
func (p Places) Reboot(ctx context.Context, o Order) error {
	l, err := p.login(ctx)
	if err != nil {
		return fmt.Errorf("restart the machine: %w", err)
	}
	defer l.bus.Close()
	call := func(method string, args ...any) error {
		return l.bus.Object(login, loginPath).CallWithContext(ctx, manager+"."+method, 0, args...).Err
	}
	switch {
	case !o.At.IsZero():
		if err = call("SetWallMessage", o.Message, true); err == nil {
			err = call("ScheduleShutdown", "reboot", uint64(o.At.UnixMicro()))
		}
	case o.Careful:
		err = call("RebootWithFlags", uint64(rootCheckInhibitors))
		var unknown dbus.Error
		if errors.As(err, &unknown) && unknown.Name == "org.freedesktop.DBus.Error.UnknownMethod" { // systemd 245 and older
			err = call("Reboot", false)
		}
	default:
		err = call("Reboot", false)
	}
	if err != nil {
		return fmt.Errorf("restart the machine: %w", err)
	}
	return nil
}
