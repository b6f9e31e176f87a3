package staging_test

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
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
)

// When the keys are enrolled again, only what this machine has signed before, or what
// its list has, is signed. FAULTS 89
func TestForeignFilesAreNotSigned(t *testing.T) {
	evil := ukitest.Image(ukitest.Section{Name: ".text", Data: []byte("measures what the UKI would, and unseals")})
	for _, old := range []bool{false, true} {
		t.Run(fmt.Sprintf("of an earlier release %v", old), func(t *testing.T) {
			m := machinetest.ProvisionedMachine(t, nil)
			if old {
				m.EarlierRelease()
			}
			const planted = "EFI/memtest/memtest.efi"
			m.PutESP(planted, evil)
			m.Vars = machinetest.NewVariables() // by the owner
			m.Owner = true
			m.Ends("system", planted+": not signed, left alone: it is not one of this machine's own")
			m.Owner = false
			if !bytes.Equal(m.ESP.Files[planted].Now.Data, evil) {
				t.Error("it was signed")
			}
			m.OpensByItself()
		})
	}
	t.Run("another stub with our sections", func(t *testing.T) {
		m := machinetest.ProvisionedMachine(t, machinetest.OptionalTPM)
		parsed, err := uki.Parse(m.Releases[1].UKI)
		m.Must(err)
		section := func(name string) []byte { data, _ := parsed.Section(name); return data }
		planted, err := uki.Build(ukitest.Stub("257.13-1-evil"), uki.Payload{
			OSRelease: section(".osrel"), Cmdline: section(".cmdline"), Linux: section(".linux"), Initrd: section(".initrd"),
		}.Sections())
		m.Must(err)
		ours, err := rootpart.ReadImage(m.Releases[1].UKI)
		m.Must(err)
		theirs, err := rootpart.ReadImage(planted)
		m.Must(err)
		if ours.PCR11 != theirs.PCR11 || ours.Digest == theirs.Digest {
			t.Fatal("it is told by PCR 11: this proves nothing")
		}
		const name = bls.Directory + "/test_1+0-1.efi"
		m.PutESP(name, planted)
		m.StubSays = `\EFI\Linux\test_1+0-1.efi`
		for _, noTPM := range []error{nil, tpm.ErrAbsent} {
			m.NoTPM, m.NoLog = noTPM, noTPM != nil
			m.Vars = machinetest.NewVariables()
			m.Typed = []string{m.RecoveryKey(), "y"}
			m.Said.Reset()
			if end := m.Boot(); end != "system" || !strings.Contains(m.Said.String(), "enroll FAILED") {
				t.Errorf("TPM %v: ends in %s:\n%s", noTPM, end, m.Said.String())
			}
			if !bytes.Equal(m.ESP.Files[name].Now.Data, planted) || m.Vars["PK"].Data != nil {
				t.Errorf("TPM %v: it was signed, or the keys are enrolled:\n%s", noTPM, m.Said.String())
			}
		}
	})
	t.Run("the boot manager was exchanged", func(t *testing.T) {
		m := machinetest.ProvisionedMachine(t, nil)
		m.NextManager = evil
		m.PutESP(machinetest.Removable, evil)
		m.PutESP(machinetest.ManagerCopy, evil)
		m.Vars = machinetest.NewVariables()
		m.Owner = true
		m.Ends("system", machinetest.Removable+": not signed, left alone", "the Platform Key was not written")
		if !bytes.Equal(m.ESP.Files[machinetest.Removable].Now.Data, evil) || m.Vars["PK"].Data != nil {
			t.Error("it was signed, or the keys are enrolled")
		}
	})
	t.Run("at the console", func(t *testing.T) {
		const planted = "EFI/memtest/memtest.efi"
		m := machinetest.InConsole(t, func(m *machinetest.Machine) {
			m.PutESP(planted, evil)
			m.Vars = machinetest.NewVariables()
		})
		r, c := m.Console()
		m.Types(m.Shown[0], "y")
		m.Works(r.Unlock(c))
		m.Works(r.Enroll(c), planted+": not signed, left alone")
		if !bytes.Equal(m.ESP.Files[planted].Now.Data, evil) {
			t.Error("it was signed")
		}
	})
}

