package setup_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"math/big"
	mrand "math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/answers"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/uki/ukitest"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/tpm"
)

const (
	wish       = `{"version":1,"certificates":[]}` + "\n"
	asksOthers = "Shall other systems, such as Windows, go on starting"
)

// authority is a certificate that looks like one of the factory's.
func authority(m *machinetest.Machine, organization, name string) secureboot.Entry {
	m.T.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	m.Must(err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Unix(1.3e9, 0), NotAfter: time.Unix(1.8e9, 0),
		Subject: pkix.Name{Organization: []string{organization}, CommonName: name},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	m.Must(err)
	return secureboot.Entry{Type: secureboot.TypeX509, Owner: gpt.GUID{7}, Data: der}
}

// withDefaults gives a machine's firmware default keys: Microsoft's, and its maker's. It
// returns those by which other systems start.
func withDefaults(m *machinetest.Machine) secureboot.Database {
	m.T.Helper()
	theirs := secureboot.Database{authority(m, "Microsoft Corporation", "Microsoft Windows Production PCA 2011"), authority(m, "Microsoft Corporation", "Microsoft Corporation UEFI CA 2011")}
	setDatabase(m, "dbDefault", slices.Concat(theirs, secureboot.Database{authority(m, "Example Computers", "Example Computers Secure Boot")}))
	setDatabase(m, "dbxDefault", secureboot.Database{secureboot.Hash(gpt.GUID{7}, [32]byte{0xee})})
	setDatabase(m, "KEKDefault", secureboot.Database{authority(m, "Microsoft Corporation", "Microsoft Corporation KEK CA 2011")})
	return theirs
}

func setDatabase(m *machinetest.Machine, name string, d secureboot.Database) {
	m.T.Helper()
	raw, err := d.Marshal()
	m.Must(err)
	m.Vars[name] = machinetest.EFIVariable{Attributes: secureboot.BootServiceAccess | secureboot.RuntimeAccess, Data: raw}
}

// letsStart checks that firmware and list have exactly these of others, by the owner's word,
// and nobody else's key for db itself.
func letsStart(m *machinetest.Machine, theirs secureboot.Database) {
	m.T.Helper()
	hasList(m)
	list, err := m.StoredList()
	m.Must(err)
	db, err := secureboot.ParseDatabase(m.Vars["db"].Data)
	m.Must(err)
	kek, err := secureboot.ParseDatabase(m.Vars["KEK"].Data)
	m.Must(err)
	if foreign := db.Without(list.Wanted.DB[:1]); !foreign.Same(theirs) || len(db) != 1+len(theirs) || !db.Same(list.Wanted.DB) || len(kek) != 1 {
		m.T.Errorf("db has %s, the list wants %s, KEK has %s", db, list.Wanted.DB, kek)
	}
	for _, e := range theirs {
		if from := list.Origin(e); from != secureboot.FromOwner {
			m.T.Errorf("%s came from %q", e, from)
		}
	}
	if revoked := len(list.Wanted.DBX) > 0; revoked != (len(theirs) > 0) {
		m.T.Errorf("dbx is wanted to have %s", list.Wanted.DBX)
	}
}

// Where the installer has left the wish, who is at the console decides: whatever the image
// says, with a TPM and without. From then on the machine opens by itself.
func TestLetOthersStart(t *testing.T) {
	none := func(c *contract.Contract) { c.VendorKeys = contract.VendorNone }
	for name, c := range map[string]struct {
		contract func(*contract.Contract)
		typed    []string
		yes      bool
	}{
		"yes":               {nil, []string{"y"}, true},
		"yes to none":       {none, []string{"Y "}, true},
		"no":                {nil, []string{"n"}, false},
		"an empty line":     {nil, []string{""}, false},
		"a word":            {nil, []string{"yes"}, false},
		"nobody is there":   {nil, nil, false},
		"nobody, with none": {none, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			m := machinetest.New(t, c.contract)
			theirs := withDefaults(m)
			m.SetFile(secureboot.OthersOnESP, []byte(wish))
			m.Typed = c.typed
			m.Ends("system", "the installer has left the wish")
			text := m.Printed.String()
			if strings.Count(text, asksOthers) != 1 || !strings.Contains(text, "Microsoft Windows Production PCA 2011") || !strings.Contains(text, words.OthersSpare) {
				t.Errorf("asks:\n%s", text)
			}
			if !c.yes {
				theirs = nil
			}
			m.Foreign = len(theirs)
			m.Must(m.Provisioned())
			letsStart(m, theirs)
			m.OpensByItself()
			letsStart(m, theirs)
		})
	}
}

