// Package handover ends a boot in the system: it mounts what may change of it, leaves a
// report for it, and starts its init.
//
// It refuses to start anything before the TPM was told that the initramfs phase is over.
package handover

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/bootflow"
	"halogenos.internal/boot/microcode"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/pgp"
	"halogenos.internal/boot/stateconf"
	"halogenos.internal/boot/statefiles"
	"halogenos.internal/initagent/bootinfo"
	"halogenos.internal/initagent/extensions"
	"halogenos.internal/initagent/fwupd"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/ownstate"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/upper"
)

// MountState mounts what state.conf names into the system. Without a root
// partition it lies in memory and is gone at the next boot.
func MountState(h *host.Host) error {
	if h.State.Root != bootflow.RootOpen {
		if err := h.Mount("tmpfs", h.Path(rootpart.Directory), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
			return err
		}
		h.InMemory = true
		h.Log.Say("WARNING: there is no root partition: what this system writes is gone when it stops")
	}
	ownstate.TidySnapshots(h)
	var updater []byte
	if h.State.Root == bootflow.RootOpen {
		updater = fwupd.Ready(h) // before anything lies over the image
	}
	entries, err := ownstate.Entries(h)
	if err != nil {
		return err
	}
	if err := extensions.LayUsr(h); err != nil {
		return err
	}
	if !extensions.OwnOpt(entries) {
		if err := extensions.LayOpt(h, entries); err != nil {
			return err
		}
	}
	for _, e := range entries {
		if err := mountEntry(h, e); err != nil {
			return fmt.Errorf("state directory %s: %w", e.Path, err)
		}
	}
	if extensions.OwnOpt(entries) {
		if err := extensions.LayOpt(h, entries); err != nil {
			return err
		}
	}
	mountShared(h)
	if updater != nil {
		if err := layUpdater(h, updater); err != nil { // not worth a boot
			h.Log.Say("fwupd cannot update the firmware: %v", err)
		}
	}
	return nil
}

