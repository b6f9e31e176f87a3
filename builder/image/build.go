// Package image turns a root file system into the files of a release: system
// image, UKI, boot manager, release.json, and a disk with them.
//
// It refuses a root file system that leaves a choice open (no kernel, two
// kernels) and parts that do not fit together. A build that fails leaves
// nothing behind, and no clock but the source date gets into what it makes.
package image

import (
	"context"
	"crypto"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/microcode"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/uki"
	"halogenos.internal/boot/verity"
	"halogenos.internal/builder/cache"
	"halogenos.internal/builder/config"
	"halogenos.internal/builder/erofs"
	"halogenos.internal/builder/initramfs"
	"halogenos.internal/builder/modules"
	"halogenos.internal/builder/osfiles"
	"halogenos.internal/builder/room"
	"halogenos.internal/builder/rootfs"
	"halogenos.internal/builder/scan"
)

// DiskFile is the name of the disk image.
const DiskFile = "disk.img"

// Options say what to build.
type Options struct {
	Config  *config.Config
	RootFS  string // directory, tar archive or OCI image
	Version contract.Version
	Out     string // directory for the results
	Machine string // directory with the machine's programs
	// Date is the source date. The zero time stands for the latest
	// modification time of a file in the root file system, directories not
	// counted.
	Date     time.Time
	Disk     bool
	DiskSize int64 // bytes of the disk image
	Progress *Progress
	// ModuleSigner is the secret key of the configuration's ModuleKey, which
	// signs the kernel modules that are not signed; nil for none. It stays the
	// caller's to wipe.
	ModuleSigner crypto.Signer
	// Previous is the directory of the build that this one follows; empty for
	// none.
	Previous string
	// Past are releases that machines have which take this one, as far as they are known; the
	// previous build need not be among them.
	Past []room.Release
	// ExpiringKey takes a release key that has expired, or ends within a year.
	ExpiringKey bool
	// MovedAccounts takes users and groups that have another number than in the previous
	// build.
	MovedAccounts bool
	// Cache is the directory of results by content, which spare work to later builds; empty
	// for none. What is built is the same.
	Cache string
	// Now is by when the release key is judged; the zero time stands for the clock.
	Now time.Time
}

// A Result is what was built.
type Result struct {
	Release *release.Release
	Room    room.Plan // how long machines' partitions will do
	Files   []string  // paths of what was written
}

// salt of the verity trees of an image: fixed, so that the trees of two
// releases can be compared block by block.
func salt(imageID string) []byte {
	sum := sha256.Sum256([]byte("halogen verity salt\x00" + imageID))
	return sum[:]
}

// derive returns a UUID of a thing of a release.
func derive(thing, imageID string, v contract.Version) gpt.GUID {
	return layout.ReleaseGUID(thing, imageID, v.String())
}

