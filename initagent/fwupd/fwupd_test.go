package fwupd_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/boot/uki/ukitest"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/fwupd"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/rootpart"
)

// signedUpdater is where the root partition has fwupd's program, as it was signed.
const signedUpdater = fwupd.Kept + "/fwupdx64.efi.signed"

func updaterProgram(text string) []byte {
	return ukitest.Image(ukitest.Section{Name: ".text", Data: []byte(text)})
}

// bringsUpdater puts fwupd's program into the system image.
func bringsUpdater(m *machinetest.Machine, name string, program []byte) {
	m.T.Helper()
	directory := filepath.Join(m.Root, "sysroot", fwupd.Directory)
	m.Must(os.MkdirAll(directory, 0o755))
	m.Must(os.WriteFile(filepath.Join(directory, name), program, 0o644))
}

// hasUpdater says why this program is not signed by this machine, and laid over the image's.
func hasUpdater(m *machinetest.Machine, program []byte) error {
	m.T.Helper()
	_, own, err := machinetest.CertificatesIn(m.Vars)
	if err != nil {
		return err
	}
	kept := m.RootFiles()[signedUpdater]
	if err := authenticode.VerifyOwn(kept, own[0]); err != nil {
		return err
	}
	have, err := authenticode.Digest(kept)
	if err != nil {
		return err
	}
	want, err := authenticode.Digest(program)
	if err != nil {
		return err
	}
	list, err := m.StoredList()
	switch {
	case err != nil:
		return err
	case have != want:
		return errors.New("another program is signed")
	case !list.Allows(want):
		return errors.New("the list does not know the program")
	case !updaterLaid(m):
		return fmt.Errorf("mounted are %q", m.Mounted)
	}
	return nil
}

func updaterLaid(m *machinetest.Machine) bool {
	return len(m.Mounted) > 0 && m.Mounted[len(m.Mounted)-1] == filepath.Join(m.Root, "sysroot", fwupd.Directory)
}

