package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"halogenos.internal/boot/release"
	"halogenos.internal/builder/image"
	"halogenos.internal/qemu-tests/bench/measure"
)

// sent is what an update takes from the server.
var sent = measure.Metric{Name: "sent", Unit: "B"}

// The ways to bring a release to a machine that has the one before.
const (
	wholeArchive = "whole archive"
	byCasync     = "casync (desync's format)"
	byRAUC       = "RAUC's block-hash-index, at least"
	byPatch      = "zstd --patch-from"
)

// update plans row 6: bytes for a Debian point release, from the images of the
// update tests. All sides bring system image, UKI and boot manager.
func (b *bench) update(ctx context.Context) ([]measure.Job, []measure.Growth, error) {
	goal := func(against string, n float64) measure.Goal {
		return measure.Goal{Number: 6, Work: "bytes for a Debian point release", Metric: sent, Against: against, Kind: measure.TimesAtMost, N: n}
	}
	// By ranges alone, also for what a published patch was to reach.
	goals := []measure.Goal{goal(wholeArchive, 0.15), goal(wholeArchive, 0.06), goal(byCasync, 1), goal(byRAUC, 1)}
	tool, server := filepath.Join(b.work, "benchtest"), filepath.Join(b.work, "server")
	old, fresh := filepath.Join(b.images, "update-1"), filepath.Join(b.images, "update-2")
	if n, err := newPackages(old, fresh); err != nil {
		return nil, nil, err
	} else if n == 0 {
		none := "the package archive has no updates just now: name one that has with MIRROR="
		return []measure.Job{{Name: "update-bytes", Sides: []measure.Side{{Name: "halogen", Absent: none}}, Goals: goals}}, nil, nil
	}
	if _, err := measure.Command("go", "build", "-o", tool, "./uroot-cmds/ota/benchtest")(ctx); err != nil {
		return nil, nil, err
	}
	for _, build := range []string{old, fresh} {
		_, err := measure.Command(filepath.Join(b.bin, "halogen"), "release", "--build", build, "--server", server,
			"--key", filepath.Join(b.key, "secret.asc"), "--password-file", filepath.Join(b.key, "password"), "--allow-unencrypted-storage")(ctx)
		if err != nil {
			return nil, nil, err
		}
	}
	report := filepath.Join(b.work, "update.json")
	if _, err := measure.Command(tool, "-old", old, "-new", fresh, "-server", server, "-json", report)(ctx); err != nil {
		return nil, nil, err
	}
	archive, ranges, err := readUpdate(report)
	if err != nil {
		return nil, nil, err
	}
	bytes := func(name string, count func(context.Context) (int64, error)) measure.Side {
		return measure.Side{Name: name, Run: func(ctx context.Context) (measure.Sample, error) {
			n, err := count(ctx)
			return measure.Sample{sent: float64(n)}, err
		}}
	}
	known := func(n int64) func(context.Context) (int64, error) {
		return func(context.Context) (int64, error) { return n, nil }
	}
	casync := bytes(byCasync, func(ctx context.Context) (int64, error) { return b.casync(ctx, old, fresh) })
	if _, err := exec.LookPath("casync"); err != nil {
		casync.Absent = "casync is not installed"
	}
	return []measure.Job{{
		Name: "update-bytes", Once: true,
		Sides: []measure.Side{
			bytes("halogen", known(ranges)), bytes(wholeArchive, known(archive)), casync,
			bytes(byRAUC, func(context.Context) (int64, error) { return changedBlocks(old, fresh) }),
			bytes(byPatch, func(ctx context.Context) (int64, error) { return b.patches(ctx, old, fresh) }),
		},
		Goals: goals,
	}}, nil, nil
}

