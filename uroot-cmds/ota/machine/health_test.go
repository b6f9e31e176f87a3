package machine

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"

	"halogenos.internal/boot/healthignore"
	"halogenos.internal/uroot-cmds/ota/health"
)

// services has the machine's service manager say what failed.
func (w *world) services(failed ...string) {
	w.m.Services = func() (health.Manager, string) {
		return func(context.Context) (*health.Look, error) { return &health.Look{Failed: failed}, nil }, "systemd"
	}
}

// check is Health in a machine whose time flies.
func (w *world) check() (h *Health, err error) {
	w.t.Helper()
	synctest.Test(w.t.(*testing.T), func(t *testing.T) { h, err = w.m.Health(t.Context()) })
	return h, err
}

// record is what the system before an update has left.
func (w *world) record(text string) { w.write(stateDirectory+"/"+health.RecordName, []byte(text)) }

const replaced = `{"format":1,"version":"1","manager":"systemd","failed":["old.service"]}`

// What fails at a trial's start and did not fail before counts against it.
func TestHealthOfTrial(t *testing.T) {
	for _, c := range []struct {
		name, record, ignore, owner string
		failed                      []string
		counted                     string // "" is a healthy system
		warned                      bool
	}{
		{"nothing failed", replaced, "", "", nil, "", false},
		{"one is new", replaced, "", "", []string{"old.service", "new.service"}, "new.service", false},
		{"it failed before", replaced, "", "", []string{"old.service"}, "", false},
		{"the image excuses it", replaced, "new.*\n", "", []string{"new.service"}, "", false},
		{"the owner excuses it", replaced, "x\n", "new.service # mine\n", []string{"new.service"}, "", false},
		{"a malformed line excuses nothing", replaced, "new.service y\n", "", []string{"new.service"}, "new.service", true},
		{"nothing is known of before", "", "", "", []string{"new.service"}, "", false},
		{"the system before had another init", strings.Replace(replaced, "systemd", "OpenRC", 1), "", "", []string{"new.service"}, "", false},
		{"the record is damaged", "{", "", "", []string{"new.service"}, "", false},
		{"the record is of another format", `{"format":2,"version":"1","manager":"systemd","failed":[]}`, "", "", []string{"new.service"}, "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.name("test-os_2.efi", "test-os_2+2-1.efi")
			w.services(c.failed...)
			for name, text := range map[string]string{stateDirectory + "/" + health.RecordName: c.record, healthignore.ImageFile: c.ignore, healthignore.OwnerFile: c.owner} {
				if text != "" {
					w.write(name, []byte(text))
				}
			}
			h, err := w.check()
			var ill *UnhealthyError
			if errors.As(err, &ill) != (c.counted != "") || err != nil && ill == nil {
				t.Fatalf("%+v, %v", h, err)
			}
			if c.counted != "" && (!strings.Contains(err.Error(), ": "+c.counted+" (`journalctl -u "+c.counted+"` says why") || !strings.Contains(err.Error(), healthignore.OwnerFile)) {
				t.Errorf("error %q does not name the unit and the way out", err)
			}
			if !h.Trial || h.Version != 2 || len(h.Failed) != len(c.failed) || (len(h.Warnings) > 0) != c.warned {
				t.Errorf("%+v", h)
			}
			if text, err := os.ReadFile(w.m.path(stateDirectory, health.RecordName)); string(text) != c.record {
				t.Errorf("a trial leaves %s as what failed before it (%v)", text, err)
			}
			s, err := w.m.Status()
			if err != nil || !reflect.DeepEqual(s.Health, h) {
				t.Errorf("status has %+v, %v; want %+v", s.Health, err, h)
			}
		})
	}
}

