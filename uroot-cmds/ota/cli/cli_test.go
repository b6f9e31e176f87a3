package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/layout"
	"halogenos.internal/initagent/changes"
	"halogenos.internal/initagent/inventory/inventorytest"
	"halogenos.internal/uroot-cmds/ota/fetch"
	"halogenos.internal/uroot-cmds/ota/health"
	"halogenos.internal/uroot-cmds/ota/machine"
	"halogenos.internal/uroot-cmds/ota/offer"
	"halogenos.internal/uroot-cmds/ota/when"
	"halogenos.internal/uroot-cmds/ota/worker"
)

// ota runs a command on a machine that runs version 7.
func ota(t *testing.T, dir string, args ...string) (code int, out, errs string) {
	t.Helper()
	m := inventorytest.New(t)
	c := m.Install(layout.SlotA, "os_7.efi")
	text, err := json.Marshal(map[string]any{"slot": "a", "contract": c})
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"run/halogen/boot.json": text, "var/lib/halogen/x": nil} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return otaBy(m, "/bin/false", dir, args...)
}

// battery is what the machine has, in percent; -1 is mains.
var battery = -1

// otaBy runs a command on a machine that has files already, with a program for a worker.
func otaBy(m *inventorytest.Machine, worksBy, dir string, args ...string) (code int, out, errs string) {
	var stdout, stderr bytes.Buffer
	code = Run(args, Streams{Out: &stdout, Err: &stderr}, func() *machine.Machine {
		return &machine.Machine{Hardware: m.Hardware(), Root: dir, Worker: worker.Starter{Program: worksBy}, Now: time.Now, Corrupt: func() (bool, error) { return false, nil },
			Services: func() (health.Manager, string) { return nil, "" },
			Waits:    machine.Waits{Surroundings: func(context.Context) when.Conditions { return when.Conditions{Battery: battery} }},
			Waiting: func() (changes.Waiting, error) {
				return changes.Waiting{Conflicts: []string{"/etc/hosts"}, LeftOut: []string{"/etc/a", "/var/b"}}, nil
			}}
	})
	return code, stdout.String(), stderr.String()
}

func TestUse(t *testing.T) {
	for _, c := range []struct {
		args       string
		code       int
		out, errOf string
	}{
		{"", 2, "", "usage: ota COMMAND"},
		{"--help", 0, "Exit codes:", ""},
		{"help", 0, "usage: ota COMMAND", ""},
		{"--version", 0, "ota unknown\n", ""},
		{"update", 2, "", `unknown command "update"`},
		{"check --help", 0, "usage: ota check", ""},
		{"fetch --help", 0, "usage: ota fetch", ""},
		{"status --help", 0, "usage: ota status", ""},
		{"history --help", 0, "usage: ota history", ""},
		{"restart --help", 0, "usage: ota restart", ""},
		{"restart now", 2, "", "usage: ota restart"},
		{"restart", 1, "", "no release waits for a restart"},
		{"restart --auto", 0, "", ""},
		{"history now", 2, "", "usage: ota history"},
		{"bless --help", 0, "usage: ota bless", ""},
		{"rollback --help", 0, "usage: ota rollback", ""},
		{"channel --help", 0, "usage: ota channel", ""},
		{"status --colour", 2, "", "usage: ota status"},
		{"status now", 2, "", "usage: ota status"},
		{"fetch 3", 2, "", "usage: ota fetch"},
		{"health --help", 0, "usage: ota health", ""},
		{"health now", 2, "", "usage: ota health"},
		{"health", 0, "", ""},
		{"bless it", 2, "", "usage: ota bless"},
		{"channel nightly", 2, "", "none of stable, beta and alpha"},
		{"channel a b", 2, "", "usage: ota channel"},
		{"channel", 0, "stable\n", ""},
		{"channel beta", 0, "beta\n", ""},
		{"status", 0, "os 7 for x86_64, epoch 0, slot a, blessed\nfollows channel stable of no server", ""},
		{"status", 0, "\n1 file was changed both here and by an update", ""},
		{"status", 0, "\n2 files were left out by an update", ""},
		{"status", 0, "WARNING: this image takes unsigned updates", ""},
		{"bless", 0, "version 7 is blessed\n", ""},
		{"bless --failed no network", 0, "noted that version 7 is not healthy: no network", ""},
		{"bless --failed", 0, "the health check has failed", ""},
		{"rollback", 1, "", "slot b is empty"},
		{"rollback --state", 1, "", "the root partition is ext4, which has no snapshots"},
		{"rollback --cancel", 2, "", "belong to --state"},
		{"rollback --state --cancel --forget", 2, "", "each alone"},
		{"rollback --state --forget --yes", 1, "", "the root partition is ext4"},
		{"rollback --state --json", 2, "", "give --yes"},
		{"grow --help", 0, "usage: ota grow", ""},
		{"grow 3G", 2, "", "usage: ota grow"},
		{"grow --to 3K", 2, "", "like 3G or 1536M"},
		{"grow --to M", 2, "", "like 3G or 1536M"},
		{"grow --to 65G", 2, "", "a size up to 64G"},
		{"grow --to 99999999999G", 2, "", "a size up to 64G"},
		{"grow --to 3G --json", 2, "", "give --yes"},
		{"grow --cancel --to 3G", 2, "", "usage: ota grow"},
		{"grow --cancel", 1, "", "nothing was asked for"},
		{"fetch", 1, "", "worker ended: exit status 1"},
		{"check --from /nowhere", 1, "", "no such file"},
	} {
		code, out, errs := ota(t, t.TempDir(), strings.Fields(c.args)...)
		if code != c.code || !strings.Contains(out, c.out) || !strings.Contains(errs, c.errOf) || c.errOf == "" && errs != "" {
			t.Errorf("ota %s: %d\n%s\n%s", c.args, code, out, errs)
		}
	}
}

