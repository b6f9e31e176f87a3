package install

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"

	"halogenos.internal/boot/answers"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/secureboot"
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
	Uses []string `json:"uses,omitempty"`
	// Contents says what is on the disk, for people; empty when it looks unused.
	Contents []string `json:"contents,omitempty"`
	// Root is the root partition that can be kept, or nil; NoRoot says why there
	// is none, where there may have been one.
	Root   *Root  `json:"root,omitempty"`
	NoRoot string `json:"no_root,omitempty"`
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
	return fmt.Errorf("%s is another disk now (it was %s %s, %d MiB): nothing was written; choose again", d.Path, d.Model, d.Serial, d.Size()>>20)
}

// Facts is what is known of the machine that runs the installation.
type Facts struct {
	Arch       string `json:"arch"` // as the boot contract names it
	UEFI       bool   `json:"uefi"`
	SetupMode  bool   `json:"setup_mode"`
	SecureBoot bool   `json:"secure_boot"`
	TPM        bool   `json:"tpm"` // a TPM 2.0
	// Menu is where this machine's firmware clears its Secure Boot keys; empty: not known.
	Menu string `json:"setup_menu,omitempty"`
	// Systems are those on the machine's disks.
	Systems []System `json:"systems,omitempty"`
	// Others are the certificates in its firmware by which other systems start.
	Others secureboot.Database `json:"-"`
}

// String says what was found, for people.
func (f Facts) String() string {
	if !f.UEFI {
		return f.Arch + ", started by a BIOS"
	}
	secureBoot, chip := "Secure Boot off", "no TPM 2.0"
	switch {
	case f.SetupMode:
		secureBoot = "Secure Boot in Setup Mode"
	case f.SecureBoot:
		secureBoot = "Secure Boot on"
	}
	if f.TPM {
		chip = "TPM 2.0"
	}
	return fmt.Sprintf("%s, UEFI, %s, %s", f.Arch, secureBoot, chip)
}

// menu is the way through this machine's own setup.
func (f Facts) menu() string {
	if f.Menu == "" {
		return ""
	}
	return ". On this machine, " + f.Menu
}

// A Finding is something that a person should know before the disk is written.
type Finding struct {
	// Fatal: the installation is refused, since what it leaves would not start.
	Fatal bool `json:"fatal"`
	// Erases: the installation is refused unless somebody gives up what is there.
	Erases bool   `json:"erases,omitempty"`
	Text   string `json:"text"`
}

// Word says of what kind a finding is, in eight characters.
func (f Finding) Word() string {
	switch {
	case f.Fatal:
		return "REFUSED "
	case f.Erases:
		return "ERASES  "
	}
	return "note    "
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
		p.refuse("a root partition that is kept has its accounts and settings: leave the answers for a first start (--setup) out")
	case s.ESP.Setup != nil:
		if err := s.follows(); err != nil {
			p.refuse("the answers for the first start (--setup) are not for this release, and no machine of it would take them: %v", err)
		}
		p.note("the answers for the first start%s lie on the EFI system partition until the second start, where anyone who has the disk can read them; an image that does not ask (FirstStart=none) does not take them", withHash(s.ESP.Setup))
	}
	if s.unread != nil && s.ESP.Setup == nil && !c.KeepRoot {
		p.note("the release's list of languages, keyboards and the like cannot be read (%v): the first start asks for them, and not the installer", s.unread)
	}
	if !s.Signed {
		p.note("nobody has signed this release: the one who gave it to you vouches for it")
	}
	return p
}

// withHash says of a file of answers that it has a password's hash.
func withHash(setup []byte) string {
	if a, err := answers.Parse(setup); err == nil && a.Account == nil {
		return ""
	}
	return ", a password's hash among them,"
}

func (p *Plan) keepRoot() {
	if p.Kept = p.Disk.Root; p.Kept == nil {
		p.refuse("no root partition of %s can be kept: %s; without --keep-root everything on the disk is erased", p.Disk.Path, cmp.Or(p.Disk.NoRoot, ErrNoRoot.Error()))
		return
	}
	p.note("the root partition (%d MiB) stays as it is, and opens with its recovery key at the first start: without that key, do not go on", p.Kept.Size>>20)
}

func (p *Plan) refuse(format string, args ...any) {
	p.Findings = append(p.Findings, Finding{Fatal: true, Text: fmt.Sprintf(format, args...)})
}

