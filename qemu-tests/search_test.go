package qemutests

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// A needle is a secret as bytes in memory.
type needle struct {
	name  string
	bytes []byte
	// mapped: the kernel has it for as long as the root partition is open.
	mapped bool
}

// reversed is a number in the other order of its bytes: as little-endian words lie.
func reversed(b []byte) []byte {
	out := slices.Clone(b)
	slices.Reverse(out)
	return out
}

// searchMemory dumps the memory of the running machine and counts the needles.
func (g *Guest) searchMemory(needles []needle) map[string]int {
	g.t.Helper()
	dump := g.dumpMemory()
	defer os.Remove(dump) // it has the size of the machine's memory
	return searchDump(g.t, dump, needles)
}

// dumpMemory writes the memory of the running machine to a file.
func (g *Guest) dumpMemory() (path string) {
	g.t.Helper()
	path = filepath.Join(g.t.TempDir(), "memory")
	ctx, cancel := g.wait()
	defer cancel()
	must(g.t, g.DumpMemory(ctx, path))
	return path
}

// searchDump counts the needles in a dump.
func searchDump(t testing.TB, dump string, needles []needle) map[string]int {
	t.Helper()
	f, err := os.Open(dump)
	must(t, err)
	defer f.Close()
	found, size, err := search(f, needles)
	must(t, err)
	if size < 256<<20 {
		t.Errorf("the memory has %d bytes", size)
	}
	return found
}

// search counts needles in a stream, which may lie across two readings.
func search(r io.Reader, needles []needle) (found map[string]int, size int64, err error) {
	const step = 4 << 20
	overlap := 0
	for _, n := range needles {
		overlap = max(overlap, len(n.bytes)-1)
	}
	found = map[string]int{}
	buf := make([]byte, 0, step+overlap)
	for {
		n, err := io.ReadFull(r, buf[len(buf):len(buf)+step])
		kept := len(buf)
		buf = buf[:kept+n]
		size += int64(n)
		for _, n := range needles {
			// What ends in the part that was kept was counted before.
			from := max(0, kept-len(n.bytes)+1)
			if count := bytes.Count(buf[from:], n.bytes); count > 0 {
				found[n.name] += count
			}
		}
		switch {
		case err == io.EOF || err == io.ErrUnexpectedEOF:
			return found, size, nil
		case err != nil:
			return nil, size, fmt.Errorf("read the memory: %w", err)
		}
		buf = buf[:copy(buf, buf[max(0, len(buf)-overlap):])]
	}
}

// wantNoSecrets searches the memory of a machine.
func (g *Guest) wantNoSecrets(when string, needles []needle, open bool) {
	g.t.Helper()
	wantNone(g.t, when, g.searchMemory(needles), needles, open)
}

// wantNone judges what was found. While the root partition is open the kernel has its
// volume key in the cipher's two key schedules, each of which begins with one half of it.
func wantNone(t testing.TB, when string, found map[string]int, needles []needle, open bool) {
	t.Helper()
	t.Logf("%s: %v", when, found)
	for _, n := range needles {
		most := 0
		if open && n.mapped {
			most = mappedCopies
		}
		if found[n.name] > most {
			t.Errorf("%s: the %s lies in memory %d times, want at most %d", when, n.name, found[n.name], most)
		}
	}
	if open && found[volumeKeyNeedle] == 0 {
		t.Errorf("%s: the searcher does not find the volume key, which the kernel has", when)
	}
}

const (
	volumeKeyNeedle  = "volume key"
	passphraseNeedle = "LUKS passphrase"
	mappedCopies     = 1 // of the volume key
)
