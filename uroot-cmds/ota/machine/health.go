package machine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/healthignore"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/inventory"
	"halogenos.internal/uroot-cmds/ota/health"
)

// healthFile is what this start's check has found, for Status.
const healthFile = "run/halogen/health.json"

// A Health is what failed at the running system's start, and what of it counts against
// its trial.
type Health struct {
	Version contract.Version `json:"version"`
	Trial   bool             `json:"trial"`
	// Manager is the service manager that was asked; "" where there is none.
	Manager string `json:"manager"`
	// Known is true where what failed is known, since it has answered or there is none.
	Known bool `json:"known"`
	// Failed are all that failed, Starting those whose start had not ended.
	Failed   []string `json:"failed,omitempty"`
	Starting []string `json:"starting,omitempty"`
	// Present are the display manager, if its display server answers, and the network
	// services that run, of a desktop with systemd.
	Present []string `json:"present,omitempty"`
	// Replaced is the version that the failures are compared with; 0 is none.
	Replaced contract.Version `json:"replaced,omitempty"`
	health.Verdict
	// Warnings are of what could not be found out, and of files that excuse nothing
	// since they are malformed.
	Warnings []string `json:"warnings,omitempty"`
}

// An UnhealthyError says that services failed that did not fail before the update.
type UnhealthyError struct{ Health *Health }

// Error implements error.
func (e *UnhealthyError) Error() string {
	h := e.Health
	why := "`journalctl -u " + h.Counted[0] + "` says why"
	if h.Manager != "systemd" {
		why = "its log says why"
	}
	return fmt.Sprintf("failed, and did not fail in version %s before the update: %s (%s; what may fail is named in /%s)", h.Replaced, health.Names(h.Counted), why, healthignore.OwnerFile)
}

// Health waits until the system's start has settled and says what failed. What counts
// against a trial is an [UnhealthyError]; what cannot be found out is a warning. A system
// that is not a trial leaves what failed as the measure of the next, and a trial does when
// it is blessed.
func (m *Machine) Health(ctx context.Context) (*Health, error) {
	r, err := m.system()
	if err != nil {
		return nil, err
	}
	inv, err := inventory.Take(m.Hardware)
	if err != nil {
		return nil, err
	}
	h := &Health{Version: r.Contract.Version}
	if h.Trial, err = m.onTrial(r, inv); err != nil {
		return nil, err
	}
	ask, name := m.Services()
	h.Manager = name
	before, err := m.failedBefore(r, name)
	h.warn("what failed before the update", err)
	start, err := m.follow(ctx, r, h, ask, before)
	if err != nil {
		return nil, err
	}
	if !h.Trial {
		if h.Known {
			err = m.keepFailed(r, h)
		}
		h.warn("what this check has found", m.keepHealth(h))
		return h, err
	}
	m.compare(h, start, before, replacedBy(r, inv))
	h.warn("what this check has found", m.keepHealth(h))
	if len(h.Counted) > 0 {
		err = &UnhealthyError{h}
	}
	return h, err
}

// warn notes what could not be read or written.
func (h *Health) warn(what string, err error) {
	if err != nil {
		h.Warnings = append(h.Warnings, fmt.Sprintf("%s: %v", what, err))
	}
}

// follow waits for the start to settle and says what came of it. A service manager that
// does not answer says nothing against a system.
func (m *Machine) follow(ctx context.Context, r *Running, h *Health, ask health.Manager, before *health.Record) (*health.Start, error) {
	if ask == nil {
		h.Known = true
		return &health.Start{}, nil
	}
	start, err := ask.Settle(ctx, func(failed []string) {
		// A system that is left before its start has settled has a measure all the
		// same, if a stricter one, but not in place of a whole one.
		if !h.Trial && before == nil {
			h.warn("note what fails early", m.keepFailed(r, &Health{Manager: h.Manager, Failed: failed}))
		}
	})
	if err != nil && ctx.Err() != nil {
		return nil, fmt.Errorf("ask what has failed at this start: %w", err)
	}
	if err != nil {
		h.warn("what has failed at this start is not known, and nothing counts", err)
		return &health.Start{}, nil
	}
	h.Known, h.Failed, h.Starting, h.Present = true, start.Failed, start.Starting, start.Present
	h.Warnings = append(h.Warnings, start.Missing()...)
	return start, nil
}

// compare says what of a trial's failures counts.
func (m *Machine) compare(h *Health, start *health.Start, before *health.Record, replaced contract.Version) {
	if before != nil {
		h.Replaced = before.Version
		if replaced != 0 && replaced != before.Version && len(h.Failed) > 0 {
			h.Warnings = append(h.Warnings, fmt.Sprintf("what failed before the update is known of version %s, not of version %s, which this one replaces", before.Version, replaced))
		}
	}
	ignore, bad := m.ignored()
	if bad != nil {
		h.Warnings = append(h.Warnings, bad.Error())
	}
	h.Verdict = health.Judge(start, before, ignore)
}

// replacedBy is the version that a trial replaces; 0 where the other slot has none.
func replacedBy(r *Running, inv *inventory.Inventory) contract.Version {
	if s, _, err := other(r, inv); err == nil {
		return s.Contract.Version
	}
	return 0
}

// failedBefore is what failed in the last system that was blessed; nil where that is
// not known of this service manager.
func (m *Machine) failedBefore(r *Running, manager string) (*health.Record, error) {
	var before health.Record
	ok, err := decode(m.state(r, health.RecordName), &before)
	if err != nil || !ok || !before.Of(manager) {
		return nil, err
	}
	return &before, nil
}

// keepFailed writes that down, where it changes. Cut before, the start before this one
// is the measure.
func (m *Machine) keepFailed(r *Running, h *Health) error {
	if err := m.haveState(r); err != nil {
		return err
	}
	text, err := json.Marshal(health.NewRecord(r.Contract.Version, h.Manager, h.Failed, h.Present))
	if err != nil {
		return err
	}
	path := m.state(r, health.RecordName)
	if old, err := readSmall(path, maxFile); err == nil && bytes.Equal(old, text) {
		return nil
	}
	return hw.KeepFile(path, text, 0o644)
}

// keepHealth leaves it for Status.
func (m *Machine) keepHealth(h *Health) error {
	text, err := json.Marshal(h)
	if err != nil {
		return err
	}
	return hw.KeepFile(m.path(healthFile), text, 0o644)
}

// lastHealth is what this start's check has found; nil where it has not ended yet.
func (m *Machine) lastHealth(r *Running) (*Health, error) {
	var h Health
	ok, err := decode(m.path(healthFile), &h)
	if err != nil || !ok || h.Version != r.Contract.Version {
		return nil, err
	}
	return &h, nil
}

// blessedHealth makes what failed at a trial's start the measure of the next update: not
// every machine is started again before it. Cut before it, the measure is of the version
// that was replaced, and the next start writes a new one.
func (m *Machine) blessedHealth(r *Running) error {
	h, err := m.lastHealth(r)
	if err != nil || h == nil || !h.Trial || !h.Known {
		return err
	}
	return m.keepFailed(r, h)
}

// ignored are the services that HalogenOS, the image or the owner excuses.
func (m *Machine) ignored() (healthignore.List, error) {
	var all healthignore.List
	var bad error
	for _, name := range []string{healthignore.DefaultFile, healthignore.ImageFile, healthignore.OwnerFile} {
		// The owner's may be a link into a directory of theirs.
		text, err := os.ReadFile(m.path(name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		var some healthignore.List
		if err == nil {
			some, err = healthignore.Parse(name, text)
		}
		all, bad = append(all, some...), errors.Join(bad, err)
	}
	return all, bad
}
