package writelog

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"halogenos.internal/builder/vm"
	qemutests "halogenos.internal/qemu-tests"
)

// TestQEMU has QEMU record writes, kills it, and rebuilds the disk from the log.
func TestQEMU(t *testing.T) {
	qemutests.Need(t)
	for _, sector := range []int{512, 4096} {
		dir := t.TempDir()
		image, logFile := filepath.Join(dir, "image"), filepath.Join(dir, "log")
		if err := os.WriteFile(image, make([]byte, 8<<20), 0o644); err != nil {
			t.Fatal(err)
		}
		s, err := vm.NewState(filepath.Join(dir, "machine"), image)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		m, err := vm.Start(ctx, vm.Options{State: s, Bus: vm.NVMe, SectorSize: sector, TPM: vm.NoTPM, WriteLog: logFile, Volatile: true,
			Extra: []string{"-S"}})
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		for _, line := range []string{"write -P 0x11 4096 8192", "flush", "write -P 0x22 -f 65536 4096", "write -z 8192 4096",
			"discard 131072 4096", "write -P 0x33 4194304 2097152"} {
			arguments := map[string]any{"command-line": `qemu-io -d disk0-dev "` + line + `"`}
			var answer string
			err := m.QMP().Do(ctx, "human-monitor-command", arguments, &answer)
			if err != nil || answer != "" {
				t.Fatalf("%s: %v, %s", line, err, answer)
			}
		}
		m.Kill()
		checkReplay(t, s.Disk(), image, logFile)
	}
}

func checkReplay(t *testing.T, disk, image, logFile string) {
	t.Helper()
	raw, err := os.ReadFile(logFile)
	if err != nil {
		t.Fatal(err)
	}
	l, err := Read(bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		t.Fatal(err)
	}
	rebuilt, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer rebuilt.Close()
	var offsets []int64
	for _, e := range l.Entries {
		if e.Length > 0 {
			offsets = append(offsets, e.Offset)
		}
		if err := l.Apply(rebuilt, e); err != nil {
			t.Fatal(err)
		}
	}
	if want := []int64{4096, 65536, 8192, 131072, 4194304}; !slices.Equal(offsets, want) {
		t.Errorf("writes at %d, want %d", offsets, want)
	}
	if len(l.Flushes()) == 0 || l.Flushes()[0] != 2 {
		t.Errorf("flushes after %d entries; want the first after 2", l.Flushes())
	}
	want, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	copy(want[131072:], bytes.Repeat([]byte{0xaa}, 4096)) // discarded
	if !bytes.Equal(got, want) {
		t.Error("the rebuilt disk differs from the disk")
	}
}

// log builds a log with one entry.
func log(count, place, sectors, flags, extra uint64, data int) []byte {
	b := make([]byte, 1024+data)
	for i, v := range []uint64{magic, version, count} {
		binary.LittleEndian.PutUint64(b[8*i:], v)
	}
	binary.LittleEndian.PutUint32(b[24:], 512)
	for i, v := range []uint64{place, sectors, flags, extra} {
		binary.LittleEndian.PutUint64(b[512+8*i:], v)
	}
	return b
}

func TestReadRefuses(t *testing.T) {
	good := log(1, 8, 2, 0, 0, 1024)
	if l, err := Read(bytes.NewReader(good), int64(len(good))); err != nil || l.Entries[0].Offset != 4096 || l.Entries[0].Length != 1024 {
		t.Fatalf("a good log: %v", err)
	}
	odd := bytes.Clone(good)
	odd[24] = 1
	tests := map[string]struct {
		log  []byte
		want string
	}{
		"empty":            {nil, "superblock"},
		"no magic":         {make([]byte, 512), "magic"},
		"odd sectors":      {odd, "sectors of 513 bytes"},
		"too many entries": {log(1<<40, 0, 0, 0, 0, 0), "1099511627776 entries"},
		"cut entry":        {log(2, 8, 1, 0, 0, 512)[:1536], "unexpected EOF"},
		"cut content":      {good[:1536], "1024 bytes, of which the log has 512"},
		"huge":             {log(1, 1<<60, 1<<60, 0, 0, 0), "sectors at sector"},
		"unknown flag":     {log(1, 0, 0, 64, 0, 0), "flags 0x40"},
		"long remark":      {log(1, 0, 0, uint64(Mark), 4096, 0), "a remark of 4096 bytes"},
	}
	for name, tt := range tests {
		if _, err := Read(bytes.NewReader(tt.log), int64(len(tt.log))); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; want %q", name, err, tt.want)
		}
	}
}

// disk takes writes up to a size, and counts them.
type disk struct{ end int64 }

func (d *disk) WriteAt(b []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(b)) < off {
		return 0, io.ErrShortWrite
	}
	d.end = max(d.end, off+int64(len(b)))
	return len(b), nil
}

func FuzzRead(f *testing.F) {
	f.Add(log(1, 8, 2, 0, 0, 1024))
	f.Add(log(1, 8, 2, uint64(Discard), 0, 0))
	f.Add(log(1, 0, 0, uint64(Flush), 0, 0))
	f.Add(log(1, 0, 0, uint64(Mark), 3, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := Read(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		for _, e := range l.Entries {
			if e.Length > 64<<20 {
				continue // a discard can be as long as a disk
			}
			var d disk
			if err := l.Apply(&d, e); err != nil {
				t.Fatalf("entry %+v was read, and cannot be applied: %v", e, err)
			}
			if e.Flags&Mark == 0 && e.Length > 0 && d.end != e.Offset+e.Length {
				t.Fatalf("entry %+v wrote up to %d", e, d.end)
			}
		}
	})
}
