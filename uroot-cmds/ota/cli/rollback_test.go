package cli

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/stateconf"
	"halogenos.internal/initagent/inventory/inventorytest"
	"halogenos.internal/initagent/snapshot"
	"halogenos.internal/initagent/snapshot/snapshottest"
	"halogenos.internal/uroot-cmds/ota/machine"
)

// What would be lost is shown, and nothing is done without a "y".
func TestRollbackStateAsks(t *testing.T) {
	for answer, done := range map[string]bool{"y\n": true, "Y": true, "\n": false, "": false, "yes\n": false} {
		dir, m := t.TempDir(), inventorytest.New(t)
		six, seven := m.Install(layout.SlotB, "os_6.efi"), m.Install(layout.SlotA, "os_7.efi")
		seven.RootFileSystem = "btrfs"
		text, err := json.Marshal(map[string]any{"slot": "a", "contract": seven})
		if err != nil {
			t.Fatal(err)
		}
		for name, content := range map[string][]byte{"run/halogen/boot.json": text, "var/lib/halogen/x": nil, "run/state/bind/var/x": []byte("x"), "run/state/snapshots/before/var/x": []byte("x")} {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		d := snapshottest.Disk{Space: snapshot.Room{Size: 1 << 40, Free: 1 << 40}, Files: map[string][]byte{"bind/var": []byte(snapshottest.Writable)}}
		now := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
		_, _, err = snapshot.Take(d, snapshot.Record{Taken: now.Add(-75 * time.Hour), For: 7, System: snapshot.System{Version: 6, Root: six.Root().String()}}, []stateconf.Entry{{Mode: stateconf.Bind, Path: "/var"}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		run := func(in string, args ...string) (int, string, string) {
			var out, errs bytes.Buffer
			code := Run(append([]string{"rollback", "--state"}, args...), Streams{In: strings.NewReader(in), Out: &out, Err: &errs}, func() *machine.Machine {
				return &machine.Machine{Hardware: m.Hardware(), Root: dir, Now: func() time.Time { return now }, Snapshots: d}
			})
			return code, out.String(), errs.String()
		}
		code, out, errs := run(answer, "slow")
		for _, say := range []string{"what they held at 2026-11-26 09:00 UTC, 3 days ago, under version 6:\n", "/var         then ", " in 1 file, now ", "Version 7 is given up. The next start is of version 6.\nGo back? [y/N] "} {
			if !strings.Contains(out, say) {
				t.Errorf("it says nothing of %q:\n%s", say, out)
			}
		}
		_, there := m.Files["EFI/Linux/os_7+0.efi"]
		if there != done || (code == 0) != done || strings.Contains(out, "the next start puts /var back") != done || strings.Contains(errs, "nothing was changed") == done {
			t.Errorf("%q: %d\n%s%s", answer, code, out, errs)
		}
		if done {
			for _, answer := range []string{"n", "y"} {
				deleted := answer == "y"
				code, out, errs := run(answer, "--forget")
				kept, err := snapshot.ReadRecord(d)
				if err != nil || (code == 0) != deleted || (kept == nil) != deleted || !strings.Contains(out, "Delete it? [y/N]") {
					t.Errorf("forget: %d, %v\n%s%s", code, err, out, errs)
				}
			}
			if code, out, errs := run("", "--cancel"); code != 1 || !strings.Contains(errs, "nothing was asked for") {
				t.Errorf("cancel: %d\n%s%s", code, out, errs)
			}
			continue
		}
		code, out, errs = run("", "--yes", "--json")
		var got machine.StateRollback
		if err := json.Unmarshal([]byte(out), &got); err != nil || code != 0 || got.Next != 6 || got.Rollback == nil || got.Rollback.Given != 7 || len(got.Directories) != 1 {
			t.Errorf("%d, %v\n%s%s", code, err, out, errs)
		}
	}
}

func TestAgo(t *testing.T) {
	for d, want := range map[time.Duration]string{-time.Hour: "a short time", time.Minute: "a short time", 3 * time.Minute: "3 minutes", 100 * time.Minute: "100 minutes", 47 * time.Hour: "47 hours", 49 * time.Hour: "2 days"} {
		if got := ago(d); got != want {
			t.Errorf("%v: %s", d, got)
		}
	}
}
