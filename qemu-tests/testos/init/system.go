package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// system is what the program knows and has changed.
type system struct {
	started  time.Time
	problems []string // for the report
	hung     atomic.Bool
	fed      map[string]*os.File // watchdogs
}

func (s *system) problem(format string, args ...any) {
	s.problems = append(s.problems, oneLine(fmt.Sprintf(format, args...)))
}

// mountMissing mounts the kernel's file systems where the initramfs has not; so the
// program also works as an initramfs's own /init.
func (s *system) mountMissing() {
	type mount struct {
		target, kind, probe string
		flags               uintptr
	}
	const plain = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	for _, m := range []mount{
		{"/proc", "proc", "/proc/self", plain},
		{"/sys", "sysfs", "/sys/kernel", plain},
		{"/dev", "devtmpfs", "/dev/null", unix.MS_NOSUID},
		{"/run", "tmpfs", "", unix.MS_NOSUID | unix.MS_NODEV},
		{"/sys/firmware/efi/efivars", "efivarfs", "", plain},
		{"/sys/kernel/security", "securityfs", "/sys/kernel/security/lockdown", plain},
	} {
		var st, parent unix.Stat_t
		if unix.Stat(m.target, &st) != nil {
			if os.MkdirAll(m.target, 0o755) != nil || unix.Stat(m.target, &st) != nil {
				continue // not on this machine: no EFI, or a read-only tree without the directory
			}
		}
		if m.probe != "" && unix.Access(m.probe, unix.F_OK) == nil {
			continue
		}
		if m.probe == "" && unix.Stat(filepath.Dir(m.target), &parent) == nil && parent.Dev != st.Dev {
			continue
		}
		if err := mountAs(m.kind, m.target, m.kind, m.flags); err != nil {
			s.problem("%v", err)
		}
	}
}

// quiet keeps the kernel's messages from coming between the bytes of our lines; only
// emergencies are still printed. They stay readable with the command dmesg.
func (s *system) quiet() {
	if err := os.WriteFile("/proc/sys/kernel/printk", []byte("1"), 0); err != nil {
		s.problem("quiet console: %v", err)
	}
}

// feedWatchdogs takes over every watchdog that is running already, as the one before
// us left it, and feeds it until the command hang.
func (s *system) feedWatchdogs() {
	s.fed = make(map[string]*os.File)
	paths, _ := filepath.Glob("/sys/class/watchdog/watchdog*") // the pattern is good
	for _, path := range paths {
		name := filepath.Base(path)
		if text(filepath.Join(path, "state")) != "active" {
			continue
		}
		f, err := os.OpenFile("/dev/"+name, os.O_WRONLY, 0)
		if err != nil {
			s.problem("watchdog %s: %v", name, err)
			continue
		}
		s.fed[name] = f
		go func() {
			for !s.hung.Load() {
				_, _ = f.Write([]byte{0}) // a watchdog that refuses food bites, which tells
				time.Sleep(time.Second)
			}
		}()
	}
}

// setWatchdogs sets how many seconds the watchdogs that are fed wait for the next
// time (kernel documentation, watchdog/watchdog-api.rst).
func (s *system) setWatchdogs(seconds string) error {
	n, err := strconv.Atoi(seconds)
	if err != nil {
		return err
	}
	if len(s.fed) == 0 {
		return errors.New("no watchdog is fed")
	}
	var errs []error
	for name, f := range s.fed {
		if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.WDIOC_SETTIMEOUT, n); err != nil {
			errs = append(errs, fmt.Errorf("watchdog %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// calm makes file systems whole before the machine is switched off: what can be is
// made read-only.
func calm() {
	unix.Sync()
	for _, m := range mounts() {
		_ = unix.Mount("", m.Target, "", unix.MS_REMOUNT|unix.MS_RDONLY, "") // one that is busy was at least synced
	}
	unix.Sync()
}

// text returns a file's content without white space at its ends, "" when it cannot
// be read.
func text(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// encode renders one line of the protocol.
func encode(word string, value any) (string, error) {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false) // people read it too
	if err := e.Encode(value); err != nil {
		return "", err
	}
	return word + " " + strings.TrimSuffix(b.String(), "\n"), nil
}

// oneLine keeps a message on its line.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' {
			return ' '
		}
		return r
	}, s)
}
