package moduletrust_test

import (
	"bytes"
	mrand "math/rand/v2"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/moduletrust"
	"halogenos.internal/initagent/rootpart"
)

const asks = "Shall this machine trust that key?"

// trusts checks that firmware and list have exactly these certificates of kernel modules.
func trusts(m *machinetest.Machine, want ...[]byte) {
	m.T.Helper()
	list, err := m.StoredList()
	m.Must(err)
	db, err := secureboot.ParseDatabase(m.Vars["db"].Data)
	m.Must(err)
	var keys secureboot.Database
	for _, der := range want {
		keys = append(keys, secureboot.ModuleKey(der))
	}
	if !db.Same(list.Wanted.DB) || !db[1:].Same(keys) || len(db) != 1+len(want) {
		m.T.Errorf("db has %s, the list wants %s, want %s beside this machine's own", db, list.Wanted.DB, keys)
	}
	m.Foreign = len(want)
}

// first is a machine before its first boot, whose release brings a certificate.
func first(t *testing.T, der []byte) *machinetest.Machine {
	t.Helper()
	m := machinetest.New(t, nil)
	m.Releases[1].WithModuleKey(t, der)
	m.PowerOn(m.Installed(machinetest.DiskSize))
	return m
}

// later is a machine that has blessed a release which is the first to bring a certificate, or to
// bring this one.
func later(t *testing.T, der []byte) *machinetest.Machine {
	t.Helper()
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	takes(m, 2, der)
	return m
}

// takes has the machine take a release with a certificate, or without, and bless it. In its
// trial nobody is asked.
func takes(m *machinetest.Machine, version uint64, der []byte) {
	m.T.Helper()
	r := machinetest.NewRelease(m.T, version, 5, machinetest.Pinned)
	if der != nil {
		r.WithModuleKey(m.T, der)
	}
	m.Fetch(r)
	m.Runs(r.Contract.Version)
	m.Bless()
}

// The first start asks before the keys are made, and says what a yes is good for. Whatever is
// answered, it asks once, and the machine opens by itself from then on.
func TestFirstBoot(t *testing.T) {
	for name, c := range map[string]struct {
		typed []string
		yes   bool
	}{
		"yes":             {[]string{"y"}, true},
		"no":              {[]string{"n"}, false},
		"an empty line":   {[]string{""}, false},
		"nobody is there": {nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			der := machinetest.ModuleCertificate(t, "drivers")
			m := first(t, der)
			m.Typed = c.typed
			m.Ends("system", "the release has kernel modules signed by a key")
			text := m.Printed.String()
			if strings.Count(text, asks) != 1 || !strings.Contains(text, "CN=drivers") || !strings.Contains(text, words.ModulesStart) || !strings.Contains(text, words.ModulesRun) {
				t.Errorf("asks:\n%s", text)
			}
			var want [][]byte
			if c.yes {
				want = append(want, der)
			}
			trusts(m, want...)
			m.Must(m.Provisioned())
			m.OpensByItself()
			m.Runs(1)
			trusts(m, want...)
		})
	}
}

// Somebody who has the modules' key can sign an EFI program that the firmware starts. It vouches
// for nothing of this machine's: neither for what it starts by itself nor for its volume.
func TestVouchesForNothing(t *testing.T) {
	der := machinetest.ModuleCertificate(t, "drivers")
	m := first(t, der)
	m.Typed = []string{"y"}
	m.Ends("system")
	for _, c := range rootpart.Certificates(m.Agent.FirmwareKeys) {
		if bytes.Equal(c.Raw, der) {
			t.Error("the certificate of kernel modules counts as one that vouches for volumes")
		}
	}
	if secureboot.StartsROMs(secureboot.ModuleKey(der)) {
		t.Error("option ROMs count as let in by it")
	}
}

