package main

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"

	"halogenos.internal/boot/bounded"
	"halogenos.internal/boot/microcode"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/fwupd"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
)

// facts are what the command found out.
type facts struct {
	Machine  string `json:"machine,omitempty"`
	Firmware string `json:"firmware,omitempty"`
	// SecureBoot is "on", "off", "setup mode", "absent" or "unknown".
	SecureBoot string   `json:"secure_boot"`
	PK         []string `json:"pk"`
	KEK        []string `json:"kek"`
	DB         []string `json:"db"`
	DBX        int      `json:"dbx_entries"`
	// Processor is nil where Linux does not say.
	Processor *microcode.Running `json:"processor,omitempty"`
	// Available is the newest revision of microcode that the running UKI has for it.
	Available string `json:"microcode_available,omitempty"`
	TPM       *chip  `json:"tpm,omitempty"`
	// Updater says whether the firmware starts fwupd's EFI program: "starts", or why not.
	// It is empty where the system has none, or Secure Boot is not on.
	Updater  string   `json:"updater,omitempty"`
	Updates  []update `json:"updates"`
	Problems []string `json:"problems"`
	Advice   []string `json:"advice"`

	unsaid
}

// unsaid is what advice goes by and the facts do not say.
type unsaid struct {
	tpmError      error
	foreign, test bool // certificates of others are in db; a key is one that was published
	older         bool // microcode runs that is older than the UKI's
	unreported    bool // what the UKI has is not known
}

// chip is the TPM.
type chip struct {
	Maker    string `json:"maker"` // vendor ID, as "IFX"
	Model    string `json:"model"`
	Firmware string `json:"firmware"`
	Locked   bool   `json:"locked_out"`
	SHA256   bool   `json:"sha256_bank"`
}

// update is what became of the last update of a part's firmware (UEFI 2.10, section 23.4,
// EFI System Resource Table).
type update struct {
	Part    string `json:"part"`    // "system", "device" or its GUID
	Version uint64 `json:"version"` // that runs
	Tried   uint64 `json:"last_attempt_version"`
	Status  uint64 `json:"last_attempt_status"` // 0: it succeeded
}

// statuses are the standard's words for LastAttemptStatus.
var statuses = []string{
	"succeeded", "failed", "failed for want of room or memory", "failed: the version is not one that may follow",
	"failed: the file has a wrong form", "failed: its signature is wrong", "failed: the power supply is not connected",
	"failed: the battery is too low", "failed: another part has to be updated first",
}

// String is for people.
func (u update) String() string {
	if u.Tried == 0 && u.Status == 0 {
		return fmt.Sprintf("%s: version %#x, none tried", u.Part, u.Version)
	}
	status := fmt.Sprintf("failed for the reason %d of its maker's", u.Status)
	if u.Status < uint64(len(statuses)) {
		status = statuses[u.Status]
	}
	return fmt.Sprintf("%s: version %#x; the last update, to %#x, %s", u.Part, u.Version, u.Tried, status)
}

func (s source) collect() *facts {
	f := &facts{PK: []string{}, KEK: []string{}, DB: []string{}, Updates: []update{}, Problems: []string{}}
	const dmi = "sys/class/dmi/id/"
	f.Machine = strings.TrimSpace(s.text(dmi+"sys_vendor") + " " + s.text(dmi+"product_name"))
	f.Firmware = strings.TrimSpace(s.text(dmi+"bios_vendor") + " " + s.text(dmi+"bios_version"))
	if date := s.text(dmi + "bios_date"); date != "" {
		f.Firmware += ", of " + date
	}
	s.secureBoot(f)
	s.processor(f)
	s.chip(f)
	s.updates(f)
	return f
}

// text is the content of a small file of sysfs; empty where it cannot be read.
func (s source) text(name string) string {
	b, err := fs.ReadFile(s.Root, name)
	if err != nil || len(b) > 4096 {
		return ""
	}
	return secureboot.Printable(strings.TrimSpace(string(b)))
}

