package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/bootreport"
	"halogenos.internal/boot/bootreport/reporttest"
)

// certifyFiles are a report, a TPM's certificate, its maker's and a stranger's, in a directory.
func certifyFiles(t *testing.T) (dir, key string) {
	t.Helper()
	dir = t.TempDir()
	signer := reporttest.NewSigner(t)
	text, err := signer.Report(t, 3, "").Encode()
	if err != nil {
		t.Fatal(err)
	}
	name, err := bootreport.KeyName(signer.Public())
	if err != nil {
		t.Fatal(err)
	}
	put := func(name string, data []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("report.json", text)
	maker := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "maker of TPMs"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign,
	}
	tpm := *maker
	tpm.Subject, tpm.IsCA, tpm.KeyUsage, tpm.SerialNumber = pkix.Name{CommonName: "a TPM"}, false, 0, big.NewInt(42)
	tpm.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{2, 23, 133, 8, 1}}
	for file, of := range map[string]*x509.Certificate{"maker.pem": maker, "stranger.pem": maker} {
		ca, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.CreateCertificate(rand.Reader, of, maker, ca.Public(), ca)
		if err != nil {
			t.Fatal(err)
		}
		put(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
		if file == "maker.pem" {
			ek, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			if der, err = x509.CreateCertificate(rand.Reader, &tpm, maker, ek.Public(), ca); err != nil {
				t.Fatal(err)
			}
			put("ek.der", der)
		}
	}
	return dir, name.String()
}

// A machine's key is believed after the right answer alone. That a TPM finds it, and no
// other does, is tpm.TestAnswer's.
func TestCertify(t *testing.T) {
	t.Parallel()
	dir, key := certifyFiles(t)
	at := func(name string) string { return filepath.Join(dir, name) }
	ask := func(ca string) (int, string, string) {
		return run(t, nil, "certify", at("report.json"), "--ek-certificate", at("ek.der"), "--ca", at(ca), "--challenge", at("challenge.json"))
	}
	if code, _, stderr := ask("stranger.pem"); code != exitFailure || !strings.Contains(stderr, "unknown authority") {
		t.Errorf("a certificate of nobody's: %d, %s", code, stderr)
	}
	if _, err := os.Stat(at("challenge.json")); err == nil {
		t.Error("a challenge was written for it")
	}
	code, stdout, stderr := ask("maker.pem")
	if code != exitOK || !strings.Contains(stdout, "number 2a of CN=maker of TPMs") || !regexp.MustCompile(`, SHA-256 [0-9a-f]{64}\n`).MatchString(stdout) {
		t.Fatalf("%d, %s, %s", code, stdout, stderr)
	}
	if code, _, stderr := ask("maker.pem"); code != exitFailure || !strings.Contains(stderr, "is there already") {
		t.Errorf("over a challenge on its way: %d, %s", code, stderr)
	}
	text, err := os.ReadFile(at("challenge.json.answer"))
	if err != nil {
		t.Fatal(err)
	}
	var kept pendingAnswer
	if err := json.Unmarshal(text, &kept); err != nil {
		t.Fatal(err)
	}
	asked, err := os.ReadFile(at("challenge.json"))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(asked), kept.Answer) {
		t.Error("the challenge has its own answer")
	}
	wrong := strings.Map(func(r rune) rune { return rune("123456789abcdef0"[strings.IndexRune("0123456789abcdef", r)]) }, kept.Answer)
	for _, said := range []string{wrong, kept.Answer[:63], ""} {
		code, stdout, _ := run(t, nil, "certify", "--challenge", at("challenge.json"), "--answer", said)
		if code == exitOK || strings.Contains(stdout, key) {
			t.Errorf("answer %q: %d, %s", said, code, stdout)
		}
	}
	code, stdout, stderr = run(t, nil, "certify", "--challenge", at("challenge.json"), "--answer", strings.ToUpper(kept.Answer)+"\n")
	if code != exitOK || stdout != key+"\n" || !strings.Contains(stderr, "number 2a") {
		t.Errorf("the right answer: %d, %q, %s", code, stdout, stderr)
	}
	if code, _, stderr := run(t, nil, "certify", "--challenge", at("challenge.json"), "--answer", kept.Answer); code != exitFailure || !strings.Contains(stderr, "challenge.json.answer") {
		t.Errorf("the same answer again: %d, %s", code, stderr)
	}
}

func TestCertifyCommandLines(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "want --challenge"},
		{[]string{"--challenge", "c"}, "want one report, have 0"},
		{[]string{"r", "--challenge", "c"}, "anybody's key could be the TPM's"},
		{[]string{"r", "--challenge", "c", "--answer", "00"}, "--answer goes with --challenge alone"},
	} {
		if code, _, stderr := run(t, nil, append([]string{"certify"}, c.args...)...); code != exitUsage || !strings.Contains(stderr, c.want) {
			t.Errorf("certify %q: %d, %q; want %q", c.args, code, stderr, c.want)
		}
	}
}
