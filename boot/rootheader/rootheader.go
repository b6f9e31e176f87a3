// Package rootheader says by what the root partition's LUKS2 volume is known: its
// label, and its tokens beyond those that LUKS2 and systemd define.
//
// It refuses to take a volume for ours that only looks like it. Whether this
// machine made it is not for a header to say: the boot asks the TPM, and the owner signature.
package rootheader

import (
	"errors"
	"fmt"
	"io"

	"halogenos.internal/boot/luks2"
)

// Label is the volume's LUKS2 label.
const Label = "halogen-root"

// Types of our tokens in the header, and the fields that the recovery key's token has
// besides what systemd knows.
const (
	TPMToken        = "halogen-tpm2"
	UnfinishedToken = "halogen-unfinished"
	ReplacedToken   = "halogen-replaced" // of a keyslot that is being removed
	PhraseToken     = "halogen-phrase"   // of no keyslot
	EscrowField     = "halogen-escrow"
	ChecksField     = "halogen-checks" // true: each group of the key has a check
)

// Check reports why a partition of size bytes is not a finished root partition that
// its recovery key opens, and returns the volume's UUID.
func Check(r io.ReaderAt, size int64) (uuid string, err error) {
	header, _, err := luks2.Open(r, size)
	if err != nil {
		return "", err
	}
	if header.Label != Label {
		return "", fmt.Errorf("its volume is labelled %q, want %q", header.Label, Label)
	}
	// The store lies where an installation writes.
	if waits, err := header.Redo(); err != nil || waits != nil {
		return "", errors.Join(errors.New("it was being made smaller when the machine stopped: start the machine once, or open it with `unlock` at the recovery console, so that this is finished"), err)
	}
	recovery := false
	for _, t := range header.Tokens() {
		switch t.Type {
		case UnfinishedToken:
			return "", errors.New("its first boot never came to its end, so that nothing is on it")
		case luks2.RecoveryTokenType:
			_, escrow := t.Fields[EscrowField]
			recovery = recovery || escrow && len(t.Keyslots) == 1
		}
	}
	if !recovery {
		return "", errors.New("its volume has no recovery key of this system's")
	}
	return header.UUID, nil
}
