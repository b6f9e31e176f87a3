package main

import (
	"encoding/binary"
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"halogenos.internal/qemu-tests/testos/protocol"
)

// target builds a struct dm_target_spec with its text.
func target(start, length uint64, next uint32, kind, params string) []byte {
	b := make([]byte, unix.SizeofDmTargetSpec, next)
	binary.NativeEndian.PutUint64(b[0:], start)
	binary.NativeEndian.PutUint64(b[8:], length)
	binary.NativeEndian.PutUint32(b[20:], next)
	copy(b[24:], kind)
	return append(append(b, params...), make([]byte, int(next)-len(b)-len(params))...)
}

func TestTargets(t *testing.T) {
	one := target(0, 8, 64, "linear", "7:0 0")
	data := append(slices.Clone(one), target(8, 16, 128, "verity", "V")...)
	got, err := dmTargets(data, 2)
	if want := []string{"0 8 linear 7:0 0", "8 16 verity V"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("targets %q, %v; want %q", got, err, want)
	}
	if _, err := dmTargets(one, 2); err == nil || !strings.Contains(err.Error(), "target 1 starts at 64 of 64 bytes") {
		t.Errorf("a target beyond the end: %v", err)
	}
}

func FuzzTargets(f *testing.F) {
	f.Add(target(0, 8, 64, "linear", "7:0 0"), uint32(1))
	f.Add([]byte{}, uint32(1))
	f.Fuzz(func(t *testing.T, data []byte, count uint32) {
		count %= 1024
		if all, err := dmTargets(data, count); err == nil && len(all) != int(count) {
			t.Fatalf("%d of %d targets without an error", len(all), count)
		}
	})
}

func TestMaskKey(t *testing.T) {
	for line, want := range map[string]string{
		"0 8 crypt aes-xts-plain64 00ff 0 254:0 0":                  "0 8 crypt aes-xts-plain64 <4 hex digits> 0 254:0 0",
		"0 8 crypt aes-xts-plain64 :64:logon:halogen:x 0 254:0 0":   "0 8 crypt aes-xts-plain64 :64:logon:halogen:x 0 254:0 0",
		"0 8 verity 1 254:2 254:3 4096 4096 1 1 sha256 00ff 00ff 0": "0 8 verity 1 254:2 254:3 4096 4096 1 1 sha256 00ff 00ff 0",
		"": "",
	} {
		if got := maskKey(line); got != want {
			t.Errorf("maskKey(%q) = %q, want %q", line, got, want)
		}
	}
}

// TestCommands runs the commands that need no machine.
func TestCommands(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "a b")
	s := &system{}
	tests := []struct {
		words []string
		want  string // the answer, or a part of the refusal
	}{
		{[]string{"write", file, "<x>\n"}, `OK {}`},
		{[]string{"read", file}, `OK {"text":"<x>\n"}`},
		{[]string{"writehex", file, "00ff"}, `OK {}`},
		{[]string{"read", file}, `OK {"hex":"00ff"}`},
		{[]string{"cp", file, file + "2"}, `OK {}`},
		{[]string{"read", file + "2"}, `OK {"hex":"00ff"}`},
		{[]string{"cp", file + "3", file}, `no such file`},
		{[]string{"rm", file + "2"}, `OK {}`},
		{[]string{"watchdog", "10"}, `no watchdog is fed`},
		{[]string{"ddwrite", file, "0x1", "41"}, `OK {}`},
		{[]string{"ddread", file, "0", "2"}, `OK {"hex":"0041"}`},
		{[]string{"ddread", file, "1", "2"}, `read 2 bytes`},
		{[]string{"ddread", file, "0", "-1"}, `length -1`},
		{[]string{"ddwrite", file, "x", "41"}, `invalid syntax`},
		{[]string{"ddwrite", file, "0", "4"}, `odd length`},
		{[]string{"mkdir", filepath.Join(dir, "d")}, `OK {}`},
		{[]string{"mv", file, filepath.Join(dir, "d", "e")}, `OK {}`},
		{[]string{"ls", filepath.Join(dir, "d")}, `OK [{"name":"e","mode":"-rw-r--r--","size":2}]`},
		{[]string{"rm", filepath.Join(dir, "d")}, `OK {}`},
		{[]string{"ls", filepath.Join(dir, "d")}, `no such file`},
		{[]string{"run", "/bin/sh", "-c", "echo out; echo err >&2; exit 3"}, `OK {"exit":3,"state":"exit status 3","stderr":"err\n","stdout":"out\n"}`},
		{[]string{"run", "/absent"}, `no such file`},
		{[]string{"mount", "a", "b", "c", "rw"}, `only ro`},
		{[]string{"read"}, `usage: read PATH`},
		{[]string{"sync", "now"}, `usage: sync`},
		{[]string{"dance"}, `"dance" is none of: cp FROM TO; ddread DEVICE`},
	}
	for _, tt := range tests {
		answer, then, err := s.execute(tt.words)
		if err != nil {
			answer = err.Error()
		}
		if then != nil || (err == nil && answer != tt.want) || !strings.Contains(answer, tt.want) {
			t.Errorf("%q: %q; want %q", tt.words, answer, tt.want)
		}
	}
}

func TestRunKeepsTheEnd(t *testing.T) {
	result, err := runProgram(nil, []string{"/bin/sh", "-c", "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done"})
	if err != nil {
		t.Fatal(err)
	}
	out := result.(map[string]any)["stdout"].(string)
	if len(out) > maxRead || !strings.HasSuffix(out, "line 19999\n") {
		t.Errorf("%d bytes that end in %q", len(out), out[max(0, len(out)-20):])
	}
}

// TestReport makes a report of this machine: it is one line, and can be read back.
func TestReport(t *testing.T) {
	s := &system{}
	line, err := encode(protocol.Greeting, s.report())
	if err != nil {
		t.Fatal(err)
	}
	body, ok := strings.CutPrefix(line, protocol.Greeting+" ")
	var r protocol.Report
	if err := json.Unmarshal([]byte(body), &r); err != nil || !ok || strings.Contains(line, "\n") {
		t.Fatalf("%v: %.200q", err, line)
	}
	if r.Kernel == "" || r.Uptime <= 0 || len(r.Mounts) == 0 || r.MemoryFree == 0 || !r.Writable["/tmp"] {
		t.Errorf("report %.500s", body)
	}
}

func TestLoadOrder(t *testing.T) {
	const dep = "kernel/a-b.ko.xz: kernel/c.ko.xz kernel/d.ko.xz\nkernel/c.ko.xz: kernel/d.ko.xz\nkernel/d.ko.xz:\n"
	got, err := loadOrder(dep, "a_b")
	if want := []string{"kernel/d.ko.xz", "kernel/c.ko.xz", "kernel/a-b.ko.xz"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
	if _, err := loadOrder(dep, "e"); err == nil {
		t.Error("an unknown module was found")
	}
}

func TestTexts(t *testing.T) {
	if got := chosen("none [integrity] confidentiality"); got != "integrity" {
		t.Errorf("chosen: %q", got)
	}
	if got := chosen(""); got != "" {
		t.Errorf("chosen of nothing: %q", got)
	}
	if got := oneLine("a\nb\tc\r"); got != "a b c " {
		t.Errorf("oneLine: %q", got)
	}
	if got := osRelease("# c\nID=x\nNAME=\"a b\"\n"); got["ID"] != "x" || got["NAME"] != "a b" || len(got) != 2 {
		t.Errorf("osRelease: %q", got)
	}
}
