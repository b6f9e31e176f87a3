// Package bootreport is the proof of a boot: what a machine's TPM signs of its
// registers, the firmware's event log that explains them, and what the running system
// says besides; and the check of all that against a release.
//
// It refuses a report whose key it was not told to believe, one that answers another
// question, one of whose log a word does not follow from what was measured, and one that
// fits another release. It never believes what a log merely says.
//
// What a report proves ends at the machine's own words: slot, reason and floor are those
// of anyone who is root there.
package bootreport

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"time"
	"unicode/utf8"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/extension"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/strictjson"
	"halogenos.internal/boot/verity"
)

// Format is the number of this format; another is refused.
const Format = 1

// Bounds of a report, in bytes.
const (
	// MaxSize is that of the whole: the longest event log, in base64, and the rest.
	MaxSize = pcr.MaxLog*4/3 + 64<<10
	// MaxReason is that of a statement's reason.
	MaxReason  = 1024
	maxKey     = 128 // a P-256 key has 88
	maxQuote   = 512 // with SHA-256 some 130
	maxSig     = 128 // ECDSA over P-256 has 72
	minNonce   = 8
	maxNonce   = 64
	maxBootID  = 64
	maxImageID = 128
)

// Quoted are the PCRs of a report, in the order in which the TPM hashes them: the
// firmware, its settings and drivers, what started, the state of Secure Boot, the UKI,
// what was added to it, MOK, and the volume.
func Quoted() []int { return []int{0, 1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 14, 15} }

// A Report is one machine's proof of one boot.
type Report struct {
	Format    int       `json:"format"`
	Statement Statement `json:"statement"`
	PCRs      []PCR     `json:"pcrs"` // SHA-256; each of Quoted, in order
	// Key is the TPMT_PUBLIC of the key that signs; its Name says which machine it is.
	Key       contract.Hex `json:"key"`
	Quote     contract.Hex `json:"quote"`     // TPMS_ATTEST
	Signature contract.Hex `json:"signature"` // TPMT_SIGNATURE
	EventLog  []byte       `json:"event_log"` // the firmware's, in base64
}

// PCR is the value of one register.
type PCR struct {
	PCR    int        `json:"pcr"`
	SHA256 pcr.Digest `json:"sha256"`
}

// A Statement is what the running system says. The quote binds it, so that nobody on the
// way changes it; that it is true is not proven.
type Statement struct {
	// Nonce is what the caller gave; none in a report that nobody asked for.
	Nonce   contract.Hex     `json:"nonce,omitempty"`
	Time    int64            `json:"time"`    // by the machine's clock, in seconds since 1970
	BootID  string           `json:"boot_id"` // the kernel's
	ImageID string           `json:"image_id"`
	Arch    string           `json:"arch"`
	Version contract.Version `json:"version"`
	Epoch   uint64           `json:"epoch"`
	Floor   uint64           `json:"floor"` // the lowest epoch that the TPM releases keys to
	Slot    layout.Slot      `json:"slot"`
	Trial   bool             `json:"trial"`
	Reason  string           `json:"reason,omitempty"` // why this slot and not the other
	Root    string           `json:"root"`             // what opened the root partition: tpm, key, new, none
	// Extensions of the release are part of the system, in the order in which PCR 13 has them.
	// A reader that does not know the field refuses the report, as it refuses such a PCR 13.
	Extensions []extension.Measured `json:"extensions,omitempty"`
}

// domain keeps a quote for a report from being one for something else.
const domain = "halogen boot report 1\x00"

// Qualifier is what the TPM quotes beside the registers (extraData): the SHA-256 of the
// statement, nonce included.
func (s *Statement) Qualifier() ([sha256.Size]byte, error) {
	if err := s.validate(); err != nil {
		return [sha256.Size]byte{}, err
	}
	// The fields are decoded strictly, so that one statement has one encoding: on one
	// line, in this order.
	text := bytes.NewBufferString(domain)
	e := json.NewEncoder(text)
	e.SetEscapeHTML(false)
	if err := e.Encode(s); err != nil {
		return [sha256.Size]byte{}, fmt.Errorf("encode the statement: %w", err)
	}
	return sha256.Sum256(bytes.TrimSuffix(text.Bytes(), []byte("\n"))), nil
}

var (
	plainName = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)
	latest    = time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC).Unix()
)

