package keys

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// host is the kernel that is asked where a file lies. Its parts are replaced in
// tests, where no disk can be encrypted.
type host struct {
	sys  string // /sys
	proc string // /proc
	// file returns the type of the file system (its magic number), the
	// device, and the number of the mount that a file lies on.
	file func(path string) (magic int64, dev uint64, mount uint64, err error)
	// policy reports whether a file is encrypted by fscrypt.
	policy func(path string) (bool, error)
	// device returns the number of a block device.
	device func(path string) (uint64, error)
	// sync writes a directory and those above it to the disk.
	sync func(dir string) error
}

func thisHost() host {
	return host{sys: "/sys", proc: "/proc", file: fileOf, policy: policyOf, device: deviceOf, sync: syncDirectory}
}

func fileOf(path string) (int64, uint64, uint64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(path, &s); err != nil {
		return 0, 0, 0, &fs.PathError{Op: "statfs", Path: path, Err: err}
	}
	var x unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_BASIC_STATS|unix.STATX_MNT_ID, &x); err != nil {
		return 0, 0, 0, &fs.PathError{Op: "statx", Path: path, Err: err}
	}
	return s.Type, unix.Mkdev(x.Dev_major, x.Dev_minor), x.Mnt_id, nil
}

// policyOf asks for the encryption policy of a file (Linux,
// Documentation/filesystems/fscrypt.rst, FS_IOC_GET_ENCRYPTION_POLICY_EX).
func policyOf(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	var policy [32]byte
	policy[0] = 24 // bytes of the longest policy there is
	switch err := ioctl(f, unix.FS_IOC_GET_ENCRYPTION_POLICY_EX, &policy); {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.ENODATA), errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL):
		return false, nil
	default:
		return false, fmt.Errorf("get the encryption policy of %s: %w", path, err)
	}
}

func deviceOf(path string) (uint64, error) {
	var s unix.Stat_t
	if err := unix.Stat(path, &s); err != nil {
		return 0, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	if s.Mode&unix.S_IFMT != unix.S_IFBLK {
		return 0, fmt.Errorf("%s is not a block device", path)
	}
	return s.Rdev, nil
}

// Types of file systems (Linux, include/uapi/linux/magic.h).
const (
	magicTmpfs    = 0x01021994
	magicRamfs    = 0x858458f6
	magicECryptfs = 0xf15f
	magicOverlay  = 0x794c7630
)

const inMemory = "in memory, which is gone when the machine is off"

const maxLayers = 16 // of block devices and file systems on top of one another

// Storage tells what protects a file where it lies, as the kernel says. An
// error says why nothing does, or that it cannot be told.
func Storage(path string) (string, error) { return thisHost().storage(path, 0) }

func (h host) storage(path string, depth int) (string, error) {
	if depth > maxLayers {
		return "", fmt.Errorf("%s lies on more than %d layers", path, maxLayers)
	}
	magic, dev, mount, err := h.file(path)
	if err != nil {
		return "", err
	}
	switch magic {
	case magicTmpfs:
		return h.swapped(path, mount, depth)
	case magicRamfs: // is never swapped out
		return inMemory, nil
	case magicECryptfs:
		return "eCryptfs", nil
	}
	encrypted, err := h.policy(path)
	if err != nil {
		return "", err
	}
	if encrypted {
		return "fscrypt", nil
	}
	m, err := h.mount(mount)
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	if magic == magicOverlay {
		upper := m.option("upperdir")
		if upper == "" {
			return "", fmt.Errorf("%s lies on an overlay whose upper layer the kernel does not tell", path)
		}
		how, err := h.storage(upper, depth+1)
		if errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("%s lies in a container's own file system: what is under it cannot be seen from inside", path)
		}
		return how, err
	}
	if unix.Major(dev) != 0 {
		return h.block(dev, depth)
	}
	return h.anonymous(path, m, depth)
}

