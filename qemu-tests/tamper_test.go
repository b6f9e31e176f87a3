package qemutests

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/boot/uki"
	"halogenos.internal/builder/vm"
	"halogenos.internal/qemu-tests/testos/protocol"
)

// bootManager is what the firmware starts.
const bootManager = "EFI/BOOT/BOOTX64.EFI"

// planted is a word that no command line of ours has.
const planted = "halogen_planted=1"

// TestTampered changes one thing each that decides what boots: the TPM refuses, the
// console says which PCR and what is different, and the root partition stays closed.
// Where something was added from outside the UKI nobody is asked for the recovery key.
// FAULTS 54, 55, 57, 61, 92, 109
func TestTampered(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		tamper func(t *testing.T, s vm.State)
		smbios []string
		want   []string // in the explanation
		added  bool     // from outside the UKI
	}{
		{"command line by SMBIOS", nil, []string{"io.systemd.stub.kernel-cmdline-extra=" + planted},
			[]string{"a command line, credential or addon", "PCR 12"}, true},
		{"command line by a boot entry", plantEntry, nil, []string{"a command line, credential or addon", "PCR 12"}, true},
		{"credential for all systems", func(t *testing.T, s vm.State) {
			espWrite(t, s, "loader/credentials/planted.cred", []byte("planted"))
		}, nil, []string{"a command line, credential or addon", "PCR 12"}, true},
		{"extension for one system", func(t *testing.T, s vm.State) {
			espWrite(t, s, theUKI(t, s)+".extra.d/planted.sysext.raw", []byte("planted"))
		}, nil, []string{"a system extension", "PCR 13"}, true},
		{"credential and extension for one system", func(t *testing.T, s vm.State) {
			espWrite(t, s, theUKI(t, s)+".extra.d/planted.cred", []byte("planted"))
			espWrite(t, s, theUKI(t, s)+".extra.d/planted.sysext.raw", []byte("planted"))
		}, nil, []string{"a command line, credential or addon", "PCR 12"}, true},
		{"Secure Boot off", func(t *testing.T, s vm.State) {
			must(t, switchSecureBootOff(s.Vars()))
		}, nil, []string{"PCR 7 (Secure Boot)", "SecureBoot"}, false},
		{"Setup Mode again", func(t *testing.T, s vm.State) {
			must(t, s.ResetVars())
		}, nil, []string{"PCR 7 (Secure Boot)", "db lost"}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := provisioned(t)
			var before string
			g := Machine(t, Options{State: p.State, VM: vm.Options{SMBIOS: tt.smbios}, Prepare: func(s vm.State) error {
				if tt.tamper != nil {
					tt.tamper(t, s)
				}
				before = enrolled(t, s)
				return nil
			}})
			if tt.added {
				g.expectForeign(tt.want...)
			} else {
				g.expectRefusal(append(tt.want, "This machine cannot show its phrase: the TPM does not give it to what was started")...)
				g.staysClosed()
			}
			g.PowerCut()
			if after := enrolled(t, g.State()); after != before {
				t.Errorf("the firmware had %q, and has %q", before, after)
			}
		})
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// enrolled names the keys that the firmware has.
func enrolled(t testing.TB, s vm.State) string {
	t.Helper()
	f, err := readFirmwareVars(s.Vars())
	must(t, err)
	var names []string
	for _, v := range []secureboot.Variable{secureboot.PK, secureboot.KEK, secureboot.DB} {
		if value, err := f.get(v); err == nil && len(value) > 0 {
			names = append(names, fmt.Sprintf("%s %x", v.Name, sha256.Sum256(value)))
		}
	}
	return strings.Join(names, ", ")
}

// plantEntry makes the boot manager start the UKI with load options.
func plantEntry(t *testing.T, s vm.State) {
	t.Helper()
	espWrite(t, s, "loader/entries/planted.conf",
		[]byte("title planted\nversion 999\nsort-key aaa\nefi /"+theUKI(t, s)+"\noptions "+planted+"\n"))
}

// expectRefusal waits until the TPM has refused to open the root partition, and looks
// for texts in the explanation that the console gives.
func (g *Guest) expectRefusal(want ...string) {
	g.t.Helper()
	i, match := g.ExpectAny(`(?s)halogen: unlock FAILED after (.*?)`+asksForKey, `RECOVERY: [^\n]*`, protocol.Greeting+` \{`)
	if i != 0 {
		g.t.Fatalf("the boot came to %.200q; want it to ask for the recovery key", match[0])
	}
	for _, w := range want {
		if !strings.Contains(match[1], w) {
			g.t.Errorf("the explanation says nothing of %q:\n%s", w, match[1])
		}
	}
}

