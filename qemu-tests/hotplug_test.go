package qemutests

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/release"
	"halogenos.internal/builder/vm"
)

// plug adds a device to the running machine (QEMU QMP Reference Manual, device_add).
func (g *Guest) plug(device map[string]any) {
	g.t.Helper()
	must(g.t, g.QMP().Do(g.t.Context(), "device_add", device, nil))
}

// unplug takes a device out that needs nobody's consent, as a SCSI disk.
func (g *Guest) unplug(id string) {
	g.t.Helper()
	must(g.t, g.QMP().Do(g.t.Context(), "device_del", map[string]any{"id": id}, nil))
	ctx, cancel := g.wait()
	defer cancel()
	if _, err := g.QMP().WaitEvent(ctx, "DEVICE_DELETED"); err != nil {
		g.t.Fatal(err)
	}
}

// scsiDisk is a disk at the virtio-scsi controller "scsi", with the node "own".
var scsiDisk = map[string]any{"driver": "scsi-hd", "id": "plugged", "drive": "own", "bus": "scsi.0", "share-rw": true, "bootindex": 1}

// kernelStarts is the last that the firmware's drivers are needed for.
const kernelStarts = `EFI stub: [^\n]*\n`

// shows waits a few seconds for a text on a terminal.
func (g *Guest) shows(text string) bool {
	ctx, cancel := context.WithTimeout(g.t.Context(), 5*time.Second)
	defer cancel()
	_, err := g.WaitFor(ctx, screenText(text))
	return err == nil
}

// TestLateDisk: the disk that the firmware started from is gone when the kernel has
// started, and comes back seconds after initagent has begun to wait for it.
// FAULTS 112
func TestLateDisk(t *testing.T) {
	t.Parallel()
	g := newGuest(t, Options{State: provisioned(t).State})
	g.VM.NoDisk, g.VM.Extra = true, append(node("own", g.State().Disk()), "-device", "virtio-scsi-pci,id=scsi", "-device", asJSON(t, scsiDisk))
	g.PowerOn()
	g.Expect(kernelStarts)
	g.unplug("plugged")
	g.Expect(`halogen: measure \(`)
	time.Sleep(wayTimeout + 2*time.Second)
	if strings.Contains(g.Console().Text(), "halogen: disk ") {
		t.Fatal("a disk was found, and there is none")
	}
	g.plug(scsiDisk)
	checkSecured(t, "after a late disk", g.Boot())
	g.PowerOff()
}

// wayTimeout is how long the boot looks for its disk at the controller that the firmware
// started from only.
const wayTimeout = 3 * time.Second

// TestCard sets a machine up on an SD card, as far as its firmware goes along: it has
// no driver for cards, so the UKI comes from elsewhere and the boot manager does not run. The
// emulated card takes minutes to write a UKI: the test ends where the ESP is written.
// FAULTS 112
func TestCard(t *testing.T) {
	t.Parallel()
	g := newGuest(t, Options{Image: "testos-1"})
	g.VM.NoDisk, g.VM.Extra = true, append(node("own", g.State().Disk()), "-device", "sdhci-pci", "-device", "sd-card,drive=own",
		"-kernel", imageFile(t, "testos-1", release.UKIFile))
	g.PowerOn()
	g.Expect(`halogen: disk mmcblk0: `)
	g.stopsAt(`halogen: enroll \([^\n]*\n`)
	d := openDisk(t, g.State().Disk(), os.O_RDONLY)
	d.checkTable()
	d.checkTree(fmt.Sprintf("%x", []byte(imageRelease(t, "testos-1").RootHash)))
}

// hotPort is a slot that a card can be plugged into while the machine runs.
func hotPort() []string { return []string{"-device", "pcie-root-port,id=hot,chassis=1,slot=1"} }

// plugsDisk plugs a disk into that slot, and has the installer look again until it shows.
func (g *Guest) plugsDisk(o vm.Options, name string) {
	g.t.Helper()
	g.plug(map[string]any{"driver": "nvme", "id": "plugged", "drive": "own", "serial": "plugged", "bus": "hot", "bootindex": 10,
		"logical_block_size": o.SectorSize, "physical_block_size": o.SectorSize})
	for range 40 {
		if g.send("r"); g.shows("/dev/" + name) {
			return
		}
	}
	g.t.Fatalf("the installer never shows %s", name)
}

// plugsStick plugs a stick into a machine that stands at the recovery console, and waits
// for it to get its driver.
func (g *Guest) plugsStick() {
	g.t.Helper()
	g.plug(map[string]any{"driver": "usb-storage", "id": "stick-dev", "drive": "stick", "bus": "xhci.0"})
	for range 40 {
		if g.command("echo stick: $(cat /dev/null /sys/block/sd*/size) end", `(?m)^stick: (.*)end`)[1] == "2048 " {
			return
		}
		time.Sleep(time.Second)
	}
	g.t.Fatal("the stick has no driver")
}
