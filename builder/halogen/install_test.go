package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/words"
	"halogenos.internal/builder/install"
	"halogenos.internal/builder/install/installtest"
)

const testDisk = layout.ESPSize + 512<<20

// bench is a machine with one disk: directories in the place of /sys, /dev and /proc.
type bench struct {
	t      *testing.T
	system install.Linux
	disk   string
}

func newTarget(t *testing.T) *bench {
	t.Helper()
	root := t.TempDir()
	m := &bench{t, install.Linux{Sys: filepath.Join(root, "sys"), Dev: filepath.Join(root, "dev"), Proc: filepath.Join(root, "proc")}, filepath.Join(root, "dev/sda")}
	for name, content := range map[string]string{
		"sys/block/sda/dev": "8:0", "sys/block/sda/queue/logical_block_size": "512", "sys/block/sda/device/model": "Disk", "sys/block/sda/device/serial": "S1",
		"sys/block/sda/sda1/dev": "8:1", "sys/block/sda/sda1/partition": "1", "sys/class/tpm/tpm0/tpm_version_major": "2",
		"sys/firmware/efi/efivars/SetupMode-8be4df61-93ca-11d2-aa0d-00e098032b8c": "\x06\x00\x00\x00\x01",
		"proc/self/mountinfo": "22 1 253:77 / / rw - ext4 /dev/vda rw", "dev/sda": "",
	} {
		m.write(name, content)
	}
	m.resize(testDisk)
	return m
}

func (m *bench) write(name, content string) {
	m.t.Helper()
	path := filepath.Join(filepath.Dir(m.system.Sys), name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o600)); err != nil {
		m.t.Fatal(err)
	}
}

func (m *bench) remove(name string) {
	m.t.Helper()
	if err := os.RemoveAll(filepath.Join(filepath.Dir(m.system.Sys), name)); err != nil {
		m.t.Fatal(err)
	}
}

func (m *bench) resize(size int64) {
	m.t.Helper()
	m.write("sys/block/sda/size", fmt.Sprint(size/512))
	if err := os.Truncate(m.disk, size); err != nil {
		m.t.Fatal(err)
	}
}

// install runs the command, with its disk added to the options.
func (m *bench) install(from string, o installFlags) (stdout string, err error) {
	m.t.Helper()
	if o.disk == "" {
		o.disk = m.disk
	}
	var out, stderr bytes.Buffer
	c := command{stdout: &out, stderr: &stderr, getenv: os.Getenv, executable: os.Executable}
	err = c.installFrom(m.t.Context(), m.system, from, o)
	return out.String(), err
}

// start is what the disk begins with.
func (m *bench) start() []byte {
	m.t.Helper()
	f, err := os.Open(m.disk)
	if err != nil {
		m.t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 8<<20)
	if _, err := io.ReadFull(f, b); err != nil {
		m.t.Fatal(err)
	}
	return b
}

// foreign puts a file system of somebody else's on the disk.
func (m *bench) foreign() {
	m.t.Helper()
	b := m.start()
	copy(b[1080:], "\x53\xef")
	f, err := os.OpenFile(m.disk, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt(b, 0)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		m.t.Fatal(err)
	}
}

// What would not start, or what nobody has given up, is refused with its reason, and
// not a byte of the disk is written.
func TestInstallRefuses(t *testing.T) {
	build := installtest.Build(t, nil)
	for _, c := range []struct {
		name   string
		change func(m *bench)
		build  func(c *contract.Contract)
		o      installFlags
		want   string
	}{
		{name: "too small", change: func(m *bench) { m.resize(600 << 20) }, want: "is too small: it has 600 MiB, and this release needs 780 MiB"},
		{name: "mounted", change: func(m *bench) { m.write("proc/self/mountinfo", "22 1 8:1 / /mnt rw shared:1 - ext4 /dev/x rw") }, want: "in use: sda1 is mounted at /mnt"},
		{name: "mounted, with others", change: func(m *bench) {
			m.write("proc/self/mountinfo", "22 1 0:30 / /mnt rw - btrfs "+m.disk+"1 rw")
		}, want: "in use: sda1 is mounted at /mnt"},
		{name: "the running system's", change: func(m *bench) { m.write("proc/self/mountinfo", "22 1 8:1 / / rw - ext4 /dev/sda1 rw") }, want: "in use: sda1 is mounted at /"},
		{name: "BIOS", change: func(m *bench) { m.remove("sys/firmware") }, want: "started by a BIOS"},
		{name: "no TPM", change: func(m *bench) { m.remove("sys/class/tpm") }, want: "no TPM 2.0"},
		{name: "architecture", build: func(c *contract.Contract) { c.Arch = "aarch64" }, want: "the release is for aarch64, and this machine is x86_64"},
		{name: "a foreign system, and nobody to ask", change: func(m *bench) { m.foreign() }, want: `give --yes with the serial number`},
		{name: "a foreign system, and another serial number", change: func(m *bench) { m.foreign() }, o: installFlags{yes: "S2"}, want: `--yes names the serial number "S2"`},
		{name: "no root partition to keep", o: installFlags{keep: true, yes: "S1"}, want: "no root partition of"},
		{name: "a partition", change: func(m *bench) {
			m.write("dev/sda1", "")
			m.write("sys/class/block/sda1/partition", "1")
		}, o: installFlags{disk: "sda1"}, want: "is a partition: name the whole disk"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, from, o := newTarget(t), build, c.o
			if c.change != nil {
				c.change(m)
			}
			if c.build != nil {
				from = installtest.Build(t, c.build)
			}
			if o.disk != "" {
				o.disk = filepath.Join(m.system.Dev, o.disk)
			}
			if o.yes == "" && c.name != "a foreign system, and nobody to ask" {
				o.yes = "S1"
			}
			m.refuses(from, o, c.want)
		})
	}
}

