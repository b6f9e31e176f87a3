package esp

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/uki/ukitest"
	"halogenos.internal/initagent/hw"
)

// store is a root partition.
type store struct {
	hw.Store
	files map[string][]byte
	fails error // of Keep
	reads error
}

func (s *store) Read(name string, limit int64) ([]byte, error) {
	b, ok := s.files[name]
	switch {
	case s.reads != nil:
		return nil, s.reads
	case !ok:
		return nil, fs.ErrNotExist
	case int64(len(b)) > limit:
		return nil, hw.ErrUnfit
	}
	return bytes.Clone(b), nil
}

func (s *store) Keep(name string, data []byte) error {
	if s.fails == nil {
		s.files[name] = bytes.Clone(data)
	}
	return s.fails
}

func (s *store) Remove(name string) error                { delete(s.files, name); return nil }
func (s *store) MakeDirectory(string, fs.FileMode) error { return nil }

// testESP is a disk as a Keeper sees it.
type testESP struct {
	*disk
	tangled map[string][]uint32 // clusters of files; nil: every file has its own
	damaged map[string]bool     // files that cannot be read
	loose   string              // a file whose clusters lead somewhere else behind its end
	dirty   bool
	repairs []string
	refuses error
}

func (e *testESP) Read(_ hw.Disk, read func(fs.FS) error) error {
	m := fstest.MapFS{}
	for name, data := range e.files {
		m[name] = &fstest.MapFile{Data: data}
	}
	return read(espFiles{m, e})
}

func (e *testESP) Write(_ hw.Disk, write func(hw.ESPDir) error) error {
	if e.refuses != nil {
		return e.refuses
	}
	return write(e.disk)
}

func (e *testESP) Repair(_ hw.Disk, names []string) (int64, error) {
	e.repairs = append(e.repairs, names...)
	for _, name := range names {
		delete(e.files, name)
		delete(e.tangled, name)
		delete(e.damaged, name)
		if e.loose == name {
			e.loose = ""
		}
	}
	return 0, nil
}

func (*testESP) Exchange(hw.Disk, string, string) error { return errors.ErrUnsupported }

type espFiles struct {
	fstest.MapFS
	e *testESP
}

func (f espFiles) Dirty() bool { return f.e.dirty }

func (f espFiles) Open(name string) (fs.File, error) {
	if f.e.damaged[name] {
		return nil, errors.New("chain of clusters is broken")
	}
	return f.MapFS.Open(name)
}

func (f espFiles) Clusters(name string) ([]uint32, error) {
	if f.e.damaged[name] || f.e.loose == name {
		return nil, errors.New("chain of clusters is broken")
	}
	return f.e.tangled[name], nil
}

func image(t *testing.T, version contract.Version) []byte {
	t.Helper()
	first, err := contract.Archive(&contract.Contract{
		Format: contract.Format, ImageID: "os", Arch: "x86_64", Version: version, Salt: []byte{1}, ImageSize: 4096, SlotSize: 8 << 20,
		SecureBoot: contract.Optional, TPM: contract.Optional, VendorKeys: contract.VendorAuto, RootFileSystem: "ext4", RootHash: bytes.Repeat([]byte{byte(version)}, 32),
	})
	if err != nil {
		t.Fatal(err)
	}
	return ukitest.Image(ukitest.Section{Name: ".initrd", Data: first})
}

func manager(version string) []byte {
	return ukitest.Image(ukitest.Section{Name: ".text", Data: []byte("boot manager " + version)})
}

var start = time.Date(2026, 11, 23, 9, 0, 0, 0, time.UTC)

// kept is a machine without keys of its own whose ESP has its copies.
func kept(t *testing.T) (*Keeper, *testESP, *store) {
	t.Helper()
	e := &testESP{disk: newDisk(), damaged: map[string]bool{}}
	for name, data := range map[string][]byte{
		layout.RemovableManager: manager("1"), layout.Manager: manager("1"), layout.LoaderConf: []byte("timeout 0\n"),
		"EFI/Linux/os_1.efi": image(t, 1), "EFI/Linux/os_2.efi": image(t, 2), "EFI/Linux/os_3+2-1.efi": image(t, 3),
	} {
		e.files[name] = data
	}
	s := &store{files: map[string][]byte{}}
	k := &Keeper{Store: s, Directory: "copies", ImageID: "os", Belongs: func(*contract.Contract) error { return nil }, Now: start, Say: t.Logf}
	if found := mustLook(t, k, e); !slices.Equal(found, []string{"there are no copies of it yet"}) {
		t.Fatalf("at first: %q", found)
	}
	if healed, err := k.Mend(e, hw.Disk{}); err != nil || len(healed) > 0 || len(e.ops) > 0 {
		t.Fatalf("the first time: %q, %v, and it did %q", healed, err, e.ops)
	}
	if found := mustLook(t, k, e); len(found) > 0 {
		t.Fatalf("after it: %q", found)
	}
	if want := []string{"copies/bootx64.efi", "copies/index.json", "copies/loader.conf", "copies/os_1.efi", "copies/os_2.efi", "copies/systemd-bootx64.efi"}; !slices.Equal(slices.Sorted(maps.Keys(s.files)), want) {
		t.Fatalf("copies %q", slices.Sorted(maps.Keys(s.files)))
	}
	return k, e, s
}

