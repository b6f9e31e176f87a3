package initramfs

import (
	"bytes"
	"errors"
	"fmt"
)

// signed ends a module with a signature (Linux, include/linux/module_signature.h).
const signed = "~Module signature appended~\n"

// checkModule refuses a module that the kernel will: one that was built for
// another kernel, or one without a signature, since the command line has
// module.sig_enforce=1. Whether the signature is good is looked at when all of
// the image's modules are.
func checkModule(data []byte, release string) error {
	if !bytes.HasPrefix(data, []byte("\x7fELF")) {
		return errors.New("not an ELF file")
	}
	if !bytes.HasSuffix(data, []byte(signed)) {
		return errors.New("is not signed, and module.sig_enforce=1 would keep it out")
	}
	_, rest, ok := bytes.Cut(data, []byte("\x00vermagic="))
	if !ok {
		return errors.New("has no vermagic")
	}
	if magic, _, _ := bytes.Cut(rest[:min(len(rest), 256)], []byte(" ")); string(magic) != release {
		return fmt.Errorf("was built for kernel %.80q, not for %s", magic, release)
	}
	return nil
}
