package agent

import (
	"bytes"
	mrand "math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/layout"
	"halogenos.internal/initagent/bootjournal"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootpart"
)

// Repair implements hw.ESP.
func (e *memESP) Repair(_ hw.Disk, names []string) (int64, error) {
	for _, name := range names {
		e.op("esp forget " + name)
		f, err := e.get(name)
		if err != nil {
			return 0, err
		}
		f.now = remains{absent: true}
		f.disk = []remains{f.now}
	}
	return 0, nil
}

// files are the names and contents of the ESP.
func (m *machine) files() map[string][]byte {
	files := map[string][]byte{}
	for name, f := range m.esp.files {
		if !f.now.absent {
			files[name] = f.now.data
		}
	}
	return files
}

// setFile puts a file on the ESP; nil takes it away.
func (m *machine) setFile(name string, data []byte) {
	r := remains{data: data, absent: data == nil}
	m.esp.files[name] = &espFile{r, []remains{r}}
}

func (m *machine) entries() []journal.Entry {
	return journal.Parse(m.volumes[*m.openVolume][bootjournal.File])
}

// kinds are those of the journal's entries.
func (m *machine) kinds() (kinds []journal.Kind) {
	for _, e := range m.entries() {
		kinds = append(kinds, e.Kind)
	}
	return kinds
}

func uki1() string { return path.Join(bls.Directory, "test_1.efi") }

func flipped(data []byte) []byte {
	out := bytes.Clone(data)
	out[len(out)/2] ^= 1
	return out
}

// What the ESP loses is put back at the next boot. FAULTS 47, 48
func TestMend(t *testing.T) {
	m := provisionedMachine(t, pinned)
	m.bootEntry = true
	m.fetch(newRelease(t, 2, 5, pinned))
	m.runs(2)
	m.bless()
	m.runs(2, "mend", "test_2.efi is copied")
	good := m.files()
	for _, c := range []struct {
		name, file string
		damage     func([]byte) []byte
		says       string
	}{
		{"the fallback is gone", uki1(), nil, "test_1.efi was gone, and is put back"},
		{"the fallback is damaged", uki1(), func(b []byte) []byte { return b[:len(b)-1000] }, "test_1.efi was damaged"},
		{"the boot manager is gone", removable, nil, "BOOTX64.EFI was gone"},
		{"the boot manager's other path is gone", managerCopy, nil, "systemd-bootx64.efi was gone"},
		{"the boot manager is damaged", removable, func(b []byte) []byte { return b[:len(b)-1] }, "BOOTX64.EFI was damaged"},
		{"the boot manager is empty", removable, func(b []byte) []byte { return []byte{} }, "BOOTX64.EFI was damaged"},
		{"its settings are gone", "loader/loader.conf", nil, "loader.conf was gone"},
		{"half a file was left", uki1() + ".part", func([]byte) []byte { return []byte("MZ") }, "left behind"},
		{"a note was left", removable + ".signing", func([]byte) []byte { return []byte("x") }, "left behind"},
		{"two names of a version", path.Join(bls.Directory, "test_1+2-1.efi"), func([]byte) []byte { return good[uki1()] }, "besides the one that counts"},
		{"two names, and the wrong one is damaged", path.Join(bls.Directory, "test_1+0-3.efi"), func([]byte) []byte { return []byte("x") }, "besides the one that counts"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m.t = t
			var data []byte
			if c.damage != nil {
				data = c.damage(m.files()[c.file])
			}
			m.setFile(c.file, data)
			m.ends("system", c.says)
			if have := m.files(); !same(have, good) {
				t.Errorf("files are %q, want %q", names(have), names(good))
			}
			if kinds := m.kinds(); !slices.Contains(kinds[len(kinds)-3:], journal.Healed) {
				t.Errorf("the journal ends in %q", kinds[len(kinds)-3:])
			}
			m.ops = nil
			m.ends("system")
			if !slices.Equal(m.ops, []string{"root keep " + bootjournal.File}) {
				t.Errorf("the next boot writes %q", m.ops)
			}
		})
	}
	m.t = t
	m.onceAWeek(good)
}

// onceAWeek: what has the length it had is found when all is read.
func (m *machine) onceAWeek(good map[string][]byte) {
	m.t.Helper()
	m.setFile(uki1(), flipped(good[uki1()]))
	m.ends("system")
	if same(m.files(), good) {
		m.t.Error("an ordinary boot reads everything")
	}
	m.clock = m.clock.Add(8 * 24 * time.Hour)
	m.ends("system", "it was not read for a week", "test_1.efi was damaged")
	if !same(m.files(), good) {
		m.t.Error("it was not put back")
	}
	// Files of others are nobody's business but theirs.
	m.setFile("EFI/Linux/other.part", []byte("x"))
	m.setFile("EFI/Linux/other.efi.part.txt", []byte("x"))
	m.setFile("EFI/vendor/tool.part", []byte("x"))
	m.ends("system")
	if have := m.files(); have["EFI/vendor/tool.part"] == nil || have["EFI/Linux/other.efi.part.txt"] == nil {
		m.t.Errorf("files are %q", names(have))
	}
}

func same(a, b map[string][]byte) bool {
	return slices.Equal(names(a), names(b)) && !slices.ContainsFunc(names(a), func(n string) bool { return !bytes.Equal(a[n], b[n]) })
}

