package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"

	"halogenos.internal/boot/verity"
	"halogenos.internal/qemu-tests/bench/measure"
)

const gib = 1 << 30

type imageSize struct {
	at   string
	size int64
}

// The growths over the image's size have these points.
var imageSizes = []imageSize{{"0.25 GiB", gib / 4}, {"1 GiB", gib}, {"4 GiB", 4 * gib}}

// sizes are imageSizes, or none where growths are not wanted.
func (b *bench) sizes() []imageSize {
	if b.noGrowth {
		return nil
	}
	return imageSizes
}

// Salt and UUID of the trees: any will do, but the same for both sides.
const (
	treeSalt = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
	treeUUID = "00010203-0405-4607-8809-0a0b0c0d0e0f"
)

// verity plans row 1: a tree over a file that both sides find in the cache.
func (b *bench) verity(context.Context) ([]measure.Job, []measure.Growth, error) {
	data := filepath.Join(b.work, "data")
	if err := noise(data, imageSizes[len(imageSizes)-1].size); err != nil {
		return nil, nil, err
	}
	growth := measure.Growth{Number: 1, Name: "verity-growth", Work: "verity tree", Over: "image", Metric: measure.Wall}
	for _, s := range b.sizes() {
		growth.Points = append(growth.Points, measure.Point{At: s.at, Sides: b.trees(data, s.size)})
	}
	return []measure.Job{{
		Name: "verity", Sides: b.trees(data, gib+gib/2),
		Goals: []measure.Goal{{
			Number: 1, Work: "verity tree of 1.5 GiB", Metric: measure.Wall, Against: "veritysetup format", Kind: measure.TimesBetter, N: 3.5,
		}},
	}}, []measure.Growth{growth}, nil
}

// trees are the sides that make the tree over the first bytes of a file.
func (b *bench) trees(data string, size int64) []measure.Side {
	ours, theirs := filepath.Join(b.work, "tree.ours"), filepath.Join(b.work, "tree.theirs")
	blocks := strconv.FormatInt(size/verity.BlockSize, 10)
	return []measure.Side{{
		Name: "halogen", Before: without(ours),
		Run: measure.Command(b.self, "child", "verity", data, blocks, ours),
	}, {
		Name: "veritysetup format", Before: without(theirs),
		Run:   measure.Command("veritysetup", "format", "--salt="+treeSalt, "--uuid="+treeUUID, "--data-blocks="+blocks, data, theirs),
		Check: func(context.Context) error { return equal(ours, theirs) },
	}}
}

// childVerity writes the tree over a file: DATA BLOCKS TREE.
func childVerity(ctx context.Context, args []string) error {
	if len(args) != 3 {
		return errors.New("want DATA BLOCKS TREE")
	}
	blocks, err := strconv.ParseUint(args[1], 10, 64)
	if err != nil {
		return err
	}
	p := verity.Params{DataBlocks: blocks}
	if p.Salt, err = hex.DecodeString(treeSalt); err != nil {
		return err
	}
	p.UUID = uuid()
	data, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer data.Close()
	tree, err := os.Create(args[2])
	if err != nil {
		return err
	}
	root, err := verity.Generate(ctx, data, p, tree, nil)
	if err := errors.Join(err, tree.Close()); err != nil {
		return err
	}
	fmt.Println(root)
	return nil
}

// uuid is treeUUID.
func uuid() (id [16]byte) {
	copy(id[:], []byte{0, 1, 2, 3, 4, 5, 0x46, 7, 0x88, 9, 0xa, 0xb, 0xc, 0xd, 0xe, 0xf})
	return id
}

// noise makes a file that does not compress, the same every time.
func noise(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	_, err = io.CopyN(w, rand.NewChaCha8([32]byte{}), size)
	return errors.Join(err, w.Flush(), f.Sync(), f.Close())
}

// without removes what an earlier run wrote.
func without(paths ...string) func(context.Context) error {
	return func(context.Context) error {
		var failed error
		for _, path := range paths {
			failed = errors.Join(failed, os.RemoveAll(path))
		}
		return failed
	}
}

// equal compares two files.
func equal(a, b string) error {
	first, err := digest(a)
	if err != nil {
		return err
	}
	second, err := digest(b)
	if err != nil {
		return err
	}
	if !bytes.Equal(first, second) {
		return fmt.Errorf("%s and %s differ", filepath.Base(a), filepath.Base(b))
	}
	return nil
}

func digest(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return nil, err
	}
	return h.Sum(nil), nil
}
