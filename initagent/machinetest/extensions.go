package machinetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/u-root/u-root/pkg/cpio"
	"golang.org/x/sys/unix"

	"halogenos.internal/boot/blocktest"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/extension"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/uki"
	"halogenos.internal/boot/uki/ukitest"
	"halogenos.internal/boot/verity"
	"halogenos.internal/initagent/extensions"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/tpm"
)

// extensionBlocks is how many blocks an extension's image has: enough for a tree of its own.
const extensionBlocks = 3

// An Extension is one of a release: its entry in the UKI's list, its file, and what its file
// system shows.
type Extension struct {
	contract.Extension
	File []byte
	Tree map[string]string
}

// NewExtension is one with these files. Another seed makes another file of the same size.
func NewExtension(t testing.TB, name string, seed byte, essential bool, tree map[string]string) *Extension {
	t.Helper()
	e := &Extension{Tree: tree, Extension: contract.Extension{Name: name, Salt: []byte("salt"), ImageSize: extensionBlocks * verity.BlockSize, Essential: essential}}
	for i := range e.ImageSize / verity.BlockSize {
		block := sha256.Sum256(fmt.Appendf(nil, "%s %d %d", name, seed, i))
		e.File = append(e.File, bytes.Repeat(block[:], verity.BlockSize/len(block))...)
	}
	e.RootHash = make([]byte, len(verity.Root{}))
	hashes := blocktest.New(MiB, blocktest.Zero)
	for range 2 { // the superblock's UUID is of the root hash
		root, err := verity.Generate(t.Context(), bytes.NewReader(e.File), e.VerityParams(), hashes, func(int64) {})
		if err != nil {
			t.Fatal(err)
		}
		e.RootHash = root[:]
	}
	size, err := e.FileSize()
	if err != nil {
		t.Fatal(err)
	}
	behind := make([]byte, size-e.ImageSize)
	if _, err := hashes.ReadAt(behind, 0); err != nil {
		t.Fatal(err)
	}
	e.File = append(e.File, behind...)
	return e
}

