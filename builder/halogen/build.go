package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"time"

	"halogenos.internal/boot/contract"
	"halogenos.internal/builder/config"
	"halogenos.internal/builder/image"
	"halogenos.internal/builder/release"
	"halogenos.internal/builder/room"
)

const buildSummary = `usage: halogen build --rootfs SRC --version N --out DIR [OPTION]...
       halogen build --container --version N --out DIR [OPTION]...

Makes a release out of a root file system that has its own kernel, modules,
systemd-stub and systemd-boot: system.erofs, uki.efi, bootx64.efi and
release.json, with --disk a disk as a manual installation leaves it, and with
--installer a stick that installs it.

SRC is a directory, a tar archive (plain, gzip, zstd, xz, bzip2, lz4, lzma), an
OCI image (a layout in a directory or an archive) or what docker save writes, and
is never changed. Access control lists, labels, capabilities, holes and hard
links are kept. To keep owners other than root and device nodes, run as root.

An extension (--extension, or [Extension NAME] in uki.conf) is a source of the
same kinds with files below usr/ and opt/ alone. NAME.raw, an EROFS image with
its hash tree behind it, is what machines that have it enabled lay over the
image; the UKI has its root hash.

The same SRC, configuration and source date give the same bytes. The source
date is SOURCE_DATE_EPOCH (seconds since 1970) or else the latest modification
time of a file in SRC, directories not counted; nothing in the image is later,
and a date that has not come yet is refused.
`

// buildGarbage is how much memory that is not needed any more a build lets lie about, in
// percent of what is in use: most of what it takes is unpacked, searched and not needed again.
const buildGarbage = 50

// buildFlags are the options of build as they are given.
type buildFlags struct {
	config, rootfs, version, out, machine, diskSize, cache string
	disk, installer, json                                  bool

	moduleKey, modulePassword, previous, server string
	agent, unencrypted, expiringKey             bool
	movedAccounts                               bool

	extensions []string

	container containerFlags
}

func (b *buildFlags) define(f *flag.FlagSet) {
	f.StringVar(&b.config, "config", "uki.conf", "description of the image, a `FILE`")
	f.StringVar(&b.rootfs, "rootfs", "", "root file system, `SRC`")
	f.StringVar(&b.version, "version", "", "version of the release, a decimal number `N`")
	f.StringVar(&b.out, "out", "", "`DIR` for the results; made when missing")
	f.StringVar(&b.machine, "machine", "", "`DIR` with the machine's programs bb, bb.list and ota; by default the one of halogen itself")
	f.StringVar(&b.cache, "cache", "", "`DIR` for results by content, which make the next build faster and change no byte of it; made when missing, 256 MB at most, and may be deleted at any time. Who can write it can hide a secret from the search: it must be yours alone")
	f.StringVar(&b.previous, "previous", "", "`DIR` of the build that this one follows: what its machines would refuse is refused here")
	f.StringVar(&b.server, "server", "", "`ROOT` of the web server's directories, or the image's directory in it: says how many more releases fit machines, by the growth of the last, and refuses what they have no room for")
	f.Func("extension", "add a system extension of the release, `NAME=SRC[,essential]`; may be repeated. One that uki.conf has gets this source. An essential one is needed to start where it is enabled", func(text string) error {
		b.extensions = append(b.extensions, text)
		return new(config.Config).AddExtension(text)
	})
	f.StringVar(&b.moduleKey, "module-key", "", "secret `KEY` of ModuleKey, which signs the kernel modules that are not signed")
	f.StringVar(&b.modulePassword, "module-key-password-file", "", "`FILE` whose first line is that key's password")
	f.BoolVar(&b.agent, "agent", false, "get that key's password from gpg-agent")
	f.BoolVar(&b.unencrypted, "allow-unencrypted-storage", false, storageRisk)
	f.BoolVar(&b.expiringKey, "allow-expiring-key", false, "take a ReleaseKey that has expired or ends within a year, as to build an old release again: its machines take updates only if they learn from the server in time that it was renewed")
	f.BoolVar(&b.movedAccounts, "allow-moved-accounts", false, "take users and groups that have another number than in the previous build, or the number of one that is gone: on machines, what they own in /var and elsewhere outside /etc is somebody else's")
	f.BoolVar(&b.disk, "disk", false, "also make disk.img: ESP and first system partition")
	f.BoolVar(&b.installer, "installer", false, "also make installer.img, for a stick that installs the release")
	f.StringVar(&b.diskSize, "disk-size", "8G", "`SIZE` of disk.img, with K, M, G or T; it takes only what is written to it")
	f.BoolVar(&b.json, "json", false, "print a summary in JSON on the standard output")
	b.container.define(f)
}

