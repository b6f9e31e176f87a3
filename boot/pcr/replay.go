package pcr

import (
	"bytes"
	"crypto"
	_ "crypto/sha1" // a bank may be SHA-1
	"crypto/sha256"
	_ "crypto/sha512"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// hashOf returns zero for a hash that cannot be computed here.
func hashOf(bank Algorithm) crypto.Hash {
	switch bank {
	case SHA1:
		return crypto.SHA1
	case SHA256:
		return crypto.SHA256
	case SHA384:
		return crypto.SHA384
	case SHA512:
		return crypto.SHA512
	}
	return 0
}

// Replay returns what the events make of the registers of a bank. Registers
// that no event extends are left out.
func (l *Log) Replay(bank Algorithm) (map[int][]byte, error) {
	hash := hashOf(bank)
	if hash == 0 || !slices.Contains(l.Banks, bank) {
		return nil, fmt.Errorf("replay event log: no bank %s, it has %v", bank, l.Banks)
	}
	values := map[int][]byte{}
	h := hash.New()
	for _, e := range l.Events {
		if e.Type == EventNoAction {
			continue
		}
		sum, ok := e.Digest(bank)
		if !ok {
			return nil, fmt.Errorf("replay event log: event %d has no digest for bank %s", e.Number, bank)
		}
		if values[e.PCR] == nil {
			values[e.PCR] = l.initial(e.PCR, hash.Size())
		}
		h.Reset()
		h.Write(values[e.PCR])
		h.Write(sum)
		values[e.PCR] = h.Sum(nil)
	}
	return values, nil
}

// initial is a register's value after the TPM's start (TPM 2.0 Library, part 1,
// "Initializing PCR"; PC Client Platform TPM Profile, section 4.6).
func (l *Log) initial(register, size int) []byte {
	value := make([]byte, size)
	switch {
	case register == 0:
		value[size-1] = l.Locality
	case register >= 17 && register <= 22:
		for i := range value {
			value[i] = 0xff
		}
	}
	return value
}

// PCRs replays the SHA-256 bank. All 24 registers are there.
func (l *Log) PCRs() (map[int]Digest, error) {
	replayed, err := l.Replay(SHA256)
	if err != nil {
		return nil, err
	}
	values := map[int]Digest{}
	for n := range registers {
		if replayed[n] == nil {
			replayed[n] = l.initial(n, sha256.Size)
		}
		values[n] = Digest(replayed[n])
	}
	return values, nil
}

// MismatchError says that a log does not account for the registers' values:
// something was measured and not logged, logged and not measured, or changed
// in the log.
type MismatchError struct {
	PCRs []int // those that differ, in order
}

// Error implements error.
func (e *MismatchError) Error() string {
	return fmt.Sprintf("the event log does not account for PCR %s", strings.Trim(strings.Join(strings.Fields(fmt.Sprint(e.PCRs)), ", "), "[]"))
}

// Check compares a replay of the SHA-256 bank with the registers' values, for
// those registers that are given. What the operating system extended since has
// to be taken into account by the caller.
func (l *Log) Check(values map[int]Digest) error {
	replayed, err := l.PCRs()
	if err != nil {
		return err
	}
	var differ []int
	for _, n := range slices.Sorted(maps.Keys(values)) {
		logged, ok := replayed[n]
		if !ok || logged != values[n] {
			differ = append(differ, n)
		}
	}
	if len(differ) > 0 {
		return &MismatchError{PCRs: differ}
	}
	return nil
}

// Stated reports whether the SHA-256 digest of the event is that of its data,
// so that once the log is replayed the data is proven too. Many events hold a
// description instead: of images, of firmware volumes, of EV_IPL.
func (e Event) Stated() bool {
	sum, ok := e.Digest(SHA256)
	stated := sha256.Sum256(e.Data)
	return ok && bytes.Equal(sum, stated[:])
}
