package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"halogenos.internal/boot/archive"
	"halogenos.internal/boot/release"
	"halogenos.internal/qemu-tests/bench/measure"
)

const pigz = "tar | pigz -6"

// archive plans row 4: the files of a build in one archive, on the disk.
func (b *bench) archive(ctx context.Context) ([]measure.Job, []measure.Growth, error) {
	sides, err := b.archives(filepath.Join(b.images, "update-2"))
	if err != nil {
		return nil, nil, err
	}
	growth := measure.Growth{Number: 4, Name: "archive-growth", Work: "release archive", Over: "image", Metric: measure.Wall, Runs: 1}
	for _, s := range b.sizes() {
		image, err := b.sized(ctx, s.at, s.size)
		if err != nil {
			return nil, nil, err
		}
		at, err := b.archives(image.build)
		if err != nil {
			return nil, nil, err
		}
		growth.Points = append(growth.Points, measure.Point{At: s.at, Sides: at})
	}
	goal := func(metric measure.Metric, kind measure.Kind, n float64) measure.Goal {
		return measure.Goal{Number: 4, Work: "release archive", Metric: metric, Against: pigz, Kind: kind, N: n}
	}
	return []measure.Job{{
		Name: "archive", Sides: sides,
		Goals: []measure.Goal{goal(measure.Wall, measure.TimesBetter, 3), goal(measure.Size, measure.TimesAtMost, 1.05)},
	}}, []measure.Growth{growth}, nil
}

func (b *bench) archives(build string) ([]measure.Side, error) {
	r, err := described(build)
	if err != nil {
		return nil, err
	}
	ours, theirs := filepath.Join(b.work, "ours.tar.gz"), filepath.Join(b.work, "theirs.tar.gz")
	side := func(name, file string, run func(context.Context) (measure.Sample, error)) measure.Side {
		return measure.Side{
			Name: name, Before: without(file, file+".spool"),
			Run: func(ctx context.Context) (measure.Sample, error) {
				s, err := run(ctx)
				if err != nil {
					return nil, err
				}
				info, err := os.Stat(file)
				if err != nil {
					return nil, err
				}
				s[measure.Size] = float64(info.Size())
				return s, nil
			},
			Check: func(ctx context.Context) error { return unpacks(ctx, file, r) },
		}
	}
	script := `tar -C "$1" -cf - release.json uki.efi bootx64.efi system.erofs | pigz -6 >"$2"; sync "$2"`
	return []measure.Side{
		side("halogen", ours, measure.Command(b.self, "child", "archive", build, ours)),
		side(pigz, theirs, measure.Script(script, build, theirs)),
	}, nil
}

// described is the description of a build.
func described(build string) (*release.Release, error) {
	text, err := os.ReadFile(filepath.Join(build, release.FileName))
	if err != nil {
		return nil, err
	}
	return release.Parse(text)
}

// unpacks has tar unpack each of a release's files.
func unpacks(ctx context.Context, file string, r *release.Release) error {
	for _, f := range r.Files {
		h := sha256.New()
		cmd := exec.CommandContext(ctx, "tar", "-xOzf", file, f.Name)
		cmd.Stdout = h
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("unpack %s: %w", f.Name, err)
		}
		if !bytes.Equal(h.Sum(nil), f.SHA256) {
			return fmt.Errorf("%s has another SHA-256", f.Name)
		}
	}
	return nil
}

// childArchive packs a build: BUILD ARCHIVE.
func childArchive(ctx context.Context, args []string) (err error) {
	if len(args) != 2 {
		return errors.New("want BUILD ARCHIVE")
	}
	r, err := described(args[0])
	if err != nil {
		return err
	}
	spool, err := os.Create(args[1] + ".spool")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, spool.Close(), os.Remove(spool.Name())) }()
	f, err := os.Create(args[1])
	if err != nil {
		return err
	}
	unsigned := func([]byte) ([]byte, error) { return nil, nil }
	open := func(f release.File) (io.ReadCloser, error) { return os.Open(filepath.Join(args[0], f.Name)) }
	_, err = archive.Write(ctx, f, spool, archive.Input{Build: r, Sign: unsigned, Open: open}, archive.Options{})
	return errors.Join(err, f.Sync(), f.Close())
}
