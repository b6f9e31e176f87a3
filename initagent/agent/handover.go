package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/pgp"
	"halogenos.internal/boot/slot"
	"halogenos.internal/boot/stateconf"
	"halogenos.internal/initagent/hw"
)

// mountState mounts what state.conf names into the system. Without a root
// partition it lies in memory and is gone at the next boot.
func (a *Agent) mountState() error {
	if a.state.Root != slot.RootOpen {
		if err := a.mount("tmpfs", a.path(StateFolder), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
			return err
		}
		a.inMemory = true
		a.Log.Say("WARNING: there is no root partition: what this system writes is gone when it stops")
	}
	text, err := os.ReadFile(a.path(systemFolder, stateconf.Path))
	if errors.Is(err, fs.ErrNotExist) {
		text, err = []byte(stateconf.Default), nil
	}
	if err != nil {
		return err
	}
	entries, err := stateconf.Parse(text)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := a.mountEntry(e); err != nil {
			return fmt.Errorf("state folder %s: %w", e.Path, err)
		}
	}
	a.mountShared()
	return nil
}

func (a *Agent) mountEntry(e stateconf.Entry) error {
	lower := a.path(systemFolder, e.Path)
	info, err := os.Lstat(lower)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the image has no such folder, so nothing can want it
	}
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("it is no folder in the image (%s)", info.Mode())
	}
	// One flat name a folder, so that no entry lies inside another's.
	name := strings.ReplaceAll(strings.Trim(e.Path, "/"), "/", "-")
	switch e.Mode {
	case stateconf.Tmpfs:
		return a.mount("tmpfs", lower, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("mode=%04o", info.Mode().Perm()|sticky(info)))
	case stateconf.Overlay:
		return a.mountOverlay(lower, filepath.Join("overlay", name), info)
	}
	return a.mountBind(lower, filepath.Join("bind", name))
}

func sticky(info fs.FileInfo) fs.FileMode {
	if info.Mode()&fs.ModeSticky != 0 {
		return 0o1000
	}
	return 0
}

// mountOverlay lays a writable folder over the image's. The upper folder takes
// the image's mode, since it is what the system sees.
func (a *Agent) mountOverlay(lower, base string, info fs.FileInfo) error {
	if err := a.Kernel.Load("overlay"); err != nil {
		return err
	}
	upper, work := filepath.Join(base, "upper"), filepath.Join(base, "work")
	for _, folder := range []string{upper, work} {
		if err := a.Store.MakeFolder(folder, info.Mode().Perm()); err != nil {
			return err
		}
	}
	return a.mount("overlay", lower, "overlay", unix.MS_NOSUID|unix.MS_NODEV,
		fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lower, a.path(StateFolder, upper), a.path(StateFolder, work)))
}

// mountBind mounts a folder of the root partition over the image's. It starts
// as a copy.
func (a *Agent) mountBind(lower, name string) error {
	if err := a.Store.Seed(lower, name); err != nil {
		return err
	}
	return a.mount(a.path(StateFolder, name), lower, "", unix.MS_BIND, "")
}

// mount mounts what must be gone before the root partition can be closed.
func (a *Agent) mount(source, target, fstype string, flags uintptr, data string) error {
	if err := a.Mounts.Mount(source, target, fstype, flags, data); err != nil {
		return err
	}
	a.mounted = append(a.mounted, target)
	return nil
}

// A report is what the running system may know of its boot.
type report struct {
	ImageID string `json:"image_id"`
	Arch    string `json:"arch"`
	Version string `json:"version"`
	Epoch   uint64 `json:"epoch"`
	// Floor is the lowest epoch that the TPM releases keys to; 0 where no TPM
	// holds one.
	Floor uint64 `json:"floor"`
	Slot  string `json:"slot"`
	Trial bool   `json:"trial"`
	// Reason says why this system was started and not the other.
	Reason string `json:"slot_reason"`
	Signed bool   `json:"signed_updates"`
	// ReleaseKey is the fingerprint of the OpenPGP key that signs updates.
	ReleaseKey string `json:"release_key,omitempty"`
	// Root says what opened the root partition: "tpm", "key", "new" where this
	// boot made it; "none" where there is none, and everything lies in memory.
	Root string `json:"root"`
	// Watchdog is the device that is handed over running; "" for none.
	Watchdog string `json:"watchdog,omitempty"`
	// WatchdogReset: the watchdog ended the boot before this one.
	WatchdogReset bool       `json:"watchdog_reset"`
	Steps         []hw.Entry `json:"steps"`
	// Total is how long it took from initagent's start until now, in ns.
	Total time.Duration `json:"total_ns"`
	// Contract is the running UKI's: what a new release is compared with.
	Contract *contract.Contract `json:"contract"`
}

// errNoSystem marks a failure to start the system's own init: the image is not
// usable.
var errNoSystem = errors.New("the system cannot be started")

// handOver ends the initramfs phase and starts the system's init.
func (a *Agent) handOver() error {
	a.forget()
	entry := a.bootEntry()
	a.note(entry)
	// From here on nothing that is bound to the initramfs phase unseals.
	if err := a.leavePhase(pcr.LeaveInitrd); err != nil {
		return err
	}
	if err := a.writeReport(entry.Reason); err != nil {
		a.Log.Say("the report of this boot was not written: %v", err)
	}
	a.Log.Say("handing over %s after initagent started", a.Log.Age())
	a.releaseWatchdog(time.Duration(a.contract.WatchdogSeconds) * time.Second)
	return fmt.Errorf("%w: %w", errNoSystem, a.Mounts.SwitchRoot(a.path(systemFolder), a.init))
}

func (a *Agent) writeReport(reason string) error {
	folder := a.path(runFolder)
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	r := report{
		ImageID: a.contract.ImageID, Arch: a.contract.Arch, Version: a.contract.Version.String(), Epoch: a.contract.Epoch, Floor: a.state.Floor,
		Slot: a.state.Booted.String(), Trial: a.state.Trial, Reason: reason, Signed: len(a.contract.ReleaseKey) > 0,
		Root: a.openedBy(), WatchdogReset: a.bitten, Steps: a.Log.Entries(), Total: a.Log.Total(), Contract: a.contract,
	}
	if key, err := pgp.ParseKey(a.contract.ReleaseKey); r.Signed && err == nil {
		r.ReleaseKey = key.Fingerprint().String()
	}
	if a.dog != nil && a.contract.WatchdogSeconds > 0 {
		r.Watchdog = a.dog.Name
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(folder, "boot.json"), append(text, '\n'), 0o644)
}

// openedBy says what opened the root partition.
func (a *Agent) openedBy() string {
	switch {
	case a.state.Root != slot.RootOpen:
		return "none"
	case a.facts.Unlock == slot.Done:
		return "tpm"
	case a.facts.Key == slot.Done:
		return "key"
	}
	return "new"
}
