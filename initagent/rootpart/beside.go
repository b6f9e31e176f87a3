package rootpart

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/fat"
	"halogenos.internal/initagent/enrol"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/systems"
)

// signBeside signs each file of the ESP that is allowed by the new key, besides the old
// one. The firmware enforces Secure Boot meanwhile, so that a file is never changed where
// it lies.
func (k *KeyChange) signBeside(c *change, signer enrol.Signer) error {
	old := enrol.DBSigner{Pair: c.old.DB}
	var names []string
	err := k.ESP.Write(k.Disk, func(dir hw.ESPDir) (err error) {
		if names, err = enrol.EFIFiles(dir); err != nil {
			return err
		}
		return removeSpares(dir, names)
	})
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := k.signOneBeside(name, old, signer, Allowed(c.next)); err != nil {
			return fmt.Errorf("sign %s: %w", name, err)
		}
	}
	return nil
}

// removeSpares takes away what a cut has left beside the files.
func removeSpares(dir hw.ESPDir, names []string) error {
	var seen []string
	for _, name := range names {
		spare := path.Join(path.Dir(name), spareFile)
		if slices.Contains(seen, spare) {
			continue
		}
		seen = append(seen, spare)
		err := dir.Remove(spare)
		if err == nil {
			err = dir.SyncDir(path.Dir(spare))
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// signOneBeside replaces one file by itself with one more signature. The name has one
// whole file or the other at every instant, and either starts: the new one is written
// under a name that nothing starts, and is known to be on the disk; then the two exchange
// what they have, by a write of one sector; and what is the old one goes. Cut before that
// write, the spare file is removed the next time, and this begins again; cut after it, the
// file is signed, and the spare file is removed.
func (k *KeyChange) signOneBeside(name string, old, signer enrol.Signer, allowed enrol.Allowed) error {
	spare := path.Join(path.Dir(name), spareFile)
	var signed []byte
	err := k.ESP.Write(k.Disk, func(dir hw.ESPDir) error {
		image, err := dir.Read(name)
		if err != nil || signer.Verify(image) == nil {
			return nil // firmware cannot start it, or it is done
		}
		starts := old.Verify(image) == nil
		if err := allowed(name, image); err != nil {
			if !starts {
				return nil
			}
			if _, parsed := bls.Parse(path.Base(name)); parsed == nil && strings.EqualFold(path.Dir(name), bls.Folder) {
				return fmt.Errorf("it would start no more, since %w: remove it first", err)
			}
			k.Say("%s starts no more: %v", name, err)
			return nil
		}
		if signed, err = signer.Sign(image); err != nil {
			return err
		}
		if err := signer.Verify(signed); err != nil || starts && old.Verify(signed) != nil {
			return fmt.Errorf("the signature just made does not verify (%v), or the old one no longer does", err)
		}
		if err := systems.CheckRoom(dir, int64(len(signed))); err != nil {
			return err
		}
		return enrol.Replace(dir, spare, signed)
	})
	if err != nil || signed == nil {
		return err
	}
	err = k.ESP.Exchange(k.Disk, name, spare)
	if errors.Is(err, fat.ErrApart) {
		err = fmt.Errorf("%w: `esp-rebuild` lays the EFI system partition out again, and then this can be done", err)
	}
	return errors.Join(err, k.ESP.Write(k.Disk, func(dir hw.ESPDir) error {
		err := errors.Join(dir.Remove(spare), dir.SyncDir(path.Dir(spare)))
		if now, rerr := dir.Read(name); err == nil && (rerr != nil || !slices.Equal(now, signed)) {
			err = errors.Join(errors.New("it reads back otherwise"), rerr)
		}
		return err
	}))
}
