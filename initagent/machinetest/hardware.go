package machinetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	uroot "github.com/u-root/u-root/pkg/watchdog"
	"golang.org/x/sys/unix"

	"halogenos.internal/boot/bootoption"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/verity"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/ownstate"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/snapshot"
	"halogenos.internal/initagent/snapshot/snapshottest"
	"halogenos.internal/initagent/tpm"
	"halogenos.internal/initagent/watchdog"
)

// Kernel implements hw.Kernel. A disk shows when the driver of its controller was
// loaded.
type Kernel struct{ m *Machine }

func (k Kernel) Coldplug(way []bootoption.Function) (int, error) {
	if k.m != nil {
		k.m.Driven, k.m.TpmPlugs = way, k.m.TpmPlugs-1
		if k.m.Plugging != nil {
			k.m.Plugging()
		}
	}
	return 0, nil
}

// Hotplug tells a person's program that devices are looked for.
func (k Kernel) Hotplug(ctx context.Context) {
	select {
	case k.m.hotplug <- struct{}{}:
		<-ctx.Done()
	case <-ctx.Done():
	}
}

func (k Kernel) Load(names ...string) error {
	if k.m != nil && slices.Contains(names, k.m.NoModule) {
		return fmt.Errorf("load kernel module %s: %w", k.m.NoModule, fs.ErrNotExist)
	}
	return nil
}

// Messages implements hw.Kernel.
func (k Kernel) Messages() ([]byte, error) { return []byte(k.m.Messages), nil }

// mapper implements hw.Mapper. What dm-verity finds out in the end it finds out
// at once.
type mapper struct{ m *Machine }

func (p mapper) OpenVerity(v hw.Verity) (string, error) {
	if strings.HasPrefix(v.Name, "extension-") {
		return p.m.openImage(v)
	}
	roles := map[string]layout.Role{}
	for r := layout.ESP; r <= layout.Root; r++ {
		roles["/dev/disk0-"+r.String()] = r
	}
	data, err := p.m.Partition(roles[v.DataDevice])
	if err != nil {
		return "", err
	}
	tree, err := p.m.Partition(roles[v.HashDevice])
	if err != nil {
		return "", err
	}
	if err := verity.Verify(context.Background(), data, tree, v.Params, v.Root, func(int64) {}); err != nil {
		return "", fmt.Errorf("first read through dm-verity: %w", err)
	}
	if v.Name == ownstate.BeforeDevice {
		p.m.before = &v.Root
		return "/dev/dm-2", nil
	}
	p.m.openVerity = true
	return "/dev/dm-0", nil
}

func (p mapper) OpenCrypt(c hw.Crypt) (string, error) {
	header, err := p.m.Header()
	if err != nil {
		return "", err
	}
	if err := header.VerifyVolumeKey(c.VolumeKey); err != nil {
		return "", err
	}
	if p.m.OpenVolume != nil {
		return "", errors.New("a volume is open already")
	}
	if err := p.openAt(c.Device); err != nil {
		return "", err
	}
	id := policy.VolumeFingerprint(c.VolumeKey)
	p.m.OpenVolume = &id
	return "/dev/dm-1", nil
}

func (p mapper) Close(name string) error {
	if name == ownstate.BeforeDevice && p.m.before != nil {
		p.m.before = nil
		return nil
	}
	if strings.HasPrefix(name, "extension-") {
		return p.m.closeImage(name)
	}
	if is, err := p.closeSnapshot(name); is {
		return err
	}
	if name != rootpart.Device || p.m.OpenVolume == nil {
		return fmt.Errorf("no device %s: %w", name, unix.ENXIO)
	}
	if slices.Contains(p.m.Mounted, filepath.Join(p.m.Root, rootpart.Directory)) {
		return errors.New("device is busy")
	}
	if len(p.m.images.opened) > 0 {
		return fmt.Errorf("device is busy: %v", p.m.images.opened)
	}
	p.m.OpenVolume = nil
	if p.m.snapshot != nil {
		p.m.snapshot.open = false
	}
	return nil
}

