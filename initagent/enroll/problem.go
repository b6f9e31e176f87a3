package enroll

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
)

// Kind is what stands in the way of this machine's own keys.
type Kind uint8

// Kinds of problems.
const (
	NoSecureBoot Kind = iota + 1 // the firmware has none, or its variables cannot be reached
	NotSetupMode                 // somebody else's keys are enrolled
	ForeignPK                    // Setup Mode, and yet a Platform Key that is not ours
	Unreadable                   // a key variable does not make sense
	Refused                      // a write was refused, or did not read back
	Unsafe                       // PK was not written: the machine might not start again
	Forgetful                    // the firmware loses its keys at every restart
)

// A Problem is a failure that a person at the machine can do something about.
type Problem struct {
	Kind Kind
	What string   // one sentence
	Cure []string // what to do, in this order
	Err  error    // what it was told by, or nil
}

// Error implements error: what happened and how to cure it.
func (p *Problem) Error() string {
	var b strings.Builder
	b.WriteString(p.What)
	if p.Err != nil {
		fmt.Fprintf(&b, ": %v", p.Err)
	}
	for i, c := range p.Cure {
		if i == 0 {
			b.WriteString("; to cure it: ")
		} else {
			b.WriteString("; or else: ")
		}
		b.WriteString(c)
	}
	return b.String()
}

// Unwrap returns the cause.
func (p *Problem) Unwrap() error { return p.Err }

const (
	cureSetupMode = "open the firmware's setup, choose to clear or delete the Secure Boot keys (it may be called Setup Mode, Custom Mode or Reset Platform), leave Secure Boot enabled, save, and start again"
	cureUpdate    = "update the machine's firmware"
	cureRestore   = "restore the factory keys in the firmware's setup, then clear them again, and start again"
)

func notSetupMode(s State) *Problem {
	what := "the firmware is not in Setup Mode: it holds somebody else's Platform Key"
	if len(s.PK.Content) > 0 {
		what += " (" + s.PK.Content.String() + ")"
	}
	return &Problem{Kind: NotSetupMode, What: what, Cure: []string{cureSetupMode}}
}

// explainWrite says what the kernel's error means for a write to an EFI
// variable. Linux folds the firmware's status codes into these (efivarfs).
func explainWrite(err error) string {
	for _, c := range []struct {
		is   error
		says string
	}{
		{syscall.EACCES, "the firmware says security violation: it does not take the signature, or it is not really in Setup Mode, or it keeps a later timestamp"},
		{syscall.EPERM, "the variable is protected: the firmware or the kernel lets nobody change it"},
		{syscall.EROFS, "the firmware says write protected: a setting such as 'flash protection' or 'Secure Boot key lock' may be on, or efivarfs is mounted read-only"},
		{syscall.ENOSPC, "the firmware says out of resources: its variable store is full"},
		{syscall.EINVAL, "the firmware says invalid parameter: it does not understand the update"},
		{syscall.EIO, "the firmware says device error: its flash may be failing"},
		{syscall.EINTR, "the firmware aborted the write"},
		{fs.ErrNotExist, "the firmware says not found"},
	} {
		if errors.Is(err, c.is) {
			return c.says
		}
	}
	return "the firmware refused it"
}

func cureWrite(err error) []string {
	switch {
	case errors.Is(err, syscall.ENOSPC):
		return []string{"start again: firmware makes room when it starts", "delete boot entries and dump variables that are not needed in the firmware's setup", cureUpdate}
	case errors.Is(err, syscall.EROFS), errors.Is(err, syscall.EPERM):
		return []string{"look in the firmware's setup for a protection of its flash or of the Secure Boot keys, and switch it off for now", cureUpdate}
	}
	return []string{"switch the machine off and on, which starts the enrollment where it stopped", cureRestore, cureUpdate}
}