func mustLook(t *testing.T, k *Keeper, e *testESP) (found []string) {
	t.Helper()
	if err := e.Read(hw.Disk{}, func(files fs.FS) (err error) { found, err = k.Look(files); return err }); err != nil {
		t.Fatal(err)
	}
	return found
}

// Where no keys tell a sound file from a damaged one, it is what it was. FAULTS 48
func TestMendWithoutKeys(t *testing.T) {
	const uki1 = "EFI/Linux/os_1.efi"
	for _, c := range []struct {
		name  string
		set   func(k *Keeper, e *testESP, s *store)
		found string // by a look, or "" where only reading all finds it
		want  func(t *testing.T, good map[string][]byte, e *testESP, s *store)
	}{
		{"a UKI of another content", func(_ *Keeper, e *testESP, _ *store) { e.files[uki1] = append(manager("x"), 0) }, "os_1.efi has", nil},
		{"one bit", func(_ *Keeper, e *testESP, _ *store) {
			e.files[uki1] = bytes.Clone(e.files[uki1])
			e.files[uki1][1500] ^= 1
		}, "", nil},
		{"a UKI of another version", func(_ *Keeper, e *testESP, _ *store) { e.files[uki1] = e.files["EFI/Linux/os_2.efi"] }, "", nil},
		{"the boot manager of one path", func(_ *Keeper, e *testESP, _ *store) { e.files[layout.RemovableManager] = manager("2 and later") }, "", nil},
		{"the boot manager of both paths: it is a new one", func(_ *Keeper, e *testESP, _ *store) {
			e.files[layout.RemovableManager], e.files[layout.Manager] = manager("2 and later"), manager("2 and later")
		}, "", func(t *testing.T, _ map[string][]byte, e *testESP, s *store) {
			if !bytes.Equal(e.files[layout.RemovableManager], manager("2 and later")) || !bytes.Equal(s.files["copies/bootx64.efi"], manager("2 and later")) {
				t.Error("it is not taken over")
			}
		}},
		{"a file that cannot be read", func(_ *Keeper, e *testESP, _ *store) { e.damaged[uki1] = true }, "os_1.efi cannot be read", func(t *testing.T, good map[string][]byte, e *testESP, _ *store) {
			if !slices.Equal(e.repairs, []string{uki1}) || !maps.EqualFunc(e.files, good, bytes.Equal) {
				t.Errorf("forgotten %q, files %q", e.repairs, e.names())
			}
		}},
		{"a file that can be read, but not followed", func(_ *Keeper, e *testESP, _ *store) { e.loose = uki1 }, "os_1.efi cannot be read", func(t *testing.T, good map[string][]byte, e *testESP, _ *store) {
			if !slices.Equal(e.repairs, []string{uki1}) || !maps.EqualFunc(e.files, good, bytes.Equal) {
				t.Errorf("forgotten %q, files %q", e.repairs, e.names())
			}
		}},
		{"two names of one content", func(_ *Keeper, e *testESP, _ *store) {
			e.files["EFI/Linux/os_1+1-2.efi"] = e.files[uki1]
			e.tangled = map[string][]uint32{uki1: {5, 6}, "EFI/Linux/os_1+1-2.efi": {5, 6}}
		}, "lie in the same place", func(t *testing.T, good map[string][]byte, e *testESP, _ *store) {
			if !slices.Equal(e.repairs, []string{"EFI/Linux/os_1+1-2.efi"}) || !maps.EqualFunc(e.files, good, bytes.Equal) || len(e.ops) > 0 {
				t.Errorf("forgotten %q, files %q, did %q", e.repairs, e.names(), e.ops)
			}
		}},
		{"the boot manager's paths in one place", func(_ *Keeper, e *testESP, _ *store) {
			e.tangled = map[string][]uint32{layout.RemovableManager: {5, 6}, layout.Manager: {6, 7}}
		}, "lie in the same place", nil},
		{"settings that the owner has changed", func(_ *Keeper, e *testESP, _ *store) { e.files[layout.LoaderConf] = []byte("timeout 5\n# mine\n") }, "loader.conf has", func(t *testing.T, _ map[string][]byte, e *testESP, s *store) {
			if string(s.files["copies/loader.conf"]) != "timeout 5\n# mine\n" || len(e.ops) > 0 {
				t.Errorf("copy %q, did %q", s.files["copies/loader.conf"], e.ops)
			}
		}},
		{"settings that are not text", func(_ *Keeper, e *testESP, _ *store) { e.files[layout.LoaderConf] = make([]byte, 100) }, "loader.conf has", nil},
		{"a copy that was lost", func(_ *Keeper, e *testESP, s *store) { delete(s.files, "copies/os_1.efi") }, "", nil},
		{"an index that is malformed", func(_ *Keeper, _ *testESP, s *store) { s.files["copies/index.json"] = []byte("{") }, "is malformed", nil},
		{"an index that names what is none of ours", func(_ *Keeper, _ *testESP, s *store) {
			s.files["copies/index.json"] = bytes.ReplaceAll(s.files["copies/index.json"], []byte("loader/loader.conf"), []byte("../../../etc/shadow"))
		}, "is malformed", nil},
		{"an index that is too large", func(_ *Keeper, _ *testESP, s *store) { s.files["copies/index.json"] = make([]byte, maxIndex+1) }, "is malformed", nil},
		{"a cut while it was written to", func(_ *Keeper, e *testESP, _ *store) { e.dirty = true }, "the power was cut", nil},
		{"a clock that was set back", func(k *Keeper, _ *testESP, _ *store) { k.Now = start.AddDate(-1, 0, 0) }, "not read for a week", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			k, e, s := kept(t)
			good, copies := maps.Clone(e.files), maps.Clone(s.files)
			c.set(k, e, s)
			found := strings.Join(mustLook(t, k, e), "; ")
			if c.found == "" != (found == "") || !strings.Contains(found, c.found) {
				t.Errorf("a look finds %q, want %q", found, c.found)
			}
			if _, err := k.Mend(e, hw.Disk{}); err != nil {
				t.Fatal(err)
			}
			if c.want != nil {
				c.want(t, good, e, s)
			} else {
				delete(copies, "copies/index.json")
				for name := range copies {
					if !bytes.Equal(s.files[name], copies[name]) {
						t.Errorf("%s is another one", name)
					}
				}
				if !maps.EqualFunc(e.files, good, bytes.Equal) {
					t.Errorf("files %q, want %q", e.names(), slices.Sorted(maps.Keys(good)))
				}
			}
			if found := mustLook(t, k, e); len(found) > 0 {
				t.Errorf("after mending a look finds %q", found)
			}
		})
	}
}

