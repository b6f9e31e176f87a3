package install

import (
	"os"
	"path/filepath"
	"strings"
)

// pageHeader is what stands before the text of a page of vital product data
// (SPC-4, 7.8.15, "Unit Serial Number VPD page").
const pageHeader = 4

// serial is the number on a disk's label, where the disk tells it: a bus that
// has a field for it has a file, SCSI and what looks like it (SATA) a page of
// product data, and a USB disk a descriptor of the whole device. The directory is
// the disk's in sysfs.
func (l Linux) serial(directory string) string {
	for _, file := range []string{"serial", "device/serial"} {
		if s := l.text(filepath.Join(directory, file)); s != "" {
			return s
		}
	}
	device := filepath.Join(l.Sys, directory, "device")
	page, err := os.ReadFile(filepath.Join(device, "vpd_pg80"))
	if err == nil && len(page) > pageHeader {
		if s := strings.Trim(string(page[pageHeader:]), " \x00"); s != "" {
			return s
		}
	}
	place, err := filepath.EvalSymlinks(device)
	if err != nil {
		return ""
	}
	for ; len(place) > len(l.Sys); place = filepath.Dir(place) {
		if _, err := os.Stat(filepath.Join(place, "idVendor")); err == nil { // a USB device
			rest, err := filepath.Rel(l.Sys, filepath.Join(place, "serial"))
			if err != nil {
				return ""
			}
			return l.text(rest)
		}
	}
	return ""
}