func names(files map[string][]byte) (names []string) {
	for name := range files {
		// What a boot keeps for later is compared elsewhere.
		if !strings.HasPrefix(path.Base(name), "eventlog-") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// What was given up is not put back. FAULTS 45, 47
func TestMendGivesUp(t *testing.T) {
	name1 := path.Join(bls.Directory, "test_1.efi")
	for _, c := range []struct {
		name string
		set  func(m *machine)
		want []string
	}{
		{"a trial that is lost", func(m *machine) {
			m.fetch(newRelease(m.t, 2, 5, pinned))
			m.boot()
			m.rename("test_2+3.efi", "")
		}, []string{"test_1.efi"}},
		{"a system that was given up", func(m *machine) {
			m.blessSecond()
			m.setFile(path.Join(bls.Directory, "test_1+0.efi"), m.files()[name1])
			m.setFile(name1, nil)
		}, []string{"test_1+0.efi", "test_2.efi"}},
		{"a slot that the fetcher has emptied", func(m *machine) {
			m.blessSecond()
			m.setFile(name1, nil)
			table, _, err := m.table()
			m.must(err)
			m.must(layout.Rename(table, layout.SlotA, gpt.MustGUID("12345678-1234-4234-8234-123456789abc"), gpt.MustGUID("12345678-1234-4234-8234-123456789abd")).Write(m.disk))
		}, []string{"test_2.efi"}},
		{"a copy that was changed", func(m *machine) {
			m.blessSecond()
			m.setFile(name1, nil)
			files := m.volumes[*m.openVolume]
			files[rootpart.Copies+"/test_1.efi"] = flipped(files[rootpart.Copies+"/test_1.efi"])
		}, []string{"test_2.efi"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := provisionedMachine(t, pinned)
			c.set(m)
			m.ends("system")
			for range 2 {
				m.ops = nil
				m.ends("system")
				var have []string
				for _, name := range names(m.files()) {
					if n, err := bls.Parse(path.Base(name)); err == nil && n.ImageID == "test" {
						have = append(have, n.String())
					}
				}
				if !slices.Equal(have, c.want) {
					t.Errorf("UKIs %q, want %q:\n%s", have, c.want, m.said.String())
				}
			}
			if !slices.Equal(m.ops, []string{"root keep " + bootjournal.File}) {
				t.Errorf("the boot after writes %q", m.ops)
			}
		})
	}
}

// blessSecond has version 2 fetched, blessed and copied.
func (m *machine) blessSecond() {
	m.t.Helper()
	m.fetch(newRelease(m.t, 2, 5, pinned))
	m.runs(2)
	m.bless()
	m.runs(2)
}

// The power is cut at every write of mending. The next boot comes up, and the
// ESP is whole in the end. A flush that is not made is noticed. FAULTS 47, 48
func TestCutMend(t *testing.T) {
	base := provisionedMachine(t, pinned)
	base.bootEntry = true
	base.blessSecond()
	good := base.files()
	cases := 0
	for name, damage := range map[string]func(m *machine){
		"fallback gone":        func(m *machine) { m.setFile(uki1(), nil) },
		"fallback damaged":     func(m *machine) { m.setFile(uki1(), []byte("MZ")) },
		"boot manager damaged": func(m *machine) { m.setFile(removable, []byte("MZ")) },
		"everything else is gone": func(m *machine) {
			m.setFile(uki1(), nil)
			m.setFile(managerCopy, nil)
			m.setFile("loader/loader.conf", nil)
		},
		"no copies": func(m *machine) {
			files := m.volumes[*m.openVolume]
			for name := range files {
				if strings.HasPrefix(name, rootpart.Copies) {
					delete(files, name)
				}
			}
		},
	} {
		start := func() {
			base.powerOn(base.world(true, nil))
			for name := range base.esp.files {
				base.setFile(name, good[name])
			}
			damage(base)
		}
		start()
		states, end := base.recordOnce(mrand.New(mrand.NewPCG(7, 8)))
		if end != "system" {
			t.Fatalf("%s: ends in %s:\n%s", name, end, base.said.String())
		}
		for _, s := range states {
			cases++
			base.powerOn(s.world)
			base.said.Reset()
			if end := base.run(); end != "system" {
				t.Fatalf("%s: %s: ends in %s:\n%s", name, s.how, end, base.said.String())
			}
			if have := base.files(); !same(have, good) {
				t.Fatalf("%s: %s: files %q, want %q:\n%s", name, s.how, names(have), names(good), base.said.String())
			}
		}
	}
	t.Logf("%d states after a cut", cases)
}

// An ESP that reports flushes which it has not made does not survive the same:
// the cuts look at what they say they do.
func TestCutMendNeedsFlushes(t *testing.T) {
	m := provisionedMachine(t, pinned)
	m.blessSecond()
	m.setFile(uki1(), []byte("MZ"))
	damaged, tried := m.world(true, nil), 0
	for seed := range uint64(20) {
		m.powerOn(damaged)
		m.esp.lying = true
		states, end := m.recordOnce(mrand.New(mrand.NewPCG(11, seed)))
		if end != "system" {
			t.Fatalf("ends in %s", end)
		}
		tried += len(states)
		for _, s := range states {
			m.powerOn(s.world)
			// Whole again by its length, and perhaps not by content, which nobody reads
			// for a week.
			if end := m.run(); end != "system" || !bytes.Equal(m.files()[uki1()], m.volumes[*m.openVolume][rootpart.Copies+"/test_1.efi"]) {
				return
			}
		}
	}
	t.Errorf("all of %d states are well", tried)
}
