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
		p.note("%s", p.fate(s, keys))
		if s.Windows {
			locked := "If BitLocker is on there"
			if s.BitLocker {
				locked = "BitLocker is on there"
			}
			p.note("%s: have its recovery key at hand before you go on (https://aka.ms/myrecoverykey). It is asked for when the firmware's keys have changed", locked)
		}
	}
	switch {
	case !p.Choice.LetOthersStart:
	case !src.Others:
		p.refuse("the first start of this release does not ask whether other systems go on starting (--let-others-start): take one that was built with a newer halogen")
	default:
		p.note("other systems go on starting: %s", OthersCost)
		p.note("the first start asks for this once more, and shows the certificates that the firmware gets. Where nobody says yes there, no other system starts")
	}
}

// OthersCost is what letting other systems start costs, and what it does not, in two lines.
const OthersCost = words.OthersWeaken + "\n" + words.OthersSpare

// fate says whether another system goes on starting, and why.
func (p *Plan) fate(s System, keys contract.VendorKeys) string {
	const own = "from the first start on the firmware holds this machine's own keys"
	who := s.Name + " on " + s.Disk
	switch {
	case p.Kept != nil && !p.Choice.LetOthersStart:
		return who + " goes on starting with Secure Boot on where the HalogenOS that is kept has let it"
	case s.Windows && p.Choice.LetOthersStart:
		return who + " goes on starting: beside this machine's own keys the firmware keeps Microsoft's certificates"
	case s.Windows && keys == contract.VendorMicrosoft:
		return who + " goes on starting where the firmware's default keys have Microsoft's certificate for Windows: this release keeps those keys (VendorKeys=microsoft)"
	case s.Windows:
		return fmt.Sprintf("%s will no longer start with Secure Boot on: Microsoft has signed it, and %s (VendorKeys=%s; --let-others-start lets it start)", who, own, keys)
	case p.Choice.LetOthersStart || keys == contract.VendorMicrosoft:
		return who + " goes on starting where Microsoft has signed what it starts with (shim, as Debian, Fedora, SUSE and Ubuntu have it). With keys of its own it will no longer start with Secure Boot on"
	}
	return fmt.Sprintf("%s will no longer start with Secure Boot on: %s, and they have not signed it (--let-others-start lets it start where Microsoft has)", who, own)
}
