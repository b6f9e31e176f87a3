package image

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/modindex"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/verity"
	"halogenos.internal/builder/config"
	"halogenos.internal/builder/erofs"
	"halogenos.internal/builder/modules"
	"halogenos.internal/builder/rootfs"
	"halogenos.internal/builder/sbom"
)

// extension is a system extension on its way into the release.
type extension struct {
	config.Extension
	tree     *rootfs.Tree
	made     contract.Extension // as the UKI lists it
	sum      []byte             // SHA-256 of its file
	packages []sbom.Package     // that the image does not have
	modules  int
	hidden   []string // names that it may not have
}

// checkExtensions refuses extensions whose sources are not there, before anything takes long.
func (b *build) checkExtensions(context.Context) error {
	for _, e := range b.Config.Extensions {
		if e.Source == "" {
			return fmt.Errorf("extension %s has no source: name it with Source= in [Extension %[1]s], or with --extension %[1]s=SRC", e.Name)
		}
		if _, err := os.Stat(e.Source); err != nil {
			return fmt.Errorf("source of extension %s: %w", e.Name, err)
		}
		if err := outside("output", b.Out, e.Source); err != nil {
			return fmt.Errorf("source of extension %s: %w", e.Name, err)
		}
	}
	return nil
}

// stageExtensions copies the extensions' sources and makes them what they have to be: the
// image's tree is complete by then.
func (b *build) stageExtensions(ctx context.Context) error {
	claims := make(claims)
	// By name, as a machine opens them: the order in which they are given changes no byte.
	all := slices.SortedFunc(slices.Values(b.Config.Extensions), func(x, y config.Extension) int { return strings.Compare(x.Name, y.Name) })
	for _, c := range all {
		done := b.Progress.Step("reading the extension " + c.Name)
		e := &extension{Extension: c}
		b.extensions = append(b.extensions, e)
		err := b.stageExtension(ctx, e)
		if err == nil {
			err = claims.add(e)
		}
		if err != nil {
			return fmt.Errorf("extension %s: %w", c.Name, err)
		}
		done("")
	}
	return nil
}

