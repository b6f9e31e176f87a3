package face

import (
	"context"

	"halogenos.internal/uroot-cmds/ota/offer"
	"halogenos.internal/uroot-cmds/otad/iosystemdsysupdate"
	"halogenos.internal/uroot-cmds/otad/orghalogenosupdate"
	"halogenos.internal/uroot-cmds/otad/polkit"
)

// sysupdate answers as systemd-sysupdate does, for one target.
type sysupdate struct{ *call }

type target = iosystemdsysupdate.TargetIdentifier

const host = "host"

// known reports whether the target is the host.
func known(t target) bool {
	return t.Class == host && (t.Name == nil || *t.Name == "" || *t.Name == host)
}

// ListTargets implements io.systemd.SysUpdate.
func (s *sysupdate) ListTargets(ctx context.Context, r iosystemdsysupdate.VarlinkCall) error {
	name := host
	return r.ReplyListTargets(ctx, []iosystemdsysupdate.Target{{Id: target{Class: host, Name: &name}}})
}

// ListFeatures implements io.systemd.SysUpdate.
func (s *sysupdate) ListFeatures(ctx context.Context, r iosystemdsysupdate.VarlinkCall, t target) error {
	if !known(t) {
		return r.ReplyNoSuchTarget(ctx)
	}
	return r.ReplyListFeatures(ctx, []iosystemdsysupdate.Feature{})
}

// CheckNew implements io.systemd.SysUpdate.
func (s *sysupdate) CheckNew(ctx context.Context, r iosystemdsysupdate.VarlinkCall, t target, asking *bool) error {
	if !known(t) {
		return r.ReplyNoSuchTarget(ctx)
	}
	ours := &orghalogenosupdate.VarlinkCall{Call: r.Call}
	if ok, err := s.allowed(ctx, ours, polkit.Check, asking); !ok {
		return err
	}
	out, err := s.Service.Check(ctx)
	if err != nil {
		return failed(ctx, ours, err)
	}
	if out.Verdict != offer.Take {
		return r.ReplyNoUpdateNeeded(ctx)
	}
	return r.ReplyCheckNew(ctx, out.Version.String())
}
