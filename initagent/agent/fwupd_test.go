package agent

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/uki/ukitest"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/fwupd"
	"halogenos.internal/initagent/rootpart"
)

// signedUpdater is where the root partition has fwupd's program, as it was signed.
const signedUpdater = fwupd.Kept + "/fwupdx64.efi.signed"

func updaterProgram(text string) []byte {
	return ukitest.Image(ukitest.Section{Name: ".text", Data: []byte(text)})
}

// bringsUpdater puts fwupd's program into the system image.
func (m *machine) bringsUpdater(name string, program []byte) {
	m.t.Helper()
	directory := filepath.Join(m.root, "sysroot", fwupd.Directory)
	m.must(os.MkdirAll(directory, 0o755))
	m.must(os.WriteFile(filepath.Join(directory, name), program, 0o644))
}

// hasUpdater says why this program is not signed by this machine, and laid over the image's.
func (m *machine) hasUpdater(program []byte) error {
	m.t.Helper()
	_, own, err := certificatesIn(m.vars)
	if err != nil {
		return err
	}
	kept := m.rootFiles()[signedUpdater]
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
	list, err := m.storedList()
	switch {
	case err != nil:
		return err
	case have != want:
		return errors.New("another program is signed")
	case !list.Allows(want):
		return errors.New("the list does not know the program")
	case !m.updaterLaid():
		return fmt.Errorf("mounted are %q", m.mounted)
	}
	return nil
}

func (m *machine) updaterLaid() bool {
	return len(m.mounted) > 0 && m.mounted[len(m.mounted)-1] == filepath.Join(m.root, "sysroot", fwupd.Directory)
}

// The image's program is signed once, and laid over the image's; another release's is
// signed when that runs. Nothing else is signed: neither what lies beside it in the
// image, nor what the running system has put in the places of the signed one.
func TestSignsUpdater(t *testing.T) {
	m := provisionedMachine(t, pinned)
	m.runs(1)
	if m.updaterLaid() || m.rootFiles()[signedUpdater] != nil {
		t.Fatal("an image without fwupd gets its program")
	}
	first, second, planted := updaterProgram("fwupd-efi 1.6"), updaterProgram("fwupd-efi 1.7"), updaterProgram("a shell")
	m.bringsUpdater("fwupdx64.efi", first)
	m.bringsUpdater("shimx64.efi", planted)
	m.bringsUpdater("fwupdx64.efi.signed", planted)
	m.runs(1, "sign-updater")
	m.must(m.hasUpdater(first))
	older := bytes.Clone(m.rootFiles()[signedUpdater])
	m.ops = nil
	m.runs(1)
	m.must(m.hasUpdater(first))
	if w := m.written("fwupd"); len(w) > 0 {
		t.Errorf("it is signed again: %q", w)
	}

	for what, text := range map[string][]byte{"a stranger's": planted, "nothing": nil, "no image": []byte("MZ"), "too large": make([]byte, 3<<20)} {
		m.rootFiles()[signedUpdater] = text
		m.putESP("EFI/systemd/fwupdx64.efi", planted)
		m.putESP("EFI/systemd/fw/fwupd-1.cap", planted)
		m.runs(1, "sign-updater")
		if err := m.hasUpdater(first); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	m.runs(1)
	for _, name := range []string{"EFI/systemd/fwupdx64.efi", "EFI/systemd/fw/fwupd-1.cap"} {
		if !bytes.Equal(m.esp.files[name].now.data, planted) {
			t.Errorf("%s was changed", name)
		}
	}

	m.bringsUpdater("fwupdx64.efi", second)
	m.runs(1, "sign-updater")
	m.must(m.hasUpdater(second))
	m.rootFiles()[signedUpdater] = older // soundly signed, and perhaps with a known hole
	m.runs(1, "sign-updater")
	m.must(m.hasUpdater(second))
}

// An image with a program that somebody else has signed, and no other, has that one signed.
func TestSignsSignedUpdater(t *testing.T) {
	m := provisionedMachine(t, pinned)
	theirs, err := enroll.DBSigner{Pair: m.otherKeys().DB, Time: buildDate}.Sign(updaterProgram("fwupd-efi 1.7"))
	m.must(err)
	m.bringsUpdater("fwupdx64.efi.signed", theirs)
	m.runs(1, "sign-updater")
	m.must(m.hasUpdater(theirs))
	m.ops = nil
	m.runs(1)
	if w := m.written("fwupd"); len(w) > 0 {
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
			m := provisionedMachine(t, pinned)
			digest, err := authenticode.Digest(refused)
			m.must(err)
			m.fetchRevoking(newRelease(t, 2, 5, pinned), digest)
			m.runs(2)
			m.bless()
			m.runs(2)
			m.runs(2)
			m.bringsUpdater("fwupdx64.efi", c.program)
			m.runs(2, c.says)
			if m.updaterLaid() || m.rootFiles()[signedUpdater] != nil {
				t.Error("it is signed")
			}
			list, err := m.storedList()
			m.must(err)
			if d, err := authenticode.Digest(c.program); err == nil && list.Allows(d) {
				t.Error("the list allows it")
			}
		})
	}
}

