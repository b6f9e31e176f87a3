package verity

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"testing"
	"testing/synctest"

	"halogenos.internal/boot/testkit"
)

var testUUID = [16]byte{0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef}

const testUUIDText = "01234567-89ab-cdef-0123-456789abcdef"

// memory is a hash device of a fixed size, full of old bytes.
type memory struct {
	b      []byte
	writes []int64 // offsets
}

func newMemory(size int64) *memory {
	return &memory{b: bytes.Repeat([]byte{0xaa}, int(size))}
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > int64(len(m.b)) {
		return 0, fmt.Errorf("write of %d bytes at %d: outside of %d bytes", len(p), off, len(m.b))
	}
	m.writes = append(m.writes, off)
	return copy(m.b[off:], p), nil
}

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(m.b).ReadAt(p, off)
}

func randomBytes(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	r.Read(b)
	return b
}

func params(blocks uint64, salt int) Params {
	return Params{DataBlocks: blocks, Salt: randomBytes(99, salt), UUID: testUUID}
}

// generate makes a tree that takes exactly TreeSize bytes.
func generate(t testing.TB, data []byte, p Params) ([]byte, Root) {
	t.Helper()
	size, err := TreeSize(p.DataBlocks)
	if err != nil {
		t.Fatal(err)
	}
	hash := newMemory(size)
	root, err := Generate(t.Context(), bytes.NewReader(data), p, hash, nil)
	if err != nil {
		t.Fatal(err)
	}
	return hash.b, root
}

var rootLine = regexp.MustCompile(`(?m)^Root hash:\s+([0-9a-f]{64})$`)

// FAULTS 35
func TestGenerateEqualsVeritysetup(t *testing.T) {
	testkit.Need(t, "veritysetup")
	tests := []struct {
		blocks, extra int // extra: bytes of a partial last block
		salt          int
	}{
		{1, 0, 32}, {1, 1, 32}, {2, 0, 32}, {2, 4095, 0}, {127, 0, 32}, {128, 0, 32}, {129, 0, 32}, {255, 511, 55},
		{256, 0, 56}, {128*3 + 5, 0, 63}, {128 * 16, 0, 64}, {128 * 128, 0, 32}, {128*128 + 1, 0, 256}, {128*129 + 77, 17, 32},
	}
	for _, test := range tests {
		t.Run(fmt.Sprintf("%d+%d salt %d", test.blocks, test.extra, test.salt), func(t *testing.T) {
			dir := t.TempDir()
			image, tree := filepath.Join(dir, "image"), filepath.Join(dir, "tree")
			data := randomBytes(uint64(test.blocks), test.blocks*BlockSize+test.extra)
			if err := os.WriteFile(image, data, 0o600); err != nil {
				t.Fatal(err)
			}
			p := params(uint64(test.blocks), test.salt)
			salt := hex.EncodeToString(p.Salt)
			if salt == "" {
				salt = "-"
			}
			out := testkit.Run(t, "veritysetup", "format", "--hash=sha256", "--data-block-size=4096",
				"--hash-block-size=4096", "--salt="+salt, "--uuid="+testUUIDText, image, tree)
			want, err := os.ReadFile(tree)
			if err != nil {
				t.Fatal(err)
			}
			got, root := generate(t, data, p)
			if !bytes.Equal(got, want) {
				t.Errorf("the tree differs from veritysetup's: %d bytes, want %d", len(got), len(want))
			}
			if m := rootLine.FindStringSubmatch(out); m == nil || root.String() != m[1] {
				t.Errorf("root hash %s, veritysetup says:\n%s", root, out)
			}
			if err := os.WriteFile(tree, got, 0o600); err != nil {
				t.Fatal(err)
			}
			testkit.Run(t, "veritysetup", "verify", image, tree, root.String())
			if err := Verify(t.Context(), bytes.NewReader(data), bytes.NewReader(want), p, root, nil); err != nil {
				t.Errorf("Verify of veritysetup's tree: %v", err)
			}
		})
	}
}

