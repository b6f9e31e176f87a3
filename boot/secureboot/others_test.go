package secureboot

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/words"
)

// known makes a certificate one of those that are known by their hash, for a test.
func known(t *testing.T, e Entry) Entry {
	t.Helper()
	before := knownOthers
	sum := sha256.Sum256(e.Data)
	knownOthers = append(slices.Clone(before), hex.EncodeToString(sum[:]))
	t.Cleanup(func() { knownOthers = before })
	return e
}

// What the owner lets start is Microsoft's for systems: by name where only the firmware
// could have written it, and by hash elsewhere.
func TestLetOthers(t *testing.T) {
	k, _ := testSets(t)
	windows := factoryCertificate(t, "Microsoft Corporation", "Microsoft Windows Production PCA 2011")
	uefiCA := factoryCertificate(t, "Microsoft Corporation", "Microsoft Corporation UEFI CA 2011")
	romCA := factoryCertificate(t, "Microsoft Corporation", "Microsoft Option ROM UEFI CA 2023")
	oem := factoryCertificate(t, "Example Computers", "Example Computers Secure Boot")
	forged := factoryCertificate(t, "Microsoft Corporation", "Windows UEFI CA 2023.")
	test := factoryCertificate(t, "Microsoft Corporation", "DO NOT TRUST - Test")
	windows23 := known(t, factoryCertificate(t, "Microsoft Corporation", "Windows UEFI CA 2023"))
	elsewhere := Entry{Type: TypeX509, Owner: gpt.GUID{5}, Data: windows23.Data}
	revoked := Hash(othersOwner, [32]byte{0xee})
	full := Factory{DBDefault: Database{windows, uefiCA, romCA, oem, test, revoked}, KEKDefault: Database{oem}, DBXDefault: Database{revoked}}
	own := k.Wanted(Vendor{})
	both := k.Wanted(Vendor{DB: Database{{Type: TypeX509, Owner: gpt.GUID{6}, Data: uefiCA.Data}, windows}, DBX: Database{revoked}})
	for name, c := range map[string]struct {
		wanted     Wanted
		factory    Factory
		live, left Database
		want       OtherSystems
		err        error
	}{
		"the defaults":            {own, full, nil, nil, OtherSystems{Database{windows, uefiCA}, Database{revoked}}, nil},
		"a newer one in use":      {own, full, Database{elsewhere, forged, oem}, nil, OtherSystems{Database{windows, uefiCA, windows23}, Database{revoked}}, nil},
		"a newer one left":        {own, full, nil, Database{elsewhere, elsewhere, forged}, OtherSystems{Database{windows, uefiCA, windows23}, Database{revoked}}, nil},
		"no defaults":             {own, Factory{}, Database{forged, windows23}, nil, OtherSystems{DB: Database{windows23}}, nil},
		"defaults of others":      {own, Factory{Others: Database{forged, windows23}}, nil, nil, OtherSystems{DB: Database{windows23}}, nil},
		"none known":              {own, Factory{DBDefault: Database{oem, romCA}}, Database{forged, windows}, Database{uefiCA}, OtherSystems{}, ErrNoOthers},
		"all wanted already":      {both, full, nil, nil, OtherSystems{}, nil},
		"some of it is":           {both, full, Database{elsewhere}, nil, OtherSystems{DB: Database{windows23}}, nil},
		"revocations that others": {own, Factory{DBDefault: Database{oem}, DBXDefault: Database{revoked}}, nil, nil, OtherSystems{}, ErrNoOthers},
	} {
		t.Run(name, func(t *testing.T) {
			o, err := LetOthers(c.wanted, c.factory, c.live, c.left)
			if !errors.Is(err, c.err) || len(o.DB) != len(c.want.DB) || !o.DB.Same(c.want.DB) || len(o.DBX) != len(c.want.DBX) || !o.DBX.Same(c.want.DBX) {
				t.Errorf("db %s, dbx %s, %v", o.DB, o.DBX, err)
			}
		})
	}
}

