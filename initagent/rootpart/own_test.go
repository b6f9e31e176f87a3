package rootpart_test

import (
	"bytes"
	"crypto/rand"
	"fmt"
	mrand "math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/uki/ukitest"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/bootjournal"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/firstboot"
	"halogenos.internal/initagent/lastgood"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/rootpart"
)

// A machine whose firmware holds somebody else's keys is not accepted, with the
// recovery key and a "y"; what is foreign is named, and so is the way out, which
// works. The explanation comes from the log that the machine has kept, whatever
// else lies beside it. FAULTS 87
func TestForeignKeysAreNotAccepted(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	m.Ends("system")
	evil := m.EvilMaid()
	before := m.PolicyRecord()
	m.Typed = []string{m.Shown[0], "y"}
	m.Printed.Reset()
	m.Ends("system", "nobody vouches for")
	text := m.Printed.String()
	for _, says := range []string{"the TPM was left as it is", "PK holds certificate", evil.PK.Certificate.Subject.String(), evil.Owner.String(), "Setup Mode"} {
		if !strings.Contains(text, says) {
			t.Errorf("lacks %q:\n%s", says, text)
		}
	}
	if strings.Contains(text, "Accept this machine") || fmt.Sprint(m.PolicyRecord()) != fmt.Sprint(before) {
		t.Errorf("it was accepted, or asked about:\n%s", text)
	}
	m.Typed = []string{""}
	m.Ends("recovery")
	r, c := m.Console()
	m.Types(m.Shown[0], "y")
	m.Works(r.Unlock(c))
	m.Refuses(r.Reseal(c), "db holds certificate")
	m.Works(r.Lock())
	m.Vars = machinetest.NewVariables()
	m.Typed = nil
	m.Owner = true
	m.Ends("system", "gives the firmware this machine's own Secure Boot keys again")
	m.Owner = false
	m.Must(m.Provisioned())
}

// Without its list, or its keys, a machine that was made with keys is not accepted:
// root of the running system can remove a file. FAULTS 87
func TestNotAcceptedWithoutKeys(t *testing.T) {
	for name, lose := range map[string]func(m *machinetest.Machine){
		"the keys are gone": func(m *machinetest.Machine) { delete(m.RootFiles(), rootpart.ListFile) },
		"damaged":           func(m *machinetest.Machine) { m.RootFiles()[rootpart.ListFile][300] ^= 1 },
		"the list alone":    func(m *machinetest.Machine) { m.EarlierRelease() },
	} {
		t.Run(name, func(t *testing.T) {
			m := machinetest.ProvisionedMachine(t, nil)
			lose(m)
			m.EvilMaid()
			m.Typed = []string{m.Shown[0], "y"}
			m.Ends("system")
			if text := m.Printed.String(); !strings.Contains(text, "the TPM was left as it is") || strings.Contains(text, "Accept this machine") {
				t.Errorf("it was accepted, or asked about:\n%s", text)
			}
		})
	}
}

// What differs from the last good boot is told before the owner is asked, from the
// log that this machine has kept. FAULTS 87
func TestExplainedFromTheAuthenticLog(t *testing.T) {
	for _, c := range []struct {
		name   string
		lose   bool
		before string
	}{{"a forged log beside it", false, "that this machine has kept of a good boot"}, {"a forged log alone", true, "nobody vouches for"}} {
		t.Run(c.name, func(t *testing.T) {
			m := machinetest.ProvisionedMachine(t, nil)
			m.Ends("system")
			m.Extra = "malware in the firmware"
			m.Must(m.Emulator.PowerOn(m.World(true, nil).Chip))
			_, _, err := m.Start()
			m.Must(err)
			for name := range m.ESP.Files {
				if c.lose && lastgood.Is(path.Base(name)) {
					delete(m.ESP.Files, name)
				}
			}
			m.PutESP(firstboot.Directory+"/eventlog-9999999999999999999.bin", bytes.Clone(m.Log))
			m.Typed = []string{m.Shown[0], "n"}
			m.Printed.Reset()
			m.Ends("system", "nobody vouches for")
			told, _, asked := strings.Cut(m.Printed.String(), "Accept this machine as it is now")
			if !asked || !strings.Contains(told, c.before) || !c.lose && !strings.Contains(told, "malware in the firmware") {
				t.Errorf("tells:\n%s", told)
			}
		})
	}
}

