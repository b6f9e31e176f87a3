package diff

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"

	"halogenos.internal/boot/testkit"
	"halogenos.internal/builder/config"
	"halogenos.internal/builder/image"
	"halogenos.internal/builder/rootfs/rootfstest"
)

// build makes a release whose root file system and configuration are changed.
func build(t *testing.T, change func(f rootfstest.Files, o *image.Options)) string {
	t.Helper()
	testkit.Need(t, "mkfs.erofs")
	testkit.Need(t, "fsck.erofs")
	c, err := config.Parse("[UKI]\nCmdline=quiet\n[Image]\nImageID=test-os\nSlotSize=16M\nReleaseKey=none\n[Initramfs]\nModules=one\n", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	files := rootfstest.Minimal()
	o := image.Options{
		Config: c, Version: 7, Out: filepath.Join(t.TempDir(), "out"), Machine: rootfstest.Machine(t), Disk: true, DiskSize: 532 << 20,
		Progress: image.NewProgress(io.Discard),
	}
	change(files, &o)
	o.RootFS = files.Write(t, false)
	if _, err := image.Build(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	return o.Out
}

func compare(t *testing.T, a, b string) string {
	t.Helper()
	found, err := Compare(t.Context(), a, b)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, d := range found {
		out = append(out, d.String())
	}
	return strings.Join(out, "\n")
}

func TestBuilds(t *testing.T) {
	nothing := func(rootfstest.Files, *image.Options) {}
	first := build(t, nothing)
	if said := compare(t, first, build(t, nothing)); said != "" {
		t.Errorf("two builds of the same differ:\n%s", said)
	}
	said := compare(t, first, build(t, func(f rootfstest.Files, o *image.Options) {
		f["usr/bin/hello"] = []byte("#!/bin/sh\necho hullo\n")
		f["usr/bin/new"] = []byte("new")
		f["usr/lib/modules/"+rootfstest.Release+"/modules.alias"] = []byte("alias fs-one two_parts\n")
		program, err := os.ReadFile(filepath.Join(o.Machine, "bb"))
		if err == nil {
			err = os.WriteFile(filepath.Join(o.Machine, "bb"), append(program, 1), 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}))
	for _, want := range []string{
		`system.erofs!/usr/bin/hello: line 2 is "echo hello" and "echo hullo"`,
		"system.erofs!/usr/bin/new: only the second has it",
		"uki.efi!/.initrd!/bin/bb: has 243 bytes and 244",
		"uki.efi!/.initrd!/lib/modules/" + rootfstest.Release + "/modules.alias: ",
		"uki.efi!/.initrd!/halogen/contract.json.root_hash: ",
		"release.json.root_hash: ",
		"disk.img!/2-system-a!/usr/bin/hello: line 2",
		"disk.img!/1-esp!/EFI/Linux/test-os_7.efi!/.initrd!/bin/bb: ",
	} {
		if !strings.Contains(said, want) {
			t.Errorf("no %q in\n%s", want, said)
		}
	}
	for _, not := range []string{".linux", "etc/os-release", "bootx64.efi"} {
		if strings.Contains(said, not) {
			t.Errorf("%s is said to differ:\n%s", not, said)
		}
	}
}

func TestFiles(t *testing.T) {
	packed := func(level int, text string) []byte {
		var out bytes.Buffer
		w, err := gzip.NewWriterLevel(&out, level)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	long := strings.Repeat("some text that can be packed, ", 999)
	tar := func(mode string) []byte {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "a"), []byte("a"), 0o644); err != nil {
			t.Fatal(err)
		}
		testkit.Run(t, "tar", "-C", dir, "--mtime=@1", "--owner=0", "--group=0", "--mode="+mode, "-cf", dir+"/x.tar", "a")
		out, err := os.ReadFile(dir + "/x.tar")
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	for _, c := range []struct {
		name string
		a, b []byte
		want string
	}{
		{"the same", []byte("x"), []byte("x"), ""},
		{"lines", []byte("one\ntwo\n"), []byte("one\n2\n"), `a: line 2 is "two" and "2"`},
		{"a longer text", []byte("one\n"), []byte("one\ntwo\n"), `a: line 2 is "" and "two"`},
		{"bytes", []byte("\x00one"), []byte("\x00onf"), "a: differs from byte 3 on"},
		{"sizes", []byte("\x00one"), []byte("\x00one!"), "a: has 4 bytes and 5; the first difference is at byte 4"},
		{"values", []byte(`{"a":{"b":[1,2]},"c":1}`), []byte(`{"a":{"b":[1,3]}}`), "a.a.b[1]: 2 and 3\na.c: 1 and null"},
		{"compression", packed(1, long), packed(9, long), "a: only the compression differs"},
		{"what is compressed", packed(9, "one"), packed(9, "two"), `a: line 1 is "one" and "two"`},
		{"modes in a tar", tar("644"), tar("600"), `a!/a: mode 644`},
	} {
		dir := t.TempDir()
		a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
		for name, data := range map[string][]byte{a: c.a, b: c.b} {
			if err := os.WriteFile(name, data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		said := compare(t, a, b)
		if c.want == "" && said != "" || !strings.HasPrefix(said, c.want) {
			t.Errorf("%s: %q, want %q", c.name, said, c.want)
		}
	}
}

func TestDirectories(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	for name, data := range map[string]string{a + "/same": "x", b + "/same": "x", a + "/first": "", b + "/second": ""} {
		if err := os.WriteFile(name, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("x", a+"/link"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("y", b+"/link"); err != nil {
		t.Fatal(err)
	}
	said := strings.Split(compare(t, a, b), "\n")
	if want := []string{"first: only the first has it", `link: is a link to "x" and to "y"`, "second: only the second has it"}; !slices.Equal(said, want) {
		t.Errorf("%q, want %q", said, want)
	}
	if _, err := Compare(t.Context(), a, b+"/none"); err == nil {
		t.Error("compared with nothing")
	}
}

func FuzzContents(f *testing.F) {
	f.Add([]byte("070701"+strings.Repeat("00000000", 13)+"x\x00"), []byte("070701"))
	f.Add([]byte("\x1f\x8b\x08"), []byte(`{"a":1}`))
	f.Add(rootfstest.Kernel("1"), rootfstest.Kernel("2"))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		c := &comparison{ctx: t.Context(), work: t.TempDir()}
		if err := c.memory("x", a, b, 0); err != nil {
			t.Skip(err) // fsck.erofs refuses it
		}
		if same := bytes.Equal(a, b); same != (len(c.found) == 0) {
			t.Errorf("%v, found %v", same, c.found)
		}
	})
}