func (s source) secureBoot(f *facts) {
	state, err := enroll.Observe(s.Variables)
	if err != nil {
		f.SecureBoot = "unknown"
		f.Problems = append(f.Problems, err.Error())
		return
	}
	switch {
	case state.SecureBoot == enroll.On:
		f.SecureBoot, f.Updater = "on", s.updater(state)
	case state.SetupMode == enroll.On:
		f.SecureBoot = "setup mode"
	case state.SecureBoot == enroll.Off:
		f.SecureBoot = "off"
	default:
		f.SecureBoot = "absent"
	}
	for _, v := range []struct {
		of secureboot.Variable
		is enroll.Stored
		to *[]string
	}{{secureboot.PK, state.PK, &f.PK}, {secureboot.KEK, state.KEK, &f.KEK}, {secureboot.DB, state.DB, &f.DB}, {secureboot.DBX, state.DBX, nil}} {
		if v.is.Problem != nil {
			f.Problems = append(f.Problems, v.is.Problem.Error())
		}
		if v.to == nil {
			f.DBX = len(v.is.Content)
			continue
		}
		for _, e := range v.is.Content {
			*v.to = append(*v.to, e.String())
			f.test = f.test || secureboot.PublishedKey(e)
			f.foreign = f.foreign || v.of == secureboot.DB && e.Type == secureboot.TypeX509 && !strings.Contains(e.String(), "HalogenOS")
		}
	}
}

// updater says whether the firmware starts the program by which fwupd updates it.
func (s source) updater(state enroll.State) string {
	image, err := bounded.File(s.Root, path.Join(fwupd.Directory, fwupd.Signed), fwupd.MaxSigned)
	if errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	if err == nil {
		err = rootpart.CheckStarts(image, state, rootpart.Certificates(state))
	}
	if err != nil {
		return secureboot.Printable(err.Error())
	}
	return updaterStarts
}

// updaterStarts is what updater says of a program that starts.
const updaterStarts = "starts"

func (s source) processor(f *facts) {
	text, err := fs.ReadFile(s.Root, strings.TrimPrefix(microcode.CPUInfo, "/"))
	if err != nil {
		return
	}
	if f.Processor = microcode.ParseCPUInfo(text); f.Processor == nil {
		return
	}
	report, err := s.Boot()
	if f.unreported = err != nil || report == nil; f.unreported || report.Microcode == "" {
		return
	}
	f.Available = report.Microcode
	running, err := strconv.ParseUint(f.Processor.Revision, 0, 32)
	if best, wrong := strconv.ParseUint(f.Available, 0, 32); err == nil && wrong == nil {
		f.older = int32(running) < int32(best)
	}
}

func (s source) chip(f *facts) {
	c, err := s.TPM()
	if f.tpmError = err; err != nil {
		return
	}
	f.TPM = &chip{Maker: c.Manufacturer, Model: c.Model, Firmware: dotted(c.Firmware), Locked: c.Lockout.Active, SHA256: c.SHA256Active()}
}

// dotted writes a TPM's version as makers do: each 16 bits by themselves.
func dotted(v uint64) string {
	return fmt.Sprintf("%d.%d.%d.%d", v>>48, v>>32&0xffff, v>>16&0xffff, v&0xffff)
}

func (f *facts) tpmText() string {
	switch {
	case f.TPM != nil:
		return strings.TrimSpace(f.TPM.Maker+" "+f.TPM.Model) + ", firmware " + f.TPM.Firmware
	case errors.Is(f.tpmError, tpm.ErrAbsent):
		return "none"
	}
	return fmt.Sprintf("not known: %v", f.tpmError)
}

func (s source) updates(f *facts) {
	const entries = "sys/firmware/efi/esrt/entries"
	list, err := fs.ReadDir(s.Root, entries)
	if err != nil {
		return // the firmware has no such table
	}
	for _, e := range list {
		at := path.Join(entries, e.Name())
		number := func(name string) uint64 {
			n, _ := strconv.ParseUint(s.text(path.Join(at, name)), 0, 32)
			return n
		}
		u := update{Part: s.text(path.Join(at, "fw_class")), Version: number("fw_version"), Tried: number("last_attempt_version"), Status: number("last_attempt_status")}
		if kind := number("fw_type"); kind == 1 {
			u.Part = "system"
		}
		f.Updates = append(f.Updates, u)
	}
}
