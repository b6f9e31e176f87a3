package qemutests

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"halogenos.internal/builder/install"
	"halogenos.internal/builder/vm"
)

// TestReinstall installs from a stick over a machine that is in use, by the text
// interface, and keeps its root partition: once until the power is cut while the
// system image is written, and once more to the end. The recovery key is asked for
// at one start, the machine's own keys are enrolled again, and from the next start on
// the TPM opens what was there before.
// FAULTS 42, 43
func TestReinstall(t *testing.T) {
	t.Parallel()
	p := provisioned(t)
	plugged := vm.Disk{Path: filepath.Join(t.TempDir(), "stick.img"), Bus: vm.USB, BootIndex: 1}
	if err := vm.CopySparse(plugged.Path, stick(t, "testos-1")); err != nil {
		t.Fatal(err)
	}
	g := Machine(t, Options{State: p.State, VM: vm.Options{Memory: installerMemoryMiB, Disks: []vm.Disk{plugged}}, Prepare: vm.State.ResetVars})
	before := keptRoot(t, g.State())

	g.reinstall()
	g.Expect(`[1-9][0-9]? *% *[0-9]+ *of`)
	g.PowerCut()
	if after := keptRoot(t, g.State()); !reflect.DeepEqual(after, before) {
		t.Fatalf("after the cut the root partition is %+v, and was %+v", after, before)
	}
	g.PowerOn()
	g.reinstall()
	g.sees("is installed on /dev/vda")
	g.sees("asks for the recovery key")
	g.sees("Enter: leave")
	g.send("\r")
	g.Expect(`take the stick out`)
	g.PowerCut() // and it was taken out
	if after := keptRoot(t, g.State()); !reflect.DeepEqual(after, before) {
		t.Fatalf("the root partition is %+v, and was %+v", after, before)
	}
	g.VM.Disks = nil
	g.PowerOn()

	g.Expect(asksForKey)
	g.typeLine(p.Notes[recoveryKeyNote])
	g.Expect(`this machine's own again\?`)
	g.Expect(`\[y/N\] `)
	g.typeLine("y")
	g.Expect(`Accepted\.`)
	i, match := g.ExpectAny(asksForKey, `RECOVERY: [^\n]*`, shownKey, `halogen: handing over`)
	if i != 3 {
		t.Fatalf("after the keys were enrolled the boot came to %.200q", match[0])
	}
	checkSecured(t, "installed again", g.Boot())
	for path, want := range keptFiles {
		var read struct{ Text string }
		if g.Do(&read, "read", path); read.Text != want {
			t.Errorf("%s holds %q; %q was written", path, read.Text, want)
		}
	}
	g.PowerOff()
}

// reinstall starts the installation on the machine's own disk, whose root partition is
// kept.
func (g *Guest) reinstall() {
	g.t.Helper()
	g.takesLanguage()
	g.sees("which disk?")
	g.sees("/dev/vda")
	g.send("\r") // it starts there, and not on the stick
	g.sees("has a HalogenOS on it")
	g.send("\r") // keep
	g.sees("but its root partition will be lost")
	g.sees("the disk's name, vda, to install:")
	g.send("vda\r")
}

// keptRoot is the root partition of a machine that is off.
func keptRoot(t testing.TB, s vm.State) install.Root {
	t.Helper()
	f, err := os.Open(s.Disk())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	const sector = 512
	root, err := install.FindRoot(f, uint64(info.Size()/sector), sector)
	if err != nil {
		t.Fatal(errors.Join(errors.New("the root partition is lost"), err))
	}
	return *root
}