// swapped tells what protects a file of a tmpfs, which the kernel writes to swap space when
// memory is short, unless it was mounted with noswap (Linux,
// Documentation/filesystems/tmpfs.rst).
func (h host) swapped(path string, mount uint64, depth int) (string, error) {
	m, err := h.mount(mount)
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	if slices.Contains(m.options, "noswap") {
		return inMemory, nil
	}
	text, err := os.ReadFile(filepath.Join(h.proc, "swaps"))
	if errors.Is(err, fs.ErrNotExist) { // a kernel without swap space
		return inMemory, nil
	}
	if err != nil {
		return "", err
	}
	how := inMemory
	for i, line := range strings.Split(strings.TrimSpace(string(text)), "\n") {
		fields := strings.Fields(line)
		if i == 0 || len(fields) < 2 { // names of the columns (proc_swaps(5))
			continue
		}
		swap := octal(fields[0])
		protects, err := h.swapSpace(swap, fields[1], depth+1)
		if err != nil {
			return "", fmt.Errorf("%s lies in memory, which the kernel may write to the swap space %s: %w. End it for as long as the key is there (swapoff %[2]s), encrypt it, or mount a tmpfs for the key with -o noswap (Linux 6.4)", path, swap, err)
		}
		if protects != inMemory {
			how = "in memory, which is gone when the machine is off, and swapped out to " + protects
		}
	}
	return how, nil
}

// swapSpace tells what protects a swap space, by its name and type in /proc/swaps.
func (h host) swapSpace(name, kind string, depth int) (string, error) {
	if kind == "file" {
		return h.storage(name, depth)
	}
	dev, err := h.device(name)
	if err != nil {
		return "", fmt.Errorf("whether that is encrypted cannot be told: %w", err)
	}
	return h.block(dev, depth)
}

// anonymous finds the devices of a file system that may have several (btrfs),
// whose files name none.
func (h host) anonymous(path string, m mountpoint, depth int) (string, error) {
	if !strings.HasPrefix(m.source, "/dev/") {
		return "", fmt.Errorf("%s lies on %s from %q: whether that is encrypted cannot be told", path, m.kind, m.source)
	}
	dev, err := h.device(m.source)
	if err != nil {
		return "", fmt.Errorf("%s lies on %s: %w", path, m.source, err)
	}
	if m.kind != "btrfs" {
		return h.block(dev, depth)
	}
	name, err := h.deviceDirectory(dev)
	if err != nil {
		return "", err
	}
	pools, err := filepath.Glob(filepath.Join(h.sys, "fs/btrfs/*/devices/"+filepath.Base(name)))
	if err != nil || len(pools) != 1 {
		return "", fmt.Errorf("%s lies on a btrfs whose devices the kernel does not tell", path)
	}
	members, err := os.ReadDir(filepath.Dir(pools[0]))
	if err != nil {
		return "", err
	}
	how := ""
	for _, member := range members {
		number, err := readNumber(filepath.Join(h.sys, "class/block", member.Name(), "dev"))
		if err != nil {
			return "", err
		}
		if how, err = h.block(number, depth+1); err != nil {
			return "", err
		}
	}
	return how, nil
}

// crypt are the kinds of device mapper tables that encrypt, by how their names
// start (libcryptsetup's; CRYPT-VERITY and CRYPT-INTEGRITY do not encrypt).
var crypt = []string{"CRYPT-LUKS1-", "CRYPT-LUKS2-", "CRYPT-PLAIN-", "CRYPT-LOOPAES-", "CRYPT-TCRYPT-", "CRYPT-BITLK-", "CRYPT-FVAULT2-"}

