package face

import (
	"context"
	"encoding/json"

	"halogenos.internal/boot/contract"
	"halogenos.internal/uroot-cmds/ota/machine"
	"halogenos.internal/uroot-cmds/ota/worker"
	"halogenos.internal/uroot-cmds/otad/orghalogenosupdate"
	"halogenos.internal/uroot-cmds/otad/polkit"
)

// Extensions implements org.halogenos.Update.
func (c *call) Extensions(ctx context.Context, r reply, asking *bool) error {
	if ok, err := c.allowed(ctx, &r, polkit.Status, asking); !ok {
		return err
	}
	v, err := c.Service.Extensions()
	return answer(ctx, &r, v, err, r.ReplyExtensions)
}

// validNames reports whether these can be names of extensions, and not more than a release
// has.
func validNames(names []string) bool {
	for _, name := range names {
		if !contract.ValidID(name) {
			return false
		}
	}
	return len(names) > 0 && len(names) <= contract.MaxExtensions
}

// EnableExtensions implements org.halogenos.Update. Leave to fetch, which an administrator may
// give to everyone since releases are signed, is no leave to choose what the system is made of.
func (c *call) EnableExtensions(ctx context.Context, r reply, names []string, asking *bool) error {
	if !validNames(names) {
		return r.ReplyInvalidParameter(ctx, "names")
	}
	if ok, err := c.allowed(ctx, &r, polkit.Configure, asking); !ok {
		return err
	}
	within, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	more := r.WantsMore()
	r.Continues = more
	v, err := c.Service.EnableExtensions(within, names, func(e worker.Event) {
		if !more || e.Progress == nil && e.Note == "" {
			return
		}
		if err := r.ReplyEnableExtensions(ctx, told(e), nil); err != nil {
			cancel(err)
		}
	})
	r.Continues = false
	return answer(ctx, &r, v, err, func(ctx context.Context, text json.RawMessage) error { return r.ReplyEnableExtensions(ctx, nil, &text) })
}

// told is what is told of an event.
func told(e worker.Event) *orghalogenosupdate.Progress {
	out := new(orghalogenosupdate.Progress)
	if p := e.Progress; p != nil {
		out.Phase, out.File, out.Done, out.Total, out.Fetched = string(p.Phase), p.File, p.Done, p.Total, p.Fetched
	}
	if e.Note != "" {
		text := machine.Plain(e.Note)
		out.Note = &text
	}
	return out
}

// DisableExtensions implements org.halogenos.Update.
func (c *call) DisableExtensions(ctx context.Context, r reply, names []string, asking *bool) error {
	if !validNames(names) {
		return r.ReplyInvalidParameter(ctx, "names")
	}
	if ok, err := c.allowed(ctx, &r, polkit.Configure, asking); !ok {
		return err
	}
	v, err := c.Service.DisableExtensions(names)
	return answer(ctx, &r, v, err, r.ReplyDisableExtensions)
}
