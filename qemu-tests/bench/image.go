package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"halogenos.internal/boot/release"
	"halogenos.internal/boot/uki"
	"halogenos.internal/qemu-tests/bench/measure"
)

// The sides that an image is compared with.
const (
	mkfsAlone  = "mkfs.erofs alone"
	mkfsTold   = "mkfs.erofs told what is compressed"
	withCache  = "halogen build --cache, filled"
	byScript   = "script"
	imageUUID  = "11111111-2222-4333-8444-555555555555"
	mkfsScript = `export SOURCE_DATE_EPOCH=1767225600
mkfs.erofs --quiet -U "$1" -Enoinline_data ${2:+-z"$2"} ${5:+--compress-hints="$5"} "$3" "$4"; sync "$3"`
)

// told is the line for mkfs.erofs that halogen build gives it, too: most of a
// kernel's modules are compressed, which it would try again.
const told = "0 \\.(gz|xz|zst)$\n"

// imageScript makes the whole image with the usual tools: $1 root file system,
// $2 directory, $3 compression, $4 the same directory as ukify sees it, $5 salt; the
// rest is ukify. Its initramfs is ready made; ours is packed.
const imageScript = `tree=$1 out=$2 compression=$3 inside=$4 salt=$5; shift 5
export SOURCE_DATE_EPOCH=1767225600
mkfs.erofs --quiet -U ` + imageUUID + ` -Enoinline_data ${compression:+-z"$compression"} "$out/system.erofs" "$tree"
root=$(veritysetup format --salt="$salt" "$out/system.erofs" "$out/tree" | sed -n 's/^Root hash:[ \t]*//p')
"$@" --cmdline="roothash=$root ` + benchCmdline + `" --output="$inside/uki.efi"
truncate -s 8G "$out/disk.img"
sgdisk --new=1:1M:+512M --typecode=1:ef00 --change-name=1:esp --new=2:0:+2G --typecode=2:8304 --change-name=2:system-a "$out/disk.img" >/dev/null
mformat -i "$out/disk.img@@1M" -T 1048576 -F -h 255 -s 63 ::
mmd -i "$out/disk.img@@1M" ::/EFI ::/EFI/BOOT ::/EFI/Linux
mcopy -i "$out/disk.img@@1M" "$tree/usr/lib/systemd/boot/efi/systemd-bootx64.efi" ::/EFI/BOOT/BOOTX64.EFI
mcopy -i "$out/disk.img@@1M" "$out/uki.efi" ::/EFI/Linux/
dd if="$out/system.erofs" of="$out/disk.img" bs=1M seek=513 conv=notrunc status=none
sync "$out/system.erofs" "$out/uki.efi" "$out/disk.img"`

// image plans row 3: all of an image from the same tree. What each side wrote is
// flushed.
func (b *bench) image(ctx context.Context) ([]measure.Job, []measure.Growth, error) {
	sides, err := b.imageSides(b.rootfs, "uki.conf", "lz4hc")
	if err != nil {
		return nil, nil, err
	}
	growth := measure.Growth{Number: 3, Name: "image-growth", Work: "whole image, not compressed", Over: "image", Metric: measure.Wall, Runs: 1}
	for _, s := range b.sizes() {
		image, err := b.sized(ctx, s.at, s.size)
		if err != nil {
			return nil, nil, err
		}
		at, err := b.imageSides(image.tree, image.config, "")
		if err != nil {
			return nil, nil, err
		}
		growth.Points = append(growth.Points, measure.Point{At: s.at, Sides: at[:2]})
	}
	// A build that knows the results of one before, beside the same mkfs; it comes after the
	// sides that a first build is compared with.
	again, cache := filepath.Join(b.work, "again"), filepath.Join(b.work, "cache")
	if _, err := b.build(b.rootfs, "uki.conf", "1", again, "--cache", cache)(ctx); err != nil {
		return nil, nil, err
	}
	sides = append(sides, measure.Side{Name: withCache, Before: without(again), Run: b.build(b.rootfs, "uki.conf", "1", again, "--cache", cache), Check: func(ctx context.Context) error { return checkBuild(ctx, again) }})
	goal := func(against string, kind measure.Kind, n float64) measure.Goal {
		return measure.Goal{Number: 3, Work: "whole image", Metric: measure.Wall, Against: against, Kind: kind, N: n,
			Hindrance: "ours also copies the tree, packs the initramfs, unpacks all files to search them for secrets, checks the modules' signatures"}
	}
	return []measure.Job{{
		Name: "image", Sides: sides[:4],
		Goals: []measure.Goal{
			goal(mkfsAlone, measure.TimesAtMost, 1.05), goal(mkfsTold, measure.TimesAtMost, 1.15), goal(byScript, measure.TimesBetter, 1),
			{Number: 3, Work: "whole image, resident at most", Metric: measure.Memory, Kind: measure.AtMost, N: 250e6},
		},
	}, {
		Name: "image-again", Sides: []measure.Side{sides[4], sides[3], sides[0]},
		Goals: []measure.Goal{
			{Number: 12, Work: "the same image again, with --cache", Metric: measure.Wall, Against: mkfsTold, Kind: measure.TimesAtMost, N: 1.05},
			{Number: 12, Work: "the same image again, with --cache", Metric: measure.CPU, Against: "halogen build", Kind: measure.TimesAtMost, N: 0.5},
		},
	}}, []measure.Growth{growth}, nil
}