// block tells what encrypts a block device: it, or all that it is made of.
func (h host) block(dev uint64, depth int) (string, error) {
	if depth > maxLayers {
		return "", fmt.Errorf("there are more than %d layers of block devices", maxLayers)
	}
	directory, err := h.deviceDirectory(dev)
	if err != nil {
		return "", err
	}
	name := filepath.Base(directory)
	uuid, err := os.ReadFile(filepath.Join(directory, "dm/uuid"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	for _, prefix := range crypt {
		if bytes.HasPrefix(uuid, []byte(prefix)) {
			return "dm-crypt (" + name + ")", nil
		}
	}
	if _, err := os.Stat(filepath.Join(directory, "partition")); err == nil {
		whole, err := readNumber(filepath.Join(filepath.Dir(directory), "dev"))
		if err != nil {
			return "", err
		}
		return h.block(whole, depth+1)
	}
	if backing, err := os.ReadFile(filepath.Join(directory, "loop/backing_file")); err == nil {
		return h.storage(strings.TrimSuffix(string(backing), "\n"), depth+1)
	}
	if strings.HasPrefix(name, "zram") || strings.HasPrefix(name, "ram") {
		return h.compressed(directory, depth)
	}
	slaves, err := os.ReadDir(filepath.Join(directory, "slaves"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if len(slaves) == 0 {
		return "", fmt.Errorf("it lies on %s, which is not encrypted: keep it on an encrypted disk, or say --allow-unencrypted-storage", name)
	}
	how := ""
	for _, slave := range slaves {
		number, err := readNumber(filepath.Join(h.sys, "class/block", slave.Name(), "dev"))
		if err != nil {
			return "", err
		}
		if how, err = h.block(number, depth+1); err != nil {
			return "", err
		}
	}
	return how, nil
}

// compressed tells what protects a disk in memory: zram may write what is idle to a device
// (Linux, Documentation/admin-guide/blockdev/zram.rst, writeback).
func (h host) compressed(directory string, depth int) (string, error) {
	text, err := os.ReadFile(filepath.Join(directory, "backing_dev"))
	backing := strings.TrimSpace(string(text))
	switch {
	case errors.Is(err, fs.ErrNotExist), err == nil && (backing == "none" || backing == ""):
		return inMemory, nil
	case err != nil:
		return "", err
	}
	return h.swapSpace(backing, "partition", depth+1)
}

// deviceDirectory is a block device's directory in sysfs.
func (h host) deviceDirectory(dev uint64) (string, error) {
	link := filepath.Join(h.sys, "dev/block", fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev)))
	directory, err := filepath.EvalSymlinks(link)
	if err != nil {
		return "", fmt.Errorf("find the block device %d:%d: %w", unix.Major(dev), unix.Minor(dev), err)
	}
	return directory, nil
}

// readNumber reads a device's number from sysfs.
func readNumber(path string) (uint64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	major, minor, _ := strings.Cut(strings.TrimSpace(string(text)), ":")
	a, err := strconv.ParseUint(major, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%s: %q is not the number of a device", path, text)
	}
	b, err := strconv.ParseUint(minor, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%s: %q is not the number of a device", path, text)
	}
	return unix.Mkdev(uint32(a), uint32(b)), nil
}

// A mountpoint is a line of /proc/self/mountinfo (proc_pid_mountinfo(5)).
type mountpoint struct {
	kind, source string
	options      []string // of the file system itself
}

func (m mountpoint) option(name string) string {
	for _, o := range m.options {
		if value, ok := strings.CutPrefix(o, name+"="); ok {
			return value
		}
	}
	return ""
}

func (h host) mount(id uint64) (mountpoint, error) {
	f, err := os.Open(filepath.Join(h.proc, "self/mountinfo"))
	if err != nil {
		return mountpoint{}, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		dash := slices.Index(fields, "-")
		if len(fields) == 0 || fields[0] != strconv.FormatUint(id, 10) || dash < 0 || len(fields) < dash+4 {
			continue
		}
		return mountpoint{kind: fields[dash+1], source: octal(fields[dash+2]), options: strings.Split(octal(fields[dash+3]), ",")}, nil
	}
	return mountpoint{}, errors.Join(fmt.Errorf("mount %d is not in mountinfo", id), lines.Err())
}

// octal undoes the escapes of mountinfo.
func octal(text string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`, `\054`, ",").Replace(text)
}
