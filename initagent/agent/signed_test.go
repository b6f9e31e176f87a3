package agent

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/uki"
	"halogenos.internal/boot/uki/ukitest"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
)

// When the keys are enrolled again, only what this machine has signed before, or what
// its list has, is signed. FAULTS 89
func TestForeignFilesAreNotSigned(t *testing.T) {
	evil := ukitest.Image(ukitest.Section{Name: ".text", Data: []byte("measures what the UKI would, and unseals")})
	for _, old := range []bool{false, true} {
		t.Run(fmt.Sprintf("of an earlier release %v", old), func(t *testing.T) {
			m := provisionedMachine(t, nil)
			if old {
				m.earlierRelease()
			}
			const planted = "EFI/memtest/memtest.efi"
			m.putESP(planted, evil)
			m.vars = newVariables() // by the owner
			m.owner = true
			m.ends("system", planted+": not signed, left alone: it is not one of this machine's own")
			m.owner = false
			if !bytes.Equal(m.esp.files[planted].now.data, evil) {
				t.Error("it was signed")
			}
			m.opensByItself()
		})
	}
	t.Run("another stub with our sections", func(t *testing.T) {
		m := provisionedMachine(t, optionalTPM)
		parsed, err := uki.Parse(m.releases[1].uki)
		m.must(err)
		section := func(name string) []byte { data, _ := parsed.Section(name); return data }
		planted, err := uki.Build(ukitest.Stub("257.13-1-evil"), uki.Payload{
			OSRelease: section(".osrel"), Cmdline: section(".cmdline"), Linux: section(".linux"), Initrd: section(".initrd"),
		}.Sections())
		m.must(err)
		ours, err := rootpart.ReadImage(m.releases[1].uki)
		m.must(err)
		theirs, err := rootpart.ReadImage(planted)
		m.must(err)
		if ours.PCR11 != theirs.PCR11 || ours.Digest == theirs.Digest {
			t.Fatal("it is told by PCR 11: this proves nothing")
		}
		const name = bls.Directory + "/test_1+0-1.efi"
		m.putESP(name, planted)
		m.stubSays = `\EFI\Linux\test_1+0-1.efi`
		for _, noTPM := range []error{nil, tpm.ErrAbsent} {
			m.noTPM, m.noLog = noTPM, noTPM != nil
			m.vars = newVariables()
			m.typed = []string{m.recoveryKey(), "y"}
			m.said.Reset()
			if end := m.boot(); end != "system" || !strings.Contains(m.said.String(), "enroll FAILED") {
				t.Errorf("TPM %v: ends in %s:\n%s", noTPM, end, m.said.String())
			}
			if !bytes.Equal(m.esp.files[name].now.data, planted) || m.vars["PK"].data != nil {
				t.Errorf("TPM %v: it was signed, or the keys are enrolled:\n%s", noTPM, m.said.String())
			}
		}
	})
	t.Run("the boot manager was exchanged", func(t *testing.T) {
		m := provisionedMachine(t, nil)
		m.nextManager = evil
		m.putESP(removable, evil)
		m.putESP(managerCopy, evil)
		m.vars = newVariables()
		m.owner = true
		m.ends("system", removable+": not signed, left alone", "the Platform Key was not written")
		if !bytes.Equal(m.esp.files[removable].now.data, evil) || m.vars["PK"].data != nil {
			t.Error("it was signed, or the keys are enrolled")
		}
	})
	t.Run("at the console", func(t *testing.T) {
		const planted = "EFI/memtest/memtest.efi"
		m := inConsole(t, func(m *machine) {
			m.putESP(planted, evil)
			m.vars = newVariables()
		})
		r, c := m.console()
		m.types(m.shown[0], "y")
		m.works(r.Unlock(c))
		m.works(r.Enroll(c), planted+": not signed, left alone")
		if !bytes.Equal(m.esp.files[planted].now.data, evil) {
			t.Error("it was signed")
		}
	})
}

