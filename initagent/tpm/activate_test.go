package tpm

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"halogenos.internal/boot/bootreport"
	"halogenos.internal/boot/testkit"
)

// An authority certifies endorsement keys, by the tools that swtpm brings and GnuTLS.
type authority struct {
	t   *testing.T
	dir string
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t, t.TempDir()}
	template := filepath.Join(a.dir, "template")
	if err := os.WriteFile(template, []byte("cn = maker of TPMs\nca\ncert_signing_key\nexpiration_days = 30\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	a.run("certtool", "--generate-privkey", "--outfile", a.file("key"))
	a.run("certtool", "--generate-self-signed", "--load-privkey", a.file("key"), "--template", template, "--outfile", a.file("ca"))
	return a
}

func (a *authority) file(name string) string { return filepath.Join(a.dir, name) }

func (a *authority) run(tool string, args ...string) {
	a.t.Helper()
	if said, err := exec.Command(testkit.Need(a.t, tool), args...).CombinedOutput(); err != nil {
		a.t.Fatalf("%s %q: %v\n%s", tool, args, err, said)
	}
}

func (a *authority) certificates(name string) []*x509.Certificate {
	a.t.Helper()
	data, err := os.ReadFile(a.file(name))
	if err != nil {
		a.t.Fatal(err)
	}
	all, err := bootreport.Certificates(data)
	if err != nil {
		a.t.Fatal(err)
	}
	return all
}

// certify makes the EK certificate of a key of the emulator's.
func (a *authority) certify(e *emulator, template tpm2.TPMTPublic) *x509.Certificate {
	a.t.Helper()
	t := e.open()
	defer closed(a.t, t)
	key, err := t.endorsement(template)
	if err != nil {
		a.t.Fatal(err)
	}
	defer func() {
		if err := t.flush(key.ObjectHandle); err != nil {
			a.t.Error(err)
		}
	}()
	public, err := key.OutPublic.Contents()
	if err != nil {
		a.t.Fatal(err)
	}
	args := []string{"--type", "ek", "--signkey", a.file("key"), "--issuercert", a.file("ca"), "--out-cert", a.file("ek"), "--days", "30", "--serial", "7", "--tpm2",
		"--tpm-manufacturer", "id:00001014", "--tpm-model", "swtpm", "--tpm-version", "id:20191023", "--tpm-spec-family", "2.0", "--tpm-spec-level", "0", "--tpm-spec-revision", "164"}
	if rsa, err := public.Unique.RSA(); err == nil {
		args = append(args, "--modulus", hex.EncodeToString(rsa.Buffer), "--exponent", fmt.Sprint(65537))
	} else if point, err := public.Unique.ECC(); err == nil {
		args = append(args, "--ecc-x", hex.EncodeToString(point.X.Buffer), "--ecc-y", hex.EncodeToString(point.Y.Buffer), "--ecc-curveid", "secp256r1")
	}
	a.run("swtpm_cert", args...)
	return a.certificates("ek")[0]
}

// The TPM whose endorsement key is certified answers a challenge for its attestation key,
// and no other TPM does, nor this one for another key. The certificates are those of
// swtpm_cert.
func TestAnswer(t *testing.T) {
	t.Parallel()
	e, other, a := startTPM(t), startTPM(t), newAuthority(t)
	report := e.report(3, e.startRelease(3), "01234567")
	stranger := other.report(3, other.startRelease(3), "01234567")
	for name, template := range map[string]tpm2.TPMTPublic{"RSA": tpm2.RSAEKTemplate, "P-256": tpm2.ECCEKTemplate} {
		certificate := a.certify(e, template)
		if err := bootreport.CheckEndorsement(certificate, a.certificates("ca"), time.Now()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		c, want, err := bootreport.NewChallenge(rand.Reader, certificate, report.Key)
		if err != nil {
			t.Fatal(err)
		}
		text, err := c.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if c, err = bootreport.ParseChallenge(text); err != nil {
			t.Fatal(err)
		}
		if got, err := e.answer(c); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: answer %x, %v; want %x", name, got, err, want)
		}
		if got, err := other.answer(c); !errors.Is(err, ErrOtherTPM) {
			t.Errorf("%s: another TPM answers %x, %v", name, got, err)
		}
		// Another TPM's report with this one's certificate: neither of the two answers.
		c, _, err = bootreport.NewChallenge(rand.Reader, certificate, stranger.Key)
		if err != nil {
			t.Fatal(err)
		}
		for who, e := range map[string]*emulator{"the certified TPM": e, "the stranger": other} {
			if got, err := e.answer(c); !errors.Is(err, ErrOtherTPM) {
				t.Errorf("%s: %s answers %x, %v", name, who, got, err)
			}
		}
		// A challenge whose key was exchanged on the way fails inside the TPM.
		c.Key = mustKeyName(t, report.Key)
		if got, err := e.answer(c); err == nil || !strings.Contains(err.Error(), "answering a challenge") {
			t.Errorf("%s: answers %x, %v for another key's challenge", name, got, err)
		}
	}
}

func mustKeyName(t *testing.T, key []byte) (name [34]byte) {
	t.Helper()
	got, err := bootreport.KeyName(key)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func (e *emulator) answer(c *bootreport.Challenge) ([]byte, error) {
	e.t.Helper()
	t := e.open()
	defer closed(e.t, t)
	return t.Answer(c)
}
