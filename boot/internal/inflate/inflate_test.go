package inflate

import (
	"bytes"
	"compress/flate"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	fast "github.com/klauspost/compress/flate"
)

// contents are of every kind that a system image has.
func contents() map[string][]byte {
	random := rand.NewChaCha8([32]byte{1})
	noise := make([]byte, 150<<10)
	random.Read(noise)
	skewed := make([]byte, len(noise)) // few matches, codes of all sizes
	for i, b := range noise {
		skewed[i] = b & (b >> 3) & noise[(i*7+1)%len(noise)]
	}
	text := new(bytes.Buffer)
	for i := range 6000 {
		fmt.Fprintf(text, "%d %x\n", i, i*i)
	}
	// So rare that its code has 15 bits.
	rare := []byte{0}
	for i := range 17 {
		rare = append(rare, bytes.Repeat([]byte{byte(i)}, 1<<i)...)
	}
	return map[string][]byte{
		"nothing": {}, "a byte": {7}, "zeros": make([]byte, 1<<16), "noise": noise, "skewed": skewed, "text": text.Bytes(),
		"rare": rare, "far": append(bytes.Clone(noise[:32768]), noise[:5000]...), "near": bytes.Repeat([]byte("ab"), 999),
	}
}

// pack compresses with the standard library's compressor, or klauspost's.
func pack(t testing.TB, content []byte, level int, other bool) []byte {
	var out bytes.Buffer
	var w io.WriteCloser
	var err error
	if other {
		w, err = fast.NewWriter(&out, level)
	} else {
		w, err = flate.NewWriter(&out, level)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestFill(t *testing.T) {
	var d Decoder
	for name, content := range contents() {
		for level := flate.HuffmanOnly; level <= flate.BestCompression; level++ {
			for _, other := range []bool{false, true} {
				packed := pack(t, content, level, other)
				got := make([]byte, len(content))
				if err := d.Fill(got, packed); err != nil || !bytes.Equal(got, content) {
					t.Errorf("%s at level %d: %v", name, level, err)
				}
				if err := d.Fill(make([]byte, len(content)+1), packed); err != io.ErrUnexpectedEOF {
					t.Errorf("%s into a byte more: %v", name, err)
				}
				if len(content) > 0 {
					if err := d.Fill(make([]byte, len(content)-1), packed); err != ErrLong {
						t.Errorf("%s into a byte less: %v", name, err)
					}
				}
				if err := d.Fill(got, append(bytes.Clone(packed), 0)); err != ErrBehind {
					t.Errorf("%s with a byte behind it: %v", name, err)
				}
				for _, n := range []int{0, 1, len(packed) / 2, len(packed) - 1} {
					if err := d.Fill(got, packed[:n]); err == nil {
						t.Errorf("%s at level %d, %d of %d bytes of it: no error", name, level, n, len(packed))
					}
				}
			}
		}
	}
}

// What is wrong in a stream (RFC 1951).
func TestCorrupt(t *testing.T) {
	for name, c := range map[string]struct {
		stream string
		want   error
	}{
		"nothing":                    {"", io.ErrUnexpectedEOF},
		"block of no kind":           {"\x07", ErrCorrupt},
		"stored, of another length":  {"\x01\x01\x00\xff\xff\x00", ErrCorrupt},
		"stored, cut":                {"\x01\x04\x00\xfb\xff\x00", io.ErrUnexpectedEOF},
		"stored, in its head":        {"\x01\x04", io.ErrUnexpectedEOF},
		"fixed, too far back":        {"\x63\x00\x22\x00", ErrCorrupt},
		"too many literals":          {"\xfd\xff\xff\xff\xff\xff\xff\xff\xff", ErrCorrupt},
		"dynamic, cut in its head":   {"\x05", io.ErrUnexpectedEOF},
		"dynamic, no code for sizes": {"\x05\x00\x00\x00\x00\x00\x00\x00", ErrCorrupt},
	} {
		if err := new(Decoder).Fill(make([]byte, 4), []byte(c.stream)); err != c.want {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

// FuzzFill: what is taken and what is refused is what the standard library
// takes and refuses.
func FuzzFill(f *testing.F) {
	for _, content := range contents() {
		content = content[:min(len(content), 3000)]
		for _, level := range []int{flate.HuffmanOnly, 1, 9} {
			f.Add(pack(f, content, level, false), len(content))
		}
	}
	var d Decoder
	f.Fuzz(func(t *testing.T, stream []byte, size int) {
		if size < 0 || size > 1<<14 {
			return
		}
		got := make([]byte, size)
		err := d.Fill(got, stream)
		src := bytes.NewReader(stream)
		want, wantErr := io.ReadAll(io.LimitReader(flate.NewReader(src), int64(size)+1))
		good := wantErr == nil && len(want) == size && src.Len() == 0
		if good != (err == nil) || good && !bytes.Equal(got, want) {
			t.Fatalf("%v, the standard library says %d bytes, %v, %d left", err, len(want), wantErr, src.Len())
		}
	})
}

func BenchmarkFill(b *testing.B) {
	for name, content := range contents() {
		content = content[:min(len(content), 16<<10)]
		for _, level := range []int{flate.HuffmanOnly, 6} {
			packed := pack(b, content, level, true)
			b.Run(fmt.Sprintf("%s/%d", name, level), func(b *testing.B) {
				var d Decoder
				dst := make([]byte, len(content))
				b.SetBytes(int64(len(content)))
				for b.Loop() {
					if err := d.Fill(dst, packed); err != nil {
						b.Fatal(err)
					}
				}
			})
			b.Run(fmt.Sprintf("%s/%d/klauspost", name, level), func(b *testing.B) {
				r, src := fast.NewReader(nil), bytes.NewReader(nil)
				dst := make([]byte, len(content))
				b.SetBytes(int64(len(content)))
				for b.Loop() {
					src.Reset(packed)
					if err := r.(fast.Resetter).Reset(src, nil); err != nil {
						b.Fatal(err)
					}
					if _, err := io.ReadFull(r, dst); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
