package vm

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestCopySparse copies files with holes in all places: same bytes, and no more
// blocks than the source has.
func TestCopySparse(t *testing.T) {
	const mib = 1 << 20
	tests := map[string]struct {
		size int64
		data []int64 // offsets of 4 KiB of data
	}{
		"empty":          {0, nil},
		"only a hole":    {64 * mib, nil},
		"hole at end":    {64 * mib, []int64{0}},
		"hole at start":  {64 * mib, []int64{64*mib - 4096}},
		"holes between":  {64 * mib, []int64{4096, 16 * mib, 32 * mib}},
		"partial block":  {4096 + 100, []int64{0}},
		"no hole at all": {8192, []int64{0, 4096}},
	}
	for name, tt := range tests {
		dir := t.TempDir()
		src, dst := filepath.Join(dir, "src"), filepath.Join(dir, "dst")
		f, err := os.Create(src)
		if err != nil {
			t.Fatal(err)
		}
		for _, off := range tt.data {
			if _, err := f.WriteAt(bytes.Repeat([]byte{byte(off>>20) + 1}, 4096), off); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Truncate(tt.size); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dst, bytes.Repeat([]byte("old"), mib), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := CopySparse(dst, src); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !sameBytes(t, src, dst) {
			t.Errorf("%s: the copy differs", name)
		}
		if a, b := blocks(t, src), blocks(t, dst); b > a {
			t.Errorf("%s: %d blocks became %d", name, a, b)
		}
	}
	if err := CopySparse(filepath.Join(t.TempDir(), "x"), t.TempDir()); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a directory was copied: %v", err)
	}
}

func blocks(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks
}

func TestDirectoriesAreNotOverwritten(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "precious"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := NewState(dir, ""); err == nil || !strings.Contains(err.Error(), "precious") {
		t.Errorf("a machine was made in a directory in use: %v", err)
	}
}

// The firmware's program is the one that its variables were made for.
func TestFirmwareOfState(t *testing.T) {
	dir := t.TempDir()
	s := State{Dir: dir}
	for _, want := range knownFirmware() {
		if want.check() != nil {
			continue
		}
		if err := s.UseFirmware(want); err != nil {
			t.Fatal(err)
		}
		if fw, err := s.firmware(); err != nil || fw != want {
			t.Errorf("variables of %s: %v, %v", want.Vars, fw, err)
		}
	}
	if err := os.WriteFile(s.Vars(), []byte("short"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := s.firmware(); err == nil || !strings.Contains(err.Error(), "5 bytes of variables") {
		t.Errorf("variables of no build: %v", err)
	}
}

// TestArguments looks at what reaches QEMU: values with commas, one controller for
// all USB disks, the write log between disk and device.
func TestArguments(t *testing.T) {
	o, err := Options{State: State{"/m,1"}, Bus: USB, WriteLog: "/log,2", SMBIOS: []string{"a,b"}, Accel: "kvm,x=y",
		Disks: []Disk{{Path: "/d", Bus: USB, ReadOnly: true}, {Path: "/e", SectorSize: 4096, BootIndex: 3}}}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	args, err := arguments(o, Firmware{"/code", "/vars"}, Abilities{})
	if err != nil {
		t.Fatal(err)
	}
	values := func(name string) (all []string) {
		for i, a := range args {
			if a == name {
				all = append(all, args[i+1])
			}
		}
		return all
	}
	if got := values("-smbios"); !slices.Equal(got, []string{"type=11,value=a,,b"}) {
		t.Errorf("-smbios %q", got)
	}
	if got := values("-cpu"); !slices.Equal(got, []string{"host"}) {
		t.Errorf("-cpu %q under kvm", got)
	}
	if n := strings.Count(strings.Join(values("-device"), " "), "qemu-xhci"); n != 1 {
		t.Errorf("%d USB controllers", n)
	}
	nodes := make(map[string]map[string]any)
	for _, v := range values("-blockdev") {
		var node map[string]any
		if err := json.Unmarshal([]byte(v), &node); err != nil {
			t.Fatalf("%s: %v", v, err)
		}
		nodes[node["node-name"].(string)] = node
	}
	if got := nodes["disk0-raw"]["file"].(map[string]any)["filename"]; got != "/m,1/disk.img" {
		t.Errorf("disk of %q", got)
	}
	if log := nodes["disk0"]; log["driver"] != "blklogwrites" || log["file"] != "disk0-raw" || log["log"].(map[string]any)["filename"] != "/log,2" {
		t.Errorf("write log %v", log)
	}
	if nodes["disk1"]["read-only"] != true {
		t.Errorf("read-only disk %v", nodes["disk1"])
	}
	last := values("-device")[len(values("-device"))-1]
	for _, want := range []string{`"bootindex":3`, `"logical_block_size":4096`, `"serial":"disk2"`} {
		if !strings.Contains(last, want) {
			t.Errorf("device %s lacks %s", last, want)
		}
	}
}
