package qemutests

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/gpt"
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
// interface over the serial line, and starts what was installed. The disk is plugged
// in while the installer runs.
func TestInstallerStick(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, disk string
		o          vm.Options
	}{
		{"nvme, 4096, tis", "nvme0n1", vm.Options{Bus: vm.NVMe, SectorSize: 4096, TPM: vm.TPMTIS, Memory: installerMemoryMiB}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			plugged := vm.Disk{Path: filepath.Join(t.TempDir(), "stick.img"), Bus: vm.USB, BootIndex: 1}
			if err := vm.CopySparse(plugged.Path, stick(t, "testos-1")); err != nil {
				t.Fatal(err)
			}
			tt.o.Disks = []vm.Disk{plugged}
			tt.o.NoDisk = true
			g := newGuest(t, Options{Image: "testos-1", Prepare: emptyDisk, VM: tt.o})
			g.VM.Extra = append(node("own", g.State().Disk()), hotPort()...)
			g.PowerOn()
			g.takesLanguage()
			g.sees("which disk?")
			g.plugsDisk(tt.o, tt.disk)
			g.send("\r")
			g.sees("the disk's name, " + tt.disk + ", to install:")
			g.send("sda\r") // the stick's own
			g.sees("That was not " + tt.disk)
			g.send(tt.disk + "\r")
			g.sees("is installed on /dev/" + tt.disk)
			g.sees("Enter: leave")
			g.send("\r")
			g.Expect(`take the stick out`)
			ctx, cancel := g.wait()
			defer cancel()
			if _, err := g.QMP().WaitEvent(ctx, "RESET"); err != nil {
				t.Fatal(err)
			}
			must(t, g.Unplug(ctx, 0))
			_, r := g.provision()
			checkSecured(t, "installed", r)
			g.PowerOff()
			checkNoStick(t, g.State().Disk(), plugged.Path, tt.o.SectorSize)
		})
	}
}

// checkNoStick looks for what an installer stick has and the disk of a machine that
// was installed from it must not have.
func checkNoStick(t testing.TB, disk, stick string, sectorSize int) {
	t.Helper()
	installed, from := openSectors(t, disk, sectorSize, os.O_RDONLY), openDisk(t, stick, os.O_RDONLY)
	var labels []string
	for _, p := range installed.table.Partitions {
		labels = append(labels, p.Label)
		if slices.ContainsFunc(from.table.Partitions, func(s gpt.Partition) bool { return s.UUID == p.UUID }) {
			t.Errorf("partition %s has a UUID of the stick's", p.Label)
		}
	}
	if want := []string{"esp", "system-a", "verity-a", "system-b", "verity-b", "root"}; !slices.Equal(labels, want) {
		t.Errorf("partitions %q, want %q", labels, want)
	}
	const program = "usage: halogen install" // no program of the system has it
	if !holds(t, from.File, program) || holds(t, installed.File, program) {
		t.Errorf("the installer was to be found on the stick (%v) and not on the disk (%v)", holds(t, from.File, program), holds(t, installed.File, program))
	}
}

// holds reports whether a text stands anywhere in a file.
func holds(t testing.TB, f *os.File, text string) (found bool) {
	t.Helper()
	info, err := f.Stat()
	must(t, err)
	must(t, vm.DataExtents(f, info.Size(), func(off, length int64) error {
		block := make([]byte, 1<<20)
		for end := off + length; off < end && !found; off += int64(len(block) - len(text)) {
			n, err := f.ReadAt(block[:min(int64(len(block)), end-off)], off)
			if err != nil && err != io.EOF {
				return err
			}
			found = bytes.Contains(block[:n], []byte(text))
		}
		return nil
	}))
	return found
}

// sees waits for a text on a terminal that is drawn on.
func (g *Guest) sees(text string) {
	g.t.Helper()
	g.Expect(screenText(text).String())
}

// screenText is a text as a terminal gets it: what stands there already is passed over,
// the spaces most of all.
func screenText(text string) *regexp.Regexp {
	return regexp.MustCompile(strings.ReplaceAll(regexp.QuoteMeta(text), " ", " *"))
}

// takesLanguage answers the installer's first question at a serial line, where none about the
// keyboard follows.
func (g *Guest) takesLanguage() {
	g.t.Helper()
	g.sees("Language of the installer")
	g.sees("> English")
	g.send("\r")
}

// send types keys that are not a line, once the program has seen to its terminal.
func (g *Guest) send(keys string) {
	g.t.Helper()
	time.Sleep(time.Second)
	if err := g.Console().Send([]byte(keys)); err != nil {
		g.t.Fatal(err)
	}
}
