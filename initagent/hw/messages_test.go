package hw

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What kernels say of disks that fail, old and new. FAULTS 112
func TestDiskErrors(t *testing.T) {
	for _, c := range []struct{ log, disk, want string }{
		{"<6>[    1.0] sd 0:0:0:0: [sda] Attached SCSI disk\n", "sda", ""},
		{"<3>[    2.1] blk_update_request: critical medium error, dev sda, sector 2101250 op 0x0:(READ) flags 0x80700 phys_seg 1 prio class 0\n", "sda", "critical medium error of sda at sector 2101250"},
		{"<3>[    2.1] I/O error, dev nvme0n1, sector 8 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 2\n" +
			"<3>[    2.2] I/O error, dev nvme0n1, sector 16 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 2\n" +
			"<3>[    2.2] Buffer I/O error on dev dm-1, logical block 1, async page read\n", "nvme0n1", "I/O error of nvme0n1 at sector 8, and 1 more"},
		{"<3>[    2.1] I/O error, dev sr0, sector 8 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 2\n", "sda", ""},
	} {
		if got := DiskErrors([]byte(c.log), c.disk); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
	if text, err := KernelLog(); err == nil && len(text) > 0 && !strings.Contains(string(text), "\n") {
		t.Errorf("the kernel's log is %q", text)
	}
}

// While a person is asked the consoles show the kernel's errors alone, and afterwards what
// they showed before. FAULTS 112
func TestHoldMessages(t *testing.T) {
	for _, c := range []struct{ before, during, after string }{
		{"7\t4\t1\t7\n", "4\n", "7\n"},
		{"15\t4\t1\t7\n", "4\n", "15\n"},
		{"4\t4\t1\t7\n", "4\t4\t1\t7\n", "4\t4\t1\t7\n"},
		{"1\t4\t1\t7\n", "1\t4\t1\t7\n", "1\t4\t1\t7\n"},
		{"", "", ""},
	} {
		file := filepath.Join(t.TempDir(), "printk")
		if err := os.WriteFile(file, []byte(c.before), 0o600); err != nil {
			t.Fatal(err)
		}
		restore := HoldMessages(file)
		during, _ := os.ReadFile(file)
		restore()
		after, err := os.ReadFile(file)
		if err != nil || string(during) != c.during || string(after) != c.after {
			t.Errorf("%q: %q, then %q, %v", c.before, during, after, err)
		}
	}
	HoldMessages(filepath.Join(t.TempDir(), "missing"))()
}