// Without a TPM the keys, and so the question, come after the root partition, and it says
// what protects the data less.
func TestLetOthersStartWithoutTPM(t *testing.T) {
	m := machinetest.New(t, func(c *contract.Contract) { c.TPM = contract.Optional })
	m.NoTPM = tpm.ErrAbsent
	theirs := withDefaults(m)
	m.SetFile(secureboot.OthersOnESP, []byte(wish))
	m.Owner = true
	m.Ends("system")
	if text := m.Printed.String(); strings.Count(text, asksOthers) != 1 || !strings.Contains(text, "This machine has no TPM") {
		t.Errorf("asks:\n%s", text)
	}
	letsStart(m, theirs)
}

// The question is in the language that was chosen when the machine was installed, though it
// comes before anything else of the installer's is taken.
func TestOthersAskedInTheLanguage(t *testing.T) {
	m := machinetest.New(t, nil)
	theirs := withDefaults(m)
	m.SetFile(secureboot.OthersOnESP, []byte(wish))
	m.SetFile(answers.OnESP, []byte(answersIn("de_DE.UTF-8")))
	m.Typed = []string{"j"}
	m.Ends("system")
	if text := m.Printed.String(); strings.Contains(text, asksOthers) || !strings.Contains(text, words.Language("de").Text(words.OthersSpare)) {
		t.Errorf("asks:\n%s", text)
	}
	m.Foreign = len(theirs)
	m.Must(m.Provisioned())
	letsStart(m, theirs)
	answersAre(m, answersIn("de_DE.UTF-8"))
}

// Nobody is asked where nothing was left, where the image lets others start anyway, or where
// there is nothing that they could start by, which is said.
func TestOthersNotAsked(t *testing.T) {
	for name, c := range map[string]struct {
		contract func(*contract.Contract)
		machine  func(m *machinetest.Machine)
		says     string
		foreign  int
	}{
		"nothing was left":       {nil, func(m *machinetest.Machine) { withDefaults(m) }, "", 0},
		"the image lets them":    {func(c *contract.Contract) { c.VendorKeys = contract.VendorMicrosoft }, func(m *machinetest.Machine) { withDefaults(m); m.SetFile(secureboot.OthersOnESP, []byte(wish)) }, "", 3},
		"no defaults":            {nil, func(m *machinetest.Machine) { m.SetFile(secureboot.OthersOnESP, []byte(wish)) }, "WARNING: other systems will not start with Secure Boot on", 0},
		"forged in db and there": {nil, forgedOthers, "WARNING: other systems will not start with Secure Boot on", 0},
	} {
		t.Run(name, func(t *testing.T) {
			m := machinetest.New(t, c.contract)
			c.machine(m)
			m.Typed = []string{"y", "y", "y"}
			m.Ends("system", c.says)
			if strings.Contains(m.Printed.String(), asksOthers) {
				t.Errorf("asks:\n%s", m.Printed.String())
			}
			m.Foreign = c.foreign
			m.Must(m.CheckKeys())
		})
	}
}

// forgedOthers puts certificates with Microsoft's name where anybody can write.
func forgedOthers(m *machinetest.Machine) {
	m.T.Helper()
	forged := authority(m, "Microsoft Corporation", "Windows UEFI CA 2023")
	setDatabase(m, "db", secureboot.Database{forged})
	m.SetFile(secureboot.OthersOnESP, []byte(`{"version":1,"certificates":["`+base64.StdEncoding.EncodeToString(forged.Data)+`"]}`))
}

