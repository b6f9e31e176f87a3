package qemutests

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"halogenos.internal/builder/vm"
)

// stick returns the image of the installer stick of an image.
func stick(t testing.TB, image string) string {
	t.Helper()
	path := filepath.Join(filepath.Dir(Image(t, image)), "installer.img")
	if _, err := os.Stat(path); err != nil {
		skip(t, err.Error())
	}
	return path
}

// emptyDisk makes the machine's own disk one that was never written to.
func emptyDisk(s vm.State) error {
	return errors.Join(os.Truncate(s.Disk(), 0), os.Truncate(s.Disk(), 16<<30))
}

// TestInstallerStick installs from a stick onto an empty disk, by the text
// interface over the serial line, and starts what was installed.
func TestInstallerStick(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, disk string
		o          vm.Options
	}{
		{"nvme, 4096", "nvme0n1", vm.Options{Bus: vm.NVMe, SectorSize: 4096}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			plugged := vm.Disk{Path: filepath.Join(t.TempDir(), "stick.img"), Bus: vm.USB, BootIndex: 1}
			if err := vm.CopySparse(plugged.Path, stick(t, "testos-1")); err != nil {
				t.Fatal(err)
			}
			tt.o.Disks = []vm.Disk{plugged}
			g := Machine(t, Options{Image: "testos-1", Prepare: emptyDisk, VM: tt.o})
			g.sees("which disk?")
			g.send("\r")
			g.sees("the disk's name to install:")
			g.send("sda\r") // the stick's own
			g.sees("That was not " + tt.disk)
			g.send(tt.disk + "\r")
			g.sees("is installed on /dev/" + tt.disk)
			g.sees("Enter: leave")
			g.send("\r")
			g.Expect(`take the stick out`)
			g.PowerCut() // and it was taken out
			g.VM.Disks = nil
			g.PowerOn()
			_, r := g.provision()
			checkSecured(t, "installed", r)
			g.PowerOff()
		})
	}
}

// sees waits for a text on a terminal that is drawn on: what stands there already
// is passed over, the spaces most of all.
func (g *Guest) sees(text string) {
	g.t.Helper()
	g.Expect(strings.ReplaceAll(regexp.QuoteMeta(text), " ", " *"))
}

// send types keys that are no line, once the program has seen to its terminal.
func (g *Guest) send(keys string) {
	g.t.Helper()
	time.Sleep(time.Second)
	if err := g.Console().Send([]byte(keys)); err != nil {
		g.t.Fatal(err)
	}
}
