package inspect

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"

	"halogenos.internal/boot/testkit"
	"halogenos.internal/boot/uki"
	"halogenos.internal/boot/uki/ukitest"
)

// shown describes content and returns the report for people.
func shown(t *testing.T, content []byte) (*Report, string) {
	t.Helper()
	r, err := File(write(t, content))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := r.Text(&out); err != nil {
		t.Fatal(err)
	}
	return r, strings.Join(strings.Fields(out.String()), " ")
}

func says(t *testing.T, what, text string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("%s: no %q in %s", what, w, text)
		}
	}
}

func TestLUKS(t *testing.T) {
	testkit.Need(t, "cryptsetup")
	dir := t.TempDir()
	file, key := filepath.Join(dir, "volume"), filepath.Join(dir, "key")
	if err := os.WriteFile(file, make([]byte, 32<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(key, []byte("word"), 0o600); err != nil {
		t.Fatal(err)
	}
	testkit.Run(t, "cryptsetup", "luksFormat", "--batch-mode", "--type", "luks2", "--label", "root", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000",
		"--uuid", "3e671687-395b-41f5-a30f-a58921a69b79", "--key-file", key, file)
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	r, text := shown(t, content)
	says(t, "volume", text, "UUID 3e671687-395b-41f5-a30f-a58921a69b79", `label "root"`, "both copies are whole", "cipher aes-xts-plain64", "keyslot 0 pbkdf2, 1000 times sha256")
	if r.LUKS.Data != 16<<20 || len(r.LUKS.Keyslots) != 1 || len(r.LUKS.Tokens) != 0 {
		t.Errorf("%+v", r.LUKS)
	}
	content[5000] ^= 1
	if _, text = shown(t, content); !strings.Contains(text, "second: good") {
		t.Errorf("with a damaged copy: %s", text)
	}
	if _, err := File(write(t, content[:4096])); err == nil {
		t.Error("half a header was taken")
	}
}

func TestKeys(t *testing.T) {
	created := time.Unix(1_700_000_000, 0)
	config := &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA, Time: func() time.Time { return created }}
	e, err := openpgp.NewEntity("Releases", "", "r@example.org", config)
	if err != nil {
		t.Fatal(err)
	}
	serialize := func(write func(b *bytes.Buffer) error) []byte {
		var out bytes.Buffer
		if err := write(&out); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	secret := func(b *bytes.Buffer) error { return e.SerializePrivateWithoutSigning(b, config) }
	_, text := shown(t, serialize(func(b *bytes.Buffer) error { return e.Serialize(b) }))
	says(t, "public key", text, "OpenPGP EdDSA", "name Releases <r@example.org>", "created 2023-11-14T22:13:20Z, never expires", "may [certify sign]", "subkey ECDH", "may [encrypt]")
	if strings.Contains(text, "secret") {
		t.Errorf("a public key: %s", text)
	}
	_, text = shown(t, serialize(secret))
	says(t, "secret key", text, "secret part IN THE CLEAR")
	if err := e.EncryptPrivateKeys([]byte("word"), config); err != nil {
		t.Fatal(err)
	}
	_, text = shown(t, serialize(secret))
	says(t, "locked key", text, "secret part encrypted")

	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "modules"}, NotBefore: created, NotAfter: created.AddDate(1, 0, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	r, text := shown(t, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	says(t, "certificate", text, "certificate ECDSA, P-256", "name CN=modules", "expires 2024-11-14T22:13:20Z")
	if !bytes.Equal(r.Key.Fingerprint, sum(der)) {
		t.Errorf("fingerprint %x", r.Key.Fingerprint)
	}
	_, text = shown(t, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	says(t, "PKCS#8", text, "secret part IN THE CLEAR")
	_, text = shown(t, pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: der}))
	says(t, "encrypted PKCS#8", text, "secret part encrypted")
}

func TestESP(t *testing.T) {
	testkit.Need(t, "mkfs.vfat")
	testkit.Need(t, "mcopy")
	dir := t.TempDir()
	esp := filepath.Join(dir, "esp")
	testkit.Run(t, "mkfs.vfat", "-C", "-F", "32", esp, "65536")
	if err := os.WriteFile(filepath.Join(dir, "uki"), testUKI(t), 0o644); err != nil {
		t.Fatal(err)
	}
	testkit.Run(t, "mmd", "-i", esp, "::EFI", "::EFI/Linux")
	testkit.Run(t, "mcopy", "-i", esp, filepath.Join(dir, "uki"), "::EFI/Linux/test-os_7.efi")
	content, err := os.ReadFile(esp)
	if err != nil {
		t.Fatal(err)
	}
	r, text := shown(t, content)
	says(t, "ESP", text, "ESP 67108864 bytes", "file EFI/Linux/test-os_7.efi,", "version 7, no partition has its root hash")
	if r.Kind != "esp" || len(r.ESP) != 1 {
		t.Errorf("%+v", r)
	}
}

func FuzzKey(f *testing.F) {
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"))
	f.Add([]byte("-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nmDM=\n-----END PGP PUBLIC KEY BLOCK-----\n"))
	f.Add([]byte{0x98, 0x33, 4})
	f.Fuzz(func(t *testing.T, content []byte) {
		if key, err := describeKey(content); err == nil && key != nil && key.Kind == "" {
			t.Errorf("%+v", key)
		}
	})
}

// What a file says of itself can neither steer the terminal nor pass for a line of ours.
func TestTextsThatSteer(t *testing.T) {
	const evil = "a\x1b]0;x\x07\x9b2J\n  secret part\tnone\r\u202e\xff"
	for name, r := range map[string]*Report{
		"key":          {Key: &Key{Kind: "OpenPGP", Names: []string{evil}}},
		"ESP":          {Kind: "esp", ESP: []ESPFile{{Path: evil, Fault: evil}}},
		"disk":         {Disk: &Disk{Table: evil, Partitions: []Partition{{Label: evil}}, ESP: []ESPFile{{Path: evil}}}},
		"LUKS":         {LUKS: &LUKS{Label: evil, Cipher: evil}},
		"certificates": {EFI: &EFI{Program: evil, Signatures: []Signature{{Certificates: []string{evil}}}}},
	} {
		var out bytes.Buffer
		if err := r.Text(&out); err != nil {
			t.Fatal(err)
		}
		says(t, name, out.String(), `a\x1b]0;x\a\x9b2J\n  secret part\tnone\r\u202e\xff`)
		if strings.ContainsAny(out.String(), "\x1b\x07\r\u202e") || strings.Contains(out.String(), "\n  secret part") {
			t.Errorf("%s: %q", name, out.String())
		}
	}
	image, err := uki.Build(ukitest.Stub("257.13-1"), uki.Payload{OSRelease: []byte("ID=test\nNAME=\x1b[2J\n"), Cmdline: []byte("quiet\n"), Uname: []byte("6.12.1\x1b"), Linux: []byte("MZ kernel")}.Sections())
	if err != nil {
		t.Fatal(err)
	}
	_, text := shown(t, image)
	says(t, "UKI", text, `kernel 6.12.1\x1b command line quiet os-release ID=test NAME=\x1b[2J`)
}
