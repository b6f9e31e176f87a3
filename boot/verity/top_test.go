package verity

import (
	"bytes"
	"errors"
	"slices"
	"testing"
)

// CheckTop knows the tree of the image from every other, and reads nothing but
// its top. FAULTS 5
func TestCheckTop(t *testing.T) {
	for _, blocks := range []uint64{1, 2, 128, 129, 20000} {
		p := params(blocks, 32)
		data := randomBytes(blocks, int(blocks)*BlockSize)
		tree, root := generate(t, data, p)
		check := func(data, tree []byte, root Root) error {
			return CheckTop(bytes.NewReader(data), bytes.NewReader(tree), p, root)
		}
		if err := check(data, tree, root); err != nil {
			t.Errorf("%d blocks: %v", blocks, err)
		}
		other := root
		other[31] ^= 1
		_, isCorrupt := errors.AsType[*CorruptError](check(data, tree, other))
		if !isCorrupt {
			t.Errorf("%d blocks: another root hash is accepted", blocks)
		}
		if blocks == 1 {
			continue
		}
		bad := slices.Clone(tree)
		bad[HashStartBlock*BlockSize] ^= 1
		if _, isCorrupt = errors.AsType[*CorruptError](check(data, bad, root)); !isCorrupt {
			t.Errorf("%d blocks: another top is accepted", blocks)
		}
		if err := check(nil, tree[:(HashStartBlock+1)*BlockSize], root); err != nil {
			t.Errorf("%d blocks: it reads more than the top: %v", blocks, err)
		}
		if check(data, tree[:BlockSize], root) == nil {
			t.Errorf("%d blocks: a tree that is cut off is accepted", blocks)
		}
	}
}