func (p *Plan) note(format string, args ...any) {
	p.Findings = append(p.Findings, Finding{Text: fmt.Sprintf(format, args...)})
}

func (p *Plan) checkDisk(s *Source, ids IDs) {
	d := p.Disk
	if d.NotADisk != "" && !p.Choice.OtherMachine {
		p.refuse("%s is %s, which no machine starts from: name a whole disk", d.Path, d.NotADisk)
	}
	if d.ReadOnly {
		p.refuse("%s is write-protected", d.Path)
	}
	for _, use := range d.Uses {
		p.refuse("%s is in use: %s; end that first (umount, swapoff), or choose another disk", d.Path, use)
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
		p.refuse("the free space of %s cannot be taken: %v", d.Path, err)
	case errors.Is(err, ErrNoRoom):
		p.refuse("%s", tooSmall(d, s.ESP.size(), s.Contract.SlotSize, p.Kept))
	case err != nil:
		p.refuse("%v", err)
	}
	p.Table = t
	if t != nil {
		for _, part := range t.Partitions {
			_, size := t.Bytes(part)
			kept := p.Kept != nil && part == p.Kept.Partition || p.Choice.FreeSpace && slices.Contains(d.table.Partitions, part)
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
		return nil, errors.New("a root partition can be kept (--keep-root) only where the rest of the disk is erased")
	case d.table == nil:
		return nil, fmt.Errorf("it has no partition table to add to: %w", cmp.Or(d.noTable, errors.New("it was not looked at")))
	case !s.Beside:
		return nil, errors.New("this release starts only on a disk of its own: take one that was built with a newer halogen")
	}
	return TableBeside(s.ESP, ids, d.table, d.health)
}

// checkContents says what becomes of what is on the disk.
func (p *Plan) checkContents() {
	d := p.Disk
	switch {
	case p.Choice.FreeSpace:
		p.note("the partitions that are on %s stay as they are: its largest free space (%d MiB) gets an EFI system partition of its own, the system, and its data", d.Path, d.Free>>20)
	case len(d.Contents) > 0:
		but := ""
		if p.Kept != nil {
			but = fmt.Sprintf(" but partition %d (%s)", p.Kept.Partition.Number, p.Kept.Partition.Label)
		}
		p.Findings = append(p.Findings, Finding{Erases: true, Text: fmt.Sprintf("%s holds %s: all of it%s will be lost", d.Path, strings.Join(d.Contents, ", "), but)})
	}
	if d.Root != nil && p.Kept == nil && !p.Choice.FreeSpace {
		p.note("what is on the root partition of the HalogenOS on %s can be kept (--keep-root)", d.Path)
	}
	if d.NoRoot != "" && p.Kept == nil && !p.Choice.FreeSpace {
		p.note("nothing on %s can be kept: %s", d.Path, d.NoRoot)
	}
	if d.Removable {
		p.note("%s is removable", d.Path)
	}
}

func (p *Plan) checkMachine(c *contract.Contract) {
	m := p.Machine
	switch {
	case m.Arch != c.Arch:
		p.refuse("the release is for %s, and this machine is %[2]s: name a release for %[2]s", c.Arch, m.Arch)
	case !m.UEFI:
		p.refuse("this system was started by a BIOS: choose UEFI (no \"legacy\" or CSM mode) in the firmware's setup, and start the live system again")
	}
	if !m.UEFI {
		return // it has no Secure Boot to speak of
	}
	if !m.TPM {
		p.missing(c.TPM, "this machine has no TPM 2.0, or it is switched off: enable it in the firmware's setup (it may be called PTT, fTPM or Security Device)")
	}
	if !m.SetupMode {
		// It can be seen to after the installation: the first boot asks for it.
		p.note("Secure Boot is not in Setup Mode%s: before the first start, reset or clear the Secure Boot keys in the firmware's setup%s", p.unsigned(), m.menu())
	}
}

// unsigned says why Setup Mode is wanted again where there were keys once.
func (p *Plan) unsigned() string {
	if p.Kept == nil || !p.Machine.SecureBoot {
		return ""
	}
	return ", and the firmware would not start what is installed, which this machine's keys have not signed yet"
}

func (p *Plan) missing(r contract.Requirement, text string) {
	if r == contract.Required {
		p.refuse("%s", text)
		return
	}
	p.note("%s", text)
}

// Err returns why the installation is refused; nil when it is not. erase is set
// when what the disk holds was given up.
func (p *Plan) Err(erase bool) error {
	for _, f := range p.Findings {
		if f.Fatal || f.Erases && !erase {
			return fmt.Errorf("%s", f.Text)
		}
	}
	return nil
}

// ErrNoRoom is returned for a disk that has no room for the layout.
var ErrNoRoom = errors.New("the disk is too small")

// tooSmall says how much room is wanted.
func tooSmall(d Disk, espSize, slotSize int64, kept *Root) string {
	if kept != nil {
		espSize = layout.ESPSize // less is never asked for
	}
	need, err := layout.LeastDisk(espSize, slotSize)
	switch {
	case err != nil:
		return err.Error() // not reachable: the boot contract would have been refused
	case kept != nil:
		return fmt.Sprintf("the root partition cannot be kept: this release needs the first %d MiB of %s, and the partition begins at %d MiB",
			(need-layout.MinRoot-layout.Align)>>20, d.Path, int64(kept.Partition.First)*int64(d.SectorSize)>>20)
	}
	return fmt.Sprintf("%s is too small: it has %d MiB, and this release needs %d MiB: choose a larger disk", d.Path, d.Size()>>20, need>>20)
}

// Loss says what the disk loses.
func (p *Plan) Loss() string {
	if p.Choice.FreeSpace {
		return fmt.Sprintf("Nothing on %s is erased; its free space is used.", p.Disk.Path)
	}
	if p.Kept != nil {
		return fmt.Sprintf("Everything on %s but its root partition will be lost.", p.Disk.Path)
	}
	if len(p.Disk.Systems) > 0 {
		return fmt.Sprintf("Everything on %s will be lost, and with it %s.", p.Disk.Path, Names(p.Disk.Systems))
	}
	return fmt.Sprintf("Everything on %s will be lost.", p.Disk.Path)
}

// Unfinished says what an installation that failed leaves.
func (p *Plan) Unfinished() string {
	if p.Choice.FreeSpace {
		return fmt.Sprintf("the systems that were on %s are as they were: it can be installed to again", p.Disk.Path)
	}
	if p.Kept != nil {
		return fmt.Sprintf("nothing that starts may be left on %s: its root partition is as it was, so install again with --keep-root", p.Disk.Path)
	}
	return fmt.Sprintf("nothing that starts is left on %s: it can be installed again", p.Disk.Path)
}

// Next says what a person does after the installation.
func (p *Plan) Next() []string {
	steps := []string{"take the medium out that you installed from, and restart"}
	if !p.Machine.SetupMode {
		steps = append(steps, "in the firmware's setup, reset the Secure Boot keys (Setup Mode) and leave Secure Boot enabled"+p.Machine.menu())
	}
	steps = append(steps, "set a password in the firmware's setup")
	if p.Choice.LetOthersStart {
		steps = append(steps, "the first start asks whether other systems go on starting, and shows the certificates: say yes once more")
	}
	if p.Kept != nil {
		return append(steps, "the first start asks for the recovery key and whether to enroll the machine's keys again: say yes; after the restart all is as it was")
	}
	return append(steps, "the first start makes the machine's keys and restarts; the second shows the recovery key: write it down")
}

// Keep says what a person keeps after the installation, and what each is for.
func (p *Plan) Keep() []string {
	key := "the recovery key that the second start shows, on paper and away from the machine: it alone opens your data after a change of the firmware or the mainboard"
	if p.Kept != nil {
		key = "the recovery key that you have: it stays the same"
	}
	all := []string{
		key,
		"the password of the firmware's setup: it keeps you out, too",
		"the medium that you installed from: it installs again, and can keep your data",
	}
	switch stay := p.Staying(); {
	case slices.ContainsFunc(stay, func(s System) bool { return s.BitLocker }):
		all = append(all, "BitLocker's recovery key: Windows may ask for it, now that the firmware gets other keys")
	case slices.ContainsFunc(stay, func(s System) bool { return s.Windows }): // which may have it on another disk
		all = append(all, "BitLocker's recovery key, if Windows uses it: the key may be asked for, now that the firmware gets other keys")
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
