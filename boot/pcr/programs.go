package pcr

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
)

// What firmware measures into PCR 4 around a boot option (TCG PC Client Platform
// Firmware Profile 1.06, section 10.4.1, EV_EFI_ACTION).
const (
	callingOption   = "Calling EFI Application from Boot Option"
	returningOption = "Returning from EFI Application from Boot Option"
)

// Programs are the EFI programs of a boot as PCR 4 holds them: the boot manager,
// the UKI it started, and, where the firmware measured that, the kernel the stub
// started. What came before the boot manager is kept as it was.
type Programs struct {
	Manager, UKI Digest // Authenticode digests
	// Kernel is what the stub started; nil where the firmware did not measure it.
	// With Secure Boot enforced the stub vouches for its own kernel, and EDK2
	// measures none.
	Kernel *Digest

	before []Event
}

// ErrPrograms is wrapped by the reasons why PCR 4 cannot be predicted.
var ErrPrograms = errors.New("PCR 4 is not predictable")

// Programs finds the programs of this boot. It is told the digests of the boot
// managers that the machine has, since what an event says of itself proves
// nothing. Whether the log is true is for the caller to find out: the register must
// hold what Predict returns for these very programs.
func (l *Log) Programs(managers []Digest) (*Programs, error) {
	events := l.measured(BootPrograms)
	at := -1
	for i, e := range events {
		if d, ok := e.program(); ok && slices.Contains(managers, d) {
			at = i
		}
	}
	if at < 0 {
		return nil, fmt.Errorf("%w: the event log has no boot manager that is on the ESP", ErrPrograms)
	}
	var after []Digest
	for _, e := range events[at:] {
		d, ok := e.program()
		if !ok {
			return nil, fmt.Errorf("%w: event %d (%s) follows the boot manager", ErrPrograms, e.Number, e.Describe())
		}
		after = append(after, d)
	}
	p := &Programs{Manager: after[0], before: events[:at]}
	for _, e := range p.before {
		if _, ok := e.Digest(SHA256); !ok {
			return nil, fmt.Errorf("%w: event %d has no SHA-256 digest", ErrPrograms, e.Number)
		}
	}
	switch len(after) {
	case 2:
	case 3:
		p.Kernel = &after[2]
	default:
		return nil, fmt.Errorf("%w: the boot manager and %d programs after it, want the UKI and at most its kernel", ErrPrograms, len(after)-1)
	}
	p.UKI = after[1]
	return p, nil
}

// program returns the Authenticode digest of the EFI program that an event is about.
func (e Event) program() (d Digest, ok bool) {
	sum, ok := e.Digest(SHA256)
	if !ok || e.Type != EventBootApplication {
		return d, false
	}
	return Digest(sum), true
}

// BootPrograms are the Authenticode digests of the EFI programs that ran up to the kernel:
// boot managers, loaders, and what the firmware has of its own.
func (l *Log) BootPrograms() (all []Digest) {
	for _, e := range l.measured(BootPrograms) {
		if d, ok := e.program(); ok {
			all = append(all, d)
		}
	}
	return all
}

// Started are the Authenticode digests of all that the firmware has started in this
// boot: programs, drivers and option ROMs.
func (l *Log) Started() (all []Digest) {
	for _, e := range l.Events {
		sum, ok := e.Digest(SHA256)
		if ok && slices.Contains([]EventType{EventBootApplication, EventBootDriver, EventRuntimeDriver}, e.Type) {
			all = append(all, Digest(sum))
		}
	}
	return all
}

// Value is PCR 4 of this boot.
func (p *Programs) Value() Digest { return p.Predict(p.Manager, p.UKI, p.Kernel) }

// Predict returns PCR 4 of a boot with other programs. The kernel is nil where
// none is measured.
func (p *Programs) Predict(manager, uki Digest, kernel *Digest) Digest {
	var d Digest
	for _, e := range p.before {
		sum, _ := e.Digest(SHA256)
		d = d.Extend(Digest(sum))
	}
	d = d.Extend(manager).Extend(uki)
	if kernel != nil {
		d = d.Extend(*kernel)
	}
	return d
}

// Usual returns the programs as they are when no boot option failed before, and as
// they are when one did, such as an empty drive or a network that is not there: no
// program ran because of it, so that it is harmless. The two may be alike where the
// firmware measures no such thing.
func (p *Programs) Usual() (straight, detour *Programs) {
	var before []Event
	calling := -1
	for i, e := range p.before {
		if e.says(callingOption) {
			calling = i
			if n := len(before); n > 0 && before[n-1].says(returningOption) {
				before = before[:n-1]
				continue
			}
		}
		before = append(before, e)
	}
	straight = &Programs{Manager: p.Manager, UKI: p.UKI, Kernel: p.Kernel, before: before}
	detour = &Programs{Manager: p.Manager, UKI: p.UKI, Kernel: p.Kernel, before: before}
	if calling >= 0 {
		sum := sha256.Sum256([]byte(returningOption))
		returning := Event{PCR: BootPrograms, Type: EventEFIAction, Digests: []BankDigest{{SHA256, sum[:]}}, Data: []byte(returningOption)}
		detour.before = append(slices.Clone(before), returning, p.before[calling])
	}
	return straight, detour
}

func (e Event) says(action string) bool {
	return e.Type == EventEFIAction && string(e.Data) == action && e.Stated()
}
