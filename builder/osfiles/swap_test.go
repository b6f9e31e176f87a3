package osfiles

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/builder/config"
)

// swapBox is a machine's root on which the script for swap space runs, with programs that
// note how they were called.
type swapBox struct {
	t    *testing.T
	root string
}

const swapFile = "var/lib/halogen/swap/file"

func newSwapBox(t *testing.T, image string) *swapBox {
	b := &swapBox{t, t.TempDir()}
	for _, name := range []string{"mkswap", "swapon", "swapoff", "mountpoint", "cryptsetup", "chattr"} {
		b.program(name, "")
	}
	b.program("losetup", "[ \"$1\" != --find ] || echo /dev/loop7")
	b.disk("ext2/ext3", "4096")
	b.put("usr/lib/halogen/swap.conf", image)
	if err := os.MkdirAll(filepath.Join(b.root, "var/lib/halogen"), 0o755); err != nil {
		t.Fatal(err)
	}
	return b
}

// program makes a program that notes its call, and then does something.
func (b *swapBox) program(name, then string) {
	program(b.t, b.root, "bin/"+name, `echo "`+name+` $*" >>`+filepath.Join(b.root, "did")+"\n"+then)
}

// disk says which file system the root partition has, and how many MiB are free.
func (b *swapBox) disk(fileSystem string, mib string) {
	program(b.t, b.root, "bin/stat", `[ "$1" = -f ] || exec /usr/bin/stat "$@"
case $3 in %T) echo `+fileSystem+` ;; *) echo "$((`+mib+` * 256)) 4096" ;; esac`)
}

func (b *swapBox) put(name, text string) {
	b.t.Helper()
	path := filepath.Join(b.root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		b.t.Fatal(err)
	}
}

// start runs it, which never fails, and returns the programs that ran and what it said.
func (b *swapBox) start() (did, said string) {
	b.t.Helper()
	if err := os.RemoveAll(filepath.Join(b.root, "did")); err != nil {
		b.t.Fatal(err)
	}
	cmd := script(b.t, "swap.sh", b.root)
	cmd.Args = append(cmd.Args, "sh", "start")
	text, err := cmd.CombinedOutput()
	if err != nil {
		b.t.Errorf("%v: %s", err, text)
	}
	return strings.ReplaceAll(content(b.t, b.root, "did"), b.root, ""), strings.ReplaceAll(string(text), b.root, "")
}

// size is that of the file in MiB; -1 where there is none.
func (b *swapBox) size() int64 {
	info, err := os.Stat(filepath.Join(b.root, swapFile))
	if err != nil {
		return -1
	}
	return info.Size() >> 20
}

// Swap space is a file of the size that is wanted, under encryption with a random key.
func TestSwap(t *testing.T) {
	b := newSwapBox(t, "# how much\nSize=16M\n")
	const want = "mountpoint -q /var/lib/halogen\n" +
		"losetup --find --show --nooverlap --direct-io=on --sector-size 4096 /var/lib/halogen/swap/file\n" +
		"cryptsetup open --batch-mode --type plain --cipher aes-xts-plain64 --key-size 512 --sector-size 4096 --key-file /dev/urandom /dev/loop7 halogen-swap\n" +
		"losetup --detach /dev/loop7\nmkswap /dev/mapper/halogen-swap\nswapon /dev/mapper/halogen-swap\n"
	for _, when := range []string{"first", "second"} {
		if did, said := b.start(); did != want || said != "" || b.size() != 16 {
			t.Fatalf("%s start: %d MiB\n%s%s", when, b.size(), said, did)
		}
	}
	info, err := os.Stat(filepath.Join(b.root, swapFile))
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	// Another size, by the owner and by an update; and none, which leaves nothing.
	b.put("etc/halogen/swap.conf", "Size=17M")
	b.put(swapFile+".new", "cut")
	if _, said := b.start(); b.size() != 17 || said != "" {
		t.Errorf("%d MiB: %s", b.size(), said)
	}
	b.put("etc/halogen/swap.conf", "Size=off\n")
	if did, said := b.start(); did+said != "" || b.size() != -1 {
		t.Errorf("%d MiB: %s%s", b.size(), said, did)
	}
	if left, err := os.ReadDir(filepath.Join(b.root, "var/lib/halogen")); err != nil || len(left) > 0 {
		t.Errorf("left are %v, %v", left, err)
	}
}

// An image that no longer has swap space takes the file of the one before away.
func TestSwapGone(t *testing.T) {
	b := newSwapBox(t, "")
	b.put(swapFile, "old")
	if did, said := b.start(); did+said != "" || b.size() != -1 {
		t.Errorf("%d MiB: %s%s", b.size(), said, did)
	}
}

// With btrfs the file is written in place, and not without that.
func TestSwapBtrfs(t *testing.T) {
	b := newSwapBox(t, "Size=16M\n")
	b.disk("btrfs", "8192")
	if did, said := b.start(); b.size() != 16 || said != "" || !strings.Contains(did, "chattr +C /var/lib/halogen/swap/file.new\n") {
		t.Errorf("%d MiB: %s%s", b.size(), said, did)
	}
	b = newSwapBox(t, "Size=16M\n")
	b.disk("btrfs", "8192")
	b.program("chattr", "exit 1")
	if did, said := b.start(); b.size() != -1 || !strings.Contains(said, "cannot be written: this start goes on") || strings.Contains(did, "swapon") {
		t.Errorf("%d MiB: %s%s", b.size(), said, did)
	}
}

