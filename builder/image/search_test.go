package image

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/uki"
	"halogenos.internal/builder/config"
	"halogenos.internal/builder/inspect"
	"halogenos.internal/builder/modules"
	"halogenos.internal/builder/rootfs/rootfstest"
	"halogenos.internal/builder/scan"
)

func privateKey(t *testing.T) []byte {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func TestSecretsAreRefused(t *testing.T) {
	allowed := func(o *Options, text string) {
		c, err := config.Parse(configuration+"[Allow]\n"+text, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		o.Config = c
	}
	for _, c := range []struct {
		name   string
		change func(o *Options, f rootfstest.Files)
		say    string // empty: it is built
	}{
		{"in the system image", func(_ *Options, f rootfstest.Files) { f["usr/share/thing"] = privateKey(t) }, "/usr/share/thing at byte 0: private-key-pem"},
		{"in a command of the machine", func(o *Options, _ rootfstest.Files) {
			name := filepath.Join(o.Machine, "bb")
			program, err := os.ReadFile(name)
			if err == nil {
				err = os.WriteFile(name, append(program, privateKey(t)...), 0o755)
			}
			if err != nil {
				t.Fatal(err)
			}
		}, "initramfs!/bin/bb at byte"},
		{"but not when it is allowed", func(o *Options, f rootfstest.Files) {
			f["usr/share/thing"] = privateKey(t)
			allowed(o, "private-key-pem=/usr/share/thing it is a test\n")
		}, ""},
		{"by an entry for something else", func(o *Options, _ rootfstest.Files) {
			allowed(o, "private-key-pem=/usr/share/thing it is a test\n")
		}, "matches nothing"},
	} {
		t.Run(c.name, func(t *testing.T) {
			files := rootfstest.Minimal()
			o := options(t, "")
			c.change(&o, files)
			o.RootFS = files.Write(t, false)
			_, err := Build(t.Context(), o)
			if c.say == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.say) {
				t.Fatalf("error %v, want %q", err, c.say)
			}
			if secrets := (*scan.SecretsError)(nil); strings.Contains(c.say, "at byte") && !errors.As(err, &secrets) {
				t.Errorf("error %T", err)
			}
			if left := listing(t, o.Out); len(left) > 0 {
				t.Errorf("left %q", left)
			}
		})
	}
}

// TestModules breaks each rule for kernel modules in an image, and keeps each.
func TestModules(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := rootfstest.Certificate(key, "distributor")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "cert"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}), 0o644); err != nil {
		t.Fatal(err)
	}
	parsed := func(more string) *config.Config {
		c, err := config.Parse(strings.Replace(configuration, "ReleaseKey=none", "ReleaseKey=none\nModuleKey=cert"+more, 1), dir)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	vouched, trusted := parsed(""), parsed("\nModuleTrust=db")
	info := []string{"vermagic=" + rootfstest.Release + rootfstest.Config, "license=GPL"}
	unsigned := rootfstest.UnsignedModule(info...)
	byOwn, err := modules.Sign(unsigned, cert, key)
	if err != nil {
		t.Fatal(err)
	}
	const extra = "usr/lib/modules/" + rootfstest.Release + "/extra/driver.ko.xz"
	for _, c := range []struct {
		name    string
		module  []byte
		vouched bool // ModuleKey is there
		key     bool // and its secret key
		db      bool // and it is for db
		say     string
		// The kernel's code tells by what it verifies modules.
		patched, mainline bool
		extension         bool // which has the module
	}{
		{name: "signed with the kernel's key", module: rootfstest.Module(rootfstest.Release)},
		{name: "unsigned", module: unsigned, say: "extra/driver.ko.xz: is not signed"},
		{name: "unsigned, with a certificate alone", module: unsigned, vouched: true, say: "extra/driver.ko.xz: is not signed"},
		{name: "unsigned, and signed by the build", module: unsigned, vouched: true, key: true, say: "1 modules are signed with ModuleKey, whose certificate kernel 6.12.1-test does not have built in"},
		{name: "unsigned, signed by the build, and for db", module: unsigned, vouched: true, key: true, db: true, patched: true},
		{name: "for the db of mainline", module: byOwn, vouched: true, db: true, mainline: true, say: "as mainline does"},
		{name: "for db, of which nothing is known", module: byOwn, vouched: true, db: true, say: "cannot be told"},
		{name: "signed by the build, in an extension", module: unsigned, vouched: true, key: true, extension: true, say: "extension drivers: 1 modules are signed with ModuleKey, whose certificate kernel 6.12.1-test does not have built in"},
		{name: "signed by the distributor, in an extension", module: byOwn, vouched: true, extension: true, say: "extension drivers: 1 modules are signed with ModuleKey"},
		{name: "signed by the build, in an extension, and for db", module: unsigned, vouched: true, key: true, db: true, patched: true, extension: true},
		{name: "with a key but no certificate", module: unsigned, key: true, say: "ModuleKey"},
		{name: "signed by the distributor", module: byOwn, vouched: true, say: "ModuleTrust=db"},
		{name: "signed by a stranger", module: byOwn, say: "vouches for"},
		{name: "of another kernel", module: rootfstest.Module("6.12.2"), say: "was built for kernel"},
		{name: "damaged", module: append(rootfstest.Module(rootfstest.Release)[:300], rootfstest.Module(rootfstest.Release)[301:]...), say: "extra/driver.ko.xz"},
	} {
		t.Run(c.name, func(t *testing.T) {
			files := withIndexes(t)
			packed, err := modules.Pack(extra, c.module)
			if err != nil {
				t.Fatal(err)
			}
			if !c.extension {
				files[extra] = packed
			}
			if c.patched || c.mainline {
				files.TakeVerifying(c.patched)
			}
			o := options(t, files.Write(t, false))
			o.Disk = false
			if c.vouched {
				o.Config = vouched
			}
			if c.db {
				o.Config = trusted
			}
			if c.extension {
				with := *o.Config
				o.Config = &with
				if err := with.AddExtension("drivers=" + (rootfstest.Files{extra: packed}).Write(t, false)); err != nil {
					t.Fatal(err)
				}
			}
			if c.key {
				o.ModuleSigner = key
			}
			_, err = Build(t.Context(), o)
			if c.db && err == nil {
				holdsModuleKey(t, o, cert.Raw)
			}
			if c.say == "" && err != nil || c.say != "" && (err == nil || !strings.Contains(err.Error(), c.say)) {
				t.Errorf("error %v, want %q", err, c.say)
			}
		})
	}
}

// holdsModuleKey checks that a machine that starts the UKI finds the certificate for its db.
func holdsModuleKey(t *testing.T, o Options, want []byte) {
	t.Helper()
	img, err := uki.Parse(read(t, o.Out, release.UKIFile))
	if err != nil {
		t.Fatal(err)
	}
	initrd, _ := img.Section(".initrd")
	if got, err := contract.ModuleKeyFromInitrd(initrd); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the initramfs has %x, %v", got, err)
	}
	report, err := inspect.File(filepath.Join(o.Out, release.UKIFile))
	if err != nil || report.EFI == nil || report.EFI.ModuleKey == nil || !strings.Contains(report.EFI.ModuleKey.Subject, "distributor") {
		t.Errorf("halogen inspect shows %+v, %v", report, err)
	}
}
