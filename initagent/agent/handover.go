package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/pgp"
	"halogenos.internal/boot/slot"
	"halogenos.internal/boot/stateconf"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/shared"
	"halogenos.internal/initagent/upper"
)

// mountState mounts what state.conf names into the system. Without a root
// partition it lies in memory and is gone at the next boot.
func (a *Agent) mountState() error {
	if a.State.Root != slot.RootOpen {
		if err := a.Mount("tmpfs", a.Path(rootpart.Directory), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
			return err
		}
		a.InMemory = true
		a.Log.Say("WARNING: there is no root partition: what this system writes is gone when it stops")
	}
	a.tidySnapshots()
	entries, err := a.stateEntries()
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := a.mountEntry(e); err != nil {
			return fmt.Errorf("state directory %s: %w", e.Path, err)
		}
	}
	a.mountShared()
	return nil
}

// stateEntries are the directories that the image's state.conf names.
func (a *Agent) stateEntries() ([]stateconf.Entry, error) {
	text, err := os.ReadFile(a.Path(host.SystemDirectory, stateconf.Path))
	if errors.Is(err, fs.ErrNotExist) {
		text, err = []byte(stateconf.Default), nil
	}
	if err != nil {
		return nil, err
	}
	return stateconf.Parse(text)
}

func (a *Agent) mountEntry(e stateconf.Entry) error {
	lower := a.Path(host.SystemDirectory, e.Path)
	info, err := os.Lstat(lower)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the image has no such directory, so nothing can want it
	}
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("it is no directory in the image (%s)", info.Mode())
	}
	name := upper.Name(e.Path)
	switch e.Mode {
	case stateconf.Tmpfs:
		return a.Mount("tmpfs", lower, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("mode=%04o", info.Mode().Perm()|sticky(info)))
	case stateconf.Overlay:
		return a.mountOverlay(lower, name, info)
	}
	return a.mountBind(lower, filepath.Join(upper.Bind, name), e.GoesBack())
}

// diskFails adds what the kernel knows to an error of the file system of the open root
// partition that comes from its disk. No key helps then, so that none is asked for.
func (a *Agent) diskFails(step slot.Kind, err error) error {
	mounts := step == slot.MountState || step == slot.RestoreState || a.Attached && (step == slot.Unlock || step == slot.AskKey)
	if !mounts || !errors.Is(err, syscall.EIO) || a.elsewhere(err) {
		return err
	}
	a.facts.DiskFails = true
	which := "the kernel's log names no sector"
	if messages, merr := a.Kernel.Messages(); merr == nil && hw.DiskErrors(messages, a.Disk.Name) != "" {
		which = hw.DiskErrors(messages, a.Disk.Name)
	}
	return fmt.Errorf("%w: "+slot.CannotRead+" (%s). Copy your files first: `unlock` at the recovery console opens what can be read, at /run/state; then replace the disk", err, which)
}

// elsewhere reports whether an error is of a file that does not lie on the root partition:
// the system image's, or the TPM's device.
func (a *Agent) elsewhere(err error) bool {
	p, ok := errors.AsType[*fs.PathError](err)
	return ok && (strings.HasPrefix(p.Path, a.Path(host.SystemDirectory)+"/") || strings.HasPrefix(p.Path, "/dev/"))
}

func sticky(info fs.FileInfo) fs.FileMode {
	if info.Mode()&fs.ModeSticky != 0 {
		return 0o1000
	}
	return 0
}

// mountOverlay lays this system's own upper directory over the image's. carryState has
// made it, but where the state lies in memory: there it takes the image's mode, since it is
// what the system sees.
//
// What it holds has to make sense over the next image, too: so a directory that is
// renamed is copied, and a file whose mode alone changes, whatever the kernel was built to do.
func (a *Agent) mountOverlay(lower, name string, info fs.FileInfo) error {
	if err := a.Kernel.Load("overlay"); err != nil {
		return err
	}
	top, work := upper.Overlay(a.ownState(), name)
	if a.InMemory {
		for _, directory := range []string{top, work} {
			if err := a.Store.MakeDirectory(directory, info.Mode().Perm()); err != nil {
				return err
			}
		}
	}
	return a.Mount("overlay", lower, "overlay", unix.MS_NOSUID|unix.MS_NODEV,
		fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,redirect_dir=off,metacopy=off", lower, a.Path(rootpart.Directory, top), a.Path(rootpart.Directory, work)))
}

// mountBind mounts a directory of the root partition over the image's. It starts
// as a copy.
func (a *Agent) mountBind(lower, name string, subvolume bool) error {
	if err := a.Store.Seed(lower, name, subvolume); err != nil {
		return err
	}
	return a.Mount(a.Path(rootpart.Directory, name), lower, "", unix.MS_BIND, "")
}

// errNoSystem marks a failure to start the system's own init: the image is not
// usable.
var errNoSystem = errors.New("the system cannot be started")

// handOver ends the initramfs phase and starts the system's init.
func (a *Agent) handOver() error {
	a.Forget()
	entry := a.BootEntry()
	a.Journal.Note(entry)
	// From here on nothing that is bound to the initramfs phase unseals.
	if err := a.LeavePhase(pcr.LeaveInitrd); err != nil {
		return err
	}
	if err := a.writeReport(entry.Reason); err != nil {
		a.Log.Say("the report of this boot was not written: %v", err)
	}
	a.Log.Say("handing over %s after initagent started", a.Log.Age())
	a.releaseWatchdog(time.Duration(a.Contract.WatchdogSeconds) * time.Second)
	return fmt.Errorf("%w: %w", errNoSystem, a.Mounts.SwitchRoot(a.Path(host.SystemDirectory), a.init))
}

func (a *Agent) writeReport(reason string) error {
	directory := a.Path(runDirectory)
	if err := os.MkdirAll(directory, 0o755); err != nil {
		return err
	}
	r := shared.Report{
		ImageID: a.Contract.ImageID, Arch: a.Contract.Arch, Version: a.Contract.Version.String(), Epoch: a.Contract.Epoch, Floor: a.State.Floor,
		Slot: a.State.Booted, Trial: a.State.Trial, Reason: reason, Signed: len(a.Contract.ReleaseKey) > 0,
		Root: a.openedBy(), WatchdogReset: a.WatchdogReset, Steps: a.Log.Entries(), Total: a.Log.Total(), Contract: a.Contract,
	}
	switch {
	case a.Record != nil:
		r.Bound = a.Record.PCRs()
	case a.Lock != nil && a.Lock.Sealed != nil:
		r.Bound = a.Lock.Sealed.PCRs
	}
	if key, err := pgp.ParseKey(a.Contract.ReleaseKey); r.Signed && err == nil {
		r.ReleaseKey = key.Fingerprint().String()
	}
	if a.watchdog != nil && a.Contract.WatchdogSeconds > 0 {
		r.Watchdog = a.watchdog.Name
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(directory, shared.ReportName), append(text, '\n'), 0o644)
}

// openedBy says what opened the root partition.
func (a *Agent) openedBy() string {
	switch {
	case a.State.Root != slot.RootOpen:
		return "none"
	case a.facts.Unlock == slot.Done:
		return "tpm"
	case a.facts.Key == slot.Done:
		return "key"
	}
	return "new"
}
