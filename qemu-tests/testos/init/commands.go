package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"halogenos.internal/builder/files"
	"halogenos.internal/qemu-tests/testos/protocol"
)

// runTime bounds how long a program may run.
const runTime = 10 * time.Minute

// command is one word of the prompt's language.
type command struct {
	usage    string
	min, max int // arguments; max -1: any number
	do       func(s *system, args []string) (any, error)
	then     func(s *system) // done after the answer was printed; it may not return
}

// commands returns the language.
func commands() map[string]command {
	return map[string]command{
		"report":     {usage: "", do: func(s *system, _ []string) (any, error) { return s.report(), nil }},
		"read":       {usage: "PATH", min: 1, max: 1, do: readFile},
		"write":      {usage: "PATH TEXT", min: 2, max: 2, do: writeText},
		"writehex":   {usage: "PATH HEX", min: 2, max: 2, do: writeHex},
		"ls":         {usage: "PATH", min: 1, max: 1, do: list},
		"sha256":     {usage: "PATH", min: 1, max: 1, do: hashFile},
		"mkdir":      {usage: "PATH", min: 1, max: 1, do: func(_ *system, a []string) (any, error) { return done(os.MkdirAll(a[0], 0o755)) }},
		"rm":         {usage: "PATH", min: 1, max: 1, do: func(_ *system, a []string) (any, error) { return done(os.RemoveAll(a[0])) }},
		"mv":         {usage: "FROM TO", min: 2, max: 2, do: func(_ *system, a []string) (any, error) { return done(os.Rename(a[0], a[1])) }},
		"cp":         {usage: "FROM TO", min: 2, max: 2, do: func(_ *system, a []string) (any, error) { return done(copyFile(a[0], a[1])) }},
		"mount":      {usage: "SOURCE TARGET TYPE [ro]", min: 3, max: 4, do: mount},
		"umount":     {usage: "TARGET", min: 1, max: 1, do: func(_ *system, a []string) (any, error) { return done(unix.Unmount(a[0], 0)) }},
		"sync":       {usage: "", do: func(*system, []string) (any, error) { unix.Sync(); return done(nil) }},
		"ddread":     {usage: "DEVICE OFFSET LENGTH", min: 3, max: 3, do: deviceRead},
		"ddwrite":    {usage: "DEVICE OFFSET HEX", min: 3, max: 3, do: deviceWrite},
		"run":        {usage: "PROGRAM [ARGUMENT...]", min: 1, max: -1, do: runProgram},
		"loadmodule": {usage: "PATH", min: 1, max: 1, do: func(_ *system, a []string) (any, error) { return done(loadModule(a[0])) }},
		"modprobe":   {usage: "NAME", min: 1, max: 1, do: func(_ *system, a []string) (any, error) { return done(modprobe(a[0])) }},
		"steal":      {usage: "DEVICE", min: 1, max: 1, do: steal},
		"mem":        {usage: "", do: func(*system, []string) (any, error) { return memory(), nil }},
		"dmesg":      {usage: "", do: kernelLog},
		"loglevel":   {usage: "NUMBER", min: 1, max: 1, do: logLevel},
		"watchdog":   {usage: "SECONDS", min: 1, max: 1, do: func(s *system, a []string) (any, error) { return done(s.setWatchdogs(a[0])) }},
		"reboot":     {usage: "", then: func(*system) { calm(); power(unix.LINUX_REBOOT_CMD_RESTART) }},
		"poweroff":   {usage: "", then: func(*system) { calm(); power(unix.LINUX_REBOOT_CMD_POWER_OFF) }},
		"reset":      {usage: "(no sync)", then: func(*system) { power(unix.LINUX_REBOOT_CMD_RESTART) }},
		"panic":      {usage: "", then: func(*system) { sysrq("c") }},
		"hang":       {usage: "(feeds no watchdog)", then: hang},
	}
}

// execute runs one command and returns its answer, and what is to be done once the
// answer is out.
func (s *system) execute(words []string) (answer string, then func(), err error) {
	all := commands()
	c, ok := all[words[0]]
	if !ok {
		known := slices.Sorted(maps.Keys(all))
		for i, name := range known {
			known[i] = strings.TrimSpace(name + " " + all[name].usage)
		}
		return "", nil, fmt.Errorf("%q is none of: %s", words[0], strings.Join(known, "; "))
	}
	args := words[1:]
	if len(args) < c.min || c.max >= 0 && len(args) > c.max {
		return "", nil, fmt.Errorf("usage: %s %s", words[0], c.usage)
	}
	var result any = struct{}{}
	if c.do != nil {
		if result, err = c.do(s, args); err != nil {
			return "", nil, err
		}
	}
	if c.then != nil {
		then = func() { c.then(s) }
	}
	answer, err = encode(protocol.OK, result)
	return answer, then, err
}

// done is the answer of a command that only succeeds or fails.
func done(err error) (any, error) { return struct{}{}, err }

func readFile(_ *system, a []string) (any, error) {
	b, err := files.Read(a[0], maxRead)
	return content(b), err
}

func writeText(_ *system, a []string) (any, error) { return done(writeSynced(a[0], []byte(a[1]))) }

func writeHex(_ *system, a []string) (any, error) {
	b, err := hex.DecodeString(a[1])
	if err != nil {
		return nil, err
	}
	return done(writeSynced(a[0], b))
}

