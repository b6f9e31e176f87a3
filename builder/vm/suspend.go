package vm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// migrationPoll is how often QEMU is asked whether a machine's memory is written or read.
const migrationPoll = 20 * time.Millisecond

// What the directory of a suspended machine holds besides: its memory, with what the
// processor, the devices and the TPM held, and what it was suspended by.
func (s State) memory() string      { return filepath.Join(s.Dir, "memory.zst") }
func (s State) suspendedBy() string { return filepath.Join(s.Dir, "memory.by") }

// wake forgets that the machine was suspended: its next start is one from power on.
func (s State) wake() error {
	if err := errors.Join(remove(s.memory()), remove(s.suspendedBy())); err != nil {
		return fmt.Errorf("wake machine: %w", err)
	}
	return nil
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Suspend writes the machine's memory into its directory and ends the machine. The next
// start of the directory, or of a clone of it, goes on from there; it must be one with
// the same options. Before that, what the guest has not read yet may be changed on the
// disk, but neither variables nor TPM: those come back as they were.
func (m *Machine) Suspend(ctx context.Context) error {
	path, err := shellWord(m.options.State.memory())
	if err == nil {
		err = m.qmp.Do(ctx, "stop", nil, nil)
	}
	if err == nil {
		err = m.qmp.Do(ctx, "migrate", map[string]any{"uri": "exec:zstd -q -1 >" + path}, nil)
	}
	for written := false; err == nil && !written; {
		if written, err = m.written(ctx); !written && err == nil {
			time.Sleep(migrationPoll)
		}
	}
	if err == nil {
		err = os.WriteFile(m.options.State.suspendedBy(), []byte(m.identity), 0o644)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("suspend machine: %w", err), m.options.State.wake())
	}
	m.Kill()
	return nil
}

// written tells whether all of the memory is in its file.
func (m *Machine) written(ctx context.Context) (bool, error) {
	var is struct {
		Status string `json:"status"`
		Error  string `json:"error-desc"`
	}
	if err := m.qmp.Do(ctx, "query-migrate", nil, &is); err != nil {
		return false, err
	}
	if is.Status == "failed" || is.Status == "cancelled" {
		return false, fmt.Errorf("writing the memory has %s: %s", is.Status, is.Error)
	}
	return is.Status == "completed", nil
}

// identity is what a suspended machine needs again: the same QEMU with the same
// arguments, wherever its directory is.
func identity(qemu string, args []string, s State) (string, error) {
	build, err := build(qemu)
	if err != nil {
		return "", err
	}
	return build + "\n" + strings.ReplaceAll(strings.Join(args, "\n"), s.Dir, "") + "\n", nil
}

// Make tells what a machine is made of, by QEMU's build and arguments: one that was
// suspended goes on only where that is the same. It has no window and no sound.
func Make(o Options) (string, error) {
	o, err := o.withDefaults()
	if err != nil {
		return "", err
	}
	qemu, err := findQEMU()
	if err != nil {
		return "", err
	}
	args, err := arguments(o, o.Firmware, Abilities{})
	if err != nil {
		return "", err
	}
	return identity(qemu, args, o.State)
}

func build(program string) (string, error) {
	info, err := os.Stat(program)
	if err != nil {
		return "", fmt.Errorf("emulator: %w", err)
	}
	return fmt.Sprintf("%s of %d bytes, %s", program, info.Size(), info.ModTime().UTC().Format(time.RFC3339Nano)), nil
}

// resumption returns the arguments by which a suspended machine goes on, none for one
// that was switched off.
func (m *Machine) resumption() ([]string, error) {
	s := m.options.State
	by, err := os.ReadFile(s.suspendedBy())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("suspended machine: %w", err)
	}
	if string(by) != m.identity {
		return nil, fmt.Errorf("machine %s was suspended by another QEMU or with other options:\n%sit is started with these:\n%s", s.Dir, by, m.identity)
	}
	path, err := shellWord(s.memory())
	if err != nil {
		return nil, err
	}
	return []string{"-S", "-incoming", "exec:zstd -dqc " + path}, nil
}

// resume waits until the memory is read, and lets the machine go on.
func (m *Machine) resume(ctx context.Context) error {
	for {
		status, err := m.qmp.Status(ctx)
		if err != nil {
			return err
		}
		if status != "inmigrate" {
			break
		}
		time.Sleep(migrationPoll)
	}
	// From here on the disk is no longer the one that the file belongs to.
	if err := m.options.State.wake(); err != nil {
		return err
	}
	return m.qmp.Do(ctx, "cont", nil, nil)
}

// shellWord quotes a path for the shell by which QEMU starts the compressor.
func shellWord(path string) (string, error) {
	if strings.ContainsAny(path, "'\n") {
		return "", fmt.Errorf("path %q holds a quote or a line's end", path)
	}
	return "'" + path + "'", nil
}
