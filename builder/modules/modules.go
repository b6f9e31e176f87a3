// Package modules checks the kernel modules of an image as the kernel will when
// it loads them, and signs those that are not signed.
//
// It refuses a module that was built for another kernel, one that is damaged,
// one without a signature and one whose signer neither the kernel nor the
// distributor's certificate vouches for. What a module does, it does not look
// at.
package modules

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"debug/elf"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
)

// A Checker checks modules for one kernel. Its methods may run at the same
// time.
type Checker struct {
	kernel *Kernel
	trust  []*x509.Certificate

	mu    sync.Mutex
	names map[string]bool   // of the modules that were checked
	needs map[string]string // a module that needs one, by the name of this
	// byOwn counts the modules that only the distributor's certificate
	// vouches for.
	byOwn int
}

// NewChecker makes a checker for the kernel. The distributor's certificates
// vouch for modules beside those that the kernel has built in.
func NewChecker(kernel *Kernel, own ...*x509.Certificate) *Checker {
	return &Checker{
		kernel: kernel, trust: slices.Concat(kernel.Certificates, own), names: make(map[string]bool), needs: make(map[string]string),
	}
}

// Good is what a module that the kernel takes has told. It holds for the same content and
// the same [Checker.Depends].
type Good struct {
	Own   bool     `json:"own,omitempty"`   // only the distributor's certificates vouch for it
	Needs []string `json:"needs,omitempty"` // names of modules
}

// Check refuses a module that the kernel would. The name is that of its file,
// of which the last part counts; the content is decompressed.
func (c *Checker) Check(name string, content []byte) (Good, error) {
	good, err := c.check(name, content)
	if err != nil {
		return Good{}, fmt.Errorf("kernel module %s: %w", name, err)
	}
	c.Add(name, good)
	return good, nil
}

func (c *Checker) check(name string, content []byte) (Good, error) {
	plain, signature, err := split(content)
	if err != nil {
		return Good{}, err
	}
	info, err := modinfo(plain)
	if err != nil {
		return Good{}, err
	}
	if err := c.fits(name, info); err != nil {
		return Good{}, err
	}
	if signature == nil {
		return Good{}, errors.New("is not signed, and module.sig_enforce=1 would keep it out: give the key of ModuleKey, or build the kernel with CONFIG_MODULE_SIG_ALL")
	}
	signer, err := verify(plain, signature, c.trust)
	if err != nil {
		return Good{}, err
	}
	good := Good{Own: !slices.ContainsFunc(c.kernel.Certificates, signer.Equal)}
	for need := range strings.SplitSeq(one(info, "depends"), ",") {
		if need != "" {
			good.Needs = append(good.Needs, canonical(need))
		}
	}
	return good, nil
}

// Add counts a module that Check has found good.
func (c *Checker) Add(name string, good Good) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.names[moduleName(name)] = true
	if good.Own {
		c.byOwn++
	}
	for _, need := range good.Needs {
		c.needs[need] = name
	}
}

// Depends is what Check's answer depends on beside a module's name and content: the kernel,
// and whose signatures count.
func (c *Checker) Depends() string {
	h := sha256.New()
	fmt.Fprintf(h, "%q %q %d", c.kernel.Release, c.kernel.Vermagic, len(c.kernel.Certificates))
	for _, cert := range c.trust {
		fmt.Fprintf(h, " %x", sha256.Sum256(cert.Raw))
	}
	return string(h.Sum(nil))
}

// fits compares a module's .modinfo with the kernel and the module's name.
func (c *Checker) fits(name string, info map[string][]string) error {
	for _, key := range []string{"vermagic", "license"} {
		if n := len(info[key]); n == 0 || n > 1 && key == "vermagic" {
			return fmt.Errorf(".modinfo has %d entries %s, want one", n, key)
		}
	}
	magic := one(info, "vermagic")
	release, _, _ := strings.Cut(magic, " ")
	if release != c.kernel.Release {
		return fmt.Errorf("was built for kernel %.80q, not for %s", release, c.kernel.Release)
	}
	if want := c.kernel.Vermagic; want != "" && magic != want {
		return fmt.Errorf("was built for a kernel that is configured differently: vermagic %.160q, want %q", magic, want)
	}
	if have := one(info, "name"); have != "" && canonical(have) != moduleName(name) {
		return fmt.Errorf(".modinfo says that it is %.80q", have)
	}
	return nil
}

// Finish refuses modules that need one which is not there.
func (c *Checker) Finish() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, need := range slices.Sorted(maps.Keys(c.needs)) {
		if !c.names[need] {
			return fmt.Errorf("kernel module %s needs the module %s, which is not in the image", c.needs[need], need)
		}
	}
	return nil
}

// Counts returns how many modules passed, and how many of these only the
// distributor's certificates vouch for: the kernel loads them when it has got
// the certificate into a keyring.
func (c *Checker) Counts() (all, own int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.names), c.byOwn
}

// moduleName is the canonical name of the module in a file.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return canonical(name)
}

func canonical(name string) string { return strings.ReplaceAll(name, "-", "_") }

// one returns the only or first value of a key.
func one(info map[string][]string, key string) string {
	if len(info[key]) == 0 {
		return ""
	}
	return info[key][0]
}

const maxModinfo = 1 << 20 // bytes

// modinfo reads the section .modinfo of an object file: `key=value` with a
// zero byte after each (Linux, kernel/module/main.c, get_modinfo).
func modinfo(plain []byte) (map[string][]string, error) {
	f, err := elf.NewFile(bytes.NewReader(plain))
	if err != nil {
		return nil, fmt.Errorf("is not an ELF file: %w", err)
	}
	if f.Type != elf.ET_REL || f.Machine != elf.EM_X86_64 {
		return nil, fmt.Errorf("is %v for %v, want %v for %v", f.Type, f.Machine, elf.ET_REL, elf.EM_X86_64)
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, errors.New("has no .modinfo")
	}
	if section.Type == elf.SHT_NOBITS || section.Size > maxModinfo {
		return nil, fmt.Errorf("has a .modinfo of %d bytes, more than %d", section.Size, maxModinfo)
	}
	text, err := section.Data()
	if err != nil {
		return nil, fmt.Errorf("read .modinfo: %w", err)
	}
	info := make(map[string][]string)
	for entry := range bytes.SplitSeq(text, []byte{0}) {
		if len(entry) == 0 {
			continue // padding
		}
		key, value, ok := strings.Cut(string(entry), "=")
		if !ok {
			return nil, fmt.Errorf(".modinfo has %.80q, which is not key=value", entry)
		}
		info[key] = append(info[key], value)
	}
	return info, nil
}
