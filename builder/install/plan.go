package install

import (
	"crypto/rand"
	"fmt"
	"strings"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/release"
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
	// Uses says what of the disk is in use, and by what; empty when nothing is.
	Uses []string `json:"uses,omitempty"`
	// Contents says what is on the disk, for people; empty when it looks unused.
	Contents []string `json:"contents,omitempty"`
}

// Size is the disk's size in bytes.
func (d Disk) Size() int64 { return int64(d.Sectors) * int64(d.SectorSize) }

// Facts is what is known of the machine that runs the installation.
type Facts struct {
	Arch       string `json:"arch"` // as the boot contract names it
	UEFI       bool   `json:"uefi"`
	SetupMode  bool   `json:"setup_mode"`
	SecureBoot bool   `json:"secure_boot"`
	TPM        bool   `json:"tpm"` // a TPM 2.0
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

// A Plan is an installation before anything is written.
type Plan struct {
	Disk     Disk             `json:"disk"`
	Release  *release.Release `json:"release"`
	Machine  Facts            `json:"machine"`
	Table    *gpt.Table       `json:"-"`
	IDs      IDs              `json:"-"`
	Findings []Finding        `json:"findings"`
}

// NewPlan decides. another is set when the disk is meant for another machine
// than the one that writes it, so that this one's firmware does not matter.
func NewPlan(s *Source, d Disk, m Facts, ids IDs, another bool) *Plan {
	p := &Plan{Disk: d, Release: s.ESP.Release, Machine: m, IDs: ids}
	p.checkDisk(s, ids)
	if !another {
		p.checkMachine(s.Contract)
	}
	if !s.Signed {
		p.note("nobody has signed this release: whoever gave it to you vouches for it")
	}
	return p
}

func (p *Plan) refuse(format string, args ...any) {
	p.Findings = append(p.Findings, Finding{Fatal: true, Text: fmt.Sprintf(format, args...)})
}

func (p *Plan) note(format string, args ...any) {
	p.Findings = append(p.Findings, Finding{Text: fmt.Sprintf(format, args...)})
}

func (p *Plan) checkDisk(s *Source, ids IDs) {
	d := p.Disk
	if d.ReadOnly {
		p.refuse("%s is write-protected", d.Path)
	}
	for _, use := range d.Uses {
		p.refuse("%s is in use: %s", d.Path, use)
	}
	t, err := Table(s.ESP.Release, ids, d.Sectors, d.SectorSize)
	if err == nil {
		err = room(t, s.Contract.SlotSize)
	}
	if err != nil {
		p.refuse("%v", err)
	}
	p.Table = t
	if len(d.Contents) > 0 {
		p.Findings = append(p.Findings, Finding{Erases: true, Text: fmt.Sprintf("%s holds %s: all of it will be lost", d.Path, strings.Join(d.Contents, ", "))})
	}
	if d.Removable {
		p.note("%s is removable", d.Path)
	}
}

func (p *Plan) checkMachine(c *contract.Contract) {
	m := p.Machine
	switch {
	case m.Arch != c.Arch:
		p.refuse("the release is for %s, and this machine is %s", c.Arch, m.Arch)
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
		p.note("Secure Boot is not in Setup Mode: before the first start, reset or clear the Secure Boot keys in the firmware's setup")
	}
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

// room refuses a disk on which the first boot would find no place for the rest.
func room(t *gpt.Table, slotSize int64) error {
	// The UUIDs of a plan that is only looked at must differ, and no more.
	if _, err := layout.NewPlan(t, slotSize, rand.Reader); err != nil {
		return fmt.Errorf("the disk is too small for two slots of %d MiB and a root partition: %w", slotSize>>20, err)
	}
	return nil
}

// Next says what a person does after the installation.
func (p *Plan) Next() []string {
	steps := []string{"take the medium out that you installed from, and restart"}
	if !p.Machine.SetupMode {
		steps = append(steps, "in the firmware's setup, reset the Secure Boot keys (Setup Mode) and leave Secure Boot enabled")
	}
	return append(steps, "set a password in the firmware's setup",
		"the first start makes the machine's keys and restarts; the second shows the recovery key: write it down")
}