func (m *Machine) Header() (*luks2.Header, error) {
	s, err := m.Partition(layout.Root)
	if err != nil {
		return nil, err
	}
	header, _, err := luks2.Open(s, s.Size())
	return header, err
}

// mounts implements hw.Mounts.
type mounts struct{ m *Machine }

func (mounts) Base() error { return nil }

func (o mounts) Firmware() error { return o.m.NoEFI }

func (o mounts) Mount(source, target, fstype string, flags uintptr, data string) error {
	if source == "/dev/dm-1" && (o.m.OpenVolume == nil || o.m.Volumes[*o.m.OpenVolume] == nil) {
		return errors.New("there is no file system on it")
	}
	if strings.HasPrefix(target, filepath.Join(o.m.Root, host.SystemDirectory)) && !o.m.openVerity {
		o.m.T.Errorf("%s was mounted on %s without verity", source, target)
	}
	if o.m.BadFiles != "" && strings.Contains(target, o.m.BadFiles) {
		return syscall.EIO
	}
	if fstype == "tmpfs" {
		o.m.Must(os.MkdirAll(target, 0o755)) // as hw.LinuxMounts does
	}
	if strings.HasPrefix(source, "/dev/dm-extension-") {
		if err := o.m.mountImage(source, target, flags); err != nil {
			return err
		}
	}
	if fstype == "overlay" && strings.Contains(data, ":"+target+",") {
		if err := o.m.overlay(target, data, flags); err != nil {
			return err
		}
	}
	o.m.Mounted = append(o.m.Mounted, target)
	if lower, ok := strings.CutSuffix(strings.TrimPrefix(data, "lowerdir="), ":"+target); fstype == "overlay" && ok {
		o.m.lay(lower, target)
	}
	return nil
}

func (o mounts) Unmount(target string) error {
	at := slices.Index(o.m.Mounted, target)
	if at < 0 {
		return fmt.Errorf("%s is not mounted: %w", target, unix.EINVAL)
	}
	for _, later := range o.m.Mounted[at+1:] {
		if target == filepath.Join(o.m.Root, rootpart.Directory) && later != target {
			return fmt.Errorf("%s is busy: %s", target, later)
		}
	}
	o.m.Mounted = slices.Delete(o.m.Mounted, at, at+1)
	return nil
}

func (o mounts) SwitchRoot(string, []string) error {
	if o.m.before != nil {
		o.m.T.Error("the system gets the image of the one before it, still open")
	}
	if left := o.m.leftExtensions(); left != nil {
		o.m.T.Errorf("the initramfs leaves %q mounted", left)
	}
	if o.m.Agent.Phrase != nil {
		o.m.T.Error("the system could read the phrase")
	}
	o.m.NothingUnseals("the system")
	if o.m.NoInit {
		return &fs.PathError{Op: "execute", Path: "/sbin/init", Err: syscall.EIO}
	}
	panic(Halt{"system"})
}

// NothingUnseals plays what runs after initagent: it asks the TPM for whatever
// lies on the disk.
func (m *Machine) NothingUnseals(who string) {
	if m.NoTPM != nil {
		return
	}
	var sealed []*policy.Sealed
	if m.Agent.Lock != nil && m.Agent.Lock.Sealed != nil {
		sealed = append(sealed, m.Agent.Lock.Sealed)
	}
	if m.Agent.Lock != nil && m.Agent.Lock.Phrase != nil {
		sealed = append(sealed, m.Agent.Lock.Phrase.Sealed)
	}
	if m.Agent.Left.Pending != nil {
		if s, err := m.Agent.Left.Pending.SealedSecret(); err == nil {
			sealed = append(sealed, s)
		}
	}
	for _, s := range sealed {
		if secret, _, err := tpm.OpenTransport(m.Emulator).Unseal(s); err == nil {
			secret.Wipe()
			m.T.Errorf("%s unseals the machine secret (FAULTS 62, 79)", who)
		}
	}
}

type power struct{ m *Machine }

