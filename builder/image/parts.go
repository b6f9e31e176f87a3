package image

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/layout"
	"halogenos.internal/builder/config"
	"halogenos.internal/builder/rootfs"
)

const (
	maxStub      = 16 << 20 // bytes of the stub, and of the boot manager
	maxOSRelease = 64 << 10
)

// parts is what a UKI and an ESP are made of, taken from the root file system.
type parts struct {
	kernel      *kernel
	stub        []byte
	bootManager []byte
	osRelease   []byte
	unsigned    []string // what a signature was taken off
}

func findParts(t *rootfs.Tree, c *config.Config, v contract.Version) (*parts, error) {
	p := new(parts)
	var err error
	if p.kernel, err = findKernel(t, c.Linux); err != nil {
		return nil, err
	}
	if c.Uname != "" && c.Uname != p.kernel.release {
		return nil, fmt.Errorf("kernel /%s is %s, and Uname of [UKI] is %s", p.kernel.path, p.kernel.release, c.Uname)
	}
	for _, part := range []struct {
		to                                  *[]byte
		chosen, usual, what, named, program string
	}{
		{&p.stub, c.Stub, "/" + layout.SystemStub, "UKI stub", "Stub= in [UKI]", "systemd-stub"},
		{&p.bootManager, c.BootManager, "/" + layout.SystemManager, "boot manager", "BootManager= in [Image]", ""},
	} {
		image, signed, err := readEFI(t, part.chosen, part.usual, part.what, part.named, part.program)
		if err != nil {
			return nil, err
		}
		if signed {
			p.unsigned = append(p.unsigned, part.what)
		}
		*part.to = image
	}
	p.osRelease, err = findOSRelease(t, c, v)
	return p, err
}

// findOSRelease returns the os-release of the UKI: the system's, or the one of
// the configuration, as this version of this image. By these two lines the
// boot manager sorts (systemd-boot 257: IMAGE_ID is the sort key).
func findOSRelease(t *rootfs.Tree, c *config.Config, v contract.Version) ([]byte, error) {
	text := []byte(c.OSRelease)
	if c.OSRelease == "" {
		var err error
		if text, err = systemRelease(t); err != nil {
			return nil, err
		}
	}
	if !utf8.Valid(text) || bytes.ContainsRune(text, 0) {
		return nil, errors.New("os-release is not UTF-8 text")
	}
	var out strings.Builder
	for line := range strings.Lines(string(text)) {
		key, _, _ := strings.Cut(strings.TrimSpace(line), "=")
		if key != "IMAGE_ID" && key != "IMAGE_VERSION" {
			out.WriteString(strings.TrimSuffix(line, "\n") + "\n")
		}
	}
	fmt.Fprintf(&out, "IMAGE_ID=%s\nIMAGE_VERSION=%s\n", c.ImageID, v)
	return []byte(out.String()), nil
}
