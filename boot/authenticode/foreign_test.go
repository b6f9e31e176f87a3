package authenticode

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/boot/testkit"
)

const hostEFI = "/usr/lib/systemd/boot/efi/"

// foreign is a directory with an identity for the tools of others.
type foreign struct{ directory, key, cert string }

func newForeign(t *testing.T, id *identity) foreign {
	t.Helper()
	f := foreign{directory: t.TempDir()}
	f.key = f.write(t, "key.pem", pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(id.key)}))
	f.cert = f.write(t, "cert.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: id.cert.Raw}))
	return f
}

func (f foreign) path(name string) string { return filepath.Join(f.directory, name) }

func (f foreign) write(t *testing.T, name string, data []byte) string {
	t.Helper()
	if err := os.WriteFile(f.path(name), data, 0o600); err != nil {
		t.Fatal(err)
	}
	return f.path(name)
}

func (f foreign) read(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(f.path(name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// realImages are images of other linkers, as far as they are installed.
func realImages(t *testing.T) map[string][]byte {
	t.Helper()
	images := map[string][]byte{"made-up": testImage(t)}
	for _, name := range []string{"linuxx64.efi.stub", "systemd-bootx64.efi"} {
		if data, err := os.ReadFile(hostEFI + name); err == nil {
			images["host "+name] = data
		}
		if root := os.Getenv(testkit.Tools13Env); root != "" {
			data, err := os.ReadFile(filepath.Join(root, hostEFI, name))
			if err != nil {
				t.Fatal(err)
			}
			images["debian 13 "+name] = data
		}
	}
	return images
}

func TestForeignToolsAcceptOurs(t *testing.T) {
	ids := makeIdentities()
	owner := newForeign(t, ids.owner)
	stranger := newForeign(t, ids.stranger)
	for name, image := range realImages(t) {
		t.Run(name, func(t *testing.T) {
			signed := owner.write(t, "signed.efi", sign(t, image, ids.owner))
			testkit.Run(t, "sbverify", "--cert", owner.cert, signed)
			out := testkit.Run(t, "osslsigncode", "verify", "-CAfile", owner.cert, "-in", signed)
			if strings.Contains(out, "MISMATCH") {
				t.Errorf("osslsigncode sees a mismatch:\n%s", out)
			}
			twice := owner.write(t, "twice.efi", sign(t, sign(t, image, ids.owner), ids.stranger))
			testkit.Run(t, "sbverify", "--cert", owner.cert, twice)
			testkit.Run(t, "sbverify", "--cert", stranger.cert, twice)
		})
	}
	signed := sign(t, testImage(t), ids.owner)
	signed[len(testImage(t))-1]++
	file := owner.write(t, "changed.efi", signed)
	if out, err := exec.Command(testkit.Need(t, "sbverify"), "--cert", owner.cert, file).CombinedOutput(); err == nil {
		t.Errorf("sbverify takes a changed image, so its word is worth nothing here:\n%s", out)
	}
}

func TestWeAcceptForeignTools(t *testing.T) {
	ids := makeIdentities()
	owner := newForeign(t, ids.owner)
	for name, image := range realImages(t) {
		t.Run(name, func(t *testing.T) {
			in := owner.write(t, "in.efi", image)
			testkit.Run(t, "sbsign", "--key", owner.key, "--cert", owner.cert, "--output", owner.path("sbsign.efi"), in)
			os.Remove(owner.path("ossl.efi")) // osslsigncode does not overwrite
			testkit.Run(t, "osslsigncode", "sign", "-h", "sha256", "-key", owner.key, "-certs", owner.cert, "-in", in, "-out", owner.path("ossl.efi"))
			want, err := Digest(image)
			if err != nil {
				t.Fatal(err)
			}
			for _, signed := range []string{"sbsign.efi", "ossl.efi"} {
				data := owner.read(t, signed)
				if _, err := Verify(data, roots(ids.owner)); err != nil {
					t.Errorf("%s: %v", signed, err)
				}
				if got, err := Digest(data); err != nil || got != want {
					t.Errorf("%s has hash %x, %v; want %x", signed, got, err, want)
				}
				if _, err := Verify(sign(t, data, ids.stranger), roots(ids.stranger)); err != nil {
					t.Errorf("%s signed again: %v", signed, err)
				}
			}
		})
	}
}
