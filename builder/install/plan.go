package install

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"slices"

	"halogenos.internal/boot/answers"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/words"
)

// A Disk is a disk that could be installed to.
type Disk struct {
	Path       string `json:"path"` // such as /dev/nvme0n1
	Model      string `json:"model"`
	Serial     string `json:"serial"`
	SectorSize int    `json:"sector_size"` // bytes
	Sectors    uint64 `json:"sectors"`
	ReadOnly   bool   `json:"read_only"`
	Removable  bool   `json:"removable"`
	// Sequence tells this disk from others that had its name before or get it next;
	// 0 where the kernel has none (before 5.15).
	Sequence uint64 `json:"-"`
	// NotADisk says what it is that is not a whole disk; empty for a disk.
	NotADisk string `json:"not_a_disk,omitempty"`
	// Uses says what of the disk is in use, and by what; empty when nothing is.
	Uses words.List `json:"uses,omitempty"`
	// Contents says what is on the disk, for people; empty when it looks unused.
	Contents words.List `json:"contents,omitempty"`
	// Root is the root partition that can be kept, or nil; NoRoot says why there
	// is none, where there may have been one.
	Root   *Root      `json:"root,omitempty"`
	NoRoot words.Line `json:"no_root,omitzero"`
	// Systems are the systems that are on it. Free is its largest free space in bytes,
	// beside its partitions; 0 where it has no partition table.
	Systems []System `json:"systems,omitempty"`
	Free    int64    `json:"free,omitempty"`

	table   *gpt.Table // as it was read, or nil and why not
	health  gpt.Health
	noTable error
}

// Size is the disk's size in bytes.
func (d Disk) Size() int64 { return int64(d.Sectors) * int64(d.SectorSize) }

// Same refuses a disk in the place of the one that was chosen: names of disks are given
// again, as when a stick is pulled out and another one put in.
func (d Disk) Same(now Disk) error {
	if d.Sequence == now.Sequence && d.Sectors == now.Sectors && d.SectorSize == now.SectorSize && d.Serial == now.Serial && d.Model == now.Model {
		return nil
	}
	return words.Errorf(words.InAnotherDisk, d.Path, d.Model, d.Serial, d.Size()>>20)
}

// Facts is what is known of the machine that runs the installation.
type Facts struct {
	Arch       string `json:"arch"` // as the boot contract names it
	UEFI       bool   `json:"uefi"`
	SetupMode  bool   `json:"setup_mode"`
	SecureBoot bool   `json:"secure_boot"`
	TPM        bool   `json:"tpm"` // a TPM 2.0
	// Menu is where this machine's firmware clears its Secure Boot keys; empty: not known.
	Menu words.Line `json:"setup_menu,omitzero"`
	// Systems are those on the machine's disks.
	Systems []System `json:"systems,omitempty"`
	// Others are the certificates in its firmware by which other systems start.
	Others secureboot.Database `json:"-"`
}

// String says what was found, in English.
func (f Facts) String() string { return f.Line().String() }

// Line says what was found, for people.
func (f Facts) Line() words.Line {
	if !f.UEFI {
		return words.Linef(words.InByBIOS, f.Arch)
	}
	secureBoot, chip := words.InSecureBootOff, words.InWithoutTPM
	switch {
	case f.SetupMode:
		secureBoot = words.InInSetupMode
	case f.SecureBoot:
		secureBoot = words.InSecureBootOn
	}
	if f.TPM {
		chip = words.InWithTPM
	}
	return words.Linef(words.InMachine, f.Arch, words.Fixed(secureBoot), words.Fixed(chip))
}

// menu is the way through this machine's own setup.
func (f Facts) menu() words.Line {
	if f.Menu.IsZero() {
		return words.Line{}
	}
	return words.Linef(words.InOnThisMachine, f.Menu)
}

// A Finding is something that a person should know before the disk is written.
type Finding struct {
	// Fatal: the installation is refused, since what it leaves would not start.
	Fatal bool `json:"fatal"`
	// Erases: the installation is refused unless somebody gives up what is there.
	Erases bool       `json:"erases,omitempty"`
	Text   words.Line `json:"text"`
}