// expectForeign waits until the boot has refused what was added from outside the UKI,
// without asking for the recovery key, and expects the recovery console.
func (g *Guest) expectForeign(want ...string) {
	g.t.Helper()
	i, match := g.ExpectAny(`(?s)halogen: unlock FAILED after (.*?)halogen: ask-key FAILED`, asksForKey, protocol.Greeting+` \{`)
	if i != 0 {
		g.t.Fatalf("the boot came to %.200q; want it to refuse, and ask nothing", match[0])
	}
	for _, w := range want {
		if !strings.Contains(match[1], w) {
			g.t.Errorf("the explanation says nothing of %q:\n%s", w, match[1])
		}
	}
	g.inConsole()
}

// staysClosed answers the question for the recovery key with nothing, and expects the
// recovery console.
func (g *Guest) staysClosed() {
	g.t.Helper()
	g.typeLine("")
	g.inConsole()
}

// inConsole expects the recovery console, in this boot or, where something was typed,
// in the next one, with no device open but the verified system image's.
func (g *Guest) inConsole() {
	g.t.Helper()
	g.Expect(`RECOVERY: (the boot before this one asked for it: )?the root partition was not opened`)
	if open := g.expectConsole(); slices.Contains(open, "root") {
		g.t.Errorf("open in the recovery console: %q", open)
	}
}

// plantAddon puts an addon that nobody signed where the stub looks for addons.
func plantAddon(t *testing.T, s vm.State) {
	t.Helper()
	stub, err := os.ReadFile(imageFile(t, "testos-1", "bootx64.efi"))
	must(t, err)
	addon, err := uki.Build(stub, []uki.Section{{Name: ".cmdline", Data: []byte(planted)}})
	must(t, err)
	espWrite(t, s, "loader/addons/planted.addon.efi", addon)
	espWrite(t, s, theUKI(t, s)+".extra.d/planted.addon.efi", addon)
}

// TestNotOurs: the firmware starts no boot manager and no UKI that is not signed by
// this machine's key.
// FAULTS 52
func TestNotOurs(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, image string
		signed      bool   // by a stranger
		want        string // of firmware or boot manager
	}{
		{"boot manager, unsigned", "bootx64.efi", false, `BdsDxe: failed to load [^\n]*: Access Denied`},
		{"boot manager, a stranger's", "bootx64.efi", true, `BdsDxe: failed to load [^\n]*: Access Denied`},
		{"UKI, unsigned", "uki.efi", false, `(?i)(access denied|security violation)`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := provisioned(t)
			g := Machine(t, Options{State: p.State, Prepare: func(s vm.State) error {
				image, err := os.ReadFile(imageFile(t, "testos-1", tt.image))
				must(t, err)
				if tt.signed {
					image = signByStranger(t, image)
				}
				name := bootManager
				if tt.image == "uki.efi" {
					name = theUKI(t, s)
				}
				espWrite(t, s, name, image)
				return nil
			}})
			if i, match := g.ExpectAny(tt.want, `halogen: `); i != 0 {
				t.Errorf("the machine came to %q", match[0])
			}
			time.Sleep(5 * time.Second) // it may try the next thing it knows
			if strings.Contains(g.Console().Text(), "halogen: ") {
				t.Error("initagent was started")
			}
		})
	}
}

// stranger is a key that this machine has never heard of.
func stranger(t testing.TB) (key *rsa.PrivateKey, certificate []byte) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "stranger"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	certificate, err = x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	must(t, err)
	return key, certificate
}

// signByStranger has sbsign sign an image.
func signByStranger(t testing.TB, image []byte) []byte {
	t.Helper()
	key, certificate := stranger(t)
	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
		return path
	}
	in, out := filepath.Join(dir, "in.efi"), filepath.Join(dir, "out.efi")
	must(t, os.WriteFile(in, image, 0o600))
	testkit.Run(t, "sbsign", "--key", write("key", "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key)),
		"--cert", write("cert", "CERTIFICATE", certificate), "--output", out, in)
	signed, err := os.ReadFile(out)
	must(t, err)
	return signed
}

// strangersEntry is a stranger's certificate as db holds one.
func strangersEntry(t testing.TB, s vm.State) secureboot.Entry {
	t.Helper()
	_, certificate := stranger(t)
	e := keyEntry(t, s, secureboot.DB)
	e.Data = certificate
	return e
}