// What cannot be mended is said, is not taken for whole, and costs nothing else;
// and it does not have everything read at each boot. FAULTS 47, 82
func TestCannotMend(t *testing.T) {
	k, e, s := kept(t)
	good := maps.Clone(e.files)
	delete(e.files, "EFI/Linux/os_1.efi")
	delete(e.files, layout.LoaderConf)
	e.free = slack + 100 // the settings fit, the UKI does not
	if healed, err := k.Mend(e, hw.Disk{}); !errors.Is(err, ErrNoRoom) || len(healed) != 1 || e.files[layout.LoaderConf] == nil {
		t.Errorf("too little room: %q, %v, files %q", healed, err, e.names())
	}
	if found := mustLook(t, k, e); len(found) != 2 || found[0] != "EFI/Linux/os_1.efi is gone" {
		t.Errorf("a look finds %q", found)
	}
	e.free = 100 << 20
	e.refuses = syscall.EROFS
	if _, err := k.Mend(e, hw.Disk{}); !errors.Is(err, syscall.EROFS) {
		t.Errorf("read-only: %v", err)
	}
	e.refuses = nil
	if _, err := k.Mend(e, hw.Disk{}); err != nil || !maps.EqualFunc(e.files, good, bytes.Equal) {
		t.Errorf("later: %v, files %q", err, e.names())
	}

	// One bit, found by the weekly reading, and no room for the new file: it is not
	// forgotten until the next week.
	e.files["EFI/Linux/os_1.efi"] = bytes.Clone(e.files["EFI/Linux/os_1.efi"])
	e.files["EFI/Linux/os_1.efi"][1500] ^= 1
	e.refuses = syscall.EROFS
	if _, err := k.Mend(e, hw.Disk{}); !errors.Is(err, syscall.EROFS) || len(mustLook(t, k, e)) == 0 {
		t.Errorf("read-only: %v, and a look finds %q", err, mustLook(t, k, e))
	}
	e.refuses = nil
	if _, err := k.Mend(e, hw.Disk{}); err != nil || !maps.EqualFunc(e.files, good, bytes.Equal) || len(mustLook(t, k, e)) > 0 {
		t.Errorf("later: %v, files %q", err, e.names())
	}

	// Damaged, and no copy: this is said once, and then only when it changes.
	delete(s.files, "copies/os_1.efi")
	e.files["EFI/Linux/os_1.efi"] = []byte("MZ")
	if _, err := k.Mend(e, hw.Disk{}); err == nil || !strings.Contains(err.Error(), "os_1.efi is damaged") {
		t.Errorf("no copy: %v", err)
	}
	if found := mustLook(t, k, e); len(found) > 0 {
		t.Errorf("a look finds %q", found)
	}
	e.files["EFI/Linux/os_1.efi"] = good["EFI/Linux/os_1.efi"]
	if found := mustLook(t, k, e); len(found) != 1 {
		t.Errorf("a look finds %q", found)
	}
	if _, err := k.Mend(e, hw.Disk{}); err != nil || s.files["copies/os_1.efi"] == nil {
		t.Errorf("once it is good: %v", err)
	}

	// A root partition that is full, or cannot be read.
	s.fails = syscall.ENOSPC
	e.files["EFI/Linux/os_4.efi"] = image(t, 4)
	if _, err := k.Mend(e, hw.Disk{}); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("no room for a copy: %v", err)
	}
	s.fails, s.reads = nil, syscall.EIO
	if _, err := k.Mend(e, hw.Disk{}); !errors.Is(err, syscall.EIO) {
		t.Errorf("the index cannot be read: %v", err)
	}
	s.reads = nil
	if found := mustLook(t, k, e); len(found) != 1 {
		t.Errorf("a look finds %q", found)
	}
}

