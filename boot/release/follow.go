package release

import (
	"errors"
	"fmt"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/pgp"
)

// Follows reports why a machine that runs one system would not take another one
// after it, as far as their boot contracts say: another image, a lower epoch,
// other slots, another release key, or less that is asked of the machine. Versions
// are not compared.
func Follows(was, is *contract.Contract) error {
	switch {
	case was.ImageID != is.ImageID || was.Arch != is.Arch:
		return fmt.Errorf("it is %s for %s, and their system %s for %s", is.ImageID, is.Arch, was.ImageID, was.Arch)
	case is.Epoch < was.Epoch:
		return fmt.Errorf("epoch %d is lower than %d", is.Epoch, was.Epoch)
	case is.SlotSize != was.SlotSize:
		return fmt.Errorf("it wants slots of %d MiB, and theirs have %d: keep SlotSize as it was, or let them install it again", is.SlotSize>>20, was.SlotSize>>20)
	case is.RootFileSystem != was.RootFileSystem:
		return fmt.Errorf("it wants %s on the root partition, which has %s", is.RootFileSystem, was.RootFileSystem)
	case was.SecureBoot == contract.Required && is.SecureBoot != contract.Required:
		return errors.New("it does without Secure Boot, which they require")
	case was.TPM == contract.Required && is.TPM != contract.Required:
		return errors.New("it does without a TPM, which they require")
	}
	return pgp.SamePinned(was.ReleaseKey, is.ReleaseKey)
}
