package host

import (
	"bytes"
	"io/fs"
	"path"
	"slices"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/bounded"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/rootpart"
)

// TakeList reads the list of what this machine wants its firmware to hold and of
// what counts as its own, once the root partition is open, and reports whether it is
// damaged. A damaged one is bare until it is made again.
func (h *Host) TakeList(secret *policy.Secret) (damaged bool) {
	list, why, err := rootpart.OwnList(h.Store, secret, h.Lock, &h.FirmwareKeys)
	if err != nil {
		h.Log.Say("what the firmware shall hold is not known: %v", err)
		return false
	}
	h.List = list
	if why != nil {
		h.Log.Say("the list of what the firmware shall hold is damaged: %v", why)
	}
	return why != nil
}

// KeepList stores the list. Cut before it, the one of before is there.
func (h *Host) KeepList() error {
	if h.Secret == nil {
		return ErrNoSecret
	}
	return rootpart.KeepList(h.Store, h.Random, h.Secret, h.List)
}

// Starts says why an image is not this machine's own, or would not start.
func (h *Host) Starts(image []byte) error {
	if h.List != nil {
		return rootpart.CheckOwn(image, h.FirmwareKeys, h.List)
	}
	return rootpart.CheckStarts(image, h.FirmwareKeys, rootpart.Certificates(h.FirmwareKeys))
}

// OwnEnforced reports whether the firmware starts what this machine's own keys
// have signed, so that its db can vouch for an owner signature.
func (h *Host) OwnEnforced() bool {
	if h.List == nil {
		return rootpart.OwnEnforced(h.FirmwareKeys, h.Contract.SecureBoot)
	}
	return rootpart.ListEnforced(h.FirmwareKeys, h.List)
}

// ListRelease has the list allow the EFI files that the signed description of a
// release names. It is stored before any of them is signed. Cut after it, the list
// allows what the distributor has signed, and is not there yet.
func (h *Host) ListRelease(r *release.Release) error {
	if h.List == nil || h.List.Bare {
		return nil // all that the key has signed counts
	}
	n := bls.Name{ImageID: r.ImageID, Version: r.Version}
	changed := false
	for _, i := range []struct{ file, name string }{{release.UKIFile, UKIImage(n)}, {release.BootManagerFile, ManagerImage(n)}} {
		if f, ok := r.File(i.file); ok && len(f.Authenticode) == 32 && !h.List.Allows([32]byte(f.Authenticode)) {
			changed = h.List.Allow([32]byte(f.Authenticode), i.name) || changed
		}
	}
	if !changed {
		return nil
	}
	return h.KeepList()
}

// UKIImage is what the list calls a system's UKI.
func UKIImage(n bls.Name) string { return n.Blessed().String() }

// ManagerPrefix begins the names that the list has for boot managers.
const ManagerPrefix = "the boot manager that came with "

// ManagerImage is what the list calls the boot manager that came with a system.
func ManagerImage(n bls.Name) string { return ManagerPrefix + UKIImage(n) }

// SignedImages are the boot managers and the UKIs of this image on the ESP that
// this machine's key has signed.
func (h *Host) SignedImages(list *secureboot.List) (out []secureboot.Image) {
	own, err := list.DBCertificate()
	if err != nil {
		return nil
	}
	running := bls.Name{ImageID: h.Contract.ImageID, Version: h.Contract.Version}
	names := map[string]string{} // of the images, by path
	for _, m := range h.ManagerPaths() {
		names[m] = ManagerImage(running)
	}
	for _, n := range h.Names {
		if n.ImageID == h.Contract.ImageID {
			names[path.Join(bls.Directory, n.String())] = UKIImage(n)
		}
	}
	err = h.ReadESP(func(files fs.FS) error {
		for file, name := range names {
			image, err := bounded.File(files, file, enroll.MaxEFIFile)
			if err != nil || authenticode.VerifyOwn(image, own) != nil {
				continue
			}
			if digest, err := authenticode.Digest(image); err == nil {
				out = append(out, secureboot.Image{Digest: digest[:], Name: name})
			}
		}
		return nil
	})
	if err != nil {
		h.Log.Say("what this machine's key has signed is not known: %v", err)
	}
	slices.SortFunc(out, func(x, y secureboot.Image) int { return slices.Compare(x.Digest, y.Digest) })
	return out
}

// Refused reports whether dbx has an image, as it is or as this machine wants it.
func (h *Host) Refused(list *secureboot.List, digest [32]byte) bool {
	return list.Revoked(digest) ||
		slices.ContainsFunc(h.FirmwareKeys.DBX.Content, func(e secureboot.Entry) bool {
			return e.Type == secureboot.TypeSHA256 && bytes.Equal(e.Data, digest[:])
		})
}

// RefusedImage is Refused of an image's hash.
func (h *Host) RefusedImage(list *secureboot.List, image []byte) bool {
	digest, err := authenticode.Digest(image)
	return err == nil && h.Refused(list, digest)
}

// KeyChange is what replaces this machine's Secure Boot keys. admit has the TPM's record
// be for this boot and what PCR 7 will be besides; nil where it cannot be told.
func (h *Host) KeyChange(volumeKey []byte, secret *policy.Secret, admit func([]pcr.Digest) error) *rootpart.KeyChange {
	k := &rootpart.KeyChange{
		Machine: h.Machine, Disk: h.Disk, Variables: h.Variables, Random: h.Random, Lock: h.Lock,
		VolumeKey: volumeKey, Secret: secret, Date: h.Contract.Date(), Say: h.Log.Say, Admit: admit,
	}
	if log, _, err := h.ReadLog(); err == nil {
		k.Log = log
	}
	return k
}

// Drivers are the option ROMs by the event log.
func (h *Host) Drivers() secureboot.Drivers {
	log, _, err := h.ReadLog()
	if err != nil {
		h.Log.Say("option ROMs are not known: %v", err)
		return secureboot.Drivers{}
	}
	return log.Drivers()
}
