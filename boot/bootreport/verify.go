package bootreport

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/extension"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/uki"
	"halogenos.internal/boot/verity"
)

// Want is what a report is compared with.
type Want struct {
	// Key is the machine's attestation key; nil believes the report's own, which then
	// proves nothing by itself.
	Key *policy.Name
	// Owner is what Finding.Owner was before; "" compares nothing.
	Owner string
	// Nonce is what the report has to answer; nil asks nothing.
	Nonce    []byte
	Release  *release.Release
	Contract *contract.Contract
	UKI      *uki.Image // of the release
	// Programs are Authenticode hashes of EFI programs that may have run before the UKI,
	// beside the release's own boot manager.
	Programs []pcr.Digest
	// Drivers are hashes of EFI drivers and option ROMs that may have run.
	Drivers []pcr.Digest
}

// A Key is an entry of the firmware's lists.
type Key struct {
	SHA256  contract.Hex `json:"sha256"` // of the certificate, or the hash that the entry is
	Subject string       `json:"subject"`
}

// A Driver is an EFI driver or an option ROM.
type Driver struct {
	SHA256 pcr.Digest `json:"sha256"` // as the firmware measured it
	Text   string     `json:"text"`   // what the firmware's log says that it is
}

// A Finding is what a good report says.
type Finding struct {
	Machine policy.Name      `json:"machine"` // the Name of its attestation key
	ImageID string           `json:"image_id"`
	Arch    string           `json:"arch"`
	Version contract.Version `json:"version"`
	Epoch   uint64           `json:"epoch"`

	// Firmware is PCR 0: another firmware, or another version of it, has another.
	Firmware pcr.Digest `json:"firmware"`
	// Drivers are the EFI drivers and option ROMs that have run.
	Drivers []Driver `json:"drivers,omitempty"`

	SecureBoot bool  `json:"secure_boot"`
	PK         []Key `json:"pk"` // who owns the firmware's lists
	KEK        []Key `json:"kek"`
	DB         []Key `json:"db"`
	// Authorities are the entries of db that let drivers and programs start; OwnKeys: the
	// last of them, which the boot manager and the UKI had, is of PK's owner.
	Authorities []Key `json:"authorities"`
	OwnKeys     bool  `json:"own_keys"`
	// SameOwner: PK is the one that the caller knows. Else OwnKeys is what the keys say of
	// themselves: anyone who puts keys into a firmware names their owner as they like.
	SameOwner bool `json:"same_owner"`
	// Actions are what else the firmware has measured of its state.
	Actions []string `json:"actions,omitempty"`
	// Phases are what the running system has measured of its start since the hand-over.
	Phases []string `json:"phases"`

	// Extensions of the release are part of the system: they were measured, in this order.
	Extensions []extension.Measured `json:"extensions,omitempty"`

	// What follows is the machine's own word.
	Nonce  contract.Hex `json:"nonce,omitempty"`
	Time   int64        `json:"time"`
	BootID string       `json:"boot_id"`
	Floor  uint64       `json:"floor"`
	Slot   layout.Slot  `json:"slot"`
	Trial  bool         `json:"trial"`
	Reason string       `json:"reason,omitempty"`
	Root   string       `json:"root"`
}

