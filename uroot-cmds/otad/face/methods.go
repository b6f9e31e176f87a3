package face

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"halogenos.internal/uroot-cmds/ota/machine"
	"halogenos.internal/uroot-cmds/ota/offer"
	"halogenos.internal/uroot-cmds/ota/when"
	"halogenos.internal/uroot-cmds/otad/orghalogenosupdate"
	"halogenos.internal/uroot-cmds/otad/polkit"
	"halogenos.internal/uroot-cmds/otad/service"
)

// maxReason bounds a reason that a caller gives, in bytes.
const maxReason = 500

// A call is the methods of one caller.
type call struct {
	*service.Service
	guard  Guard
	caller polkit.Caller
}

type reply = orghalogenosupdate.VarlinkCall

// allowed reports whether the caller may do something, or else has said that not.
func (c *call) allowed(ctx context.Context, r *reply, a polkit.Action, asking *bool) (bool, error) {
	err := c.guard.Allowed(ctx, c.caller, a, asking != nil && *asking)
	switch {
	case errors.Is(err, polkit.ErrTooMany):
		return false, r.ReplyTooManyCalls(ctx)
	case err != nil:
		return false, r.ReplyNotAuthorized(ctx, string(a))
	}
	return true, nil
}

// answer gives what was asked for, as JSON, or says what went wrong.
func answer[T any](ctx context.Context, r *reply, v T, err error, give func(context.Context, json.RawMessage) error) error {
	if err != nil {
		return failed(ctx, r, err)
	}
	text, err := json.Marshal(v)
	if err != nil {
		return failed(ctx, r, err)
	}
	return give(ctx, text)
}

// failed says what went wrong.
func failed(ctx context.Context, r *reply, err error) error {
	var refused *offer.Refused
	text := machine.Plain(err.Error())
	switch {
	case errors.Is(err, machine.ErrBusy):
		return r.ReplyBusy(ctx, text)
	case errors.Is(err, machine.ErrIdle):
		return r.ReplyNothingUnderWay(ctx)
	case errors.As(err, &refused):
		return r.ReplyRefused(ctx, text)
	}
	return r.ReplyFailed(ctx, text)
}

// State implements org.halogenos.Update.
func (c *call) State(ctx context.Context, r reply, asking *bool) error {
	if ok, err := c.allowed(ctx, &r, polkit.Status, asking); !ok {
		return err
	}
	v, err := c.Status(ctx)
	return answer(ctx, &r, v, err, r.ReplyState)
}

// Check implements org.halogenos.Update.
func (c *call) Check(ctx context.Context, r reply, asking *bool) error {
	if ok, err := c.allowed(ctx, &r, polkit.Check, asking); !ok {
		return err
	}
	v, err := c.Service.Check(ctx)
	return answer(ctx, &r, v, err, r.ReplyCheck)
}

// Fetch implements org.halogenos.Update.
func (c *call) Fetch(ctx context.Context, r reply, now, asking *bool) error {
	if ok, err := c.allowed(ctx, &r, polkit.Fetch, asking); !ok {
		return err
	}
	j, err := c.Service.Fetch(service.Wish{Now: now != nil && *now})
	if err != nil {
		return failed(ctx, &r, err)
	}
	return follow(ctx, &r, j, r.ReplyFetch)
}

// replyProgress is how Fetch and Follow reply.
type replyProgress func(ctx context.Context, p *orghalogenosupdate.Progress, offer *json.RawMessage) error

// follow tells of a fetch until it has ended, where the caller wants more than the end.
func follow(ctx context.Context, r *reply, j *service.Job, tell replyProgress) error {
	if r.WantsMore() {
		r.Continues = true
		err := j.Follow(ctx, func(p machine.Progress) error { return tell(ctx, progress(p), nil) })
		if r.Continues = false; err != nil {
			return err
		}
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-j.Done:
	}
	out, err := j.Outcome()
	return answer(ctx, r, out, err, func(ctx context.Context, text json.RawMessage) error { return tell(ctx, nil, &text) })
}

// progress is what is told of it.
func progress(p machine.Progress) *orghalogenosupdate.Progress {
	out := &orghalogenosupdate.Progress{Phase: string(p.Phase), File: p.File, Done: p.Done, Total: p.Progress.Total, Fetched: p.Fetched, FetchTotal: p.FetchTotal}
	if p.Rate > 0 {
		out.BytesPerSecond, out.SecondsLeft = &p.Rate, &p.Left
	}
	if p.Note != "" {
		out.Note = &p.Note
	}
	return out
}

// Follow implements org.halogenos.Update.
func (c *call) Follow(ctx context.Context, r reply, asking *bool) error {
	if ok, err := c.allowed(ctx, &r, polkit.Status, asking); !ok {
		return err
	}
	if j := c.Job(); j != nil {
		return follow(ctx, &r, j, r.ReplyFollow)
	}
	// One that a timer or a person began.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	more := r.WantsMore()
	r.Continues = more
	err := c.Open().Follow(ctx, func(p machine.Progress) {
		if !more {
			return
		}
		if err := r.ReplyFollow(ctx, progress(p), nil); err != nil {
			cancel(err)
		}
	})
	if r.Continues = false; err != nil {
		return failed(ctx, &r, err)
	}
	return r.ReplyFollow(ctx, nil, nil)
}

// Cancel implements org.halogenos.Update.
func (c *call) Cancel(ctx context.Context, r reply, asking *bool) error {
	if ok, err := c.allowed(ctx, &r, polkit.Fetch, asking); !ok {
		return err
	}
	j := c.Job()
	if j == nil {
		return r.ReplyNothingUnderWay(ctx)
	}
	j.Cancel()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-j.Done:
	}
	return r.ReplyCancel(ctx)
}

