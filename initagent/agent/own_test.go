package agent

import (
	"bytes"
	"fmt"
	mrand "math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/uki/ukitest"
	"halogenos.internal/initagent/bootjournal"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/firstboot"
	"halogenos.internal/initagent/lastgood"
	"halogenos.internal/initagent/rootpart"
)

// oldWantedFile is where an earlier release keeps what the firmware shall hold:
// anybody who is root of the running system can edit it.
const oldWantedFile = "halogen/secure-boot-wanted"

// otherKeys are a key set that the machine does not use.
func (m *machine) otherKeys() *secureboot.KeySet {
	m.t.Helper()
	sets, err := keySets()
	m.must(err)
	keys, err := copyKeys(sets[(m.keysNo+1)%len(sets)])
	m.must(err)
	return keys
}

// machineSecret opens the volume by the recovery key, for the test alone.
func (m *machine) machineSecret() *policy.Secret {
	m.t.Helper()
	_, volumeKey, secret := m.unlocked()
	luks2.Wipe(volumeKey)
	return secret
}

// setKeys puts contents into the firmware's variables.
func (m *machine) setKeys(w secureboot.Wanted) {
	m.t.Helper()
	for _, v := range []secureboot.Variable{secureboot.PK, secureboot.KEK, secureboot.DB, secureboot.DBX} {
		if content := w.Of(v); len(content) > 0 {
			raw, err := content.Marshal()
			m.must(err)
			m.vars[v.Name] = efiVariable{secureboot.KeyAttributes, raw}
		}
	}
}

func (m *machine) putESP(name string, data []byte) {
	r := remains{data: data}
	m.esp.files[name] = &espFile{r, []remains{r}}
}

// evilMaid gives the firmware somebody else's keys beside the machine's own db
// certificate, signs what the machine starts with them, and forges an event log in
// which these keys were there before.
func (m *machine) evilMaid() *secureboot.KeySet {
	m.t.Helper()
	evil := m.otherKeys()
	own, _, err := certificatesIn(m.vars)
	m.must(err)
	w := evil.Wanted(secureboot.Vendor{})
	w.DB = append(w.DB, own...)
	m.setKeys(w)
	signer := enroll.DBSigner{Pair: evil.DB, Time: buildDate}
	for name, plain := range map[string][]byte{removable: m.manager, managerCopy: m.manager, path.Join(bls.Directory, "test_1.efi"): m.releases[1].uki} {
		signed, err := signer.Sign(plain)
		m.must(err)
		m.putESP(name, signed)
	}
	m.extra = "something harmless"
	m.must(m.emulator.powerOn(m.world(true, nil).chip))
	_, _, err = m.start()
	m.must(err)
	m.putESP(firstboot.Directory+"/eventlog-9999999999999999999.bin", bytes.Clone(m.log))
	m.extra = ""
	return evil
}

// A machine whose firmware holds somebody else's keys is not accepted, with the
// recovery key and a "y"; what is foreign is named, and so is the way out, which
// works. The explanation comes from the log that the machine has kept, whatever
// else lies beside it. FAULTS 87
func TestForeignKeysAreNotAccepted(t *testing.T) {
	m := provisionedMachine(t, nil)
	m.ends("system")
	evil := m.evilMaid()
	before := m.policyRecord()
	m.typed = []string{m.shown[0], "y"}
	m.printed.Reset()
	m.ends("system", "nobody vouches for")
	text := m.printed.String()
	for _, says := range []string{"the TPM was left as it is", "PK holds certificate", evil.PK.Certificate.Subject.String(), evil.Owner.String(), "Setup Mode"} {
		if !strings.Contains(text, says) {
			t.Errorf("lacks %q:\n%s", says, text)
		}
	}
	if strings.Contains(text, "Accept this machine") || fmt.Sprint(m.policyRecord()) != fmt.Sprint(before) {
		t.Errorf("it was accepted, or asked about:\n%s", text)
	}
	m.typed = []string{""}
	m.ends("recovery")
	r, c := m.console()
	m.types(m.shown[0], "y")
	m.works(r.Unlock(c))
	m.refuses(r.Reseal(c), "db holds certificate")
	m.works(r.Lock())
	m.vars = newVariables()
	m.typed = nil
	m.owner = true
	m.ends("system", "gives the firmware this machine's own Secure Boot keys again")
	m.owner = false
	m.must(m.provisioned())
}

