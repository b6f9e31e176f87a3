package secureboot

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/foxboron/go-uefi/efi/signature"

	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/testkit"
)

// write puts a file into dir and returns its path.
func write(t *testing.T, dir, name string, b []byte) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func pemFile(t *testing.T, dir, name, kind string, der []byte) string {
	t.Helper()
	return write(t, dir, name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// efitools' cert-to-efi-sig-list writes the same bytes for a certificate.
func TestSameListAsEfitools(t *testing.T) {
	testkit.Need(t, "cert-to-efi-sig-list")
	dir := t.TempDir()
	k, _ := testSets(t)
	crt := pemFile(t, dir, "db.crt", "CERTIFICATE", k.DB.Certificate.Raw)
	esl := filepath.Join(dir, "db.esl")
	testkit.Run(t, "cert-to-efi-sig-list", "-g", k.Owner.String(), crt, esl)
	ours, err := Database{Certificate(k.Owner, k.DB.Certificate)}.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	theirs := read(t, esl)
	if !bytes.Equal(ours, theirs) {
		t.Errorf("lists differ:\nours   %x\ntheirs %x", ours, theirs)
	}
	back, err := ParseDatabase(theirs)
	if err != nil || !back.Same(Database{Certificate(k.Owner, k.DB.Certificate)}) {
		t.Errorf("theirs read as %s (%v)", back, err)
	}
}

// efitools' sig-list-to-certs finds every certificate and hash of ours.
func TestEfitoolsReadsOurList(t *testing.T) {
	testkit.Need(t, "sig-list-to-certs")
	dir := t.TempDir()
	k, other := testSets(t)
	b, err := Database{
		Certificate(k.Owner, k.DB.Certificate), Certificate(other.Owner, other.DB.Certificate),
		Hash(k.Owner, [32]byte{1}), Hash(k.Owner, [32]byte{2}),
	}.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	testkit.Run(t, "sig-list-to-certs", write(t, dir, "db.esl", b), filepath.Join(dir, "out"))
	for i, want := range []*x509.Certificate{k.DB.Certificate, other.DB.Certificate} {
		got := parse(t, read(t, filepath.Join(dir, "out-"+string(rune('0'+i))+".der")))
		if !got.Equal(want) {
			t.Errorf("certificate %d is %s, want %s", i, got.Subject, want.Subject)
		}
	}
	for _, name := range []string{"out-2.hash", "out-3.hash"} {
		if n := len(read(t, filepath.Join(dir, name))); n == 0 {
			t.Errorf("%s is empty", name)
		}
	}
}

// sign-efi-sig-list, given the same key, list and time, signs the same bytes
// and comes to the same signature.
func TestSameUpdateAsEfitools(t *testing.T) {
	testkit.Need(t, "sign-efi-sig-list")
	k, _ := testSets(t)
	for _, c := range []struct {
		v      Variable
		signer Pair
	}{{PK, k.PK}, {KEK, k.PK}, {DB, k.KEK}, {DBX, k.KEK}} {
		t.Run(c.v.Name, func(t *testing.T) {
			dir := t.TempDir()
			content, err := k.Wanted(Vendor{DBX: Database{Hash(k.Owner, [32]byte{5})}}).Of(c.v).Marshal()
			if err != nil {
				t.Fatal(err)
			}
			esl := write(t, dir, "in.esl", content)
			crt := pemFile(t, dir, "crt", "CERTIFICATE", c.signer.Certificate.Raw)
			key := pemFile(t, dir, "key", "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(c.signer.Key))
			when := buildDate.Format("2006-01-02 15:04:05")
			t.Setenv("TZ", "UTC")

			bundle := filepath.Join(dir, "bundle")
			testkit.Run(t, "sign-efi-sig-list", "-o", "-t", when, c.v.Name, esl, bundle)
			if ours := signedBytes(c.v, KeyAttributes, efiTime(buildDate), content); !bytes.Equal(ours, read(t, bundle)) {
				t.Errorf("what is signed differs:\nours   %x\ntheirs %x", ours, read(t, bundle))
			}

			auth := filepath.Join(dir, "out.auth")
			testkit.Run(t, "sign-efi-sig-list", "-t", when, "-c", crt, "-k", key, c.v.Name, esl, auth)
			theirTime, theirSignature, theirContent, err := SplitUpdate(read(t, auth))
			if err != nil {
				t.Fatal(err)
			}
			payload, err := k.Update(c.v, k.Wanted(Vendor{DBX: Database{Hash(k.Owner, [32]byte{5})}}).Of(c.v), buildDate)
			if err != nil {
				t.Fatal(err)
			}
			ourTime, ourSignature, ourContent, err := SplitUpdate(payload)
			if err != nil {
				t.Fatal(err)
			}
			if !ourTime.Equal(theirTime) || !bytes.Equal(ourContent, theirContent) {
				t.Errorf("time %s and %s, content of %d and %d bytes", ourTime, theirTime, len(ourContent), len(theirContent))
			}
			if !bytes.HasSuffix(theirSignature, ourSignature) {
				t.Errorf("signatures differ:\nours   %x\ntheirs %x", ourSignature, theirSignature)
			}
		})
	}
}

// openssl verifies the signature over what the firmware will rebuild.
func TestOpenSSLVerifiesUpdate(t *testing.T) {
	testkit.Need(t, "openssl")
	dir := t.TempDir()
	k, other := testSets(t)
	content, err := k.Wanted(Vendor{}).DB.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	payload, err := SignUpdate(DB, KeyAttributes, buildDate, content, k.KEK)
	if err != nil {
		t.Fatal(err)
	}
	_, signature, _, err := SplitUpdate(payload)
	if err != nil {
		t.Fatal(err)
	}
	p7 := write(t, dir, "sig.p7", inContentInfo(t, signature))
	signed := write(t, dir, "signed", signedBytes(DB, KeyAttributes, efiTime(buildDate), content))
	crt := pemFile(t, dir, "kek.crt", "CERTIFICATE", k.KEK.Certificate.Raw)
	args := []string{"smime", "-verify", "-inform", "DER", "-binary", "-in", p7, "-CAfile", crt, "-purpose", "any", "-no_check_time", "-out", os.DevNull, "-content"}
	testkit.Run(t, "openssl", append(args, signed)...)

	wrong := write(t, dir, "wrong", signedBytes(KEK, KeyAttributes, efiTime(buildDate), content))
	fails(t, "openssl", append(args, wrong)...)
	args[8] = pemFile(t, dir, "other.crt", "CERTIFICATE", other.KEK.Certificate.Raw)
	fails(t, "openssl", append(args, signed)...)
}

// inContentInfo wraps SignedData the way openssl wants it.
func inContentInfo(t *testing.T, signedData []byte) []byte {
	t.Helper()
	b, err := asn1.Marshal(struct {
		Type    asn1.ObjectIdentifier
		Content asn1.RawValue
	}{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: signedData}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// openssl finds nothing to complain about in the certificates.
func TestOpenSSLAcceptsCertificates(t *testing.T) {
	testkit.Need(t, "openssl")
	dir := t.TempDir()
	k, _ := testSets(t)
	for _, role := range k.roles() {
		crt := pemFile(t, dir, "crt", "CERTIFICATE", role.pair.Certificate.Raw)
		testkit.Run(t, "openssl", "verify", "-no_check_time", "-check_ss_sig", "-CAfile", crt, crt)
	}
}

// go-uefi reads the updates and their databases. It is not a judge of the
// signature: it never compares the digest.
func TestGoUEFIReadsOurs(t *testing.T) {
	k, other := testSets(t)
	want := Database{Certificate(k.Owner, k.DB.Certificate), Certificate(other.Owner, other.DB.Certificate), Hash(k.Owner, [32]byte{1}), Hash(k.Owner, [32]byte{2})}
	payload, err := k.Update(DB, want, buildDate)
	if err != nil {
		t.Fatal(err)
	}
	r := bytes.NewReader(payload)
	auth, err := signature.ReadEFIVariableAuthencation2(r)
	if err != nil {
		t.Fatal(err)
	}
	if auth.Time.Year != uint16(buildDate.Year()) || auth.Time.Second != uint8(buildDate.Second()) {
		t.Errorf("time read as %+v", auth.Time)
	}
	theirs, err := signature.ReadSignatureDatabase(r)
	if err != nil {
		t.Fatal(err)
	}
	var got Database
	for _, list := range theirs {
		for _, s := range list.Signatures {
			got = append(got, Entry{Type: gpt.MustGUID(list.SignatureType.Format()), Owner: gpt.MustGUID(s.Owner.Format()), Data: s.Data})
		}
	}
	if !got.Same(want) {
		t.Errorf("read as %s, want %s", got, want)
	}
	var rewritten bytes.Buffer
	signature.WriteSignatureDatabase(&rewritten, theirs)
	ours, err := want.Marshal()
	if err != nil || !bytes.Equal(rewritten.Bytes(), ours) {
		t.Errorf("go-uefi writes it in another way (%v)", err)
	}
}

// fails runs a tool that must refuse.
func fails(t *testing.T, tool string, args ...string) {
	t.Helper()
	if out, err := exec.Command(testkit.Need(t, tool), args...).CombinedOutput(); err == nil {
		t.Errorf("%s %q accepted what it must refuse:\n%s", tool, args, out)
	}
}
