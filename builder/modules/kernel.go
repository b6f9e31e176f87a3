package modules

import (
	"bytes"
	"crypto/x509"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"halogenos.internal/builder/vmlinux"
)

// A Kernel is what a kernel image tells about the modules that it loads.
type Kernel struct {
	Release string // as uname -r has it
	// Vermagic is the string that the kernel compares with a module's; empty
	// where the kernel has none (CONFIG_MODULES is off).
	Vermagic string
	// Certificates are those built into the kernel, whose keys it trusts.
	Certificates []*x509.Certificate
	// Exports reports that the kernel has symbols for modules, as every kernel
	// that loads modules has.
	Exports bool
	// Config is what the kernel was configured with, as text; empty where it
	// does not hold that (CONFIG_IKCONFIG is off).
	Config string
	// DB is whether the kernel takes the certificates of Secure Boot's db for modules.
	DB DB
}

// ReadKernel reads a bzImage of the release.
func ReadKernel(image []byte, release string) (*Kernel, error) {
	data, err := vmlinux.Unpack(image)
	if err != nil {
		return nil, err
	}
	k := &Kernel{Release: release}
	if k.Vermagic, err = vermagic(data, release); err != nil {
		return nil, err
	}
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("the kernel is not an ELF file: %w", err)
	}
	k.Exports, k.DB = f.Section("__ksymtab_strings") != nil, takesDB(data, f)
	if k.Config, err = configuration(data); err != nil {
		return nil, err
	}
	k.Certificates, err = certificates(data)
	return k, err
}

const maxConfig = 4 << 20 // bytes

// configuration unpacks what CONFIG_IKCONFIG puts into a kernel (Linux,
// kernel/configs.c).
func configuration(kernel []byte) (string, error) {
	_, rest, ok := bytes.Cut(kernel, []byte("IKCFG_ST\x1f\x8b"))
	packed, _, end := bytes.Cut(rest, []byte("IKCFG_ED"))
	if !ok || !end {
		return "", nil
	}
	z, err := gzip.NewReader(io.MultiReader(strings.NewReader("\x1f\x8b"), bytes.NewReader(packed)))
	if err != nil {
		return "", fmt.Errorf("the kernel's configuration: %w", err)
	}
	text, err := io.ReadAll(io.LimitReader(z, maxConfig))
	if err != nil {
		return "", fmt.Errorf("the kernel's configuration: %w", err)
	}
	return string(text), nil
}

const maxVermagic = 256 // bytes

// vermagic finds the kernel's own (Linux, include/linux/vermagic.h): the
// release, a space, and how the kernel was configured.
func vermagic(kernel []byte, release string) (string, error) {
	start := []byte("\x00" + release + " ")
	found := ""
	for rest := kernel; ; {
		i := bytes.Index(rest, start)
		if i < 0 {
			return found, nil
		}
		rest = rest[i+1:]
		text, _, ok := bytes.Cut(rest[:min(len(rest), maxVermagic)], []byte{0})
		// What follows is words; "6.12.1 (builder@host)" is the version that
		// is shown.
		if !ok || bytes.ContainsAny(text, "()#\n") {
			continue
		}
		if found != "" && found != string(text) {
			return "", fmt.Errorf("the kernel has two vermagics, %q and %q", found, text)
		}
		found = string(text)
	}
}

const (
	maxList = 1 << 20  // bytes of the built-in certificates
	maxGap  = 64 << 10 // bytes reserved behind them (CONFIG_SYSTEM_EXTRA_CERTIFICATE_SIZE)
)

// certificates finds the list that the kernel's keyring .builtin_trusted_keys
// is made of. There are no symbols to find it by, but the list lies as
// certs/system_certificates.S of Linux 6.12 says: certificates in a row, at a
// multiple of eight bytes, and behind them the length of the list and that of
// its first certificate, the one that modules are signed with (or zero, when
// modules are not). Certificates that lie elsewhere (the revoked ones, those of
// a driver) have no such lengths behind them.
func certificates(kernel []byte) ([]*x509.Certificate, error) {
	var lists [][]byte
	for at := 0; at+8 <= len(kernel); at += 8 {
		if kernel[at] != 0x30 || kernel[at+1] != 0x82 || kernel[at+4] != 0x30 {
			continue
		}
		if size := listAt(kernel[at:]); size > 0 {
			lists = append(lists, kernel[at:at+size])
			at += size &^ 7
		}
	}
	switch len(lists) {
	case 0:
		return nil, nil
	case 1:
		return parseList(lists[0])
	}
	return nil, fmt.Errorf("the kernel has %d lists of certificates: which one it trusts cannot be told", len(lists))
}

// listAt returns the length of the list that starts here, or zero.
func listAt(data []byte) int {
	s := cryptobyte.String(data[:min(len(data), maxList)])
	size, first := 0, 0
	for {
		var one, inner cryptobyte.String
		rest := s
		if !rest.ReadASN1Element(&one, asn1.SEQUENCE) {
			break
		}
		if outer := one; !outer.ReadASN1(&inner, asn1.SEQUENCE) || !inner.PeekASN1Tag(asn1.SEQUENCE) {
			break
		}
		size, s = size+len(one), rest
		if first == 0 {
			first = len(one)
		}
	}
	for at := (size + 7) &^ 7; size > 0 && at+16 <= len(data) && at-size < maxGap; at += 8 {
		switch n := binary.LittleEndian.Uint64(data[at:]); n {
		case 0:
			continue
		case uint64(size):
			of := binary.LittleEndian.Uint64(data[at+8:])
			if of == 0 || of == uint64(first) {
				return size
			}
		}
		return 0
	}
	return 0
}

func parseList(list []byte) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	s := cryptobyte.String(list)
	for !s.Empty() {
		var one cryptobyte.String
		if !s.ReadASN1Element(&one, asn1.SEQUENCE) {
			return nil, errors.New("the kernel's list of certificates is damaged")
		}
		// One of a kind that is not known here vouches for nothing here.
		if c, err := x509.ParseCertificate(one); err == nil {
			all = append(all, c)
		}
	}
	return all, nil
}
