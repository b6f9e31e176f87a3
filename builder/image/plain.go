package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"halogenos.internal/builder/initramfs"
	"halogenos.internal/builder/modules"
	"halogenos.internal/builder/rootfs"
)

// depmodFiles name modules' files; depmod's other files name modules.
var depmodFiles = []struct {
	name  string
	plain func([]byte) ([]byte, error)
}{
	{"modules.dep", func(b []byte) ([]byte, error) { return modules.PlainDep(b), nil }},
	{"modules.order", func(b []byte) ([]byte, error) { return modules.PlainDep(b), nil }},
	{"modules.dep.bin", modules.PlainDepBin},
}

const maxDepmod = 64 << 20 // bytes of one of depmod's files

// plainModules unpacks the kernel's modules, where uki.conf asks for that, so that an
// update is made of what changed in them. Their signatures lie at their ends and stay.
func (b *build) plainModules(ctx context.Context) error {
	if !b.Config.PlainModules {
		return nil
	}
	done := b.Progress.Step("unpacking the kernel modules")
	dir, err := b.tree.Resolve(b.parts.kernel.modules)
	if errors.Is(err, fs.ErrNotExist) {
		done("none")
		return nil
	}
	if err != nil {
		return err
	}
	u := &unpacking{tree: b.tree, release: b.parts.kernel.release}
	if err := u.all(ctx, dir); err != nil {
		return err
	}
	for _, f := range depmodFiles {
		if err := u.depmod(path.Join(dir, f.name), f.plain); err != nil {
			return err
		}
	}
	if b.index, err = initramfs.LoadIndex(b.tree, b.parts.kernel.modules, b.parts.kernel.release); err != nil {
		return err
	}
	done(fmt.Sprintf("%d modules, %s became %s", u.count, megabytes(u.before), megabytes(u.after)))
	return nil
}

// unpacking is the modules of a tree on their way to what they are without compression.
type unpacking struct {
	tree          *rootfs.Tree
	release       string     // of the kernel
	mu            sync.Mutex // guards the tree, and the rest
	count         int
	before, after int64 // bytes
}

// all unpacks the modules below a directory, several at a time.
func (u *unpacking) all(ctx context.Context, dir string) error {
	top := u.tree.Dir()
	var files, links []string
	err := filepath.WalkDir(filepath.Join(top, dir), func(file string, d fs.DirEntry, err error) error {
		if err != nil || modules.PlainName(file) == file {
			return err
		}
		name, err := filepath.Rel(top, file)
		if err != nil {
			return err
		}
		switch d.Type() {
		case 0:
			files = append(files, filepath.ToSlash(name))
		case fs.ModeSymlink:
			links = append(links, filepath.ToSlash(name))
		}
		return nil
	})
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for _, name := range files {
		g.Go(func() error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err := u.one(name); err != nil {
				return fmt.Errorf("kernel module /%s: %w", name, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, name := range links {
		if err := u.link(name); err != nil {
			return fmt.Errorf("kernel module /%s: %w", name, err)
		}
	}
	return nil
}

func (u *unpacking) one(name string) error {
	u.mu.Lock()
	raw, err := u.tree.ReadFile(name, maxModule)
	u.mu.Unlock()
	if err != nil {
		return err
	}
	plain, err := modules.Unpack(name, raw)
	if err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.count++
	u.before, u.after = u.before+int64(len(raw)), u.after+int64(len(plain))
	return u.tree.ReplaceAs(name, modules.PlainName(name), plain)
}

// link has a link to a module that was unpacked lead there. One to anything else stays.
func (u *unpacking) link(name string) error {
	if _, err := u.tree.Resolve(name); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return u.tree.RenameLink(name, modules.PlainName)
}

// depmod writes one of depmod's files again.
func (u *unpacking) depmod(name string, plain func([]byte) ([]byte, error)) error {
	raw, err := u.tree.ReadFile(name, maxDepmod)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	text, err := plain(raw)
	if err != nil {
		return fmt.Errorf("/%s %w: run `depmod %s` in the root file system", name, err, u.release)
	}
	return u.tree.Replace(name, text)
}

// plainFiles are the files that lie in the image without compression, for mkfs.erofs: modules
// that were unpacked, and the kernel, which nothing shortens further. A space in its name,
// which no pattern can have, leaves it to the compression.
func (b *build) plainFiles() string {
	if !b.Config.PlainModules {
		return ""
	}
	pattern := `\.ko$`
	if kernel := b.parts.kernel.path; !strings.ContainsAny(kernel, " \t\n") {
		pattern += "|^/?" + regexp.QuoteMeta(kernel) + "$"
	}
	return pattern
}
