package keys

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/testkit"
)

// fake is a kernel with disks, as sysfs and mountinfo show them.
type fake struct {
	t     *testing.T
	host  host
	files map[string]fakeFile
	nodes map[string]uint64 // of /dev
}

type fakeFile struct {
	magic      int64
	dev, mount uint64
	policy     bool
}

func newFake(t *testing.T) *fake {
	f := &fake{t: t, files: map[string]fakeFile{}, nodes: map[string]uint64{}}
	dir := t.TempDir()
	f.host = host{
		sys: filepath.Join(dir, "sys"), proc: filepath.Join(dir, "proc"),
		file: func(path string) (int64, uint64, uint64, error) {
			x, ok := f.files[path]
			if !ok {
				return 0, 0, 0, os.ErrNotExist
			}
			return x.magic, x.dev, x.mount, nil
		},
		policy: func(path string) (bool, error) { return f.files[path].policy, nil },
		device: func(path string) (uint64, error) {
			if n, ok := f.nodes[path]; ok {
				return n, nil
			}
			return 0, os.ErrNotExist
		},
	}
	f.put("proc/self/mountinfo", strings.Join([]string{
		"21 1 8:2 / / rw - ext4 /dev/sda2 rw",
		"22 1 0:30 / /b rw shared:1 - btrfs /dev/mapper/pool rw,subvol=/x",
		"23 1 0:31 / /n rw - nfs server:/export rw",
		`24 1 0:32 / /o rw - overlay overlay rw,lowerdir=/l,upperdir=/upper\040layer,workdir=/w`,
		"25 1 0:33 / /h rw - overlay overlay rw",
		"27 1 0:35 / /c rw - overlay overlay rw,upperdir=/var/lib/containers/x",
		"26 1 0:34 / /u rw - fuse.thing /dev/mapper/crypt rw",
		"28 1 0:36 / /dev/shm rw - tmpfs tmpfs rw,inode64",
		"29 1 0:37 / /k rw - tmpfs tmpfs rw,noswap,inode64",
	}, "\n")+"\n")
	return f
}

func (f *fake) put(name, text string) {
	f.t.Helper()
	path := filepath.Join(filepath.Dir(f.host.sys), name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		f.t.Fatal(err)
	}
}

// disk makes a block device in a directory of sysfs, of slaves that there are.
func (f *fake) disk(directory string, minor int, files map[string]string, slaves ...string) uint64 {
	f.t.Helper()
	name := filepath.Base(directory)
	dir := filepath.Join(f.host.sys, "devices", directory)
	f.put("sys/devices/"+directory+"/dev", fmt.Sprintf("8:%d\n", minor))
	for file, text := range files {
		f.put("sys/devices/"+directory+"/"+file, text)
	}
	link := func(at, to string) {
		f.t.Helper()
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			f.t.Fatal(err)
		}
		if err := os.Symlink(to, at); err != nil {
			f.t.Fatal(err)
		}
	}
	for _, s := range slaves {
		link(filepath.Join(dir, "slaves", s), "../../"+s)
	}
	link(filepath.Join(f.host.sys, "dev/block", fmt.Sprintf("8:%d", minor)), dir)
	link(filepath.Join(f.host.sys, "class/block", name), dir)
	return unix.Mkdev(8, uint32(minor))
}