func (s *Statement) validate() error {
	if n := len(s.Nonce); n != 0 && (n < minNonce || n > maxNonce) {
		return fmt.Errorf("a nonce of %d bytes, want %d to %d", n, minNonce, maxNonce)
	}
	if s.Time < 0 || s.Time > latest {
		return fmt.Errorf("time %d, want seconds since 1970", s.Time)
	}
	for _, f := range []struct {
		name, text string
		most       int
	}{{"boot_id", s.BootID, maxBootID}, {"image_id", s.ImageID, maxImageID}, {"arch", s.Arch, maxImageID}} {
		if len(f.text) > f.most || !plainName.MatchString(f.text) {
			return fmt.Errorf("%s %.40q, want 1 to %d letters, digits, dots, dashes and underscores", f.name, f.text, f.most)
		}
	}
	switch {
	case s.Version == 0:
		return errors.New("no version")
	case !s.Slot.Valid():
		return errors.New("no slot")
	case len(s.Reason) > MaxReason || !utf8.ValidString(s.Reason):
		return fmt.Errorf("a reason of %d bytes, want at most %d of UTF-8", len(s.Reason), MaxReason)
	}
	if err := s.validExtensions(); err != nil {
		return err
	}
	switch s.Root {
	case "tpm", "key", "new", "none":
		return nil
	}
	return fmt.Errorf("root %.40q, want tpm, key, new or none", s.Root)
}

func (s *Statement) validExtensions() error {
	if len(s.Extensions) > contract.MaxExtensions {
		return fmt.Errorf("%d extensions, want at most %d", len(s.Extensions), contract.MaxExtensions)
	}
	for i, e := range s.Extensions {
		switch {
		case !contract.ValidID(e.Name):
			return fmt.Errorf("extension %.80q, want 1 to 64 of a-z, 0-9 and '-', starting with a letter", e.Name)
		case len(e.RootHash) != len(verity.Root{}):
			return fmt.Errorf("extension %s: root hash of %d bytes, want %d", e.Name, len(e.RootHash), len(verity.Root{}))
		case i > 0 && s.Extensions[i-1].Name >= e.Name:
			return fmt.Errorf("extension %s after %s, want them sorted", e.Name, s.Extensions[i-1].Name)
		}
	}
	return nil
}

// Validate checks the form alone.
func (r *Report) Validate() error {
	if r.Format != Format {
		return fmt.Errorf("format %d, want %d", r.Format, Format)
	}
	if err := r.Statement.validate(); err != nil {
		return err
	}
	want := Quoted()
	if len(r.PCRs) != len(want) {
		return fmt.Errorf("%d PCRs, want %d", len(r.PCRs), len(want))
	}
	for i, p := range r.PCRs {
		if p.PCR != want[i] {
			return fmt.Errorf("PCR %d in the place of PCR %d", p.PCR, want[i])
		}
	}
	for _, f := range []struct {
		name string
		b    []byte
		most int
	}{{"key", r.Key, maxKey}, {"quote", r.Quote, maxQuote}, {"signature", r.Signature, maxSig}, {"event_log", r.EventLog, pcr.MaxLog}} {
		if len(f.b) == 0 || len(f.b) > f.most {
			return fmt.Errorf("%s of %d bytes, want 1 to %d", f.name, len(f.b), f.most)
		}
	}
	return nil
}

// Encode returns the report as a file has it.
func (r *Report) Encode() ([]byte, error) {
	if err := r.Validate(); err != nil {
		return nil, fmt.Errorf("boot report: %w", err)
	}
	out, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("boot report: %w", err)
	}
	return append(out, '\n'), nil
}

// Parse reads what Encode wrote. It judges the form; Verify judges the rest.
func Parse(text []byte) (*Report, error) {
	if len(text) > MaxSize {
		return nil, fmt.Errorf("boot report: %d bytes, at most %d are read", len(text), MaxSize)
	}
	r := new(Report)
	if err := strictjson.Decode(text, r); err != nil {
		return nil, fmt.Errorf("boot report: %w", err)
	}
	if err := r.Validate(); err != nil {
		return nil, fmt.Errorf("boot report: %w", err)
	}
	return r, nil
}

// values are the registers by their numbers.
func (r *Report) values() map[int]pcr.Digest {
	all := map[int]pcr.Digest{}
	for _, p := range r.PCRs {
		all[p.PCR] = p.SHA256
	}
	return all
}