// A second UKI of the running version, with its contract and another kernel, is not the
// one that runs, whatever is named first. FAULTS 89
func TestDoubleIsNotSigned(t *testing.T) {
	for _, fresh := range []bool{false, true} {
		t.Run(fmt.Sprintf("first boot %v", fresh), func(t *testing.T) {
			m := machinetest.New(t, nil)
			if !fresh {
				m.Ends("system")
			}
			parsed, err := uki.Parse(m.Releases[1].UKI)
			m.Must(err)
			initrd, _ := parsed.Section(".initrd")
			evil, err := uki.Build(ukitest.Stub("257.13-1"), uki.Payload{
				OSRelease: []byte("ID=test\n"), Cmdline: []byte("quiet"), Linux: ukitest.Stub("another kernel"), Initrd: bytes.Clone(initrd),
			}.Sections())
			m.Must(err)
			const double = "EFI/Linux/test_1+0-3.efi"
			m.PutESP(double, evil)
			m.Vars = machinetest.NewVariables()
			m.Owner = !fresh
			m.Ends("system", double+": not signed, left alone")
			digest, err := authenticode.Digest(evil)
			m.Must(err)
			list, err := m.StoredList()
			m.Must(err)
			if list.Allows(digest) {
				t.Error("it counts as this machine's own")
			}
		})
	}
}

// A file that this machine's key has signed, and that the list does not have, is not
// taken for the boot manager: the copy is put back. FAULTS 89
func TestSignedIsNotEnough(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	m.Ends("system")
	lock, _, secret := m.Unlocked()
	keys, err := rootpart.StoredKeys(machinetest.Store{M: m}, secret, lock)
	m.Must(err)
	other, err := enroll.DBSigner{Pair: keys.DB, Time: machinetest.BuildDate}.Sign(ukitest.Image(ukitest.Section{Name: ".text", Data: []byte("an older program")}))
	m.Must(err)
	m.PutESP(machinetest.ManagerCopy, other)
	m.Clock = m.Clock.AddDate(0, 0, 8) // every byte is read once a week
	m.Ends("system", machinetest.ManagerCopy+" was damaged (it is not one of this machine's own")
	if err := m.Startable(machinetest.ManagerCopy, m.Manager); err != nil {
		t.Error(err)
	}
}

// pesigned makes an image as pesign 0.112 signs it: with another object as content
// type than the one that is signed.
func pesigned(m *machinetest.Machine, image []byte) []byte {
	m.T.Helper()
	signed, err := enroll.DBSigner{Pair: m.OtherKeys().DB, Time: machinetest.BuildDate}.Sign(image)
	m.Must(err)
	table := signed[len(image):]
	oid := []byte{0x2b, 0x06, 0x01, 0x04, 0x01, 0x82, 0x37, 0x02, 0x01, 0x04}
	if !bytes.Contains(table, oid) {
		m.T.Fatal("the signature has no content type")
	}
	copy(table, bytes.ReplaceAll(table, oid, append(bytes.Clone(oid[:9]), 0x15)))
	if _, err := authenticode.Verify(signed, nil); err == nil || strings.Contains(err.Error(), "trusted") {
		m.T.Fatalf("it is read: %v", err)
	}
	return signed
}

// An ESP that was kept has files that this machine does not sign and could not: they
// stop nothing, stay as they are, and are named. A boot manager that carries a
// signature of that kind is signed by this machine all the same. FAULTS 112 (M11)
func TestForeignFilesOnTheESP(t *testing.T) {
	m := machinetest.New(t, nil)
	helper := pesigned(m, ukitest.Image(ukitest.Section{Name: ".text", Data: []byte("firmware update helper")}))
	small := ukitest.Image(ukitest.Section{Name: ".text", Data: []byte("32 bits")})
	pe := bytes.Index(small, []byte("PE\x00\x00"))
	copy(small[pe+4:], []byte{0x4c, 0x01}) // i386
	copy(small[pe+24:], []byte{0x0b, 0x01})
	foreign := map[string][]byte{
		"EFI/debian/fwupdx64.efi": helper, "EFI/BOOT/BOOTIA32.EFI": small, "EFI/old/cut.efi": []byte("MZ"),
		"EFI/a/b/c/d/e/f/g/h/deep.efi": helper,
	}
	m.Manager = pesigned(m, m.Manager)
	w := m.Installed(machinetest.DiskSize)
	for name, data := range foreign {
		w.ESP[name] = machinetest.Remains{Data: data}
	}
	m.PowerOn(w)
	end := m.Run()
	if end != "system" {
		t.Fatalf("ends in %s:\n%s", end, m.Said.String())
	}
	for name, data := range foreign {
		if !bytes.Equal(m.ESP.Files[name].Now.Data, data) {
			t.Errorf("%s has changed", name)
		}
		if !strings.Contains(m.Said.String(), name+": not signed, left alone") && !strings.Contains(name, "deep") {
			t.Errorf("%s is not named", name)
		}
	}
	m.OpensByItself()
	_, own, err := machinetest.CertificatesIn(m.Vars)
	m.Must(err)
	if err := authenticode.VerifyOwn(m.ESP.Files[machinetest.Removable].Now.Data, own[0]); err != nil {
		t.Error(err)
	}
}
