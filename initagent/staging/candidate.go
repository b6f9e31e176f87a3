package staging

import (
	"bytes"
	"errors"
	"fmt"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/statefiles"
	"halogenos.internal/boot/uki"
	"halogenos.internal/boot/verity"
	"halogenos.internal/initagent/extensions"
	"halogenos.internal/initagent/fetched"
	"halogenos.internal/initagent/rootpart"
)

// A candidate is a release that may be staged.
type candidate struct {
	release  *release.Release
	contract *contract.Contract
	slot     layout.Slot
	name     bls.Name   // with its tries
	uki      []byte     // as fetched, and then signed by this machine
	started  pcr.Digest // PCR 11 before the kernel
}

// checkRelease checks a release that the fetcher says is complete, the cheapest
// first, and nothing is changed before all of it is good.
func (s *stager) checkRelease(note *statefiles.Staged) (*candidate, error) {
	if err := s.checkTurn(note); err != nil {
		return nil, err
	}
	c := &candidate{slot: note.Slot}
	var err error
	if c.release, err = fetched.Release(s.Host, note.Version); err != nil {
		return nil, err
	}
	if err := s.checkFits(note, c.release); err != nil {
		return nil, fetched.Refused(err)
	}
	if err := s.readCandidate(c); err != nil {
		return nil, err
	}
	if err := release.Follows(s.Contract, c.contract); err != nil {
		return nil, fetched.Refuse("the release cannot follow the system that runs: %w", err)
	}
	if err := s.checkMachine(c.contract); err != nil {
		return nil, err
	}
	if err := s.checkSlot(c); err != nil {
		return nil, err
	}
	if err := s.checkExtensions(c); err != nil {
		return nil, err
	}
	c.name = bls.Name{ImageID: c.contract.ImageID, Version: c.contract.Version, Counted: true, Left: Tries}
	return c, s.checkManager(c.release)
}

// checkTurn refuses what is not to be staged now, whatever it is.
func (s *stager) checkTurn(note *statefiles.Staged) error {
	v := note.Version
	if v <= s.Contract.Version {
		return fetched.Refuse("version %s is not newer than %s, which is running", v, s.Contract.Version)
	}
	if note.Slot != s.State.Booted.Other() {
		return fetched.Refuse("version %s is for slot %s, and slot %s is running", v, note.Slot, s.State.Booted)
	}
	for _, n := range s.Names {
		if n.ImageID == s.Contract.ImageID && !n.Bad() && n.Version >= v {
			return fetched.Refuse("version %s is not newer than %s, which is there", v, n)
		}
	}
	failures, err := s.Journal.Failures()
	if err != nil {
		return err
	}
	if reason, failed := failures[v]; failed {
		return fetched.Refuse("version %s has failed before: %s", v, reason)
	}
	return nil
}

// checkFits refuses a release for what only this machine knows. The rest is in the
// boot contracts, with which release.json must agree.
func (s *stager) checkFits(note *statefiles.Staged, r *release.Release) error {
	switch {
	case r.Version != note.Version:
		return fmt.Errorf("%s is of version %s, want %s", release.FileName, r.Version, note.Version)
	case r.Epoch < s.State.Floor:
		return fmt.Errorf("the release's epoch is %d, the lowest that may run is %d", r.Epoch, s.State.Floor)
	}
	return nil
}

// readCandidate reads the UKI and checks that it is the release's.
func (s *stager) readCandidate(c *candidate) error {
	file, _ := c.release.File(release.UKIFile)
	var err error
	if c.uki, err = fetched.File(s.Host, c.release, file); err != nil {
		return err
	}
	if c.contract, c.started, err = rootpart.Describe(c.uki); err != nil {
		return fetched.Refuse("%s: %w", release.UKIFile, err)
	}
	if err := c.release.Matches(c.contract); err != nil {
		return fetched.Refused(err)
	}
	if !bytes.Equal(c.started[:], c.release.PCR11) {
		return fetched.Refuse("%s leaves %s in PCR 11, and %s says %x", release.UKIFile, c.started, release.FileName, []byte(c.release.PCR11))
	}
	return nil
}