// A release that is the first to bring a certificate has the owner asked once it is blessed. By
// a yes db gets it, by an update that this machine's KEK signs; PCR 7 is what was foretold, and
// the machine starts again, since a kernel reads db when it starts.
func TestLaterRelease(t *testing.T) {
	t.Parallel()
	for _, yes := range []bool{true, false} {
		der := machinetest.ModuleCertificate(t, "drivers")
		m := later(t, der)
		m.Typed = []string{map[bool]string{true: "y", false: "n"}[yes]}
		m.Ops = nil
		m.Ends("system", "whose kernel modules are to be trusted is not settled")
		if n := strings.Count(m.Printed.String(), asks); n != 1 {
			t.Fatalf("it asks %d times:\n%s", n, m.Printed.String())
		}
		if wrote := len(m.Written("variable db")) > 0; wrote != yes || strings.Contains(m.Said.String(), "db has changed") != yes {
			t.Errorf("yes is %v: writes %q:\n%s", yes, m.Written("variable"), m.Said.String())
		}
		if yes {
			trusts(m, der)
		} else {
			trusts(m)
		}
		m.Runs(2)
		m.Runs(2)
		m.Ops = nil
		m.Runs(2)
		if r := m.PolicyRecord(); r.Passing() {
			t.Errorf("the record has not settled: %+v", r)
		}
		if got := slices.Concat(m.Written(rootpart.ListFile), m.Written("tpm write"), m.Written("variable")); len(got) > 0 {
			t.Errorf("an ordinary boot writes %q", got)
		}
	}
}

// Where nobody is there, that is said, and they are asked once more when the running system asks
// for it.
func TestNobodyThere(t *testing.T) {
	t.Parallel()
	der := machinetest.ModuleCertificate(t, "drivers")
	m := later(t, der)
	m.Ends("system", "nobody has answered: the release's kernel modules that CN=drivers signs are not trusted")
	trusts(m)
	m.Runs(2)
	m.RootFiles()[moduletrust.WishFile] = []byte(moduletrust.WishAsk + "\n")
	m.Typed = []string{"y"}
	m.Printed.Reset()
	m.Ends("system")
	if strings.Count(m.Printed.String(), asks) != 1 {
		t.Errorf("asks:\n%s", m.Printed.String())
	}
	trusts(m, der)
	if m.RootFiles()[moduletrust.WishFile] != nil {
		t.Error("the wish is still there")
	}
	m.Runs(2)
}

// The owner takes the yes back: nobody has to be at the machine for what narrows db, and it is
// not asked for again.
func TestTakenBack(t *testing.T) {
	t.Parallel()
	der := machinetest.ModuleCertificate(t, "drivers")
	m := later(t, der)
	m.Typed = []string{"y"}
	m.Ends("system")
	trusts(m, der)
	m.Runs(2)
	m.RootFiles()[moduletrust.WishFile] = []byte(moduletrust.WishNo + "\n")
	m.Runs(2, "db has changed")
	trusts(m)
	m.Runs(2)
	trusts(m)
}

// A release with another certificate has the owner asked again. The old one stays while the
// machine may fall back to a system that brings it, and then goes by itself.
func TestChangedCertificate(t *testing.T) {
	t.Parallel()
	one, two := machinetest.ModuleCertificate(t, "one"), machinetest.ModuleCertificate(t, "two")
	m := later(t, one)
	m.Typed = []string{"y"}
	m.Ends("system")
	m.Runs(2)
	takes(m, 3, two)
	m.Typed = []string{"y"}
	m.Printed.Reset()
	m.Ends("system")
	if text := m.Printed.String(); strings.Count(text, asks) != 1 || !strings.Contains(text, "CN=two") {
		t.Errorf("asks:\n%s", text)
	}
	trusts(m, one, two)
	m.Runs(3)
	takes(m, 4, two)
	m.Runs(4, "db has changed")
	trusts(m, two)
	m.Runs(4)
	takes(m, 5, nil)
	m.Runs(5)
	trusts(m, two) // 4 is what the machine falls back to
	takes(m, 6, nil)
	m.Runs(6, "db has changed")
	trusts(m)
	m.Runs(6)
}