// A file that nobody can read is a wish as well: what the firmware's defaults have is
// offered, and nothing of what was left.
func TestOthersDamaged(t *testing.T) {
	m := machinetest.New(t, nil)
	theirs := withDefaults(m)
	m.SetFile(secureboot.OthersOnESP, []byte(`{"version":9}`))
	m.Typed = []string{"y"}
	m.Ends("system", "EFI/halogen/others.json on the ESP: has version 9")
	letsStart(m, theirs)
}

// Between the first boot and the second, and in use, the file does nothing; and a list with
// certificates of others is compared with at every boot: with one that was put there
// besides, nothing opens.
func TestOthersPlanted(t *testing.T) {
	m := machinetest.New(t, nil)
	withDefaults(m)
	if end := m.Boot(); end != "reboot" {
		t.Fatalf("the first boot ends in %s:\n%s", end, m.Said.String())
	}
	m.SetFile(secureboot.OthersOnESP, []byte(wish))
	m.Typed = []string{"y"}
	m.Ends("system")
	letsStart(m, nil)
	m.OpensByItself()
	letsStart(m, nil)
}

// A loader that Microsoft has signed starts where its owner let it, and opens nothing, even
// where it starts this machine's own boot manager in turn.
func TestOthersOpenNothing(t *testing.T) {
	m := machinetest.New(t, nil)
	theirs := withDefaults(m)
	m.SetFile(secureboot.OthersOnESP, []byte(wish))
	m.Typed = []string{"y"}
	m.Ends("system")
	m.OpensByItself()
	m.VendorLoader = ukitest.Image(ukitest.Section{Name: ".text", Data: []byte("a distribution's shim")})
	m.Typed = []string{""}
	m.Ends("recovery", "PCR 7 (Secure Boot) differs")
	if m.OpenVolume != nil {
		t.Error("it opens under a loader of others")
	}
	m.VendorLoader = nil
	m.OpensByItself()
	more := append(slices.Clone(theirs), authority(m, "Microsoft Corporation", "Windows UEFI CA 2023"))
	list, err := m.StoredList()
	m.Must(err)
	setDatabase(m, "db", slices.Concat(list.Wanted.DB, more[len(theirs):]))
	state, err := enroll.Observe(&machinetest.Firmware{Vars: m.Vars})
	m.Must(err)
	if enroll.Foreign(state, list) == "" {
		t.Error("a certificate that the list lacks is not foreign")
	}
	m.Typed = []string{""}
	m.Ends("recovery", "PCR 7 (Secure Boot) differs")
}

// The owner, who gives the firmware this machine's keys again, may let others start then; a
// second time nobody asks, since the list has it. The TPM is told before, so that the machine
// opens by itself from then on.
func TestLetOthersStartAgain(t *testing.T) {
	m := inUse(t)
	var theirs secureboot.Database
	for round, asked := range []int{1, 0} {
		m.PowerOn(m.Reinstalled(1))
		if round == 0 {
			theirs = withDefaults(m)
		} else {
			setDatabase(m, "dbDefault", theirs)
		}
		m.SetFile(secureboot.OthersOnESP, []byte(wish))
		m.Printed.Reset()
		m.Owner = true
		m.Ends("system", "gives the firmware this machine's own Secure Boot keys again")
		if text := m.Printed.String(); strings.Count(text, asksOthers) != asked || strings.Count(text, "Recovery key") != 1 {
			t.Errorf("round %d asks:\n%s", round, text)
		}
		letsStart(m, theirs)
		m.Must(m.Kept())
		m.Owner = false
		m.OpensByItself()
		letsStart(m, theirs)
	}
}

