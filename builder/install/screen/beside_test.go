package screen

import (
	"testing"

	"github.com/gdamore/tcell/v2"

	"halogenos.internal/builder/install"
)

// Where other systems would no longer start, it is asked whether they shall, with what that
// costs; no is what the list starts on.
func TestLetsOthersStart(t *testing.T) {
	for name, c := range map[string]struct {
		keys []tcell.Key
		want string
	}{"no": {[]tcell.Key{tcell.KeyEnter}, "/dev/nvme0n1, beside"}, "yes": {[]tcell.Key{tcell.KeyDown, tcell.KeyEnter}, "/dev/nvme0n1, beside, others start"}} {
		t.Run(name, func(t *testing.T) {
			f := twoDisks()
			f.asksOthers = true
			f.disks[1].Systems = []install.System{{Name: "Windows", Disk: "/dev/nvme0n1", Windows: true}}
			f.disks[1].Free = 30 << 30
			p := start(t, f)
			p.sees("which disk?")
			p.presses(tcell.KeyDown, tcell.KeyEnter)
			p.sees("Use the free space (30720 MiB)")
			p.presses(tcell.KeyEnter)
			p.sees("Let other systems go on starting with Secure Boot on?")
			p.sees("Any program that Microsoft has signed")
			p.sees("(PCR 4 and 7)")
			p.presses(tcell.KeyEscape)
			p.sees("which disk?")
			p.presses(tcell.KeyDown, tcell.KeyEnter)
			p.sees("Use the free space (30720 MiB)")
			p.presses(tcell.KeyEnter)
			p.sees("> No")
			p.presses(c.keys...)
			p.sees("Nothing on /dev/nvme0n1 is erased")
			p.types("nvme0n1")
			p.presses(tcell.KeyEnter)
			p.sees("1. restart the machine")
			if got := <-f.installed; got != c.want {
				t.Errorf("installed on %s", got)
			}
			p.presses(tcell.KeyEnter)
			if err := p.ends(); err != nil {
				t.Error(err)
			}
		})
	}
}

// Beside another system, the free space is offered, and the whole disk.
func TestUsesFreeSpace(t *testing.T) {
	f := twoDisks()
	f.disks[1].Systems = []install.System{{Name: "Windows", Disk: "/dev/nvme0n1", Windows: true}}
	f.disks[1].Free = 30 << 30
	p := start(t, f)
	p.sees("which disk?")
	p.presses(tcell.KeyDown, tcell.KeyEnter)
	p.sees("/dev/nvme0n1 has Windows on it")
	p.sees("Use the free space (30720 MiB)")
	p.presses(tcell.KeyDown, tcell.KeyEnter)
	p.sees("Everything on /dev/nvme0n1 will be lost")
	p.presses(tcell.KeyEscape)
	p.sees("which disk?")
	p.presses(tcell.KeyDown, tcell.KeyEnter)
	p.sees("its partitions stay as they are")
	p.presses(tcell.KeyEnter)
	p.sees("Nothing on /dev/nvme0n1 is erased")
	p.types("nvme0n1")
	p.presses(tcell.KeyEnter)
	p.sees("1. restart the machine")
	if got := <-f.installed; got != "/dev/nvme0n1, beside" {
		t.Errorf("installed on %s", got)
	}
	p.presses(tcell.KeyEnter)
	if err := p.ends(); err != nil {
		t.Error(err)
	}
}