func (b *bench) imageSides(tree, config, compression string) ([]measure.Side, error) {
	place, err := b.room(b.tools)
	if err != nil {
		return nil, err
	}
	if _, err := b.ukiInputs(place); err != nil {
		return nil, err
	}
	initrd, err := b.initramfs()
	if err != nil {
		return nil, err
	}
	if _, err := place.put("initrd", initrd); err != nil {
		return nil, err
	}
	ours, alone, hints := filepath.Join(b.work, "image"), filepath.Join(b.work, "alone.erofs"), filepath.Join(b.work, "hints")
	if err := os.WriteFile(hints, []byte(told), 0o644); err != nil {
		return nil, err
	}
	mkfs := func(name, hints string) measure.Side {
		return measure.Side{Name: name, Before: without(alone), Run: measure.Script(mkfsScript, imageUUID, compression, alone, tree, hints)}
	}
	at := func(name string) string { return filepath.Join(place.inside, name) }
	script := append([]string{tree, place.host, compression, place.inside, treeSalt}, within(b.tools, "ukify", "build", "--stub="+at("stub"), "--linux="+at("linux"),
		"--initrd="+at("initrd"), "--os-release=@"+at("osrel"), "--uname="+benchUname)...)
	wrote := func(name string) string { return filepath.Join(place.host, name) }
	return []measure.Side{
		{Name: "halogen build", Before: without(ours), Run: b.build(tree, config, "1", ours), Check: func(ctx context.Context) error { return checkBuild(ctx, ours) }},
		mkfs(mkfsAlone, ""),
		{Name: byScript, Before: without(wrote("system.erofs"), wrote("disk.img"), wrote("tree"), wrote("uki.efi")), Run: measure.Script(imageScript, script...), Check: func(ctx context.Context) error {
			return checkScript(ctx, place.host)
		}},
		mkfs(mkfsTold, hints),
	}, nil
}

// build measures halogen build.
func (b *bench) build(tree, config, version, out string, more ...string) func(context.Context) (measure.Sample, error) {
	return measure.Command("env", append([]string{"SOURCE_DATE_EPOCH=1767225600", filepath.Join(b.bin, "halogen"), "build", "--config", config, "--rootfs", tree, "--version", version, "--disk", "--out", out}, more...)...)
}

// initramfs is ours, of the Debian image.
func (b *bench) initramfs() ([]byte, error) {
	image, err := os.ReadFile(filepath.Join(b.images, "debian-1", release.UKIFile))
	if err != nil {
		return nil, err
	}
	parsed, err := uki.Parse(image)
	if err != nil {
		return nil, err
	}
	initrd, ok := parsed.Section(".initrd")
	if !ok {
		return nil, fmt.Errorf("%s has no initramfs", release.UKIFile)
	}
	return initrd, nil
}

// checkBuild has veritysetup and sgdisk look at a build.
func checkBuild(ctx context.Context, build string) error {
	r, err := described(build)
	if err != nil {
		return err
	}
	image := filepath.Join(build, release.ImageFile)
	root, err := rootHash(ctx, image, hexOf(r.Salt))
	if err != nil {
		return err
	}
	if want := hexOf(r.RootHash); root != want {
		return fmt.Errorf("root hash %s, veritysetup says %s", want, root)
	}
	return checkDisk(ctx, build, image)
}

func checkScript(ctx context.Context, directory string) error {
	return checkDisk(ctx, directory, filepath.Join(directory, release.ImageFile))
}

// checkDisk looks for the system image in a disk's second partition.
func checkDisk(ctx context.Context, directory, image string) error {
	disk := filepath.Join(directory, "disk.img")
	if out, err := exec.CommandContext(ctx, "sgdisk", "--verify", disk).CombinedOutput(); err != nil || !bytes.Contains(out, []byte("No problems found")) {
		return fmt.Errorf("sgdisk: %w: %s", err, out)
	}
	f, err := os.Open(disk)
	if err != nil {
		return err
	}
	defer f.Close()
	s, err := os.Open(image)
	if err != nil {
		return err
	}
	defer s.Close()
	out, err := exec.CommandContext(ctx, "sgdisk", "--info=2", disk).Output()
	if err != nil {
		return err
	}
	first := int64(0)
	for line := range strings.Lines(string(out)) {
		if rest, ok := strings.CutPrefix(line, "First sector: "); ok {
			if _, err := fmt.Sscan(rest, &first); err != nil {
				return err
			}
		}
	}
	return sameBytes(io.NewSectionReader(f, first*512, 1<<62), s)
}

// sameBytes compares all of b with the start of a.
func sameBytes(a io.Reader, b io.Reader) error {
	x, y := make([]byte, 1<<20), make([]byte, 1<<20)
	for at := 0; ; {
		n, err := io.ReadFull(b, y)
		if _, err := io.ReadFull(a, x[:n]); err != nil {
			return err
		}
		if !bytes.Equal(x[:n], y[:n]) {
			return fmt.Errorf("another content within 1 MiB of offset %d", at)
		}
		if at += n; err != nil {
			if at == 0 || err != io.EOF && err != io.ErrUnexpectedEOF {
				return fmt.Errorf("compared %d bytes: %w", at, err)
			}
			return nil
		}
	}
}

// rootHash is what veritysetup computes.
func rootHash(ctx context.Context, image, salt string) (string, error) {
	tree := image + ".tree"
	out, err := exec.CommandContext(ctx, "veritysetup", "format", "--salt="+salt, image, tree).Output()
	if err != nil {
		return "", fmt.Errorf("veritysetup: %w", err)
	}
	for line := range strings.Lines(string(out)) {
		if rest, ok := strings.CutPrefix(line, "Root hash:"); ok {
			return strings.TrimSpace(rest), os.Remove(tree)
		}
	}
	return "", fmt.Errorf("veritysetup says no root hash: %s", out)
}

func hexOf(b []byte) string { return hex.EncodeToString(b) }