// The power is cut at every write and flush of the first two boots. Each machine ends with
// what its owner has said, once for both firmware and list. FAULTS 42
func TestCutLetOthersStart(t *testing.T) {
	m := machinetest.New(t, nil)
	m.PowerOn(m.Installed(machinetest.DiskSize))
	theirs := withDefaults(m)
	m.SetFile(secureboot.OthersOnESP, []byte(wish))
	m.Owner, m.Foreign = true, len(theirs)
	states, end := m.Record(m.World(true, nil), mrand.New(mrand.NewPCG(71, 72)), "")
	if end != "system" {
		t.Fatalf("ends in %s:\n%s", end, m.Said.String())
	}
	asked, tried := 0, 0
	for i, s := range states {
		if i%7 > 0 && !strings.Contains(s.How, "variable") && !strings.Contains(s.How, "keys-0.json") {
			continue
		}
		tried++
		m.PowerOn(s.World)
		m.Said.Reset()
		m.Printed.Reset()
		if end := m.Run(); end != "system" {
			t.Errorf("%s: it ends in %s:\n%s", s.How, end, m.Said.String())
			continue
		}
		asked += strings.Count(m.Printed.String(), asksOthers)
		if err := m.Provisioned(); err != nil {
			t.Errorf("%s: %v", s.How, err)
		}
		letsStart(m, theirs)
	}
	if asked == 0 || asked == tried {
		t.Errorf("%d of %d cut machines ask: those that were cut before their keys are kept, and no other", asked, tried)
	}
	t.Logf("%d states after a cut, of which %d were tried, and %d asked again", len(states), tried, asked)
}

// A firmware that says how little room it has is not asked to take what others start by, and
// nobody is asked either.
func TestOthersWithoutRoom(t *testing.T) {
	for room, asked := range map[int64]int{5 << 10: 0, 64 << 10: 1} {
		m := machinetest.New(t, nil)
		theirs := withDefaults(m)
		m.SetFile(secureboot.OthersOnESP, []byte(wish))
		m.FirmwareRoom, m.Typed = room, []string{"y"}
		m.Ends("system", map[int]string{0: "WARNING: other systems will not start with Secure Boot on: their certificates", 1: "letting other systems start takes "}[asked])
		if n := strings.Count(m.Printed.String(), asksOthers); n != asked {
			t.Errorf("with %d bytes it asks %d times, want %d", room, n, asked)
		}
		letsStart(m, theirs[:len(theirs)*asked])
	}
}

// Where it does not say, the owner's yes is taken back when it has no room: the start stops
// and says so, and the next one asks again. A no goes on without others, and so does a yes
// once there is room.
func TestOthersTakenBack(t *testing.T) {
	for _, full := range []string{"dbx", "db"} {
		for _, room := range []bool{false, true} {
			m := machinetest.New(t, nil)
			theirs := withDefaults(m)
			m.SetFile(secureboot.OthersOnESP, []byte(wish))
			m.FullFor, m.Typed = full, []string{"y"}
			m.Ends("recovery", "no room for what other systems start by, so your yes to them is taken back", "its variable store is full")
			m.Typed = []string{"y"}
			if room {
				m.FullFor = ""
			} else if m.Typed[0] = "n"; full == "db" {
				continue // not even this machine's own key has room
			}
			m.Printed.Reset()
			m.Ends("system")
			if !strings.Contains(m.Printed.String(), asksOthers) {
				t.Errorf("no room for %s: nobody is asked again:\n%s", full, m.Printed.String())
			}
			if !room {
				theirs = nil
			}
			m.Foreign = len(theirs)
			m.Must(m.Provisioned())
			letsStart(m, theirs)
			m.FullFor = ""
			m.OpensByItself()
			letsStart(m, theirs)
		}
	}
}

// An ESP without room takes nothing back: what the firmware has by then has its keys there alone.
func TestYesOutlivesFullESP(t *testing.T) {
	m := machinetest.New(t, nil)
	theirs := withDefaults(m)
	m.SetFile(secureboot.OthersOnESP, []byte(wish))
	m.Typed = []string{"y"}
	m.Keeps = func(content []byte) []byte { m.ESP.Full = true; return content }
	m.Ends("recovery", "no space left on device")
	if strings.Contains(m.Said.String(), "taken back") {
		t.Errorf("the yes is taken back:\n%s", m.Said.String())
	}
	m.ESP.Full, m.Keeps = false, nil
	m.Ends("system")
	m.Foreign = len(theirs)
	m.Must(m.Provisioned())
	letsStart(m, theirs)
	m.OpensByItself()
}

