package bootinfo

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"halogenos.internal/boot/journal"
)

func TestShared(t *testing.T) {
	dir := t.TempDir()
	p := Place{Directories: []string{filepath.Join(dir, "closed"), filepath.Join(dir, "open")}, Report: filepath.Join(dir, "boot.json"), BootID: filepath.Join(dir, "id")}
	e := journal.Entry{Kind: journal.Repaired, Reason: "a test"}
	if err := p.Note(e); err != nil {
		t.Error(err)
	}
	if release, err := p.Alone(); err != nil {
		t.Error(err)
	} else {
		release()
	}
	if _, err := p.Journal(); !errors.Is(err, ErrClosed) {
		t.Errorf("without a directory: %v", err)
	}
	if r, err := p.Boot(); r != nil || err != nil {
		t.Errorf("without a report: %v, %v", r, err)
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("id", "some-boot\n")
	write("boot.json", `{"version":"7","slot":"a","more":1,"steps":[{"step":"unlock","ns":5,"error":"no"}]}`)
	if err := os.Mkdir(filepath.Join(dir, "open"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := p.Note(e); err != nil {
		t.Fatal(err)
	}
	if all, err := p.Journal(); err != nil || len(all) != 1 || all[0].Boot != "some-boot" || all[0].Reason != "a test" {
		t.Errorf("%+v, %v", all, err)
	}
	if r, err := p.Boot(); err != nil || r.Version != "7" || len(r.Steps) != 1 || r.Steps[0].Error != "no" {
		t.Errorf("%+v, %v", r, err)
	}
	release, err := p.Alone()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Alone(); !errors.Is(err, ErrBusy) {
		t.Errorf("two at once: %v", err)
	}
	release()
	for range 2 {
		if release, err = p.Alone(); err != nil {
			t.Fatal(err)
		}
		release()
	}
	write("boot.json", "{")
	if _, err := p.Boot(); err == nil {
		t.Error("half a report was taken")
	}
}