// The list keeps who wanted an entry, is compared with by it, and changes once.
func TestLetStart(t *testing.T) {
	k, _ := testSets(t)
	windows := factoryCertificate(t, "Microsoft Corporation", "Microsoft Windows Production PCA 2011")
	uefiCA := factoryCertificate(t, "Microsoft Corporation", "Microsoft Corporation UEFI CA 2011")
	revoked := Hash(othersOwner, [32]byte{0xee})
	l := NewList(k, Vendor{DB: Database{uefiCA}, From: FromFirmware})
	o := OtherSystems{Database{windows, uefiCA}, Database{revoked}}
	if !l.LetStart(o) || l.LetStart(o) {
		t.Error("the list changes at the first time, and at no other")
	}
	text, err := l.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if l, err = ParseList(text); err != nil {
		t.Fatal(err)
	}
	if l.Origin(windows) != FromOwner || l.Origin(uefiCA) != FromFirmware || l.Origin(revoked) != FromFirmware || len(l.Wanted.DB) != 3 || len(l.Wanted.KEK) != 1 {
		t.Errorf("%q, %q, %q; db %s, KEK %s", l.Origin(windows), l.Origin(uefiCA), l.Origin(revoked), l.Wanted.DB, l.Wanted.KEK)
	}
	if own, err := l.DBCertificate(); err != nil || !own.Equal(k.DB.Certificate) {
		t.Errorf("this machine's own is %v, %v", own, err)
	}
	if StartsROMs(windows) || !StartsROMs(uefiCA) || StartsROMs(revoked) {
		t.Error("what starts option ROMs")
	}
}

// What was let start is taken back, and nothing else: not what an option ROM starts by, nor
// revocations that belong to others' certificates of an image's or a firmware's.
func TestLetNoneStart(t *testing.T) {
	k, _ := testSets(t)
	windows := factoryCertificate(t, "Microsoft Corporation", "Microsoft Windows Production PCA 2011")
	uefiCA := factoryCertificate(t, "Microsoft Corporation", "Microsoft Corporation UEFI CA 2011")
	rom, first, later, live := Hash(k.Owner, [32]byte{1}), Hash(othersOwner, [32]byte{2}), Hash(othersOwner, [32]byte{3}), Hash(othersOwner, [32]byte{4})
	for name, c := range map[string]struct {
		vendor  Vendor
		db, dbx Database
	}{
		"alone":                 {Vendor{}, Database{rom}, Database{live}},
		"beside the firmware's": {Vendor{DB: Database{uefiCA}, DBX: Database{first}, From: FromFirmware}, Database{uefiCA, rom}, Database{live, first, later}},
	} {
		l := NewList(k, c.vendor)
		l.Add(DB, rom, FromOwner)
		l.AdoptRevocations(Database{live})
		if l.LetNoneStart() {
			t.Errorf("%s: the list changes, and lets nothing start", name)
		}
		l.LetStart(OtherSystems{Database{windows, uefiCA}, Database{first, later}})
		if !l.LetNoneStart() || l.LetNoneStart() || !l.Wanted.DB[1:].Same(c.db) || !l.Wanted.DBX.Same(c.dbx) || l.Origin(windows) != "" {
			t.Errorf("%s: db %s, want also %s; dbx %s, want %s", name, l.Wanted.DB, c.db, l.Wanted.DBX, c.dbx)
		}
	}
}

// What is asked of the firmware is at least what it stores, and counts nothing twice.
func TestOthersRoom(t *testing.T) {
	k, _ := testSets(t)
	windows := factoryCertificate(t, "Microsoft Corporation", "Microsoft Windows Production PCA 2011")
	var revoked Database
	for n := range byte(200) {
		revoked = append(revoked, Hash(othersOwner, [32]byte{n}))
	}
	o := OtherSystems{Database{windows}, revoked}
	l := NewList(k, Vendor{})
	needs, err := o.Room(l.Wanted, revoked[:100])
	l.LetStart(o)
	least := int64(0)
	for _, d := range []Database{l.Wanted.PK, l.Wanted.KEK, l.Wanted.DB, l.Wanted.DBX} {
		text, merr := d.Marshal()
		if merr != nil {
			t.Fatal(merr)
		}
		least += int64(len(text))
	}
	if err != nil || needs < least || needs > least+ownRoom {
		t.Errorf("%d bytes, %v; all variables have %d", needs, err, least)
	}
}