// Nor does a firmware that says it has no room for PK, and enforces it all the same.
func TestYesOutlivesPKThatWasTaken(t *testing.T) {
	m := machinetest.New(t, nil)
	theirs := withDefaults(m)
	m.SetFile(secureboot.OthersOnESP, []byte(wish))
	m.FullFor, m.Typed = "PK", []string{"y"}
	m.Snapshot = func() {
		if len(m.Ops) > 0 && m.Ops[len(m.Ops)-1] == "variable PK" {
			m.Vars["PK"] = machinetest.EFIVariable{Attributes: secureboot.KeyAttributes, Data: []byte("half of it")}
			machinetest.SetFlag(m.Vars, "SetupMode", 0)
		}
	}
	m.Ends("recovery", "the firmware did not take PK")
	if strings.Contains(m.Said.String(), "taken back") {
		t.Errorf("the yes is taken back:\n%s", m.Said.String())
	}
	// The owner clears the keys in the firmware's setup: those on the ESP are used, and nobody is asked.
	m.FullFor, m.Snapshot = "", nil
	delete(m.Vars, "PK")
	machinetest.SetFlag(m.Vars, "SetupMode", 1)
	m.Printed.Reset()
	m.Ends("system")
	if strings.Contains(m.Printed.String(), asksOthers) {
		t.Errorf("it asks again:\n%s", m.Printed.String())
	}
	m.Foreign = len(theirs)
	m.Must(m.Provisioned())
	letsStart(m, theirs)
}

// The same where the owner gives the firmware this machine's keys again: the data stay, and
// so do the keys.
func TestOthersTakenBackAgain(t *testing.T) {
	m := inUse(t)
	m.PowerOn(m.Reinstalled(1))
	withDefaults(m)
	m.SetFile(secureboot.OthersOnESP, []byte(wish))
	m.FullFor, m.Owner = "dbx", true
	m.Ends("system", "no room for what other systems start by, so your yes to them is taken back")
	list, err := m.StoredList()
	m.Must(err)
	if len(list.Wanted.DB) != 1 || len(list.Wanted.DBX) != 0 {
		t.Errorf("the list wants %s, and %s in dbx", list.Wanted.DB, list.Wanted.DBX)
	}
	delete(m.ESP.Files, secureboot.OthersOnESP)
	m.Ends("system", "gives the firmware this machine's own Secure Boot keys again")
	letsStart(m, nil)
	m.Must(m.Kept())
	m.Owner = false
	m.OpensByItself()
}

// The power is cut at every write while the yes is taken back. Each machine ends with what its
// owner says once there is room. FAULTS 42
func TestCutTakenBack(t *testing.T) {
	m := machinetest.New(t, nil)
	m.PowerOn(m.Installed(machinetest.DiskSize))
	theirs := withDefaults(m)
	m.SetFile(secureboot.OthersOnESP, []byte(wish))
	m.Owner, m.Foreign, m.FullFor = true, len(theirs), "dbx"
	states, end := m.Record(m.World(true, nil), mrand.New(mrand.NewPCG(73, 74)), "")
	if end != "recovery" {
		t.Fatalf("ends in %s:\n%s", end, m.Said.String())
	}
	asked, tried := 0, 0
	for _, s := range states {
		if !strings.Contains(s.How, "keys-0.json") && !strings.Contains(s.How, "variable db") {
			continue
		}
		tried++
		m.PowerOn(s.World)
		m.FullFor = ""
		m.Said.Reset()
		m.Printed.Reset()
		if end := m.Run(); end != "system" {
			t.Errorf("%s: it ends in %s:\n%s", s.How, end, m.Said.String())
			continue
		}
		asked += strings.Count(m.Printed.String(), asksOthers)
		if err := m.Provisioned(); err != nil {
			t.Errorf("%s: %v", s.How, err)
		}
		letsStart(m, theirs)
	}
	if asked == 0 || asked == tried {
		t.Errorf("%d of %d cut machines ask: those that have no keys yet, or none any more, and no other", asked, tried)
	}
	t.Logf("%d states after a cut, of which %d were tried, and %d asked again", len(states), tried, asked)
}