func TestStorage(t *testing.T) {
	const ext4, btrfs, nfs = 0xef53, 0x9123683e, 0x6969
	f := newFake(t)
	sda := f.disk("sda", 0, nil)
	sda2 := f.disk("sda/sda2", 2, map[string]string{"partition": "2"})
	crypt := f.disk("dm-0", 10, map[string]string{"dm/uuid": "CRYPT-LUKS2-abc-crypt\n"}, "sda2")
	lvm := f.disk("dm-1", 11, map[string]string{"dm/uuid": "LVM-abc\n"}, "dm-0")
	verity := f.disk("dm-2", 12, map[string]string{"dm/uuid": "CRYPT-VERITY-abc\n"}, "sda2")
	mixed := f.disk("dm-3", 13, map[string]string{"dm/uuid": "LVM-mixed\n"}, "dm-0", "sda2")
	loop := f.disk("loop0", 14, map[string]string{"loop/backing_file": "/secret/image\n"})
	bare := f.disk("loop1", 15, map[string]string{"loop/backing_file": "/plain/image\n"})
	f.disk("md0", 16, nil, "dm-0", "dm-1")
	zram := f.disk("zram0", 17, nil)
	ring := f.disk("dm-9", 19, map[string]string{"dm/uuid": "LVM-ring\n"}, "dm-9")
	on := f.disk("dm-0/part1", 20, map[string]string{"partition": "1"})
	f.nodes["/dev/mapper/pool"], f.nodes["/dev/mapper/crypt"] = crypt, crypt
	f.put("sys/fs/btrfs/1234/devices/dm-0", "")
	f.files["/secret/image"] = fakeFile{magic: ext4, dev: crypt, mount: 21}
	f.files["/plain/image"] = fakeFile{magic: ext4, dev: sda2, mount: 21}
	f.files["/upper layer"] = fakeFile{magic: ext4, dev: crypt, mount: 21}
	for _, c := range []struct {
		name string
		file fakeFile
		want string // starts what it says; empty: it is refused
	}{
		{"tmpfs", fakeFile{magic: magicTmpfs, mount: 28}, "in memory"},
		{"ramfs", fakeFile{magic: magicRamfs}, "in memory"},
		{"eCryptfs", fakeFile{magic: magicECryptfs}, "eCryptfs"},
		{"fscrypt", fakeFile{magic: ext4, dev: sda2, mount: 21, policy: true}, "fscrypt"},
		{"a partition", fakeFile{magic: ext4, dev: sda2, mount: 21}, ""},
		{"a disk", fakeFile{magic: ext4, dev: sda, mount: 21}, ""},
		{"dm-crypt", fakeFile{magic: ext4, dev: crypt, mount: 21}, "dm-crypt (dm-0)"},
		{"LVM on dm-crypt", fakeFile{magic: ext4, dev: lvm, mount: 21}, "dm-crypt (dm-0)"},
		{"a partition on dm-crypt", fakeFile{magic: ext4, dev: on, mount: 21}, "dm-crypt (dm-0)"},
		{"RAID of encrypted ones", fakeFile{magic: ext4, dev: unix.Mkdev(8, 16), mount: 21}, "dm-crypt"},
		{"dm-verity", fakeFile{magic: ext4, dev: verity, mount: 21}, ""},
		{"LVM of which a part is not encrypted", fakeFile{magic: ext4, dev: mixed, mount: 21}, ""},
		{"a file on dm-crypt", fakeFile{magic: ext4, dev: loop, mount: 21}, "dm-crypt"},
		{"a file on a partition", fakeFile{magic: ext4, dev: bare, mount: 21}, ""},
		{"zram", fakeFile{magic: ext4, dev: zram, mount: 21}, "in memory"},
		{"a ring of devices", fakeFile{magic: ext4, dev: ring, mount: 21}, ""},
		{"a device that there is not", fakeFile{magic: ext4, dev: unix.Mkdev(9, 9), mount: 21}, ""},
		{"btrfs on dm-crypt", fakeFile{magic: btrfs, dev: unix.Mkdev(0, 30), mount: 22}, "dm-crypt"},
		{"NFS", fakeFile{magic: nfs, dev: unix.Mkdev(0, 31), mount: 23}, ""},
		{"an overlay over dm-crypt", fakeFile{magic: magicOverlay, dev: unix.Mkdev(0, 32), mount: 24}, "dm-crypt"},
		{"an overlay that tells nothing", fakeFile{magic: magicOverlay, dev: unix.Mkdev(0, 33), mount: 25}, ""},
		{"a container's overlay", fakeFile{magic: magicOverlay, dev: unix.Mkdev(0, 35), mount: 27}, ""},
		{"a mount that there is not", fakeFile{magic: nfs, dev: unix.Mkdev(0, 31), mount: 99}, ""},
	} {
		f.files["/key"] = c.file
		how, err := f.host.storage("/key", 0)
		if c.want == "" && err == nil || c.want != "" && (err != nil || !strings.HasPrefix(how, c.want)) {
			t.Errorf("%s: %q, %v; want %q", c.name, how, err, c.want)
		}
	}
	// One more disk, and the pool is no longer encrypted.
	f.put("sys/fs/btrfs/1234/devices/sda2", "")
	f.files["/key"] = fakeFile{magic: btrfs, dev: unix.Mkdev(0, 30), mount: 22}
	if how, err := f.host.storage("/key", 0); err == nil {
		t.Errorf("a btrfs with a disk that is not encrypted: %s", how)
	}
}

