package agent

import (
	"bytes"
	"path"
	"strings"
	"testing"

	"halogenos.internal/boot/fat"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/uki/ukitest"
	"halogenos.internal/initagent/fetched"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
)

// Exchange implements hw.ESP. What it exchanges must be on the disk.
func (e *memESP) Exchange(_ hw.Disk, a, b string) error {
	e.op("esp exchange " + a)
	if e.fails != nil {
		return e.fails
	}
	first, err := e.get(a)
	if err != nil {
		return err
	}
	second, err := e.get(b)
	if err != nil {
		return err
	}
	e.exchanged = append(e.exchanged, len(first.disk) == 1 && len(second.disk) == 1)
	if e.apart {
		return fat.ErrApart
	}
	e.files[a], e.files[b] = second, first
	return nil
}

var otherManager = ukitest.Image(ukitest.Section{Name: ".text", Data: []byte("a newer boot manager")})

// fetchManager delivers a release that brings this boot manager.
func (m *machine) fetchManager(r *edition, manager []byte) {
	m.t.Helper()
	r.manager = manager
	m.fetch(r)
}

// hasManager reports whether a name has a boot manager as this machine signs it.
func (m *machine) hasManager(name string, manager []byte) bool {
	return m.startable(name, manager) == nil
}

func (m *machine) onESP(name string) bool {
	_, err := m.esp.get(name)
	return err == nil
}

// A release's boot manager takes its place when the release has proven itself, and
// not before: the fallback is started by the one there is.
func TestBootManager(t *testing.T) {
	m := provisionedMachine(t, pinned)
	m.nextManager = otherManager
	m.fetchManager(newRelease(t, 2, 5, pinned), otherManager)
	m.runs(2)
	m.runs(2)
	if !m.hasManager(removable, m.manager) || !m.hasManager(managerCopy, m.manager) {
		t.Error("the boot manager was replaced before the bless")
	}
	m.bless()
	m.runs(2, "EFI/BOOT/BOOTX64.EFI is the one of version 2 now")
	for _, name := range []string{removable, managerCopy} {
		if !m.hasManager(name, otherManager) || m.onESP(path.Join(path.Dir(name), host.SpareManager)) {
			t.Errorf("%s was not replaced, or the spare file is there", name)
		}
	}
	for _, settled := range m.esp.exchanged {
		if !settled {
			t.Error("a file was exchanged that was not on the disk")
		}
	}
	m.runs(2)
	m.ops = nil
	m.runs(2)
	if got := append(m.written("esp "), m.written("fetch")...); len(got) > 0 {
		t.Errorf("an ordinary boot writes %q", got)
	}
	m.must(m.ukisSigned())
}

// Wherever the power is cut while the boot manager is replaced, there is one that
// starts; and in the end it is the new one. FAULTS 45
func TestCutBootManager(t *testing.T) {
	m := provisionedMachine(t, pinned)
	m.nextManager = otherManager
	m.fetchManager(newRelease(t, 2, 5, pinned), otherManager)
	m.runs(2)
	m.bless()
	var worlds []*world
	var how []string
	m.ops = nil
	m.snapshot = func() {
		at := last(m.ops)
		m.remaining(func(w *world) { worlds, how = append(worlds, w), append(how, at) })
	}
	m.runs(2)
	m.snapshot = nil
	for i, w := range worlds {
		m.powerOn(w)
		m.said.Reset()
		if end := m.run(); end != "system" || m.agent.Contract.Version != 2 {
			t.Fatalf("cut after %s: it ends in %s:\n%s", how[i], end, m.said.String())
		}
		if !m.hasManager(removable, otherManager) || !m.hasManager(managerCopy, otherManager) ||
			m.onESP("EFI/BOOT/"+host.SpareManager) || m.onESP("EFI/systemd/"+host.SpareManager) {
			t.Fatalf("cut after %s: the boot manager is not in its place:\n%s", how[i], m.said.String())
		}
	}
	t.Logf("%d states after a cut", len(worlds))
}

// What the running system may have put into the place of the boot manager is not
// signed, and what cannot be replaced safely stays. FAULTS 12, 82
func TestBootManagerRefused(t *testing.T) {
	m := provisionedMachine(t, pinned)
	m.fetchManager(newRelease(t, 2, 5, pinned), otherManager)
	m.nextManager = otherManager
	m.runs(2)
	m.bless()
	blessed := m.world(true, nil)
	const directory = fetched.Directory + "/2/"
	for name, c := range map[string]struct {
		spoil func()
		says  string
		stays bool // to be tried again
	}{
		"another file": {func() {
			m.rootFiles()[directory+release.BootManagerFile] = ukitest.Image(ukitest.Section{Name: ".text", Data: []byte("evil boot managerr")})
		}, "bootx64.efi", false},
		"another description": {func() { m.rootFiles()[directory+release.FileName] = []byte("{}") }, "does not fit", false},
		"no signature":        {func() { delete(m.rootFiles(), directory+release.FileName+".pgp") }, "not exist", false},
		"names are apart":     {func() { m.esp.apart = true }, "stays as it is", false},
		"a full ESP":          {func() { m.esp.taken = 1<<30 - 4096 }, "the ESP is too full", true},
		"a full ESP at once":  {func() { m.esp.full = true }, "no space left", true},
	} {
		t.Run(name, func(t *testing.T) {
			m.t = t
			m.powerOn(blessed)
			c.spoil()
			m.runs(2, c.says)
			_, there := m.rootFiles()[directory+release.BootManagerFile]
			if !m.hasManager(removable, m.manager) || !m.hasManager(managerCopy, m.manager) || there != c.stays {
				t.Errorf("the boot manager was replaced, or its file is there: %v", there)
			}
			m.esp.taken, m.esp.full, m.esp.apart = 0, false, false
			m.runs(2)
			if m.hasManager(removable, otherManager) != c.stays || m.onESP("EFI/BOOT/"+host.SpareManager) {
				t.Errorf("afterwards it is not as it should be:\n%s", m.said.String())
			}
		})
	}
}

// The same boot manager again is not written at all.
func TestSameBootManager(t *testing.T) {
	m := provisionedMachine(t, pinned)
	before := bytes.Clone(m.esp.files[removable].now.data)
	m.fetch(newRelease(t, 2, 5, pinned))
	m.runs(2)
	m.bless()
	m.ops = nil
	m.runs(2)
	for _, op := range m.ops {
		if strings.Contains(op, "BOOT") || strings.Contains(op, "systemd") {
			t.Errorf("it did: %s", op)
		}
	}
	if !bytes.Equal(m.esp.files[removable].now.data, before) || m.rootFiles()[fetched.Directory+"/2/"+release.BootManagerFile] != nil {
		t.Error("the boot manager was written, or the fetched one is still there")
	}
}
