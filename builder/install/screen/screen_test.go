package screen

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/gdamore/tcell/v2"

	"halogenos.internal/boot/words"
	"halogenos.internal/builder/install"
)

func TestInstalls(t *testing.T) {
	f := twoDisks()
	f.findings = []install.Finding{{Text: words.Fixed("Secure Boot is not in Setup Mode")}}
	p := start(t, f)
	p.sees("holds an ext file system")
	p.sees("/dev/nvme0n1  274.9 GB  Large X9")
	p.presses(tcell.KeyDown, tcell.KeyEnter)
	p.sees("Everything on /dev/nvme0n1 will be lost")
	p.sees("Secure Boot is not in Setup Mode")
	p.types("sda")
	p.presses(tcell.KeyEnter)
	p.sees("That was not nvme0n1")
	if len(f.installed) > 0 {
		t.Fatal("installed on the name of another disk")
	}
	p.types("nvme0n1")
	p.presses(tcell.KeyEnter)
	p.sees("1. restart the machine")
	p.sees("- the recovery key that the second start shows")
	p.sees("- the medium that you installed from")
	if got := <-f.installed; got != "/dev/nvme0n1" {
		t.Errorf("installed on %s", got)
	}
	p.presses(tcell.KeyEnter)
	if err := p.ends(); err != nil {
		t.Error(err)
	}
}

// A root partition that is there can be kept, and is not kept unasked.
func TestKeeps(t *testing.T) {
	f := twoDisks()
	f.disks[1].Root = &install.Root{Size: 200 << 30}
	p := start(t, f)
	p.sees("which disk?")
	p.presses(tcell.KeyDown, tcell.KeyEnter)
	p.sees("/dev/nvme0n1 has a HalogenOS on it")
	p.sees("Keep the root partition (204800 MiB)")
	p.presses(tcell.KeyDown, tcell.KeyEnter)
	p.sees("Everything on /dev/nvme0n1 will be lost")
	p.presses(tcell.KeyEscape)
	p.sees("which disk?")
	p.presses(tcell.KeyDown, tcell.KeyEnter)
	p.sees("its recovery key is asked for at the next start")
	p.presses(tcell.KeyEnter)
	p.sees("Everything on /dev/nvme0n1 but its root partition will be lost")
	p.types("nvme0n1")
	p.presses(tcell.KeyEnter)
	p.sees("1. restart the machine")
	p.sees("- the recovery key that you have: it stays the same")
	if got := <-f.installed; got != "/dev/nvme0n1, kept" {
		t.Errorf("installed on %s", got)
	}
	p.presses(tcell.KeyEnter)
	if err := p.ends(); err != nil {
		t.Error(err)
	}
}

// threeDisks are the stick that this runs from, a removable disk, and a built-in one.
func threeDisks() *fake {
	f := twoDisks()
	f.disks = append([]install.Disk{
		{Path: "/dev/sda", Model: "Stick", SectorSize: 512, Sectors: 1 << 24, Removable: true, Uses: words.List{words.Linef(words.InMounted, "sda2", "/run/installer")}},
		{Path: "/dev/sdb", Model: "Card", SectorSize: 512, Sectors: 1 << 24, Removable: true},
	}, f.disks[1])
	f.refuse = map[string]string{"/dev/sda": "/dev/sda is in use: sda2 is mounted at /run/installer"}
	return f
}

// FAULTS 112 (M15): the list starts on a disk that can be taken, and not on the stick.
func TestStartsOnADisk(t *testing.T) {
	p := start(t, threeDisks())
	p.sees("> /dev/nvme0n1")
	p.sees("  /dev/sda")
	p.sees("in use: sda2 is mounted")
	p.presses(tcell.KeyDown, tcell.KeyEnter) // it is the last
	p.sees("Everything on /dev/nvme0n1 will be lost")
	p.presses(tcell.KeyEscape, tcell.KeyUp, tcell.KeyUp, tcell.KeyUp)
	p.sees("> /dev/sda")
	p.sees("It cannot be installed to: /dev/sda is in use")
	p.presses(tcell.KeyEscape)
	if err := p.ends(); !errors.Is(err, ErrLeft) {
		t.Errorf("error %v", err)
	}
	for want, refused := range map[int][]string{0: {"no", "no", "no"}, 1: {"no", "", "no"}, 2: {"no", "", ""}} {
		if got := firstChoice(threeDisks().disks, refused); got != want {
			t.Errorf("%q: starts on disk %d, want %d", refused, got, want)
		}
	}
}