// Build makes a release.
func Build(ctx context.Context, o Options) (r *Result, err error) {
	if err := outside("output", o.Out, o.RootFS); err != nil {
		return nil, err
	}
	busybox, commands, err := loadMachine(o.Machine)
	if err != nil {
		return nil, err
	}
	out, err := newOutputs(o.Out)
	if err != nil {
		return nil, err
	}
	b := &build{Options: o, out: out, busybox: busybox, commands: commands, scanner: scan.New(o.Config.Allow)}
	defer func() { err = errors.Join(err, b.close()) }()
	if err := b.openCache(); err != nil {
		return nil, err
	}
	for _, step := range []func(context.Context) error{b.pinnable, b.follow, b.checkExtensions, b.stage, b.find, b.complete, b.sameAccounts, b.stageExtensions, b.pack, b.packExtensions, b.seal, b.judge, b.describe, b.plan, b.account, b.disk} {
		if err := step(ctx); err != nil {
			return nil, err
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	return b.publish()
}

// outside refuses to write into the root file system that is read.
func outside(what, out, source string) error {
	from, err := filepath.Abs(source)
	if err != nil {
		return err
	}
	to, err := filepath.Abs(out)
	if err != nil {
		return err
	}
	if rel, err := filepath.Rel(from, to); err == nil && rel != ".." && !strings.HasPrefix(rel, "../") {
		return fmt.Errorf("the %s directory %s lies in the root file system", what, out)
	}
	return nil
}

// build is a build under way; each step fills in more.
type build struct {
	Options
	out       *outputs
	busybox   initramfs.Busybox
	commands  rootfs.Commands
	tree      *rootfs.Tree
	parts     *parts
	index     *initramfs.Index
	modules   []string
	initramfs []byte       // without the boot contract
	cache     *cache.Dir   // nil for none
	results   *cache.Table // of the search; nil for none
	scanner   *scan.Scanner
	kernel    *modules.Kernel
	checker   *modules.Checker
	contract  *contract.Contract
	microcode *microcode.Set
	ucode     []byte // the same as an archive; empty for none
	choices   []byte // of who installs it; nil where nobody is asked
	initrd    []byte // the boot contract and the initramfs
	uki       []byte
	release   *release.Release
	past      []room.Release
	roomPlan  room.Plan

	extensions []*extension
}

func (b *build) close() (err error) {
	if b.cache != nil {
		err = b.cache.Close()
	}
	if b.tree != nil {
		err = errors.Join(err, b.tree.Close())
	}
	for _, e := range b.extensions {
		if e.tree != nil {
			err = errors.Join(err, e.tree.Close())
		}
	}
	return errors.Join(err, b.out.Close())
}

// stage copies the root file system, so that the source is never changed.
func (b *build) stage(ctx context.Context) error {
	done := b.Progress.Step("reading the root file system")
	dir := b.out.path("root")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	tree, err := rootfs.NewTree(dir)
	if err != nil {
		return err
	}
	b.tree = tree
	if err := tree.Fill(ctx, b.RootFS, b.Config.Arch); err != nil {
		return fmt.Errorf("read root file system: %w", err)
	}
	done("")
	b.noteSockets("the root file system", tree)
	return nil
}

// noteSockets says that a source had some.
func (b *build) noteSockets(of string, t *rootfs.Tree) {
	if sockets := t.Sockets(); len(sockets) > 0 {
		b.Progress.Note("sockets of %s are left out: %d, such as /%s", of, len(sockets), sockets[0])
	}
}

// noteDates says that a source had files whose date no image can have.
func (b *build) noteDates(of string, t *rootfs.Tree) {
	if file := t.BeforeEpoch(); file != "" {
		b.Progress.Note("files of %s dated before 1970, such as /%s, get the date 1970-01-01", of, file)
	}
}

// find looks for what the build needs in the tree, before anything takes long.
func (b *build) find(context.Context) error {
	if err := b.holes("the root file system", b.tree); err != nil {
		return err
	}
	var err error
	if b.parts, err = findParts(b.tree, b.Config, b.Version); err != nil {
		return err
	}
	k := b.parts.kernel
	if err := itsModules(b.tree, k); err != nil {
		return err
	}
	if b.index, err = initramfs.LoadIndex(b.tree, k.modules, k.release); err != nil {
		return err
	}
	if b.modules, err = b.index.Select(wantedModules(b.Config)); err != nil {
		return err
	}
	if fs := b.Config.RootPartitionFormat; !b.index.BuiltIn(fs) && !slices.Contains(b.modules, fs) {
		return fmt.Errorf("RootPartitionFormat is %s, but Modules in [Initramfs] has no %s", fs, fs)
	}
	if err := b.canSwap(); err != nil {
		return err
	}
	if err := b.trustModules(); err != nil {
		return err
	}
	if err := b.needs(); err != nil {
		return err
	}
	if err := b.chooseMicrocode(); err != nil {
		return err
	}
	if err := b.sourceDate(time.Now()); err != nil {
		return err
	}
	for _, what := range b.parts.unsigned {
		b.Progress.Note("took the signature off the %s: each machine signs it with its own key", what)
	}
	b.Progress.Note("kernel %s, %d modules for the initramfs, source date %s", k.release, len(b.modules), b.Date.Format(time.DateTime))
	return nil
}

// sourceDate decides what date the image has. One that has not come yet is
// refused: machines take the image's date for the least that the time can be,
// and a key that expires before it would be expired for ever.
func (b *build) sourceDate(now time.Time) error {
	latest := now.Add(24 * time.Hour) // clocks and time zones are not exact
	if b.Date.IsZero() {
		newest, file := b.tree.Newest()
		if newest.After(latest) {
			return fmt.Errorf("/%s is dated %s, and by this machine's clock it is %s: correct its date with `touch`, or set SOURCE_DATE_EPOCH, which later dates then become",
				file, newest.UTC().Format(time.DateTime), now.UTC().Format(time.DateTime))
		}
		b.Date = newest
	}
	b.Date = b.Date.Truncate(time.Second).UTC()
	switch {
	case b.Date.Unix() < 0:
		return fmt.Errorf("source date %s lies before 1970: set SOURCE_DATE_EPOCH", b.Date.Format(time.DateTime))
	case b.Date.After(latest):
		return fmt.Errorf("the source date %s (SOURCE_DATE_EPOCH) has not come yet: by this machine's clock it is %s", b.Date.Format(time.DateTime), now.UTC().Format(time.DateTime))
	}
	b.noteDates("the root file system", b.tree)
	return nil
}

func (b *build) complete(ctx context.Context) error {
	notes, err := b.tree.Complete(b.commands, b.Date)
	if err != nil {
		return fmt.Errorf("complete the root file system: %w", err)
	}
	kept, err := osfiles.Add(b.tree, b.Config, b.Date)
	if err != nil {
		return fmt.Errorf("complete the root file system: %w", err)
	}
	for _, note := range append(notes, kept...) {
		b.Progress.Note("%s", note)
	}
	b.choose()
	b.hungry()
	b.idle()
	b.rootless()
	if err := b.plainModules(ctx); err != nil {
		return err
	}
	if err := b.signModules(); err != nil {
		return err
	}
	if err := b.tree.Seal(b.Date); err != nil {
		return fmt.Errorf("complete the root file system: %w", err)
	}
	return nil
}

// pack makes the system image, which keeps one core busy, and beside it the
// initramfs, and searches what goes into both.
func (b *build) pack(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return b.packSystem(ctx) })
	g.Go(func() error {
		if err := b.packInitramfs(); err != nil {
			return err
		}
		return b.search(ctx)
	})
	return g.Wait() // the first error, and not that mkfs was stopped for it
}