func (m *bench) refuses(from string, o installFlags, want string) {
	m.t.Helper()
	before := m.start()
	if _, err := m.install(from, o); err == nil || !strings.Contains(err.Error(), want) {
		m.t.Errorf("error %v, want %q", err, want)
	}
	if !bytes.Equal(m.start(), before) {
		m.t.Error("the disk was written to")
	}
}

// The disk that the release lies on, as the kernel tells it: by the device of its
// file system, and by what that is built upon.
func TestInstallOntoItsSource(t *testing.T) {
	build := installtest.Build(t, nil)
	var s unix.Stat_t
	if err := unix.Stat(build, &s); err != nil {
		t.Fatal(err)
	}
	number := fmt.Sprintf("%d:%d", unix.Major(s.Dev), unix.Minor(s.Dev))
	for name, change := range map[string]func(m *bench){
		"on its partition": func(m *bench) { m.write("sys/block/sda/sda1/dev", number) },
		"in a volume on it": func(m *bench) {
			m.write("sys/dev/block/"+number+"/slaves/sda1", "")
			m.write("sys/class/block/sda1/dev", "8:1")
		},
		"in a file system of several devices": func(m *bench) {
			m.write("proc/self/mountinfo", "22 1 "+number+" / / rw - btrfs /dev/dm-3 rw")
			m.write("sys/class/block/dm-3/slaves/sda1", "")
			m.write("sys/class/block/sda1/dev", "8:1")
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := newTarget(t)
			if m.system.Holds(m.disk, build) {
				t.Fatal("it lies on it from the beginning")
			}
			change(m)
			m.refuses(build, installFlags{yes: "S1"}, "is in use: "+build+" lies on it")
		})
	}
}

// A release of somebody else's, and one whose UKI would take updates of somebody else.
func TestInstallRefusesSignatures(t *testing.T) {
	ours, theirs := installtest.NewSigner(t), installtest.NewSigner(t)
	dir := t.TempDir()
	file := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	pins := func(key []byte) func(*contract.Contract) { return func(c *contract.Contract) { c.ReleaseKey = key } }
	public := ours.Public()
	key, other := file("ours.pgp", public), file("theirs.pgp", theirs.Public())
	pinned, unpinned, stranger := installtest.Build(t, pins(public)), installtest.Build(t, nil), installtest.Build(t, pins(theirs.Public()))
	good := file("good", installtest.Archive(t, pinned, ours.Sign))
	flipped := installtest.Archive(t, pinned, func(d []byte) []byte { return ours.Sign(append([]byte(" "), d...)) })
	unpacked := func(archive string) string { // as tar does it
		to := t.TempDir()
		if out, err := exec.Command("tar", "-C", to, "-xzf", archive).CombinedOutput(); err != nil {
			t.Fatalf("tar: %v: %s", err, out)
		}
		return to
	}
	for _, c := range []struct{ name, from, key, want string }{
		{"good", good, key, ""},
		{"directory of a build, no key named", pinned, "", ""},
		{"directory of a build", pinned, key, "the release is not signed"},
		{"directory, good", unpacked(good), key, ""},
		{"directory, signed by another", unpacked(good), other, "release.json.pgp"},
		{"directory, the signature of another text", unpacked(file("flipped", flipped)), key, "release.json.pgp"},
		{"directory, another key is pinned", unpacked(file("stranger", installtest.Archive(t, stranger, ours.Sign))), key, "the UKI has pinned the key"},
		{"directory, no key is pinned", unpacked(file("unpinned", installtest.Archive(t, unpinned, ours.Sign))), key, "its UKI would take unsigned updates"},
		{"signed by another", good, other, "release.json.pgp"},
		{"the signature of another text", file("flipped", flipped), key, "release.json.pgp"},
		{"signed, and no key named", good, "", "name the key that its distributor publishes"},
		{"not signed", file("unsigned", installtest.Archive(t, pinned, nil)), key, "the release is not signed"},
		{"not signed, and its UKI wants it", file("unsigned", installtest.Archive(t, pinned, nil)), "", "its UKI wants signed ones"},
		{"another key is pinned", file("stranger", installtest.Archive(t, stranger, ours.Sign)), key, "the UKI has pinned the key"},
		{"no key is pinned", file("unpinned", installtest.Archive(t, unpinned, ours.Sign)), key, "its UKI would take unsigned updates"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newTarget(t)
			o := installFlags{yes: "S1", key: c.key}
			if c.want != "" {
				m.refuses(c.from, o, c.want)
				return
			}
			if _, err := m.install(c.from, o); err != nil {
				t.Error(err)
			}
		})
	}
}