func TestVerifyRefusesWhatVeritysetupRefuses(t *testing.T) {
	testkit.Need(t, "veritysetup")
	dir := t.TempDir()
	data := randomBytes(1, 300*BlockSize)
	p := params(300, 32)
	tree, root := generate(t, data, p)
	data[123*BlockSize+7] ^= 1
	image, treeFile := filepath.Join(dir, "image"), filepath.Join(dir, "tree")
	if err := errors.Join(os.WriteFile(image, data, 0o600), os.WriteFile(treeFile, tree, 0o600)); err != nil {
		t.Fatal(err)
	}
	var corrupt *CorruptError
	err := Verify(t.Context(), bytes.NewReader(data), bytes.NewReader(tree), p, root, nil)
	if !errors.As(err, &corrupt) || corrupt.Offset != 123*BlockSize {
		t.Errorf("Verify: %v", err)
	}
	if out, err := runTool(t, "veritysetup", "verify", image, treeFile, root.String()); err == nil {
		t.Errorf("veritysetup accepts the corrupt image:\n%s", out)
	}
}

// FAULTS 32, 33
func TestVerifyNamesTheCorruptBlock(t *testing.T) {
	const blocks = 128*128 + 300 // three levels: 131, 2 and 1 blocks
	p := params(blocks, 32)
	data := randomBytes(2, blocks*BlockSize)
	tree, root := generate(t, data, p)
	levels, err := Levels(blocks)
	if err != nil || len(levels) != 3 {
		t.Fatalf("levels %v, %v", levels, err)
	}
	check := func(p Params, root Root) error {
		return Verify(t.Context(), bytes.NewReader(data), bytes.NewReader(tree), p, root, nil)
	}
	if err := check(p, root); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		in   []byte
		at   int64
		want CorruptError
	}{
		{"first data bit", data, 0, CorruptError{AreaData, -1, 0, 0}},
		{"middle of data", data, 12345*BlockSize + 99, CorruptError{AreaData, -1, 12345, 12345 * BlockSize}},
		{"last data byte", data, blocks*BlockSize - 1, CorruptError{AreaData, -1, blocks - 1, (blocks - 1) * BlockSize}},
		{"leaf", tree, levels[0].Offset + 77*BlockSize + 5, CorruptError{AreaHash, 0, 77, levels[0].Offset + 77*BlockSize}},
		{"last leaf's padding", tree, levels[0].Offset + 131*BlockSize - 1, CorruptError{AreaHash, 0, 130, levels[0].Offset + 130*BlockSize}},
		{"middle level", tree, levels[1].Offset + BlockSize, CorruptError{AreaHash, 1, 1, levels[1].Offset + BlockSize}},
		{"top level", tree, levels[2].Offset, CorruptError{AreaHash, 2, 0, levels[2].Offset}},
		{"superblock", tree, 3, CorruptError{AreaSuperblock, -1, 0, 0}},
		{"superblock's salt", tree, offSalt, CorruptError{AreaSuperblock, -1, 0, 0}},
		{"behind the superblock", tree, BlockSize - 1, CorruptError{AreaSuperblock, -1, 0, 0}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			test.in[test.at] ^= 0x10
			defer func() { test.in[test.at] ^= 0x10 }()
			var corrupt *CorruptError
			if err := check(p, root); !errors.As(err, &corrupt) {
				t.Fatalf("%v, want a CorruptError", err)
			}
			if *corrupt != test.want {
				t.Errorf("%+v, want %+v", *corrupt, test.want)
			}
		})
	}
	top := CorruptError{AreaHash, 2, 0, levels[2].Offset}
	salted := p
	salted.Salt = bytes.Clone(p.Salt)
	salted.Salt[31] ^= 1
	otherRoot := root
	otherRoot[31] ^= 1
	for name, err := range map[string]error{"salt": check(salted, root), "root hash": check(p, otherRoot)} {
		var corrupt *CorruptError
		if !errors.As(err, &corrupt) || *corrupt != top {
			t.Errorf("another %s: %v, want %v", name, err, &top)
		}
	}
	// The tail belongs to nobody.
	tree = append(tree, bytes.Repeat([]byte{0xaa}, BlockSize)...)
	data = append(data, 1, 2, 3)
	if err := check(p, root); err != nil {
		t.Errorf("bytes behind tree and data: %v", err)
	}
}

