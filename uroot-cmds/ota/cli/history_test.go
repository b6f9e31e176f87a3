package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/layout"
	"halogenos.internal/initagent/bootinfo"
	"halogenos.internal/uroot-cmds/ota/machine"
)

func TestHistory(t *testing.T) {
	dir := t.TempDir()
	if _, out, _ := ota(t, dir, "history"); out != "the boot journal is empty\n" {
		t.Errorf("no journal: %s", out)
	}
	at := time.Date(2026, 11, 23, 9, 5, 0, 0, time.UTC)
	for _, e := range []journal.Entry{
		{Kind: journal.Boot, Version: 6, Slot: layout.SlotA, Reason: "it is the newest"},
		{Kind: journal.Boot, Version: 6, Slot: layout.SlotA, Reason: "as ever"},
		{Kind: journal.Fetched, Version: 7, Slot: layout.SlotB, Reason: "3 MiB fetched"},
		{Kind: journal.Boot, Version: 7, Slot: layout.SlotB, Trial: true, Watchdog: true},
		{Kind: journal.Rollback, Version: 7, Reason: "slow\x1b[31m"},
		{Kind: journal.Repaired, Slot: layout.SlotA, Reason: "2 data blocks"},
		{Kind: "levitated", Version: 7, Reason: "by later code"},
	} {
		e.Time = at
		if err := bootinfo.AppendJournal(filepath.Join(dir, "var/lib/halogen"), e); err != nil {
			t.Fatal(err)
		}
	}
	code, out, errs := ota(t, dir, "history")
	want := []string{
		"version 6 starts: it is the newest", "version 7 is fetched into slot b: 3 MiB fetched",
		"version 7 starts, on trial, after the watchdog ended the boot before", "version 7 is given up: slow_[31m",
		"blocks of slot a are repaired: 2 data blocks", "levitated, version 7: by later code", "",
	}
	if text := strings.ReplaceAll(out, "2026-11-23 09:05  ", ""); code != 0 || text != strings.Join(want, "\n") {
		t.Errorf("%d %s\n%s", code, errs, out)
	}
	if _, out, _ := ota(t, dir, "history", "--all"); !strings.Contains(out, "as ever") {
		t.Errorf("--all says\n%s", out)
	}
	var h machine.History
	code, out, _ = ota(t, dir, "history", "--json")
	if err := json.Unmarshal([]byte(out), &h); err != nil || code != 0 || h.Format != 1 || len(h.Entries) != 6 {
		t.Errorf("%d, %v, %s", code, err, out)
	}
}

// Each kind of entry that the journal declares has words of its own.
func TestHistorySaysEachKind(t *testing.T) {
	text, err := os.ReadFile("../../../boot/journal/journal.go")
	if err != nil {
		t.Fatal(err)
	}
	kinds := regexp.MustCompile(`(?m)^\t\w+ +Kind = "([a-z-]+)"`).FindAllSubmatch(text, -1)
	if len(kinds) < 15 {
		t.Fatalf("only %d kinds were found", len(kinds))
	}
	for _, k := range kinds {
		if happened[journal.Kind(k[1])] == "" {
			t.Errorf("ota history has no words for %q", k[1])
		}
	}
}
