package release

import (
	"errors"
	"fmt"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/pgp"
)

// Follows reports why a machine that runs one system does not take another one after
// it, as far as their boot contracts say: another image, a lower epoch, smaller slots,
// another release key, or less that is asked of the machine. Requirements stay: a
// release that drops one would let anyone who takes the machine's protection away go on.
// The publisher and the machine both decide by this. Versions are not compared, nor
// what only the machine knows, such as the floor of its epochs, and whether its slots are as
// large as a release wants them.
func Follows(was, is *contract.Contract) error {
	switch {
	case was.ImageID != is.ImageID || was.Arch != is.Arch:
		return fmt.Errorf("it is of image %s for %s, and the system before it of image %s for %s: another image is another installation", is.ImageID, is.Arch, was.ImageID, was.Arch)
	case is.Epoch < was.Epoch:
		return fmt.Errorf("epoch %d is lower than %d, that of the system before it: build it with Epoch=%[2]d or more", is.Epoch, was.Epoch)
	case is.SlotSize < was.SlotSize:
		return fmt.Errorf("it wants slots of %d MiB, and the system before it has %d: keep SlotSize as it was, since slots become larger and never smaller", is.SlotSize>>20, was.SlotSize>>20)
	case is.RootFileSystem != was.RootFileSystem:
		return fmt.Errorf("it wants %s on the root partition, which has %s: keep RootPartitionFormat as it was", is.RootFileSystem, was.RootFileSystem)
	case was.SecureBoot == contract.Required && is.SecureBoot != contract.Required:
		return errors.New("it does without Secure Boot, which the system before it requires: keep SecureBoot=required")
	case was.TPM == contract.Required && is.TPM != contract.Required:
		return errors.New("it does without a TPM, which the system before it requires: keep TPM=required")
	}
	return pgp.SamePinned(was.ReleaseKey, is.ReleaseKey)
}