// The image's program is signed once, and laid over the image's; another release's is
// signed when that runs. Nothing else is signed: neither what lies beside it in the
// image, nor what the running system has put in the places of the signed one.
func TestSignsUpdater(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	m.Runs(1)
	if updaterLaid(m) || m.RootFiles()[signedUpdater] != nil {
		t.Fatal("an image without fwupd gets its program")
	}
	first, second, planted := updaterProgram("fwupd-efi 1.6"), updaterProgram("fwupd-efi 1.7"), updaterProgram("a shell")
	bringsUpdater(m, "fwupdx64.efi", first)
	bringsUpdater(m, "shimx64.efi", planted)
	bringsUpdater(m, "fwupdx64.efi.signed", planted)
	m.Runs(1, "sign-updater")
	m.Must(hasUpdater(m, first))
	older := bytes.Clone(m.RootFiles()[signedUpdater])
	m.Ops = nil
	m.Runs(1)
	m.Must(hasUpdater(m, first))
	if w := m.Written("fwupd"); len(w) > 0 {
		t.Errorf("it is signed again: %q", w)
	}

	for what, text := range map[string][]byte{"a stranger's": planted, "nothing": nil, "no image": []byte("MZ"), "too large": make([]byte, 3<<20)} {
		m.RootFiles()[signedUpdater] = text
		m.PutESP("EFI/systemd/fwupdx64.efi", planted)
		m.PutESP("EFI/systemd/fw/fwupd-1.cap", planted)
		m.Runs(1, "sign-updater")
		if err := hasUpdater(m, first); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	m.Runs(1)
	for _, name := range []string{"EFI/systemd/fwupdx64.efi", "EFI/systemd/fw/fwupd-1.cap"} {
		if !bytes.Equal(m.ESP.Files[name].Now.Data, planted) {
			t.Errorf("%s was changed", name)
		}
	}

	bringsUpdater(m, "fwupdx64.efi", second)
	m.Runs(1, "sign-updater")
	m.Must(hasUpdater(m, second))
	m.RootFiles()[signedUpdater] = older // soundly signed, and perhaps with a known hole
	m.Runs(1, "sign-updater")
	m.Must(hasUpdater(m, second))
}

// A desktop's image has the program from its first start on. The boot that makes the root
// partition has wiped the machine secret by then, and leaves it to the next one.
func TestSignsUpdaterAfterFirstBoots(t *testing.T) {
	m := machinetest.New(t, machinetest.Pinned)
	program := updaterProgram("fwupd-efi 1.7")
	bringsUpdater(m, "fwupdx64.efi", program)
	m.Ends("system")
	if updaterLaid(m) || m.RootFiles()[signedUpdater] != nil {
		t.Error("the program is signed without the keys")
	}
	m.Runs(1, "sign-updater")
	m.Must(hasUpdater(m, program))
}

// Root puts a program of its own beside the signed one, under the name of the image's. It is
// neither laid over the image nor signed, in no later start and with no later keys either.
func TestSignsNothingLaidOverImage(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	program, planted := updaterProgram("fwupd-efi 1.7"), updaterProgram("a shell")
	bringsUpdater(m, "fwupdx64.efi", program)
	m.Runs(1, "sign-updater")
	m.Must(hasUpdater(m, program))
	digest, err := authenticode.Digest(planted)
	m.Must(err)
	for range 2 {
		m.RootFiles()[fwupd.Kept+"/fwupdx64.efi"] = planted
		m.Runs(1)
		m.Must(hasUpdater(m, program))
		list, err := m.StoredList()
		m.Must(err)
		if list.Allows(digest) {
			t.Fatalf("the list allows root's program:\n%s", m.Said.String())
		}
		if names := slices.Sorted(maps.Keys(m.Laid)); !slices.Equal(names, []string{fwupd.Signed}) || !bytes.Equal(m.Laid[fwupd.Signed], m.RootFiles()[signedUpdater]) {
			t.Errorf("laid over the image are %q", names)
		}
	}
}

// Nothing that is mounted over the image is read as the image's.
func TestReadsNothingMounted(t *testing.T) {
	testkit.Root(t, "mount over a directory")
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	bringsUpdater(m, "fwupdx64.efi", updaterProgram("fwupd-efi 1.7"))
	directory := filepath.Join(m.Root, "sysroot", fwupd.Directory)
	if err := unix.Mount("tmpfs", directory, "tmpfs", 0, ""); err != nil {
		testkit.Skip(t, fmt.Sprintf("no tmpfs may be mounted here: %v", err))
	}
	t.Cleanup(func() { _ = unix.Unmount(directory, unix.MNT_DETACH) })
	bringsUpdater(m, "fwupdx64.efi", updaterProgram("a shell"))
	m.Runs(1, "not of the system image")
	if m.RootFiles()[signedUpdater] != nil || updaterLaid(m) {
		t.Error("a program that is mounted over the image's is signed")
	}
}

// An image with a program that somebody else has signed, and no other, has that one signed.
func TestSignsSignedUpdater(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	theirs, err := enroll.DBSigner{Pair: m.OtherKeys().DB, Time: machinetest.BuildDate}.Sign(updaterProgram("fwupd-efi 1.7"))
	m.Must(err)
	bringsUpdater(m, "fwupdx64.efi.signed", theirs)
	m.Runs(1, "sign-updater")
	m.Must(hasUpdater(m, theirs))
	m.Ops = nil
	m.Runs(1)
	if w := m.Written("fwupd"); len(w) > 0 {
		t.Errorf("it is signed again: %q", w)
	}
}

// What cannot be signed costs no boot, is said, and is not laid over anything.
func TestSignsNoUpdater(t *testing.T) {
	refused := updaterProgram("fwupd-efi 1.2")
	for name, c := range map[string]struct {
		program []byte
		says    string
	}{
		"no image":  {[]byte("#!/bin/sh\n"), "by which fwupd updates firmware"},
		"in dbx":    {refused, "since dbx has it"},
		"too large": {make([]byte, 1<<20+1), "fwupdx64.efi"},
	} {
		t.Run(name, func(t *testing.T) {
			m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
			digest, err := authenticode.Digest(refused)
			m.Must(err)
			m.FetchRevoking(machinetest.NewRelease(t, 2, 5, machinetest.Pinned), digest)
			m.Runs(2)
			m.Bless()
			m.Runs(2)
			m.Runs(2)
			bringsUpdater(m, "fwupdx64.efi", c.program)
			m.Runs(2, c.says)
			if updaterLaid(m) || m.RootFiles()[signedUpdater] != nil {
				t.Error("it is signed")
			}
			list, err := m.StoredList()
			m.Must(err)
			if d, err := authenticode.Digest(c.program); err == nil && list.Allows(d) {
				t.Error("the list allows it")
			}
		})
	}
}

// Nothing is read through a link that leads out of the image, and a trial signs nothing.
func TestSignsUpdaterOfImage(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	m.Must(os.MkdirAll(filepath.Join(m.Root, "sysroot", path.Dir(fwupd.Directory)), 0o755))
	m.Must(os.MkdirAll(filepath.Join(m.Root, "outside"), 0o755))
	m.Must(os.WriteFile(filepath.Join(m.Root, "outside/fwupdx64.efi"), updaterProgram("outside"), 0o644))
	link := filepath.Join(m.Root, "sysroot", fwupd.Directory)
	m.Must(os.Symlink(filepath.Join(m.Root, "outside"), link))
	m.Runs(1, "sign-updater")
	if m.RootFiles()[signedUpdater] != nil || updaterLaid(m) {
		t.Error("a program outside the image is signed")
	}
	m.Must(os.Remove(link))

	program := updaterProgram("fwupd-efi 1.7")
	m.Fetch(machinetest.NewRelease(t, 2, 5, machinetest.Pinned))
	bringsUpdater(m, "fwupdx64.efi", program)
	m.Runs(2)
	if m.RootFiles()[signedUpdater] != nil || updaterLaid(m) {
		t.Error("a trial has its program signed")
	}
	m.Bless()
	m.Runs(2, "sign-updater")
	m.Must(hasUpdater(m, program))
}

// Wherever the power is cut, the machine starts without a key and comes to the same end;
// what is signed on the way is the program alone.
func TestCutSignsUpdater(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	m.Runs(1)
	program := updaterProgram("fwupd-efi 1.7")
	bringsUpdater(m, "fwupdx64.efi", program)
	var worlds []*machinetest.World
	var how []string
	m.Ops = nil
	m.Snapshot = func() {
		at := machinetest.Last(m.Ops)
		m.Remaining(func(w *machinetest.World) { worlds, how = append(worlds, w), append(how, at) })
	}
	m.Runs(1)
	m.Snapshot = nil
	for _, want := range []string{"root keep " + rootpart.ListFile, "root keep " + signedUpdater} {
		if !strings.Contains(strings.Join(m.Ops, "\n"), want) {
			t.Errorf("%q is not among the writes %q", want, m.Ops)
		}
	}
	for i, w := range worlds {
		m.PowerOn(w)
		m.Runs(1)
		if err := hasUpdater(m, program); err != nil {
			t.Errorf("cut after %s: %v", how[i], err)
		}
	}
	t.Logf("%d states after a cut", len(worlds))
}

// A machine with new keys has the program signed by them, and the copy of it that fwupd has
// put on the ESP.
func TestUpdaterOfNewKeys(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	program := updaterProgram("fwupd-efi 1.7")
	bringsUpdater(m, "fwupdx64.efi", program)
	m.Runs(1)
	m.Must(hasUpdater(m, program))
	m.PutESP("EFI/systemd/fwupdx64.efi", m.RootFiles()[signedUpdater]) // as fwupd does
	m.AsksForSecret(true)
	m.Typed = nil
	m.Types(m.RecoveryKey())
	if end := m.Boot(); end != "reboot" {
		t.Fatalf("ends in %s:\n%s", end, m.Said.String())
	}
	m.Ends("system")
	m.Ends("system")
	m.Must(hasUpdater(m, program))
	_, own, err := machinetest.CertificatesIn(m.Vars)
	m.Must(err)
	if err := authenticode.VerifyOwn(m.ESP.Files["EFI/systemd/fwupdx64.efi"].Now.Data, own[0]); err != nil {
		t.Errorf("the copy on the ESP: %v", err)
	}
}

// Nothing that an update of the firmware changes by itself is bound: the machine opens under
// another firmware, and without a word of fwupd's before. What it changes of Secure Boot is
// bound, and a key is asked for, no matter who has announced what.
func TestFirmwareIsNotBound(t *testing.T) {
	for _, n := range []int{0, 1, 2, 3, 5, 6} {
		if slices.Contains(policy.Bound(), n) {
			t.Errorf("PCR %d is bound", n)
		}
	}
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	for _, m.Code = range []string{"1.1", "1.2", "1.1"} {
		m.Runs(1)
	}
	m.Code, m.Extra = "1.3", "DMA Protection Disabled"
	m.Ends("recovery", "PCR 7 differs")
	m.Extra = ""
	m.Runs(1)
}

// fwupd's program resets the machine, so that no start follows on it. Where it had nothing to
// do it comes back, and the firmware goes on: what it may have done by then nobody knows, and
// the key is asked for. The start after that is as usual.
func TestUpdaterCameBack(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	program := updaterProgram("fwupd-efi 1.7")
	bringsUpdater(m, "fwupdx64.efi", program)
	m.Runs(1)
	m.Runs(1)
	m.CameBack = m.RootFiles()[signedUpdater]
	m.Ends("recovery", "PCR 4 differs")
	if m.OpenVolume != nil {
		t.Error("it opens by itself")
	}
	m.CameBack = nil
	m.Runs(1)
}