func (b *build) packInitramfs() error {
	done := b.Progress.Step("packing the initramfs")
	plain, err := initramfs.Archives(b.busybox, b.index, b.tree, b.modules)
	if err != nil {
		return err
	}
	packed, err := initramfs.Join(plain, b.compress)
	if err != nil {
		return err
	}
	b.initramfs = packed
	done(megabytes(int64(len(packed))))
	return nil
}

func (b *build) packSystem(ctx context.Context) error {
	done := b.Progress.Step("packing the system image")
	file := b.out.path(release.ImageFile)
	err := erofs.Make(ctx, file, b.tree.Dir(), erofs.Options{
		UUID: derive("system image", b.Config.ImageID, b.Version), Date: b.Date,
		Compression: b.Config.Compression, AllRoot: b.tree.Squash(), Sparse: b.tree.Sparse(),
		Plain: b.plainFiles(),
	})
	if err != nil {
		return fmt.Errorf("make system image: %w", b.explain(err))
	}
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	if info.Size()%verity.BlockSize != 0 {
		return fmt.Errorf("make system image: %s wrote %d bytes, not whole blocks of %d", erofs.Tool, info.Size(), verity.BlockSize)
	}
	if info.Size() > b.Config.SlotSize {
		return b.tooLarge(info.Size())
	}
	done(megabytes(info.Size()))
	return nil
}

func megabytes(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }

// discard is the place for a verity tree of which only the root is wanted.
type discard struct{}

func (discard) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

