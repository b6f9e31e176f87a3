package block_test

import (
	"bytes"
	"errors"
	"io"
	"math"
	"testing"

	"halogenos.internal/boot/block"
	"halogenos.internal/boot/blocktest"
)

func TestSectionKeepsItsBounds(t *testing.T) {
	disk := blocktest.New(8192, blocktest.Hostile)
	s, err := block.NewSection(disk, 1024, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		off  int64
		n    int
		ok   bool
	}{
		{"whole", 0, 2048, true},
		{"last byte", 2047, 1, true},
		{"nothing at the end", 2048, 0, true},
		{"one past the end", 2048, 1, false},
		{"straddles the end", 2047, 2, false},
		{"before the start", -1, 1, false},
		{"far away", math.MaxInt64, 1, false},
	} {
		before := readAll(t, disk)
		n, err := s.WriteAt(bytes.Repeat([]byte{1}, c.n), c.off)
		switch {
		case c.ok && (err != nil || n != c.n):
			t.Errorf("%s: wrote %d of %d bytes: %v", c.name, n, c.n, err)
		case !c.ok && !errors.Is(err, block.ErrOutOfBounds):
			t.Errorf("%s: error %v, want ErrOutOfBounds", c.name, err)
		case !c.ok && !bytes.Equal(before, readAll(t, disk)):
			t.Errorf("%s: refused, yet the disk changed", c.name)
		}
	}
	all := readAll(t, disk)
	want := append(bytes.Repeat([]byte{0xaa}, 1024), bytes.Repeat([]byte{1}, 2048)...)
	want = append(want, bytes.Repeat([]byte{0xaa}, 8192-3072)...)
	if !bytes.Equal(all, want) {
		t.Error("the neighbours of the section were written to")
	}

	buf := make([]byte, 100)
	if n, err := s.ReadAt(buf, 2000); n != 48 || err != io.EOF {
		t.Errorf("read over the end: %d bytes, %v; want 48 and EOF", n, err)
	}
	if n, err := s.ReadAt(buf, 2048); n != 0 || err != io.EOF {
		t.Errorf("read at the end: %d bytes, %v; want 0 and EOF", n, err)
	}
	if _, err := s.ReadAt(buf, -1); !errors.Is(err, block.ErrOutOfBounds) {
		t.Errorf("read before the start: %v", err)
	}
}

func TestSectionRefusesImpossibleRanges(t *testing.T) {
	for _, c := range [][2]int64{{-1, 1}, {0, -1}, {math.MaxInt64, 1}} {
		if _, err := block.NewSection(blocktest.New(512, blocktest.Zero), c[0], c[1]); err == nil {
			t.Errorf("section of %d bytes at %d was made", c[1], c[0])
		}
	}
}

func TestZeroAndIsZero(t *testing.T) {
	disk := blocktest.New(1<<20, blocktest.Hostile)
	if err := block.Zero(disk, 1000, 700_000); err != nil {
		t.Fatal(err)
	}
	all := readAll(t, disk)
	if !block.IsZero(all[1000:701_000]) {
		t.Error("the range is not all zero")
	}
	if block.IsZero(all[999:701_000]) || block.IsZero(all[1000:701_001]) {
		t.Error("more than the range was zeroed")
	}
	if !block.IsZero(nil) {
		t.Error("no bytes are not zero bytes")
	}
	if err := block.Zero(disk, 1<<20-10, 11); err == nil {
		t.Error("zeroing past the end of the disk was not refused")
	}
}

func readAll(t *testing.T, r io.ReaderAt) []byte {
	t.Helper()
	b, err := io.ReadAll(io.NewSectionReader(r, 0, math.MaxInt64))
	if err != nil {
		t.Fatal(err)
	}
	return b
}