// A tree whose padding is not zero has a root hash that fits, and yet is not
// what veritysetup writes.
func TestVerifyRefusesPadding(t *testing.T) {
	p := params(3, 32)
	data := randomBytes(3, 3*BlockSize)
	tree, _ := generate(t, data, p)
	tree[2*BlockSize-1] = 1
	var root Root
	newHasher(p.Salt).sum(&root, tree[BlockSize:])
	err := Verify(t.Context(), bytes.NewReader(data), bytes.NewReader(tree), p, root, nil)
	var corrupt *CorruptError
	if !errors.As(err, &corrupt) || corrupt.Area != AreaHash || corrupt.Level != 0 {
		t.Errorf("%v, want level 0 of the tree to be corrupt", err)
	}
}

// FAULTS 34: neither a digest of the image nor that of another level passes
// for the root hash.
func TestVerifyRefusesAFlatHash(t *testing.T) {
	for _, blocks := range []uint64{1, 2, 300} {
		p := params(blocks, 32)
		data := randomBytes(4, int(blocks)*BlockSize)
		tree, _ := generate(t, data, p)
		var salted, leaf Root
		newHasher(p.Salt).sum(&salted, data)
		newHasher(p.Salt).sum(&leaf, tree[len(tree)-BlockSize:])
		flat := map[string]Root{"plain": sha256.Sum256(data), "salt first": salted, "last leaf": leaf}
		if blocks == 1 {
			delete(flat, "salt first") // by definition the root hash
		}
		if blocks <= fanOut {
			delete(flat, "last leaf") // is the top
		}
		for name, root := range flat {
			err := Verify(t.Context(), bytes.NewReader(data), bytes.NewReader(tree), p, root, nil)
			var corrupt *CorruptError
			if !errors.As(err, &corrupt) {
				t.Errorf("%d blocks, %s: %v, want a CorruptError", blocks, name, err)
			}
		}
	}
}

// FAULTS 35
func TestParamsRefused(t *testing.T) {
	tests := map[string]Params{
		"no block":    {},
		"2^50+1":      {DataBlocks: MaxDataBlocks + 1},
		"2^64-1":      {DataBlocks: 1<<64 - 1},
		"salt of 257": {DataBlocks: 1, Salt: make([]byte, 257)},
	}
	for name, p := range tests {
		hash := newMemory(BlockSize)
		if _, err := Generate(t.Context(), bytes.NewReader(make([]byte, BlockSize)), p, hash, nil); err == nil {
			t.Errorf("%s: generated", name)
		}
		if len(hash.writes) > 0 {
			t.Errorf("%s: written before it was refused", name)
		}
		if err := Verify(t.Context(), bytes.NewReader(nil), bytes.NewReader(nil), p, Root{}, nil); err == nil {
			t.Errorf("%s: verified", name)
		}
	}
	if size, err := TreeSize(MaxDataBlocks); err != nil || size < 0 {
		t.Errorf("TreeSize of the largest image: %d, %v", size, err)
	}
}

func TestShortReadsAndFailedWrites(t *testing.T) {
	p := params(1000, 32)
	data := randomBytes(5, 1000*BlockSize)
	tree, root := generate(t, data, p)
	for _, size := range []int{0, 1, 999*BlockSize + 4095} {
		hash := newMemory(int64(len(tree)))
		if _, err := Generate(t.Context(), bytes.NewReader(data[:size]), p, hash, nil); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("Generate of %d bytes: %v", size, err)
		}
		if bytes.HasPrefix(hash.b, []byte(magic)) {
			t.Errorf("Generate of %d bytes left a superblock", size)
		}
		if err := Verify(t.Context(), bytes.NewReader(data[:size]), bytes.NewReader(tree), p, root, nil); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("Verify of %d bytes: %v", size, err)
		}
	}
	for _, size := range []int{0, BlockSize, len(tree) - 1} {
		if _, err := Generate(t.Context(), bytes.NewReader(data), p, newMemory(int64(size)), nil); err == nil {
			t.Errorf("Generate into %d bytes reported no error", size)
		}
		if err := Verify(t.Context(), bytes.NewReader(data), bytes.NewReader(tree[:size]), p, root, nil); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("Verify of a tree of %d bytes: %v", size, err)
		}
	}
}