// seal computes the root hash, writes the boot contract with it and makes the
// UKI with that.
func (b *build) seal(ctx context.Context) error {
	done := b.Progress.Step("hashing the system image")
	image, err := os.Open(b.out.path(release.ImageFile))
	if err != nil {
		return err
	}
	defer image.Close()
	info, err := image.Stat()
	if err != nil {
		return err
	}
	c := &contract.Contract{
		Format: contract.Format, ImageID: b.Config.ImageID, Arch: b.Config.Arch, Version: b.Version, Epoch: b.Config.Epoch, SourceDate: b.Date.Unix(),
		Salt: salt(b.Config.ImageID), ImageSize: info.Size(), SlotSize: b.Config.SlotSize,
		ReleaseKey: b.Config.ReleaseKey, SecureBoot: b.Config.SecureBoot, TPM: b.Config.TPM,
		VendorKeys: b.Config.VendorKeys, RootFileSystem: b.Config.RootPartitionFormat, WatchdogSeconds: b.Config.WatchdogSeconds,
	}
	root, err := verity.Generate(ctx, image, verity.Params{DataBlocks: uint64(c.ImageSize / verity.BlockSize), Salt: c.Salt}, discard{}, nil)
	if err != nil {
		return fmt.Errorf("hash system image: %w", err)
	}
	c.RootHash = root[:]
	b.contract = c
	done("root hash " + root.String())
	first, err := contract.ArchiveWith(c, room.Abilities(b.Config.ESPSize, b.past))
	if err != nil {
		return err
	}
	list, err := b.listExtensions()
	if err != nil {
		return err
	}
	trust, err := b.moduleTrust()
	if err != nil {
		return err
	}
	facts := slices.Concat(first, list, trust)
	if b.choices != nil {
		if facts, err = contract.WithChoices(facts, b.choices); err != nil {
			return err
		}
	}
	initrd, ucode, err := b.placeMicrocode(facts)
	if err != nil {
		return err
	}
	b.initrd = initrd
	b.uki, err = uki.BuildAligned(b.parts.stub, uki.Payload{
		OSRelease: b.parts.osRelease, Cmdline: []byte(b.Config.Cmdline), Uname: []byte(b.parts.kernel.release),
		Splash: b.Config.Splash, Linux: b.parts.kernel.image, Initrd: initrd, Microcode: ucode,
	}.Sections(), verity.BlockSize)
	if err != nil {
		return fmt.Errorf("make UKI: %w", err)
	}
	return fitsESP(int64(len(b.uki)), int64(len(b.parts.bootManager)), b.Config.ESPSize, room.Smallest(b.Config.ESPSize, b.past))
}

// describe writes the EFI files and release.json.
func (b *build) describe(context.Context) error {
	img, err := uki.Parse(b.uki)
	if err != nil {
		return fmt.Errorf("read back the UKI: %w", err)
	}
	measured, err := pcr.PredictUKI(img)
	if err != nil {
		return fmt.Errorf("predict PCR 11: %w", err)
	}
	c := b.contract
	b.release = &release.Release{
		Format: release.Format, ImageID: c.ImageID, Arch: c.Arch, Version: c.Version, Epoch: c.Epoch,
		RootHash: c.RootHash, Salt: c.Salt, ImageSize: c.ImageSize, SlotSize: c.SlotSize,
		PCR11: measured[:], SourceDate: b.Date.Unix(),
	}
	for _, f := range []struct {
		name  string
		image []byte
	}{{release.UKIFile, b.uki}, {release.BootManagerFile, b.parts.bootManager}} {
		if err := b.out.write(f.name, f.image); err != nil {
			return fmt.Errorf("write %s: %w", f.name, err)
		}
		sum := sha256.Sum256(f.image)
		signed, err := authenticode.Digest(f.image)
		if err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		b.release.Files = append(b.release.Files, release.File{
			Name: f.name, Size: int64(len(f.image)), SHA256: sum[:], Authenticode: signed[:],
		})
	}
	sum, err := hashFile(b.out.path(release.ImageFile))
	if err != nil {
		return err
	}
	b.release.Files = append(b.release.Files, release.File{Name: release.ImageFile, Size: c.ImageSize, SHA256: sum})
	text, err := b.release.Encode()
	if err != nil {
		return err
	}
	return b.out.write(release.FileName, text)
}

func hashFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return nil, fmt.Errorf("hash %s: %w", path, err)
	}
	return h.Sum(nil), nil
}

// publish makes the results visible.
func (b *build) publish() (*Result, error) {
	names := []string{release.ImageFile, release.UKIFile, release.BootManagerFile, BillFile, ProvenanceFile}
	for _, e := range b.extensions {
		names = append(names, release.ExtensionFile(e.Name))
	}
	if b.Disk {
		names = append(names, DiskFile)
	}
	done := b.Progress.Step("syncing the results")
	if err := b.out.publish(names...); err != nil {
		return nil, err
	}
	done("")
	r := &Result{Release: b.release, Room: b.roomPlan}
	for _, name := range append(names, release.FileName) {
		r.Files = append(r.Files, filepath.Join(b.Options.Out, name))
	}
	return r, nil
}