func (power) Reboot() error { panic(Halt{"reboot"}) }

func (power) PowerOff() error { panic(Halt{"off"}) }

// Store implements hw.Store: what Keep and Seed have returned for survives.
type Store struct{ M *Machine }

func (s Store) files() map[string][]byte {
	if s.M.OpenVolume != nil {
		return s.M.Volumes[*s.M.OpenVolume]
	}
	return map[string][]byte{} // in memory
}

func (s Store) MakeFileSystem(string, string, string) error {
	s.M.op("mkfs")
	s.M.Volumes[*s.M.OpenVolume] = map[string][]byte{}
	s.M.durable++
	return nil
}

func (s Store) Read(name string, limit int64) ([]byte, error) {
	b, ok := s.files()[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	if name == s.M.UnreadableFile {
		return nil, syscall.EIO
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s: %w: more than %d bytes", name, hw.ErrUnfit, limit)
	}
	return slices.Clone(b), nil
}

func (s Store) Keep(name string, content []byte) error {
	s.M.op("root keep " + name)
	if name == s.M.FullFile || s.M.FullRoot {
		return fmt.Errorf("write %s: %w", name, hw.Full(syscall.ENOSPC))
	}
	s.files()[name] = slices.Clone(content)
	s.M.durable++
	return nil
}

func (s Store) Remove(name string) error {
	if _, ok := s.files()[name]; !ok {
		return nil
	}
	s.M.op("root remove " + name)
	if name == s.M.StuckFile {
		return syscall.EPERM
	}
	delete(s.files(), name)
	s.M.durable++
	return nil
}

func (s Store) MakeDirectory(name string, _ fs.FileMode) error {
	if s.M.BadFiles != "" && strings.Contains(name, s.M.BadFiles) {
		return syscall.EIO
	}
	if strings.HasPrefix(name, snapshot.Directory) {
		return s.disk().MakeDirectory(name, 0)
	}
	return nil
}

func (s Store) Seed(_, name string, subvolume bool) error {
	if s.M.BadFiles != "" && strings.Contains(name, s.M.BadFiles) {
		return syscall.EIO
	}
	if _, ok := s.files()[name]; ok {
		return nil
	}
	s.M.op("root seed " + name)
	s.files()[name] = []byte{}
	if subvolume && s.M.Agent.Contract.RootFileSystem == "btrfs" {
		s.files()[name] = []byte(snapshottest.Writable)
	}
	s.M.durable++
	return nil
}

type chipSeam struct{ m *Machine }

func (c chipSeam) Open() (*tpm.TPM, error) { return c.m.OpenTPM() }

func (c chipSeam) EventLog() ([]byte, error) {
	if c.m.NoLog {
		return nil, fs.ErrNotExist
	}
	if c.m.WrongLog { // one of its digests of PCR 7
		digest := sha256.Sum256(variableData(secureboot.SecureBoot, c.m.Vars["SecureBoot"].Data))
		other := sha256.Sum256(digest[:])
		return bytes.Replace(c.m.Log, digest[:], other[:], 1), nil
	}
	return c.m.Log, nil
}

// Timer is a watchdog device that keeps what it was told.
type Timer struct {
	Limit   time.Duration
	Stopped bool
	Closed  bool
	status  uroot.Status
}

func (t *Timer) BootStatus() (uroot.Status, error) { return t.status, nil }

func (t *Timer) SetTimeout(d time.Duration) error { t.Limit = d; return nil }

func (t *Timer) Timeout() (time.Duration, error) { return t.Limit, nil }

func (t *Timer) KeepAlive() error { return nil }

func (t *Timer) MagicClose() error { t.Stopped, t.Closed = true, true; return nil }

func (t *Timer) Close() error { t.Closed = true; return nil }

// watchdog is the machine's, where it has one.
func (m *Machine) watchdog() (string, watchdog.Timer, error) {
	if m.WatchdogReset {
		return "watchdog0 (test)", &Timer{status: uroot.StatusCardReset}, nil
	}
	return "", nil, watchdog.ErrNone
}
