package main

import (
	"context"
	"debug/pe"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/verity"
	"halogenos.internal/uroot-cmds/ota/fetch"
	"halogenos.internal/uroot-cmds/ota/offer"
	"halogenos.internal/uroot-cmds/ota/server"
	"halogenos.internal/uroot-cmds/ota/settings"
	"halogenos.internal/uroot-cmds/ota/worker"
)

// treeFile is the running system's tree, beside the directories of the fetches.
const treeFile = "old.tree"

// A job is one fetch, in a process of its own.
type job struct {
	work, url, old string
	copies         bool
}

// fetch brings what the server offers into the directory's slot and prints how much
// was copied. It keeps to the worker's memory.
func (o job) fetch(ctx context.Context) error {
	debug.SetMemoryLimit(worker.Memory)
	self, err := o.self()
	if err != nil {
		return err
	}
	t, err := server.New(o.url, server.Options{})
	if err != nil {
		return err
	}
	found, err := fetch.Look(ctx, t, self, "", time.Second)
	if err != nil {
		return err
	}
	if found.Archive == "" {
		return errors.New("the server offers nothing that is newer")
	}
	j := &fetch.Job{
		Server: t, Archive: found.Archive, Found: found, Self: self,
		Progress: func(fetch.Progress) {}, Note: func(text string) { fmt.Fprintln(os.Stderr, text) },
	}
	if err := o.slots(j, self.Running); err != nil {
		return err
	}
	r, err := j.Run(ctx)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]int64{"copied": r.Copied})
}

// contractHead is enough of an initramfs to have the boot contract, in bytes.
const contractHead = contract.MaxSize + 64<<10

// self is a machine that runs the old build. Its UKI is not kept in memory, which
// is measured.
func (o job) self() (*offer.Self, error) {
	image, err := pe.Open(filepath.Join(o.old, release.UKIFile))
	if err != nil {
		return nil, err
	}
	defer image.Close()
	section := image.Section(".initrd")
	if section == nil {
		return nil, errors.New("the UKI has no initramfs")
	}
	initrd := make([]byte, min(section.Size, contractHead))
	if _, err := io.ReadFull(section.Open(), initrd); err != nil {
		return nil, err
	}
	c, err := contract.FromInitrd(initrd)
	if err != nil {
		return nil, err
	}
	return &offer.Self{Running: c, Channel: manifest.Stable, Signed: settings.Auto, SlotSize: c.SlotSize, Machine: []byte("benchmark"), Now: time.Now()}, nil
}

// slots opens an empty slot, and what the running system has. The files are the
// process's until its end.
func (o job) slots(j *fetch.Job, c *contract.Contract) error {
	size, err := verity.TreeSize(uint64(c.SlotSize) / verity.BlockSize)
	if err != nil {
		return err
	}
	system, err := blank(filepath.Join(o.work, "system"), c.SlotSize)
	if err != nil {
		return err
	}
	tree, err := blank(filepath.Join(o.work, "verity"), size)
	if err != nil {
		return err
	}
	j.System, j.Tree = system, tree
	small := filepath.Join(o.work, "directory")
	if err := os.Mkdir(small, 0o755); err != nil {
		return err
	}
	if j.Directory, err = os.OpenRoot(small); err != nil || !o.copies {
		return err
	}
	image, err := os.Open(filepath.Join(o.old, release.ImageFile))
	if err != nil {
		return err
	}
	hashes, err := os.Open(filepath.Join(filepath.Dir(o.work), treeFile))
	if err != nil {
		return err
	}
	j.Source = &fetch.Source{
		System: image, Tree: hashes, Blocks: uint64(c.ImageSize) / verity.BlockSize, Salt: c.Salt,
		UKI: func() (io.ReadCloser, int64, error) { return sized(filepath.Join(o.old, release.UKIFile)) },
	}
	return nil
}

func blank(path string, size int64) (*os.File, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	return f, f.Truncate(size)
}

func sized(path string) (io.ReadCloser, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, info.Size(), nil
}