// A system that is no trial is the measure of the next one, and nothing counts against it.
func TestHealthOfBlessed(t *testing.T) {
	w := newWorld(t)
	w.record(`{"format":1,"version":"1","manager":"systemd","failed":["long-gone.service"]}`)
	w.services("ill.service")
	h, err := w.check()
	if err != nil || h.Trial || len(h.Counted) > 0 || len(h.Failed) != 1 {
		t.Fatalf("%+v, %v", h, err)
	}
	var have health.Record
	text, err := os.ReadFile(w.m.path(stateDirectory, health.RecordName))
	must(t, err)
	must(t, json.Unmarshal(text, &have))
	if want := *health.NewRecord(2, "systemd", []string{"ill.service"}); !reflect.DeepEqual(have, want) {
		t.Errorf("left %s", text)
	}
	// Nothing is written where nothing has changed.
	before := w.stat(health.RecordName)
	if _, err := w.check(); err != nil || !os.SameFile(before, w.stat(health.RecordName)) {
		t.Errorf("written again (%v)", err)
	}
	// What is left before the start has settled has a measure of the first moment, but
	// not in place of a whole one.
	for _, c := range []struct{ old, want string }{
		{replaced, `{"format":1,"version":"2","manager":"systemd","failed":["early.service"]}`},
		{`{"format":1,"version":"2","manager":"systemd","failed":["whole.service"]}`, `{"format":1,"version":"2","manager":"systemd","failed":["whole.service"]}`},
	} {
		w.record(c.old)
		ctx, stop := context.WithCancel(t.Context())
		w.m.Services = func() (health.Manager, string) {
			return func(ctx context.Context) (*health.Look, error) {
				err := ctx.Err()
				stop() // after the first answer
				return &health.Look{Failed: []string{"early.service"}}, err
			}, "systemd"
		}
		if _, err := w.m.Health(ctx); err == nil {
			t.Error("an interrupted check ends well")
		}
		if text, err := os.ReadFile(w.m.path(stateDirectory, health.RecordName)); string(text) != c.want {
			t.Errorf("left %s (%v), want %s", text, err, c.want)
		}
	}
}

func (w *world) stat(name string) os.FileInfo {
	w.t.Helper()
	info, err := os.Stat(w.m.path(stateDirectory, name))
	must(w.t, err)
	return info
}

// Without a service manager nothing is asked, and without an answer nothing is healthy.
func TestHealthUnknown(t *testing.T) {
	w := newWorld(t)
	w.name("test-os_2.efi", "test-os_2+2-1.efi")
	w.record(replaced)
	w.m.Services = func() (health.Manager, string) { return nil, "" }
	if h, err := w.check(); err != nil || h.Manager != "" || len(h.Failed) > 0 {
		t.Errorf("%+v, %v", h, err)
	}
	if text, err := os.ReadFile(w.m.path(stateDirectory, health.RecordName)); string(text) != replaced {
		t.Errorf("a trial leaves %s (%v)", text, err)
	}
	w.m.Services = func() (health.Manager, string) {
		return func(context.Context) (*health.Look, error) { return nil, errors.New("no answer") }, "systemd"
	}
	if h, err := w.check(); err == nil || h != nil || !strings.Contains(err.Error(), "ask what has failed at this start: no answer") {
		t.Errorf("%+v, %v", h, err)
	}
}

// A system without a service manager leaves nothing of the one before.
func TestHealthWithoutManager(t *testing.T) {
	w := newWorld(t)
	w.record(replaced)
	w.m.Services = func() (health.Manager, string) { return nil, "" }
	if _, err := w.check(); err != nil {
		t.Fatal(err)
	}
	if before, err := w.m.failedBefore(&Running{}, "systemd"); err != nil || before != nil {
		t.Errorf("%+v, %v", before, err)
	}
}

// What another system has found at an earlier start is not this one's.
func TestHealthOfAnother(t *testing.T) {
	w := newWorld(t)
	w.write(healthFile, []byte(`{"version":"1","trial":true,"manager":"systemd","failed":["x.service"]}`))
	if s, err := w.m.Status(); err != nil || s.Health != nil {
		t.Errorf("%+v, %v", s.Health, err)
	}
}