func (b *build) stageExtension(ctx context.Context, e *extension) error {
	dir := b.out.path("extension-" + e.Name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	var err error
	if e.tree, err = rootfs.NewTree(dir); err != nil {
		return err
	}
	if err := e.tree.Fill(ctx, e.Source, b.Config.Arch); err != nil {
		return fmt.Errorf("read %s: %w", e.Source, err)
	}
	b.noteSockets("extension "+e.Name, e.tree)
	b.noteDates("extension "+e.Name, e.tree)
	if err := errors.Join(b.holes("its file system", e.tree), b.takePackages(e)); err != nil {
		return err
	}
	if err := b.dropIndexes(e); err != nil {
		return err
	}
	if err := b.lookThrough(e); err != nil {
		return err
	}
	if err := b.extensionModules(ctx, e); err != nil {
		return err
	}
	if err := b.releaseFile(e); err != nil {
		return err
	}
	return e.tree.Seal(b.Date)
}

// moduleDir is where the kernel looks for its modules.
func (b *build) moduleDir() string { return path.Join("usr/lib/modules", b.parts.kernel.release) }

// dropIndexes takes out what depmod has written where the extension comes from: it is of
// other modules than those that the machine will have.
func (b *build) dropIndexes(e *extension) error {
	names, err := e.tree.List(b.moduleDir())
	if err != nil {
		return err
	}
	for _, name := range names {
		name = path.Join(b.moduleDir(), name)
		info, err := e.tree.Lstat(name)
		if err == nil && ofDepmod(name, info.IsDir()) {
			err = e.tree.Remove(name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// ofDepmod reports whether a name in a tree is of a file that depmod writes. Neither a
// directory nor a module is one, whatever its name.
func ofDepmod(name string, dir bool) bool {
	return !dir && path.Dir(path.Dir(name)) == "usr/lib/modules" && modindex.Is(path.Base(name)) && !modules.IsModule(name)
}

// extensionModules treats the extension's kernel modules as the image's, and writes
// depmod's files for them.
func (b *build) extensionModules(ctx context.Context, e *extension) error {
	dir := b.moduleDir()
	if _, err := e.tree.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if at, err := b.tree.Resolve(dir); err != nil || at != dir {
		return fmt.Errorf("has kernel modules in /%s, and the image has its own elsewhere (/%s): an extension is laid over /usr alone", dir, b.parts.kernel.modules)
	}
	if b.Config.PlainModules {
		u := &unpacking{tree: e.tree, release: b.parts.kernel.release}
		if err := u.all(ctx, dir); err != nil {
			return err
		}
	}
	if b.ModuleSigner != nil {
		if _, err := b.signModulesOf(e.tree, dir); err != nil {
			return err
		}
	}
	files, err := readModules(e.tree, dir)
	if err != nil || len(files) == 0 {
		return err
	}
	e.modules = len(files)
	made, err := b.depmod(files)
	if err != nil {
		return err
	}
	for name, content := range made {
		if err := e.tree.AddFile(path.Join(dir, name), content, 0o644, b.Date); err != nil {
			return fmt.Errorf("add /%s: %w", path.Join(dir, name), err)
		}
	}
	return nil
}

// readModules reads the modules in a directory of a tree.
func readModules(t *rootfs.Tree, dir string) ([]modules.File, error) {
	var files []modules.File
	top := filepath.Join(t.Dir(), dir)
	err := filepath.WalkDir(top, func(file string, d fs.DirEntry, err error) error {
		if err != nil || !modules.IsModule(file) || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(top, file)
		if err != nil {
			return err
		}
		if !d.Type().IsRegular() {
			return fmt.Errorf("/%s is no regular file: an extension has its kernel modules themselves", path.Join(dir, name))
		}
		raw, err := t.ReadFile(path.Join(dir, name), maxModule)
		if err != nil {
			return err
		}
		plain, err := modules.Unpack(name, raw)
		if err != nil {
			return fmt.Errorf("kernel module /%s: %w", path.Join(dir, name), err)
		}
		files = append(files, modules.File{Path: filepath.ToSlash(name), Content: plain})
		return nil
	})
	return files, err
}

// depmod makes the lists of an extension's modules beside those of the image.
func (b *build) depmod(files []modules.File) (map[string][]byte, error) {
	var lists modules.Lists
	for _, f := range []struct {
		name string
		to   *[]byte
	}{{"modules.dep", &lists.Dep}, {"modules.symbols", &lists.Symbols}, {"modules.builtin", &lists.Builtin}} {
		var err error
		if *f.to, err = b.tree.ReadFile(path.Join(b.moduleDir(), f.name), maxDepmod); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	// Machines merge the extension's indexes with the image's, so these must be there.
	for _, name := range modules.Indexes {
		raw, err := b.tree.ReadFile(path.Join(b.moduleDir(), name), maxDepmod)
		if err == nil {
			_, err = modindex.Parse(raw)
		}
		if err != nil {
			return nil, fmt.Errorf("has kernel modules, and the image has no %s to merge theirs with: %w: run `depmod %s` in the root file system", name, err, b.parts.kernel.release)
		}
	}
	return modules.Depmod(files, lists)
}

// packExtensions searches the extensions as the image, and makes their files.
func (b *build) packExtensions(ctx context.Context) error {
	for _, e := range b.extensions {
		done := b.Progress.Step("searching and packing the extension " + e.Name)
		_, before := b.checker.Counts()
		if err := b.scanner.Tree(ctx, e.tree.Dir()); err != nil {
			return fmt.Errorf("search extension %s: %w", e.Name, err)
		}
		_, own := b.checker.Counts()
		err := b.loadsOwn(own - before)
		if err == nil {
			err = b.packExtension(ctx, e)
		}
		if err != nil {
			return fmt.Errorf("extension %s: %w", e.Name, err)
		}
		said := megabytes(e.made.ImageSize) + ", root hash " + e.made.Root().String()
		if e.modules > 0 {
			said += fmt.Sprintf(", %d kernel modules", e.modules)
		}
		done(said)
	}
	if len(b.extensions) > 0 {
		b.keepResults()
	}
	return nil
}

// packExtension writes the file system and its tree to one file.
func (b *build) packExtension(ctx context.Context, e *extension) error {
	file := b.out.path(release.ExtensionFile(e.Name))
	err := erofs.Make(ctx, file, e.tree.Dir(), erofs.Options{
		UUID: derive("extension "+e.Name, b.Config.ImageID, b.Version), Date: b.Date,
		Compression: b.Config.Compression, AllRoot: e.tree.Squash(), Sparse: e.tree.Sparse(), Plain: b.plainFiles(),
	})
	if err != nil {
		return err
	}
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(b.growTree(ctx, e, f), f.Close())
}

// growTree appends the verity tree to the file system in f.
func (b *build) growTree(ctx context.Context, e *extension, f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size()%verity.BlockSize != 0 || info.Size() > layout.MaxSlot {
		return fmt.Errorf("%s wrote %d bytes, not whole blocks of %d, or more than %d", erofs.Tool, info.Size(), verity.BlockSize, int64(layout.MaxSlot))
	}
	e.made = contract.Extension{Name: e.Name, Salt: salt(b.Config.ImageID), ImageSize: info.Size(), Essential: e.Essential, Modules: e.modules > 0}
	image := io.NewSectionReader(f, 0, info.Size())
	root, err := verity.Generate(ctx, image, verity.Params{DataBlocks: uint64(info.Size() / verity.BlockSize), Salt: e.made.Salt}, discard{}, nil)
	if err != nil {
		return err
	}
	e.made.RootHash = root[:]
	// Once more, as the superblock's UUID is made of the root hash.
	if _, err := verity.Generate(ctx, image, e.made.VerityParams(), io.NewOffsetWriter(f, info.Size()), nil); err != nil {
		return err
	}
	size, err := e.made.FileSize()
	if err != nil {
		return err
	}
	if err := f.Truncate(size); err != nil { // the same, but where the tree has no level at all
		return err
	}
	e.sum, err = hashFile(f.Name())
	return err
}

// listExtensions is what the UKI says of the extensions.
func (b *build) listExtensions() ([]byte, error) {
	var list []contract.Extension
	for _, e := range b.extensions {
		list = append(list, e.made)
	}
	return contract.ExtensionsArchive(list)
}

// packageData are where package managers keep what they have installed. In the source
// of an extension it is read for the bill of materials and left out.
var packageData = []string{"var/lib/dpkg", "var/lib/pacman", "var/db/pkg"}

// takePackages notes the packages that the source has and the image has not.
func (b *build) takePackages(e *extension) error {
	packages, err := sbom.Read(packageFiles{e.tree, b.tree})
	if err != nil {
		return err
	}
	have, err := sbom.Read(b.tree)
	if err != nil {
		return err
	}
	e.packages = slices.DeleteFunc(packages, func(p sbom.Package) bool {
		return slices.ContainsFunc(have, func(h sbom.Package) bool { return h.URL() == p.URL() })
	})
	for _, dir := range packageData {
		if _, err := e.tree.Lstat(dir); err != nil {
			continue
		}
		if err := e.tree.Remove(dir); err != nil {
			return err
		}
		// What was only on the way there is nothing of the extension's.
		for dir = path.Dir(dir); dir != "."; dir = path.Dir(dir) {
			if names, err := e.tree.List(dir); err != nil || len(names) > 0 {
				break
			}
			if err := e.tree.Remove(dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// packageFiles are the files of an extension, whose distribution is the image's.
type packageFiles struct{ extension, image *rootfs.Tree }

// ReadFile implements sbom.Files.
func (p packageFiles) ReadFile(name string, limit int64) ([]byte, error) {
	if path.Base(name) == "os-release" {
		return p.image.ReadFile(name, limit)
	}
	return p.extension.ReadFile(name, limit)
}

// List implements sbom.Files.
func (p packageFiles) List(name string) ([]string, error) { return p.extension.List(name) }

// extensionBills are the extensions' parts of the bill of materials.
func (b *build) extensionBills() ([]sbom.Extension, error) {
	var all []sbom.Extension
	for _, e := range b.extensions {
		programs, err := goPrograms(e.tree)
		if err != nil {
			return nil, err
		}
		all = append(all, sbom.Extension{Name: e.Name, SHA256: hex.EncodeToString(e.sum), Packages: e.packages, Programs: programs})
	}
	return all, nil
}