// Root of the running system writes what the firmware shall hold: nobody reads it
// any more, and what is read nobody but the machine can write. FAULTS 90
func TestForgedList(t *testing.T) {
	for _, c := range []struct {
		name  string
		forge func(m *machinetest.Machine, evil secureboot.Entry)
		fails string
	}{
		{"the file of an earlier release", func(m *machinetest.Machine, evil secureboot.Entry) {
			m.EarlierRelease()
			w, err := secureboot.ParseWanted(m.RootFiles()[machinetest.OldWantedFile])
			m.Must(err)
			w.DB = append(w.DB, evil)
			m.RootFiles()[machinetest.OldWantedFile], err = w.Marshal()
			m.Must(err)
		}, ""},
		{"a bit of the list", func(m *machinetest.Machine, _ secureboot.Entry) {
			text := m.RootFiles()[rootpart.ListFile]
			text[len(text)-100] ^= 1
		}, ""},
		{"another machine's list", func(m *machinetest.Machine, evil secureboot.Entry) {
			keys, _, err := secureboot.SplitList(m.RootFiles()[rootpart.ListFile])
			m.Must(err)
			secret, err := policy.NewSecret(m.Random)
			m.Must(err)
			theirs := m.OtherKeys()
			m.RootFiles()[rootpart.ListFile], err = firstboot.WrapList(m.Random, secret, keys, secureboot.NewList(theirs, secureboot.Vendor{DB: secureboot.Database{evil}}))
			m.Must(err)
		}, ""},
		{"no list", func(m *machinetest.Machine, _ secureboot.Entry) { delete(m.RootFiles(), rootpart.ListFile) }, "no Secure Boot keys of its own"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var evil secureboot.Entry
			m := machinetest.InConsole(t, func(m *machinetest.Machine) {
				other := m.OtherKeys()
				evil = secureboot.Certificate(other.Owner, other.DB.Certificate)
				c.forge(m, evil)
				m.Vars = machinetest.NewVariables()
			})
			r, cons := m.Console()
			m.Types(m.Shown[0], "y")
			m.Works(r.Unlock(cons))
			if err := r.Enroll(cons); c.fails != "" {
				m.Refuses(err, c.fails)
			} else {
				m.Works(err)
			}
			db, err := secureboot.ParseDatabase(m.Vars["db"].Data)
			if err != nil || db.Contains(evil) {
				t.Errorf("db holds %s, %v", db, err)
			}
		})
	}
}

// A machine that an earlier release has installed gets its list in the first boot
// that the TPM opens: from the firmware and from what its key has signed. The old
// file stays for the system in the other slot. It is one write, and cut anywhere the
// next boot does it. FAULTS 42, 90
func TestListIsMade(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	m.EarlierRelease()
	old := bytes.Clone(m.RootFiles()[rootpart.KeysFile])
	forged := m.OtherKeys().Wanted(secureboot.Vendor{})
	text, err := forged.Marshal()
	m.Must(err)
	m.RootFiles()[machinetest.OldWantedFile] = text
	m.PutESP("EFI/memtest/memtest.efi", ukitest.Image(ukitest.Section{Name: ".text", Data: []byte("somebody else's")}))
	states, end := m.RecordOnce(mrand.New(mrand.NewPCG(21, 22)))
	if end != "system" {
		t.Fatalf("ends in %s:\n%s", end, m.Said.String())
	}
	t.Logf("%d operations, %d states after a cut", len(m.Ops), len(states))
	for _, s := range states {
		m.PowerOn(s.World)
		m.OpensByItself()
		list, err := m.StoredList()
		m.Must(err)
		state, err := enroll.Observe(&machinetest.Firmware{Vars: m.Vars})
		m.Must(err)
		if list.Bare || enroll.Foreign(state, list) != "" || len(enroll.Enforced(state, list.Wanted)) > 0 {
			t.Errorf("%s: bare %v, db %s", s.How, list.Bare, list.Wanted.DB)
		}
		var names []string
		for _, i := range list.Images() {
			names = append(names, i.Name)
		}
		slices.Sort(names)
		if want := []string{"test_1.efi", "the boot manager that came with test_1.efi"}; !slices.Equal(names, want) {
			t.Errorf("%s: the list has %q", s.How, names)
		}
		if !bytes.Equal(m.RootFiles()[rootpart.KeysFile], old) {
			t.Errorf("%s: the file of the earlier release has changed", s.How)
		}
	}
	m.Ops = nil
	m.OpensByItself()
	if want := []string{"root keep " + bootjournal.File}; !slices.Equal(m.Ops, want) {
		t.Errorf("an ordinary boot writes %q", m.Ops)
	}
}