func TestJSON(t *testing.T) {
	for _, c := range []struct {
		args string
		code int
		key  string
		want any
	}{
		{"status --json", 0, "version", "7"},
		{"bless --json", 0, "already", true},
		{"bless --json --failed", 0, "unhealthy", "the health check has failed"},
		{"health --json", 0, "trial", false},
		{"channel --json alpha", 0, "channel", "alpha"},
		{"rollback --json", 1, "error", "there is no other system to go back to: slot b is empty (`ota fetch` fills it, where there is a newer release)"},
		{"fetch --json", 1, "code", 1.0},
		{"check --json", 1, "error", "worker ended: exit status 1"},
	} {
		code, out, _ := ota(t, t.TempDir(), strings.Fields(c.args)...)
		var got map[string]any
		if err := json.Unmarshal([]byte(out), &got); err != nil || code != c.code || got[c.key] != c.want {
			t.Errorf("ota %s: %d, %v\n%s", c.args, code, err, out)
		}
	}
}

// What failed at this start is a line of the status, and what counts a warning.
func TestStatusOfHealth(t *testing.T) {
	dir := t.TempDir()
	ota(t, dir) // which makes the directories
	for name, c := range map[string]struct{ file, want string }{
		"counts": {`"failed":["a.service","new.service"],"replaced":"6","counted":["new.service"],"failed_before":["a.service"]`,
			"WARNING: this system is not healthy: failed, and did not fail in version 6 before the update: new.service (`journalctl -u new.service` says why; what may fail is named in /etc/halogen/health-ignore)\nfailed at this start: a.service\n"},
		"does not":  {`"failed":["a.service"]`, "no server (set Server= in /etc/halogen/ota.conf)\nWARNING: this image takes unsigned updates (ReleaseKey=none): anyone who can write to its server or stands in between owns this machine\nfailed at this start: a.service\n"},
		"malformed": {`"warnings":["line 3 is none"]`, "\nWARNING: line 3 is none\n"},
	} {
		text := `{"version":"7","trial":true,"manager":"systemd",` + c.file + `}`
		if err := os.WriteFile(filepath.Join(dir, "run/halogen/health.json"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if code, out, errs := ota(t, dir, "status"); code != 0 || !strings.Contains(out, c.want) {
			t.Errorf("%s: %d\n%s\n%s", name, code, out, errs)
		}
	}
}

// A program that asks gets what failed with the error.
func TestHealthJSON(t *testing.T) {
	h := &machine.Health{Version: 7, Trial: true, Manager: "OpenRC", Failed: []string{"sshd"}, Replaced: 6, Verdict: health.Verdict{Counted: []string{"sshd"}}}
	text, err := encode(h, &machine.UnhealthyError{Health: h}, exitFailed)
	var got struct {
		Error  string
		Code   int
		Result machine.Health
	}
	if err := errors.Join(err, json.Unmarshal(text, &got)); err != nil {
		t.Fatal(err)
	}
	want := "failed, and did not fail in version 6 before the update: sshd (its log says why; what may fail is named in /etc/halogen/health-ignore)"
	if got.Error != want || got.Code != 1 || len(got.Result.Counted) != 1 {
		t.Errorf("%s", text)
	}
}

func TestExitCodes(t *testing.T) {
	for want, err := range map[int]error{
		exitDone: nil, exitFailed: errors.New("x"), exitBusy: fmt.Errorf("x: %w", machine.ErrBusy),
		exitRefused: fmt.Errorf("x: %w", &offer.Refused{}), exitUsage: errUsage,
	} {
		if got := exitCode(err); got != want {
			t.Errorf("%v: %d, want %d", err, got, want)
		}
	}
}

func TestScreen(t *testing.T) {
	now := time.Unix(1000, 0)
	show := func(terminal, quiet bool) string {
		var out bytes.Buffer
		s := newScreen(&out, terminal, quiet)
		s.now = func() time.Time { return now }
		for i := range 5 {
			s.event(worker.Event{Progress: &fetch.Progress{Phase: fetch.Fetching, File: "system.erofs", Done: int64(i) << 20, Total: 8 << 20}})
			now = now.Add(4 * time.Second)
		}
		s.event(worker.Event{Note: "a note\x1b[2J\nof a server's"})
		s.warn("beware")
		s.end()
		return out.String()
	}
	terminal := show(true, false)
	for _, want := range []string{"\rfetching system.erofs 0 % of 8.0 MiB", "\rfetching system.erofs 50 % of 8.0 MiB, 256.0 KiB/s, 0:16 left", "a note?[2J of a server's\n", "warning: beware\n"} {
		if !strings.Contains(terminal, want) {
			t.Errorf("%q lacks %q", terminal, want)
		}
	}
	want := "fetching system.erofs (8.0 MiB)\nfetching system.erofs 37 % of 8.0 MiB, 256.0 KiB/s, 0:20 left\na note?[2J of a server's\nwarning: beware\n"
	if got := show(false, false); got != want {
		t.Errorf("plain lines %q, want %q", got, want)
	}
	if got := show(true, true); got != "warning: beware\n" {
		t.Errorf("quiet: %q", got)
	}
	for d, want := range map[time.Duration]string{0: "0:00", 61 * time.Second: "1:01", 2*time.Hour + 3*time.Second: "2:00:03"} {
		if got := clock(d); got != want {
			t.Errorf("%s: %q", d, got)
		}
	}
	for n, want := range map[int64]string{5: "5 bytes", 2048: "2.0 KiB", 3 << 30: "3.0 GiB"} {
		if got := size(n); got != want {
			t.Errorf("%d: %q", n, got)
		}
	}
}

// The worker cannot be used by hand: it would have root's rights.
func TestWorkerByHand(t *testing.T) {
	var out bytes.Buffer
	code := Run([]string{worker.Argument}, Streams{In: strings.NewReader("{}\n"), Out: &out, Err: &out}, nil)
	if code != 1 || !strings.Contains(out.String(), "started by ota itself") {
		t.Errorf("%d: %s", code, &out)
	}
}

// A fetch at a time that does not suit is none, and says how to have it all the same.
func TestFetchNotNow(t *testing.T) {
	battery = 5
	defer func() { battery = -1 }()
	code, out, errs := ota(t, t.TempDir(), "fetch")
	if code != 0 || !strings.Contains(out, "on battery, which has 5 %") || !strings.Contains(out, "`ota fetch --now` does not wait") {
		t.Errorf("%d\n%s%s", code, out, errs)
	}
	if code, _, errs := ota(t, t.TempDir(), "fetch", "--now"); code != 1 || !strings.Contains(errs, "worker ended") {
		t.Errorf("--now: %d\n%s", code, errs)
	}
}

func TestWrap(t *testing.T) {
	var out strings.Builder
	wrap(&out, "  - ", "    ", strings.Repeat("word ", 20)+strings.Repeat("x", 90)+" end")
	want := "  - " + strings.Repeat("word ", 14) + "word\n    " + strings.Repeat("word ", 4) + "word\n    " + strings.Repeat("x", 90) + "\n    end\n"
	if out.String() != want {
		t.Errorf("%q\nwant %q", out.String(), want)
	}
}
