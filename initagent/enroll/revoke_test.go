package enroll

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/uki/ukitest"
)

// A machine in use, with its keys in the firmware.
func inUse(t *testing.T, k *secureboot.KeySet, w secureboot.Wanted) *nvram {
	t.Helper()
	n := newNVRAM(always())
	if err := enroller(n, k, w).Run(0); err != nil {
		t.Fatal(err)
	}
	n.restart(always())
	n.writes = nil
	return n
}

// A revocation is appended in one write, comes to the content that was predicted for
// PCR 7, and is not written twice. Cut at every operation, it is there or not, and
// the next run finishes it. FAULTS 42
func TestRevoke(t *testing.T) {
	k, other := testSets(t)
	l := secureboot.NewList(k, secureboot.Vendor{DBX: secureboot.Database{secureboot.Hash(other.Owner, [32]byte{1})}})
	enrolled := l.Wanted
	l.Revoke([32]byte{2}, "it was replaced")
	for at := 0; ; at++ {
		n := inUse(t, k, enrolled)
		missing, after, err := Revocations(observe(t, n), l.Wanted)
		if err != nil || len(missing) != 1 {
			t.Fatalf("%s are missing, %v", missing, err)
		}
		n.plug = &plug{left: at}
		done := enroller(n, k, l.Wanted).Revoke()
		if done != nil && !errors.Is(done, errCut) {
			if p, ok := errors.AsType[*Problem](done); !ok || p.Kind != Refused {
				t.Fatal(done)
			}
		}
		n.plug = always()
		if err := enroller(n, k, l.Wanted).Revoke(); err != nil {
			t.Fatalf("cut at operation %d: %v", at, err)
		}
		if got := n.vars["dbx"].data; !bytes.Equal(got, after) {
			t.Fatalf("cut at operation %d: dbx is %x, predicted %x", at, got, after)
		}
		if d := Enforced(observe(t, n), l.Wanted); len(d) > 0 || !slices.Equal(n.writes, []string{"dbx"}) {
			t.Fatalf("cut at operation %d: %v, written %q", at, d, n.writes)
		}
		if done == nil {
			break
		}
	}
	n := inUse(t, k, enrolled)
	n.refuse = map[string]int{"dbx": attempts}
	if err := enroller(n, k, l.Wanted).Revoke(); err == nil || !strings.Contains(err.Error(), "did not take 1 revocations") {
		t.Errorf("refused by the firmware: %v", err)
	}
}

// What is foreign is named with its variable, its owner and what it is, and what
// harms nobody is not.
func TestForeign(t *testing.T) { // FAULTS 87
	k, other := testSets(t)
	vendor := secureboot.Certificate(other.Owner, other.KEK.Certificate)
	l := secureboot.NewList(k, secureboot.Vendor{KEK: secureboot.Database{vendor}, DBX: secureboot.Database{secureboot.Hash(k.Owner, [32]byte{1})}})
	theirs := secureboot.Certificate(other.Owner, other.DB.Certificate)
	for _, c := range []struct {
		name   string
		change func(n *nvram, w *secureboot.Wanted)
		want   []string
	}{
		{"nothing", func(*nvram, *secureboot.Wanted) {}, nil},
		{"another PK", func(_ *nvram, w *secureboot.Wanted) {
			w.PK = secureboot.Database{secureboot.Certificate(other.Owner, other.PK.Certificate)}
		}, []string{"PK holds certificate", other.PK.Certificate.Subject.String(), other.Owner.String(), "SHA-256"}},
		{"a KEK more", func(_ *nvram, w *secureboot.Wanted) { w.KEK = append(slices.Clone(w.KEK), theirs) }, []string{"KEK holds certificate"}},
		{"a KEK of the vendor's less", func(_ *nvram, w *secureboot.Wanted) { w.KEK = w.KEK[:1] }, nil},
		{"a db certificate more", func(_ *nvram, w *secureboot.Wanted) { w.DB = append(slices.Clone(w.DB), theirs) }, []string{"db holds certificate"}},
		{"a hash more", func(_ *nvram, w *secureboot.Wanted) {
			w.DB = append(slices.Clone(w.DB), secureboot.Hash(other.Owner, [32]byte{9}))
		}, []string{"db holds hash 0900"}},
		{"own db gone", func(_ *nvram, w *secureboot.Wanted) { w.DB = secureboot.Database{theirs} }, []string{"db holds certificate"}},
		{"a revocation more", func(_ *nvram, w *secureboot.Wanted) {
			w.DBX = append(slices.Clone(w.DBX), secureboot.Hash(other.Owner, [32]byte{8}))
		}, nil},
		{"a revocation less", func(_ *nvram, w *secureboot.Wanted) { w.DBX = nil }, []string{"dbx lacks hash 0100"}},
		{"open to anybody", func(n *nvram, _ *secureboot.Wanted) { n.open = map[string]bool{"db": true} }, []string{"db has attributes"}},
	} {
		w := l.Wanted
		n := newNVRAM(always())
		c.change(n, &w)
		for _, v := range []secureboot.Variable{secureboot.PK, secureboot.KEK, secureboot.DB, secureboot.DBX} {
			raw, err := w.Of(v).Marshal()
			if err != nil {
				t.Fatal(err)
			}
			if len(raw) > 0 {
				n.store(v.Name, secureboot.KeyAttributes, raw)
			}
		}
		got := Foreign(observe(t, n), l)
		if len(c.want) == 0 && got != "" {
			t.Errorf("%s: %s", c.name, got)
		}
		for _, want := range c.want {
			if !strings.Contains(got, want) {
				t.Errorf("%s: %q lacks %q", c.name, got, want)
			}
		}
	}
}