// Word says of what kind a finding is, in eight characters at most; it is a text of the catalogue.
func (f Finding) Word() string {
	switch {
	case f.Fatal:
		return words.InWordRefused
	case f.Erases:
		return words.InWordErases
	}
	return words.InWordNote
}

// A Choice is what a person decides about an installation.
type Choice struct {
	// OtherMachine: the disk is meant for another machine than the one that writes
	// it, so that this one's firmware does not matter.
	OtherMachine bool
	// KeepRoot: the root partition of an earlier installation stays as it is.
	KeepRoot bool
	// FreeSpace: the free space of the disk is used, and what is on it stays.
	FreeSpace bool
	// LetOthersStart: other systems go on starting with Secure Boot on.
	LetOthersStart bool
}

// A Plan is an installation before anything is written.
type Plan struct {
	Disk     Disk             `json:"disk"`
	Release  *release.Release `json:"release"`
	Machine  Facts            `json:"machine"`
	Kept     *Root            `json:"kept,omitempty"` // the root partition that stays
	Table    *gpt.Table       `json:"-"`
	IDs      IDs              `json:"-"`
	Choice   Choice           `json:"-"`
	Findings []Finding        `json:"findings"`
	// Partitions are those of the table, for who reads the plan.
	Partitions []Partition `json:"partitions,omitempty"`
	// AsksOthers: Choice.LetOthersStart is still to be asked for, since there are systems
	// that it is about.
	AsksOthers bool `json:"-"`
}

// A Partition is one that the disk will have.
type Partition struct {
	Number int    `json:"number"`
	Label  string `json:"label"`
	Size   int64  `json:"size"` // bytes
	Kept   bool   `json:"kept,omitempty"`
}

// NewPlan decides.
func NewPlan(s *Source, d Disk, m Facts, ids IDs, c Choice) *Plan {
	p := &Plan{Disk: d, Release: s.ESP.Release, Machine: m, IDs: ids, Choice: c}
	if c.KeepRoot {
		p.keepRoot()
	}
	p.checkDisk(s, ids)
	p.checkOthers(s)
	if !c.OtherMachine {
		p.checkMachine(s.Contract)
	}
	switch {
	case s.ESP.Setup != nil && c.KeepRoot:
		p.refuse(words.InKeepNoAnswers)
	case s.ESP.Setup != nil:
		if err := s.follows(); err != nil {
			p.refuse(words.InNotFollowed, err)
		}
		p.note(words.InAnswersLie, withHash(s.ESP.Setup))
	}
	if s.unread != nil && s.ESP.Setup == nil && !c.KeepRoot {
		p.note(words.InUnread, s.unread)
	}
	if !s.Signed {
		p.note(words.InUnsigned)
	}
	return p
}

// withHash says of a file of answers that it has a password's hash.
func withHash(setup []byte) words.Line {
	if a, err := answers.Parse(setup); err == nil && a.Account == nil {
		return words.Line{}
	}
	return words.Fixed(words.InWithHash)
}

func (p *Plan) keepRoot() {
	if p.Kept = p.Disk.Root; p.Kept == nil {
		noRoot := p.Disk.NoRoot
		if noRoot.IsZero() {
			noRoot = words.Fixed(words.InNoRoot)
		}
		p.refuse(words.InNoRootToKeep, p.Disk.Path, noRoot)
		return
	}
	p.note(words.InRootStays, p.Kept.Size>>20)
}

func (p *Plan) refuse(format string, args ...any) {
	p.Findings = append(p.Findings, Finding{Fatal: true, Text: words.Linef(format, args...)})
}

func (p *Plan) note(format string, args ...any) {
	p.Findings = append(p.Findings, Finding{Text: words.Linef(format, args...)})
}

