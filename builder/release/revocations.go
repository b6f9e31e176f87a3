package release

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/uki"
	"halogenos.internal/builder/files"
	"halogenos.internal/builder/room"
)

// ReadRevocations reads a file of entries for dbx.
func ReadRevocations(path string) (secureboot.Database, error) {
	text, err := files.Read(path, secureboot.MaxDatabase)
	if err != nil {
		return nil, err
	}
	d, err := secureboot.ParseRevocations(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return d, nil
}

// revoke puts entries for dbx into the description of a build. One that would stop what the
// release itself brings is refused.
func (b *build) revoke(d secureboot.Database) error {
	if len(d) == 0 {
		return nil
	}
	if err := b.release.SetRevocations(d); err != nil {
		return err
	}
	image, err := files.Read(filepath.Join(b.dir, release.UKIFile), maxUKI)
	if err != nil {
		return err
	}
	img, err := uki.Parse(image)
	if err != nil {
		return fmt.Errorf("%s: %w", release.UKIFile, err)
	}
	if err := stopsKernel(b.release, img); err != nil {
		return err
	}
	b.text, err = b.release.Encode()
	return err
}

const maxUKI = 512 << 20 // bytes of a UKI at most

// stopsKernel refuses an entry for the kernel in the UKI, which some stubs have the firmware
// load.
func stopsKernel(r *release.Release, img *uki.Image) error {
	kernel, ok := img.Section(".linux")
	if !ok || len(r.Revocations) == 0 {
		return nil
	}
	digest, err := authenticode.Digest(kernel)
	if err != nil {
		return nil // no program for the firmware
	}
	for _, e := range r.DBX() {
		if e.Type == secureboot.TypeSHA256 && bytes.Equal(e.Data, digest[:]) {
			return fmt.Errorf("revocations: one is the hash of the kernel in %s, which the release itself brings", release.UKIFile)
		}
	}
	return nil
}

// abilities are what the initagent of a UKI that was checked can read.
func abilities(image []byte) contract.Abilities {
	img, err := uki.Parse(image)
	if err != nil {
		return contract.Abilities{}
	}
	initrd, _ := img.Section(".initrd")
	return contract.AbilitiesFromInitrd(initrd)
}

// readBy reports why machines of these abilities refuse the description of a build.
func (b *build) readBy(able contract.Abilities) error {
	if len(b.release.Revocations) > 0 && !able.Revocations {
		return errors.New("they do not know of entries for dbx in release.json: publish it without --dbx and make it a step ('halogen release step'), and give the next one --dbx")
	}
	return nil
}

// warnOf says when an entry stops what machines fall back to from a trial, which they refuse for
// as long as they have it, and when machines cannot make their slots as large as is wanted.
func (b *build) warnOf(old *published, note func(string, ...any)) {
	if old.release == nil {
		return
	}
	if text := room.Unable(b.release.SlotSize, []room.Release{room.Of(old.release, old.able)}); text != "" {
		note("WARNING: %s", text)
	}
	for _, f := range old.release.Files {
		if len(f.Authenticode) > 0 && b.release.DBX().Revokes(secureboot.Hash([16]byte{}, [32]byte(f.Authenticode))) {
			note("WARNING: --dbx has the hash of %s of release %s, which machines fall back to: they leave the entry out until they have replaced it", f.Name, old.version)
		}
	}
}

// revocationsText says what entries for dbx a release brings; empty for none.
func revocationsText(r *release.Release) string {
	hashes, certificates := 0, 0
	for _, e := range r.DBX() {
		if e.Type == secureboot.TypeX509 {
			certificates++
		} else {
			hashes++
		}
	}
	if hashes+certificates == 0 {
		return ""
	}
	return fmt.Sprintf("%d hashes and %d certificates for dbx", hashes, certificates)
}