// What goes wrong is said, and fails no start.
func TestSwapWithout(t *testing.T) {
	for _, c := range []struct {
		name, size, free string
		program, does    string
		had              int64 // MiB of the file that is there
		says             string
		on               bool
		then             int64
	}{
		{"a full disk", "16M", "1039", "", "", -1, "room for 15 MiB beside the 1024 that stay free", false, -1},
		{"a very full disk", "16M", "3", "", "", -1, "room for 0 MiB", false, -1},
		{"just enough", "16M", "1040", "", "", -1, "", true, 16},
		{"no room to grow", "32M", "1024", "", "", 16, "it keeps its 16", true, 16},
		{"the old one's room", "32M", "1040", "", "", 16, "", true, 32},
		{"smaller on a full disk", "16M", "1024", "", "", 32, "", true, 16},
		{"much more than any disk", "9999999G", "9999", "", "", -1, "room for 8975 MiB", false, -1},
		{"no number", "much", "9999", "", "", 16, "want a number with M or G", false, 16},
		{"bytes", "1048576", "9999", "", "", -1, "want a number with M or G", false, -1},
		{"a formula", "1+1M", "9999", "", "", -1, "want a number with M or G", false, -1},
		{"octal", "010M", "9999", "", "", -1, "want a number with M or G", false, -1},
		{"nothing mounted", "16M", "9999", "mountpoint", "exit 1", -1, "is not mounted", false, -1},
		{"no loop device", "16M", "9999", "losetup", "exit 1", -1, "no loop device", false, 16},
		{"no encryption", "16M", "9999", "cryptsetup", "exit 1", -1, "cannot be encrypted", false, 16},
		{"no mkswap", "16M", "9999", "mkswap", "exit 1", -1, "does not take it", false, 16},
		{"no swapon", "16M", "9999", "swapon", "exit 1", -1, "does not take it", true, 16},
		{"a write that fails", "16M", "9999", "dd", "echo half >\"${2#of=}\"; exit 1", -1, "cannot be written", false, -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newSwapBox(t, "Size="+c.size+"\n")
			b.disk("ext2/ext3", c.free)
			if c.program != "" {
				b.program(c.program, c.does)
			}
			if c.had > 0 {
				b.put(swapFile, strings.Repeat("x", int(c.had)<<20))
			}
			did, said := b.start()
			if !strings.Contains(said, c.says) || c.says == "" && said != "" {
				t.Errorf("says %q, want %q", said, c.says)
			}
			if on := strings.Contains(did, "swapon"); on != c.on || b.size() != c.then {
				t.Errorf("%d MiB, want %d:\n%s", b.size(), c.then, did)
			}
			// What was set up goes again.
			if c.program == "mkswap" || c.program == "swapon" {
				if !strings.HasSuffix(did, "cryptsetup close halogen-swap\n") {
					t.Error(did)
				}
			}
			if exists(t, filepath.Join(b.root, swapFile+".new")) {
				t.Error("a part of a file is left")
			}
		})
	}
}

// The image has the size, or the build says what is missing for it.
func TestAddSwap(t *testing.T) {
	var programs []string
	for _, name := range swapPrograms {
		programs = append(programs, "usr/sbin/"+name)
	}
	c := &config.Config{Machine: config.Machine{Swap: 3 << 29}}
	tree, dir := tree(t, append(programs, systemd)...)
	if notes, err := Add(tree, c, date); err != nil || len(notes) > 0 {
		t.Fatal(notes, err)
	}
	if text := content(t, dir, "usr/lib/halogen/swap.conf"); !strings.HasSuffix(text, "\nSize=1536M\n") {
		t.Error(text)
	}
	if !exists(t, filepath.Join(dir, "usr/lib/systemd/system/sysinit.target.wants/halogen-swap.service")) {
		t.Error("nothing starts it")
	}
}

// An image that cannot have it is refused, and one without systemd is told what to run.
func TestAddSwapRefused(t *testing.T) {
	c := &config.Config{Machine: config.Machine{Swap: 1 << 30}}
	bare, _ := tree(t, systemd, "sbin/mkswap", "bin/mountpoint")
	if _, err := Add(bare, c, date); err == nil || !strings.Contains(err.Error(), "the root file system needs cryptsetup, losetup, swapon, swapoff: install") {
		t.Error(err)
	}
	var programs []string
	for _, name := range swapPrograms {
		programs = append(programs, "sbin/"+name)
	}
	btrfs, _ := tree(t, append(programs, systemd)...)
	if _, err := Add(btrfs, &config.Config{Machine: config.Machine{Swap: 1 << 30, RootPartitionFormat: "btrfs"}}, date); err == nil || !strings.Contains(err.Error(), "needs chattr: install") {
		t.Error(err)
	}
	other, _ := tree(t, programs...)
	if notes, err := Add(other, c, date); err != nil || len(notes) != 1 || !strings.Contains(notes[0], "/usr/lib/halogen/swap start") {
		t.Error(notes, err)
	}
}