// checkMachine stops a release that requires what the machine lacks: its trial would
// end in the recovery console until somebody comes. Where the running system requires
// it too, it may be back at the next boot; otherwise the release is refused.
func (s *stager) checkMachine(c *contract.Contract) error {
	if c.SecureBoot == contract.Required && !s.OwnEnforced() {
		err := errors.New("the release requires Secure Boot with this machine's own keys, which is off")
		if s.Contract.SecureBoot == contract.Optional {
			return fetched.Refused(err)
		}
		return err
	}
	if bound := s.Chip.Err == nil && s.Lock != nil && s.Lock.Sealed != nil; c.TPM == contract.Required && !bound {
		err := errors.New("the release requires a TPM, and this machine's root partition is not bound to one")
		if s.Contract.TPM == contract.Optional {
			return fetched.Refused(err)
		}
		return err
	}
	return nil
}

// checkSlot checks that the slot's partitions have room for what the release says
// is in them, and that the tree there is the release's. Its superblock is not
// looked at: nothing is opened by what it says.
func (s *stager) checkSlot(c *candidate) error {
	p := c.contract.VerityParams()
	tree, err := verity.TreeSize(p.DataBlocks)
	if err != nil {
		return fetched.Refused(err)
	}
	if err := layout.CheckRoom(s.Table, c.slot, c.contract.ImageSize, tree); err != nil {
		return fetched.Refused(err)
	}
	// Neither slot may be smaller: the release after it goes to the other one.
	for _, role := range []layout.Role{c.slot.System(), c.slot.Other().System()} {
		if have, err := layout.Size(s.Table, role); err == nil && have < c.contract.SlotSize {
			return fetched.Refuse("it wants slots of %d MiB, and the partition %s has %d: `ota grow` makes the slots larger", c.contract.SlotSize>>20, role, have>>20)
		}
	}
	data, err := s.Disks.OpenPartition(s.Disk, c.slot.System(), false)
	if err != nil {
		return err
	}
	defer data.Close()
	hash, err := s.Disks.OpenPartition(s.Disk, c.slot.Verity(), false)
	if err != nil {
		return err
	}
	defer hash.Close()
	// The last block of each: a disk that got smaller is found out here.
	block := make([]byte, verity.BlockSize)
	if _, err := data.ReadAt(block, c.contract.ImageSize-verity.BlockSize); err != nil {
		return fmt.Errorf("read the end of slot %s: %w", c.slot, err)
	}
	if _, err := hash.ReadAt(block, tree-verity.BlockSize); err != nil {
		return fmt.Errorf("read the end of slot %s's tree: %w", c.slot, err)
	}
	err = verity.CheckTop(data, hash, p, c.contract.Root())
	if _, corrupt := errors.AsType[*verity.CorruptError](err); corrupt {
		return fetched.Refuse("slot %s does not hold the release: %w", c.slot, err)
	}
	return err
}

// checkExtensions stops a release whose trials would end by an essential extension that is
// enabled and not there. Its file may be fetched by the next boot.
func (s *stager) checkExtensions(c *candidate) error {
	image, err := uki.Parse(c.uki)
	if err != nil {
		return fetched.Refuse("%s: %w", release.UKIFile, err)
	}
	initrd, _ := image.Section(".initrd")
	list, err := contract.ExtensionsFromInitrd(initrd)
	if err != nil {
		return fetched.Refuse("%s: %w", release.UKIFile, err)
	}
	if err := extensions.MayStart(s.Host, list); err != nil {
		return fmt.Errorf("version %s would not start here: %w", c.contract.Version, err)
	}
	return nil
}

// checkManager checks the boot manager that the release brings.
func (s *stager) checkManager(r *release.Release) error {
	file, _ := r.File(release.BootManagerFile)
	_, err := fetched.File(s.Host, r, file)
	return err
}