func mountEntry(h *host.Host, e stateconf.Entry) error {
	lower := h.Path(host.SystemDirectory, e.Path)
	info, err := os.Lstat(lower)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the image has no such directory, so nothing can want it
	}
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("it is not a directory in the image (%s)", info.Mode())
	}
	name := upper.Name(e.Path)
	switch e.Mode {
	case stateconf.Tmpfs:
		return h.Mount("tmpfs", lower, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("mode=%04o", info.Mode().Perm()|sticky(info)))
	case stateconf.Overlay:
		return mountOverlay(h, lower, name, info)
	}
	return mountBind(h, lower, filepath.Join(upper.Bind, name), e.GoesBack())
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
func mountOverlay(h *host.Host, lower, name string, info fs.FileInfo) error {
	if err := h.Kernel.Load("overlay"); err != nil {
		return err
	}
	top, work := upper.Overlay(ownstate.Own(h), name)
	if h.InMemory {
		for _, directory := range []string{top, work} {
			if err := h.Store.MakeDirectory(directory, info.Mode().Perm()); err != nil {
				return err
			}
		}
	}
	for _, directory := range []string{top, work} {
		if _, err := h.Store.Names(directory); err != nil { // it opens no link, which the mount follows
			return fmt.Errorf("%s has to be a directory of the root partition, and neither a link nor behind one: %w", h.Path(rootpart.Directory, directory), err)
		}
	}
	return h.Mount("overlay", lower, "overlay", unix.MS_NOSUID|unix.MS_NODEV,
		fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,redirect_dir=off,metacopy=off", lower, h.Path(rootpart.Directory, top), h.Path(rootpart.Directory, work)))
}

// mountBind mounts a directory of the root partition over the image's. It starts
// as a copy.
func mountBind(h *host.Host, lower, name string, subvolume bool) error {
	if err := h.Store.Seed(lower, name, subvolume); err != nil {
		return err
	}
	return h.Mount(h.Path(rootpart.Directory, name), lower, "", unix.MS_BIND, "")
}

// WriteReport leaves what the running system, or where the boot has stopped the recovery
// console, may know of this boot. f is what the boot has seen, and reason why it has come here.
func WriteReport(h *host.Host, f bootflow.Facts, reason string, stopped bool) error {
	directory := h.Path(statefiles.RunDirectory)
	if err := os.MkdirAll(directory, 0o755); err != nil {
		return err
	}
	r := bootinfo.Report{
		ImageID: h.Contract.ImageID, Arch: h.Contract.Arch, Version: h.Contract.Version.String(), Epoch: h.Contract.Epoch, Floor: h.State.Floor,
		Slot: h.State.Booted, Trial: h.State.Trial, Reason: reason, Stopped: stopped, Signed: len(h.Contract.ReleaseKey) > 0,
		Root: openedBy(h, f), WatchdogReset: h.Watching.Reset, Steps: h.Log.Entries(), Total: h.Log.Total(), Contract: h.Contract,
	}
	if h.Extensions != nil {
		r.Extensions, r.UnknownExtensions = h.Extensions.States, h.Extensions.Unknown
	}
	if text, err := os.ReadFile(h.Path(microcode.CPUInfo)); err == nil {
		r.Processor = microcode.ParseCPUInfo(text)
		r.Microcode = broughtMicrocode(h, r.Processor)
	}
	switch {
	case h.Record != nil:
		r.Bound = h.Record.PCRs()
	case h.Lock != nil && h.Lock.Sealed != nil:
		r.Bound = h.Lock.Sealed.PCRs
	}
	if key, err := pgp.ParseKey(h.Contract.ReleaseKey); r.Signed && err == nil {
		r.ReleaseKey = key.Fingerprint().String()
	}
	if h.Contract.WatchdogSeconds > 0 {
		r.Watchdog = h.Watching.Name()
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(directory, bootinfo.ReportName), append(text, '\n'), 0o644)
}

// broughtMicrocode is the newest revision that the UKI has for the processor; empty for
// none. The archive that Linux takes it from is a part of the initramfs.
func broughtMicrocode(h *host.Host, r *microcode.Running) string {
	if r == nil || !slices.Contains(microcode.Vendors(), microcode.Vendor(r.Vendor)) {
		return ""
	}
	file, err := os.ReadFile(h.Path("/", microcode.Vendor(r.Vendor).Path()))
	if err != nil {
		return ""
	}
	of := *r
	if text, err := os.ReadFile(h.Path(microcode.PlatformFile)); err == nil {
		of.ParsePlatform(text)
	}
	set := new(microcode.Set)
	_ = set.Add(file) // what cannot be read Linux does not load
	best, found := set.Newest(of)
	if !found {
		return ""
	}
	return fmt.Sprintf("%#x", best.Revision)
}

// openedBy says what opened the root partition.
func openedBy(h *host.Host, f bootflow.Facts) string {
	switch {
	case h.State.Root != bootflow.RootOpen:
		return "none"
	case f.Came(bootflow.Unlock) == bootflow.Done:
		return "tpm"
	case f.Came(bootflow.AskKey) == bootflow.Done:
		return "key"
	}
	return "new"
}

// ErrNoSystem marks a failure to start the system's own init: the image is not
// usable.
var ErrNoSystem = errors.New("the system cannot be started")

// Start ends the initramfs phase and starts the system's init. f is what this boot has seen.
func Start(h *host.Host, f bootflow.Facts) error {
	h.Forget()
	entry := h.BootEntry()
	h.Journal.Note(entry)
	// From here on nothing that is bound to the initramfs phase unseals.
	if err := h.LeavePhase(pcr.LeaveInitrd); err != nil {
		return err
	}
	if err := WriteReport(h, f, entry.Reason, false); err != nil {
		h.Log.Say("the report of this boot was not written: %v", err)
	}
	h.Log.Say("handing over %s after initagent started", h.Log.Age())
	h.ReleaseWatchdog(time.Duration(h.Contract.WatchdogSeconds) * time.Second)
	return fmt.Errorf("%w: %w", ErrNoSystem, h.Mounts.SwitchRoot(h.Path(host.SystemDirectory), []string{"/sbin/init"}))
}

// mountShared shows it to the running system. No program but ours wants it, so
// it is not worth a boot.
func mountShared(h *host.Host) {
	err := rootpart.MakeShared(h.Store)
	if err == nil {
		err = bindShared(h)
	}
	if err != nil {
		h.Log.Say("the system does not see the boot journal, and cannot be updated: %v", err)
	}
}

func bindShared(h *host.Host) error {
	target, err := directoryInSystem(h, statefiles.Directory)
	if err != nil {
		return err
	}
	return h.Mount(h.Path(rootpart.Directory, rootpart.Shared), target, "", unix.MS_BIND, "")
}

// updaterLayer is a directory of the initramfs, which is gone with it.
const updaterLayer = "/updater"

// layUpdater lays the program by which fwupd updates firmware, as this machine has signed
// it, over the image's, which others have signed or nobody. The layer is a file system in
// memory with these bytes alone: the root partition's directory has whatever root puts there.
// The overlay holds it when it is mounted nowhere any more.
func layUpdater(h *host.Host, program []byte) error {
	target, err := directoryInSystem(h, fwupd.Directory)
	if err != nil {
		return err
	}
	if err := h.Kernel.Load("overlay"); err != nil {
		return err
	}
	layer := h.Path(updaterLayer)
	if err := h.Mounts.Mount("tmpfs", layer, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("mode=0755,size=%d", 2*fwupd.MaxSigned)); err != nil {
		return err
	}
	err = os.WriteFile(filepath.Join(layer, fwupd.Signed), program, 0o644)
	if err == nil {
		err = h.Mount("overlay", target, "overlay", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("lowerdir=%s:%s", layer, target))
	}
	return errors.Join(err, h.Mounts.Unmount(layer))
}

// directoryInSystem makes a directory of the system where it is missing. What an
// earlier run of the system has put in its place must not lead out of the
// system: a link would be followed from the initramfs.
func directoryInSystem(h *host.Host, name string) (string, error) {
	at := h.Path(host.SystemDirectory)
	for part := range strings.SplitSeq(strings.Trim(name, "/"), "/") {
		at = path.Join(at, part)
		info, err := os.Lstat(at)
		if errors.Is(err, fs.ErrNotExist) {
			if err = os.Mkdir(at, 0o755); err == nil {
				info, err = os.Lstat(at)
			}
		}
		if err != nil {
			return "", err
		}
		if !info.IsDir() {
			return "", fmt.Errorf("%s of the system is not a directory (%s)", strings.TrimPrefix(at, h.Path(host.SystemDirectory)), info.Mode())
		}
	}
	return at, nil
}
