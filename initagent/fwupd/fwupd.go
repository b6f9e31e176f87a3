// Package fwupd has this machine's own key sign the EFI program by which fwupd gives
// updates to the firmware, so that it starts under the machine's own Secure Boot keys.
//
// It refuses to sign anything but that one file of the system image, read from the image's
// own file system: dm-verity vouches for it, and the distributor's signature for that.
package fwupd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"syscall"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/bounded"
	"halogenos.internal/boot/extension"
	"halogenos.internal/initagent/fetched"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/rootpart"
)

// Directory is where a system has fwupd's EFI programs, by its path in the image. fwupd
// takes the file whose name ends in .signed where Secure Boot is on
// (fu_uefi_get_built_app_path of fwupd 2).
const Directory = extension.Updater

const (
	program = "fwupdx64.efi"
	// Signed is what the program is called that somebody has signed.
	Signed = program + ".signed"
	// MaxSigned bounds that one in bytes.
	MaxSigned = 2 * maxProgram

	// Kept is where the root partition has the signed program. Root can put other files
	// beside it, so that nothing but the bytes that Ready returns counts.
	Kept = rootpart.OwnDirectory + "/fwupd"

	// maxProgram bounds the program in bytes; Debian's has 62 thousand.
	maxProgram = 1 << 20
)

// Waits reports whether the running system's program is there, and another than this
// machine has signed. No error comes of a program that cannot be read: Sign has it. A boot
// without the machine secret, as the one that makes the root partition, leaves it to the next.
func Waits(h *host.Host) bool {
	if h.Secret == nil {
		return false
	}
	image, err := read(h)
	return h.OwnEnforced() && (err != nil || image != nil && kept(h, image) == nil)
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

// Ready returns the running system's program as this machine's key has signed it; nil where
// the root partition does not have it. The bytes are those that were verified: what lies on
// the root partition is root's, and can be another thing when it is read again.
func Ready(h *host.Host) []byte {
	image, err := read(h)
	if err != nil || image == nil || !h.OwnEnforced() {
		return nil
	}
	return kept(h, image)
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
		image, err := readImage(root, path.Join(Directory, name))
		switch {
		case err == nil:
			return image, nil
		case !errors.Is(err, fs.ErrNotExist):
			return nil, fmt.Errorf("read /%s of the system image, by which fwupd updates firmware: %w", path.Join(Directory, name), err)
		}
	}
	return nil, nil
}

// readImage reads a file of the file system that root is the root of, which is the verified
// image's. A path in it leads through whatever is mounted there, so the open file is asked.
func readImage(root *os.Root, name string) ([]byte, error) {
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	at, err := root.Stat(".")
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	own, ok := at.Sys().(*syscall.Stat_t)
	its, isKnown := info.Sys().(*syscall.Stat_t)
	if !ok || !isKnown || own.Dev != its.Dev {
		return nil, errors.New("it is not of the system image: something is mounted over it")
	}
	return bounded.Read(f, maxProgram)
}

// kept returns what the root partition has, where it is this very program as the firmware
// starts it. The running system could have changed it, and an older one may have a known hole.
func kept(h *host.Host, image []byte) []byte {
	have, err := h.Store.Read(path.Join(Kept, Signed), MaxSigned)
	if err != nil {
		return nil
	}
	want, err := authenticode.Digest(image)
	if err != nil {
		return nil
	}
	if digest, err := authenticode.Digest(have); err != nil || digest != want || h.Starts(have) != nil {
		return nil
	}
	return have
}
