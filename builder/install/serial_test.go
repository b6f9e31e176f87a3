package install

import (
	"os"
	"path/filepath"
	"testing"
)

// As the kernel shows disks of each kind.
func TestSerial(t *testing.T) {
	sys := filepath.Join(t.TempDir(), "sys")
	put := func(name, content string) {
		path := filepath.Join(sys, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	device := func(disk, place string) {
		put("block/"+disk+"/size", "8")
		if err := os.Symlink(filepath.Join(sys, place), filepath.Join(sys, "block", disk, "device")); err != nil {
			t.Fatal(err)
		}
	}
	put("block/vda/serial", "virtio 1\n")
	put("devices/pci0/nvme/nvme0/serial", "nvme 1   \n")
	device("nvme0n1", "devices/pci0/nvme/nvme0")
	put("devices/pci0/ata1/host0/0:0:0:0/vpd_pg80", "\x00\x80\x00\x08  sata 1")
	device("sda", "devices/pci0/ata1/host0/0:0:0:0")
	put("devices/pci0/usb1/1-1/idVendor", "46f4\n")
	put("devices/pci0/usb1/1-1/serial", "usb 1\n")
	put("devices/pci0/usb1/serial", "0000:00:04.0\n") // of the hub, and no disk's
	put("devices/pci0/usb1/1-1/1-1:1.0/host6/6:0:0:0/model", "QEMU HARDDISK")
	device("sdb", "devices/pci0/usb1/1-1/1-1:1.0/host6/6:0:0:0")
	put("devices/pci0/mmc0/model", "none")
	device("mmcblk0", "devices/pci0/mmc0")
	for disk, want := range map[string]string{"vda": "virtio 1", "nvme0n1": "nvme 1", "sda": "sata 1", "sdb": "usb 1", "mmcblk0": "", "sdz": ""} {
		if have := (Linux{Sys: sys}).serial(filepath.Join("block", disk)); have != want {
			t.Errorf("serial number of %s: %q, want %q", disk, have, want)
		}
	}
}
