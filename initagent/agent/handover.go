package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/slot"
	"halogenos.internal/boot/stateconf"
	"halogenos.internal/initagent/hw"
)

// mountState mounts what state.conf names into the system. Without a root
// partition it lies in memory and is gone at the next boot.
func (a *Agent) mountState() error {
	if a.state.Root != slot.RootOpen {
		if err := a.Mounts.Mount("tmpfs", stateRoot, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
			return err
		}
		a.Log.Say("WARNING: there is no root partition: what this system writes is gone when it stops")
	}
	text, err := os.ReadFile(filepath.Join(sysroot, stateconf.Path))
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
	return nil
}

func (a *Agent) mountEntry(e stateconf.Entry) error {
	lower := filepath.Join(sysroot, e.Path)
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
		return a.Mounts.Mount("tmpfs", lower, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("mode=%04o", info.Mode().Perm()|sticky(info)))
	case stateconf.Overlay:
		return a.mountOverlay(lower, filepath.Join(stateRoot, "overlay", name), info)
	}
	return a.mountBind(lower, filepath.Join(stateRoot, "bind", name))
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
	for _, dir := range []string{upper, work} {
		if err := os.MkdirAll(dir, info.Mode().Perm()); err != nil {
			return err
		}
	}
	return a.Mounts.Mount("overlay", lower, "overlay", unix.MS_NOSUID|unix.MS_NODEV,
		fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lower, upper, work))
}

// mountBind mounts a folder of the root partition over the image's. It starts
// as a copy, made beside it and renamed when it is complete and on the disk:
// cut before the rename, the copy is made again; cut after it, it is there.
func (a *Agent) mountBind(lower, folder string) error {
	if _, err := os.Lstat(folder); errors.Is(err, fs.ErrNotExist) {
		if err := seed(lower, folder); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	return a.Mounts.Mount(folder, lower, "", unix.MS_BIND, "")
}

// A report is what the running system may know of its boot.
type report struct {
	ImageID string     `json:"image_id"`
	Version string     `json:"version"`
	Epoch   uint64     `json:"epoch"`
	Slot    string     `json:"slot"`
	Trial   bool       `json:"trial"`
	Signed  bool       `json:"signed_updates"`
	Steps   []hw.Entry `json:"steps"`
}

// handOver ends the initramfs phase and starts the system's init.
func (a *Agent) handOver() error {
	// From here on nothing that is bound to the initramfs phase unseals.
	if err := a.TPM.Phase(pcr.LeaveInitrd); err != nil {
		return err
	}
	if err := a.writeReport(); err != nil {
		a.Log.Say("the report of this boot was not written: %v", err)
	}
	return a.Mounts.SwitchRoot(sysroot, a.init)
}

func (a *Agent) writeReport() error {
	if err := os.MkdirAll(runFolder, 0o755); err != nil {
		return err
	}
	text, err := json.MarshalIndent(report{
		ImageID: a.contract.ImageID, Version: a.contract.Version.String(), Epoch: a.contract.Epoch,
		Slot: a.state.Booted.String(), Trial: a.state.Trial, Signed: len(a.contract.ReleaseKey) > 0,
		Steps: a.Log.Entries(),
	}, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(runFolder, "boot.json"), append(text, '\n'), 0o644)
}
