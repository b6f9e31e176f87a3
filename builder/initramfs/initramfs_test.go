package initramfs

import (
	"bytes"
	"debug/buildinfo"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/u-root/u-root/pkg/cpio"
	"github.com/ulikunitz/xz"

	"halogenos.internal/builder/config"
	"halogenos.internal/builder/modules"
	"halogenos.internal/builder/rootfs/rootfstest"
)

const dir = "usr/lib/modules/" + rootfstest.Release

// memory is a root file system of rootfstest's.
type memory rootfstest.Files

func (m memory) ReadFile(name string, limit int64) ([]byte, error) {
	content, ok := m[name]
	if !ok {
		return nil, &fs.PathError{Op: "find", Path: name, Err: fs.ErrNotExist}
	}
	if int64(len(content)) > limit {
		return nil, fmt.Errorf("%s has more than %d bytes", name, limit)
	}
	return content, nil
}

// debian resembles the indexes of a distribution's kernel.
func debian() memory {
	m := memory{
		dir + "/modules.dep": []byte(`kernel/fs/ext4/ext4.ko.xz: kernel/fs/jbd2/jbd2.ko.zst kernel/lib/crc16.ko
kernel/fs/jbd2/jbd2.ko.zst:
kernel/lib/crc16.ko:
kernel/crypto/crc32c_generic.ko.gz:
kernel/crypto/crc32c-intel.ko:
kernel/drivers/nvme/nvme-core.ko: kernel/lib/missing.ko
`),
		dir + "/modules.builtin": []byte("kernel/drivers/char/tpm/tpm-crb.ko\n"),
		dir + "/modules.alias":   []byte("# Aliases\nalias fs-ext4 ext4\nalias pci:v1d2* nvme_core\nalias crypto-crc32c crc32c_generic\nalias crypto-crc32c crc32c_intel\nalias odd\n"),
		dir + "/modules.softdep": []byte("# Soft\nsoftdep ext4 pre: crypto-crc32c post: nothing\nsoftdep nvme_core pre: ext4\n"),
	}
	plain := rootfstest.Module(rootfstest.Release)
	pack := func(name string, make func(w io.Writer) (io.WriteCloser, error)) {
		var out bytes.Buffer
		w, err := make(&out)
		if err == nil {
			_, err = w.Write(plain)
		}
		if err == nil {
			err = w.Close()
		}
		if err != nil {
			panic(err)
		}
		m[dir+"/"+name] = out.Bytes()
	}
	pack("kernel/fs/ext4/ext4.ko.xz", func(w io.Writer) (io.WriteCloser, error) { return xz.NewWriter(w) })
	pack("kernel/fs/jbd2/jbd2.ko.zst", func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) })
	pack("kernel/crypto/crc32c_generic.ko.gz", func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil })
	m[dir+"/kernel/lib/crc16.ko"], m[dir+"/kernel/crypto/crc32c-intel.ko"] = plain, plain
	return m
}

