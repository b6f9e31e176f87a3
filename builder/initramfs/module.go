package initramfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// decompressModule returns a module as the kernel loads it. Its signature is at
// its end and stays there.
func decompressModule(name string, raw []byte) ([]byte, error) {
	var r io.Reader
	var err error
	switch {
	case strings.HasSuffix(name, ".ko"):
		return raw, nil
	case strings.HasSuffix(name, ".ko.xz"):
		r, err = xz.NewReader(bytes.NewReader(raw))
	case strings.HasSuffix(name, ".ko.gz"):
		r, err = gzip.NewReader(bytes.NewReader(raw))
	case strings.HasSuffix(name, ".ko.zst"):
		var z *zstd.Decoder
		if z, err = zstd.NewReader(bytes.NewReader(raw), zstd.WithDecoderConcurrency(1)); err == nil {
			defer z.Close()
			r = z
		}
	default:
		return nil, errors.New("compressed in a way that is not known: want .ko, .ko.gz, .ko.xz or .ko.zst")
	}
	if err != nil {
		return nil, fmt.Errorf("decompress: %w", err)
	}
	data, err := io.ReadAll(io.LimitReader(r, maxModule+1))
	if err != nil {
		return nil, fmt.Errorf("decompress: %w", err)
	}
	if len(data) > maxModule {
		return nil, fmt.Errorf("decompress: more than %d bytes", maxModule)
	}
	return data, nil
}

// signed ends a module with a signature (Linux, include/linux/module_signature.h).
const signed = "~Module signature appended~\n"

// checkModule refuses a module that the kernel will: one that was built for
// another kernel, or one without a signature, since the command line has
// module.sig_enforce=1. Whether the signature is good only the kernel knows.
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