// The recovery key makes no list: what the firmware holds is vouched for by nothing
// then. FAULTS 87, 90
func TestListIsNotMadeUnvouched(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	m.EarlierRelease()
	m.EvilMaid()
	m.Typed = []string{m.Shown[0], "y"}
	m.Ends("system")
	if _, there := m.RootFiles()[rootpart.ListFile]; there || !strings.Contains(m.Printed.String(), "the TPM was left as it is") {
		t.Errorf("a list was made, or the machine accepted:\n%s", m.Printed.String())
	}
}

// A release is in the list before it is signed; one that an earlier release has
// staged, after a rollback to it, is taken over once the TPM has opened it.
func TestListFollowsReleases(t *testing.T) {
	for _, stagedByOld := range []bool{false, true} {
		t.Run(fmt.Sprintf("staged by an earlier release %v", stagedByOld), func(t *testing.T) {
			m := machinetest.New(t, machinetest.Pinned)
			for range 2 {
				m.Ends("system")
			}
			m.Fetch(machinetest.NewRelease(t, 2, 5, machinetest.Pinned))
			m.Runs(2)
			if list, err := m.StoredList(); err != nil || !list.Names("test_2.efi") {
				t.Fatalf("the list does not have what was staged (%v)", err)
			}
			if stagedByOld {
				lock, _, secret := m.Unlocked()
				keys, err := rootpart.StoredKeys(machinetest.Store{M: m}, secret, lock)
				m.Must(err)
				m.Must(rootpart.KeepList(machinetest.Store{M: m}, m.Random, secret, secureboot.NewList(keys, secureboot.Vendor{})))
				m.Runs(2)
				if list, err := m.StoredList(); err != nil || !list.Names("test_2.efi") {
					t.Errorf("the list does not have the running system (%v)", err)
				}
			}
			m.Bless()
			m.Runs(2)
			list, err := m.StoredList()
			if err != nil || !list.Names("test_2.efi") {
				t.Errorf("the list does not have the running system (%v)", err)
			}
			m.Wants("test_1.efi", "test_2.efi")
		})
	}
}

// Firmware without defaults keeps no certificate that is known to be its vendor's:
// what somebody has put into db in Setup Mode is not enrolled, and neither is it
// again. FAULTS 93
func TestLiveDBIsNotTheFactorys(t *testing.T) {
	m := machinetest.New(t, func(c *contract.Contract) { c.VendorKeys = contract.VendorAuto })
	m.KeysNo++ // the machine's first keys are the next ones
	evil := m.OtherKeys()
	m.KeysNo--
	entry := secureboot.Certificate(evil.Owner, evil.DB.Certificate)
	plant := func() {
		raw, err := secureboot.Database{entry}.Marshal()
		m.Must(err)
		m.Vars = machinetest.NewVariables()
		m.Vars["db"] = machinetest.EFIVariable{Attributes: secureboot.KeyAttributes, Data: raw}
	}
	m.OptionROM = "graphics card"
	plant()
	m.Ends("system", "hashes")
	holds := func() {
		t.Helper()
		db, err := secureboot.ParseDatabase(m.Vars["db"].Data)
		if err != nil || db.Contains(entry) || len(db) != 2 {
			t.Errorf("db holds %s, %v", db, err)
		}
	}
	holds()
	m.Ends("system")
	plant()
	m.Owner = true
	m.OptionROM = "" // which the attacker takes out
	m.Ends("system", "as this machine has stored it")
	holds()
	if list, err := m.StoredList(); err != nil || list.Origin(list.Wanted.DB[1]) != secureboot.FromOptionROM {
		t.Errorf("where the ROM's hash came from is not known (%v)", err)
	}
}

