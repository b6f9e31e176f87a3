package machine

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/keynote"
	"halogenos.internal/boot/layout"
	"halogenos.internal/initagent/changes"
	"halogenos.internal/initagent/upper"
	"halogenos.internal/uroot-cmds/ota/otatest"
)

// name gives a UKI on the ESP another name.
func (b *box) name(from, to string) {
	b.t.Helper()
	dir := filepath.Join(b.dir, "esp", bls.Directory)
	must(b.t, os.Rename(filepath.Join(dir, from), filepath.Join(dir, to)))
}

func TestBless(t *testing.T) {
	for before, after := range map[string]string{
		"test-os_2+2-1.efi": "test-os_1.efi test-os_2.efi",
		"test-os_2+0-3.efi": "test-os_1.efi test-os_2.efi", // its last try
		"test-os_2+3.efi":   "test-os_1.efi test-os_2.efi",
		"test-os_2.efi":     "test-os_1.efi test-os_2.efi",
	} {
		w := newWorld(t)
		if before != "test-os_2.efi" {
			w.name("test-os_2.efi", before)
		}
		trial := before != "test-os_2.efi"
		b, err := w.m.Bless()
		if err != nil || b.Already == trial || b.Version != 2 || b.Slot != layout.SlotA || w.ukis() != after {
			t.Errorf("%s: %+v, %v, %s", before, b, err, w.ukis())
		}
		// Once more: nothing is mounted, nothing is written.
		w.mounted = 0
		b, err = w.m.Bless()
		if err != nil || !b.Already || w.mounted > 0 || w.ukis() != after {
			t.Errorf("%s, again: %+v, %v, mounted %d times", before, b, err, w.mounted)
		}
		if want := map[bool]string{true: "blessed 2"}[trial]; w.kinds() != want {
			t.Errorf("journal %q, want %q", w.kinds(), want)
		}
		note, _ := os.ReadFile(w.path(filepath.Join(stateDirectory, upper.Note)))
		if want := w.two.Contract.Root().String() + "\n"; string(note) != want {
			t.Errorf("%s: note %q, want %q", before, note, want)
		}
	}
}

// noteStuck keeps the note from being written until it is called.
func (w *world) noteStuck() (free func()) {
	fresh := filepath.Join(stateDirectory, upper.Note+".new")
	w.write(filepath.Join(fresh, "x"), nil)
	return func() { must(w.t, os.RemoveAll(w.path(fresh))) }
}

// The note that a system's state counts could not be written at its bless. The next bless
// writes it, and so does the rollback, which is refused where it cannot.
func TestBlessWithoutNote(t *testing.T) {
	noted := func(w *world) bool {
		note, _ := os.ReadFile(w.path(filepath.Join(stateDirectory, upper.Note)))
		return string(note) == w.two.Contract.Root().String()+"\n"
	}
	w := newWorld(t)
	w.name("test-os_2.efi", "test-os_2+2-1.efi")
	free := w.noteStuck()
	for _, already := range []bool{false, true} {
		if b, err := w.m.Bless(); err != nil || b.Already != already || !strings.Contains(b.Warning, "is lost") || noted(w) {
			t.Errorf("%+v, %v", b, err)
		}
	}
	if r, err := w.m.GiveUp("no"); err == nil || !strings.Contains(err.Error(), "is not given up") || w.ukis() != "test-os_1.efi test-os_2.efi" {
		t.Errorf("%+v, %v, %s", r, err, w.ukis())
	}
	free()
	if b, err := w.m.Bless(); err != nil || !b.Already || b.Warning != "" || !noted(w) {
		t.Errorf("%+v, %v", b, err)
	}
	must(t, os.Remove(w.path(filepath.Join(stateDirectory, upper.Note))))
	if r, err := w.m.GiveUp("no"); err != nil || r.Trial || !noted(w) {
		t.Errorf("%+v, %v", r, err)
	}
}

