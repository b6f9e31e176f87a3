package machine

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"reflect"
	"slices"
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
		{"a list of another version", strings.Replace(replaced, `"1"`, `"7"`, 1), "", "", []string{"new.service"}, "new.service", true},
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
			s, err := w.m.Status(t.Context())
			if err != nil || !reflect.DeepEqual(s.Health, h) {
				t.Errorf("status has %+v, %v; want %+v", s.Health, err, h)
			}
		})
	}
}

// A system that is not a trial is the measure of the next one, and nothing counts against it.
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
	if want := *health.NewRecord(2, "systemd", []string{"ill.service"}, nil); !reflect.DeepEqual(have, want) {
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
		{"{", `{"format":1,"version":"2","manager":"systemd","failed":["early.service"]}`},
		{replaced, replaced},
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

// Without a service manager nothing is asked, and without an answer nothing is ill.
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
	h, err := w.check()
	if err != nil || h.Known || len(h.Warnings) != 1 || !strings.Contains(h.Warnings[0], "what has failed at this start is not known, and nothing counts: no answer") {
		t.Errorf("%+v, %v", h, err)
	}
	// So there is nothing for the next update to be compared with.
	if b, err := w.m.Bless(); err != nil || b.Warning != "" {
		t.Errorf("%+v, %v", b, err)
	}
	if text, err := os.ReadFile(w.m.path(stateDirectory, health.RecordName)); string(text) != replaced {
		t.Errorf("a trial of which nothing is known leaves %s (%v)", text, err)
	}
}

// A /run without room, and a list that cannot be read, are warnings.
func TestHealthUnkept(t *testing.T) {
	w := newWorld(t)
	w.name("test-os_2.efi", "test-os_2+2-1.efi")
	must(t, os.MkdirAll(w.m.path(stateDirectory, health.RecordName), 0o755))
	must(t, os.MkdirAll(w.m.path(healthFile+".new", "x"), 0o755))
	w.services("new.service")
	h, err := w.check()
	if err != nil || len(h.Unknown) != 1 || len(h.Warnings) != 2 {
		t.Errorf("%+v, %v", h, err)
	}
}

// A trial that is blessed leaves what failed for the next update, whether or not it is
// started again before that.
func TestHealthOfBlessedTrial(t *testing.T) {
	for _, c := range []struct{ name, record, want string }{
		{"update", replaced, `{"format":1,"version":"2","manager":"systemd","failed":["old.service"]}`},
		{"nothing is known of before", "", `{"format":1,"version":"2","manager":"systemd","failed":["old.service"]}`},
	} {
		w := newWorld(t)
		w.name("test-os_2.efi", "test-os_2+2-1.efi")
		if c.record != "" {
			w.record(c.record)
		}
		w.services("old.service")
		if h, err := w.check(); err != nil || !h.Known {
			t.Fatalf("%+v, %v", h, err)
		}
		if text := w.left(); text != c.record {
			t.Errorf("%s: a trial that is not blessed leaves %s", c.name, text)
		}
		if b, err := w.m.Bless(); err != nil || b.Warning != "" {
			t.Fatalf("%+v, %v", b, err)
		}
		if text := w.left(); text != c.want {
			t.Errorf("%s: left %s, want %s", c.name, text, c.want)
		}
	}
	// Where it cannot be kept it is blessed all the same, and the list is as it was.
	w := newWorld(t)
	w.name("test-os_2.efi", "test-os_2+2-1.efi")
	w.record(replaced)
	w.services("old.service")
	_, err := w.check()
	must(t, err)
	must(t, os.MkdirAll(w.m.path(stateDirectory, health.RecordName+".new", "x"), 0o755))
	if b, err := w.m.Bless(); err != nil || !strings.Contains(b.Warning, "is not kept for the next update") || w.ukis() != "test-os_1.efi test-os_2.efi" || w.left() != replaced {
		t.Errorf("%+v, %v, %s, left %s", b, err, w.ukis(), w.left())
	}
}

// What of a desktop is there is kept with it: only that can be missed after an update.
func TestHealthOfDesktop(t *testing.T) {
	const dm = "display-manager.service"
	look := func(l health.Look) func() (health.Manager, string) {
		return func() (health.Manager, string) {
			return func(context.Context) (*health.Look, error) { return &l, nil }, "systemd"
		}
	}
	w := newWorld(t)
	w.name("test-os_2.efi", "test-os_2+2-1.efi")
	w.m.Services = look(health.Look{Present: []string{dm}})
	if h, err := w.check(); err != nil || !slices.Equal(h.Present, []string{dm}) {
		t.Fatalf("%+v, %v", h, err)
	}
	if b, err := w.m.Bless(); err != nil || b.Warning != "" || !strings.Contains(w.left(), `"present":["`+dm+`"]`) {
		t.Errorf("%+v, %v, left %s", b, err, w.left())
	}
	for _, c := range []struct {
		name, record string
		ill          bool
	}{
		{"it was there", replaced[:len(replaced)-1] + `,"present":["` + dm + `"]}`, true},
		{"a release that did not look", replaced, false},
		{"nothing is known", "", false},
	} {
		w := newWorld(t)
		w.name("test-os_2.efi", "test-os_2+2-1.efi")
		if c.record != "" {
			w.record(c.record)
		}
		w.m.Services = look(health.Look{Silent: true})
		h, err := w.check()
		if (err != nil) != c.ill || !slices.Equal(h.Failed, []string{dm}) || !strings.Contains(strings.Join(h.Warnings, " "), "no display server answers") {
			t.Errorf("%s: %+v, %v", c.name, h, err)
		}
	}
}

// left is the list of what failed; "" where there is none.
func (w *world) left() string {
	w.t.Helper()
	text, err := os.ReadFile(w.m.path(stateDirectory, health.RecordName))
	if err != nil && !os.IsNotExist(err) {
		w.t.Fatal(err)
	}
	return string(text)
}

// HalogenOS's own list, which each image has, excuses what waits for a network.
func TestHealthDefaults(t *testing.T) {
	text, err := os.ReadFile("../../../builder/osfiles/files/health-ignore.default")
	must(t, err)
	w := newWorld(t)
	w.name("test-os_2.efi", "test-os_2+2-1.efi")
	w.record(replaced)
	w.write(healthignore.DefaultFile, text)
	away := []string{"NetworkManager-wait-online.service", "systemd-networkd-wait-online@eth0.service", "fwupd-refresh.service", "netmount", "systemd-coredump@0-1-0.service"}
	w.services(append(away, "NetworkManager.service", "fwupd.service", "nfs-server.service", "net")...)
	h, err := w.check()
	var ill *UnhealthyError
	if !errors.As(err, &ill) || len(h.Warnings) > 0 || len(h.Excused) != len(away) || strings.Join(h.Counted, " ") != "NetworkManager.service fwupd.service net nfs-server.service" {
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
	if s, err := w.m.Status(t.Context()); err != nil || s.Health != nil {
		t.Errorf("%+v, %v", s.Health, err)
	}
}
