package vm

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// The descriptors that QEMU inherits: connected sockets, so that a machine has no
// socket files whose path could be too long or that could be left behind.
const (
	serialFD = 3
	qmpFD    = 4
	tpmFD    = 5
)

// arguments returns QEMU's command line (without the program) for a machine. It
// touches nothing: the files need not exist.
func arguments(o Options, fw Firmware, can Abilities) ([]string, error) {
	disks, err := o.disks()
	if err != nil {
		return nil, err
	}
	screen, err := screenArguments(o, can)
	if err != nil {
		return nil, err
	}
	a := []string{
		"-name", "halogen",
		"-nodefaults", "-no-user-config",
		"-machine", "q35,smm=on,pflash0=code,pflash1=vars",
		"-accel", o.Accel,
		"-cpu", cpuModel(o.Accel),
		"-smp", strconv.Itoa(o.CPUs),
		"-m", strconv.Itoa(o.Memory),
		// The variables may be written from SMM only; a suspend to RAM would open a way around that.
		"-global", "driver=cfi.pflash01,property=secure,value=on",
		"-global", "ICH9-LPC.disable_s3=1",
		"-blockdev", asJSON(map[string]any{"driver": "file", "node-name": "code", "filename": fw.Code, "read-only": true}),
		"-blockdev", asJSON(map[string]any{"driver": "file", "node-name": "vars", "filename": o.State.Vars()}),
		"-chardev", fmt.Sprintf("socket,id=serial,fd=%d", serialFD), "-serial", "chardev:serial",
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", qmpFD), "-mon", "chardev=qmp,mode=control",
		"-action", "panic=none",
	}
	a = append(a, screen...)
	a = append(a, tpmArguments(o.TPM)...)
	a = append(a, watchdogArguments(o.Watchdog)...)
	a = append(a, diskArguments(disks, o.Volatile)...)
	a = append(a, networkArguments(o)...)
	for _, s := range o.SMBIOS {
		a = append(a, "-smbios", "type=11,value="+escape(s))
	}
	if !o.Clock.IsZero() {
		a = append(a, "-rtc", "base="+o.Clock.UTC().Format("2006-01-02T15:04:05"))
	}
	if o.Display {
		a = append(a, "-device", "VGA")
	}
	if o.PVPanic {
		a = append(a, "-device", "pvpanic-pci")
	}
	if o.NoReboot {
		a = append(a, "-action", "reboot=shutdown")
	}
	return append(a, o.Extra...), nil
}

// cpuModel is the most that the accelerator offers; "host" is the only model that
// every hardware accelerator takes. The emulator executes a string instruction one
// element at a time: a processor that says that it is fast with those of bytes (ERMS,
// FSRM) has the kernel copy and erase memory by bytes and not by words, which takes a
// sixth of a boot. The gathers of AVX2 that Mesa makes pictures with read from wrong addresses
// in it (seen with 7.2): GNOME's first start ended by a fault in memory. What has VAES has
// AVX2, too, for Qt: without the one the other must not be there.
func cpuModel(accel string) string {
	if name, _, _ := strings.Cut(accel, ","); name == "tcg" {
		return "max,erms=off,fsrm=off,avx2=off,vaes=off,vpclmulqdq=off"
	}
	return "host"
}

func tpmArguments(model TPMModel) []string {
	if model == NoTPM {
		return nil
	}
	return []string{
		"-chardev", fmt.Sprintf("socket,id=tpm,fd=%d", tpmFD),
		"-tpmdev", "emulator,id=tpm0,chardev=tpm",
		"-device", "tpm-" + string(model) + ",tpmdev=tpm0",
	}
}

func watchdogArguments(w Watchdog) []string {
	switch w {
	case I6300ESB:
		return []string{"-device", "i6300esb", "-action", "watchdog=reset"}
	case ITCO:
		return []string{"-global", "ICH9-LPC.noreboot=off", "-action", "watchdog=reset"}
	}
	return nil
}

// diskArguments attaches disks, each with a serial number of its own (disk0,
// disk1, ...), by which a test can tell them apart in the guest.
func diskArguments(disks []Disk, volatile bool) []string {
	var a []string
	usb := false
	for i, d := range disks {
		id := fmt.Sprintf("disk%d", i)
		node := map[string]any{
			"driver": "raw", "node-name": id, "read-only": d.ReadOnly, "discard": "unmap",
			"file": map[string]any{
				"driver": "file", "filename": d.Path, "read-only": d.ReadOnly, "discard": "unmap",
				"cache": map[string]any{"no-flush": volatile},
			},
		}
		if d.WriteLog != "" {
			a = append(a, "-blockdev", asJSON(withNode(node, id+"-raw")))
			node = map[string]any{
				"driver": "blklogwrites", "node-name": id, "file": id + "-raw", "discard": "unmap",
				"log": map[string]any{"driver": "file", "filename": d.WriteLog},
				// A killed QEMU must leave a superblock that counts every entry.
				"log-sector-size": d.SectorSize, "log-super-update-interval": 1,
			}
		}
		a = append(a, "-blockdev", asJSON(node))
		device := map[string]any{"id": deviceID(i), "drive": id, "serial": id}
		if d.BootIndex > 0 {
			device["bootindex"] = d.BootIndex
		}
		switch d.Bus {
		case Virtio:
			device["driver"] = "virtio-blk-pci"
		case NVMe:
			device["driver"] = "nvme"
		case SATA:
			device["driver"], device["bus"] = "ide-hd", fmt.Sprintf("ide.%d", i%6)
		case USB:
			if !usb {
				a, usb = append(a, "-device", "qemu-xhci,id=xhci"), true
			}
			device["driver"], device["bus"] = "usb-storage", "xhci.0"
			if d.SectorSize != 512 { // which usb-storage does not tell the disk in it
				a = append(a, "-device", "usb-bot,id="+id+"-usb,bus=xhci.0,serial="+id)
				device["driver"], device["bus"] = "scsi-hd", id+"-usb.0"
			}
		}
		if d.SectorSize != 512 {
			device["logical_block_size"], device["physical_block_size"] = d.SectorSize, d.SectorSize
		}
		a = append(a, "-device", asJSON(device))
	}
	return a
}

// deviceID is QEMU's name of a disk's device.
func deviceID(disk int) string { return fmt.Sprintf("disk%d-dev", disk) }

func withNode(node map[string]any, name string) map[string]any {
	node["node-name"] = name
	return node
}

func networkArguments(o Options) []string {
	if !o.Network {
		return nil
	}
	netdev := "user,id=net0"
	for _, f := range o.Forwards {
		netdev += fmt.Sprintf(",hostfwd=tcp:127.0.0.1:%d-:%d", f.Host, f.Guest)
	}
	return []string{"-netdev", netdev, "-device", "virtio-net-pci,netdev=net0,romfile="}
}

// escape protects a comma in the value of a comma-separated QEMU option.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// asJSON renders a map of strings, numbers, booleans and maps, with sorted keys.
func asJSON(m map[string]any) string {
	b, err := json.Marshal(m)
	if err != nil {
		panic(err) // not reachable: the maps above hold nothing that JSON cannot express
	}
	return string(b)
}
