package qemutests

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"halogenos.internal/builder/vm"
	"halogenos.internal/qemu-tests/testos/protocol"
)

// TestTestOS boots the test system and has it obey every command that leaves a trace
// a test can see; reboot and poweroff are what provisioning ends with. What opens the
// root partition, and wraps the Secure Boot keys, is unsealed by nobody on it. When it
// hangs, the chipset's watchdog resets it; the other kind has TestTrialSystemHangs.
// FAULTS 79
func TestTestOS(t *testing.T) {
	t.Parallel()
	p := provisioned(t)
	began := time.Now()
	g := Machine(t, Options{State: p.State, VM: vm.Options{Watchdog: vm.ITCO}})
	r := g.Boot()
	checkWatchdog(t, r, vm.ITCO, 180)
	t.Logf("boot: %v from power on to the report, kernel up for %.1f s", time.Since(began).Round(100*time.Millisecond), r.Uptime)
	if r.OSRelease["ID"] != "testos" || r.Kernel == "" || !strings.Contains(r.Cmdline, "ttyS0") {
		t.Errorf("report of %q, kernel %q, command line %q", r.OSRelease["ID"], r.Kernel, r.Cmdline)
	}
	if len(r.PCRs) != 24 || len(r.PCRs["11"]) != 64 || strings.Trim(r.PCRs["11"], "0") == "" {
		t.Errorf("%d PCRs, PCR 11 %q: want 24, and the stub's measurements", len(r.PCRs), r.PCRs["11"])
	}
	if r.EFI["SetupMode"] == "" || r.EFI["SecureBoot"] == "" || r.EFI["StubInfo"] == "" {
		t.Errorf("EFI variables %q", r.EFI)
	}
	if r.Writable["/"] || r.Writable["/usr"] || !r.Writable["/etc"] || !r.Writable["/var"] {
		t.Errorf("writable: %v; want /etc and /var, not / and /usr", r.Writable)
	}
	if len(r.Problems) > 0 {
		t.Errorf("problems: %q", r.Problems)
	}
	checkFiles(g)
	checkDisk(t, g, r)
	checkRefusals(g)
	g.Do(nil, "panic")
	g.Expect(`Kernel panic - not syncing: sysrq triggered crash`)
	g.Boot() // panic= in the command line restarts it
	checkStealing(g)
	g.systemHangs()
	g.Boot()
}

func checkFiles(g *Guest) {
	g.t.Helper()
	text := "two words, \"quotes\"\n\tand more"
	g.Do(nil, "mkdir", "/run/x/y")
	g.Do(nil, "write", "/run/x/y/file", text)
	g.Do(nil, "mv", "/run/x/y/file", "/run/x/y/moved")
	var read struct{ Text, Hex string }
	g.Do(&read, "read", "/run/x/y/moved")
	if read.Text != text {
		g.t.Errorf("read %q, wrote %q", read.Text, text)
	}
	g.Do(nil, "writehex", "/run/x/y/moved", "00ff10")
	g.Do(&read, "read", "/run/x/y/moved")
	if read.Hex != "00ff10" {
		g.t.Errorf("read %q, wrote 00ff10", read.Hex)
	}
	var names []struct{ Name string }
	g.Do(&names, "ls", "/run/x/y")
	if len(names) != 1 || names[0].Name != "moved" {
		g.t.Errorf("ls: %v; want the one file", names)
	}
	var sum struct {
		SHA256 string
		Bytes  int
	}
	g.Do(&sum, "sha256", "/run/x/y/moved")
	if want := fmt.Sprintf("%x", sha256.Sum256([]byte{0, 0xff, 0x10})); sum.Bytes != 3 || sum.SHA256 != want {
		g.t.Errorf("sha256 %v; want %s", sum, want)
	}
	g.Do(nil, "rm", "/run/x")
	if err := g.Try(nil, "ls", "/run/x"); !errors.Is(err, ErrRefused) {
		g.t.Errorf("ls of what was removed: %v", err)
	}
	g.Do(nil, "modprobe", "loop")
	g.Do(nil, "sync")
	var mem map[string]uint64
	g.Do(&mem, "mem")
	if mem["MemTotal"] < memoryMiB<<20*3/4 {
		g.t.Errorf("memory of %d bytes", mem["MemTotal"])
	}
	g.Do(&read, "dmesg")
	if !strings.Contains(read.Text, "EFI") {
		g.t.Errorf("kernel log: %.200s", read.Text)
	}
}

func checkDisk(t *testing.T, g *Guest, r protocol.Report) {
	t.Helper()
	if len(r.Disks) == 0 {
		t.Error("no disk")
		return
	}
	d := r.Disks[0]
	if d.Serial != "disk0" || len(d.Partitions) < 2 || d.Partitions[0].Label != "esp" || d.Partitions[1].Label != "system-a" {
		g.t.Errorf("disk %+v; want disk0 with esp and system-a", d)
	}
	dev, last := "/dev/"+d.Device, d.Bytes-uint64(d.SectorSize)
	var read struct{ Hex string }
	g.Do(&read, "ddread", dev, "0x200", "8")
	if read.Hex != hex.EncodeToString([]byte("EFI PART")) {
		g.t.Errorf("GPT signature %s", read.Hex)
	}
	if err := g.Try(nil, "ddread", dev, fmt.Sprintf("%#x", last), "1024"); !errors.Is(err, ErrRefused) {
		g.t.Errorf("read beyond the disk's end: %v", err)
	}
}

func checkRefusals(g *Guest) {
	g.t.Helper()
	for _, words := range [][]string{{"no-such-command"}, {"read"}, {"read", "/absent"}, {"writehex", "/run/x", "zz"},
		{"ddread", "/dev/null", "0", "99999999"}, {"run", "/absent/program"}, {"loadmodule", "/etc/hostname"}} {
		if err := g.Try(nil, words...); !errors.Is(err, ErrRefused) {
			g.t.Errorf("%q: %v; want a refusal", words, err)
		}
	}
}