// writeSynced writes a file with one write, as efivarfs wants it, and waits until it
// is on the disk.
func writeSynced(path string, b []byte) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(b); err != nil {
		return err
	}
	if err := f.Sync(); err != nil && !errors.Is(err, unix.EINVAL) { // what has no disk below cannot sync
		return err
	}
	return nil
}

// copyFile copies a file and waits until the copy is on the disk.
func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.Sync()
}

type entry struct {
	Name string `json:"name"`
	Mode string `json:"mode"`
	Size int64  `json:"size"`
	Link string `json:"link,omitempty"`
}

func list(_ *system, a []string) (any, error) {
	entries, err := os.ReadDir(a[0])
	if err != nil {
		return nil, err
	}
	all := []entry{}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			continue // gone meanwhile
		}
		item := entry{Name: e.Name(), Mode: info.Mode().String(), Size: info.Size()}
		if e.Type() == fs.ModeSymlink {
			item.Link, _ = os.Readlink(filepath.Join(a[0], e.Name())) // "" when gone meanwhile
		}
		all = append(all, item)
	}
	return all, nil
}

func hashFile(_ *system, a []string) (any, error) {
	f, err := os.Open(a[0])
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	return map[string]any{"sha256": hex.EncodeToString(h.Sum(nil)), "bytes": n}, err
}

func mount(_ *system, a []string) (any, error) {
	flags := uintptr(0)
	if len(a) == 4 {
		if a[3] != "ro" {
			return nil, fmt.Errorf("option %q: only ro is known", a[3])
		}
		flags = unix.MS_RDONLY
	}
	return done(mountAs(a[0], a[1], a[2], flags))
}

func deviceRead(_ *system, a []string) (any, error) {
	off, err := strconv.ParseInt(a[1], 0, 64)
	if err != nil {
		return nil, err
	}
	length, err := strconv.ParseInt(a[2], 0, 64)
	if err != nil {
		return nil, err
	}
	if length < 0 || length > maxRead {
		return nil, fmt.Errorf("length %d: from 0 to %d bytes", length, maxRead)
	}
	f, err := os.Open(a[0])
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, length)
	if _, err := f.ReadAt(b, off); err != nil {
		return nil, fmt.Errorf("read %d bytes of %s at %d: %w", length, a[0], off, err)
	}
	return map[string]string{"hex": hex.EncodeToString(b)}, nil
}

func deviceWrite(_ *system, a []string) (_ any, err error) {
	off, err := strconv.ParseInt(a[1], 0, 64)
	if err != nil {
		return nil, err
	}
	b, err := hex.DecodeString(a[2])
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(a[0], os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.WriteAt(b, off); err != nil {
		return nil, fmt.Errorf("write %d bytes to %s at %d: %w", len(b), a[0], off, err)
	}
	return done(f.Sync())
}

// tailBuffer keeps the last maxRead bytes written to it.
type tailBuffer struct{ kept []byte }

func (t *tailBuffer) Write(b []byte) (int, error) {
	t.kept = append(t.kept, b...)
	t.kept = t.kept[max(0, len(t.kept)-maxRead):]
	return len(b), nil
}

// runProgram answers with the exit status and the end of the output. That a program
// fails is not a failure of the command.
func runProgram(_ *system, a []string) (any, error) {
	ctx, cancel := context.WithTimeout(context.Background(), runTime)
	defer cancel()
	var stdout, stderr tailBuffer
	cmd := exec.CommandContext(ctx, a[0], a[1:]...)
	cmd.Env = []string{"PATH=/usr/bin:/usr/sbin:/bin:/sbin", "HOME=/root", "LC_ALL=C"}
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &stdout, &stderr, time.Second
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return nil, err
	}
	return map[string]any{"exit": cmd.ProcessState.ExitCode(), "state": cmd.ProcessState.String(),
		"stdout": string(stdout.kept), "stderr": string(stderr.kept)}, nil
}

// kernelLog answers with the end of the kernel's log, as syslog(2) gives it.
func kernelLog(*system, []string) (any, error) {
	size, err := unix.Klogctl(unix.SYSLOG_ACTION_SIZE_BUFFER, nil)
	if err != nil {
		return nil, fmt.Errorf("kernel log: %w", err)
	}
	b := make([]byte, min(max(size, 0), 16<<20))
	n, err := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, b)
	if err != nil {
		return nil, fmt.Errorf("kernel log: %w", err)
	}
	return map[string]string{"text": string(b[max(0, n-maxRead):n])}, nil
}

func logLevel(_ *system, a []string) (any, error) {
	return done(os.WriteFile("/proc/sys/kernel/printk", []byte(a[0]), 0))
}

// power ends the system without another word; it returns only when the kernel
// refuses.
func power(how int) {
	fmt.Fprintln(os.Stderr, "init: reboot:", unix.Reboot(how))
}

func sysrq(key string) {
	// Whatever the machine allows users, PID 1's write to the trigger counts.
	fmt.Fprintln(os.Stderr, "init: sysrq:", os.WriteFile("/proc/sysrq-trigger", []byte(key), 0))
}

// hang does nothing for ever: no watchdog is fed, no command obeyed.
func hang(s *system) {
	s.hung.Store(true)
	for {
		time.Sleep(time.Hour)
	}
}
