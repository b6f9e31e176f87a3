package qemutests

import (
	"encoding/binary"
	"encoding/hex"
	"os"
	"path"
	"strings"
	"testing"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/bootoption"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
)

// What fwupd writes before a restart that is to update firmware, where the boot manager is
// systemd-boot: its program, a capsule, and three variables.
const (
	updaterProgram = "/usr/libexec/fwupd/efi/fwupdx64.efi" // of the image
	updaterOnESP   = "EFI/systemd/fwupdx64.efi"
	capsuleOnESP   = "EFI/systemd/fw/fwupd-" + updateClass + ".cap"
	updaterName    = "Linux Firmware Updater"
	updaterOption  = 0x00f0

	efiVariables   = "/sys/firmware/efi/efivars/"
	globalVendor   = "-8be4df61-93ca-11d2-aa0d-00e098032b8c"
	updateClass    = "c0ffee00-1234-4321-8765-0123456789ab"
	updateVariable = "fwupd-" + updateClass + "-0-0abba7dc-e516-4167-bbf5-4d9d1c739416"
)

// updateInfo is fwupd's variable for a capsule (FWUP_UPDATE_INFO of fwupd-efi, version 7),
// which is to be tried; statusAt is where it says what came of it.
func updateInfo(class, way []byte) []byte {
	b := append(binary.LittleEndian.AppendUint32(nil, 7), class...)
	b = append(b, make([]byte, 4+8+16)...) // flags, hardware, time
	b = binary.LittleEndian.AppendUint32(b, 1)
	return append(b, way...)
}

const statusAt = 4 + 16 + 4 + 8 + 16

// variable writes a variable of the firmware's that is not there yet.
func (g *Guest) variable(name string, value []byte) {
	g.t.Helper()
	g.Do(nil, "writehex", efiVariables+name, hex.EncodeToString(append([]byte{7, 0, 0, 0}, value...)))
}

// startsUpdater has the firmware start a program of the image's as fwupd does.
func (g *Guest) startsUpdater(device, program string) {
	g.t.Helper()
	g.mountFAT(device)
	g.Do(nil, "rm", "/mnt/"+updaterOnESP)
	g.Do(nil, "cp", program, "/mnt/"+updaterOnESP)
	g.Do(nil, "umount", "/mnt")
	g.variable("BootNext"+globalVendor, []byte{updaterOption, 0})
	g.Do(nil, "reboot")
}

// announces writes a capsule, and what tells fwupd's program of it. No firmware takes it: it
// is of a device that there is not.
func (g *Guest) announces(device string, way func(file string) []byte) {
	g.t.Helper()
	le := binary.LittleEndian
	class := gpt.MustGUID(updateClass).Encoded()
	capsule := le.AppendUint32(class[:], 28)    // size of the header
	capsule = le.AppendUint32(capsule, 0x10000) // it persists across a reset
	capsule = le.AppendUint32(capsule, 28+64)
	g.mountFAT(device)
	g.Do(nil, "mkdir", path.Join("/mnt", path.Dir(capsuleOnESP)))
	g.Do(nil, "writehex", "/mnt/"+capsuleOnESP, hex.EncodeToString(append(capsule, make([]byte, 64)...)))
	g.Do(nil, "umount", "/mnt")
	option := way(capsuleOnESP)
	g.variable(updateVariable, updateInfo(class[:], option[6+2*(len(updaterName)+1):])) // attributes, length, description
}

// TestFirmwareUpdater: Debian's program by which fwupd updates firmware, which nobody has
// signed, does not start as it is; nor does it get this machine's signature where fwupd has
// put it. As the machine has signed it, it starts as fwupd has it started, and resets the
// machine. The TPM opens by itself after either.
func TestFirmwareUpdater(t *testing.T) {
	t.Parallel()
	p := provisioned(t)
	d := openDisk(t, p.State.Disk(), os.O_RDONLY)
	esp, err := layout.Find(d.table, layout.ESP)
	if err != nil {
		t.Fatal(err)
	}
	g := Machine(t, Options{State: p.State})
	device := ""
	for _, disk := range g.boots(oldSystem()).Disks {
		for i, part := range disk.Partitions {
			if part.Label == layout.ESPLabel && i < len(disk.Kernel) {
				device = "/dev/" + disk.Kernel[i]
			}
		}
	}
	if err := g.Try(nil, "sha256", updaterProgram); err != nil {
		t.Fatalf("the image has no program of fwupd's: %v. It comes from the Debian root file system (package fwupd-unsigned), which is made with it where RUN names this test: remove out/rootfs/debian.tar", err)
	}

	option := func(file string) []byte {
		return bootoption.Encode(updaterName, esp.Number, esp.First, esp.Last-esp.First+1, esp.UUID, `\`+strings.ReplaceAll(file, "/", `\`))
	}
	g.variable("Boot00F0"+globalVendor, option(updaterOnESP))
	g.startsUpdater(device, updaterProgram)
	g.Expect(`BdsDxe: failed to load Boot00F0 "` + updaterName + `"[^\n]*: Access Denied`)
	g.boots(oldSystem())

	g.announces(device, option)
	g.startsUpdater(device, updaterProgram+".signed")
	g.Expect(`BdsDxe: starting Boot00F0 "` + updaterName + `"`)
	g.boots(oldSystem())
	var status struct{ Hex string }
	g.Do(&status, "read", efiVariables+updateVariable)
	if b, err := hex.DecodeString(status.Hex); err != nil || len(b) < 4+statusAt+4 || binary.LittleEndian.Uint32(b[4+statusAt:]) != 2 {
		t.Errorf("the program has not noted that it tried: %+v, %v", status, err)
	}
	g.PowerOff()

	signed := path.Join(t.TempDir(), "signed")
	espRead(t, g.State(), updaterOnESP, signed)
	image, err := os.ReadFile(signed)
	must(t, err)
	if err := authenticode.VerifyOwn(image, openRoot(t, p).keys(t).DB.Certificate); err != nil {
		t.Error(err)
	}
}
