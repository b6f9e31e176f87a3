package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"halogenos.internal/boot/strictjson"
)

// Bounds of what is read from a disk.
const (
	maxSealedJSON  = 8 << 10
	maxSealedBlob  = 1 << 10
	sealedVersion1 = 1
	sealedVersion2 = 2 // with a PIN
)

// ErrNewer is wrapped by the refusal of what a later release has sealed.
var ErrNewer = errors.New("of a later release")

// ErrSealed is wrapped by every refusal to take a stored sealed object.
var ErrSealed = errors.New("sealed object")

// Kind says which policy a sealed object is under. The zero value is invalid.
type Kind string

const (
	// KindNV is PolicyAuthorizeNV over the machine's NV index: what may unlock
	// changes by writing the index, and an older policy cannot come back.
	KindNV Kind = "nv"
	// KindPCR is a fixed list of boots. A change means sealing again, and an
	// older copy of the object still opens for the boots it was made for:
	// there is no floor. For the time between the first and the second boot,
	// and for a TPM that has no room or no command for KindNV.
	KindPCR Kind = "pcr"
)

// Sealed is the portable form of a sealed object, stored where an attacker may
// change it (a LUKS2 token, the ESP). Nothing in it is secret, and nothing in
// it is believed: the TPM checks the blobs, and a swapped volume is found out
// by its fingerprint and by PCR 15.
type Sealed struct {
	Version int    `json:"version"`
	Kind    Kind   `json:"kind"`
	SRKName Name   `json:"srk-name"` // of the storage root key when sealing
	Public  []byte `json:"public"`   // TPMT_PUBLIC
	Private []byte `json:"private"`  // contents of TPM2B_PRIVATE

	NVIndex uint32 `json:"nv-index,omitempty"` // KindNV: handle
	NVName  *Name  `json:"nv-name,omitempty"`  // KindNV: Name once written

	PCRs     []int    `json:"pcrs,omitempty"`     // KindPCR: ascending
	Branches []Digest `json:"branches,omitempty"` // KindPCR: 1 to MaxBranches
	// KindPCR: the count of resets up to which the TPM unseals; 0 for ever.
	Resets uint32 `json:"resets,omitempty"`

	// PIN is how the PIN is stretched that the TPM asks for; nil for none. It comes with
	// version 2, which no release before knows: such a one takes the root partition for
	// damaged, and must not be started.
	PIN *Stretch `json:"pin,omitempty"`

	// Phrase: it holds the key of the phrase, and not the machine secret. This is not stored:
	// the place that the object was read from says it, and the TPM does, since its policy is
	// another one ([Sealed.Policy]).
	Phrase bool `json:"-"`
}

// Guard notes that the object asks for a PIN.
func (s *Sealed) Guard(by Stretch) { s.Version, s.PIN = sealedVersion2, &by }

// Allows reports whether an object that is bound to PCRs is released to a boot. One that
// is bound to an NV index obeys the record there ([Record.Allows]).
func (s *Sealed) Allows(b Boot) (bool, error) {
	d, err := b.BranchOver(s.PCRs)
	return err == nil && slices.Contains(s.Branches, d), err
}

// Policy returns the policy digest that the object must be under. That of a phrase says that
// the object is for TPM2_Unseal, which changes nothing about it but its Name: neither object can
// be put in place of the other. What the boot does with a machine secret it would not do with
// what it takes for a phrase.
func (s *Sealed) Policy() (Digest, error) {
	d, err := s.Boots()
	if err == nil && s.Phrase {
		d = UnsealAlone(d)
	}
	if err == nil && s.PIN != nil {
		d = AuthValue(d)
	}
	return d, err
}

// LikeBoots reports whether two objects are sealed by the same TPM to the same boots, whatever
// they ask of a person.
func (s *Sealed) LikeBoots(o *Sealed) bool {
	one, err := s.Boots()
	if err != nil || s.Kind != o.Kind || s.SRKName != o.SRKName || s.NVIndex != o.NVIndex {
		return false
	}
	other, err := o.Boots()
	return err == nil && one == other
}

// Boots is the policy without what it asks of a person.
func (s *Sealed) Boots() (Digest, error) {
	switch s.Kind {
	case KindNV:
		if s.NVName == nil {
			return Digest{}, fmt.Errorf("%w: no name of an NV index", ErrSealed)
		}
		return AuthorizeNV(*s.NVName), nil
	case KindPCR:
		d, err := Fixed(s.Branches)
		if err == nil && s.Resets > 0 {
			d = UpToReset(d, s.Resets)
		}
		return d, err
	}
	return Digest{}, fmt.Errorf("%w: kind %q, want %q or %q", ErrSealed, s.Kind, KindNV, KindPCR)
}

// Fixed is the policy of KindPCR: the branch itself when there is one, else
// their OR.
func Fixed(branches []Digest) (Digest, error) {
	if len(branches) == 1 {
		return branches[0], nil
	}
	return OR(branches)
}