func load(t testing.TB, m memory) *Index {
	t.Helper()
	x, err := LoadIndex(m, dir, rootfstest.Release)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// A release with extensions needs loop devices, in the initramfs or in the kernel.
func TestMissingForExtensions(t *testing.T) {
	m := debian()
	x := load(t, m)
	if got := x.MissingForExtensions([]string{"loop"}); len(got) > 0 {
		t.Errorf("%q", got)
	}
	if got := x.MissingForExtensions(nil); len(got) != 1 || !strings.Contains(got[0], "the kernel was built without it") {
		t.Errorf("%q", got)
	}
	x.paths["loop"] = "kernel/drivers/block/loop.ko"
	if got := x.MissingForExtensions(nil); len(got) != 1 || !strings.Contains(got[0], "add loop to Modules") {
		t.Errorf("%q", got)
	}
	x.builtins["loop"] = true
	if got := x.MissingForExtensions(nil); len(got) > 0 {
		t.Errorf("%q", got)
	}
}

func TestSelect(t *testing.T) {
	x := load(t, debian())
	for _, c := range []struct {
		name   string
		wanted []config.Module
		have   []string
		say    string
	}{
		{"nothing", nil, nil, ""},
		{"with dependencies, hard and soft", []config.Module{{Name: "ext4"}}, []string{"crc16", "crc32c_generic", "crc32c_intel", "ext4", "jbd2"}, ""},
		{"either dash", []config.Module{{Name: "crc32c_intel"}, {Name: "crc32c-generic"}}, []string{"crc32c_generic", "crc32c_intel"}, ""},
		{"built in", []config.Module{{Name: "tpm_crb"}, {Name: "tpm-crb"}}, nil, ""},
		{"optional", []config.Module{{Name: "nosuch", Optional: true}, {Name: "crc16"}}, []string{"crc16"}, ""},
		{"unknown", []config.Module{{Name: "nosuch"}, {Name: "crc16"}, {Name: "nor-this"}}, nil, "has no module nosuch, nor-this"},
		{"dependency that is not there", []config.Module{{Name: "nvme-core"}}, nil, "needs missing"},
	} {
		t.Run(c.name, func(t *testing.T) {
			have, err := x.Select(c.wanted)
			if (err == nil) != (c.say == "") || err != nil && !strings.Contains(err.Error(), c.say) || !slices.Equal(have, c.have) {
				t.Errorf("%q, %v; want %q and an error that says %q", have, err, c.have, c.say)
			}
		})
	}
}

func TestIndexThatIsNotThere(t *testing.T) {
	for _, name := range []string{"modules.dep", "modules.builtin", "modules.alias", "modules.softdep"} {
		m := debian()
		delete(m, dir+"/"+name)
		if _, err := LoadIndex(m, dir, rootfstest.Release); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("without %s: error %v", name, err)
		}
	}
	// As depmod of module-init-tools before 3.5 wrote it.
	old := debian()
	old[dir+"/modules.dep"] = []byte("/lib/modules/" + rootfstest.Release + "/kernel/lib/crc16.ko:\n")
	if x, err := LoadIndex(old, dir, rootfstest.Release); err != nil || x.paths["crc16"] != "kernel/lib/crc16.ko" {
		t.Errorf("whole names: %v", err)
	}
	m := debian()
	m[dir+"/modules.dep"] = []byte("/lib/modules/other/kernel/lib/crc16.ko:\n")
	if _, err := LoadIndex(m, dir, rootfstest.Release); err == nil || !strings.Contains(err.Error(), "outside") {
		t.Errorf("of another kernel: %v", err)
	}
	m[dir+"/modules.dep"] = []byte("../../../etc/shadow:\n")
	if _, err := LoadIndex(m, dir, rootfstest.Release); err == nil || !strings.Contains(err.Error(), "outside") {
		t.Errorf("error %v", err)
	}
}

func TestModulesThatTheKernelRefuses(t *testing.T) {
	good := rootfstest.Module(rootfstest.Release)
	name := dir + "/kernel/lib/crc16.ko"
	for _, c := range []struct {
		name, file string
		data       []byte
		say        string
	}{
		{"unsigned", name, good[:len(good)-1], "not signed"},
		{"of another kernel", name, rootfstest.Module("6.12.2"), "not for " + rootfstest.Release},
		{"of a longer version", name, rootfstest.Module(rootfstest.Release + "x"), "not for"},
		{"without a vermagic", name, bytes.ReplaceAll(good, []byte("vermagic"), []byte("VERMAGIC")), "no vermagic"},
		{"no ELF", name, good[1:], "not an ELF"},
		{"empty", name, nil, "not an ELF"},
		{"missing", name, nil, "not exist"},
		{"broken xz", dir + "/kernel/fs/ext4/ext4.ko.xz", []byte("\xfd7zXZ\x00garbage"), "decompress"},
		{"broken zstd", dir + "/kernel/fs/jbd2/jbd2.ko.zst", []byte("\x28\xb5\x2f\xfd"), "decompress"},
		{"broken gzip", dir + "/kernel/crypto/crc32c_generic.ko.gz", []byte{0x1f, 0x8b}, "decompress"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := debian()
			x := load(t, m)
			if m[c.file] = c.data; c.name == "missing" {
				delete(m, c.file)
			}
			_, err := Build(busybox(), x, m, []string{"crc16", "crc32c_generic", "ext4", "jbd2"})
			if err == nil || !strings.Contains(err.Error(), c.say) {
				t.Errorf("error %v, want one that says %q", err, c.say)
			}
		})
	}
	if _, err := modules.Unpack("a.ko.lz4", nil); err == nil {
		t.Error("an unknown compression was taken")
	}
}