// Counters are no file's business but the boot manager's: what is put back is
// blessed or nothing, and of two names the one with fewer tries stays. FAULTS 45
func TestDoubles(t *testing.T) {
	for have, want := range map[string]string{
		"os_5.efi os_5+3.efi os_5+0-3.efi": "os_5.efi",
		"os_5+3.efi os_5+2-1.efi":          "os_5+2-1.efi",
		"os_5+2-1.efi os_5+0-2.efi":        "os_5+0-2.efi",
		"os_5+0-9.efi os_5+0-3.efi":        "os_5+0-3.efi",
	} {
		k, e, _ := kept(t)
		for name := range strings.FieldsSeq(have) {
			e.files[path.Join(bls.Directory, name)] = image(t, 5)
		}
		if _, err := k.Mend(e, hw.Disk{}); err != nil {
			t.Fatal(err)
		}
		var left []string
		for _, name := range e.names() {
			if strings.HasPrefix(name, "os_5") {
				left = append(left, name)
			}
		}
		if fmt.Sprint(left) != "["+want+"]" {
			t.Errorf("%s: left are %q", have, left)
		}
	}
	// One that is blessed by name and damaged takes none with it.
	k, e, _ := kept(t)
	e.files["EFI/Linux/os_5.efi"], e.files["EFI/Linux/os_5+3.efi"] = []byte("MZ"), image(t, 5)
	if _, err := k.Mend(e, hw.Disk{}); err == nil || e.files["EFI/Linux/os_5+3.efi"] == nil {
		t.Errorf("%v, files %q", err, e.names())
	}
}

func FuzzIndex(f *testing.F) {
	f.Add([]byte(`{"format":1,"checked":"2026-11-23T09:00:00Z","copies":[{"name":"EFI/Linux/os_1.efi","size":3,"sha256":"` + strings.Repeat("00", 32) + `"}]}`))
	f.Add([]byte(`{"format":1,"copies":[{"name":"../x","size":-1,"sha256":""}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		e := &testESP{disk: newDisk("os_1.efi")}
		s := &store{files: map[string][]byte{"copies/index.json": text}}
		k := &Keeper{Store: s, Directory: "copies", ImageID: "os", Belongs: func(*contract.Contract) error { return nil }, Now: start, Say: t.Logf}
		_ = e.Read(hw.Disk{}, func(files fs.FS) error { _, err := k.Look(files); return err })
		if _, err := k.Mend(e, hw.Disk{}); err != nil && !strings.Contains(err.Error(), "damaged") {
			t.Error(err)
		}
		for name := range s.files {
			if path.Dir(name) != "copies" {
				t.Errorf("it wrote %s", name)
			}
		}
	})
}
