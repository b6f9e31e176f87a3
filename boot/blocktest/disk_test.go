package blocktest_test

import (
	"bytes"
	"errors"
	"io"
	"sync"
	"syscall"
	"testing"

	"halogenos.internal/boot/block"
	. "halogenos.internal/boot/blocktest"
)

var _ block.Device = (*Recorder)(nil)

func contents(t testing.TB, d *Disk) []byte {
	t.Helper()
	b := make([]byte, d.Size())
	if _, err := d.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t testing.TB, w io.WriterAt, off int64, data []byte) {
	t.Helper()
	if n, err := w.WriteAt(data, off); n != len(data) || err != nil {
		t.Fatalf("write of %d bytes at %d: %d, %v", len(data), off, n, err)
	}
}

func TestDiskReadsWhatWasWritten(t *testing.T) {
	for _, fill := range []Fill{Zero, Hostile} {
		const size = 3*4096 + 100
		d := New(size, fill)
		want := bytes.Repeat([]byte{byte(fill)}, size)
		for _, at := range []struct{ off, n int }{{4000, 5000}, {0, 1}, {size - 1, 1}, {8192, 4096}, {12287, 2}} {
			data := bytes.Repeat([]byte{byte(at.n)}, at.n)
			write(t, d, int64(at.off), data)
			copy(want[at.off:], data)
			if !bytes.Equal(contents(t, d), want) {
				t.Fatalf("fill %#x: wrong after the write of %d bytes at %d", byte(fill), at.n, at.off)
			}
		}
		buf := make([]byte, 10)
		if n, err := d.ReadAt(buf, size-4); n != 4 || err != io.EOF {
			t.Errorf("read over the end: %d, %v", n, err)
		}
		if _, err := d.ReadAt(buf, -1); err == nil {
			t.Error("a negative offset was read")
		}
		for _, off := range []int64{-1, size - 9, size + 1} {
			if n, err := d.WriteAt(buf, off); n != 0 || err == nil {
				t.Errorf("10 bytes at %d of %d: wrote %d, %v", off, size, n, err)
			}
		}
	}
}

func TestOverlayAndCloneAreSeparate(t *testing.T) {
	d := New(8192, Zero)
	write(t, d, 0, []byte("below"))
	over, clone := d.Overlay(), d.Clone()
	write(t, over, 0, []byte("above"))
	write(t, clone, 4096, []byte("clone"))
	if got := string(contents(t, d)[:5]); got != "below" {
		t.Errorf("the disk below reads %q", got)
	}
	if got := string(contents(t, over)[:5]); got != "above" {
		t.Errorf("the overlay reads %q", got)
	}
	write(t, d, 0, []byte("later"))
	if got := contents(t, clone); string(got[:5]) != "below" || string(got[4096:4101]) != "clone" {
		t.Error("the clone changed with its original")
	}
}

func TestRecorderLogs(t *testing.T) {
	base := New(8192, Hostile)
	r := Record(base)
	data := []byte("one")
	write(t, r, 10, data)
	data[0] = 'X' // the log keeps its own copy
	if err := r.Sync(); err != nil {
		t.Fatal(err)
	}
	write(t, r, 5000, []byte("two"))
	write(t, r, 0, nil)
	log := r.Log()
	if len(log) != 3 || string(log[0].Data) != "one" || log[0].Off != 10 || !log[1].IsSync() || log[2].Off != 5000 {
		t.Errorf("log %+v", log)
	}
	buf := make([]byte, 3)
	if _, err := r.ReadAt(buf, 10); err != nil || string(buf) != "one" {
		t.Errorf("read back %q, %v", buf, err)
	}
	if !bytes.Equal(contents(t, base), bytes.Repeat([]byte{0xaa}, 8192)) {
		t.Error("recording changed the disk below")
	}
	if _, err := r.WriteAt(buf, 8190); err == nil || len(r.Log()) != 3 {
		t.Error("a write past the end was taken")
	}
}

func TestFaults(t *testing.T) {
	sector := func(b byte) []byte { return bytes.Repeat([]byte{b}, 512) }
	r := Record(New(1<<20, Zero))
	write(t, r, 0, sector(1))

	r.Inject(Fault{Write: 2, Err: syscall.ENOSPC})
	write(t, r, 512, sector(2))
	four := bytes.Repeat(sector(3), 4)
	n, err := r.WriteAt(four, 1024)
	if !errors.Is(err, syscall.ENOSPC) || n != 1024 {
		t.Errorf("second write: %d bytes, %v; want 1024 and ENOSPC", n, err)
	}
	if got := contents(t, r.Disk())[1024:3072]; !bytes.Equal(got, append(bytes.Repeat([]byte{3}, 1024), make([]byte, 1024)...)) {
		t.Error("the failed write did not leave half of itself")
	}
	write(t, r, 1024, four)

	r.Inject(Fault{Write: 1, Sticky: true, Err: syscall.EIO})
	for range 3 {
		if n, err := r.WriteAt(sector(9), 8192); n != 0 || !errors.Is(err, syscall.EIO) {
			t.Errorf("dead disk: wrote %d, %v", n, err)
		}
	}
	r.Inject(Fault{Sync: 2, Err: syscall.EIO})
	if err := r.Sync(); err != nil {
		t.Error(err)
	}
	if err := r.Sync(); !errors.Is(err, syscall.EIO) {
		t.Errorf("second sync: %v", err)
	}
	r.Inject(Fault{Read: 1, Err: syscall.EIO})
	if _, err := r.ReadAt(make([]byte, 1), 0); !errors.Is(err, syscall.EIO) {
		t.Errorf("first read: %v", err)
	}
	if _, err := r.ReadAt(make([]byte, 1), 0); err != nil {
		t.Errorf("second read: %v", err)
	}
}

func TestConcurrentWriters(t *testing.T) {
	r := Record(New(1<<20, Zero))
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 32 {
				off := int64(j*8+i) * 4096
				if _, err := r.WriteAt(bytes.Repeat([]byte{byte(i + 1)}, 4096), off); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n := len(r.Log()); n != 256 {
		t.Errorf("%d operations, want 256", n)
	}
	for page, b := range contents(t, r.Disk()) {
		if want := byte(page/4096%8 + 1); b != want {
			t.Fatalf("byte %d is %d, want %d", page, b, want)
		}
	}
}
