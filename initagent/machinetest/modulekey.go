package machinetest

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/u-root/u-root/pkg/cpio"

	"bytes"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/uki"
	"halogenos.internal/boot/uki/ukitest"
)

// ModuleCertificate makes a certificate of a key that signs kernel modules.
func ModuleCertificate(t testing.TB, name string) []byte {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Unix(1.7e9, 0), NotAfter: time.Unix(4e9, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// WithModuleKey is a release that wants a certificate of kernel modules in db.
func (r *Edition) WithModuleKey(t testing.TB, der []byte) *Edition {
	t.Helper()
	first, err := contract.Archive(r.Contract)
	if err != nil {
		t.Fatal(err)
	}
	key, err := contract.ModuleKeyArchive(der)
	if err != nil {
		t.Fatal(err)
	}
	r.ModuleKey = der
	r.UKI, err = uki.Build(ukitest.Stub("257.13-1"), uki.Payload{
		OSRelease: []byte("ID=test\n"), Cmdline: []byte("quiet"), Linux: ukitest.Stub("kernel"), Initrd: append(first, key...),
	}.Sections())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// installModuleKey unpacks it, as the kernel does with the initramfs.
func (m *Machine) installModuleKey(version contract.Version) {
	m.T.Helper()
	name := filepath.Join(m.Root, contract.ModuleKeyPath)
	if err := os.RemoveAll(name); err != nil {
		m.T.Fatal(err)
	}
	archive, err := contract.ModuleKeyArchive(m.Releases[version].ModuleKey)
	if err != nil {
		m.T.Fatal(err)
	}
	if archive == nil {
		return
	}
	records, err := cpio.ReadAllRecords(cpio.Newc.Reader(bytes.NewReader(archive)))
	if err != nil {
		m.T.Fatal(err)
	}
	for _, r := range records {
		if r.Name != contract.ModuleKeyPath {
			continue
		}
		text := make([]byte, r.FileSize)
		if _, err := r.ReadAt(text, 0); err != nil {
			m.T.Fatal(err)
		}
		if err := os.WriteFile(name, text, 0o600); err != nil {
			m.T.Fatal(err)
		}
	}
}