// Verify checks a report. The error names everything that does not fit; where the quote
// itself is not to be believed, that alone.
func Verify(r *Report, w Want) (*Finding, error) {
	name, err := KeyName(r.Key)
	if err != nil {
		return nil, err
	}
	if w.Key != nil && *w.Key != name {
		return nil, fmt.Errorf("the report is signed by the key %s, want %s: it is of another machine, or this one's TPM was cleared", name, *w.Key)
	}
	if err := r.checkSignature(); err != nil {
		return nil, err
	}
	if err := r.checkQuote(); err != nil {
		return nil, err
	}
	s := &r.Statement
	f := &Finding{
		Machine: name, Firmware: r.values()[firmware], ImageID: s.ImageID, Arch: s.Arch, Version: s.Version, Epoch: s.Epoch,
		Nonce: s.Nonce, Time: s.Time, BootID: s.BootID, Floor: s.Floor, Slot: s.Slot, Trial: s.Trial, Reason: s.Reason, Root: s.Root, Extensions: s.Extensions,
	}
	log, err := pcr.ParseLog(r.EventLog)
	if err != nil {
		return nil, err
	}
	logged := r.checkLog(log)
	errs := []error{s.checkNonce(w.Nonce), s.checkRelease(w.Release), f.checkUKI(r.values(), w), s.checkRest(r.values(), w), logged}
	if logged == nil { // else it proves nothing
		errs = append(errs, f.checkKeys(log, w), f.checkDrivers(log, w), checkPrograms(log, w))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return f, nil
}

func (s *Statement) checkNonce(want []byte) error {
	switch {
	case want == nil || bytes.Equal(want, s.Nonce):
		return nil
	case len(s.Nonce) == 0:
		return fmt.Errorf("the report answers no nonce, want %x: nobody asked for it, and it may be an old one", want)
	}
	return fmt.Errorf("the report answers the nonce %x, want %x: it was made for another question, and may be an old one", []byte(s.Nonce), want)
}

// checkRelease compares what the machine says that it runs with the release.
func (s *Statement) checkRelease(want *release.Release) error {
	switch {
	case s.ImageID != want.ImageID || s.Arch != want.Arch:
		return fmt.Errorf("the machine says that it runs %s for %s, want %s for %s", s.ImageID, s.Arch, want.ImageID, want.Arch)
	case s.Version < want.Version:
		return fmt.Errorf("the machine says that it runs release %s, which is older than %s", s.Version, want.Version)
	case s.Version > want.Version:
		return fmt.Errorf("the machine says that it runs release %s, which is newer than %s", s.Version, want.Version)
	case s.Epoch != want.Epoch:
		return fmt.Errorf("the machine says that its release has epoch %d, want %d", s.Epoch, want.Epoch)
	}
	return nil
}

// checkLog compares the log with the registers that nothing but firmware, boot manager
// and stub extends.
func (r *Report) checkLog(log *pcr.Log) error {
	values := r.values()
	err := log.Check(map[int]pcr.Digest{2: values[pcr.Drivers], 4: values[pcr.BootPrograms], 7: values[pcr.SecureBoot], 14: values[mok]})
	if err != nil {
		return fmt.Errorf("%w: somebody has changed the log, or has measured something without it", err)
	}
	return nil
}

const (
	firmware = 0  // the register of the firmware's code
	mok      = 14 // of a shim's own keys
)

// phases are what systemd-pcrphase measures in the running system (systemd 252 to 258).
var phases = []string{"sysinit", "ready", "shutdown", "final"}

// checkUKI finds out how far the boot of the release's UKI has come by PCR 11.
func (f *Finding) checkUKI(values map[int]pcr.Digest, w Want) error {
	have, stub := values[pcr.KernelImage], pcr.Digest(w.Release.PCR11)
	for n := range len(phases) + 1 {
		if have == pcr.Phases(stub, append([]string{pcr.EnterInitrd, pcr.LeaveInitrd}, phases[:n]...)...) {
			f.Phases = append([]string{}, phases[:n]...)
			return nil
		}
	}
	for _, words := range [][]string{nil, {pcr.EnterInitrd}} {
		if have == pcr.Phases(stub, words...) {
			return errors.New("PCR 11: the initramfs of this release had not handed over when the TPM quoted")
		}
	}
	for n := range len(phases) + 1 {
		words := append([]string{pcr.EnterInitrd, pcr.Recovery}, phases[:n]...)
		if have == pcr.Phases(stub, words...) {
			return errors.New("PCR 11: the recovery console was open in this boot, and anyone who was there could do anything: restart the machine, and ask again")
		}
	}
	return fmt.Errorf("PCR 11 is %s, which the UKI of release %s does not leave: another UKI was started, or something has extended it since", have, w.Release.Version)
}

// checkRest checks what was added to the UKI, and that the boot's end was measured.
func (s *Statement) checkRest(values map[int]pcr.Digest, w Want) error {
	var errs []error
	if _, own := pcr.CommandLineTimes(w.UKI, values[pcr.KernelConfig]); !own {
		errs = append(errs, errors.New("PCR 12: a command line, credential or addon from outside the UKI was added to this boot"))
	}
	if err := checkExtensions(values[pcr.SystemExts], s.Extensions, w.UKI); err != nil {
		errs = append(errs, err)
	}
	if policy.Untouched(values[pcr.SystemID]) {
		errs = append(errs, errors.New("PCR 15: neither a volume nor the end of the initramfs was measured"))
	}
	return errors.Join(errs...)
}

// checkExtensions checks that PCR 13 has the extensions that the report names and no other,
// and that the release's UKI lists each.
func checkExtensions(value pcr.Digest, names []extension.Measured, image *uki.Image) error {
	if value != extension.Register(names) {
		return errors.New("PCR 13: a system extension from outside the UKI, or another one than the report names, was added to this boot")
	}
	if len(names) == 0 {
		return nil
	}
	initrd, _ := image.Section(".initrd")
	list, err := contract.ExtensionsFromInitrd(initrd)
	if err != nil {
		return fmt.Errorf("PCR 13: %w", err)
	}
	for _, m := range names {
		if !slices.ContainsFunc(list, func(e contract.Extension) bool { return e.Name == m.Name && e.Root() == verity.Root(m.RootHash) }) {
			return fmt.Errorf("PCR 13: extension %s is part of the system, and the release has none with this content", m.Name)
		}
	}
	return nil
}

// checkKeys reads the state of Secure Boot.
func (f *Finding) checkKeys(log *pcr.Log, w Want) error {
	k, err := log.MeasuredKeys()
	if err != nil {
		return err
	}
	f.SecureBoot, f.Actions = k.SecureBoot, k.Actions
	var pk secureboot.Database
	for _, list := range []struct {
		name string
		from []byte
		to   *[]Key
	}{{"PK", k.PK, &f.PK}, {"KEK", k.KEK, &f.KEK}, {"db", k.DB, &f.DB}} {
		d, err := secureboot.ParseDatabase(list.from)
		if err != nil {
			return fmt.Errorf("PCR 7: %s: %w", list.name, err)
		}
		if list.name == "PK" {
			pk = d
		}
		*list.to = []Key{}
		for _, e := range d {
			*list.to = append(*list.to, keyOf(e))
		}
	}
	f.Authorities = []Key{}
	for _, a := range k.Authorities {
		e := secureboot.ParseSignatureData(a)
		if e.Type == (gpt.GUID{}) {
			return errors.New("PCR 7: an authority of a few bytes")
		}
		f.Authorities = append(f.Authorities, keyOf(e))
		f.OwnKeys = len(pk) == 1 && pk[0].Owner == e.Owner
	}
	return f.checkState(w)
}

// unsafe are what firmware measures so that a report is refused (TCG PC Client Platform
// Firmware Profile): anyone who has a cable could do anything.
var unsafe = []string{"UEFI Debug Mode", "DMA Protection Disabled"}

func (f *Finding) checkState(w Want) error {
	for _, a := range f.Actions {
		if slices.Contains(unsafe, strings.TrimRight(a, " ")) {
			return fmt.Errorf("PCR 7: the firmware says %q: end that in its setup menu, restart the machine, and ask again", a)
		}
	}
	f.SameOwner = w.Owner != ""
	switch {
	case w.Owner != "" && w.Owner != f.Owner():
		return fmt.Errorf("PCR 7: the owner of the firmware's keys (PK) is %s, want %.64s: somebody has cleared the keys and put in others, and may have signed what they like; if that was you, take the first report again", f.Owner(), w.Owner)
	case !f.SecureBoot && w.Contract.SecureBoot == contract.Required:
		return errors.New("PCR 7: Secure Boot was off, and the release requires it")
	case !f.SecureBoot:
		return nil
	case len(f.Authorities) == 0:
		return errors.New("PCR 7: Secure Boot was on, and no key has let anything start")
	case !f.OwnKeys:
		return fmt.Errorf("PCR 7: the boot manager was let start by %s, which is not the firmware's owner's: the machine has not enrolled keys of its own, or somebody has replaced them", f.Authorities[len(f.Authorities)-1].Subject)
	}
	return nil
}

// Owner is the SHA-256 of PK, by which its owner is known again; "none" without one.
func (f *Finding) Owner() string {
	var all []string
	for _, k := range f.PK {
		all = append(all, fmt.Sprintf("%x", []byte(k.SHA256)))
	}
	if len(all) == 0 {
		return "none"
	}
	return strings.Join(all, "+")
}

func keyOf(e secureboot.Entry) Key {
	if e.Type == secureboot.TypeSHA256 {
		return Key{SHA256: e.Data, Subject: e.String()}
	}
	sum := sha256.Sum256(e.Data)
	return Key{SHA256: sum[:], Subject: e.String()}
}

// checkDrivers checks that no driver has run but what the caller names: a driver can
// change the kernel after all that has started it was measured.
func (f *Finding) checkDrivers(log *pcr.Log, w Want) error {
	var foreign []string
	for _, d := range log.MeasuredDrivers() {
		f.Drivers = append(f.Drivers, Driver{SHA256: d.Digest, Text: d.Text})
		if !slices.Contains(w.Drivers, d.Digest) {
			foreign = append(foreign, fmt.Sprintf("%s (%s)", d.Digest, d.Text))
		}
	}
	if len(foreign) == 0 {
		return nil
	}
	const most = 16
	if n := len(foreign) - most; n > 0 {
		foreign = append(foreign[:most], fmt.Sprintf("%d more", n))
	}
	return fmt.Errorf("PCR 2: EFI drivers or option ROMs have run, which could change all that started after them: %s (name those that belong to this machine with --driver)", strings.Join(foreign, ", "))
}

// checkPrograms checks that nothing but the release's boot manager, and what the caller
// names, ran before the release's UKI, and after it at most its kernel.
func checkPrograms(log *pcr.Log, w Want) error {
	run, err := log.MeasuredPrograms()
	if err != nil {
		return err
	}
	hash := func(name string) pcr.Digest {
		f, _ := w.Release.File(name)
		return pcr.Digest(f.Authenticode)
	}
	at := slices.Index(run, hash(release.UKIFile))
	if at < 0 {
		return fmt.Errorf("PCR 4: the UKI of release %s has not run; what has is %s", w.Release.Version, list(run))
	}
	known := append([]pcr.Digest{hash(release.BootManagerFile)}, w.Programs...)
	var foreign []pcr.Digest
	for _, d := range run[:at] {
		if !slices.Contains(known, d) {
			foreign = append(foreign, d)
		}
	}
	switch {
	case len(foreign) > 0:
		return fmt.Errorf("PCR 4: before the UKI ran what release %s does not have: %s (a boot manager of another of your releases? its Authenticode hash says so)", w.Release.Version, list(foreign))
	case log.Returned(run[at]):
		return errors.New("PCR 4: the UKI came back to the firmware, which went on to another boot option: what ran then is not known to be its kernel")
	case len(run) > at+2:
		return fmt.Errorf("PCR 4: more than a kernel ran after the UKI: %s", list(run[at+1:]))
	case len(run) == at+2:
		return checkKernel(run[at+1], w.UKI)
	}
	return nil
}

// checkKernel checks that what ran after the UKI is the kernel in it.
func checkKernel(ran pcr.Digest, image *uki.Image) error {
	kernel, _ := image.Section(".linux")
	want, err := authenticode.Measured(kernel)
	if err != nil {
		return fmt.Errorf("PCR 4: %s ran after the UKI, whose kernel is not an EFI program: %w", ran, err)
	}
	if ran != want {
		return fmt.Errorf("PCR 4: %s ran after the UKI, which is not its kernel (%s)", ran, pcr.Digest(want))
	}
	return nil
}

func list(all []pcr.Digest) string {
	if len(all) == 0 {
		return "nothing"
	}
	const most = 8
	var words []string
	for _, d := range all[:min(len(all), most)] {
		words = append(words, d.String())
	}
	if len(all) > most {
		words = append(words, fmt.Sprintf("%d more", len(all)-most))
	}
	return strings.Join(words, ", ")
}
