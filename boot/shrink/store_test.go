package shrink_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"halogenos.internal/boot/blocktest"
	"halogenos.internal/boot/shrink"
	"halogenos.internal/boot/shrink/shrinktest"
)

var (
	key    = bytes.Repeat([]byte{3}, 64)
	within = shrink.Range{Start: 16 * shrink.ChunkSize, End: 2000 * shrink.ChunkSize}
)

// lay makes a store in a device of so many chunks.
func lay(t testing.TB, size int, chunks ...shrinktest.Chunk) *blocktest.Disk {
	t.Helper()
	d := blocktest.New(int64(size)*shrink.ChunkSize, blocktest.Hostile)
	if err := shrink.Blank(d); err != nil {
		t.Fatal(err)
	}
	s, err := shrinktest.New(d)
	for _, c := range chunks {
		if err == nil {
			err = s.Add(c)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// changes are n chunks of the range in any order, with a content of their own.
func changes(n int) (list []shrinktest.Chunk) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, at := range r.Perm(2000 - 16)[:n] {
		list = append(list, shrinktest.Chunk{Number: uint64(16 + at), Content: bytes.Repeat([]byte{byte(at), byte(at >> 8), 1, 9}, shrink.ChunkSize/4)})
	}
	return list
}

// A store of no area, of a part of one, of whole ones and more is read as it was laid out.
func TestOpen(t *testing.T) {
	for _, n := range []int{0, 1, 255, 256, 257, 512, 700} {
		list := changes(n)
		d := lay(t, 1000, list...)
		s, err := shrink.Open(d, d.Size(), within)
		if err != nil || s.Chunks() != n {
			t.Fatalf("%d chunks: %v", n, err)
		}
		target := blocktest.New(within.End, 0x55)
		done := 0
		if err := s.Redo(target, func(n int64) { done += int(n) }); err != nil || done != n*shrink.ChunkSize {
			t.Errorf("%d chunks: %d bytes, %v", n, done, err)
		}
		for _, c := range list {
			b := make([]byte, shrink.ChunkSize)
			if _, err := target.ReadAt(b, int64(c.Number)*shrink.ChunkSize); err != nil || !bytes.Equal(b, c.Content) {
				t.Fatalf("%d chunks: chunk %d is another, %v", n, c.Number, err)
			}
		}
		b := make([]byte, within.Start)
		if _, err := target.ReadAt(b, 0); err != nil || bytes.Count(b, []byte{0x55}) != len(b) {
			t.Errorf("%d chunks: what is before the range was changed, %v", n, err)
		}
	}
}

// What changes anything of a store shows in the measurement, and so does another key.
func TestCheck(t *testing.T) {
	d := lay(t, 1000, changes(300)...)
	open := func() *shrink.Store {
		s, err := shrink.Open(d, d.Size(), within)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	mac, err := open().MAC(key)
	if err != nil || open().Check(key, mac) != nil {
		t.Fatalf("%v, %v", err, open().Check(key, mac))
	}
	if err := open().Check(key[1:], mac); !errors.Is(err, shrink.ErrChanged) {
		t.Errorf("another key: %v", err)
	}
	for _, chunk := range []int64{2, 256, 259, 301} { // content in the first area, its end, the second, its end
		was := make([]byte, 1)
		if _, err := d.ReadAt(was, chunk*shrink.ChunkSize+77); err != nil {
			t.Fatal(err)
		}
		_, _ = d.WriteAt([]byte{was[0] ^ 1}, chunk*shrink.ChunkSize+77)
		if err := open().Check(key, mac); !errors.Is(err, shrink.ErrChanged) {
			t.Errorf("content at %d was changed: %v", chunk, err)
		}
		_, _ = d.WriteAt(was, chunk*shrink.ChunkSize+77)
	}
	short := lay(t, 1000, changes(299)...)
	s, err := shrink.Open(short, short.Size(), within)
	if err != nil || !errors.Is(s.Check(key, mac), shrink.ErrChanged) {
		t.Errorf("one chunk less: %v", err)
	}
}

func TestRefused(t *testing.T) {
	chunk := func(number uint64) shrinktest.Chunk {
		return shrinktest.Chunk{Number: number, Content: make([]byte, shrink.ChunkSize)}
	}
	put := func(at int64, b ...byte) func(*blocktest.Disk) {
		return func(d *blocktest.Disk) { _, _ = d.WriteAt(b, at) }
	}
	one := []shrinktest.Chunk{chunk(20), chunk(21)}
	area := int64(shrink.ChunkSize)
	for name, c := range map[string]struct {
		size   int
		chunks []shrinktest.Chunk
		spoil  func(*blocktest.Disk)
		want   string
	}{
		"no header":                 {1000, one, put(0, 0), "no header"},
		"given up":                  {1000, one, put(4, 0), "given the snapshot up"},
		"another version":           {1000, one, put(8, 2), "version 2"},
		"another chunk size":        {1000, one, put(12, 16), "chunks of 16 sectors"},
		"before the range":          {1000, []shrinktest.Chunk{chunk(15)}, nil, "changes chunk 15"},
		"after the range":           {1000, []shrinktest.Chunk{chunk(2000)}, nil, "changes chunk 2000"},
		"a chunk that wraps":        {1000, []shrinktest.Chunk{chunk(1 << 63)}, nil, "changes chunk"},
		"content in the first area": {1000, one, put(area+8, 1), "where none can be"},
		"in a later area":           {1000, one, put(area+8, 2, 1), "where none can be"},
		"outside the store":         {1000, one, put(area+8, 0xe8, 3), "where none can be"},
		"far outside":               {1000, one, put(area+15, 0x80), "where none can be"},
		"a chunk twice":             {1000, []shrinktest.Chunk{chunk(20), chunk(20)}, nil, "twice"},
		"one content for two":       {1000, one, put(area+24, 2), "twice"},
		"no end":                    {258, changes(256), nil, "no end"},
		"one chunk":                 {2, nil, func(d *blocktest.Disk) { *d = *blocktest.New(shrink.ChunkSize, 0) }, "no header"},
	} {
		d := lay(t, max(c.size, 300), c.chunks...)
		if c.spoil != nil {
			c.spoil(d)
		}
		if _, err := shrink.Open(d, min(d.Size(), int64(c.size)*shrink.ChunkSize), within); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// FuzzOpen: whatever a store says, nothing outside the range is written.
func FuzzOpen(f *testing.F) {
	for _, n := range []int{0, 1, 300} {
		d := lay(f, 400, changes(n)...)
		b := make([]byte, d.Size())
		_, _ = d.ReadAt(b, 0)
		f.Add(b[:2*shrink.ChunkSize], b[258*shrink.ChunkSize:259*shrink.ChunkSize])
	}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		d := blocktest.New(400*shrink.ChunkSize, 0)
		_, _ = d.WriteAt(first[:min(len(first), 2*shrink.ChunkSize)], 0)
		_, _ = d.WriteAt(second[:min(len(second), shrink.ChunkSize)], 258*shrink.ChunkSize)
		s, err := shrink.Open(d, d.Size(), within)
		if err != nil {
			return
		}
		if _, err := s.MAC(key); err != nil {
			t.Fatal(err)
		}
		if err := s.Redo(bounds{t}, func(int64) {}); err != nil {
			t.Fatal(err)
		}
	})
}

// bounds is a device of which only the range may be written.
type bounds struct{ t *testing.T }

func (bounds) ReadAt([]byte, int64) (int, error) { return 0, errors.New("it is not read") }

func (b bounds) WriteAt(p []byte, off int64) (int, error) {
	if off < within.Start || off+int64(len(p)) > within.End {
		b.t.Errorf("a write of %d bytes at %d", len(p), off)
	}
	return len(p), nil
}

func (bounds) Sync() error { return nil }