// The question names every certificate, what it costs, and what protects the data.
func TestOthersQuestion(t *testing.T) {
	o := OtherSystems{DB: Database{factoryCertificate(t, "Microsoft Corporation", "Windows UEFI CA 2023"), factoryCertificate(t, "Microsoft Corporation", "Evil\x1b[2J")}}
	for tpm, want := range map[bool][]string{true: {words.OthersSpare}, false: {"This machine has no TPM"}} {
		text := o.Question(words.English, tpm)
		for _, w := range append(want, "CN=Windows UEFI CA 2023", words.OthersWeaken, "Say yes only if") {
			if !strings.Contains(text, w) {
				t.Errorf("TPM %t: nothing of %q in\n%s", tpm, w, text)
			}
		}
		if strings.Contains(text, "\x1b") || tpm == strings.Contains(text, "no TPM") {
			t.Errorf("TPM %t: %q", tpm, text)
		}
	}
}

func TestParseOthers(t *testing.T) {
	e := known(t, factoryCertificate(t, "Microsoft Corporation", "Windows UEFI CA 2023"))
	forged := factoryCertificate(t, "Microsoft Corporation", "Windows UEFI CA 2023.")
	text, err := EncodeOthers(Database{forged, e, e, Hash(othersOwner, [32]byte{1})})
	if err != nil {
		t.Fatal(err)
	}
	if d, err := ParseOthers(text); err != nil || len(d) != 1 || !d[0].Equal(e) {
		t.Errorf("%s, %v", d, err)
	}
	planted, err := json.Marshal(othersText{othersVersion, [][]byte{forged.Data, nil}})
	if err != nil {
		t.Fatal(err)
	}
	if d, err := ParseOthers(planted); err != nil || len(d) != 0 {
		t.Errorf("a forged one: %s, %v", d, err)
	}
	if none, err := EncodeOthers(nil); err != nil || string(none) != `{"version":1,"certificates":[]}`+"\n" {
		t.Errorf("%q, %v", none, err)
	}
	for name, bad := range map[string]string{
		"empty": "", "not JSON": "x", "no version": `{"certificates":[]}`, "a newer version": `{"version":2,"certificates":[]}`, "unknown": `{"version":1,"certificates":[],"x":1}`,
		"two values": `{"version":1} {}`, "too many": `{"version":1,"certificates":["` + strings.Repeat(`","`, maxOthers) + `"]}`, "too long": `{"version":1,"certificates":["` + strings.Repeat("AAAA", MaxOthers/4) + `"]}`,
	} {
		if d, err := ParseOthers([]byte(bad)); err == nil {
			t.Errorf("%s: %s", name, d)
		}
	}
}

// Whatever lies there, nothing but a known certificate comes of it.
func FuzzParseOthers(f *testing.F) {
	f.Add([]byte(`{"version":1,"certificates":[]}`))
	f.Add([]byte(`{"version":1,"certificates":["MIIB"]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		d, err := ParseOthers(text)
		if err != nil || len(d) == 0 {
			return
		}
		for _, e := range d {
			if sum := sha256.Sum256(e.Data); !slices.Contains(knownOthers, hex.EncodeToString(sum[:])) || !bytes.Equal(e.Owner[:], othersOwner[:]) {
				t.Errorf("%s", e)
			}
		}
	})
}

// What the firmware's defaults revoke comes along, no matter whom they name as its owner.
func TestForeignWithoutOwner(t *testing.T) {
	nobodys, ours := Hash(gpt.GUID{}, [32]byte{1}), Hash(gpt.GUID{9}, [32]byte{2})
	if got := foreign(gpt.GUID{}, Database{nobodys, ours, nobodys}); len(got) != 2 {
		t.Errorf("without an owner: %v", got)
	}
	if got := foreign(gpt.GUID{9}, Database{nobodys, ours}); len(got) != 1 || !got.Contains(nobodys) {
		t.Errorf("of ours: %v", got)
	}
}