// Extend has a release list extensions in its UKI.
func (r *Edition) Extend(t testing.TB, list ...*Extension) *Edition {
	t.Helper()
	r.Extensions = list
	initrd, err := contract.ArchiveWith(r.Contract, contract.Own())
	if err != nil {
		t.Fatal(err)
	}
	third, err := contract.ExtensionsArchive(r.entries())
	if err != nil {
		t.Fatal(err)
	}
	r.UKI, err = uki.Build(ukitest.Stub("257.13-1"), uki.Payload{
		OSRelease: []byte("ID=test\n"), Cmdline: []byte("quiet"), Linux: ukitest.Stub("kernel"), Initrd: append(initrd, third...),
	}.Sections())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// entries are as the UKI lists them.
func (r *Edition) entries() (list []contract.Extension) {
	for _, e := range r.Extensions {
		list = append(list, e.Extension)
	}
	return list
}

// Extended is a machine with a release that has extensions: their files are there, and none
// is enabled.
func Extended(t testing.TB, list ...*Extension) *Machine {
	t.Helper()
	m := newMachine(t, Pinned)
	m.Releases[1].Extend(t, list...)
	for _, name := range []string{"usr/lib", "usr/local", "opt"} {
		m.Must(os.MkdirAll(filepath.Join(m.Root, "sysroot", name), 0o755))
	}
	m.takeOver(m.firstBoots())
	m.Ends("system")
	for _, e := range list {
		m.PutExtension(e)
	}
	m.Ops = nil
	m.Said.Reset()
	m.Printed.Reset()
	return m
}

// ExtensionFile is where the root partition has it.
func ExtensionFile(e *Extension) string {
	return path.Join(extensions.Directory, extension.FileName(e.Root()))
}

// ChoiceFile is where the root partition has the choice.
const ChoiceFile = extensions.Directory + "/" + extension.ChoiceName

// PutExtension puts its file onto the root partition, as ota does.
func (m *Machine) PutExtension(e *Extension) {
	m.T.Helper()
	m.RootFiles()[ExtensionFile(e)] = slices.Clone(e.File)
}

// Enable enables these alone.
func (m *Machine) Enable(names ...string) {
	m.T.Helper()
	var c extension.Choice
	var err error
	for _, n := range names {
		if c, err = c.With(n); err != nil {
			m.T.Fatal(err)
		}
	}
	m.RootFiles()[ChoiceFile] = c.Encode()
}

// PCR13 is the register now.
func (m *Machine) PCR13() pcr.Digest {
	m.T.Helper()
	now, err := tpm.OpenTransport(m.Emulator).Now()
	m.Must(err)
	return now.PCR13
}

// kernelImages is what the kernel has open of extensions.
type kernelImages struct {
	loops  map[string][]byte      // by device
	opened map[string]verity.Root // by name of the device of the device mapper
	laid   map[string][]string    // layers of overlays, by target
}

// startExtensions has a boot find what its UKI carries, and nothing of the boot before.
func (m *Machine) startExtensions(r *Edition) {
	m.images = kernelImages{map[string][]byte{}, map[string]verity.Root{}, map[string][]string{}}
	m.Overlaid = map[string]map[string]string{}
	m.Must(os.RemoveAll(filepath.Join(m.Root, "extensions")))
	at := filepath.Join(m.Root, contract.ExtensionsPath)
	if m.ListText != "" {
		m.Must(os.WriteFile(at, []byte(m.ListText), 0o600))
		return
	}
	if len(r.Extensions) == 0 {
		m.Must(os.RemoveAll(at))
		return
	}
	archive, err := contract.ExtensionsArchive(r.entries())
	m.Must(err)
	for records := cpio.Newc.Reader(bytes.NewReader(archive)); ; {
		record, err := records.ReadRecord()
		m.Must(err)
		if record.Name != contract.ExtensionsPath {
			continue // the directory
		}
		text := make([]byte, record.FileSize)
		_, err = record.ReadAt(text, 0)
		m.Must(err)
		m.Must(os.WriteFile(at, text, 0o600))
		return
	}
}

// OpenImage implements hw.Store.
func (s Store) OpenImage(name string, size int64) (hw.Image, error) {
	content, there := s.files()[name]
	switch {
	case !there:
		return nil, fs.ErrNotExist
	case name == s.M.UnreadableFile:
		return nil, &fs.PathError{Op: "open", Path: name, Err: syscall.EIO}
	case int64(len(content)) != size || s.M.UnfitFile == name:
		return nil, fmt.Errorf("open %s: %w: it has %d bytes, want %d", name, hw.ErrUnfit, len(content), size)
	}
	return image{bytes.NewReader(content), s.M, content}, nil
}

// image implements hw.Image.
type image struct {
	*bytes.Reader
	m       *Machine
	content []byte
}

func (i image) Attach() (string, error) {
	if i.m.NoLoop {
		return "", &fs.PathError{Op: "open", Path: "/dev/loop-control", Err: syscall.ENOENT}
	}
	node := fmt.Sprintf("/dev/loop%d", len(i.m.images.loops))
	i.m.images.loops[node] = i.content
	return node, nil
}

func (image) Close() error { return nil }

// openImage is dm-verity on a loop device. The first block is read at once, and what is
// corrupt behind it is found out by who reads it.
func (m *Machine) openImage(v hw.Verity) (string, error) {
	content, there := m.images.loops[v.DataDevice]
	if !there || v.HashDevice != v.DataDevice || v.HashStart != int64(v.Params.DataBlocks)*verity.BlockSize || v.RestartOnCorruption {
		m.T.Errorf("%s is opened with %+v", v.Name, v)
		return "", syscall.EINVAL
	}
	err := verity.Verify(context.Background(), bytes.NewReader(content[:v.HashStart]), bytes.NewReader(content[v.HashStart:]), v.Params, v.Root, nil)
	if corrupt, is := errors.AsType[*verity.CorruptError](err); is && (corrupt.Area == verity.AreaSuperblock || corrupt.Area == verity.AreaData && corrupt.Block > 0) {
		err = nil // the kernel does not read it yet
	}
	if err != nil {
		return "", fmt.Errorf("first read through dm-verity: %w", err)
	}
	m.images.opened[v.Name] = v.Root
	return "/dev/dm-" + v.Name, nil
}

// closeImage is refused while anything lies on it.
func (m *Machine) closeImage(name string) error {
	if _, open := m.images.opened[name]; !open {
		return fmt.Errorf("no device %s: %w", name, unix.ENXIO)
	}
	for target := range m.images.laid {
		if slices.Contains(m.Mounted, target) {
			return fmt.Errorf("device %s is busy: %s", name, target)
		}
	}
	delete(m.images.opened, name)
	return nil
}

// mountImage shows an extension's files at a directory.
func (m *Machine) mountImage(source, target string, flags uintptr) error {
	root, open := m.images.opened[strings.TrimPrefix(source, "/dev/dm-")]
	if !open || flags != unix.MS_RDONLY|unix.MS_NODEV {
		m.T.Errorf("%s is mounted with the flags %x", source, flags)
	}
	for _, r := range m.Releases {
		for _, e := range r.Extensions {
			if e.Root() == root {
				return writeTree(target, e.Tree)
			}
		}
	}
	return errors.New("no file system")
}

// writeTree makes files: "->x" is a link to x, and a name that ends in a slash a directory.
func writeTree(at string, tree map[string]string) error {
	if err := os.MkdirAll(at, 0o755); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(tree)) {
		file, text := filepath.Join(at, name), tree[name]
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		err := error(nil)
		if to, link := strings.CutPrefix(text, "->"); link {
			err = os.Symlink(to, file)
		} else if strings.HasSuffix(name, "/") {
			err = os.MkdirAll(file, 0o755)
		} else {
			err = os.WriteFile(file, []byte(text), 0o644)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// overlay notes what an overlay of several layers shows: of each file the uppermost.
func (m *Machine) overlay(target, data string, flags uintptr) error {
	lower, rest, _ := strings.Cut(strings.TrimPrefix(data, "lowerdir="), ",")
	layers := strings.Split(lower, ":")
	if layers[len(layers)-1] != target || flags != unix.MS_RDONLY|unix.MS_NODEV || rest != "redirect_dir=nofollow,metacopy=off" || len(data) > 4095 {
		m.T.Errorf("overlay %s is mounted with %q and the flags %x", target, data, flags)
	}
	if m.NoOverlay == target {
		return syscall.EINVAL
	}
	shows := map[string]string{}
	for _, layer := range slices.Backward(layers) {
		err := filepath.WalkDir(layer, func(name string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			own, _ := filepath.Rel(layer, name)
			text, err := os.ReadFile(name)
			shows[own] = string(text)
			return err
		})
		if err != nil {
			return err
		}
	}
	own, _ := filepath.Rel(filepath.Join(m.Root, "sysroot"), target)
	m.Overlaid[own], m.images.laid[target] = shows, layers
	return nil
}

// leftExtensions are mounts that only the initramfs needs.
func (m *Machine) leftExtensions() (left []string) {
	for _, at := range m.Mounted {
		if strings.HasPrefix(at, filepath.Join(m.Root, "extensions")+"/") {
			left = append(left, at)
		}
	}
	return left
}
