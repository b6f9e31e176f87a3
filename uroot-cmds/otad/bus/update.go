package bus

import (
	"fmt"
	"time"

	"github.com/godbus/dbus/v5"

	"halogenos.internal/boot/contract"
	"halogenos.internal/uroot-cmds/ota/offer"
	"halogenos.internal/uroot-cmds/otad/polkit"
	"halogenos.internal/uroot-cmds/otad/service"
)

// wish is what was asked for and allowed, and nothing newer. The owner's rules of when hold
// where nobody waits, as when a desktop fetches by itself.
func wish(msg dbus.Message, v contract.Version) service.Wish {
	return service.Wish{Version: v, Now: msg.Flags&dbus.FlagAllowInteractiveAuthorization != 0, Once: true}
}

// Update implements org.freedesktop.sysupdate1.Target: it begins a job.
func (t *target) Update(msg dbus.Message, version string, flags uint64) (string, uint64, dbus.ObjectPath, *dbus.Error) {
	if flags != 0 {
		return fail(badFlags())
	}
	done, denied := t.b.enter(msg, polkit.Fetch)
	if denied != nil {
		return fail(denied)
	}
	defer done()
	o, err := t.b.service.Check(t.b.conn.Context())
	switch {
	case err != nil:
		return fail(failed(err))
	case o.Verdict != offer.Take:
		return fail(dbus.NewError(Name+".NoCandidate", []any{o.Reason}))
	case version != "" && version != o.Version.String():
		return fail(dbus.NewError(Name+".NoCandidate", []any{fmt.Sprintf("version %s is offered, and not %.40q", o.Version, version)}))
	}
	j, err := t.b.service.Fetch(wish(msg, o.Version))
	if err != nil {
		return fail(failed(err))
	}
	return o.Version.String(), j.ID, jobPath(j.ID), nil
}

// Acquire implements org.freedesktop.sysupdate1.Target, whose Update has become Acquire and
// Install in systemd 260. A release that was fetched is one that the next start tries: there
// is nothing in between.
func (t *target) Acquire(msg dbus.Message, version string, flags uint64) (string, uint64, dbus.ObjectPath, *dbus.Error) {
	return t.Update(msg, version, flags)
}

// Install implements org.freedesktop.sysupdate1.Target: a job that has nothing to do for a
// release that was fetched, and none for any other. Who may see what is fetched may call it:
// polkit keeps a password for five minutes, which Acquire can outlast, and a second question
// would be one about nothing.
func (t *target) Install(msg dbus.Message, version string, flags uint64) (string, uint64, dbus.ObjectPath, *dbus.Error) {
	if flags != 0 {
		return fail(badFlags())
	}
	done, denied := t.b.enter(msg, polkit.Status)
	if denied != nil {
		return fail(denied)
	}
	s, err := t.b.service.Status(t.b.conn.Context())
	var refused *dbus.Error
	switch {
	case err != nil:
		refused = failed(err)
	case s.Staged == nil:
		refused = dbus.NewError(Name+".NoCandidate", []any{"no release was fetched that waits for a restart"})
	case version != "" && version != s.Staged.Version.String():
		refused = dbus.NewError(Name+".NoCandidate", []any{fmt.Sprintf("version %s waits for a restart, and not %.40q", s.Staged.Version, version)})
	}
	if refused != nil {
		done()
		return fail(refused)
	}
	id := t.b.service.NextID()
	t.b.begin(id, job{kind: "install", progress: func() uint32 { return 100 }, cancel: func() {}})
	// The call lasts until the job has ended: the service stays up for it, and nobody makes jobs
	// faster than they go.
	time.AfterFunc(shown, func() { t.b.finish(id, 0); done() })
	return s.Staged.Version.String(), id, jobPath(id), nil
}

// shown is how long a job is there that has nothing to do, so that its caller has heard of it
// before it hears of its end.
const shown = 500 * time.Millisecond

func fail(err *dbus.Error) (string, uint64, dbus.ObjectPath, *dbus.Error) { return "", 0, "/", err }

func badFlags() *dbus.Error {
	return dbus.NewError("org.freedesktop.DBus.Error.InvalidArgs", []any{"no flags are known here"})
}
