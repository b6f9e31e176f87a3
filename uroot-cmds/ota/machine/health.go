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
	// Failed are all that failed, Starting those whose start had not ended.
	Failed   []string `json:"failed,omitempty"`
	Starting []string `json:"starting,omitempty"`
	// Replaced is the version that the failures are compared with; 0 is none.
	Replaced contract.Version `json:"replaced,omitempty"`
	health.Verdict
	// Warnings are of files that excuse nothing since they are malformed.
	Warnings []string `json:"warnings,omitempty"`
}

// An UnhealthyError says that services failed that did not fail before the update.
type UnhealthyError struct{ Health *Health }

func (e *UnhealthyError) Error() string {
	h := e.Health
	why := "`journalctl -u " + h.Counted[0] + "` says why"
	if h.Manager != "systemd" {
		why = "its log says why"
	}
	return fmt.Sprintf("failed, and did not fail in version %s before the update: %s (%s; what may fail is named in /%s)", h.Replaced, health.Names(h.Counted), why, healthignore.OwnerFile)
}

// Health waits until the system's start has settled and says what failed. What counts
// against a trial is an [UnhealthyError]. A system that is no trial leaves what failed
// as the measure of the next.
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
	if err != nil {
		return nil, err
	}
	if ask == nil {
		if !h.Trial {
			err = m.keepFailed(r, h)
		}
		return h, errors.Join(err, m.keepHealth(h))
	}
	start, err := ask.Settle(ctx, func(failed []string) error {
		// A system that is left before its start has settled has a measure all the
		// same, if a stricter one.
		if h.Trial || before != nil && before.Version == h.Version {
			return nil
		}
		return m.keepFailed(r, &Health{Manager: name, Failed: failed})
	})
	if err != nil {
		return nil, fmt.Errorf("ask what has failed at this start: %w", err)
	}
	h.Failed, h.Starting = start.Failed, start.Starting
	if h.Trial {
		return h, m.judge(h, before)
	}
	return h, errors.Join(m.keepFailed(r, h), m.keepHealth(h))
}

// judge says what of a trial's failures counts.
func (m *Machine) judge(h *Health, before *health.Record) error {
	if before != nil {
		h.Replaced = before.Version
	}
	ignore, bad := m.ignored()
	if bad != nil {
		h.Warnings = append(h.Warnings, bad.Error())
	}
	h.Verdict = health.Judge(h.Failed, before, ignore)
	err := m.keepHealth(h)
	if len(h.Counted) > 0 {
		err = errors.Join(&UnhealthyError{h}, err)
	}
	return err
}

// failedBefore is what failed in the last system that was no trial; nil where that is
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
	text, err := json.Marshal(health.NewRecord(r.Contract.Version, h.Manager, h.Failed))
	if err != nil {
		return err
	}
	path := m.state(r, health.RecordName)
	if old, err := readSmall(path, maxFile); err == nil && bytes.Equal(old, text) {
		return nil
	}
	return keep(path, text, 0o644)
}

// keepHealth leaves it for Status.
func (m *Machine) keepHealth(h *Health) error {
	text, err := json.Marshal(h)
	if err != nil {
		return err
	}
	return keep(m.path(healthFile), text, 0o644)
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

// ignored are the services that the image or the owner excuses.
func (m *Machine) ignored() (healthignore.List, error) {
	var all healthignore.List
	var bad error
	for _, name := range []string{healthignore.ImageFile, healthignore.OwnerFile} {
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