// newPackages counts what a build has in another version than the one before.
func newPackages(old, fresh string) (int, error) {
	have := map[string]bool{}
	count := 0
	for _, build := range []string{old, fresh} {
		text, err := os.ReadFile(filepath.Join(build, image.BillFile))
		if err != nil {
			return 0, err
		}
		var bill struct {
			Components []struct{ Name, Version string }
		}
		if err := json.Unmarshal(text, &bill); err != nil {
			return 0, fmt.Errorf("%s of %s: %w", image.BillFile, build, err)
		}
		for _, c := range bill.Components {
			if id := c.Name + " " + c.Version; build == old {
				have[id] = true
			} else if !have[id] {
				count++
			}
		}
	}
	return count, nil
}

// readUpdate reads what benchtest has measured.
func readUpdate(report string) (archive, ranges int64, err error) {
	text, err := os.ReadFile(report)
	if err != nil {
		return 0, 0, err
	}
	var all []struct {
		Update        string
		Sent, Archive int64
	}
	if err := json.Unmarshal(text, &all); err != nil {
		return 0, 0, err
	}
	for _, m := range all {
		if m.Update == "incremental" {
			return m.Archive, m.Sent, nil
		}
	}
	return 0, 0, errors.New("no incremental update was measured")
}

// released are the files of a build that a machine gets.
func released() []string {
	return []string{release.ImageFile, release.UKIFile, release.BootManagerFile}
}

// casync counts the chunks, compressed, that are new, and the new indexes. Chunks
// are of casync's usual size: 16, 64 and 256 KiB at least, on average, at most.
func (b *bench) casync(ctx context.Context, old, fresh string) (int64, error) {
	var total int64
	stores := [2]string{filepath.Join(b.work, "old.castr"), filepath.Join(b.work, "new.castr")}
	for i, build := range []string{old, fresh} {
		for _, name := range released() {
			index := filepath.Join(b.work, name+".caibx")
			if _, err := measure.Command("casync", "make", "--store="+stores[i], index, filepath.Join(build, name))(ctx); err != nil {
				return 0, err
			}
			info, err := os.Stat(index)
			if err != nil {
				return 0, err
			}
			if i == 1 {
				total += info.Size()
			}
		}
	}
	err := filepath.WalkDir(stores[1], func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		relative, err := filepath.Rel(stores[1], path)
		if err != nil {
			return err
		}
		if _, err := os.Lstat(filepath.Join(stores[0], relative)); err == nil {
			return nil // a chunk is named by its hash
		}
		info, err := d.Info()
		if err == nil {
			total += info.Size()
		}
		return err
	})
	return total, err
}

// changedBlocks is the least that RAUC's block-hash-index can do, by its
// documentation: the index of the new image, 32 bytes for each block of 4 KiB,
// and every block that the old image has nowhere. What its bundle adds (whole
// blocks of a squashfs) is left out.
func changedBlocks(old, fresh string) (int64, error) {
	const size = 4096
	have := map[[sha256.Size]byte]bool{}
	var total int64
	visit := func(build string, each func(block []byte)) error {
		for _, name := range released() {
			content, err := os.ReadFile(filepath.Join(build, name))
			if err != nil {
				return err
			}
			for block := range slices.Chunk(content, size) {
				each(block)
			}
		}
		return nil
	}
	err := visit(old, func(block []byte) { have[sha256.Sum256(block)] = true })
	if err != nil {
		return 0, err
	}
	err = visit(fresh, func(block []byte) {
		total += sha256.Size
		if sum := sha256.Sum256(block); !have[sum] {
			have[sum] = true
			total += int64(len(block))
		}
	})
	return total, err
}

// patches is the size of patches between the files of two builds: what publishing
// one beside the archive could come to.
func (b *bench) patches(ctx context.Context, old, fresh string) (int64, error) {
	var total int64
	for _, name := range released() {
		patch := filepath.Join(b.work, name+".patch")
		_, err := measure.Command("zstd", "--quiet", "--force", "-12", "--long=30", "--patch-from="+filepath.Join(old, name), filepath.Join(fresh, name), "-o", patch)(ctx)
		if err != nil {
			return 0, err
		}
		info, err := os.Stat(patch)
		if err != nil {
			return 0, fmt.Errorf("patch of %s: %w", name, err)
		}
		total += info.Size()
	}
	return total, nil
}