func (p *Plan) checkDisk(s *Source, ids IDs) {
	d := p.Disk
	if d.NotADisk != "" && !p.Choice.OtherMachine {
		p.refuse(words.InNotADisk, d.Path, d.NotADisk)
	}
	if d.ReadOnly {
		p.refuse(words.InWriteProtected, d.Path)
	}
	for _, use := range d.Uses {
		p.refuse(words.InDiskInUse, d.Path, use)
	}
	t, err := p.table(s, ids)
	if err == nil {
		// The UUIDs of a plan that is only looked at must differ, and no more.
		if _, rerr := layout.NewPlan(t, s.Contract.SlotSize, rand.Reader); rerr != nil {
			err = ErrNoRoom
		}
	}
	switch {
	case err != nil && p.Choice.FreeSpace:
		p.refuse(words.InNoFreeSpace, d.Path, err)
	case errors.Is(err, ErrNoRoom):
		p.refuse("%s", tooSmall(d, s.ESP.size(), s.Contract.SlotSize, p.Kept))
	case err != nil:
		p.refuse("%v", err)
	}
	p.Table = t
	if t != nil {
		for _, part := range t.Partitions {
			_, size := t.Bytes(part)
			kept := p.Kept != nil && (part == p.Kept.Partition || slices.Contains(p.Kept.More, part)) || p.Choice.FreeSpace && slices.Contains(d.table.Partitions, part)
			p.Partitions = append(p.Partitions, Partition{part.Number, part.Label, size, kept})
		}
	}
	p.checkContents()
}

// table is the one that the disk shall have.
func (p *Plan) table(s *Source, ids IDs) (*gpt.Table, error) {
	d := p.Disk
	if !p.Choice.FreeSpace {
		return Table(s.ESP, ids, d.Sectors, d.SectorSize, p.Kept)
	}
	switch {
	case p.Choice.KeepRoot:
		return nil, words.Errorf(words.InKeepOrFree)
	case d.table == nil:
		return nil, words.Errorf(words.InNoTable, cmp.Or(d.noTable, words.Errorf(words.InNotLooked)))
	case !s.Beside:
		return nil, words.Errorf(words.InOwnDisk)
	}
	return TableBeside(s.ESP, ids, d.table, d.health)
}

// checkContents says what becomes of what is on the disk.
func (p *Plan) checkContents() {
	d := p.Disk
	switch {
	case p.Choice.FreeSpace:
		p.note(words.InBeside, d.Path, d.Free>>20)
	case len(d.Contents) > 0:
		but := words.Line{}
		if p.Kept != nil {
			but = words.Linef(words.InButPartition, p.Kept.Partition.Number, p.Kept.Partition.Label)
		}
		p.Findings = append(p.Findings, Finding{Erases: true, Text: words.Linef(words.InHolds, d.Path, d.Contents, but)})
	}
	if d.Root != nil && p.Kept == nil && !p.Choice.FreeSpace {
		p.note(words.InCanBeKept, d.Path)
	}
	if !d.NoRoot.IsZero() && p.Kept == nil && !p.Choice.FreeSpace {
		p.note(words.InNothingKept, d.Path, d.NoRoot)
	}
	if d.Removable {
		p.note(words.InRemovable, d.Path)
	}
}

func (p *Plan) checkMachine(c *contract.Contract) {
	m := p.Machine
	switch {
	case m.Arch != c.Arch:
		p.refuse(words.InOtherArch, c.Arch, m.Arch)
	case !m.UEFI:
		p.refuse(words.InBIOS)
	}
	if !m.UEFI {
		return // it has no Secure Boot to speak of
	}
	if !m.TPM {
		p.missing(c.TPM, words.InNoTPM)
	}
	if !m.SetupMode {
		// It can be seen to after the installation: the first boot asks for it.
		p.note(words.InNoSetupMode, p.unsigned(), m.menu())
	}
}

// unsigned says why Setup Mode is wanted again where there were keys once.
func (p *Plan) unsigned() words.Line {
	if p.Kept == nil || !p.Machine.SecureBoot {
		return words.Line{}
	}
	return words.Fixed(words.InNotSignedYet)
}

func (p *Plan) missing(r contract.Requirement, text string) {
	if r == contract.Required {
		p.refuse("%s", words.Fixed(text))
		return
	}
	p.note("%s", words.Fixed(text))
}

