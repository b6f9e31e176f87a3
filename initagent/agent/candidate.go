package agent

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"time"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/pgp"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/verity"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/hw"
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

// releaseFile reads a file of a fetched release. One that is missing or unfit is
// the release's fault.
func (a *Agent) releaseFile(v contract.Version, name string, limit int64) ([]byte, error) {
	b, err := a.Store.Read(path.Join(fetchDirectory, v.String(), name), limit)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, hw.ErrUnfit):
		return nil, refuse("%s of version %s: %w", name, v, err)
	case err != nil:
		return nil, fmt.Errorf("%s of version %s: %w", name, v, err)
	}
	return b, nil
}

// checkRelease checks a release that the fetcher says is complete, the cheapest
// first, and nothing is changed before all of it is good.
func (a *Agent) checkRelease(note *stagedNote) (*candidate, error) {
	if err := a.checkTurn(note); err != nil {
		return nil, err
	}
	c := &candidate{slot: note.Slot}
	var err error
	if c.release, err = a.readRelease(note.Version); err != nil {
		return nil, err
	}
	if err := a.checkFits(note, c.release); err != nil {
		return nil, refusal{err}
	}
	if err := a.readCandidate(c); err != nil {
		return nil, err
	}
	if err := release.Follows(a.Contract, c.contract); err != nil {
		return nil, refuse("the release cannot follow the system that runs: %w", err)
	}
	if err := a.checkMachine(c.contract); err != nil {
		return nil, err
	}
	if err := a.checkSlot(c); err != nil {
		return nil, err
	}
	c.name = bls.Name{ImageID: c.contract.ImageID, Version: c.contract.Version, Counted: true, Left: freshTries}
	return c, a.checkManager(c.release)
}

// checkTurn refuses what is not to be staged now, whatever it is.
func (a *Agent) checkTurn(note *stagedNote) error {
	v := note.Version
	if v <= a.Contract.Version {
		return refuse("version %s is not newer than %s, which is running", v, a.Contract.Version)
	}
	if note.Slot != a.state.Booted.Other() {
		return refuse("version %s is for slot %s, and slot %s is running", v, note.Slot, a.state.Booted)
	}
	for _, n := range a.Names {
		if n.ImageID == a.Contract.ImageID && !n.Bad() && n.Version >= v {
			return refuse("version %s is not newer than %s, which is there", v, n)
		}
	}
	failures, err := a.failures()
	if err != nil {
		return err
	}
	if reason, failed := failures[v]; failed {
		return refuse("version %s has failed before: %s", v, reason)
	}
	return nil
}

// readRelease reads the description of a release and checks who signed it.
func (a *Agent) readRelease(v contract.Version) (*release.Release, error) {
	text, err := a.releaseFile(v, release.FileName, release.MaxSize)
	if err != nil {
		return nil, err
	}
	if len(a.Contract.ReleaseKey) > 0 {
		signature, err := a.releaseFile(v, release.FileName+".pgp", pgp.MaxSignature)
		if err != nil {
			return nil, err
		}
		key, err := a.releaseKey(v)
		if err != nil {
			return nil, err
		}
		if err := a.checkSignature(key, text, signature); err != nil {
			return nil, refuse("%s: %w", release.FileName, err)
		}
	}
	r, err := release.Parse(text)
	if err != nil {
		return nil, refusal{err}
	}
	return r, nil
}

// releaseKey returns the pinned key with what the fetcher has learned of it: later
// expiry dates, new subkeys, revocations. Whoever has put the file there, only what
// the pinned primary key itself has signed counts. Without it, or where it is
// damaged, the pinned key stands alone.
func (a *Agent) releaseKey(v contract.Version) (*pgp.Key, error) {
	key, err := pgp.ParseKey(a.Contract.ReleaseKey)
	if err != nil {
		return nil, err
	}
	text, err := a.Store.Read(path.Join(fetchDirectory, v.String(), release.KeyFile), pgp.MaxKey)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, hw.ErrUnfit) {
		return key, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s of version %s: %w", release.KeyFile, v, err)
	}
	known, err := pgp.ParseKey(text)
	if err == nil {
		known, err = key.Merge(known)
	}
	if err != nil {
		return key, nil
	}
	return known, nil
}

// clockRange is how far ahead of the running image's date a clock is believed.
const clockRange = 20 * 365 * 24 * time.Hour

// checkSignature checks that the pinned key has signed.
//
// A machine's clock may be in 1970 or in 2100. It is believed from the date of the
// running image on, for clockRange; any other counts as that date. And a signature
// from the future is judged at the time it was made: that the clock is behind is
// the likelier reason, and a key that signs ahead of time gains nothing. A key that
// has expired by such a clock signs nothing any more: the release is refused.
func (a *Agent) checkSignature(key *pgp.Key, text, signature []byte) error {
	built := a.Contract.Date()
	now := a.Now()
	if now.Before(built) || now.After(built.Add(clockRange)) {
		now = built
	}
	made, err := pgp.Created(signature)
	if err != nil {
		return err
	}
	if made.After(now) && made.Before(built.Add(clockRange)) {
		now = made
	}
	if err := key.Verify(bytes.NewReader(text), signature, now); err != nil {
		return fmt.Errorf("judged as of %s: %w", now.UTC().Format(time.DateOnly), err)
	}
	return nil
}

