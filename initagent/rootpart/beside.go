package rootpart

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/fat"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/esp"
	"halogenos.internal/initagent/hw"
)

// signBeside signs each file of the ESP that is allowed by the new key, besides the old
// one. The firmware enforces Secure Boot meanwhile, so that a file is never changed where
// it lies.
//
// What another image has replaced is not, whatever the list says of it: it starts no more
// once db has the new key, and where the machine would need it, db is not written.
func (k *KeyChange) signBeside(c *change, had secureboot.Wanted, signer enroll.Signer) error {
	old := certificates(had.DB.Without(c.next.Wanted.DB))
	var names []string
	err := k.ESP.Write(k.Disk, func(dir hw.ESPDir) (err error) {
		if names, err = enroll.EFIFiles(dir); err != nil {
			return err
		}
		return removeSpares(dir, names)
	})
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := k.signOneBeside(name, old, signer, AllowedAnew(c.next)); err != nil {
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
func (k *KeyChange) signOneBeside(name string, old []*x509.Certificate, signer enroll.Signer, allowed enroll.Allowed) error {
	spare := path.Join(path.Dir(name), spareFile)
	var signed []byte
	err := k.ESP.Write(k.Disk, func(dir hw.ESPDir) error {
		image, err := dir.Read(name)
		if err != nil || signer.Verify(image) == nil {
			return nil // firmware cannot start it, or it is done
		}
		byOld := func(image []byte) bool { _, err := authenticode.Verify(image, old); return err == nil }
		starts := byOld(image)
		if err := allowed(name, image); err != nil {
			if !starts {
				return nil
			}
			if _, parsed := bls.Parse(path.Base(name)); parsed == nil && strings.EqualFold(path.Dir(name), bls.Directory) {
				return fmt.Errorf("it would start no more, since %w: remove it first", err)
			}
			if slices.ContainsFunc(layout.Managers(), func(m string) bool { return strings.EqualFold(m, name) }) {
				return fmt.Errorf("it would start no more, since %w: put the boot manager there that this release has brought", err)
			}
			k.Say("%s starts no more: %v", name, err)
			return nil
		}
		if signed, err = signer.Sign(image); err != nil {
			return err
		}
		if err := signer.Verify(signed); err != nil || starts && !byOld(signed) {
			return fmt.Errorf("the signature just made does not verify (%v), or the old one no longer does", err)
		}
		if err := esp.CheckRoom(dir, int64(len(signed))); err != nil {
			return err
		}
		return enroll.Replace(dir, spare, signed)
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
