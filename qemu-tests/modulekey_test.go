package qemutests

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/builder/modules"
	"halogenos.internal/builder/rootfs/rootfstest"
	"halogenos.internal/builder/vm"
	"halogenos.internal/qemu-tests/testos/protocol"
)

// A modulesKey signs kernel modules, and is not built into the kernel.
type modulesKey struct {
	key         *rsa.PrivateKey
	Certificate *x509.Certificate
}

func newModulesKey(t testing.TB, name string) *modulesKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	cert, err := rootfstest.Certificate(key, name)
	must(t, err)
	return &modulesKey{key, cert}
}

// String names the machines of this key.
func (k *modulesKey) String() string {
	if k == nil {
		return ""
	}
	return fmt.Sprintf("%x", sha256.Sum256(k.Certificate.Raw))
}

// sign signs one of Debian's modules in the place of Debian.
func (k *modulesKey) sign(t testing.TB) []byte {
	t.Helper()
	signed, err := modules.Sign(unsigned(t, debianModule(t)), k.Certificate, k.key)
	must(t, err)
	return signed
}

// holdsModules makes a disk with files of kernel modules.
func holdsModules(t testing.TB, files map[string][]byte) vm.Disk {
	t.Helper()
	image := filepath.Join(t.TempDir(), "modules.img")
	must(t, os.WriteFile(image, nil, 0o644))
	must(t, os.Truncate(image, 32<<20))
	testkit.Run(t, "sgdisk", "--new=1:1M:-1M", image) // the test system reports a disk without a table
	testkit.Run(t, "mkfs.vfat", "--offset=2048", image, "16384")
	for name, content := range files {
		path := filepath.Join(t.TempDir(), name)
		must(t, os.WriteFile(path, content, 0o644))
		testkit.Run(t, "mcopy", "-i", image+"@@1M", path, "::"+name)
	}
	return vm.Disk{Path: image, ReadOnly: true}
}

// loads has the kernel load a module of that disk, and wants it to, or to refuse.
func (g *Guest) loads(r protocol.Report, name string, want bool) {
	g.t.Helper()
	i := slices.IndexFunc(r.Disks, func(d protocol.Disk) bool { return d.Serial == "disk1" })
	if i < 0 || len(r.Disks[i].Kernel) != 1 {
		g.t.Fatalf("disks %+v; want one with modules", r.Disks)
	}
	g.mountFAT("/dev/"+r.Disks[i].Kernel[0], "ro")
	err := g.Try(nil, "loadmodule", "/mnt/"+name)
	g.Do(nil, "umount", "/mnt")
	switch {
	case want && err != nil:
		g.t.Errorf("%s: %v", name, err)
	case !want && err == nil:
		g.t.Errorf("%s was loaded", name)
	case !want && !strings.Contains(err.Error(), "key was rejected") && !strings.Contains(err.Error(), "required key not available"):
		g.t.Errorf("%s: %v; want it refused for its key", name, err)
	}
}

// TestModuleKey: version 2 has kernel modules signed by a key that is not built into its kernel
// (ModuleTrust=db). In its trial they do not load. Once it was blessed the owner is asked, says
// yes, the firmware's db gets the certificate, and the machine starts again, unlocked by the
// TPM: PCR 7 was foretold. A module by that key then loads; one by a stranger's does not. Before
// a yes neither does.
func TestModuleKey(t *testing.T) {
	t.Parallel()
	own, stranger := newModulesKey(t, "drivers"), newModulesKey(t, "stranger")
	g := onTrial(t, variant{Watchdog: 20, Modules: own}, tries, vm.Options{
		Disks: []vm.Disk{holdsModules(t, map[string][]byte{"own.ko": own.sign(t), "stranger.ko": stranger.sign(t)})},
	})
	g.PowerOn()
	r := g.boots(newSystem())
	g.loads(r, "own.ko", false)
	g.bless(r)
	const question = `Shall this machine trust that key\?(?s:.*)\[y/N\] `
	for starts := 1; ; starts++ { // the record of the new release settles first
		g.Do(nil, "reboot")
		if i, match := g.ExpectAny(question, greeting, `RECOVERY: [^\n]*`, asksForKey); i == 0 {
			break
		} else if i > 1 || starts == 5 {
			t.Fatalf("start %d came to %.300q; want it to ask about the key", starts, match[0])
		}
	}
	if !strings.Contains(g.Console().Text(), "CN=drivers") {
		t.Error("it does not say whose key")
	}
	g.typeLine("y")
	g.Expect(`db has changed: kernels that start from now on go by it`)
	for range 2 {
		r = g.boots(blessed())
		if db := g.firmwareHolds(secureboot.DB); !db.Contains(secureboot.ModuleKey(own.Certificate.Raw)) || len(db) != 2 {
			t.Errorf("db holds %s", db)
		}
		g.loads(r, "stranger.ko", false)
		g.loads(r, "own.ko", true)
		g.Do(nil, "reboot")
	}
	g.boots(blessed())
}
