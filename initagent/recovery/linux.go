package recovery

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootpart"
)

// Linux is the machine that this runs on.
func Linux() (*Machine, error) {
	kernel, err := hw.NewLinuxKernel("/sys", "/lib/modules")
	if err != nil {
		return nil, err
	}
	return &Machine{
		Host: host.Host{Given: host.Given{
			Machine:   hw.Linux(kernel, "/run/esp", rootpart.Directory),
			Variables: enroll.EFIVarFS{Root: hw.EFIVars}, Random: rand.Reader, NewKeys: secureboot.Generate, Root: "/",
		}},
		Keeper: Keyring{Description: "halogen:console"}, Discard: Discard,
	}, nil
}

// Discard is BLKDISCARD (linux/fs.h): a range in bytes, which nothing reads
// again.
func Discard(f hw.File, off, length int64) error {
	device, ok := f.(*os.File)
	if !ok {
		return errors.ErrUnsupported
	}
	span := [2]uint64{uint64(off), uint64(length)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, device.Fd(), unix.BLKDISCARD, uintptr(unsafe.Pointer(&span)))
	runtime.KeepAlive(f)
	if errno != 0 {
		return fmt.Errorf("discard %d bytes: %w", length, errno)
	}
	return nil
}

// Keyring keeps what was opened in root's own keyring in the kernel's memory: on
// no file system, and gone with the machine's next start.
type Keyring struct{ Description string }

const keyType = "user"

// Keep implements Keeper.
func (k Keyring) Keep(o *Opened) error {
	secret := o.Secret.Bytes()
	defer luks2.Wipe(secret)
	both := append(append(make([]byte, 0, len(secret)+1+len(o.VolumeKey)), secret...), guard(o.Secret))
	both = append(both, o.VolumeKey...)
	defer luks2.Wipe(both)
	_, err := unix.AddKey(keyType, k.Description, both, unix.KEY_SPEC_USER_KEYRING)
	return err
}

func (k Keyring) find() (int, error) {
	id, err := unix.KeyctlSearch(unix.KEY_SPEC_USER_KEYRING, keyType, k.Description, 0)
	if errors.Is(err, unix.ENOKEY) || errors.Is(err, unix.EKEYREVOKED) || errors.Is(err, unix.EKEYEXPIRED) {
		return 0, ErrLocked
	}
	return id, err
}

// Kept implements Keeper.
func (k Keyring) Kept() (*Opened, error) {
	id, err := k.find()
	if err != nil {
		return nil, err
	}
	const most = 1 << 10
	both := make([]byte, most)
	defer luks2.Wipe(both)
	n, err := unix.KeyctlBuffer(unix.KEYCTL_READ, id, both, 0)
	if err != nil {
		return nil, fmt.Errorf("read what `unlock` has kept: %w", err)
	}
	const secretSize = 32
	if n <= secretSize+1 || n > most {
		return nil, fmt.Errorf("what `unlock` has kept has %d bytes", n)
	}
	o := &Opened{VolumeKey: append([]byte(nil), both[secretSize+1:n]...)}
	o.Secret, err = policy.SecretFrom(both[:secretSize])
	if err == nil && both[secretSize] == guarded {
		o.Secret.Guard()
	}
	return o, err
}

// guarded is the byte of a secret that goes along with a PIN. Which one that is, is not
// kept: rootlock.Lock.TakePIN.
const guarded = 1

func guard(s *policy.Secret) byte {
	if s.Guarded() {
		return guarded
	}
	return 0
}

// Forget implements Keeper.
func (k Keyring) Forget() error {
	id, err := k.find()
	if errors.Is(err, ErrLocked) {
		return nil
	}
	if err != nil {
		return err
	}
	// Revoking wipes the payload at once; unlinking alone would leave it to the
	// kernel's garbage collection.
	if _, err := unix.KeyctlInt(unix.KEYCTL_REVOKE, id, 0, 0, 0); err != nil {
		return fmt.Errorf("forget what `unlock` has kept: %w", err)
	}
	_, err = unix.KeyctlInt(unix.KEYCTL_UNLINK, id, unix.KEY_SPEC_USER_KEYRING, 0, 0)
	return err
}
