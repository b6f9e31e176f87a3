package secureboot

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"math/big"
	"os"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/gpt"
)

func publicList(t testing.TB) []byte {
	t.Helper()
	file, err := os.ReadFile("testdata/DBXUpdate.bin")
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// The list that UEFI gives out, as it is, and the lists in it.
func TestParseRevocations(t *testing.T) {
	file := publicList(t)
	d, err := ParseRevocations(file)
	if err != nil {
		t.Fatal(err)
	}
	// Counted by another reader.
	const count, first, last = 443, "80b4d96931bf0d02fd91a61e19d14f1da452e66db2408ca8604d411f92659f0a", "96275dfd6282a522b011177ee049296952ac794832091f937fbbf92869028629"
	if len(d) != count || d[0].String() != "hash "+first || d[count-1].String() != "hash "+last || d[0].Owner != gpt.MustGUID("77fa9abd-0359-4d32-bd60-28f4e78f784b") {
		t.Errorf("%d entries, the first is %s of %s", len(d), d[0], d[0].Owner)
	}
	_, _, content, err := SplitUpdate(file)
	if err != nil {
		t.Fatal(err)
	}
	if bare, err := ParseRevocations(content); err != nil || !bare.Same(d) {
		t.Errorf("the lists alone: %d entries, %v", len(bare), err)
	}
	text := "# why\n\n  " + first + "  shim.efi, of a vendor\r\n" + strings.ToUpper(strings.Repeat("ab", 32)) + "\n" + first + "\n"
	hashes, err := ParseRevocations([]byte(text))
	if err != nil || len(hashes) != 2 || hashes[0].String() != "hash "+first || hashes[0].Owner != (gpt.GUID{}) {
		t.Errorf("text: %s, %v", hashes, err)
	}
}

func TestParseRevocationsRefuses(t *testing.T) {
	file := publicList(t)
	mine, _ := testSets(t)
	lists := func(d Database) []byte {
		b, err := d.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	var many Database
	for i := range 1100 {
		digest := [32]byte{byte(i), byte(i >> 8)}
		many = append(many, Hash(mine.Owner, digest))
	}
	kind := gpt.MustGUID("3bd2a492-96c0-4079-b420-fcf98ef103ed") // EFI_CERT_X509_SHA256_GUID
	for name, c := range map[string]struct {
		file []byte
		want string
	}{
		"empty":           {nil, "has no entry for dbx"},
		"comments":        {[]byte("# nothing\n"), "has no entry for dbx"},
		"short hash":      {[]byte("abcd\n"), `line 1: "abcd" is not a SHA-256 hash: want 64 hexadecimal digits`},
		"no hash":         {[]byte("\n" + strings.Repeat("zz", 32)), "line 2"},
		"cut":             {file[:len(file)-1], "claims 21292 bytes, 21291 are left"},
		"cut in the head": {file[:30], "is neither a text with hashes, nor signature lists, nor an update of dbx"},
		"another file":    {append([]byte("MZ\x00"), make([]byte, 100)...), "is neither a text"},
		"another kind":    {append(bytes.Clone(file), lists(Database{{Type: kind, Data: make([]byte, 48)}})...), "entry 444 for dbx is a signature of type 3bd2a492"},
		"no certificate":  {append(lists(many[:1]), lists(Database{{Type: TypeX509, Data: []byte("nothing")}})...), "entry 2 for dbx: a certificate of 7 bytes cannot be read"},
		"too many":        {lists(many), "1100 entries for dbx take 52828 bytes, at most 49152"},
		"huge":            {make([]byte, MaxDatabase+1), "more than"},
	} {
		if d, err := ParseRevocations(c.file); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %d entries, %v, want an error with %q", name, len(d), err, c.want)
		}
	}
}

// signer is a certificate with its key.
type signer struct {
	certificate *x509.Certificate
	key         *rsa.PrivateKey
}

// certificate makes one that another has signed; itself for nil. An authority may sign others.
func certificate(t *testing.T, name string, by *signer, authority bool) *signer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	s := &signer{key: key}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: buildDate, NotAfter: buildDate.AddDate(1, 0, 0), BasicConstraintsValid: true, IsCA: authority}
	parent, with := template, key
	if by != nil {
		parent, with = by.certificate, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), with)
	if err != nil {
		t.Fatal(err)
	}
	s.certificate = parse(t, der)
	return s
}