func TestRefuses(t *testing.T) {
	f := twoDisks()
	f.findings = []install.Finding{{Fatal: true, Text: words.Fixed("this machine has no TPM 2.0")}}
	p := start(t, f)
	p.sees("which disk?")
	p.presses(tcell.KeyEnter)
	p.sees("This disk cannot be installed to")
	p.sees("this machine has no TPM 2.0")
	p.presses(tcell.KeyEnter)
	p.sees("which disk?")
	p.presses(tcell.KeyEscape)
	if err := p.ends(); !errors.Is(err, ErrLeft) {
		t.Errorf("error %v", err)
	}
}

func TestFails(t *testing.T) {
	f := twoDisks()
	f.fails = errors.New("write system image: no space [red]left")
	p := start(t, f)
	p.sees("which disk?")
	p.presses(tcell.KeyEnter)
	p.sees("Type the disk's name")
	p.types("/dev/sda")
	p.presses(tcell.KeyEnter)
	p.sees("no space [red]left")
	p.presses(tcell.KeyEnter)
	if err := p.ends(); err == nil || !errors.Is(err, f.fails) {
		t.Errorf("error %v", err)
	}
}

// Who leaves while it is written learns what is left.
func TestInterrupted(t *testing.T) {
	f := twoDisks()
	f.begun = make(chan bool)
	p := start(t, f)
	p.sees("which disk?")
	p.presses(tcell.KeyEnter)
	p.sees("Type the disk's name")
	p.types("sda")
	p.presses(tcell.KeyEnter)
	<-f.begun
	p.presses(tcell.KeyCtrlC)
	if err := p.ends(); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestNoDisk(t *testing.T) {
	p := start(t, &fake{})
	p.sees("No disk was found")
	p.presses(tcell.KeyEnter)
	if err := p.ends(); !errors.Is(err, ErrLeft) {
		t.Errorf("error %v", err)
	}
}

// FAULTS 112: a disk that is plugged in while the list is shown, and one that is taken out.
func TestLooksAgain(t *testing.T) {
	f := twoDisks()
	all := f.disks
	f.disks = nil
	plug := func(disks ...install.Disk) {
		f.plugging.Lock()
		defer f.plugging.Unlock()
		f.disks = disks
	}
	p := start(t, f)
	p.sees("No disk was found")
	plug(all[1])
	p.types("r")
	p.sees("> /dev/nvme0n1")
	plug(all...)
	p.types("r")
	p.sees("/dev/sda")
	plug(all[0])
	p.types("r")
	p.sees("> /dev/sda")
	p.presses(tcell.KeyEnter)
	p.sees("Everything on /dev/sda will be lost")
	p.types("r") // here it is a letter of a name
	p.presses(tcell.KeyEnter)
	p.sees("That was not sda")
	p.presses(tcell.KeyEscape)
	p.sees("which disk?")
	p.presses(tcell.KeyEscape)
	if err := p.ends(); !errors.Is(err, ErrLeft) {
		t.Errorf("error %v", err)
	}
}

func TestMeter(t *testing.T) {
	m, now := newMeter(words.English), time.Unix(1000, 0)
	m.at(now, "writing", 0, 100<<20)
	if _, changed := m.at(now.Add(time.Millisecond), "writing", 1<<20, 100<<20); changed {
		t.Error("drawn again after a millisecond")
	}
	lines, _ := m.at(now.Add(10*time.Second), "writing", 25<<20, 100<<20)
	if !strings.Contains(lines, " 25 %  25 of 100 MiB, 30s left") {
		t.Errorf("lines %q", lines)
	}
	lines, _ = m.at(now.Add(11*time.Second), "reading", 0, 0)
	if lines != "writing: done\nreading ..." {
		t.Errorf("lines %q", lines)
	}
}
