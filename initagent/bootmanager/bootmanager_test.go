package bootmanager_test

import (
	"bytes"
	"path"
	"strings"
	"testing"

	"halogenos.internal/boot/release"
	"halogenos.internal/boot/uki/ukitest"
	"halogenos.internal/initagent/fetched"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/machinetest"
)

// A release's boot manager takes its place when the release has proven itself, and
// not before: the fallback is started by the one there is.
func TestBootManager(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	m.NextManager = machinetest.OtherManager
	m.FetchManager(machinetest.NewRelease(t, 2, 5, machinetest.Pinned), machinetest.OtherManager)
	m.Runs(2)
	m.Runs(2)
	if !m.HasManager(machinetest.Removable, m.Manager) || !m.HasManager(machinetest.ManagerCopy, m.Manager) {
		t.Error("the boot manager was replaced before the bless")
	}
	m.Bless()
	m.Runs(2, "EFI/BOOT/BOOTX64.EFI is the one of version 2 now")
	for _, name := range []string{machinetest.Removable, machinetest.ManagerCopy} {
		if !m.HasManager(name, machinetest.OtherManager) || m.OnESP(path.Join(path.Dir(name), host.SpareManager)) {
			t.Errorf("%s was not replaced, or the spare file is there", name)
		}
	}
	for _, settled := range m.ESP.Exchanged {
		if !settled {
			t.Error("a file was exchanged that was not on the disk")
		}
	}
	m.Runs(2)
	m.Ops = nil
	m.Runs(2)
	if got := append(m.Written("esp "), m.Written("fetch")...); len(got) > 0 {
		t.Errorf("an ordinary boot writes %q", got)
	}
	m.Must(m.UkisSigned())
}

// Wherever the power is cut while the boot manager is replaced, there is one that
// starts; and in the end it is the new one. FAULTS 45
func TestCutBootManager(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	m.NextManager = machinetest.OtherManager
	m.FetchManager(machinetest.NewRelease(t, 2, 5, machinetest.Pinned), machinetest.OtherManager)
	m.Runs(2)
	m.Bless()
	var worlds []*machinetest.World
	var how []string
	m.Ops = nil
	m.Snapshot = func() {
		at := machinetest.Last(m.Ops)
		m.Remaining(func(w *machinetest.World) { worlds, how = append(worlds, w), append(how, at) })
	}
	m.Runs(2)
	m.Snapshot = nil
	for i, w := range worlds {
		m.PowerOn(w)
		m.Said.Reset()
		if end := m.Run(); end != "system" || m.Agent.Contract.Version != 2 {
			t.Fatalf("cut after %s: it ends in %s:\n%s", how[i], end, m.Said.String())
		}
		if !m.HasManager(machinetest.Removable, machinetest.OtherManager) || !m.HasManager(machinetest.ManagerCopy, machinetest.OtherManager) ||
			m.OnESP("EFI/BOOT/"+host.SpareManager) || m.OnESP("EFI/systemd/"+host.SpareManager) {
			t.Fatalf("cut after %s: the boot manager is not in its place:\n%s", how[i], m.Said.String())
		}
	}
	t.Logf("%d states after a cut", len(worlds))
}

// What the running system may have put into the place of the boot manager is not
// signed, and what cannot be replaced safely stays. FAULTS 12, 82
func TestBootManagerRefused(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	m.FetchManager(machinetest.NewRelease(t, 2, 5, machinetest.Pinned), machinetest.OtherManager)
	m.NextManager = machinetest.OtherManager
	m.Runs(2)
	m.Bless()
	blessed := m.World(true, nil)
	const directory = fetched.Directory + "/2/"
	for name, c := range map[string]struct {
		spoil func()
		says  string
		stays bool // to be tried again
	}{
		"another file": {func() {
			m.RootFiles()[directory+release.BootManagerFile] = ukitest.Image(ukitest.Section{Name: ".text", Data: []byte("evil boot managerr")})
		}, "bootx64.efi", false},
		"another description": {func() { m.RootFiles()[directory+release.FileName] = []byte("{}") }, "does not fit", false},
		"no signature":        {func() { delete(m.RootFiles(), directory+release.FileName+".pgp") }, "not exist", false},
		"names are apart":     {func() { m.ESP.Apart = true }, "stays as it is", false},
		"a full ESP":          {func() { m.ESP.Taken = 1<<30 - 4096 }, "the ESP is too full", true},
		"a full ESP at once":  {func() { m.ESP.Full = true }, "no space left", true},
	} {
		t.Run(name, func(t *testing.T) {
			m.T = t
			m.PowerOn(blessed)
			c.spoil()
			m.Runs(2, c.says)
			_, there := m.RootFiles()[directory+release.BootManagerFile]
			if !m.HasManager(machinetest.Removable, m.Manager) || !m.HasManager(machinetest.ManagerCopy, m.Manager) || there != c.stays {
				t.Errorf("the boot manager was replaced, or its file is there: %v", there)
			}
			m.ESP.Taken, m.ESP.Full, m.ESP.Apart = 0, false, false
			m.Runs(2)
			if m.HasManager(machinetest.Removable, machinetest.OtherManager) != c.stays || m.OnESP("EFI/BOOT/"+host.SpareManager) {
				t.Errorf("afterwards it is not as it should be:\n%s", m.Said.String())
			}
		})
	}
}

// The same boot manager again is not written at all.
func TestSameBootManager(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	before := bytes.Clone(m.ESP.Files[machinetest.Removable].Now.Data)
	m.Fetch(machinetest.NewRelease(t, 2, 5, machinetest.Pinned))
	m.Runs(2)
	m.Bless()
	m.Ops = nil
	m.Runs(2)
	for _, op := range m.Ops {
		if strings.Contains(op, "BOOT") || strings.Contains(op, "systemd") {
			t.Errorf("it did: %s", op)
		}
	}
	if !bytes.Equal(m.ESP.Files[machinetest.Removable].Now.Data, before) || m.RootFiles()[fetched.Directory+"/2/"+release.BootManagerFile] != nil {
		t.Error("the boot manager was written, or the fetched one is still there")
	}
}