func busybox() Busybox {
	return Busybox{Program: rootfstest.GoProgram(Experiment), Commands: []string{Init, "ls", "modprobe"}}
}

func TestBuild(t *testing.T) {
	m := debian()
	x := load(t, m)
	names, err := x.Select([]config.Module{{Name: "ext4"}})
	if err != nil {
		t.Fatal(err)
	}
	packed, err := Build(busybox(), x, m, names)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Build(busybox(), load(t, debian()), debian(), names)
	if err != nil || !bytes.Equal(packed, again) {
		t.Errorf("built again, it differs, %v", err)
	}
	if len(packed)%4 != 0 {
		t.Errorf("%d bytes are not whole words", len(packed))
	}
	all := pieces(t, packed)
	if len(all) != 2 {
		t.Fatalf("%d archives", len(all))
	}
	// What is of the kernel changes nothing in the first.
	softdep := "usr/lib/modules/" + rootfstest.Release + "/modules.softdep"
	m[softdep] = bytes.ReplaceAll(m[softdep], []byte("post: nothing"), []byte("post: other"))
	other, err := Build(busybox(), load(t, m), m, names)
	if err != nil || len(other) == 0 || !bytes.Equal(pieces(t, other)[0], all[0]) || bytes.Equal(pieces(t, other)[1], all[1]) {
		t.Errorf("another kernel changes the archive of the programs, %v", err)
	}
	checkArchive(t, all)
}

// pieces are the archives of an initramfs, each from a block on, unpacked.
func pieces(t *testing.T, packed []byte) [][]byte {
	t.Helper()
	const block = 4096
	var all [][]byte
	for from := 0; from < len(packed); {
		to := from + block
		for to < len(packed) && !bytes.HasPrefix(packed[to:], []byte{0x28, 0xb5, 0x2f, 0xfd}) {
			to += block
		}
		z, err := zstd.NewReader(bytes.NewReader(bytes.TrimRight(packed[from:min(to, len(packed))], "\x00")), zstd.IgnoreChecksum(false))
		if err != nil {
			t.Fatal(err)
		}
		plain, err := io.ReadAll(z)
		z.Close()
		// A zero may be the last byte of the checksum.
		if err != nil && len(plain) == 0 {
			t.Fatal(err)
		}
		all, from = append(all, plain), to
	}
	return all
}

