package bootmanager_test

import (
	"bytes"
	"strings"
	"syscall"
	"testing"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/uki/ukitest"
	"halogenos.internal/initagent/machinetest"
)

// withVendor is a machine in use that has an option ROM, and so a certificate of the
// firmware's vendor in db.
func withVendor(t *testing.T) *machinetest.Machine {
	t.Helper()
	m := machinetest.New(t, func(c *contract.Contract) { c.VendorKeys = contract.VendorAuto })
	m.KeysNo++ // the machine's first keys are the next ones
	vendor := m.OtherKeys()
	m.KeysNo--
	raw, err := secureboot.Database{secureboot.Certificate(vendor.Owner, vendor.DB.Certificate)}.Marshal()
	m.Must(err)
	m.Vars["dbDefault"] = machinetest.EFIVariable{Attributes: secureboot.BootServiceAccess | secureboot.RuntimeAccess, Data: raw}
	m.OptionROM = "graphics card"
	m.Ends("system")
	m.Ends("system")
	if _, certificates, err := machinetest.CertificatesIn(m.Vars); err != nil || len(certificates) != 2 || !certificates[1].Equal(vendor.DB.Certificate) {
		t.Fatalf("db has %d certificates (%v)", len(certificates), err)
	}
	m.Runs(1)
	return m
}

// A loader that a vendor has signed starts by the certificate in db, from a stick, and
// starts this machine's own boot manager or UKI in turn: it may be one that starts anything.
// PCR 4 and PCR 7 have it, so nothing unlocks. Its owner is told what it may be, and a "y"
// is not enough. FAULTS 59
func TestVendorLoader(t *testing.T) {
	loader := ukitest.Image(ukitest.Section{Name: ".text", Data: []byte("a distribution's shim")})
	settled := withVendor(t)
	started := settled.World(true, nil)
	before, err := settled.Agent.ToldBoot()
	settled.Must(err)
	for _, whole := range []bool{false, true} {
		m := settled
		m.PowerOn(started)
		m.VendorLoader, m.StartsUKI = loader, whole
		m.Printed.Reset()
		m.Typed = []string{""}
		m.Ends("recovery", "boot manager and EFI programs", "PCR 7 (Secure Boot) differs")
		if m.OpenVolume != nil || !strings.Contains(m.Printed.String(), "Recovery key") {
			t.Errorf("it opens by itself under a vendor's loader: %s", m.Printed.String())
		}
		log, err := pcr.ParseLog(m.Log)
		m.Must(err)
		authorities, err := log.Authorities()
		m.Must(err)
		if len(authorities) != 2 {
			t.Errorf("%d authorities are measured, want the vendor's and this machine's", len(authorities))
		}
		m.PowerOn(started)
		m.Printed.Reset()
		record := m.PolicyRecord()
		m.Typed = []string{m.RecoveryKey(), "y", ""}
		m.Ends("system")
		said := m.Printed.String()
		if !strings.Contains(said, "which is not this machine's own") || !strings.Contains(said, `the word "weaker"`) || strings.Contains(said, "Accepted.") {
			t.Errorf("its owner is told %s", said)
		}
		if now := m.PolicyRecord(); len(now.Branches) != len(record.Branches) || !now.Allows(&before) {
			t.Errorf("the record was %+v, and is %+v", record, now)
		}
		m.VendorLoader, m.StartsUKI = nil, false
		m.Runs(1)
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
		m := machinetest.New(t, machinetest.Pinned)
		m.Manager, m.NextManager = levels("1"), levels("2")
		m.PowerOn(m.Installed(machinetest.DiskSize))
		m.Ends("system")
		m.Ends("system")
		old := bytes.Clone(m.ESP.Files[machinetest.Removable].Now.Data)
		m.FetchManager(machinetest.NewRelease(t, 2, 5, machinetest.Pinned), m.NextManager)
		m.Runs(2)
		m.Bless()
		m.Refuse = refusal
		m.Settles(2)
		m.Plant(machinetest.Removable, old)
		m.Said.Reset()
		if refusal == nil {
			err := m.Startable(machinetest.Removable, m.Manager)
			if end := m.Boot(); end != "dead" || err == nil || !strings.Contains(err.Error(), "is in dbx") {
				t.Errorf("with the old level it ends in %s (%v):\n%s", end, err, m.Said.String())
			}
			m.Plant(machinetest.Removable, m.ESP.Files[machinetest.ManagerCopy].Now.Data)
			m.Runs(2)
			continue
		}
		m.Ends("recovery", "PCR 4 differs")
		if m.OpenVolume != nil {
			t.Error("the old level opens the root partition")
		}
	}
}
