package vm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// State is the directory of a machine: disk.img, vars.fd and tpm/. The three are only
// ever copied together, since the TPM's answers depend on what the other two hold; with
// them goes the memory of a machine that is suspended.
type State struct {
	Dir string
}

// Disk is the path of the machine's own disk, a raw image.
func (s State) Disk() string { return filepath.Join(s.Dir, "disk.img") }

// Vars is the path of the firmware's variable store.
func (s State) Vars() string { return filepath.Join(s.Dir, "vars.fd") }

// TPM is the directory in which swtpm keeps the state of the TPM.
func (s State) TPM() string { return filepath.Join(s.Dir, "tpm") }

// NewState makes the directory of a machine that was never switched on: its disk a
// sparse copy of image (none when image is empty), the firmware in Setup Mode,
// the TPM fresh from the factory. The directory must be absent or empty.
func NewState(dir, image string) (State, error) {
	s, err := emptyState(dir)
	if err != nil {
		return State{}, err
	}
	if image != "" {
		if err := CopySparse(s.Disk(), image); err != nil {
			return State{}, fmt.Errorf("new machine: %w", err)
		}
	}
	if err := s.ResetVars(); err != nil {
		return State{}, err
	}
	return s, s.ResetTPM()
}

// emptyState makes a directory to fill, with its absolute path, since swtpm needs one.
func emptyState(dir string) (State, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return State{}, fmt.Errorf("machine directory: %w", err)
	}
	if err := os.MkdirAll(abs, 0o755); err != nil {
		return State{}, fmt.Errorf("machine directory: %w", err)
	}
	entries, err := os.ReadDir(abs)
	if err != nil {
		return State{}, fmt.Errorf("machine directory: %w", err)
	}
	if len(entries) > 0 {
		return State{}, fmt.Errorf("machine directory %s is not empty: it holds %s", abs, entries[0].Name())
	}
	return State{Dir: abs}, nil
}

// ResetVars gives the machine the variables of a new mainboard: Setup Mode, no
// boot entries.
func (s State) ResetVars() error {
	fw, err := s.firmware()
	if err != nil {
		return err
	}
	return s.UseFirmware(fw)
}

// UseFirmware gives the machine the variables of a new mainboard with that firmware.
func (s State) UseFirmware(fw Firmware) error {
	if err := CopySparse(s.Vars(), fw.Vars); err != nil {
		return fmt.Errorf("firmware variables: %w", err)
	}
	return s.wake()
}

// firmware returns the installed build that the machine's variables belong to: the size
// of the store tells, and a build reads no other's. Without variables it is the preferred one.
func (s State) firmware() (Firmware, error) {
	info, err := os.Stat(s.Vars())
	if errors.Is(err, fs.ErrNotExist) {
		return FindFirmware()
	}
	if err != nil {
		return Firmware{}, fmt.Errorf("firmware variables: %w", err)
	}
	for _, fw := range knownFirmware() {
		if vars, err := os.Stat(fw.Vars); err == nil && fw.check() == nil && vars.Size() == info.Size() {
			return fw, nil
		}
	}
	return Firmware{}, fmt.Errorf("no firmware that is installed has %d bytes of variables, as %s has: the machine was made with another build of OVMF", info.Size(), s.Vars())
}

// ResetTPM gives the machine another TPM: one with new seeds, that never saw this
// disk.
func (s State) ResetTPM() error {
	if err := os.RemoveAll(s.TPM()); err != nil {
		return fmt.Errorf("reset TPM: %w", err)
	}
	if err := os.Mkdir(s.TPM(), 0o755); err != nil {
		return fmt.Errorf("reset TPM: %w", err)
	}
	return s.wake()
}

// Clone copies the machine into a new directory, which must be absent or empty. The
// machine must not be running. Blocks are shared where the file system can, and
// holes stay holes.
func (s State) Clone(dir string) (State, error) {
	unlock, err := s.lock(unix.LOCK_SH)
	if err != nil {
		return State{}, err
	}
	defer unlock()
	return s.copyTo(dir)
}

// Replace puts the machine back to what from holds; neither may be running.
func (s State) Replace(from State) error {
	unlockTo, err := s.lock(unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer unlockTo()
	unlockFrom, err := from.lock(unix.LOCK_SH)
	if err != nil {
		return err
	}
	defer unlockFrom()
	for _, path := range []string{s.Disk(), s.Vars(), s.TPM(), s.memory(), s.suspendedBy()} {
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("restore machine: %w", err)
		}
	}
	return from.copyInto(s)
}

// Forget removes the machine from its directory, with the logs that Start leaves there
// and nothing else; it may be absent. The machine must not be running.
func (s State) Forget() error {
	unlock, err := s.lock(unix.LOCK_EX)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	for _, path := range []string{s.Disk(), s.Vars(), s.TPM(), s.memory(), s.suspendedBy(), filepath.Join(s.Dir, consoleLog), filepath.Join(s.Dir, qemuLog), s.lockFile()} {
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("forget machine: %w", err)
		}
	}
	return nil
}

// copyTo copies without asking whether the machine runs.
func (s State) copyTo(dir string) (State, error) {
	to, err := emptyState(dir)
	if err != nil {
		return State{}, err
	}
	return to, s.copyInto(to)
}

func (s State) copyInto(to State) error {
	for _, pair := range [][2]string{{s.Disk(), to.Disk()}, {s.Vars(), to.Vars()}, {s.memory(), to.memory()}, {s.suspendedBy(), to.suspendedBy()}} {
		err := CopySparse(pair[1], pair[0])
		if errors.Is(err, fs.ErrNotExist) && pair[0] != s.Vars() {
			continue // a machine may have no disk of its own, and is rarely suspended
		}
		if err != nil {
			return fmt.Errorf("copy machine: %w", err)
		}
	}
	if err := os.MkdirAll(to.TPM(), 0o755); err != nil {
		return fmt.Errorf("copy machine: %w", err)
	}
	entries, err := os.ReadDir(s.TPM())
	if err != nil {
		return fmt.Errorf("copy machine: %w", err)
	}
	for _, e := range entries {
		// swtpm's lock belongs to the process, not to the TPM.
		if strings.HasPrefix(e.Name(), ".") || !e.Type().IsRegular() {
			continue
		}
		if err := CopySparse(filepath.Join(to.TPM(), e.Name()), filepath.Join(s.TPM(), e.Name())); err != nil {
			return fmt.Errorf("copy machine: %w", err)
		}
	}
	return nil
}

func (s State) lockFile() string { return filepath.Join(s.Dir, ".lock") }

// lock takes the directory for this process, or fails at once when it is taken. The
// lock ends with the process, however that ends.
func (s State) lock(how int) (unlock func(), err error) {
	f, err := os.OpenFile(s.lockFile(), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock machine: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); err != nil {
		_ = f.Close() // nothing was written
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("machine %s is in use: it is running or being copied", s.Dir)
		}
		return nil, fmt.Errorf("lock machine %s: %w", s.Dir, err)
	}
	return func() { _ = f.Close() }, nil
}