// A file is signed only when it is allowed, by what it was before a signing that was
// cut; what is not is left alone, whatever is in it, and stops nothing.
// FAULTS 89, 112
func TestSignsWhatIsAllowed(t *testing.T) {
	k, _ := testSets(t)
	s := DBSigner{Pair: k.DB, Time: buildDate}
	image := func(text string) []byte { return ukitest.Image(ukitest.Section{Name: ".text", Data: []byte(text)}) }
	manager, uki, evil := image("boot manager"), image("UKI"), image("somebody else's")
	digests := map[[32]byte]bool{}
	for _, i := range [][]byte{manager, uki} {
		d, err := authenticode.Digest(i)
		if err != nil {
			t.Fatal(err)
		}
		digests[d] = true
	}
	asked := 0
	allowed := func(_ string, image []byte) error {
		asked++
		d, err := authenticode.Digest(image)
		if err == nil && !digests[d] {
			err = errors.New("unknown")
		}
		return err
	}
	files := map[string][]byte{
		layout.RemovableManager: append(bytes.Clone(manager), "what a cut has left"...), layout.RemovableManager + noteSuffix: note(manager),
		"EFI/Linux/a_1.efi": uki, "EFI/Linux/b_2.efi": evil, "EFI/x/cut.efi": []byte("MZ"),
	}
	d := newDisk(always(), files)
	d.files["EFI/x/unreadable.efi"] = &memFile{exists: true, unreadable: true}
	results, err := SignAll(d, State{SetupMode: On}, s, allowed)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]Outcome{}
	for _, r := range results {
		got[r.Name] = r.Outcome
		if (r.Outcome == NotOurs) != (r.Why != "") {
			t.Errorf("%s", r)
		}
	}
	for name, want := range map[string]Outcome{
		layout.RemovableManager: Signed, "EFI/Linux/a_1.efi": Signed, "EFI/Linux/b_2.efi": NotOurs, "EFI/x/cut.efi": NotOurs, "EFI/x/unreadable.efi": NotOurs,
	} {
		if got[name] != want {
			t.Errorf("%s: %s, want %s", name, got[name], want)
		}
	}
	if err := CheckSigned(d, s, allowed, nil); err != nil {
		t.Error(err)
	}
	// What dbx has does not start: PK must not be written. FAULTS 110
	for name, want := range map[string]string{layout.RemovableManager: "its hash is in dbx", "EFI/Linux/a_1.efi": "no UKI"} {
		dbx := secureboot.Database{secureboot.Hash(gpt.GUID{1}, [32]byte(mustDigest(t, d.files[name].data)))}
		if err := CheckSigned(d, s, allowed, dbx); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s is in dbx: %v", name, err)
		}
	}
	if !bytes.Equal(d.files["EFI/Linux/b_2.efi"].data, evil) {
		t.Error("what is not allowed was changed")
	}
	delete(digests, [32]byte(mustDigest(t, uki)))
	d = newDisk(always(), map[string][]byte{layout.RemovableManager: manager, "EFI/Linux/a_1.efi": uki})
	if _, err := SignAll(d, State{SetupMode: On}, s, allowed); err != nil {
		t.Fatal(err)
	}
	if err := CheckSigned(d, s, allowed, nil); err == nil || !strings.Contains(err.Error(), "no UKI") {
		t.Errorf("nothing to start: %v", err)
	}
}

func mustDigest(t *testing.T, image []byte) []byte {
	t.Helper()
	d, err := authenticode.Digest(image)
	if err != nil {
		t.Fatal(err)
	}
	return d[:]
}