// A trial that is given up has no state that counts.
func TestGiveUpTrialWithoutNote(t *testing.T) {
	w := newWorld(t)
	w.name("test-os_2.efi", "test-os_2+1-2.efi")
	defer w.noteStuck()()
	if r, err := w.m.GiveUp("no"); err != nil || !r.Trial {
		t.Errorf("%+v, %v", r, err)
	}
}

// A bless that the ESP does not take leaves no note: the system is on trial still.
func TestBlessWithoutESP(t *testing.T) {
	w := newWorld(t)
	w.name("test-os_2.efi", "test-os_2+2-1.efi")
	w.cut = 0
	if b, err := w.m.Bless(); !errors.Is(err, errCut) {
		t.Errorf("%+v, %v", b, err)
	}
	if _, err := os.Lstat(w.path(filepath.Join(stateDirectory, upper.Note))); err == nil {
		t.Error("the note is there")
	}
}

// FAULTS 45
func TestBlessTwoNames(t *testing.T) {
	w := newWorld(t)
	w.write(filepath.Join("esp", bls.Directory, "test-os_2+3.efi"), w.two.UKI)
	if b, err := w.m.Bless(); err != nil || b.Already || w.ukis() != "test-os_1.efi test-os_2.efi" {
		t.Errorf("%+v, %v, %s", b, err, w.ukis())
	}
	w.write(filepath.Join("esp", bls.Directory, "test-os_2+3.efi"), w.one.UKI)
	if b, err := w.m.Bless(); err == nil || !strings.Contains(err.Error(), "not the same") {
		t.Errorf("%+v, %v, %s", b, err, w.ukis())
	}
	must(t, os.RemoveAll(w.path("esp/EFI/Linux")))
	must(t, os.MkdirAll(w.path("esp/EFI/Linux"), 0o755))
	if b, err := w.m.Bless(); err == nil || !strings.Contains(err.Error(), "has no boot file (UKI) of version 2") {
		t.Errorf("%+v, %v", b, err)
	}
}

// A blessing that the journal cannot be told of is one.
func TestBlessWithoutJournal(t *testing.T) {
	w := newWorld(t)
	w.name("test-os_2.efi", "test-os_2+1.efi")
	must(t, os.RemoveAll(w.path(stateDirectory)))
	if b, err := w.m.Bless(); err != nil || b.Warning == "" || w.ukis() != "test-os_1.efi test-os_2.efi" {
		t.Errorf("%+v, %v, %s", b, err, w.ukis())
	}
}

func TestUnhealthy(t *testing.T) {
	w := newWorld(t)
	w.name("test-os_2.efi", "test-os_2+1-1.efi")
	if _, err := w.m.Unhealthy("no network"); err != nil || w.kinds() != "unhealthy 2" || w.ukis() != "test-os_1.efi test-os_2+1-1.efi" {
		t.Errorf("%v, %s, %s", err, w.kinds(), w.ukis())
	}
}

