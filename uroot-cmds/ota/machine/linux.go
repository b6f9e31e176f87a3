package machine

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/bootoption"
	"halogenos.internal/initagent/changes"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/sysimage"
	"halogenos.internal/uroot-cmds/ota/health"
	"halogenos.internal/uroot-cmds/ota/when"
	"halogenos.internal/uroot-cmds/ota/worker"
)

// workerUser is whose rights the worker has. Where the system has no such user, as
// at the recovery console, it has those of a number that nobody else has: neither
// systemd nor Debian gives it to anybody (systemd, "Users, Groups, UIDs and GIDs on
// systemd Systems": 65520 to 65533; Debian Policy, 9.2.2). The user nobody is
// shared.
const (
	workerUser   = "_ota"
	workerNumber = 65521
)

// espDirectory is where the ESP is mounted while it is written to.
const espDirectory = "run/halogen/esp"

// verityDevice is the name that initagent gives the running system's device.
const verityDevice = "system"

// Linux is the machine that this runs on.
func Linux() *Machine {
	places := when.Places{Root: "/", Now: time.Now}
	h := hw.Linux(modules{}, "/"+espDirectory, "")
	return &Machine{
		Hardware: h, Root: "/", Random: rand.Reader, Now: time.Now,
		Worker:     worker.Starter{Program: "/proc/self/exe", User: credential()},
		Corrupt:    func() (bool, error) { return verityCorrupt("/dev/mapper/control", verityDevice) },
		OpenSystem: func() (string, error) { return sysimage.Open(h, "/") },
		Services:   func() (health.Manager, string) { return health.Find("/", health.Command) },
		Waiting:    waiting,
		Snapshots:  hw.LinuxStore{Root: consoleRoot},
		Waits:      Waits{Online: online, Surroundings: places.Look, Use: places.Use, Obstacles: places.Obstacles, Reboot: places.Reboot},
	}
}

// waiting is what waits under all directories that are laid over the image's. Where none is,
// nothing does.
func waiting() (w changes.Waiting, err error) {
	m, err := changes.Linux()
	if errors.Is(err, changes.ErrNoOverlay) {
		return w, nil
	}
	if err != nil {
		return w, err
	}
	defer m.Close()
	return m.Waiting(context.Background())
}

func online() bool {
	all, err := net.InterfaceAddrs()
	return err != nil || slices.ContainsFunc(all, func(a net.Addr) bool {
		n, ok := a.(*net.IPNet)
		return ok && n.IP.IsGlobalUnicast()
	})
}

func credential() *syscall.Credential {
	c := &syscall.Credential{Uid: workerNumber, Gid: workerNumber, Groups: []uint32{}}
	if os.Geteuid() != 0 {
		return nil
	}
	u, err := user.Lookup(workerUser)
	if err != nil {
		return c
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err == nil && err2 == nil && uid != 0 && gid != 0 {
		c.Uid, c.Gid = uint32(uid), uint32(gid)
	}
	return c
}

// modules loads what mounting needs. A running system's kernel asks modprobe by
// itself; at the recovery console there is none, and the initramfs has the
// modules.
type modules struct{}

// Coldplug implements hw.Kernel.
func (modules) Coldplug([]bootoption.Function) (int, error) { return 0, errors.ErrUnsupported }

// Hotplug implements hw.Kernel. Others do it: the system's udev, or initagent.
func (modules) Hotplug(ctx context.Context) { <-ctx.Done() }

// Messages implements hw.Kernel.
func (modules) Messages() ([]byte, error) { return hw.KernelLog() }

// Load implements hw.Kernel.
func (modules) Load(names ...string) error {
	if _, err := os.Stat(filepath.Join("/", contractFile)); err != nil {
		return nil
	}
	k, err := hw.NewLinuxKernel("/sys", "/lib/modules")
	if err != nil {
		return err
	}
	return k.Load(names...)
}

// The device mapper's interface (Linux, include/uapi/linux/dm-ioctl.h, version
// 4): a header, for this call with the device's name, and room for the answer.
const (
	dmTableStatus  = 0xc138fd0c
	dmHeaderSize   = 312
	dmBufferSize   = 16 << 10
	dmTargetSize   = 40
	dmOffSize      = 12
	dmOffStart     = 16
	dmOffTargets   = 20
	dmOffFlags     = 28
	dmOffName      = 48
	dmNameSize     = 128
	dmBufferFull   = 1 << 8
	dmVersionMajor = 4
)

// verityCorrupt asks the device mapper for a verity device's status: V, or C once
// a block was found that is corrupt.
func verityCorrupt(control, name string) (bool, error) {
	f, err := os.OpenFile(control, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return false, ErrNotOpen
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	b := dmRequest(name)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), dmTableStatus, uintptr(unsafe.Pointer(&b[0])))
	if errno == unix.ENXIO {
		return false, ErrNotOpen
	}
	if errno != 0 {
		return false, fmt.Errorf("status of device %s: %w", name, errno)
	}
	return dmStatus(b)
}

func dmRequest(name string) []byte {
	b := make([]byte, dmBufferSize)
	le := binary.LittleEndian
	le.PutUint32(b, dmVersionMajor)
	le.PutUint32(b[dmOffSize:], dmBufferSize)
	le.PutUint32(b[dmOffStart:], dmHeaderSize)
	copy(b[dmOffName:dmOffName+dmNameSize-1], name)
	return b
}

// dmStatus reads the answer.
func dmStatus(b []byte) (corrupt bool, err error) {
	le := binary.LittleEndian
	start := int(min(le.Uint32(b[dmOffStart:]), dmBufferSize))
	if le.Uint32(b[dmOffFlags:])&dmBufferFull != 0 || le.Uint32(b[dmOffTargets:]) != 1 || len(b)-start <= dmTargetSize {
		return false, errors.New("device is not made of one target")
	}
	kind, _, _ := bytes.Cut(b[start+24:start+dmTargetSize], []byte{0})
	status, _, _ := bytes.Cut(b[start+dmTargetSize:], []byte{0})
	if string(kind) != "verity" {
		return false, ErrNotOpen
	}
	switch {
	case bytes.HasPrefix(status, []byte("V")):
		return false, nil
	case bytes.HasPrefix(status, []byte("C")):
		return true, nil
	}
	return false, fmt.Errorf("verity device has the status %.20q, want V or C", status)
}