// checkFits refuses a release for what only this machine knows. The rest is in the
// boot contracts, with which release.json must agree.
func (a *Agent) checkFits(note *stagedNote, r *release.Release) error {
	switch {
	case r.Version != note.Version:
		return fmt.Errorf("%s is of version %s, want %s", release.FileName, r.Version, note.Version)
	case r.Epoch < a.state.Floor:
		return fmt.Errorf("the release's epoch is %d, the lowest that may run is %d", r.Epoch, a.state.Floor)
	}
	return nil
}

// readCandidate reads the UKI and checks that it is the release's.
func (a *Agent) readCandidate(c *candidate) error {
	file, _ := c.release.File(release.UKIFile)
	var err error
	if c.uki, err = a.checkedFile(c.release, file); err != nil {
		return err
	}
	if c.contract, c.started, err = rootpart.Describe(c.uki); err != nil {
		return refuse("%s: %w", release.UKIFile, err)
	}
	if err := c.release.Matches(c.contract); err != nil {
		return refusal{err}
	}
	if !bytes.Equal(c.started[:], c.release.PCR11) {
		return refuse("%s leaves %s in PCR 11, and %s says %x", release.UKIFile, c.started, release.FileName, []byte(c.release.PCR11))
	}
	return nil
}

// checkedFile reads an EFI file of the release and compares its hashes.
func (a *Agent) checkedFile(r *release.Release, f release.File) ([]byte, error) {
	if f.Size > enroll.MaxEFIFile {
		return nil, refuse("%s has %d bytes, at most %d fit", f.Name, f.Size, enroll.MaxEFIFile)
	}
	b, err := a.releaseFile(r.Version, f.Name, f.Size)
	if err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(b); !bytes.Equal(sum[:], f.SHA256) {
		return nil, refuse("%s has SHA-256 %x, want %x", f.Name, sum, []byte(f.SHA256))
	}
	digest, err := authenticode.Digest(b)
	if err != nil {
		return nil, refuse("%s: %w", f.Name, err)
	}
	if !bytes.Equal(digest[:], f.Authenticode) {
		return nil, refuse("%s has the image hash %x, want %x", f.Name, digest, []byte(f.Authenticode))
	}
	return b, nil
}

// checkMachine stops a release that requires what the machine lacks: its trial would
// end in the recovery console until somebody comes. Where the running system requires
// it too, it may be back at the next boot; otherwise the release is refused.
func (a *Agent) checkMachine(c *contract.Contract) error {
	if c.SecureBoot == contract.Required && !a.OwnEnforced() {
		err := errors.New("the release requires Secure Boot with this machine's own keys, which is off")
		if a.Contract.SecureBoot == contract.Optional {
			return refusal{err}
		}
		return err
	}
	if bound := a.Chip.Err == nil && a.Lock != nil && a.Lock.Sealed != nil; c.TPM == contract.Required && !bound {
		err := errors.New("the release requires a TPM, and this machine's root partition is not bound to one")
		if a.Contract.TPM == contract.Optional {
			return refusal{err}
		}
		return err
	}
	return nil
}

// checkSlot checks that the slot's partitions have room for what the release says
// is in them, and that the tree there is the release's. Its superblock is not
// looked at: nothing is opened by what it says.
func (a *Agent) checkSlot(c *candidate) error {
	p := c.contract.VerityParams()
	tree, err := verity.TreeSize(p.DataBlocks)
	if err != nil {
		return refusal{err}
	}
	for number, need := range map[int]int64{c.slot.SystemNumber(): c.contract.ImageSize, c.slot.VerityNumber(): tree} {
		part, ok := a.Table.ByNumber(number)
		_, have := a.Table.Bytes(part)
		if !ok || have < need {
			return refuse("partition %d of slot %s has %d bytes, the release needs %d", number, c.slot, have, need)
		}
	}
	data, err := a.Disks.OpenPartition(a.Disk, c.slot.SystemNumber(), false)
	if err != nil {
		return err
	}
	defer data.Close()
	hash, err := a.Disks.OpenPartition(a.Disk, c.slot.VerityNumber(), false)
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
		return refuse("slot %s does not hold the release: %w", c.slot, err)
	}
	return err
}

// checkManager checks the boot manager that the release brings.
func (a *Agent) checkManager(r *release.Release) error {
	file, _ := r.File(release.BootManagerFile)
	_, err := a.checkedFile(r, file)
	return err
}