// An option ROM that the list does not have is allowed only when the owner says so,
// apart from the rest, when the keys are enrolled again.
func TestNewOptionROM(t *testing.T) {
	for _, c := range []struct {
		name    string
		console bool
		answer  string
		entries int
	}{{"yes", false, "y", 2}, {"no", false, "n", 1}, {"at the console", true, "y", 2}, {"at the console, no", true, "", 1}} {
		t.Run(c.name, func(t *testing.T) {
			changed := func(m *machinetest.Machine) { m.Vars, m.OptionROM = machinetest.NewVariables(), "new card" }
			var m *machinetest.Machine
			if c.console {
				m = machinetest.InConsole(t, changed)
				r, cons := m.Console()
				m.Types(m.Shown[0], c.answer, "y")
				m.Works(r.Unlock(cons))
				m.Works(r.Enroll(cons), "is not among those that this machine lets start")
				m.Works(r.Lock())
			} else {
				m = machinetest.ProvisionedMachine(t, nil)
				changed(m)
				m.Typed = []string{m.Shown[0], "y", c.answer, m.Shown[0], "y"}
				m.Ends("system")
			}
			db, err := secureboot.ParseDatabase(m.Vars["db"].Data)
			if err != nil || len(db) != c.entries {
				t.Errorf("db holds %s, %v", db, err)
			}
			if c.console {
				m.Typed = []string{m.Shown[0], "y"}
				m.Ends("system")
			}
			list, err := m.StoredList()
			m.Must(err)
			if !list.Wanted.DB.Same(db) || c.entries == 2 && list.Origin(db[1]) != secureboot.FromOwner {
				t.Errorf("the list has %s", list.Wanted.DB)
			}
		})
	}
}

// What the owner has let in for other systems says nothing of option ROMs: each that its hash
// does not let start is asked about, as where the list has nobody else's certificate. One
// that the firmware or the image has brought may be what they start by.
func TestNewROMs(t *testing.T) {
	k, err := secureboot.Generate(rand.Reader, time.Unix(1.7e9, 0))
	if err != nil {
		t.Fatal(err)
	}
	theirs := secureboot.Entry{Type: secureboot.TypeX509, Owner: gpt.GUID{7}, Data: []byte("Microsoft Corporation UEFI CA 2011")}
	windows := secureboot.Entry{Type: secureboot.TypeX509, Owner: gpt.GUID{7}, Data: []byte("Microsoft Windows Production PCA 2011")}
	drivers := secureboot.Drivers{Known: true, ROMs: []secureboot.OptionROM{{Digest: [32]byte{1}, Path: "known"}, {Digest: [32]byte{2}, Path: "new"}, {Path: "without a hash"}}}
	for name, c := range map[string]struct {
		vendor secureboot.Vendor
		others secureboot.Database
		want   int
	}{
		"none":                            {secureboot.Vendor{}, nil, 1},
		"the owner's":                     {secureboot.Vendor{}, secureboot.Database{theirs, windows}, 1},
		"the firmware's":                  {secureboot.Vendor{DB: secureboot.Database{theirs}, From: secureboot.FromFirmware}, nil, 0},
		"the image's":                     {secureboot.Vendor{DB: secureboot.Database{theirs}, From: secureboot.FromContract}, secureboot.Database{windows}, 0},
		"the firmware's, for Windows":     {secureboot.Vendor{DB: secureboot.Database{windows}, From: secureboot.FromFirmware}, nil, 1},
		"the firmware's, and the owner's": {secureboot.Vendor{DB: secureboot.Database{windows}, From: secureboot.FromFirmware}, secureboot.Database{theirs}, 1},
	} {
		list := secureboot.NewList(k, c.vendor)
		list.LetStart(secureboot.OtherSystems{DB: c.others})
		list.Add(secureboot.DB, secureboot.Hash(list.Owner, [32]byte{1}), secureboot.FromOwner)
		got := rootpart.NewROMs(list, drivers)
		if len(got) != c.want || c.want == 1 && got[0].Path != "new" {
			t.Errorf("certificates of others: %s: new are %+v, want %d", name, got, c.want)
		}
		asked := 0
		changed, err := rootpart.AskROMs(words.English, list, drivers, func(question string) (bool, error) {
			asked++
			return strings.Contains(question, "The option ROM of new"), nil
		})
		if err != nil || asked != c.want || changed != (c.want == 1) || len(rootpart.NewROMs(list, drivers)) != 0 {
			t.Errorf("certificates of others: %s: asks %d times, changed %v, %v", name, asked, changed, err)
		}
	}
}
