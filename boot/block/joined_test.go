package block_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"halogenos.internal/boot/block"
	"halogenos.internal/boot/blocktest"
)

// Whatever is written to joined sections is read back, lies in the sections in their order,
// and nowhere beside them.
func TestJoined(t *testing.T) {
	disk := blocktest.New(8192, blocktest.Hostile)
	second, err := block.NewSection(disk, 512, 1024)
	first, ferr := block.NewSection(disk, 4096, 2048)
	if err := errors.Join(err, ferr); err != nil {
		t.Fatal(err)
	}
	j := block.Join(first, second)
	if j.Size() != 3072 {
		t.Errorf("size %d", j.Size())
	}
	data := make([]byte, 3072)
	for i := range data {
		data[i] = byte(i*7 + i/256)
	}
	for off := 0; off < len(data); off += 384 { // several cross the border
		if n, err := j.WriteAt(data[off:off+384], int64(off)); n != 384 || err != nil {
			t.Fatalf("write at %d: %d, %v", off, n, err)
		}
	}
	if err := j.Sync(); err != nil {
		t.Error(err)
	}
	all := readAll(t, disk)
	if !bytes.Equal(all[4096:4096+2048], data[:2048]) || !bytes.Equal(all[512:512+1024], data[2048:]) {
		t.Error("the sections do not hold the data in their order")
	}
	hostile := bytes.Repeat([]byte{0xaa}, 8192)
	if !bytes.Equal(all[:512], hostile[:512]) || !bytes.Equal(all[1536:4096], hostile[1536:4096]) || !bytes.Equal(all[6144:], hostile[6144:]) {
		t.Error("something beside the sections changed")
	}
	back := make([]byte, 3072)
	if n, err := j.ReadAt(back, 0); n != 3072 || err != nil || !bytes.Equal(back, data) {
		t.Errorf("read %d, %v", n, err)
	}
	if n, err := j.ReadAt(back[:100], 2000); n != 100 || err != nil || !bytes.Equal(back[:100], data[2000:2100]) {
		t.Errorf("read over the border: %d, %v", n, err)
	}
	if n, err := j.ReadAt(back[:100], 3000); n != 72 || err != io.EOF {
		t.Errorf("read over the end: %d, %v", n, err)
	}
	if n, err := j.ReadAt(back[:100], 3072); n != 0 || err != io.EOF {
		t.Errorf("read at the end: %d, %v", n, err)
	}
	for _, off := range []int64{-1, 3000, 3073, 1 << 62} {
		if _, err := j.WriteAt(back[:100], off); !errors.Is(err, block.ErrOutOfBounds) {
			t.Errorf("write at %d: %v", off, err)
		}
	}
	if _, err := j.ReadAt(back, -1); !errors.Is(err, block.ErrOutOfBounds) {
		t.Errorf("read at -1: %v", err)
	}
	if !bytes.Equal(all, readAll(t, disk)) {
		t.Error("a write that was refused changed something")
	}
}