func (c command) build(ctx context.Context, args []string) error {
	var b buildFlags
	f := flag.NewFlagSet("build", flag.ContinueOnError)
	b.define(f)
	rest, err := c.parse(f, args, buildSummary+containerSummary)
	if err != nil {
		return err
	}
	if len(rest) > 0 {
		return c.misused(f, "unexpected argument %q", rest[0])
	}
	if err := c.checkWay(f, b.container.on); err != nil {
		return err
	}
	o, err := c.buildOptions(f, b)
	if err != nil {
		return err
	}
	if b.container.on {
		return c.buildInContainer(ctx, f, b, o)
	}
	if o.Config, err = b.load(); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	c.warn(o)
	if b.server != "" {
		if o.Past, err = past(ctx, b.server, o); err != nil {
			return err
		}
	}
	if b.moduleKey != "" {
		key, wipe, err := c.loadModuleKey(ctx, b)
		if err != nil {
			return err
		}
		defer wipe()
		o.ModuleSigner = key
	}
	if c.getenv("GOGC") == "" {
		defer debug.SetGCPercent(debug.SetGCPercent(buildGarbage))
	}
	start := time.Now()
	r, err := image.Build(ctx, o)
	if err != nil {
		return err
	}
	if b.installer {
		if err := c.stick(ctx, r, o); err != nil {
			return err
		}
	}
	o.Progress.Note("release %s of %s in %.1f s", r.Release.Version, r.Release.ImageID, time.Since(start).Seconds())
	return c.built(b, r)
}

// load reads uki.conf, with what the command line adds to it.
func (b *buildFlags) load() (*config.Config, error) {
	conf, err := config.Load(b.config)
	if err != nil {
		return nil, err
	}
	for _, text := range b.extensions {
		if err := conf.AddExtension(text); err != nil {
			return nil, err
		}
	}
	return conf, nil
}

// built says what was made.
func (c command) built(b buildFlags, r *image.Result) error {
	if b.json {
		return c.printJSON(map[string]any{"release": r.Release, "files": r.Files, "room": r.Room})
	}
	for _, file := range r.Files {
		fmt.Fprintln(c.stdout, file)
	}
	return nil
}

// past returns what the releases that lie on a server take of machines.
func past(ctx context.Context, root string, o image.Options) ([]room.Release, error) {
	if err := onThisMachine(root); err != nil {
		return nil, err
	}
	directory, err := oneImage(root, o.Config.Arch+"/"+o.Config.ImageID)
	if err != nil {
		return nil, err
	}
	return release.Past(ctx, directory, o.Config.ReleaseKey, o.Version, time.Now(), o.Progress.Note)
}

// stick makes the installer stick, with this program on it.
func (c command) stick(ctx context.Context, r *image.Result, o image.Options) error {
	self, err := c.executable()
	if err != nil {
		return fmt.Errorf("find the program itself: %w", err)
	}
	done := o.Progress.Step("making the installer stick")
	if err := image.Stick(ctx, o.Out, self); err != nil {
		return err
	}
	done("")
	r.Files = append(r.Files, filepath.Join(o.Out, image.StickFile))
	return nil
}

// buildOptions checks everything that the command line and the environment
// say, before anything is read.
func (c command) buildOptions(f *flag.FlagSet, b buildFlags) (image.Options, error) {
	o := image.Options{RootFS: b.rootfs, Out: b.out, Machine: b.machine, Disk: b.disk, Previous: b.previous, Cache: b.cache, ExpiringKey: b.expiringKey, MovedAccounts: b.movedAccounts, Progress: image.NewProgress(c.stderr)}
	for _, given := range []struct{ name, value string }{{"rootfs", b.rootfs}, {"version", b.version}, {"out", b.out}} {
		if given.value == "" && !(given.name == "rootfs" && b.container.on) {
			return o, c.misused(f, "--%s is missing", given.name)
		}
	}
	var err error
	if o.Version, err = contract.ParseVersion(b.version); err != nil {
		return o, c.misused(f, "--version: %v", err)
	}
	if o.DiskSize, err = config.ParseSize(b.diskSize); err != nil {
		return o, c.misused(f, "--disk-size: %v", err)
	}
	f.Visit(func(given *flag.Flag) {
		if given.Name == "disk-size" && !b.disk {
			err = c.misused(f, "--disk-size without --disk")
		}
	})
	if err != nil {
		return o, err
	}
	if text := c.getenv("SOURCE_DATE_EPOCH"); text != "" {
		seconds, err := strconv.ParseInt(text, 10, 64)
		if err != nil || seconds < 0 || seconds > 1<<40 {
			return o, c.misused(f, "SOURCE_DATE_EPOCH %q is not a number of seconds since 1970", text)
		}
		o.Date = time.Unix(seconds, 0)
	}
	if o.Machine == "" {
		self, err := c.executable()
		if err != nil {
			return o, fmt.Errorf("find the directory of the program: %w", err)
		}
		o.Machine = filepath.Dir(self)
	}
	return o, nil
}

// warn says which protections the configuration does without, and which of its keys have
// another name now.
func (c command) warn(o image.Options) {
	for _, note := range o.Config.Notes {
		o.Progress.Note("%s", note)
	}
	if len(o.Config.ReleaseKey) == 0 {
		o.Progress.Note("WARNING: ReleaseKey=none: nobody can tell an update of this image from an attacker's; for development only")
	}
	if o.Config.SecureBoot == contract.Optional {
		o.Progress.Note("WARNING: SecureBoot=optional: this image also starts where nothing checks it; for development only")
	}
	if o.Config.TPM == contract.Optional {
		o.Progress.Note("WARNING: TPM=optional: without a TPM this image's data is protected by what its user types alone")
	}
}

func (c command) printJSON(v any) error {
	e := json.NewEncoder(c.stdout)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
