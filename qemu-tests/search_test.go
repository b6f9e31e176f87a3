package qemutests

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
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
	dump := filepath.Join(g.t.TempDir(), "memory")
	ctx, cancel := g.wait()
	defer cancel()
	must(g.t, g.DumpMemory(ctx, dump))
	f, err := os.Open(dump)
	must(g.t, err)
	defer os.Remove(dump) // it has the size of the machine's memory
	defer f.Close()
	found, size, err := search(f, needles)
	must(g.t, err)
	if size < 256<<20 {
		g.t.Errorf("the memory has %d bytes", size)
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

// wantNoSecrets searches the memory of a machine. While the root partition is open
// the kernel has its volume key in the cipher's two key schedules, each of which begins
// with one half of it.
func (g *Guest) wantNoSecrets(when string, needles []needle, open bool) {
	g.t.Helper()
	found := g.searchMemory(needles)
	g.t.Logf("%s: %v", when, found)
	for _, n := range needles {
		most := 0
		if open && n.mapped {
			most = mappedCopies
		}
		if found[n.name] > most {
			g.t.Errorf("%s: the %s lies in memory %d times, want at most %d", when, n.name, found[n.name], most)
		}
	}
	if open && found[volumeKeyNeedle] == 0 {
		g.t.Errorf("%s: the searcher does not find the volume key, which the kernel has", when)
	}
}

// Of the volume key.
const (
	volumeKeyNeedle = "volume key"
	mappedCopies    = 1
)
