package zstdframe

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/zstd"
)

func TestEnd(t *testing.T) {
	noise := make([]byte, 300_000)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(noise)
	for name, plain := range map[string][]byte{"nothing": {}, "text": []byte("some text"), "zeros": make([]byte, 1<<20), "noise": noise} {
		for _, sum := range []bool{true, false} {
			z, err := zstd.NewWriter(nil, zstd.WithEncoderCRC(sum), zstd.WithZeroFrames(true))
			if err != nil {
				t.Fatal(err)
			}
			frame := z.EncodeAll(plain, nil)
			for _, after := range [][]byte{nil, {0}, bytes.Repeat([]byte{7}, 5000)} {
				if end := End(append(bytes.Clone(frame), after...)); end != len(frame) {
					t.Errorf("%s, checksum %v, before %d bytes: ends at %d, want %d", name, sum, len(after), end, len(frame))
				}
			}
			skip := append([]byte("\x53\x2a\x4d\x18\x05\x00\x00\x00"), "\x28\xb5\x2f\xfd!"...)
			several := bytes.Join([][]byte{frame, frame, skip, frame}, nil)
			for _, after := range []string{"", "\x00", "07070100", "\x28\xb5\x2f"} {
				if end := End(append(bytes.Clone(several), after...)); end != len(several) {
					t.Errorf("%s, checksum %v, several before %q: they end at %d, want %d", name, sum, after, end, len(several))
				}
			}
			for n := range min(len(frame), 100) {
				if end := End(frame[:n]); end != n {
					t.Errorf("%s cut after %d bytes ends at %d", name, n, end)
				}
			}
		}
	}
}

func FuzzEnd(f *testing.F) {
	f.Add([]byte("\x28\xb5\x2f\xfd\x04\x00\x01\x00\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if end := End(data); end < 0 || end > len(data) {
			t.Errorf("ends at %d of %d bytes", end, len(data))
		}
	})
}
