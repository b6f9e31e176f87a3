package qemutests

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"slices"
	"testing"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/fat"
	"halogenos.internal/boot/layout"
	"halogenos.internal/qemu-tests/writelog"
)

// cutBlock is what a disk writes at once, in bytes.
const cutBlock = 512

// espCuts is an ESP as power cuts could have left it while the firmware, the kernel's
// vfat and our commands wrote to it: what it held before, under those of the recorded
// writes that have reached the disk.
type espCuts struct {
	t      testing.TB
	before io.ReaderAt
	log    *writelog.Log
	writes []writelog.Entry // to the ESP, and all flushes
	blocks map[int64][]int  // place on the ESP in blocks: the writes that cover it
	start  int64            // of the ESP on the disk, in bytes

	last, missing int // writes up to last have reached the disk, but for missing
}

// openESPCuts reads the log of a machine that is off; before is its disk as it was
// when the log began.
func openESPCuts(t testing.TB, before, logFile string) *espCuts {
	t.Helper()
	d := openDisk(t, before, os.O_RDONLY)
	start, size := d.partition(layout.ESP)
	f, err := os.Open(logFile)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	info, err := f.Stat()
	must(t, err)
	log, err := writelog.Read(f, info.Size())
	must(t, err)
	c := &espCuts{t: t, before: io.NewSectionReader(d, start, size), start: start, log: log, blocks: map[int64][]int{}}
	for _, e := range log.Entries {
		inside := e.Length > 0 && e.Offset >= start && e.Offset+e.Length <= start+size
		if !inside && e.Flags&writelog.Flush == 0 {
			continue
		}
		for off := e.Offset - start; inside && off < e.Offset-start+e.Length; off += cutBlock {
			c.blocks[off/cutBlock] = append(c.blocks[off/cutBlock], len(c.writes))
		}
		c.writes = append(c.writes, e)
	}
	return c
}

// ReadAt reads the ESP as the cut left it.
func (c *espCuts) ReadAt(b []byte, off int64) (int, error) {
	n, err := c.before.ReadAt(b, off)
	for at := off / cutBlock * cutBlock; at < off+int64(n); at += cutBlock {
		covers := c.blocks[at/cutBlock]
		for i := len(covers) - 1; i >= 0; i-- {
			if covers[i] > c.last || covers[i] == c.missing {
				continue
			}
			e := c.writes[covers[i]]
			from := max(at, off)
			part := b[from-off : min(at+cutBlock-off, int64(n))]
			if _, err := c.log.Data(e).ReadAt(part, from+c.start-e.Offset); err != nil {
				return 0, err
			}
			break
		}
	}
	return n, err
}

// each calls check for every state that a cut could have left: after each write, and
// with any one of the writes since the last flush missing.
func (c *espCuts) each(check func(what string, esp *fat.FS)) (states int) {
	c.t.Helper()
	look := func(last, missing int) {
		c.last, c.missing = last, missing
		what := fmt.Sprintf("cut after write %d of %d, without write %d", last, len(c.writes), missing)
		esp, err := fat.Open(c)
		if err != nil {
			c.t.Fatalf("%s: %v", what, err)
		}
		states++
		check(what, esp)
	}
	look(-1, -1)
	flushed := 0 // writes before it are on the disk
	for n, e := range c.writes {
		if e.Flags&writelog.Flush != 0 {
			flushed = n
			continue
		}
		for missing := flushed; missing < n; missing++ {
			look(n, missing)
		}
		look(n, -1)
	}
	return states
}

// espUKIs are the files of the systems directory of an ESP that a boot manager would
// look at, with where each lies.
func espUKIs(t testing.TB, what string, esp *fat.FS) map[bls.Name][]uint32 {
	t.Helper()
	entries, err := esp.ReadDir(bls.Directory)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	all := map[bls.Name][]uint32{}
	for _, e := range entries {
		name, err := bls.Parse(e.Name())
		if err != nil {
			continue
		}
		if all[name], err = esp.Clusters(bls.Directory + "/" + e.Name()); err != nil {
			t.Errorf("%s: %s: %v", what, name, err)
		}
	}
	return all
}

// keepsUKIs checks that each of the versions is there in every state, under one name
// or another, where it was.
func (c *espCuts) keepsUKIs(versions ...contract.Version) {
	c.t.Helper()
	places := map[contract.Version][]uint32{}
	states := c.each(func(what string, esp *fat.FS) {
		found := espUKIs(c.t, what, esp)
		for _, v := range versions {
			var names []string
			for name, clusters := range found {
				if name.Version != v {
					continue
				}
				if places[v] == nil {
					places[v] = clusters
				}
				if names = append(names, name.String()); !slices.Equal(clusters, places[v]) {
					c.t.Errorf("%s: %s is not where it was", what, name)
				}
			}
			if len(names) == 0 {
				c.t.Errorf("%s: version %s is lost", what, v)
			}
		}
	})
	c.t.Logf("%d writes, %d states", len(c.writes), states)
}

// wholeOrAbsent checks that a version that is put there has a name of its own only
// once all of it is on the disk.
func (c *espCuts) wholeOrAbsent(version contract.Version) {
	c.t.Helper()
	content := func(what string, esp *fat.FS) (all [][32]byte) {
		for name := range espUKIs(c.t, what, esp) {
			if name.Version == version {
				b, err := esp.ReadFile(bls.Directory + "/" + name.String())
				if err != nil {
					c.t.Errorf("%s: %s: %v", what, name, err)
				}
				all = append(all, sha256.Sum256(b))
			}
		}
		return all
	}
	c.last, c.missing = len(c.writes)-1, -1
	esp, err := fat.Open(c)
	must(c.t, err)
	want := content("at the end", esp)
	if len(want) != 1 {
		c.t.Fatalf("version %s is there %d times at the end", version, len(want))
	}
	absent := 0
	states := c.each(func(what string, esp *fat.FS) {
		got := content(what, esp)
		if len(got) == 0 {
			absent++
		}
		for _, sum := range got {
			if sum != want[0] {
				c.t.Errorf("%s: version %s is there and not whole", what, version)
			}
		}
	})
	c.t.Logf("%d writes, %d states, %d of them before the new name", len(c.writes), states, absent)
}
