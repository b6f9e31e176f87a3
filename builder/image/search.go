package image

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"sync"

	"halogenos.internal/builder/modules"
	"halogenos.internal/builder/rootfs"
	"halogenos.internal/builder/scan"
)

// search looks for secrets in what the system image is made of, and at its
// kernel modules, which it has unpacked for that.
func (b *build) search(ctx context.Context) error {
	done := b.Progress.Step("searching the image for secrets, checking its kernel modules")
	var others others
	b.judgeModules(&others)
	defer b.keepResults()
	if err := b.scanner.Tree(ctx, b.tree.Dir()); err != nil {
		return fmt.Errorf("search the image: %w", err)
	}
	if err := b.checker.Finish(); err != nil {
		return fmt.Errorf("search the image: %w", err)
	}
	files, bytes := b.scanner.Searched()
	all, own := b.checker.Counts()
	done(fmt.Sprintf("%d files, %s unpacked, %d modules", files, megabytes(bytes), all))
	for _, release := range slices.Sorted(maps.Keys(others.counts)) {
		b.Progress.Note("%d modules of kernel %s were not checked: Linux= in [UKI] has chosen %s, which does not look there", others.counts[release], release, b.parts.kernel.release)
	}
	if err := b.loadsOwn(own); err != nil {
		return err
	}
	return b.searchInitramfs(ctx, b.initramfs)
}

// judgeModules has the scanner hand over the kernel modules that it finds.
func (b *build) judgeModules(others *others) {
	// A kernel looks for modules in the directory of its release alone.
	foreign := func(name string) bool { return b.Config.Linux != "" && others.has(name, b.parts.kernel.release) }
	b.scanner.Unpacked = func(name string, content []byte) ([]byte, error) {
		if foreign(name) {
			return nil, nil
		}
		good, err := b.checker.Check(name, content)
		if found := modulesOf.FindStringSubmatch(name); err != nil && found != nil && found[1] != b.parts.kernel.release {
			err = fmt.Errorf("%w; it belongs to another kernel, %s: remove that one, or name the one to start with Linux= in [UKI]", err, found[1])
		}
		if err != nil {
			return nil, err
		}
		return json.Marshal(good)
	}
	b.scanner.Known = func(name string, note []byte) bool {
		var good modules.Good
		if foreign(name) {
			return true
		}
		if json.Unmarshal(note, &good) != nil {
			return false
		}
		b.checker.Add(name, good)
		return true
	}
	depends := b.checker.Depends()
	b.scanner.Depends = func(name string) string {
		if b.Config.Linux != "" && ofAnother(name, b.parts.kernel.release) {
			return "another kernel"
		}
		return depends
	}
}

// others counts the modules of kernels that are in the root file system and were
// not chosen.
type others struct {
	mu     sync.Mutex
	counts map[string]int // by release
}

var modulesOf = regexp.MustCompile(`^/?(?:usr/)?lib/modules/([^/]+)/`)

// ofAnother reports whether a file is a module of a kernel of another release.
func ofAnother(name, release string) bool {
	found := modulesOf.FindStringSubmatch(name)
	return found != nil && found[1] != release
}

// has reports the same, and counts the module.
func (o *others) has(name, release string) bool {
	if !ofAnother(name, release) {
		return false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.counts == nil {
		o.counts = make(map[string]int)
	}
	o.counts[modulesOf.FindStringSubmatch(name)[1]]++
	return true
}

// judge searches what is before the initramfs, the boot contract, which exists only now,
// and refuses the image for what was found.
func (b *build) judge(ctx context.Context) error {
	b.scanner.Results = nil // they are saved
	before, ok := bytes.CutSuffix(b.initrd, b.initramfs)
	if !ok {
		return errors.New("search the initramfs for secrets: it is not the one that was packed")
	}
	if err := b.searchInitramfs(ctx, before); err != nil {
		return err
	}
	if err := b.scanner.Finish(); err != nil {
		return err
	}
	_, allowed := b.scanner.Findings()
	for len(allowed) > 0 {
		same := func(f scan.Finding) bool { return f.File == allowed[0].File && f.Rule == allowed[0].Rule }
		rest := slices.DeleteFunc(slices.Clone(allowed), same)
		b.Progress.Note("allowed: %s in %s, %d", allowed[0].Rule, allowed[0].File, len(allowed)-len(rest))
		allowed = rest
	}
	return nil
}

// searchInitramfs searches archives of the initramfs, which is several in a row.
func (b *build) searchInitramfs(ctx context.Context, archives []byte) error {
	if err := b.scanner.Bytes(ctx, scan.Initramfs, archives); err != nil {
		return fmt.Errorf("search the initramfs for secrets: %w", err)
	}
	return nil
}

// trustModules finds out whose signatures on modules count.
func (b *build) trustModules() error {
	k := b.parts.kernel
	kernel, err := modules.ReadKernel(k.image, k.release)
	if err != nil {
		return fmt.Errorf("/%s: %w", k.path, err)
	}
	var own []*x509.Certificate
	if b.Config.ModuleKey != nil {
		own = append(own, b.Config.ModuleKey)
	}
	b.kernel = kernel
	b.checker = modules.NewChecker(kernel, own...)
	return b.canTrust()
}

// signModules signs the modules that are not signed, if there is a key for it.
func (b *build) signModules() error {
	if b.ModuleSigner == nil {
		return nil
	}
	if b.Config.ModuleKey == nil {
		return errors.New("there is a key for kernel modules, but no certificate: name it with ModuleKey in [Image]")
	}
	done := b.Progress.Step("signing kernel modules")
	directory, err := b.tree.Resolve(b.parts.kernel.modules)
	if err != nil {
		return err
	}
	signed, err := b.signModulesOf(b.tree, directory)
	if err != nil {
		return err
	}
	done(fmt.Sprintf("%d were not signed", signed))
	return nil
}

// signModulesOf signs those in a directory of a tree, and returns how many it has signed.
func (b *build) signModulesOf(t *rootfs.Tree, directory string) (signed int, err error) {
	err = filepath.WalkDir(filepath.Join(t.Dir(), directory), func(file string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || !modules.IsModule(file) {
			return err
		}
		name, err := filepath.Rel(t.Dir(), file)
		if err != nil {
			return err
		}
		made, err := b.signModule(t, filepath.ToSlash(name))
		if err != nil {
			return fmt.Errorf("kernel module /%s: %w", name, err)
		}
		if made {
			signed++
		}
		return nil
	})
	return signed, err
}

const maxModule = 256 << 20 // bytes

// signModule signs one module where it has no signature, and keeps what else
// it has: mode, time, labels.
func (b *build) signModule(t *rootfs.Tree, name string) (bool, error) {
	raw, err := t.ReadFile(name, maxModule)
	if err != nil {
		return false, err
	}
	plain, err := modules.Unpack(name, raw)
	if err != nil || modules.Signed(plain) {
		return false, err
	}
	signed, err := modules.Sign(plain, b.Config.ModuleKey, b.ModuleSigner)
	if err != nil {
		return false, err
	}
	packed, err := modules.Pack(name, signed)
	if err != nil {
		return false, err
	}
	return true, t.Replace(name, packed)
}
