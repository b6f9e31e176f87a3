package install

import (
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/fat"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/words"
)

// A System is another system on a disk, as its partitions and EFI files show it.
type System struct {
	Name string `json:"name"` // for people
	Disk string `json:"disk"` // the disk's path
	// Windows: its boot manager is signed by Microsoft, and it may have BitLocker.
	Windows bool `json:"windows,omitempty"`
	// BitLocker: a partition of the disk is encrypted by it.
	BitLocker bool `json:"bitlocker,omitempty"`
}

// Names lists systems, for people.
func Names(systems []System) string {
	var names []string
	for _, s := range systems {
		names = append(names, s.Name)
	}
	return strings.Join(names, ", ")
}

// Partition types of Windows (Microsoft, PARTITION_INFORMATION_GPT).
var (
	typeReserved = gpt.MustGUID("e3c9e316-0b5c-4db8-817d-f92df00215ae")
	typeBasic    = gpt.MustGUID("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7")
)

// windowsManager is where Windows has its boot manager on an ESP.
const windowsManager = "EFI/Microsoft/Boot/bootmgfw.efi"

// maxSystems bounds what is listed of one ESP.
const maxSystems = 32

// Systems looks for other systems on a disk: what its EFI system partitions have in EFI,
// and what Windows's partitions show. An ESP that cannot be read shows nothing. An installer's
// stick has none: what it starts is the installer.
func Systems(r io.ReaderAt, t *gpt.Table, disk string) (found []System) {
	if layout.IsInstaller(t) {
		return nil
	}
	windows, locked, ours := false, false, map[string]bool{}
	for _, p := range t.Partitions {
		at, size := t.Bytes(p)
		content := io.NewSectionReader(r, at, size)
		switch p.Type {
		case typeReserved:
			windows = true
		case typeBasic:
			var start [11]byte
			if _, err := content.ReadAt(start[:], 0); err == nil && string(start[3:]) == "-FVE-FS-" {
				windows, locked = true, true
			}
		case layout.TypeESP:
			files, err := fat.Open(content)
			if err != nil {
				continue
			}
			if _, err := fs.Stat(files, windowsManager); err == nil {
				windows = true
			}
			for _, name := range loaders(files) {
				if !ours[name] {
					ours[name] = true
					found = append(found, System{Name: name, Disk: disk})
				}
			}
		}
	}
	if windows {
		found = append([]System{{Name: "Windows", Disk: disk, Windows: true, BitLocker: locked}}, found...)
	}
	return found
}

// loaders are the systems whose loaders an ESP has, by the names of their directories, and
// those that are in one file.
func loaders(files fs.FS) (names []string) {
	entries, err := fs.ReadDir(files, "EFI")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		if !e.IsDir() || len(names) >= maxSystems {
			continue
		}
		inside, err := fs.ReadDir(files, path.Join("EFI", e.Name()))
		if err != nil {
			continue
		}
		switch strings.ToLower(e.Name()) {
		case "boot", "microsoft", "systemd": // any system's loader, Windows's, and a boot manager
		case "linux":
			for _, f := range inside {
				if isProgram(f) && len(names) < maxSystems {
					names = append(names, fmt.Sprintf("%.64q", f.Name()))
				}
			}
		default:
			if len(inside) > 0 && containsProgram(inside) {
				names = append(names, fmt.Sprintf("%.64q", e.Name()))
			}
		}
	}
	return names
}

func isProgram(f fs.DirEntry) bool {
	return !f.IsDir() && strings.EqualFold(path.Ext(f.Name()), ".efi")
}

func containsProgram(entries []fs.DirEntry) bool {
	for _, e := range entries {
		if isProgram(e) {
			return true
		}
	}
	return false
}

// Staying are the machine's other systems that are not erased.
func (p *Plan) Staying() []System {
	if p.Choice.OtherMachine && !p.Choice.FreeSpace {
		return nil
	}
	if p.Choice.OtherMachine {
		return p.Disk.Systems
	}
	return slices.DeleteFunc(slices.Clone(p.Machine.Systems), func(s System) bool { return s.Disk == p.Disk.Path && !p.Choice.FreeSpace })
}

// checkOthers says what will no longer start, and why. What is on the disk and gets
// erased is not spoken of here.
func (p *Plan) checkOthers(src *Source) {
	keys := src.Contract.VendorKeys
	for _, s := range p.Staying() {
		p.AsksOthers = p.AsksOthers || src.Others && p.Kept == nil && keys != contract.VendorMicrosoft && !p.Choice.LetOthersStart
		p.Findings = append(p.Findings, Finding{Text: p.fate(s, keys)})
		if !s.Windows {
			continue
		}
		locked := words.InIfBitLocker
		if s.BitLocker {
			locked = words.InBitLocker
		}
		p.note("%s", words.Fixed(locked))
	}
	switch {
	case !p.Choice.LetOthersStart:
	case !src.Others:
		p.refuse(words.InOthersNotAsked)
	default:
		p.note(words.InOthersStart, words.Fixed(words.OthersWeaken), words.Fixed(words.OthersSpare))
		p.note(words.InOthersOnceMore)
	}
}

// OthersCost is what letting other systems start costs, and what it does not, in two lines.
func OthersCost() words.Line {
	return words.Linef("%s\n%s", words.Fixed(words.OthersWeaken), words.Fixed(words.OthersSpare))
}

// fate says whether another system goes on starting, and why.
func (p *Plan) fate(s System, keys contract.VendorKeys) words.Line {
	switch {
	case p.Kept != nil && !p.Choice.LetOthersStart:
		return words.Linef(words.InFateKept, s.Name, s.Disk)
	case s.Windows && p.Choice.LetOthersStart:
		return words.Linef(words.InFateLet, s.Name, s.Disk)
	case s.Windows && keys == contract.VendorMicrosoft:
		return words.Linef(words.InFateVendor, s.Name, s.Disk)
	case s.Windows:
		return words.Linef(words.InFateWindows, s.Name, s.Disk, keys)
	case p.Choice.LetOthersStart || keys == contract.VendorMicrosoft:
		return words.Linef(words.InFateShim, s.Name, s.Disk)
	}
	return words.Linef(words.InFateOther, s.Name, s.Disk)
}