// Err returns why the installation is refused; nil when it is not. erase is set
// when what the disk holds was given up.
func (p *Plan) Err(erase bool) error {
	for _, f := range p.Findings {
		if f.Fatal || f.Erases && !erase {
			return words.Errorf("%s", f.Text)
		}
	}
	return nil
}

// ErrNoRoom is returned for a disk that has no room for the layout.
var ErrNoRoom = words.Errorf(words.InDiskTooSmall)

// tooSmall says how much room is wanted.
func tooSmall(d Disk, espSize, slotSize int64, kept *Root) words.Line {
	if kept != nil {
		espSize = layout.ESPSize // less is never asked for
	}
	need, err := layout.LeastDisk(espSize, slotSize)
	switch {
	case err != nil:
		return words.Linef("%v", err) // not reachable: the boot contract would have been refused
	case kept != nil:
		all, _ := kept.behind(d.SectorSize)
		need -= all
		return words.Linef(words.InKeepNoRoom,
			(need-layout.MinRoot-layout.Align)>>20, d.Path, int64(kept.Partition.First)*int64(d.SectorSize)>>20)
	}
	return words.Linef(words.InNeedsRoom, d.Path, d.Size()>>20, need>>20)
}

// Loss says what the disk loses.
func (p *Plan) Loss() words.Line {
	if p.Choice.FreeSpace {
		return words.Linef(words.InErased, p.Disk.Path)
	}
	if p.Kept != nil {
		return words.Linef(words.InLossButRoot, p.Disk.Path)
	}
	if len(p.Disk.Systems) > 0 {
		return words.Linef(words.InLossSystems, p.Disk.Path, Names(p.Disk.Systems))
	}
	return words.Linef(words.InLoss, p.Disk.Path)
}

// Unfinished says what an installation that failed leaves.
func (p *Plan) Unfinished() words.Line {
	if p.Choice.FreeSpace {
		return words.Linef(words.InLeftOthers, p.Disk.Path)
	}
	if p.Kept != nil {
		return words.Linef(words.InLeftRoot, p.Disk.Path)
	}
	return words.Linef(words.InLeftNothing, p.Disk.Path)
}

// Next says what a person does after the installation.
func (p *Plan) Next() words.List {
	steps := words.List{words.Fixed(words.InNextMedium)}
	if !p.Machine.SetupMode {
		steps = append(steps, words.Linef(words.InNextKeys, p.Machine.menu()))
	}
	steps = append(steps, words.Fixed(words.InNextPassword))
	if p.Choice.LetOthersStart {
		steps = append(steps, words.Fixed(words.InNextOthers))
	}
	if p.Kept != nil {
		return append(steps, words.Fixed(words.InNextKept))
	}
	return append(steps, words.Fixed(words.InNextFirst))
}

// Keep says what a person keeps after the installation, and what each is for.
func (p *Plan) Keep() words.List {
	key := words.InKeepKey
	if p.Kept != nil {
		key = words.InKeepOldKey
	}
	all := words.List{words.Fixed(key), words.Fixed(words.InKeepPassword), words.Fixed(words.InKeepMedium)}
	switch stay := p.Staying(); {
	case slices.ContainsFunc(stay, func(s System) bool { return s.BitLocker }):
		all = append(all, words.Fixed(words.InKeepBitLocker))
	case slices.ContainsFunc(stay, func(s System) bool { return s.Windows }): // which may have it on another disk
		all = append(all, words.Fixed(words.InKeepIfBitLocker))
	}
	return all
}

// Install writes what was planned to the disk and reads all of it back.
func (p *Plan) Install(ctx context.Context, d Target, s *Source, progress Progress) error {
	if p.Choice.LetOthersStart {
		wish, err := secureboot.EncodeOthers(p.Machine.Others)
		if err != nil {
			return err
		}
		own := *s
		own.ESP.Others = wish
		s = &own
	}
	if p.Choice.FreeSpace {
		return InstallBeside(ctx, d, Tables{p.Disk.table, p.Table}, s, p.IDs, progress)
	}
	return Install(ctx, d, p.Table, s, p.IDs, progress)
}