// Validate checks everything that can be checked without the TPM, so that a
// damaged or altered token is told from a TPM that refuses.
func (s *Sealed) Validate() error {
	version := sealedVersion1
	if s.PIN != nil && s.Phrase {
		return fmt.Errorf("%w: a phrase that asks for a PIN", ErrSealed)
	}
	if s.PIN != nil {
		version = sealedVersion2
		if err := s.PIN.Validate(); err != nil {
			return fmt.Errorf("%w: %w", ErrSealed, err)
		}
	}
	if s.Version != version {
		return fmt.Errorf("%w: version %d, want %d", ErrSealed, s.Version, version)
	}
	for what, blob := range map[string][]byte{"public": s.Public, "private": s.Private} {
		if n := len(blob); n == 0 || n > maxSealedBlob {
			return fmt.Errorf("%w: %s area of %d bytes, want 1 to %d", ErrSealed, what, n, maxSealedBlob)
		}
	}
	if s.SRKName.IsZero() {
		return fmt.Errorf("%w: no name of a storage root key", ErrSealed)
	}
	if err := s.validateKind(); err != nil {
		return err
	}
	want, err := s.Policy()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrSealed, err)
	}
	return s.checkPublic(want)
}

func (s *Sealed) validateKind() error {
	switch s.Kind {
	case KindNV:
		if len(s.PCRs)+len(s.Branches) > 0 || s.Resets > 0 {
			return fmt.Errorf("%w: PCRs given for an object bound to an NV index", ErrSealed)
		}
		// TPM_HT_NV_INDEX is the handle's first byte (Part 2, 7.2).
		if s.NVIndex>>24 != 0x01 || s.NVName == nil {
			return fmt.Errorf("%w: %#x with name %v is not an NV index", ErrSealed, s.NVIndex, s.NVName)
		}
	case KindPCR:
		if s.NVIndex != 0 || s.NVName != nil {
			return fmt.Errorf("%w: an NV index given for an object bound to PCRs", ErrSealed)
		}
		if n := len(s.Branches); n == 0 || n > MaxBranches {
			return fmt.Errorf("%w: %d branches, want 1 to %d", ErrSealed, n, MaxBranches)
		}
		var b Boot
		if _, err := b.BranchOver(s.PCRs); err != nil {
			return fmt.Errorf("%w: %w", ErrSealed, err)
		}
		if !slices.Contains(s.PCRs, 11) {
			return fmt.Errorf("%w: PCRs %v do not hold the UKI's, 11", ErrSealed, s.PCRs)
		}
	default:
		return fmt.Errorf("%w: kind %q, want %q or %q", ErrSealed, s.Kind, KindNV, KindPCR)
	}
	return nil
}

// sealedUnique is the size of a keyed hash object's unique field, the digest of
// its seed and content, with the size in front.
const sealedUnique = 2 + 32

// checkPublic compares the public area with the template; only the digest at
// its end is the object's own.
func (s *Sealed) checkPublic(policy Digest) error {
	template := SealedTemplate(policy)
	if s.PIN != nil {
		template = GuardedTemplate(policy)
	}
	want := tpm2.Marshal(template)
	fixed := len(want) - 2 // the template's unique field is empty: its size alone
	if len(s.Public) != fixed+sealedUnique || !bytes.Equal(s.Public[:fixed], want[:fixed]) ||
		!bytes.Equal(s.Public[fixed:fixed+2], []byte{0, sealedUnique - 2}) {
		return fmt.Errorf("%w: its public area is not that of an object under the policy it names", ErrSealed)
	}
	return nil
}

// Name returns the TPM Name of the sealed object.
func (s *Sealed) Name() Name { return NameOf(s.Public) }

// Encode returns the JSON form, for a LUKS2 token or a file.
func (s *Sealed) Encode() ([]byte, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	return json.Marshal(s)
}

// ParseSealed reads what Encode returned of a machine secret's object. It takes at most 8 KiB,
// and no field that it does not know.
func ParseSealed(b []byte) (*Sealed, error) { return parseSealed(b, false) }

// ParseSealedPhrase reads what Encode returned of a phrase's object, likewise. Each of the two
// refuses what the other one takes.
func ParseSealedPhrase(b []byte) (*Sealed, error) { return parseSealed(b, true) }

func parseSealed(b []byte, phrase bool) (*Sealed, error) {
	if len(b) > maxSealedJSON {
		return nil, fmt.Errorf("%w: %d bytes, want at most %d", ErrSealed, len(b), maxSealedJSON)
	}
	var of struct {
		Version int `json:"version"`
	}
	if json.Unmarshal(b, &of) == nil && of.Version > sealedVersion2 {
		return nil, fmt.Errorf("%w: version %d: %w", ErrSealed, of.Version, ErrNewer)
	}
	s := new(Sealed)
	if err := strictjson.Decode(b, s); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSealed, err)
	}
	s.Phrase = phrase
	if err := s.Validate(); err != nil {
		return nil, err
	}
	return s, nil
}

// NewSealed puts a sealed object's stored form together; the caller fills in
// what the kind needs.
func NewSealed(kind Kind, srk Name, public, private []byte) *Sealed {
	return &Sealed{Version: sealedVersion1, Kind: kind, SRKName: srk, Public: public, Private: private}
}
