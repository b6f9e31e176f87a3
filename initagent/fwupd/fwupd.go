// Package fwupd has this machine's own key sign the EFI program by which fwupd gives
// updates to the firmware, so that it starts under the machine's own Secure Boot keys.
//
// It refuses to sign anything but that one file of the system image, read while nothing
// lies over the image: dm-verity vouches for it, and the distributor's signature for that.
package fwupd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/bounded"
	"halogenos.internal/initagent/fetched"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/rootpart"
)

// Directory is where a system has fwupd's EFI programs, by its path in the image. fwupd
// takes the file whose name ends in .signed where Secure Boot is on
// (fu_uefi_get_built_app_path of fwupd 2).
const Directory = "usr/libexec/fwupd/efi"

const (
	program = "fwupdx64.efi"
	// Signed is what the program is called that somebody has signed.
	Signed = program + ".signed"
	// MaxSigned bounds that one in bytes.
	MaxSigned = 2 * maxProgram

	// Kept is where the root partition has the signed program, and nothing else: the
	// directory is laid over that of the system.
	Kept = rootpart.OwnDirectory + "/fwupd"

	// maxProgram bounds the program in bytes; Debian's has 62 thousand.
	maxProgram = 1 << 20
)

// Waits reports whether the running system's program is there, and another than this
// machine has signed. No error comes of a program that cannot be read: Sign has it.
func Waits(h *host.Host) bool {
	image, err := read(h)
	return h.OwnEnforced() && (err != nil || image != nil && !isKept(h, image))
}

// Sign has the machine's key sign the running system's program, and keeps it. The list
// knows it first, as everything that this machine signs. Cut after that, the list allows
// a file of a release that runs, and nothing is signed; cut while the signed one is
// written, the one before it is there or none, which is laid over nothing (Ready).
func Sign(h *host.Host) error {
	image, err := read(h)
	if err != nil || image == nil {
		return err
	}
	digest, err := authenticode.Digest(image)
	if err != nil {
		return fmt.Errorf("sign /%s of the system image, by which fwupd updates firmware: %w", path.Join(Directory, program), err)
	}
	if h.List != nil && h.Refused(h.List, digest) {
		return fmt.Errorf("/%s of the system image is not signed, since dbx has it: fwupd cannot update the firmware with it. An image with a newer fwupd-efi can", path.Join(Directory, program))
	}
	if h.List != nil && !h.List.Bare && !h.List.Allows(digest) {
		h.List.Allow(digest, "fwupd's program of "+host.UKIImage(bls.Name{ImageID: h.Contract.ImageID, Version: h.Contract.Version}))
		if err := h.KeepList(); err != nil {
			return err
		}
	}
	own, err := fetched.Sign(h, image)
	if err != nil {
		return fmt.Errorf("sign /%s of the system image, by which fwupd updates firmware: %w", path.Join(Directory, program), err)
	}
	if err := h.Store.MakeDirectory(Kept, 0o755); err != nil {
		return err
	}
	return h.Store.Keep(path.Join(Kept, Signed), own)
}

// Ready reports whether what the root partition has is the running system's program,
// signed by this machine's key. It is asked before anything is mounted into the system.
func Ready(h *host.Host) bool {
	image, err := read(h)
	return err == nil && image != nil && h.OwnEnforced() && isKept(h, image)
}

// read returns the system image's program; nil where it has none. Where it has the one alone
// that somebody else has signed, as with Debian's package fwupd-amd64-signed, it is that.
func read(h *host.Host) ([]byte, error) {
	root, err := os.OpenRoot(h.Path(host.SystemDirectory)) // no link leads out of the image
	if err != nil {
		return nil, err
	}
	defer root.Close()
	for _, name := range []string{program, Signed} {
		image, err := bounded.File(root.FS(), path.Join(Directory, name), maxProgram)
		switch {
		case err == nil:
			return image, nil
		case !errors.Is(err, fs.ErrNotExist):
			return nil, fmt.Errorf("read /%s of the system image, by which fwupd updates firmware: %w", path.Join(Directory, name), err)
		}
	}
	return nil, nil
}

// isKept reports whether the root partition has this very program, as the firmware starts
// it. The running system could have changed it, and an older one may have a known hole.
func isKept(h *host.Host, image []byte) bool {
	kept, err := h.Store.Read(path.Join(Kept, Signed), MaxSigned)
	if err != nil {
		return false
	}
	want, err := authenticode.Digest(image)
	if err != nil {
		return false
	}
	have, err := authenticode.Digest(kept)
	return err == nil && have == want && h.Starts(kept) == nil
}