// checkArchive compares archives with what it must hold: the type and mode
// of everything, directories before what is in them.
func checkArchive(t *testing.T, all [][]byte) {
	t.Helper()
	base := "lib/modules/" + rootfstest.Release
	want := map[string]uint64{
		"init": cpio.S_IFLNK | 0o777, "bin/initagent": cpio.S_IFLNK | 0o777, "bin/ls": cpio.S_IFLNK | 0o777, "bin/modprobe": cpio.S_IFLNK | 0o777,
		"sbin/modprobe": cpio.S_IFLNK | 0o777, "bin/bb": cpio.S_IFREG | 0o755, "dev/console": cpio.S_IFCHR | 0o600, "dev/null": cpio.S_IFCHR | 0o666,
	}
	for _, name := range []string{"modules.dep", "modules.alias", "modules.softdep", "modules.builtin", "kernel/fs/ext4/ext4.ko", "kernel/fs/jbd2/jbd2.ko",
		"kernel/lib/crc16.ko", "kernel/crypto/crc32c_generic.ko", "kernel/crypto/crc32c-intel.ko"} {
		want[base+"/"+name] = cpio.S_IFREG | 0o644
	}
	have := map[string]uint64{}
	content := map[string]string{}
	var records []cpio.Record
	for _, plain := range all {
		more, err := cpio.ReadAllRecords(cpio.EOFReader{RecordReader: cpio.Newc.Reader(bytes.NewReader(plain))})
		if err != nil {
			t.Fatal(err)
		}
		records = append(records, more...)
	}
	for _, r := range records {
		if i := strings.LastIndexByte(r.Name, '/'); i >= 0 && have[r.Name[:i]] != cpio.S_IFDIR|0o755 {
			t.Errorf("%s comes before its directory", r.Name)
		}
		if r.MTime != 0 || r.UID != 0 || r.GID != 0 {
			t.Errorf("%s has time %d and owner %d:%d", r.Name, r.MTime, r.UID, r.GID)
		}
		have[r.Name] = r.Mode
		if r.FileSize > 0 {
			b := make([]byte, r.FileSize)
			if _, err := r.ReadAt(b, 0); err != nil && err != io.EOF {
				t.Fatal(err)
			}
			content[r.Name] = string(b)
		}
	}
	for name, mode := range have {
		if mode&cpio.S_IFMT == cpio.S_IFDIR {
			delete(have, name)
		}
	}
	if !reflect.DeepEqual(have, want) {
		t.Errorf("have %v\nwant %v", have, want)
	}
	checkContent(t, base, content)
}

func checkContent(t *testing.T, base string, content map[string]string) {
	t.Helper()
	for name, want := range map[string]string{
		"init":                           "bin/initagent",
		"bin/ls":                         "bb",
		"bin/bb":                         string(rootfstest.GoProgram(Experiment)),
		base + "/kernel/fs/ext4/ext4.ko": string(rootfstest.Module(rootfstest.Release)),
		base + "/modules.dep": `kernel/lib/crc16.ko:
kernel/crypto/crc32c_generic.ko:
kernel/crypto/crc32c-intel.ko:
kernel/fs/ext4/ext4.ko: kernel/fs/jbd2/jbd2.ko kernel/lib/crc16.ko
kernel/fs/jbd2/jbd2.ko:
`,
		base + "/modules.alias":   "alias fs-ext4 ext4\nalias crypto-crc32c crc32c_generic\nalias crypto-crc32c crc32c_intel\n",
		base + "/modules.softdep": "softdep ext4 pre: crypto-crc32c post: nothing\n",
		base + "/modules.builtin": "kernel/drivers/char/tpm/tpm-crb.ko\n",
	} {
		if content[name] != want {
			t.Errorf("%s has\n%s\nwant\n%s", name, content[name], want)
		}
	}
}

func TestBusyboxThatCannotBeInit(t *testing.T) {
	m := debian()
	x := load(t, m)
	arm := rootfstest.Program(false)
	arm[18] = 183
	for name, b := range map[string]Busybox{
		"no command initagent": {Program: rootfstest.Program(false), Commands: []string{"ls"}},
		"dynamically":          {Program: rootfstest.Program(true), Commands: []string{Init}},
		"bad magic":            {Program: []byte("#!/bin/sh\nexec this is no program for the first process\n#########################"), Commands: []string{Init}},
		"EM_AARCH64":           {Program: arm, Commands: []string{Init}},
		"busybox":              {Commands: []string{Init}},
		"more than":            {Commands: append(make([]string, maxCommands), Init)},
		// FAULTS 85
		"without GOEXPERIMENT=runtime": {Program: rootfstest.GoProgram("greenteagc,noruntimesecret"), Commands: []string{Init}},
	} {
		if _, err := Build(b, x, m, nil); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("error %v, want one that says %q", err, name)
		}
	}
}