func TestGiveUp(t *testing.T) {
	type want struct {
		given, next string
		restart     bool
		ukis        string
		err         string
	}
	for name, c := range map[string]struct {
		change func(w *world)
		want   want
	}{
		"the running system": {func(*world) {}, want{"2", "1", true, "test-os_1.efi test-os_2+0.efi", ""}},
		"a running trial":    {func(w *world) { w.name("test-os_2.efi", "test-os_2+1-2.efi") }, want{"2", "1", true, "test-os_1.efi test-os_2+0-2.efi", ""}},
		"a staged release": {func(w *world) {
			w.write(filepath.Join(stateDirectory, stagedFile), []byte(`{"format":1,"version":"3","slot":"b"}`))
		}, want{"3", "2", false, "test-os_1.efi test-os_2.efi", ""}},
		"a trial that has not begun": {func(w *world) {
			w.install(layout.SlotB, w.three, "test-os_3+3.efi")
			must(w.t, os.Remove(w.path("esp/EFI/Linux/test-os_1.efi")))
		}, want{"3", "2", false, "test-os_2.efi test-os_3+0.efi", ""}},
		"nothing to go back to": {func(w *world) { must(w.t, os.Remove(w.path("esp/EFI/Linux/test-os_1.efi"))) },
			want{err: "slot b is empty"}},
		"a bad one": {func(w *world) { w.name("test-os_1.efi", "test-os_1+0-3.efi") }, want{err: "no tries left"}},
		"one whose tree is not there": {func(w *world) {
			w.writeTable(layout.Rename(w.table(), layout.SlotB, layout.SystemUUID(w.one.Contract.Root()), w.table().Disk))
		}, want{err: "verity tree is not complete"}},
		"one under the floor": {func(w *world) {
			w.two.Contract.Epoch = 1
			w.boot(layout.SlotA, w.two)
		}, want{err: "its keys stay locked"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			c.change(w)
			before := w.ukis()
			r, err := w.m.GiveUp("too loud")
			if c.want.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.want.err) || w.ukis() != before || w.kinds() != "" {
					t.Errorf("%+v, %v, %s, %s", r, err, w.ukis(), w.kinds())
				}
				return
			}
			if err != nil || r.Given.String() != c.want.given || r.Next.String() != c.want.next || r.Restart != c.want.restart || w.ukis() != c.want.ukis {
				t.Fatalf("%+v, %v, %s", r, err, w.ukis())
			}
			if r.Trial != (name == "a running trial") {
				t.Errorf("trial is %v", r.Trial)
			}
			if w.kinds() != "rollback "+c.want.given {
				t.Errorf("journal %s", w.kinds())
			}
			if _, err := os.Stat(w.path(filepath.Join(stateDirectory, stagedFile))); err == nil {
				t.Error("staged.json is still there")
			}
		})
	}
}

func TestStatus(t *testing.T) {
	w := newWorld(t)
	for range 12 {
		w.journal(journal.Entry{Kind: journal.Boot, Version: 2})
	}
	w.journal(journal.Entry{Kind: journal.Failed, Version: 3, Reason: "it never reached the system"})
	w.corrupt, w.waiting = true, changes.Waiting{Conflicts: []string{"/etc/hosts"}, LeftOut: []string{"/var/x"}}
	must(t, os.MkdirAll(w.path(filepath.Join(stateDirectory, "fetch/4")), 0o700))
	w.write("etc/halogen/ota.conf", []byte("Server=https://me:secret@example.org/x\nChannel=beta\n"))
	s, err := w.m.Status(t.Context())
	must(t, err)
	if s.Version != 2 || s.Slot != layout.SlotA || s.Trial || !s.Signed || !s.Corrupt || len(s.Systems) != 2 || s.Failed[3] == "" ||
		s.Channel != "beta" || s.Server != "https://example.org/x" || len(s.Journal) != entriesShown || s.Fetching != 4 || len(s.Warnings) != 1 ||
		!slices.Equal(s.Conflicts, w.waiting.Conflicts) || !slices.Equal(s.LeftOut, w.waiting.LeftOut) {
		t.Errorf("%+v", s)
	}
	unsigned := otatest.Make(t, otatest.Spec{Version: 5, Image: otatest.Image(20, 1, 0, 0)})
	w.install(layout.SlotA, unsigned, "test-os_5+2.efi")
	w.boot(layout.SlotA, unsigned)
	w.write(filepath.Join(stateDirectory, stagedFile), []byte(`{"format":1,"version":"9","slot":"b"}`))
	s, err = w.m.Status(t.Context())
	if err != nil || s.Signed || !s.Trial || !strings.Contains(strings.Join(s.Warnings, " "), "unsigned") || s.Staged == nil || s.Staged.Version != 9 {
		t.Errorf("%+v, %v", s, err)
	}
	w.write(filepath.Join(stateDirectory, keynote.Name), []byte(`{"format":1,"unconfirmed":true,"shown":3}`))
	if s, err = w.m.Status(t.Context()); err != nil || !strings.Contains(strings.Join(s.Warnings, " "), "halogenctl recovery-key new") {
		t.Errorf("an unconfirmed recovery key: %q, %v", s.Warnings, err)
	}
	w.write(filepath.Join(stateDirectory, keynote.Name), []byte(`{"format":9}`))
	if s, err = w.m.Status(t.Context()); err != nil || strings.Contains(strings.Join(s.Warnings, " "), "recovery key") {
		t.Errorf("a note of a later release: %q, %v", s.Warnings, err)
	}
}