// Rollback implements org.halogenos.Update.
func (c *call) Rollback(ctx context.Context, r reply, reason *string, asking *bool) error {
	text, ok := short(reason)
	if !ok {
		return r.ReplyInvalidParameter(ctx, "reason")
	}
	if ok, err := c.allowed(ctx, &r, polkit.Rollback, asking); !ok {
		return err
	}
	v, err := c.Service.Rollback(text)
	return answer(ctx, &r, v, err, r.ReplyRollback)
}

// short is a reason that a caller may give.
func short(reason *string) (string, bool) {
	if reason == nil {
		return "", true
	}
	return machine.Plain(*reason), len(*reason) <= maxReason
}

// Retry implements org.halogenos.Update.
func (c *call) Retry(ctx context.Context, r reply, version string, reason *string, asking *bool) error {
	text, ok := short(reason)
	if !ok {
		return r.ReplyInvalidParameter(ctx, "reason")
	}
	if ok, err := c.allowed(ctx, &r, polkit.Rollback, asking); !ok {
		return err
	}
	if err := c.Service.Retry(version, text); err != nil {
		return failed(ctx, &r, err)
	}
	return r.ReplyRetry(ctx)
}

// Channel implements org.halogenos.Update.
func (c *call) Channel(ctx context.Context, r reply, channel *string, asking *bool) error {
	action := polkit.Status
	if channel != nil {
		action = polkit.Configure
	}
	if ok, err := c.allowed(ctx, &r, action, asking); !ok {
		return err
	}
	if channel != nil {
		if err := c.SetChannel(*channel); err != nil {
			return failed(ctx, &r, err)
		}
	}
	now, err := c.Service.Channel()
	if err != nil {
		return failed(ctx, &r, err)
	}
	return r.ReplyChannel(ctx, string(now))
}

// Settings implements org.halogenos.Update.
func (c *call) Settings(ctx context.Context, r reply, asking *bool) error {
	if ok, err := c.allowed(ctx, &r, polkit.Status, asking); !ok {
		return err
	}
	v, err := c.Service.Settings()
	return answer(ctx, &r, v, err, r.ReplySettings)
}

// History implements org.halogenos.Update.
func (c *call) History(ctx context.Context, r reply, all, asking *bool) error {
	if ok, err := c.allowed(ctx, &r, polkit.Status, asking); !ok {
		return err
	}
	v, err := c.Service.History(all != nil && *all)
	return answer(ctx, &r, v, err, r.ReplyHistory)
}

// News implements org.halogenos.Update.
func (c *call) News(ctx context.Context, r reply, asking *bool) error {
	if ok, err := c.allowed(ctx, &r, polkit.Status, asking); !ok {
		return err
	}
	v, err := c.Service.News()
	if v == nil {
		v = new(machine.News)
	}
	return answer(ctx, &r, v, err, r.ReplyNews)
}

// Changes implements org.halogenos.Update.
func (c *call) Changes(ctx context.Context, r reply, asking *bool) error {
	if ok, err := c.allowed(ctx, &r, polkit.Status, asking); !ok {
		return err
	}
	conflicts, leftOut, err := c.Service.Changes()
	if err != nil {
		return failed(ctx, &r, err)
	}
	return r.ReplyChanges(ctx, append([]string{}, conflicts...), append([]string{}, leftOut...))
}

// Restart implements org.halogenos.Update.
func (c *call) Restart(ctx context.Context, r reply, at *int64, asking *bool) error {
	var moment time.Time
	if at != nil {
		if moment = time.Unix(*at, 0); *at <= 0 || time.Until(moment) > 7*24*time.Hour {
			return r.ReplyInvalidParameter(ctx, "at")
		}
	}
	if ok, err := c.allowed(ctx, &r, polkit.Restart, asking); !ok {
		return err
	}
	o, ok, err := c.overcomes(ctx, &r, at != nil, asking)
	if !ok {
		return err
	}
	if err := c.Service.Restart(ctx, when.Order{At: moment, Careful: !o.Inhibited}); err != nil {
		return failed(ctx, &r, err)
	}
	return r.ReplyRestart(ctx)
}

// overcomes has the caller allowed to go over what stands against a restart, and returns that.
// Somebody may take minutes to type a password, in which others log in: what has come up
// meanwhile is asked about, too.
func (c *call) overcomes(ctx context.Context, r *reply, later bool, asking *bool) (o when.Obstacles, ok bool, err error) {
	var allowed []polkit.Action
	for {
		o, err = c.Obstacles(ctx, c.caller.UID)
		if err == nil && later && o.Scheduled {
			err = errScheduled
		}
		if err != nil {
			return o, false, failed(ctx, r, err)
		}
		more := false
		for _, action := range needs(o) {
			// Each of the others says that the machine may be restarted.
			if slices.Contains(allowed, action) || action == polkit.Reboot && len(allowed) > 0 {
				continue
			}
			if ok, err = c.allowed(ctx, r, action, asking); !ok {
				return o, false, err
			}
			allowed, more = append(allowed, action), true
		}
		if !more {
			return o, true, nil
		}
	}
}

// errScheduled says that a restart would take the place of one, or of a shutdown.
var errScheduled = errors.New("a shutdown is scheduled already, and there is room for one: `shutdown --show` says when, `shutdown -c` cancels it")

// needs are the actions that systemd-logind would ask polkit about if the caller called it.
// It does not ask about root, as which this service calls it.
func needs(o when.Obstacles) (all []polkit.Action) {
	if o.Others {
		all = append(all, polkit.RebootOthers)
	}
	if o.Inhibited {
		all = append(all, polkit.RebootInhibited)
	}
	if len(all) == 0 {
		all = append(all, polkit.Reboot)
	}
	return all
}