// A second UKI of the running version, with its contract and another kernel, is not the
// one that runs, whatever is named first. FAULTS 89
func TestDoubleIsNotSigned(t *testing.T) {
	for _, fresh := range []bool{false, true} {
		t.Run(fmt.Sprintf("first boot %v", fresh), func(t *testing.T) {
			m := newMachine(t, nil)
			if !fresh {
				m.ends("system")
			}
			parsed, err := uki.Parse(m.releases[1].uki)
			m.must(err)
			initrd, _ := parsed.Section(".initrd")
			evil, err := uki.Build(ukitest.Stub("257.13-1"), uki.Payload{
				OSRelease: []byte("ID=test\n"), Cmdline: []byte("quiet"), Linux: ukitest.Stub("another kernel"), Initrd: bytes.Clone(initrd),
			}.Sections())
			m.must(err)
			const double = "EFI/Linux/test_1+0-3.efi"
			m.putESP(double, evil)
			m.vars = newVariables()
			m.owner = !fresh
			m.ends("system", double+": not signed, left alone")
			digest, err := authenticode.Digest(evil)
			m.must(err)
			list, err := m.storedList()
			m.must(err)
			if list.Allows(digest) {
				t.Error("it counts as this machine's own")
			}
		})
	}
}

// A file that this machine's key has signed, and that the list does not have, is not
// taken for the boot manager: the copy is put back. FAULTS 89
func TestSignedIsNotEnough(t *testing.T) {
	m := provisionedMachine(t, nil)
	m.ends("system")
	lock, _, secret := m.unlocked()
	keys, err := rootpart.StoredKeys(store{m}, secret, lock)
	m.must(err)
	other, err := enroll.DBSigner{Pair: keys.DB, Time: buildDate}.Sign(ukitest.Image(ukitest.Section{Name: ".text", Data: []byte("an older program")}))
	m.must(err)
	m.putESP(managerCopy, other)
	m.clock = m.clock.AddDate(0, 0, 8) // every byte is read once a week
	m.ends("system", managerCopy+" was damaged (it is not one of this machine's own")
	if err := m.startable(managerCopy, m.manager); err != nil {
		t.Error(err)
	}
}

// pesigned makes an image as pesign 0.112 signs it: with another object as content
// type than the one that is signed.
func (m *machine) pesigned(image []byte) []byte {
	m.t.Helper()
	signed, err := enroll.DBSigner{Pair: m.otherKeys().DB, Time: buildDate}.Sign(image)
	m.must(err)
	table := signed[len(image):]
	oid := []byte{0x2b, 0x06, 0x01, 0x04, 0x01, 0x82, 0x37, 0x02, 0x01, 0x04}
	if !bytes.Contains(table, oid) {
		m.t.Fatal("the signature has no content type")
	}
	copy(table, bytes.ReplaceAll(table, oid, append(bytes.Clone(oid[:9]), 0x15)))
	if _, err := authenticode.Verify(signed, nil); err == nil || strings.Contains(err.Error(), "trusted") {
		m.t.Fatalf("it is read: %v", err)
	}
	return signed
}

// An ESP that was kept has files that this machine does not sign and could not: they
// stop nothing, stay as they are, and are named. A boot manager that carries a
// signature of that kind is signed by this machine all the same. FAULTS 112 (M11)
func TestForeignFilesOnTheESP(t *testing.T) {
	m := newMachine(t, nil)
	helper := m.pesigned(ukitest.Image(ukitest.Section{Name: ".text", Data: []byte("firmware update helper")}))
	small := ukitest.Image(ukitest.Section{Name: ".text", Data: []byte("32 bits")})
	pe := bytes.Index(small, []byte("PE\x00\x00"))
	copy(small[pe+4:], []byte{0x4c, 0x01}) // i386
	copy(small[pe+24:], []byte{0x0b, 0x01})
	foreign := map[string][]byte{
		"EFI/debian/fwupdx64.efi": helper, "EFI/BOOT/BOOTIA32.EFI": small, "EFI/old/cut.efi": []byte("MZ"),
		"EFI/a/b/c/d/e/f/g/h/deep.efi": helper,
	}
	m.manager = m.pesigned(m.manager)
	w := m.installed(diskSize)
	for name, data := range foreign {
		w.esp[name] = remains{data: data}
	}
	m.powerOn(w)
	end := m.run()
	if end != "system" {
		t.Fatalf("ends in %s:\n%s", end, m.said.String())
	}
	for name, data := range foreign {
		if !bytes.Equal(m.esp.files[name].now.data, data) {
			t.Errorf("%s has changed", name)
		}
		if !strings.Contains(m.said.String(), name+": not signed, left alone") && !strings.Contains(name, "deep") {
			t.Errorf("%s is not named", name)
		}
	}
	m.opensByItself()
	_, own, err := certificatesIn(m.vars)
	m.must(err)
	if err := authenticode.VerifyOwn(m.esp.files[removable].now.data, own[0]); err != nil {
		t.Error(err)
	}
}
