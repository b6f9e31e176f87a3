package qemutests

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/builder/install"
	"halogenos.internal/builder/vm"
	"halogenos.internal/qemu-tests/writelog"
)

// moments is how many power cuts an installation is tried with.
const moments = 10

// installAgain rebuilds, from what the machine's own disk was told to write while
// it was installed to, what power cuts could have left of it. No firmware starts
// that, and it can be installed to: by the package here, and once by the program
// in the live system, which has the disk as the cut left it.
func (d *liveGuest) installAgain(serial string) {
	d.t.Helper()
	d.says("udevadm settle", "")
	log := d.writes()
	cuts := cutPoints(d.t, log)
	d.t.Logf("cuts after %v of %d requests", cuts, len(log.Entries))
	half, tables := filepath.Join(d.t.TempDir(), "half.img"), 0
	for i, n := range cuts {
		path := filepath.Join(d.t.TempDir(), "cut.img")
		must(d.t, vm.CopySparse(path, d.before))
		cutDisk(d.t, path, log, n, uint64(i))
		if !startsNothing(d.t, path) {
			tables++
			sameDisk(d.t, path, d.State().Disk())
		}
		if i == moments/2 {
			must(d.t, vm.CopySparse(half, path))
		}
		installHere(d.t, path)
		must(d.t, os.Remove(path))
	}
	if tables > 1 {
		d.t.Errorf("%d of %d cuts left a partition table; it was to be written last", tables, moments)
	}
	d.becomes(half)
	disk := d.disk(serial)
	if text := disk.Contents.String(); strings.Contains(text, "partition") {
		d.t.Errorf("%s holds %q; want it as the power cut left it", disk.Path, text)
	}
	d.install(disk, d.fromServer())
}

// writes reads what was recorded of the machine's own disk so far.
func (d *liveGuest) writes() *writelog.Log {
	d.t.Helper()
	f, err := os.Open(d.log)
	must(d.t, err)
	d.t.Cleanup(func() { f.Close() })
	info, err := f.Stat()
	must(d.t, err)
	log, err := writelog.Read(f, info.Size())
	must(d.t, err)
	return log
}

// cutPoints spreads the moments over an installation: from the first request on
// that is no longer about what the disk held, to the last but one.
func cutPoints(t testing.TB, log *writelog.Log) (points []int) {
	t.Helper()
	flushes := log.Flushes()
	if len(flushes) < 4 {
		t.Fatalf("%d requests with %d flushes; want one for what was there, one for the content, two for the table", len(log.Entries), len(flushes))
	}
	first, last := flushes[0], len(log.Entries)-1
	for i := range moments {
		points = append(points, first+(last-first)*i/(moments-1))
	}
	return points
}

// cutDisk does to a disk what a power cut after so many requests may have done:
// what was flushed by then is there, and of what came later each request is there
// or it is not.
func cutDisk(t testing.TB, path string, log *writelog.Log, n int, seed uint64) {
	t.Helper()
	flushed := 0
	for _, f := range log.Flushes() {
		if f <= n {
			flushed = f
		}
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	chance := mathrand.New(mathrand.NewPCG(seed, uint64(n)))
	for i, e := range log.Entries[:n] {
		if i < flushed || chance.IntN(2) == 0 {
			must(t, log.Apply(f, e))
		}
	}
}

// startsNothing reports whether a disk has nothing that a firmware could start: no
// GPT, no partition of an MBR but the one that stands for a GPT, no boot sector.
func startsNothing(t testing.TB, path string) bool {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	if table, _, err := gpt.Read(f, targetSize/512, 512); err == nil {
		if _, err := layout.Find(table, layout.ESP); err != nil {
			t.Errorf("after the cut the disk has partitions %+v, of which some was overwritten", table.Partitions)
		}
		return false
	}
	const partitions, entry, protective = 446, 16, 0xee
	mbr := make([]byte, 510)
	_, err = f.ReadAt(mbr, 0)
	must(t, err)
	if len(bytes.Trim(mbr[:partitions], "\x00")) > 0 {
		t.Error("the disk has a boot sector")
	}
	for e := range slices.Chunk(mbr[partitions:], entry) {
		if kind := e[4]; kind != 0 && kind != protective {
			t.Errorf("the disk has an MBR with a partition of type %#x", kind)
		}
	}
	return true
}

// sameDisk compares what an installation wrote to two disks: all but the copy of
// the partition table at the end.
func sameDisk(t testing.TB, path, want string) {
	t.Helper()
	a, err := os.Open(path)
	must(t, err)
	defer a.Close()
	b, err := os.Open(want)
	must(t, err)
	defer b.Close()
	have, wanted := make([]byte, 1<<20), make([]byte, 1<<20)
	must(t, vm.DataExtents(b, targetSize-layout.Align, func(off, length int64) error {
		for end := off + length; off < end; off += int64(len(have)) {
			n := min(int64(len(have)), end-off)
			if _, err := a.ReadAt(have[:n], off); err != nil {
				return err
			}
			if _, err := b.ReadAt(wanted[:n], off); err != nil {
				return err
			}
			if !bytes.Equal(have[:n], wanted[:n]) {
				return fmt.Errorf("the disk has partitions, and at byte %d not what was installed", off)
			}
		}
		return nil
	}))
}

// installHere installs testos-1 to a disk in a file, as the program does.
func installHere(t testing.TB, path string) {
	t.Helper()
	s, err := install.FromDirectory(filepath.Dir(Image(t, "testos-1")))
	must(t, err)
	defer s.Close()
	ids, err := install.RandomIDs(rand.Reader)
	must(t, err)
	table, err := install.Table(s.ESP, ids, targetSize/512, 512, nil)
	must(t, err)
	device, err := install.Running().Open(install.Disk{Path: path, SectorSize: 512, Sectors: targetSize / 512})
	must(t, err)
	err = install.Install(t.Context(), device, table, s, ids, func(string, int64, int64) {})
	must(t, errors.Join(err, device.Close()))
	d := openDisk(t, path, os.O_RDONLY)
	d.checkTable()
	d.checkESP()
}

// becomes gives the machine's own disk, which it does not use, other content.
func (d *liveGuest) becomes(path string) {
	d.t.Helper()
	own := d.State().Disk()
	must(d.t, errors.Join(os.Truncate(own, 0), os.Truncate(own, targetSize)))
	in, err := os.Open(path)
	must(d.t, err)
	defer in.Close()
	out, err := os.OpenFile(own, os.O_WRONLY, 0)
	must(d.t, err)
	defer out.Close()
	must(d.t, vm.DataExtents(in, targetSize, func(off, length int64) error {
		_, err := io.Copy(io.NewOffsetWriter(out, off), io.NewSectionReader(in, off, length))
		return err
	}))
}
