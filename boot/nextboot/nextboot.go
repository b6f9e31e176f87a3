// Package nextboot is what one boot asks of the next: to open the recovery
// console before anything is unsealed, and why; to make a new machine secret; or to wipe
// the root partition.
// It lies in an EFI variable, which outlives a disk that cannot be written.
//
// It refuses to be trusted: the running system and anybody with the firmware's
// shell can write it. So it can only ever ask for less than an ordinary boot
// does, or for what a person at the machine has to type something for; and what it
// says is shown as something that was said.
package nextboot

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/strictjson"
)

// The variable. It survives a restart and the running system can see it.
const (
	Variable   = "HalogenNextBoot"
	Attributes = 0x7 // non-volatile, boot service access, runtime access (UEFI 2.10, 8.2)
)

// Vendor is the namespace of the project's EFI variables.
var Vendor = gpt.MustGUID("d6b1a4f0-2c0e-4e57-9a83-5b7f3c1e9d24")

const (
	// MaxSize bounds the variable's content in bytes. NVRAM is small.
	MaxSize = 1024
	// maxReason bounds a reason in bytes.
	maxReason = 480
	format    = 1
	// formatSecret is that of a request for a new secret: an initagent that knows
	// format 1 alone ignores it, and none reads a part of it.
	formatSecret = 2
	// formatReset is that of a request for a factory reset, likewise.
	formatReset = 3
	// formatPIN is that of a request for a new secret with a PIN or without: an initagent
	// that knows nothing of PINs must not make a new secret alone of it. Nothing asks by 4.
	formatPIN = 5
)

// A Request is what the next boot is asked for. The zero value asks for nothing.
type Request struct {
	Console *Console   `json:"console,omitempty"`
	Secret  *NewSecret `json:"secret,omitempty"` // not together with the console
	Reset   *Reset     `json:"reset,omitempty"`  // not together with either
}

// Reset asks for a factory reset, which is confirmed by typing the machine's name.
type Reset struct{}

// NewSecret asks for a new machine secret.
type NewSecret struct {
	Keys bool `json:"keys,omitempty"` // and for new Secure Boot keys
	// PIN asks for what the PIN is to be; "" leaves it. It comes without new keys.
	PIN PIN `json:"pin,omitempty"`
}

// PIN is what is asked for.
type PIN string

// The values of PIN. Neither says what the PIN is: only a person at the machine does.
const (
	SetPIN    PIN = "set"    // a first or another one
	RemovePIN PIN = "remove" // none any more
)

// format is that of the request's encoding.
func (r Request) format() int {
	switch {
	case r.Reset != nil:
		return formatReset
	case r.Secret != nil && r.Secret.PIN != "":
		return formatPIN
	case r.Secret != nil:
		return formatSecret
	}
	return format
}

func (r Request) check() error {
	if r.Secret != nil && r.Console != nil {
		return errors.New("it asks for the console and for a new secret")
	}
	if s := r.Secret; s != nil && s.PIN != "" && (s.Keys || s.PIN != SetPIN && s.PIN != RemovePIN) {
		return fmt.Errorf("it asks for %q of the PIN, keys %t", s.PIN, s.Keys)
	}
	if r.Reset != nil && (r.Secret != nil || r.Console != nil) {
		return errors.New("it asks for a factory reset and for something else")
	}
	return nil
}

// Console asks for the recovery console.
type Console struct {
	// Version is the system that asked. What it could not do says nothing of
	// another system.
	Version contract.Version `json:"version,omitempty"`
	// Person: somebody at the machine asked for it, whatever runs.
	Person bool `json:"person,omitempty"`
	// Failed is the step that failed, as slot.Kind names it; "" for none.
	Failed string `json:"failed,omitempty"`
	// Reason is for the person at the console.
	Reason string `json:"reason"`
}

// Concerns reports whether a system of this version opens the console.
func (c *Console) Concerns(v contract.Version) bool {
	return c != nil && (c.Person || c.Version == v)
}

// encoded is the request with its format.
type encoded struct {
	Format int `json:"format"`
	Request
}

// Encode returns the variable's content. A long reason is cut.
func (r Request) Encode() ([]byte, error) {
	if c := r.Console; c != nil {
		short := *c
		short.Reason = clean(c.Reason)
		r.Console = &short
	}
	text, err := json.Marshal(encoded{r.format(), r})
	if err == nil {
		err = r.check()
	}
	if err == nil && len(text) > MaxSize {
		err = fmt.Errorf("%d bytes, more than %d", len(text), MaxSize)
	}
	if err != nil {
		return nil, fmt.Errorf("request to the next boot: %w", err)
	}
	return text, nil
}

// Parse reads a variable's content. An error is not a reason to stop a boot.
func Parse(text []byte) (Request, error) {
	if len(text) > MaxSize {
		return Request{}, fmt.Errorf("request of the boot before: %d bytes, more than %d", len(text), MaxSize)
	}
	var e encoded
	err := strictjson.Decode(text, &e)
	if want := e.format(); err == nil && e.Format != want {
		err = fmt.Errorf("format %d, want %d", e.Format, want)
	}
	if err == nil {
		err = e.check()
	}
	if err != nil {
		return Request{}, fmt.Errorf("request of the boot before: %w", err)
	}
	if c := e.Console; c != nil {
		c.Reason, c.Failed = clean(c.Reason), clean(c.Failed)
	}
	return e.Request, nil
}

// clean leaves what can be shown on a terminal, on one line, in maxReason bytes
// of JSON.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case r == utf8.RuneError || !unicode.IsPrint(r):
			return -1
		case strings.ContainsRune(`<>&"\`, r): // JSON writes these longer
			return '\''
		}
		return r
	}, s)
	for len(s) > maxReason {
		_, n := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-n]
	}
	return s
}
