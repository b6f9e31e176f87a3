package sha256pair

import (
	"bytes"
	"crypto/sha256"
	"math/rand/v2"
	"testing"
)

// Every digest is crypto/sha256's, for every number of blocks, size and length
// of salt, with the extensions and without.
func TestSumAll(t *testing.T) {
	if !accelerated {
		t.Log("this processor has no SHA extensions")
	}
	random := rand.NewChaCha8([32]byte{1})
	for _, size := range []int{1, 55, 56, 63, 64, 65, 512, 4096} {
		for _, salted := range []int{0, 1, 32, 63, 64, 256} {
			for count := range 6 {
				salt, blocks := make([]byte, salted), make([]byte, size*count)
				random.Read(salt)
				random.Read(blocks)
				var want []byte
				for i := range count {
					sum := sha256.Sum256(append(bytes.Clone(salt), blocks[i*size:(i+1)*size]...))
					want = append(want, sum[:]...)
				}
				h := New(salt, size)
				for range 2 { // a second time: nothing is left of the first
					got := make([]byte, len(want))
					if h.SumAll(got, blocks); !bytes.Equal(got, want) {
						t.Fatalf("%d blocks of %d bytes behind a salt of %d: %x, want %x", count, size, salted, got, want)
					}
				}
				h.messages[0] = nil
				got := make([]byte, len(want))
				if h.SumAll(got, blocks); !bytes.Equal(got, want) {
					t.Fatalf("without the extensions: %x, want %x", got, want)
				}
			}
		}
	}
}

func BenchmarkSumAll(b *testing.B) {
	for _, c := range []struct {
		name string
		pair bool
	}{{"pairs", true}, {"single", false}} {
		b.Run(c.name, func(b *testing.B) {
			h := New(make([]byte, 32), 4096)
			if !c.pair {
				h.messages[0] = nil
			}
			blocks, dst := make([]byte, 128*4096), make([]byte, 128*32)
			b.SetBytes(int64(len(blocks)))
			for b.Loop() {
				h.SumAll(dst, blocks)
			}
		})
	}
}