// Firmware that does not take another db, or has no room for it, is asked at two starts and left
// alone. Nothing is lost by that: the machine opens by itself.
func TestRefused(t *testing.T) {
	t.Parallel()
	der := machinetest.ModuleCertificate(t, "drivers")
	m := later(t, der)
	m.FullFor, m.Typed = "db", []string{"y"}
	m.Ends("system", "trust-modules FAILED", "did not take db")
	m.Typed = []string{"y"} // a yes is one of the boot that writes
	m.Ends("system", "trust-modules FAILED")
	m.Runs(2)
	m.Said.Reset()
	m.Runs(2)
	if strings.Contains(m.Said.String(), "trust-modules") {
		t.Errorf("it is asked again:\n%s", m.Said.String())
	}
	db, err := secureboot.ParseDatabase(m.Vars["db"].Data)
	m.Must(err)
	if len(db) != 1 || m.PolicyRecord().Passing() {
		t.Errorf("db has %s, the record is %+v", db, m.PolicyRecord())
	}
}

// The first boot has no room in db: the yes is taken back, and the next start asks again.
func TestFirstBootFull(t *testing.T) {
	t.Parallel()
	der := machinetest.ModuleCertificate(t, "drivers")
	m := first(t, der)
	m.FullFor, m.Typed = "db", []string{"y"}
	m.Ends("recovery", "no room for the certificates of kernel modules, so your yes to them is taken back")
	m.FullFor, m.Typed = "", []string{"n"}
	m.Printed.Reset()
	m.Ends("system")
	if strings.Count(m.Printed.String(), asks) != 1 {
		t.Errorf("asks:\n%s", m.Printed.String())
	}
	trusts(m)
	m.OpensByItself()
}

// Cut anywhere between the question and the settled record, the machine opens by itself, and
// comes to the same end; it asks again where the answer was not kept.
func TestCut(t *testing.T) {
	t.Parallel()
	der := machinetest.ModuleCertificate(t, "drivers")
	m := later(t, der)
	from, cut := m.World(true, nil), map[string]int{}
	for _, wish := range []string{"", moduletrust.WishNo} {
		m.Typed = []string{"y"}
		states, end := m.Record(from, mrand.New(mrand.NewPCG(31, 32)), "")
		if end != "system" {
			t.Fatalf("it ends in %s:\n%s", end, m.Said.String())
		}
		asked, finished := 0, m.World(true, nil)
		for _, s := range states {
			m.PowerOn(s.World)
			m.Said.Reset()
			m.Printed.Reset()
			m.Typed = []string{"y"}
			for _, write := range []string{"variable db", "tpm write index", "root keep " + rootpart.ListFile} {
				if strings.Contains(s.How, "("+write+")") {
					cut[write]++
				}
			}
			if wish != "" {
				m.Typed = nil
			}
			for range 3 {
				if end := m.Run(); end != "system" || m.OpenVolume == nil {
					t.Fatalf("%s: it ends in %s:\n%s", s.How, end, m.Said.String())
				}
			}
			if text := m.Printed.String(); strings.Count(text, asks) > 1 || strings.Contains(strings.ToLower(text), "recovery key") {
				t.Errorf("%s: it asks:\n%s", s.How, text)
			}
			asked += strings.Count(m.Printed.String(), asks)
			if wish == "" {
				trusts(m, der)
			} else {
				trusts(m)
			}
			if m.PolicyRecord().Passing() {
				t.Errorf("%s: the record has not settled", s.How)
			}
		}
		if wish == "" && (asked == 0 || asked == len(states)) {
			t.Errorf("%d of %d cut machines ask", asked, len(states))
		}
		t.Logf("%d states after a cut, of which %d ask again", len(states), asked)
		m.PowerOn(finished)
		m.RootFiles()[moduletrust.WishFile] = []byte(moduletrust.WishNo + "\n")
		from = m.World(true, nil)
	}
	if len(cut) != 3 {
		t.Errorf("of the writes only these were cut: %v", cut)
	}
}
