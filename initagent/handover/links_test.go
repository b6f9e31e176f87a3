package handover

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/boot/bootflow"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/stateconf"
	"halogenos.internal/boot/verity"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/ownstate"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/upper"
)

// mounts counts what is mounted, and mounts nothing.
type mounts struct {
	hw.Mounts
	n int
}

func (m *mounts) Mount(string, string, string, uintptr, string) error { m.n++; return nil }

// loaded has all modules.
type loaded struct{ hw.Kernel }

func (loaded) Load(...string) error { return nil }

// Root of the running system can put a link in the place of each directory on the way to a
// system's own state, which the kernel would follow in the initramfs. FAULTS 115
func TestOverlayThroughNoLink(t *testing.T) {
	root, outside := t.TempDir(), t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	h, seen := &host.Host{Given: host.Given{Root: root}}, new(mounts)
	state := h.Path(rootpart.Directory)
	h.Machine = hw.Machine{Store: hw.LinuxStore{Root: state}, Mounts: seen, Kernel: loaded{}}
	h.Contract = &contract.Contract{RootHash: make([]byte, len(verity.Root{}))}
	h.State.Root = bootflow.RootOpen
	must(os.MkdirAll(h.Path(host.SystemDirectory, "etc"), 0o755))
	top, work := upper.Overlay(ownstate.Own(h), upper.Name("/etc"))
	for _, d := range []string{filepath.Join(state, top), filepath.Join(state, work), filepath.Join(outside, "etc/upper"), filepath.Join(outside, "etc/work"), filepath.Join(outside, "upper"), filepath.Join(outside, "work")} {
		must(os.MkdirAll(d, 0o755))
	}
	etc := stateconf.Entry{Mode: stateconf.Overlay, Path: "/etc"}
	must(mountEntry(h, etc))
	if seen.n != 1 {
		t.Fatalf("%d mounts", seen.n)
	}
	for _, name := range []string{top, work, filepath.Dir(top), filepath.Dir(filepath.Dir(top)), upper.Directory} {
		at := filepath.Join(state, name)
		must(os.Rename(at, at+"-aside"))
		must(os.Symlink(outside, at))
		if err := mountEntry(h, etc); err == nil || !strings.Contains(err.Error(), "neither a link nor behind one") {
			t.Errorf("%s is a link: %v", name, err)
		}
		must(os.Remove(at))
		must(os.Rename(at+"-aside", at))
	}
	if seen.n != 1 {
		t.Errorf("%d mounts", seen.n)
	}
}