// Without its list, or its keys, a machine that was made with keys is not accepted:
// root of the running system can remove a file. FAULTS 87
func TestNotAcceptedWithoutKeys(t *testing.T) {
	for name, lose := range map[string]func(m *machine){
		"the keys are gone": func(m *machine) { delete(m.rootFiles(), rootpart.ListFile) },
		"damaged":           func(m *machine) { m.rootFiles()[rootpart.ListFile][300] ^= 1 },
		"the list alone":    func(m *machine) { m.earlierRelease() },
	} {
		t.Run(name, func(t *testing.T) {
			m := provisionedMachine(t, nil)
			lose(m)
			m.evilMaid()
			m.typed = []string{m.shown[0], "y"}
			m.ends("system")
			if text := m.printed.String(); !strings.Contains(text, "the TPM was left as it is") || strings.Contains(text, "Accept this machine") {
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
			m := provisionedMachine(t, nil)
			m.ends("system")
			m.extra = "malware in the firmware"
			m.must(m.emulator.powerOn(m.world(true, nil).chip))
			_, _, err := m.start()
			m.must(err)
			for name := range m.esp.files {
				if c.lose && lastgood.Is(path.Base(name)) {
					delete(m.esp.files, name)
				}
			}
			m.putESP(firstboot.Directory+"/eventlog-9999999999999999999.bin", bytes.Clone(m.log))
			m.typed = []string{m.shown[0], "n"}
			m.printed.Reset()
			m.ends("system", "nobody vouches for")
			told, _, asked := strings.Cut(m.printed.String(), "Accept this machine as it is now")
			if !asked || !strings.Contains(told, c.before) || !c.lose && !strings.Contains(told, "malware in the firmware") {
				t.Errorf("tells:\n%s", told)
			}
		})
	}
}

// earlierRelease makes the root partition what an earlier release would have left:
// the keys alone, and beside them, for root to edit, what the firmware shall hold.
func (m *machine) earlierRelease() {
	m.t.Helper()
	files := m.rootFiles()
	keys, _, err := secureboot.SplitList(files[rootpart.ListFile])
	m.must(err)
	state, err := enroll.Observe(&firmware{vars: m.vars})
	m.must(err)
	files[rootpart.KeysFile] = bytes.Clone(keys)
	delete(files, rootpart.ListFile)
	files[oldWantedFile], err = state.Live().Marshal()
	m.must(err)
	for name, f := range m.esp.files {
		if base := path.Base(name); lastgood.Is(base) && !f.now.absent {
			delete(m.esp.files, name)
			m.putESP(path.Join(firstboot.Directory, base[:strings.LastIndexByte(base, '-')]+".bin"), f.now.data)
		}
	}
}

// Root of the running system writes what the firmware shall hold: nobody reads it
// any more, and what is read nobody but the machine can write. FAULTS 90
func TestForgedList(t *testing.T) {
	for _, c := range []struct {
		name  string
		forge func(m *machine, evil secureboot.Entry)
		fails string
	}{
		{"the file of an earlier release", func(m *machine, evil secureboot.Entry) {
			m.earlierRelease()
			w, err := secureboot.ParseWanted(m.rootFiles()[oldWantedFile])
			m.must(err)
			w.DB = append(w.DB, evil)
			m.rootFiles()[oldWantedFile], err = w.Marshal()
			m.must(err)
		}, ""},
		{"a bit of the list", func(m *machine, _ secureboot.Entry) {
			text := m.rootFiles()[rootpart.ListFile]
			text[len(text)-100] ^= 1
		}, ""},
		{"another machine's list", func(m *machine, evil secureboot.Entry) {
			keys, _, err := secureboot.SplitList(m.rootFiles()[rootpart.ListFile])
			m.must(err)
			secret, err := policy.NewSecret(m.random)
			m.must(err)
			theirs := m.otherKeys()
			m.rootFiles()[rootpart.ListFile], err = firstboot.WrapList(m.random, secret, keys, secureboot.NewList(theirs, secureboot.Vendor{DB: secureboot.Database{evil}}))
			m.must(err)
		}, ""},
		{"no list", func(m *machine, _ secureboot.Entry) { delete(m.rootFiles(), rootpart.ListFile) }, "no Secure Boot keys of its own"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var evil secureboot.Entry
			m := inConsole(t, func(m *machine) {
				other := m.otherKeys()
				evil = secureboot.Certificate(other.Owner, other.DB.Certificate)
				c.forge(m, evil)
				m.vars = newVariables()
			})
			r, cons := m.console()
			m.types(m.shown[0], "y")
			m.works(r.Unlock(cons))
			if err := r.Enroll(cons); c.fails != "" {
				m.refuses(err, c.fails)
			} else {
				m.works(err)
			}
			db, err := secureboot.ParseDatabase(m.vars["db"].data)
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
	m := provisionedMachine(t, nil)
	m.earlierRelease()
	old := bytes.Clone(m.rootFiles()[rootpart.KeysFile])
	forged := m.otherKeys().Wanted(secureboot.Vendor{})
	text, err := forged.Marshal()
	m.must(err)
	m.rootFiles()[oldWantedFile] = text
	m.putESP("EFI/memtest/memtest.efi", ukitest.Image(ukitest.Section{Name: ".text", Data: []byte("somebody else's")}))
	states, end := m.recordOnce(mrand.New(mrand.NewPCG(21, 22)))
	if end != "system" {
		t.Fatalf("ends in %s:\n%s", end, m.said.String())
	}
	t.Logf("%d operations, %d states after a cut", len(m.ops), len(states))
	for _, s := range states {
		m.powerOn(s.world)
		m.opensByItself()
		list, err := m.storedList()
		m.must(err)
		state, err := enroll.Observe(&firmware{vars: m.vars})
		m.must(err)
		if list.Bare || enroll.Foreign(state, list) != "" || len(enroll.Enforced(state, list.Wanted)) > 0 {
			t.Errorf("%s: bare %v, db %s", s.how, list.Bare, list.Wanted.DB)
		}
		var names []string
		for _, i := range list.Images() {
			names = append(names, i.Name)
		}
		slices.Sort(names)
		if want := []string{"test_1.efi", "the boot manager that came with test_1.efi"}; !slices.Equal(names, want) {
			t.Errorf("%s: the list has %q", s.how, names)
		}
		if !bytes.Equal(m.rootFiles()[rootpart.KeysFile], old) {
			t.Errorf("%s: the file of the earlier release has changed", s.how)
		}
	}
	m.ops = nil
	m.opensByItself()
	if want := []string{"root keep " + bootjournal.File}; !slices.Equal(m.ops, want) {
		t.Errorf("an ordinary boot writes %q", m.ops)
	}
}

// The recovery key makes no list: what the firmware holds is vouched for by nothing
// then. FAULTS 87, 90
func TestListIsNotMadeUnvouched(t *testing.T) {
	m := provisionedMachine(t, nil)
	m.earlierRelease()
	m.evilMaid()
	m.typed = []string{m.shown[0], "y"}
	m.ends("system")
	if _, there := m.rootFiles()[rootpart.ListFile]; there || !strings.Contains(m.printed.String(), "the TPM was left as it is") {
		t.Errorf("a list was made, or the machine accepted:\n%s", m.printed.String())
	}
}

// A release is in the list before it is signed; one that an earlier release has
// staged, after a rollback to it, is taken over once the TPM has opened it.
func TestListFollowsReleases(t *testing.T) {
	for _, stagedByOld := range []bool{false, true} {
		t.Run(fmt.Sprintf("staged by an earlier release %v", stagedByOld), func(t *testing.T) {
			m := newMachine(t, pinned)
			for range 2 {
				m.ends("system")
			}
			m.fetch(newRelease(t, 2, 5, pinned))
			m.runs(2)
			if list, err := m.storedList(); err != nil || !list.Names("test_2.efi") {
				t.Fatalf("the list does not have what was staged (%v)", err)
			}
			if stagedByOld {
				lock, _, secret := m.unlocked()
				keys, err := rootpart.StoredKeys(store{m}, secret, lock)
				m.must(err)
				m.must(rootpart.KeepList(store{m}, m.random, secret, secureboot.NewList(keys, secureboot.Vendor{})))
				m.runs(2)
				if list, err := m.storedList(); err != nil || !list.Names("test_2.efi") {
					t.Errorf("the list does not have the running system (%v)", err)
				}
			}
			m.bless()
			m.runs(2)
			list, err := m.storedList()
			if err != nil || !list.Names("test_2.efi") {
				t.Errorf("the list does not have the running system (%v)", err)
			}
			m.wants("test_1.efi", "test_2.efi")
		})
	}
}

// Firmware without defaults keeps no certificate that is known to be its vendor's:
// what somebody has put into db in Setup Mode is not enrolled, and neither is it
// again. FAULTS 93
func TestLiveDBIsNotTheFactorys(t *testing.T) {
	m := newMachine(t, func(c *contract.Contract) { c.VendorKeys = contract.VendorAuto })
	m.keysNo++ // the machine's first keys are the next ones
	evil := m.otherKeys()
	m.keysNo--
	entry := secureboot.Certificate(evil.Owner, evil.DB.Certificate)
	plant := func() {
		raw, err := secureboot.Database{entry}.Marshal()
		m.must(err)
		m.vars = newVariables()
		m.vars["db"] = efiVariable{secureboot.KeyAttributes, raw}
	}
	m.optionROM = "graphics card"
	plant()
	m.ends("system", "hashes")
	holds := func() {
		t.Helper()
		db, err := secureboot.ParseDatabase(m.vars["db"].data)
		if err != nil || db.Contains(entry) || len(db) != 2 {
			t.Errorf("db holds %s, %v", db, err)
		}
	}
	holds()
	m.ends("system")
	plant()
	m.owner = true
	m.optionROM = "" // which the attacker takes out
	m.ends("system", "as this machine has stored it")
	holds()
	if list, err := m.storedList(); err != nil || list.Origin(list.Wanted.DB[1]) != secureboot.FromOptionROM {
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
			changed := func(m *machine) { m.vars, m.optionROM = newVariables(), "new card" }
			var m *machine
			if c.console {
				m = inConsole(t, changed)
				r, cons := m.console()
				m.types(m.shown[0], c.answer, "y")
				m.works(r.Unlock(cons))
				m.works(r.Enroll(cons), "is not among those that this machine lets start")
				m.works(r.Lock())
			} else {
				m = provisionedMachine(t, nil)
				changed(m)
				m.typed = []string{m.shown[0], "y", c.answer, m.shown[0], "y"}
				m.ends("system")
			}
			db, err := secureboot.ParseDatabase(m.vars["db"].data)
			if err != nil || len(db) != c.entries {
				t.Errorf("db holds %s, %v", db, err)
			}
			if c.console {
				m.typed = []string{m.shown[0], "y"}
				m.ends("system")
			}
			list, err := m.storedList()
			m.must(err)
			if !list.Wanted.DB.Same(db) || c.entries == 2 && list.Origin(db[1]) != secureboot.FromOwner {
				t.Errorf("the list has %s", list.Wanted.DB)
			}
		})
	}
}