// Without its parts a machine still says what it knows.
func TestStatusOfAWreck(t *testing.T) {
	w := newWorld(t)
	must(t, os.RemoveAll(w.path("esp")))
	must(t, os.RemoveAll(w.path(stateDirectory)))
	w.write("etc/halogen/ota.conf", []byte("Channel=nightly\n"))
	w.m.Corrupt = func() (bool, error) { return false, os.ErrPermission }
	w.m.Waiting = func() (w changes.Waiting, err error) { return w, errors.New("a damaged list") }
	s, err := w.m.Status(t.Context())
	if err != nil || s.Version != 2 || len(s.Warnings) != 5 {
		t.Errorf("%+v, %v", s, err)
	}
	must(t, os.Remove(w.path(reportFile)))
	if _, err := w.m.Status(t.Context()); err == nil || !strings.Contains(err.Error(), "this system was not started by HalogenOS") {
		t.Errorf("%v", err)
	}
}

func TestChannel(t *testing.T) {
	w := newWorld(t)
	w.write("etc/halogen/ota.conf", []byte("# mine\nServer=/srv\nOther=1\n"))
	must(t, w.m.SetChannel("alpha"))
	if got := w.read("etc/halogen/ota.conf"); got != "# mine\nServer=/srv\nOther=1\nChannel=alpha\n" {
		t.Errorf("ota.conf is %q", got)
	}
	must(t, os.Chmod(w.path("etc/halogen/ota.conf"), 0o600))
	must(t, w.m.SetChannel("beta"))
	if info, err := os.Stat(w.path("etc/halogen/ota.conf")); err != nil || info.Mode() != 0o600 {
		t.Errorf("ota.conf, which root alone could read, is %v now: %v", info, err)
	}
	must(t, os.RemoveAll(w.path("etc/halogen")))
	must(t, w.m.SetChannel("beta"))
	if s, err := w.m.Settings(); err != nil || s.Channel != "beta" {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestVerityStatus(t *testing.T) {
	answer := func(kind, status string, targets uint32) []byte {
		b := dmRequest("system")
		binary.LittleEndian.PutUint32(b[dmOffTargets:], targets)
		copy(b[dmHeaderSize+24:], kind)
		copy(b[dmHeaderSize+dmTargetSize:], status)
		return b
	}
	for _, c := range []struct {
		b       []byte
		corrupt bool
		want    string
	}{
		{answer("verity", "V", 1), false, ""},
		{answer("verity", "C", 1), true, ""},
		{answer("verity", "V -", 1), false, ""},
		{answer("linear", "V", 1), false, ErrNotOpen.Error()},
		{answer("verity", "X", 1), false, "want V or C"},
		{answer("verity", "V", 2), false, "one target"},
	} {
		corrupt, err := dmStatus(c.b)
		if corrupt != c.corrupt || (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, %v, want %v, %q", corrupt, err, c.corrupt, c.want)
		}
	}
	b := answer("verity", "V", 1)
	binary.LittleEndian.PutUint32(b[dmOffStart:], 0xffffffff)
	if _, err := dmStatus(b); err == nil {
		t.Error("an answer beyond its buffer was read")
	}
	if _, err := verityCorrupt(filepath.Join(t.TempDir(), "control"), "system"); err != ErrNotOpen {
		t.Errorf("without a device mapper: %v", err)
	}
}
