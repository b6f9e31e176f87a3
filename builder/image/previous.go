package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/pgp"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/uki"
	"halogenos.internal/builder/files"
	"halogenos.internal/builder/room"
	"halogenos.internal/builder/sbom"
)

const (
	maxUKI  = 1 << 30  // bytes
	maxBill = 64 << 20 // bytes
	// maxMoved is how many accounts are named that have another number.
	maxMoved = 10
)

// follow refuses a build that machines with the previous one would not take:
// they have pinned its key, and go neither back nor to another image.
func (b *build) follow(context.Context) error {
	b.past = slices.Clone(b.Past)
	if b.Previous == "" {
		return b.slotsOfMachines()
	}
	was, takes, err := previousContract(filepath.Join(b.Previous, release.UKIFile))
	if err != nil {
		return fmt.Errorf("previous build %s: %w", b.Previous, err)
	}
	c := b.Config
	switch {
	case was.ImageID != c.ImageID || was.Arch != c.Arch:
		return fmt.Errorf("the previous build is %s for %s, this one %s for %s", was.ImageID, was.Arch, c.ImageID, c.Arch)
	case b.Version <= was.Version:
		return fmt.Errorf("version %s is not newer than %s of the previous build", b.Version, was.Version)
	case c.Epoch < was.Epoch:
		return fmt.Errorf("epoch %d is lower than %d of the previous build", c.Epoch, was.Epoch)
	}
	b.past = append(b.past, takes)
	if err := b.slotsOfMachines(); err != nil {
		return err
	}
	return samePinned(was.ReleaseKey, c.ReleaseKey)
}

// slotsOfMachines refuses a SlotSize that machines with a release before would not take: a
// smaller one, and without GrowSlots a larger one. With it, it says which of the releases
// cannot make slots larger.
func (b *build) slotsOfMachines() error {
	size, smaller := b.Config.SlotSize, false
	for _, r := range b.past {
		switch {
		case size < r.Slot:
			return fmt.Errorf("SlotSize is %d MiB, and that of release %s is %d MiB: slots become larger and never smaller, so make it %[3]d MiB or more", size>>20, r.Version, r.Slot>>20)
		case size > r.Slot && !b.Config.GrowSlots:
			return fmt.Errorf("SlotSize is %d MiB, but machines with release %s have system partitions of %d MiB. GrowSlots=yes in [Image] has them make their slots larger, where their owners agree and the root partition has the room", size>>20, r.Version, r.Slot>>20)
		}
		smaller = smaller || size > r.Slot
	}
	if text := room.Unable(size, b.past); text != "" {
		b.Progress.Note("WARNING: %s", text)
	} else if smaller {
		b.Progress.Note("machines with slots of less than %d MiB take this release once `ota grow` has made them larger", size>>20)
	}
	return nil
}

// pinnable refuses a release key that machines could not use, before they have it
// for years.
func (b *build) pinnable(context.Context) error {
	if len(b.Config.ReleaseKey) == 0 {
		return nil
	}
	key, err := pgp.ParseKey(b.Config.ReleaseKey)
	if err != nil {
		return fmt.Errorf("release key: %w", err)
	}
	now := b.Now
	if now.IsZero() {
		now = time.Now()
	}
	err = key.Pinnable(now)
	if _, ends := errors.AsType[*pgp.EndsError](err); ends && b.ExpiringKey {
		b.Progress.Note("WARNING: %v", err)
		return nil
	} else if ends {
		return fmt.Errorf("%w (--allow-expiring-key builds all the same)", err)
	}
	return err
}

// sameAccounts refuses users and groups that the previous build has under another number,
// or whose number it gives to another. On a machine the files of theirs that the image does
// not have keep the old one.
func (b *build) sameAccounts(context.Context) error {
	if b.Previous == "" {
		return nil
	}
	bill, err := files.Read(filepath.Join(b.Previous, BillFile), maxBill)
	var was []sbom.Account
	if err == nil {
		was, err = sbom.AccountsOf(bill)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("previous build %s: %w", b.Previous, err)
	}
	is, err := sbom.ReadAccounts(b.tree)
	if err != nil {
		return err
	}
	if len(was) == 0 && len(is) > 0 {
		b.Progress.Note("the previous build's %s names no users and groups: whether they have the same numbers is not known", BillFile)
	}
	moved := sbom.Moved(was, is)
	if len(moved) == 0 {
		return nil
	}
	if n := len(moved) - maxMoved; n > 0 {
		moved = append(moved[:maxMoved], fmt.Sprintf("and %d more", n))
	}
	text := fmt.Sprintf("other numbers than in the previous build: %s. What they own outside /etc on a machine, as in /var, would be somebody else's", strings.Join(moved, ", "))
	if b.MovedAccounts {
		b.Progress.Note("WARNING: %s", text)
		return nil
	}
	return fmt.Errorf("%s. Give them fixed numbers where the root file system is made (useradd --uid, groupadd --gid, sysusers.d; on Gentoo ACCT_USER_NAME_ID and ACCT_GROUP_NAME_ID in make.conf), or build all the same with --allow-moved-accounts", text)
}

// samePinned refuses another key than the one that was pinned. A key may change
// what it says of itself (a subkey that is new, or revoked), but not its
// fingerprint.
func samePinned(was, is []byte) error {
	name := func(text []byte) (string, error) {
		if len(text) == 0 {
			return "none", nil
		}
		key, err := pgp.ParseKey(text)
		if err != nil {
			return "", err
		}
		return key.Fingerprint().String(), nil
	}
	before, err := name(was)
	if err != nil {
		return fmt.Errorf("release key of the previous build: %w", err)
	}
	now, err := name(is)
	if err != nil {
		return fmt.Errorf("release key: %w", err)
	}
	if before != now {
		return fmt.Errorf("ReleaseKey is %s, but machines with the previous build have pinned %s and would take nothing else", now, before)
	}
	return nil
}

// previousContract reads the boot contract out of a UKI, and how much of a machine its
// release takes.
func previousContract(file string) (*contract.Contract, room.Release, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, room.Release{}, err
	}
	if info.Size() > maxUKI {
		return nil, room.Release{}, fmt.Errorf("%s has %d bytes, more than %d", file, info.Size(), maxUKI)
	}
	image, err := os.ReadFile(file)
	if err != nil {
		return nil, room.Release{}, err
	}
	u, err := uki.Parse(image)
	if err != nil {
		return nil, room.Release{}, fmt.Errorf("%s: %w", file, err)
	}
	initrd, ok := u.Section(".initrd")
	if !ok {
		return nil, room.Release{}, errors.New(file + " has no initramfs")
	}
	c, err := contract.FromInitrd(initrd)
	if err != nil {
		return nil, room.Release{}, err
	}
	return c, room.OfUKI(c, info.Size(), contract.AbilitiesFromInitrd(initrd)), nil
}
