// Package vm runs one virtual machine the way a PC with UEFI and a TPM 2.0
// behaves: QEMU with OVMF (SMM, Secure Boot, variables that start in Setup
// Mode), swtpm, disks, a serial console that can be waited on and a QMP
// connection. A machine is a directory of three things that belong together: disk,
// firmware variables and TPM state.
//
// It refuses to start a directory that another process is running, to copy one
// while it runs (but see [Machine.Snapshot]), and to leave a process behind: the
// two processes die with the context, with [Machine.Close] and with the program.
// It never uses hardware virtualisation unless it is told to, so that a run means
// the same everywhere. It installs nothing: a missing tool is an error that names
// the package.
package vm

import (
	"fmt"
	"io"
	"slices"
	"time"
)

// Bus is how a disk is attached.
type Bus string

// The buses on which a disk can be attached.
const (
	Virtio Bus = "virtio"
	NVMe   Bus = "nvme"
	SATA   Bus = "sata" // 512-byte sectors only
	USB    Bus = "usb"
)

// TPMModel is the interface through which the guest sees the TPM.
type TPMModel string

// The TPM interfaces of the PC Client Platform TPM Profile, and a machine
// without a TPM.
const (
	TPMCRB TPMModel = "crb"
	TPMTIS TPMModel = "tis"
	NoTPM  TPMModel = "none"
)

// Watchdog is a hardware watchdog that resets the machine.
type Watchdog string

// The watchdogs that can be had. The default is none: the chipset's own one is
// then strapped off, as on most boards.
const (
	NoWatchdog Watchdog = ""
	I6300ESB   Watchdog = "i6300esb"
	ITCO       Watchdog = "iTCO"
)

// Disk is one more disk than the machine's own.
type Disk struct {
	Path       string // raw image
	Bus        Bus    // default Virtio
	SectorSize int    // 512 (default) or 4096 bytes
	ReadOnly   bool
	BootIndex  int    // position in the firmware's boot order; 0: not in it. The machine's own disk is at 10.
	WriteLog   string // see Options.WriteLog
}

// Forward makes a TCP port of the guest reachable at 127.0.0.1 of the host.
type Forward struct {
	Host, Guest uint16
}

// Options describe a machine. Only State is required.
type Options struct {
	State State // the machine's directory

	Memory int    // MiB, default 2048
	CPUs   int    // default 1
	Accel  string // QEMU's -accel, default "tcg"

	Bus        Bus  // of the machine's own disk, default Virtio
	SectorSize int  // of the machine's own disk, 512 (default) or 4096 bytes
	NoDisk     bool // start without the machine's own disk
	Disks      []Disk

	// Volatile skips the host's own flushes of disk writes. What the guest
	// wrote survives a killed QEMU either way; only a crash of the host loses it.
	Volatile bool
	// WriteLog names a file that records the writes and flushes of the
	// machine's own disk, in the order they completed, in the format of the
	// kernel's dm-log-writes target (Documentation/admin-guide/device-mapper/log-writes.rst).
	WriteLog string

	TPM      TPMModel // default TPMCRB
	Watchdog Watchdog

	Network  bool // user-mode networking: the guest reaches out, nothing reaches in but Forwards
	Forwards []Forward

	SMBIOS   []string  // OEM strings, SMBIOS type 11
	Clock    time.Time // the guest's clock at start; zero: the host's
	Display  bool      // a VGA display and a keyboard, for Machine.Screendump and Machine.SendKeys
	Screen   Screen    // a screen with what belongs to it, in the place of Display
	Sound    bool      // play what the sound card of a Screen gets, on the host
	PVPanic  bool      // a device by which the guest's kernel reports panics as GUEST_PANICKED events
	NoReboot bool      // a reset ends the machine

	// Firmware names the OVMF files; zero: found in the usual places.
	Firmware Firmware

	// Log is a directory for console.log (raw bytes of the serial console) and
	// qemu.log (command lines and messages of QEMU and swtpm). Default: the
	// machine's directory. Both files are overwritten by a start.
	Log string
	// Progress receives a line for each step of starting and ending.
	Progress io.Writer
	// Extra is appended to QEMU's arguments.
	Extra []string
}

// withDefaults returns the options filled in, or what is wrong with them.
func (o Options) withDefaults() (Options, error) {
	if o.State.Dir == "" {
		return o, fmt.Errorf("machine without a directory")
	}
	if o.Memory == 0 {
		o.Memory = 2048
	}
	if o.CPUs == 0 {
		o.CPUs = 1
	}
	if o.Accel == "" {
		o.Accel = "tcg"
	}
	if o.TPM == "" {
		o.TPM = TPMCRB
	}
	if o.Log == "" {
		o.Log = o.State.Dir
	}
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	if o.Memory < 64 || o.CPUs < 1 {
		return o, fmt.Errorf("machine of %d MiB and %d CPUs: need at least 64 MiB and one CPU", o.Memory, o.CPUs)
	}
	if !slices.Contains([]TPMModel{TPMCRB, TPMTIS, NoTPM}, o.TPM) {
		return o, fmt.Errorf("unknown TPM model %q: crb, tis and none are known", o.TPM)
	}
	if !slices.Contains([]Watchdog{NoWatchdog, I6300ESB, ITCO}, o.Watchdog) {
		return o, fmt.Errorf("unknown watchdog %q: i6300esb and iTCO are known", o.Watchdog)
	}
	if o.Screen != NoScreen && o.Display {
		return o, fmt.Errorf("screen %q and a plain display: a machine has one of them", o.Screen)
	}
	if o.Sound && o.Screen == NoScreen {
		return o, fmt.Errorf("sound of a machine without a screen")
	}
	if len(o.Forwards) > 0 && !o.Network {
		return o, fmt.Errorf("%d forwarded ports on a machine without a network", len(o.Forwards))
	}
	return o, nil
}

// disks returns every disk in the order of attachment, the machine's own first,
// with defaults filled in.
func (o Options) disks() ([]Disk, error) {
	var all []Disk
	if !o.NoDisk {
		all = append(all, Disk{Path: o.State.Disk(), Bus: o.Bus, SectorSize: o.SectorSize,
			BootIndex: 10, WriteLog: o.WriteLog})
	}
	all = append(all, o.Disks...)
	for i := range all {
		d := &all[i]
		if d.Bus == "" {
			d.Bus = Virtio
		}
		if d.SectorSize == 0 {
			d.SectorSize = 512
		}
		if !slices.Contains([]Bus{Virtio, NVMe, SATA, USB}, d.Bus) {
			return nil, fmt.Errorf("disk %s: unknown bus %q: virtio, nvme, sata and usb are known", d.Path, d.Bus)
		}
		if d.SectorSize != 512 && d.SectorSize != 4096 {
			return nil, fmt.Errorf("disk %s: sectors of %d bytes: 512 and 4096 are possible", d.Path, d.SectorSize)
		}
		if d.Bus == SATA && d.SectorSize != 512 {
			return nil, fmt.Errorf("disk %s: QEMU's sata disks have sectors of 512 bytes, not %d", d.Path, d.SectorSize)
		}
		if d.ReadOnly && d.WriteLog != "" {
			return nil, fmt.Errorf("disk %s: a write log of a read-only disk", d.Path)
		}
	}
	return all, nil
}
