package modules_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/boot/testkit"
	"halogenos.internal/builder/modules"
	"halogenos.internal/builder/rootfs/rootfstest"
)

// Whether a kernel takes db's certificates for modules is told from its code.
func TestTakesDB(t *testing.T) {
	for name, c := range map[string]struct {
		kernel []byte
		want   modules.DB
	}{
		"patched as distributions do": {rootfstest.KernelVerifying(release, true), modules.DBTaken},
		"mainline":                    {rootfstest.KernelVerifying(release, false), modules.DBUnused},
		// An argument of the call before is none of this one, which has its own in a register.
		"the platform keyring for another one": {rootfstest.KernelCalling(release, "\x41\xb9\x05\x00\x00\x00\x41\xb8\x02\x00\x00\x00", "\x45\x31\xc9\x4d\x89\xe0"), modules.DBUnknown},
		"an argument of something else":        {rootfstest.KernelCalling(release, "\x41\xb9\x05\x00\x00\x00\x41\xb8\x02\x00\x00\x00"), modules.DBUnused},
		"nothing to be found in the code":      {rootfstest.Kernel(release), modules.DBUnknown},
	} {
		k, err := modules.ReadKernel(c.kernel, release)
		if err != nil {
			t.Fatal(err)
		}
		if k.DB != c.want {
			t.Errorf("%s: %d, want %d", name, k.DB, c.want)
		}
	}
}

// Debian's own kernel has the patch "KEYS: Make use of platform keyring for module signature
// verify".
func TestDebianTakesDB(t *testing.T) {
	found, err := filepath.Glob(testkit.Debian(t) + "/boot/vmlinuz-*")
	if err != nil || len(found) == 0 {
		t.Fatalf("no kernel: %v", err)
	}
	image, err := os.ReadFile(found[0])
	if err != nil {
		t.Fatal(err)
	}
	k, err := modules.ReadKernel(image, strings.TrimPrefix(filepath.Base(found[0]), "vmlinuz-"))
	if err != nil {
		t.Fatal(err)
	}
	if k.DB != modules.DBTaken {
		t.Errorf("%s: %d, want %d", found[0], k.DB, modules.DBTaken)
	}
}
