package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/uki"
	"halogenos.internal/qemu-tests/bench/measure"
)

// What goes into a UKI, beside the files.
const (
	benchCmdline = "console=ttyS0 quiet"
	benchUname   = "6.12.0"
	ukiSize      = 50e6 // bytes, about
)

// uki plans row 2. Both sides read the same files and write one; the result is
// the same, byte for byte.
func (b *bench) uki(ctx context.Context) ([]measure.Job, []measure.Growth, error) {
	place, err := b.room(b.tools)
	if err != nil {
		return nil, nil, err
	}
	inputs, err := b.ukiInputs(place)
	if err != nil {
		return nil, nil, err
	}
	argv := ukify(b.tools, place)
	theirs, ours, copied := filepath.Join(place.host, "theirs.efi"), filepath.Join(place.host, "ours.efi"), filepath.Join(place.host, "copy.efi")
	// Ukify adds words of its own to the stub's .sbat; we are given what it makes.
	if _, err := measure.Command(argv[0], argv[1:]...)(ctx); err != nil {
		return nil, nil, err
	}
	image, err := os.ReadFile(theirs)
	if err != nil {
		return nil, nil, err
	}
	parsed, err := uki.Parse(image)
	if err != nil {
		return nil, nil, err
	}
	sbat, ok := parsed.Section(".sbat")
	if !ok {
		return nil, nil, errors.New("ukify's image has no .sbat")
	}
	if _, err := place.put("sbat", sbat); err != nil {
		return nil, nil, err
	}
	original := filepath.Join(place.host, "original.efi")
	if err := os.Rename(theirs, original); err != nil {
		return nil, nil, err
	}
	same := func(file string) func(context.Context) error {
		return func(context.Context) error { return equal(file, original) }
	}
	goal := func(against string, kind measure.Kind, n float64) measure.Goal {
		return measure.Goal{Number: 2, Work: "UKI of 50 MB", Metric: measure.Wall, Against: against, Kind: kind, N: n}
	}
	return []measure.Job{{
		Name: "uki",
		Sides: []measure.Side{
			{Name: "halogen", Before: without(ours), Run: measure.Command(b.self, append([]string{"child", "uki"}, append(inputs, ours)...)...), Check: same(ours)},
			{Name: "ukify build", Before: without(theirs), Run: measure.Command(argv[0], argv[1:]...), Check: same(theirs)},
			{Name: "cp", Before: without(copied), Run: measure.Command("cp", original, copied), Check: same(copied)},
		},
		Goals: []measure.Goal{goal("ukify build", measure.TimesBetter, 8), goal("cp", measure.TimesAtMost, 1.5)},
	}}, nil, nil
}

// ukiInputs makes the files that a UKI is made of, and returns our paths of them.
func (b *bench) ukiInputs(place room) ([]string, error) {
	stub, err := os.ReadFile(filepath.Join(b.tools, "usr/lib/systemd/boot/efi/linuxx64.efi.stub"))
	if err != nil {
		return nil, err
	}
	kernel, err := b.kernel()
	if err != nil {
		return nil, err
	}
	linux, err := os.ReadFile(kernel)
	if err != nil {
		return nil, err
	}
	release, err := os.ReadFile(filepath.Join(b.rootfs, "usr/lib/os-release"))
	if err != nil {
		return nil, err
	}
	initrd := filepath.Join(place.host, "initrd")
	if err := noise(initrd, ukiSize-int64(len(linux))); err != nil {
		return nil, err
	}
	var paths []string
	for _, f := range []struct {
		name    string
		content []byte
	}{{"stub", stub}, {"linux", linux}, {"osrel", release}} {
		if _, err := place.put(f.name, f.content); err != nil {
			return nil, err
		}
		paths = append(paths, filepath.Join(place.host, f.name))
	}
	return append(paths, initrd, filepath.Join(place.host, "sbat")), nil
}

// kernel is the one of the root file system.
func (b *bench) kernel() (string, error) {
	found, err := filepath.Glob(filepath.Join(b.rootfs, "boot/vmlinuz-*"))
	if err != nil || len(found) != 1 {
		return "", fmt.Errorf("%d kernels in %s, want one", len(found), b.rootfs)
	}
	return found[0], nil
}

func ukify(tools string, place room) []string {
	at := func(name string) string { return filepath.Join(place.inside, name) }
	return within(tools, "ukify", "build", "--stub="+at("stub"), "--linux="+at("linux"), "--initrd="+at("initrd"),
		"--cmdline="+benchCmdline, "--os-release=@"+at("osrel"), "--uname="+benchUname, "--output="+at("theirs.efi"))
}

// childUKI makes a UKI: STUB LINUX OSREL INITRD SBAT OUT.
func childUKI(_ context.Context, args []string) error {
	if len(args) != 6 {
		return errors.New("want STUB LINUX OSREL INITRD SBAT OUT")
	}
	var files [5][]byte
	for i := range files {
		var err error
		if files[i], err = mapped(args[i]); err != nil { // until the process ends
			return err
		}
	}
	p := uki.Payload{Linux: files[1], OSRelease: files[2], Initrd: files[3], SBAT: files[4], Cmdline: []byte(benchCmdline), Uname: []byte(benchUname)}
	out, err := os.Create(args[5])
	if err != nil {
		return err
	}
	return errors.Join(uki.Write(out, files[0], p.Sections()), out.Close())
}

// mapped is a file in memory, without a copy of it. Its pages are mapped at once:
// a write that has each mapped when it comes to it takes twice as long.
func mapped(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_POPULATE)
}