// With its serial number for consent, a disk is installed to; what is printed is for
// a program, and the firmware gets its entry. A dry run says the same and writes
// nothing.
func TestInstallForScripts(t *testing.T) {
	m, build := newTarget(t), installtest.Build(t, nil)
	m.foreign()
	before := m.start()
	for _, o := range []installFlags{{json: true, dryRun: true}, {json: true, yes: "S1"}} {
		out, err := m.install(build, o)
		if err != nil {
			t.Fatal(err)
		}
		var plan struct {
			Disk       struct{ Serial string }
			Partitions []struct {
				Number int
				Label  string
				Size   int64
			}
			Findings []install.Finding
		}
		if err := json.Unmarshal([]byte(out), &plan); err != nil {
			t.Fatalf("%v:\n%s", err, out)
		}
		if plan.Disk.Serial != "S1" || len(plan.Partitions) != 2 || plan.Partitions[0].Size != layout.ESPSize || len(plan.Findings) == 0 {
			t.Errorf("plan:\n%s", out)
		}
		if o.dryRun && !bytes.Equal(m.start(), before) {
			t.Error("a dry run writes")
		}
	}
	f, err := os.Open(m.disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if table, _, err := gpt.Read(f, testDisk/512, 512); err != nil || len(table.Partitions) != 2 {
		t.Errorf("table %+v, %v", table, err)
	}
	entries, err := filepath.Glob(filepath.Join(m.system.Sys, "firmware/efi/efivars/Boot*"))
	if err != nil || len(entries) != 2 { // the entry, and the order
		t.Errorf("the firmware has %q (%v)", entries, err)
	}
}

// Where the firmware takes no boot entry, both faces say what to do; and on a disk that others
// share, that the firmware may know no other way to it.
func TestNoBootEntry(t *testing.T) {
	for _, beside := range []bool{false, true} {
		table := &gpt.Table{Disk: gpt.GUID{1}, SectorSize: 512, Sectors: 4 << 21}
		ids := install.IDs{ESP: gpt.GUID{2}}
		layout.Insert(table, layout.ESP, ids.ESP, 2048, 4095)
		p := &install.Plan{Release: &release.Release{}, Table: table, IDs: ids, Choice: install.Choice{FreeSpace: beside}}
		var stderr bytes.Buffer
		c := command{stderr: &stderr}
		nothing := install.Linux{Sys: t.TempDir()} // no firmware to ask
		c.bootEntry(nothing, p)
		_, err := addBootEntry(nothing, p)
		b := screenBackend{noEntry: err}
		for face, text := range map[string]string{"commands": stderr.String(), "screen": words.English.List(b.Next(p), "\n")} {
			shared := strings.Contains(text, "a firmware may start only the other system there: then add an entry for "+layout.Manager)
			if !strings.Contains(text, "no boot entry was made (") || !strings.Contains(text, "choose the disk in the firmware's boot menu") || shared != beside {
				t.Errorf("%s, beside another system %v: says %q", face, beside, text)
			}
		}
		var stdout bytes.Buffer
		command{stdout: &stdout}.nextSteps(p)
		for _, thing := range p.Keep() {
			if !strings.Contains(stdout.String(), "  - "+thing.String()+"\n") {
				t.Errorf("nothing says to keep %q:\n%s", thing, &stdout)
			}
		}
		if b.noEntry = nil; strings.Contains(words.English.List(b.Next(p), "\n"), "boot entry") {
			t.Error("speaks of an entry that was made")
		}
	}
}