// FAULTS 110: an entry that would stop something the machine needs is refused, and only
// that one.
func TestJudgeRevocations(t *testing.T) {
	mine, _ := testSets(t)
	public, err := ParseRevocations(publicList(t))
	if err != nil {
		t.Fatal(err)
	}
	digest := func(b byte) (d [32]byte) { d[0] = b; return d }
	vendor := gpt.MustGUID("11111111-2222-3333-4444-555555555555")
	root := certificate(t, "A Vendor's Root", nil, true)
	ca := certificate(t, "A Vendor's UEFI CA", root, true)
	leaf := certificate(t, "A Vendor's Driver Publisher", ca, false)
	middle := certificate(t, "A Vendor's Driver CA", ca, true)
	below := certificate(t, "A Vendor's Other Publisher", middle, false)
	stranger := certificate(t, "A Stranger", nil, false)
	strangerCA := certificate(t, "A Stranger's CA", nil, true)
	x509Entry := func(s *signer) Entry { return Certificate(vendor, s.certificate) }
	needed := Needed{
		Programs:    []Program{{"the running system, os_7.efi", digest(1)}, {"the fallback, os_6.efi", digest(2)}, {"the boot manager", digest(3)}},
		Drivers:     Drivers{Known: true, ROMs: []OptionROM{{Digest: digest(4), Path: "PciRoot(0x0)/Pci(0x2,0x0)"}}},
		Authorities: Database{Certificate(mine.Owner, mine.DB.Certificate), x509Entry(ca)},
		Own:         []*x509.Certificate{mine.PK.Certificate, mine.KEK.Certificate, mine.DB.Certificate},
	}
	live := Database{public[0]}
	take, refused := JudgeRevocations(append(public, Entry{Type: TypeSHA256, Data: bytes.Repeat([]byte{9}, 32)}, x509Entry(stranger)), live, mine.Owner, needed)
	if len(refused) > 0 || len(take) != len(public)-1+2 {
		t.Errorf("%d entries of %d are taken, refused %+v", len(take), len(public)+2, refused)
	}
	if own := take[len(take)-2]; own.Owner != mine.Owner || take[0].Owner != public[0].Owner {
		t.Errorf("owners %s and %s", own.Owner, take[0].Owner)
	}
	needed.Reserved = Database{Hash(vendor, digest(5))}
	for name, c := range map[string]struct {
		entry Entry
		why   string
	}{
		"running system":     {Hash(vendor, digest(1)), "it would stop the running system, os_7.efi"},
		"fallback":           {Hash(vendor, digest(2)), "it would stop the fallback, os_6.efi"},
		"boot manager":       {Hash(vendor, digest(3)), "it would stop the boot manager"},
		"option ROM":         {Hash(vendor, digest(4)), "it would stop the option ROM PciRoot(0x0)/Pci(0x2,0x0), which ran in this boot"},
		"own key":            {Certificate(vendor, mine.DB.Certificate), `all that this machine has signed with "HalogenOS`},
		"ROM's certificate":  {x509Entry(ca), `the certificate "CN=A Vendor's UEFI CA"`},
		"its issuer":         {x509Entry(root), "such as an option ROM"},
		"whom it issued":     {x509Entry(leaf), "such as an option ROM"},
		"further below":      {x509Entry(below), "it may have been issued under the certificate \"CN=A Vendor's UEFI CA\""},
		"maybe above":        {x509Entry(strangerCA), "may have been issued under it"},
		"what is not there":  {Hash(vendor, digest(5)), "it would stop what db allows on this machine by its hash"},
		"odd certificate":    {Entry{Type: TypeX509, Owner: vendor, Data: []byte("x")}, "of an unusual form"},
		"kind of the future": {Entry{Type: vendor, Data: []byte("x")}, "of a kind whose effect is not known"},
		"hash of no length":  {Entry{Type: TypeSHA256, Data: []byte("x")}, "of a kind whose effect is not known"},
	} {
		take, refused := JudgeRevocations(Database{c.entry, public[1]}, nil, mine.Owner, needed)
		if len(refused) != 1 || !refused[0].Entry.Equal(c.entry) || !strings.Contains(refused[0].Why, c.why) {
			t.Errorf("%s: refused %+v, want %q", name, refused, c.why)
		}
		if !slices.EqualFunc(take, public[1:2], Entry.Equal) {
			t.Errorf("%s: the others are not taken: %s", name, take)
		}
	}
	needed.Reserved = nil
	// Of a chain that ends with the entry of db, nothing is above it.
	ended := needed
	ended.Reserved, ended.Authorities = nil, Database{x509Entry(root)}
	for who, c := range map[*signer]bool{strangerCA: true, stranger: true, below: false, ca: false} {
		if take, refused := JudgeRevocations(Database{x509Entry(who)}, nil, mine.Owner, ended); (len(take) == 1) != c {
			t.Errorf("%s: refused %+v", who.certificate.Subject, refused)
		}
	}
	// A second system counts although it did not run.
	second := Needed{Drivers: Drivers{Known: true}, Authorities: needed.Authorities[:1], Own: needed.Own, Reserved: Database{x509Entry(root)}}
	if take, refused := JudgeRevocations(Database{x509Entry(ca), x509Entry(stranger)}, nil, mine.Owner, second); len(take) != 1 || len(refused) != 1 || !strings.Contains(refused[0].Why, "A Vendor's Root") {
		t.Errorf("a second system's issuer: refused %+v", refused)
	}
	// Of a list that has outgrown all firmware the beginning is taken.
	var long Database
	for i := range 5000 {
		long = append(long, Hash(vendor, [32]byte{9, byte(i), byte(i >> 8)}))
	}
	if take, refused := JudgeRevocations(long, nil, mine.Owner, needed); len(take) != MaxRevocations/48 || len(take)+len(refused) != len(long) || !strings.Contains(refused[0].Why, "no room") {
		t.Errorf("of %d entries %d are taken, %d refused", len(long), len(take), len(refused))
	} else if b, err := take.Marshal(); err != nil || len(b) > MaxRevocations+listHeader {
		t.Errorf("what is taken has %d bytes, %v", len(b), err)
	}
	// What dbx has already takes of the room.
	if take, _ := JudgeRevocations(long[500:], long[:500], mine.Owner, needed); len(take) != MaxRevocations/48-500 {
		t.Errorf("beside 500 entries %d are taken", len(take))
	}
	// What is not known is refused.
	for name, c := range map[string]struct {
		change func(*Needed)
		entry  Entry
		why    string
	}{
		"no event log":    {func(n *Needed) { n.Drivers = Drivers{} }, public[1], "the event log of this boot cannot be read"},
		"ROM unhashed":    {func(n *Needed) { n.Drivers.ROMs = []OptionROM{{Path: "x"}} }, public[1], "no SHA-256 hash of the option ROM x"},
		"ROM unexplained": {func(n *Needed) { n.Authorities = n.Authorities[:1] }, x509Entry(stranger), "1 option ROMs ran in this boot"},
		"ROM by its hash": {func(n *Needed) { n.Authorities = Database{Hash(mine.Owner, digest(4))} }, x509Entry(stranger), "by whom that is signed is not known"},
		"odd authority":   {func(n *Needed) { n.Authorities = Database{{Type: TypeX509, Data: []byte("x")}} }, x509Entry(stranger), "may be signed with it"},
	} {
		n := needed
		c.change(&n)
		if take, refused := JudgeRevocations(Database{c.entry}, nil, mine.Owner, n); len(take) > 0 || len(refused) != 1 || !strings.Contains(refused[0].Why, c.why) {
			t.Errorf("%s: take %s, refused %+v, want %q", name, take, refused, c.why)
		}
	}
}

func FuzzParseRevocations(f *testing.F) {
	f.Add(publicList(f))
	f.Add([]byte("# x\n" + hex.EncodeToString(make([]byte, 32)) + " y\n"))
	f.Fuzz(func(t *testing.T, file []byte) {
		d, err := ParseRevocations(file)
		if err != nil {
			return
		}
		b, err := d.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if again, err := ParseRevocations(b); err != nil || !again.Same(d) {
			t.Fatalf("%d entries became %d, %v", len(d), len(again), err)
		}
	})
}