// No goroutine stays: synctest waits until each of them has ended, and fails where
// one never will.
func TestCancel(t *testing.T) { synctest.Test(t, cancelled) }

func cancelled(t *testing.T) {
	const blocks = 20000
	p := params(blocks, 32)
	data := randomBytes(6, blocks*BlockSize)
	tree, root := generate(t, data, p)
	for _, after := range []int{0, 1, 50} {
		ctx, cancel := context.WithCancel(t.Context())
		calls := 0
		progress := func(int64) {
			if calls++; calls == after {
				cancel()
			}
		}
		if after == 0 {
			cancel()
		}
		if _, err := Generate(ctx, bytes.NewReader(data), p, newMemory(int64(len(tree))), progress); !errors.Is(err, context.Canceled) {
			t.Errorf("Generate, cancelled after %d chunks: %v", after, err)
		}
		if calls > after {
			t.Errorf("Generate went on: %d chunks after the cancel", calls-after)
		}
		calls = 0
		ctx, cancel = context.WithCancel(t.Context())
		if after == 0 {
			cancel()
		}
		if err := Verify(ctx, bytes.NewReader(data), bytes.NewReader(tree), p, root, progress); !errors.Is(err, context.Canceled) {
			t.Errorf("Verify, cancelled after %d chunks: %v", after, err)
		}
		cancel()
	}
}

func TestProgressAndOrder(t *testing.T) {
	const blocks = 128*128 + 5
	p := params(blocks, 32)
	data := randomBytes(7, blocks*BlockSize)
	size, _ := TreeSize(blocks)
	hash := newMemory(size)
	var last int64
	progress := func(done int64) {
		if done <= last {
			t.Errorf("progress went from %d to %d", last, done)
		}
		last = done
	}
	root, err := Generate(t.Context(), bytes.NewReader(data), p, hash, progress)
	if err != nil || last != blocks*BlockSize {
		t.Errorf("Generate: %v, progress ended at %d", err, last)
	}
	levels, _ := Levels(blocks)
	for i, l := range levels {
		next := l.Offset - 1
		for _, off := range hash.writes {
			if off < l.Offset || off >= l.Offset+int64(l.Blocks)*BlockSize {
				continue
			}
			if off <= next {
				t.Errorf("level %d: written at %d after %d", i, off, next)
			}
			next = off
		}
	}
	last = 0
	if err := Verify(t.Context(), bytes.NewReader(data), hash, p, root, progress); err != nil || last != blocks*BlockSize {
		t.Errorf("Verify: %v, progress ended at %d", err, last)
	}
}

// zeros is an endless image.
type zeros struct{}

func (zeros) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	return len(p), nil
}

type discard struct{}

func (discard) WriteAt(p []byte, off int64) (int, error) { return len(p), nil }

func TestMemoryDoesNotGrow(t *testing.T) {
	allocated := func(blocks uint64) uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if _, err := Generate(t.Context(), zeros{}, params(blocks, 32), discard{}, nil); err != nil {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	small, large := allocated(16<<8), allocated(256<<8)
	if large > small+1<<20 {
		t.Errorf("16 MiB allocate %d bytes, 256 MiB %d", small, large)
	}
}

func BenchmarkGenerate256MiB(b *testing.B) {
	data := randomBytes(8, 256<<20)
	p := params(uint64(len(data)/BlockSize), 32)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Generate(b.Context(), bytes.NewReader(data), p, discard{}, nil); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVerify256MiB(b *testing.B) {
	data := randomBytes(8, 256<<20)
	p := params(uint64(len(data)/BlockSize), 32)
	tree, root := generate(b, data, p)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if err := Verify(b.Context(), bytes.NewReader(data), bytes.NewReader(tree), p, root, nil); err != nil {
			b.Fatal(err)
		}
	}
}

func runTool(t *testing.T, tool string, args ...string) (string, error) {
	t.Helper()
	out, err := exec.Command(testkit.Need(t, tool), args...).CombinedOutput()
	return string(out), err
}