// The programs that the Makefile's commands build say that they erase secrets, and
// behave as this version of Go does, and the builder takes them; built otherwise, it
// does not. FAULTS 85, 102
func TestBuiltPrograms(t *testing.T) {
	if testing.Short() {
		t.Skip("builds programs")
	}
	for name, c := range map[string]struct {
		experiment string
		build      []string
		good       bool
	}{
		"busybox":  {Experiment, []string{"uroot-cmds/build-busybox"}, true},
		"go build": {Experiment, []string{"go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o"}, true},
		"without":  {"", []string{"go", "build", "-o"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "program")
			// The smallest of our commands.
			build := exec.Command(c.build[0], append(c.build[1:], path, "./uroot-cmds/slots")...)
			build.Dir = filepath.Join("..", "..")
			build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOEXPERIMENT="+c.experiment)
			if out, err := build.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			program, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := (Busybox{Program: program, Commands: []string{Init}}).check(); (err == nil) != c.good {
				t.Errorf("error %v, want none: %v", err, c.good)
			}
			info, err := buildinfo.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range info.Settings {
				if s.Key == "DefaultGODEBUG" {
					t.Errorf("it behaves as an older Go: %s", s.Value)
				}
			}
		})
	}
}

func TestParseCommands(t *testing.T) {
	have, err := ParseCommands("ls # list\n\n# none\ncat\nls\n")
	if err != nil || !slices.Equal(have, []string{"cat", "ls"}) {
		t.Errorf("%q, %v", have, err)
	}
	for _, text := range []string{"../x", "a/b", "a b", ".", "-x", strings.Repeat("a", 65)} {
		if have, err := ParseCommands(text); err == nil {
			t.Errorf("%q gives %q", text, have)
		}
	}
}

func FuzzIndex(f *testing.F) {
	m := debian()
	f.Add(m[dir+"/modules.dep"], m[dir+"/modules.alias"], m[dir+"/modules.softdep"], "ext4")
	f.Add([]byte("a.ko: b.ko\nb.ko: a.ko\n"), []byte("alias x a\n"), []byte("softdep a pre: x\nsoftdep b post: a"), "a")
	f.Fuzz(func(t *testing.T, dep, alias, softdep []byte, name string) {
		x, err := LoadIndex(memory{
			dir + "/modules.dep": dep, dir + "/modules.alias": alias, dir + "/modules.softdep": softdep, dir + "/modules.builtin": nil,
		}, dir, rootfstest.Release)
		if err != nil {
			return
		}
		names, err := x.Select([]config.Module{{Name: name}})
		if err != nil {
			return
		}
		for _, n := range names {
			if p := x.paths[n]; p == "" || strings.HasPrefix(p, "/") || strings.HasPrefix(p, "..") {
				t.Errorf("selected %q at %q", n, p)
			}
		}
	})
}

// What is taken for the compressed archive is that of this one, and of no other.
func TestHolds(t *testing.T) {
	for size := range 40 { // with each length of padding
		plain := bytes.Repeat([]byte{byte(size), 0}, size+1)
		packed, err := Compress(plain)
		if err != nil {
			t.Fatal(err)
		}
		if !Holds(packed, plain) {
			t.Errorf("%d bytes are not held by what they were compressed to", len(plain))
		}
		other := bytes.Clone(plain)
		other[size] ^= 1
		for what, not := range map[string]bool{
			"other bytes": Holds(packed, other), "more bytes": Holds(packed, append(bytes.Clone(plain), 0)), "fewer bytes": Holds(packed, plain[:size]),
			"cut": Holds(packed[:len(packed)/2], plain), "more after it": Holds(append(bytes.Clone(packed), packed...), plain), "nothing": Holds(nil, plain),
			"another file": Holds(append(bytes.Clone(packed), "070701"...), plain),
		} {
			if not {
				t.Errorf("%d bytes: %s are taken", len(plain), what)
			}
		}
	}
}