// Nothing is read through a link that leads out of the image, and a trial signs nothing.
func TestSignsUpdaterOfImage(t *testing.T) {
	m := provisionedMachine(t, pinned)
	m.must(os.MkdirAll(filepath.Join(m.root, "sysroot", path.Dir(fwupd.Directory)), 0o755))
	m.must(os.MkdirAll(filepath.Join(m.root, "outside"), 0o755))
	m.must(os.WriteFile(filepath.Join(m.root, "outside/fwupdx64.efi"), updaterProgram("outside"), 0o644))
	link := filepath.Join(m.root, "sysroot", fwupd.Directory)
	m.must(os.Symlink(filepath.Join(m.root, "outside"), link))
	m.runs(1, "sign-updater")
	if m.rootFiles()[signedUpdater] != nil || m.updaterLaid() {
		t.Error("a program outside the image is signed")
	}
	m.must(os.Remove(link))

	program := updaterProgram("fwupd-efi 1.7")
	m.fetch(newRelease(t, 2, 5, pinned))
	m.bringsUpdater("fwupdx64.efi", program)
	m.runs(2)
	if m.rootFiles()[signedUpdater] != nil || m.updaterLaid() {
		t.Error("a trial has its program signed")
	}
	m.bless()
	m.runs(2, "sign-updater")
	m.must(m.hasUpdater(program))
}

// Wherever the power is cut, the machine starts without a key and comes to the same end;
// what is signed on the way is the program alone.
func TestCutSignsUpdater(t *testing.T) {
	m := provisionedMachine(t, pinned)
	m.runs(1)
	program := updaterProgram("fwupd-efi 1.7")
	m.bringsUpdater("fwupdx64.efi", program)
	var worlds []*world
	var how []string
	m.ops = nil
	m.snapshot = func() {
		at := last(m.ops)
		m.remaining(func(w *world) { worlds, how = append(worlds, w), append(how, at) })
	}
	m.runs(1)
	m.snapshot = nil
	for _, want := range []string{"root keep " + rootpart.ListFile, "root keep " + signedUpdater} {
		if !strings.Contains(strings.Join(m.ops, "\n"), want) {
			t.Errorf("%q is not among the writes %q", want, m.ops)
		}
	}
	for i, w := range worlds {
		m.powerOn(w)
		m.runs(1)
		if err := m.hasUpdater(program); err != nil {
			t.Errorf("cut after %s: %v", how[i], err)
		}
	}
	t.Logf("%d states after a cut", len(worlds))
}

// A machine with new keys has the program signed by them. What the list of before allows is
// allowed still.
func TestUpdaterOfNewKeys(t *testing.T) {
	m := provisionedMachine(t, pinned)
	program := updaterProgram("fwupd-efi 1.7")
	m.bringsUpdater("fwupdx64.efi", program)
	m.runs(1)
	m.must(m.hasUpdater(program))
	m.asksForSecret(true)
	m.typed = nil
	m.types(m.recoveryKey())
	if end := m.boot(); end != "reboot" {
		t.Fatalf("ends in %s:\n%s", end, m.said.String())
	}
	m.ends("system")
	m.ends("system")
	m.must(m.hasUpdater(program))
}

// Nothing that an update of the firmware changes by itself is bound: the machine opens under
// another firmware, and without a word of fwupd's before. What it changes of Secure Boot is
// bound, and a key is asked for, whoever has announced what.
func TestFirmwareIsNotBound(t *testing.T) {
	for _, n := range []int{0, 1, 2, 3, 5, 6} {
		if slices.Contains(policy.Bound(), n) {
			t.Errorf("PCR %d is bound", n)
		}
	}
	m := provisionedMachine(t, pinned)
	for _, m.code = range []string{"1.1", "1.2", "1.1"} {
		m.runs(1)
	}
	m.code, m.extra = "1.3", "DMA Protection Disabled"
	m.ends("recovery", "PCR 7 differs")
	m.extra = ""
	m.runs(1)
}

// fwupd's program resets the machine, so that no start follows on it. Where it had nothing to
// do it comes back, and the firmware goes on: what it may have done by then nobody knows, and
// the key is asked for. The start after that is as usual.
func TestUpdaterCameBack(t *testing.T) {
	m := provisionedMachine(t, pinned)
	program := updaterProgram("fwupd-efi 1.7")
	m.bringsUpdater("fwupdx64.efi", program)
	m.runs(1)
	m.runs(1)
	m.cameBack = m.rootFiles()[signedUpdater]
	m.ends("recovery", "PCR 4 differs")
	if m.openVolume != nil {
		t.Error("it opens by itself")
	}
	m.cameBack = nil
	m.runs(1)
}