// A tmpfs is written to swap space when memory is short, so that it is worth what that is.
func TestStorageThatIsSwapped(t *testing.T) {
	const ext4 = 0xef53
	for _, c := range []struct {
		name  string
		swaps string // lines of /proc/swaps
		mount uint64
		want  string // starts what it says; empty: it is refused
	}{
		{"no swap space", "", 28, inMemory},
		{"a partition", "/dev/sda2 partition 1048572 0 -2\n", 28, ""},
		{"a partition, noswap", "/dev/sda2 partition 1048572 0 -2\n", 29, inMemory},
		{"encrypted", "/dev/mapper/crypt partition 1048572 0 -2\n", 28, inMemory + ", and swapped out to dm-crypt"},
		{"encrypted, and a partition", "/dev/mapper/crypt partition 1048572 0 -2\n/dev/sda2 partition 1 0 -3\n", 28, ""},
		{"zram", "/dev/zram0 partition 1048572 0 100\n", 28, inMemory},
		{"zram that writes to a disk", "/dev/zram1 partition 1048572 0 100\n", 28, ""},
		{"zram that writes to dm-crypt", "/dev/zram2 partition 1048572 0 100\n", 28, inMemory + ", and swapped out to dm-crypt"},
		{"a file", "/plain\\040swap file 1048572 0 -2\n", 28, ""},
		{"an encrypted file", "/secret\\040swap file 1048572 0 -2\n", 28, inMemory + ", and swapped out to dm-crypt"},
		{"a device that cannot be seen", "/dev/hidden partition 1048572 0 -2\n", 28, ""},
	} {
		f := newFake(t)
		f.disk("sda", 0, nil)
		sda2 := f.disk("sda/sda2", 2, map[string]string{"partition": "2"})
		crypt := f.disk("dm-0", 10, map[string]string{"dm/uuid": "CRYPT-LUKS2-abc-crypt\n"}, "sda2")
		f.nodes = map[string]uint64{
			"/dev/sda2": sda2, "/dev/mapper/crypt": crypt, "/dev/zram0": f.disk("zram0", 17, map[string]string{"backing_dev": "none\n"}),
			"/dev/zram1": f.disk("zram1", 18, map[string]string{"backing_dev": "/dev/sda2\n"}), "/dev/zram2": f.disk("zram2", 21, map[string]string{"backing_dev": "/dev/mapper/crypt\n"}),
		}
		f.files["/plain swap"], f.files["/secret swap"] = fakeFile{magic: ext4, dev: sda2, mount: 21}, fakeFile{magic: ext4, dev: crypt, mount: 21}
		f.files["/dev/shm/key"] = fakeFile{magic: magicTmpfs, mount: c.mount}
		f.put("proc/swaps", "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"+c.swaps)
		how, err := f.host.storage("/dev/shm/key", 0)
		if c.want == "" && (err == nil || !strings.Contains(err.Error(), "swapoff")) || c.want != "" && (err != nil || !strings.HasPrefix(how, c.want)) {
			t.Errorf("%s: %q, %v; want %q", c.name, how, err, c.want)
		}
	}
}

// TestStorageOfThisMachine asks the real kernel where it can be known what it
// must say.
func TestStorageOfThisMachine(t *testing.T) {
	const memory = "/dev/shm"
	var s unix.Statfs_t
	if err := unix.Statfs(memory, &s); err != nil || s.Type != magicTmpfs {
		t.Skipf("%s is not a tmpfs here", memory)
	}
	f, err := os.CreateTemp(memory, "halogen")
	if err != nil {
		t.Skip(err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	swaps, err := os.ReadFile("/proc/swaps")
	if how, told := Storage(f.Name()); err == nil && strings.Count(string(swaps), "\n") <= 1 && (told != nil || how != inMemory) {
		t.Errorf("%s: %q, %v", f.Name(), how, told)
	}
	// Whether the disk is encrypted, lsblk knows too.
	dir := t.TempDir()
	if err := unix.Statfs(dir, &s); err != nil || s.Type != 0xef53 && s.Type != 0x58465342 {
		t.Skip("the directory for temporary files is on neither ext4 nor XFS")
	}
	testkit.Need(t, "lsblk")
	testkit.Need(t, "findmnt")
	source := strings.TrimSpace(testkit.Run(t, "findmnt", "-n", "-o", "SOURCE", "-T", dir))
	if !strings.HasPrefix(source, "/dev/") || strings.Contains(source, "[") {
		t.Skipf("%s is on %s", dir, source)
	}
	crypt := strings.Contains(testkit.Run(t, "lsblk", "-n", "-s", "-o", "TYPE", source), "crypt")
	if how, err := Storage(dir); (err == nil) != crypt {
		t.Errorf("%s on %s: %q, %v", dir, source, how, err)
	}
}
