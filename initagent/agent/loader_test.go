package agent

import (
	"bytes"
	"strings"
	"syscall"
	"testing"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/uki/ukitest"
)

// withVendor is a machine in use that has an option ROM, and so a certificate of the
// firmware's vendor in db.
func withVendor(t *testing.T) *machine {
	t.Helper()
	m := newMachine(t, func(c *contract.Contract) { c.VendorKeys = contract.VendorAuto })
	m.keysNo++ // the machine's first keys are the next ones
	vendor := m.otherKeys()
	m.keysNo--
	raw, err := secureboot.Database{secureboot.Certificate(vendor.Owner, vendor.DB.Certificate)}.Marshal()
	m.must(err)
	m.vars["dbDefault"] = efiVariable{secureboot.BootServiceAccess | secureboot.RuntimeAccess, raw}
	m.optionROM = "graphics card"
	m.ends("system")
	m.ends("system")
	if _, certificates, err := certificatesIn(m.vars); err != nil || len(certificates) != 2 || !certificates[1].Equal(vendor.DB.Certificate) {
		t.Fatalf("db has %d certificates (%v)", len(certificates), err)
	}
	m.runs(1)
	return m
}

// A loader that a vendor has signed starts by the certificate in db, from a stick, and
// starts this machine's own boot manager or UKI in turn: it may be one that starts anything.
// PCR 4 and PCR 7 have it, so nothing unlocks. Its owner is told what it may be, and a "y"
// is not enough. FAULTS 59
func TestVendorLoader(t *testing.T) {
	loader := ukitest.Image(ukitest.Section{Name: ".text", Data: []byte("a distribution's shim")})
	settled := withVendor(t)
	started := settled.world(true, nil)
	before, err := settled.agent.ToldBoot()
	settled.must(err)
	for _, whole := range []bool{false, true} {
		m := settled
		m.powerOn(started)
		m.vendorLoader, m.startsUKI = loader, whole
		m.printed.Reset()
		m.typed = []string{""}
		m.ends("recovery", "boot manager and EFI programs", "PCR 7 (Secure Boot) differs")
		if m.openVolume != nil || !strings.Contains(m.printed.String(), "Recovery key") {
			t.Errorf("it opens by itself under a vendor's loader: %s", m.printed.String())
		}
		log, err := pcr.ParseLog(m.log)
		m.must(err)
		authorities, err := log.Authorities()
		m.must(err)
		if len(authorities) != 2 {
			t.Errorf("%d authorities are measured, want the vendor's and this machine's", len(authorities))
		}
		m.powerOn(started)
		m.printed.Reset()
		record := m.policyRecord()
		m.typed = []string{m.recoveryKey(), "y", ""}
		m.ends("system")
		said := m.printed.String()
		if !strings.Contains(said, "which is not this machine's own") || !strings.Contains(said, `the word "weaker"`) || strings.Contains(said, "Accepted.") {
			t.Errorf("its owner is told %s", said)
		}
		if now := m.policyRecord(); len(now.Branches) != len(record.Branches) || !now.Allows(&before) {
			t.Errorf("the record was %+v, and is %+v", record, now)
		}
		m.vendorLoader, m.startsUKI = nil, false
		m.runs(1)
	}
}

// Firmware asks nothing of .sbat, and shim, which does, has no part in this system. What
// stands for it: two boot managers that differ in their level alone are two programs, to
// dbx as to the TPM. The older one does not start once the newer has replaced it; where the
// firmware takes no revocation it starts, and unlocks nothing. FAULTS 58
func TestSBATLevel(t *testing.T) {
	levels := func(n string) []byte {
		return ukitest.Image(ukitest.Section{Name: ".text", Data: []byte("boot manager")},
			ukitest.Section{Name: ".sbat", Data: []byte("sbat,1,SBAT Version,sbat,1,https://github.com/rhboot/shim/blob/main/SBAT.md\nsystemd-boot," + n + ",systemd,systemd-boot,257,none\n")})
	}
	for _, refusal := range []error{nil, syscall.EACCES} {
		m := newMachine(t, pinned)
		m.manager, m.nextManager = levels("1"), levels("2")
		m.powerOn(m.installed(diskSize))
		m.ends("system")
		m.ends("system")
		old := bytes.Clone(m.esp.files[removable].now.data)
		m.fetchManager(newRelease(t, 2, 5, pinned), m.nextManager)
		m.runs(2)
		m.bless()
		m.refuse = refusal
		m.settles(2)
		m.plant(removable, old)
		m.said.Reset()
		if refusal == nil {
			err := m.startable(removable, m.manager)
			if end := m.boot(); end != "dead" || err == nil || !strings.Contains(err.Error(), "is in dbx") {
				t.Errorf("with the old level it ends in %s (%v):\n%s", end, err, m.said.String())
			}
			m.plant(removable, m.esp.files[managerCopy].now.data)
			m.runs(2)
			continue
		}
		m.ends("recovery", "PCR 4 differs")
		if m.openVolume != nil {
			t.Error("the old level opens the root partition")
		}
	}
}
