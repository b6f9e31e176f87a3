package modules

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"
	xzwriter "github.com/ulikunitz/xz"

	"halogenos.internal/boot/bounded"
)

const (
	maxModule     = 256 << 20 // bytes, unpacked
	maxDictionary = 128 << 20
)

// IsModule reports whether a file's name is that of a kernel module.
func IsModule(name string) bool {
	switch path.Ext(name) {
	case ".ko":
		return true
	case ".gz", ".xz", ".zst":
		return strings.HasSuffix(strings.TrimSuffix(name, path.Ext(name)), ".ko")
	}
	return false
}

// Unpack returns a module as the kernel loads it: decompressed as its name
// says. Its signature is at its end and stays there.
func Unpack(name string, raw []byte) ([]byte, error) {
	var r io.Reader
	var err error
	switch {
	case strings.HasSuffix(name, ".ko"):
		return raw, nil
	case strings.HasSuffix(name, ".ko.xz"):
		r, err = xz.NewReader(bytes.NewReader(raw), maxDictionary)
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
	data, err := bounded.Read(r, maxModule)
	if err != nil {
		return nil, fmt.Errorf("decompress: %w", err)
	}
	return data, nil
}

// Pack compresses a module as its name says, in a way that the kernel can
// decompress (Linux, kernel/module/decompress.c; scripts/Makefile.modinst).
// The same module gives the same bytes.
func Pack(name string, data []byte) ([]byte, error) {
	var out bytes.Buffer
	var w io.WriteCloser
	var err error
	switch {
	case strings.HasSuffix(name, ".ko"):
		return data, nil
	case strings.HasSuffix(name, ".ko.xz"):
		w, err = xzwriter.WriterConfig{CheckSum: xzwriter.CRC32, DictCap: 1 << 20}.NewWriter(&out)
	case strings.HasSuffix(name, ".ko.gz"):
		w, err = gzip.NewWriterLevel(&out, gzip.BestCompression)
	case strings.HasSuffix(name, ".ko.zst"):
		w, err = zstd.NewWriter(&out, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedBestCompression))
	default:
		err = errors.New("not a name of a module")
	}
	if err != nil {
		return nil, fmt.Errorf("compress: %w", err)
	}
	if _, err := w.Write(data); err != nil {
		return nil, fmt.Errorf("compress: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("compress: %w", err)
	}
	return out.Bytes(), nil
}
