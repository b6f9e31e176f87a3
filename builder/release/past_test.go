package release

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/builder/room"
)

// What the last releases take is read from the server; one that is broken does not count.
func TestPast(t *testing.T) {
	w := newWorld(t)
	o := w.options(w.build(1, "", ""), "")
	w.publish(o)
	o.Build = w.build(2, "", "")
	w.publish(o)
	server := Directory(filepath.Join(o.Server, "x86_64", "test-os"))
	if err := os.Mkdir(filepath.Join(string(server), "3"), 0o755); err != nil {
		t.Fatal(err)
	}
	var notes []string
	note := func(format string, args ...any) { notes = append(notes, format) }
	past, err := Past(t.Context(), server, nil, 0, now, note)
	if err != nil || len(past) != 2 || past[0].Version != 2 || past[1].Version != 1 || past[0].Slot != 16<<20 || past[0].ESP != 512<<20 || past[0].UKI == 0 || past[0].BootManager == 0 {
		t.Errorf("%+v, %v", past, err)
	}
	if len(notes) != 1 || !strings.Contains(notes[0], "is not counted") {
		t.Errorf("notes %q", notes)
	}
	if past, err = Past(t.Context(), server, nil, 2, now, note); err != nil || len(past) != 1 || past[0].Version != 1 {
		t.Errorf("before 2: %+v, %v", past, err)
	}
	if _, err := Past(t.Context(), server, []byte("no key"), 0, now, note); err == nil {
		t.Error("a key that is none is taken")
	}
	if _, err := Past(t.Context(), Directory(t.TempDir()), nil, 0, now, note); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no server: %v", err)
	}
}

// A release with a larger ESP says that there are smaller ones, or what follows it would
// be too large for them.
func TestESPSizeIsKnown(t *testing.T) {
	w := newWorld(t)
	o := w.options(w.build(1, "", ""), "")
	w.publish(o)
	o.Build = w.build(2, "", "", "SlotSize=16M", "SlotSize=16M\nESPSize=1G")
	w.refused("unknown", o, "does not say that there are EFI system partitions of 512 MiB: build it with --server or --previous")
	b, err := loadBuild(o.Build)
	if err != nil {
		t.Fatal(err)
	}
	was := b.able.WithESP(1<<30, 512<<20)
	b.able = was
	if err := fits(b.release, b.able, b.release, was); err != nil {
		t.Error(err)
	}
	for i := range b.release.Files {
		if b.release.Files[i].Name == "uki.efi" {
			b.release.Files[i].Size = room.ForUKI(1<<30, 0) - 16<<20
		}
	}
	if err := fits(b.release, b.able, b.release, was); err == nil || !strings.Contains(err.Error(), "EFI system partition of 512 MiB have room for") {
		t.Error(err)
	}
	if b.able = b.able.WithESP(1<<30, 1<<30); fits(b.release, b.able, b.release, b.able) != nil || fits(b.release, b.able, nil, was) != nil {
		t.Error("a release with as much room is refused")
	}
}
