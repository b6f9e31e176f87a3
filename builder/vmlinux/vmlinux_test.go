package vmlinux_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz/lzma"

	"halogenos.internal/boot/testkit"
	"halogenos.internal/builder/rootfs/rootfstest"
	"halogenos.internal/builder/vmlinux"
)

// image packs a kernel into a bzImage.
func image(packed []byte, size int) []byte {
	head := rootfstest.Kernel("1.0")[:0x2000]
	packed = binary.LittleEndian.AppendUint32(slices.Clone(packed), uint32(size))
	binary.LittleEndian.PutUint32(head[0x24c:], uint32(len(packed)))
	return append(head, packed...)
}

func kernel() []byte {
	return append(rootfstest.Program(false), bytes.Repeat([]byte("kernel "), 9999)...)
}

func TestUnpack(t *testing.T) {
	want := kernel()
	var lz, lzm bytes.Buffer
	l := lz4.NewWriter(&lz)
	if err := l.Apply(lz4.LegacyOption(true)); err != nil {
		t.Fatal(err)
	}
	m, err := lzma.NewWriter(&lzm)
	if err != nil {
		t.Fatal(err)
	}
	_, first := l.Write(want)
	_, second := m.Write(want)
	if err := errors.Join(first, second, l.Close(), m.Close()); err != nil {
		t.Fatal(err)
	}
	packed := map[string][]byte{"lz4": lz.Bytes(), "lzma": lzm.Bytes()}
	// As scripts/Makefile.lib packs it.
	for name, args := range map[string][]string{"xz": {"--check=crc32", "--x86", "--lzma2=dict=32MiB"}, "zstd": {"-22", "--ultra"}} {
		testkit.Need(t, name)
		c := exec.CommandContext(t.Context(), name, append(args, "-c", "-q", "-")...)
		c.Stdin = bytes.NewReader(want)
		if packed[name], err = c.Output(); err != nil {
			t.Fatal(err)
		}
	}
	for name, data := range packed {
		have, err := vmlinux.Unpack(image(data, len(want)))
		if err != nil || !bytes.Equal(have, want) {
			t.Errorf("%s: %d bytes, %v", name, len(have), err)
		}
	}
	if _, err := vmlinux.Unpack(rootfstest.Kernel("1.0")); err != nil {
		t.Errorf("gzip: %v", err)
	}
}

func TestRefuses(t *testing.T) {
	good := rootfstest.Kernel("1.0")
	change := func(at int, with ...byte) []byte {
		b := slices.Clone(good)
		copy(b[at:], with)
		return b
	}
	for _, c := range []struct {
		name, say string
		image     []byte
	}{
		{"no bzImage", "not a bzImage", make([]byte, 0x2000)},
		{"a short file", "not a bzImage", good[:0x24f]},
		{"an old protocol", "not a bzImage", change(0x206, 7, 2)},
		{"a kernel that is not there", "not in the image", change(0x24c, 0xff, 0xff, 0xff)},
		{"a kernel that starts behind the end", "not in the image", change(0x248, 0xff, 0xff, 0xff, 0xff)},
		{"an unknown compression", "not known", change(0x2000, 0x89, 'L', 'Z', 'O')},
		{"a damaged kernel", "unpack kernel", change(0x2020, 1, 2, 3, 4, 5, 6, 7, 8)},
		{"a size of nothing", "says that it has 0", change(len(good)-4, 0, 0, 0, 0)},
		{"too large a size", "says that it has", change(len(good)-4, 0xff, 0xff, 0xff, 0xff)},
		{"a larger size", "bytes of", change(len(good)-4, 0, 0, 1)},
	} {
		if _, err := vmlinux.Unpack(c.image); err == nil || !strings.Contains(err.Error(), c.say) {
			t.Errorf("%s: error %v, want %q", c.name, err, c.say)
		}
	}
	if _, err := vmlinux.Unpack(image([]byte("\x28\xb5\x2f\xfdxxxxxxxxxxxx"), 99)); err == nil {
		t.Error("damaged zstd was taken")
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add(rootfstest.Kernel("1.0"))
	f.Fuzz(func(t *testing.T, image []byte) {
		if kernel, err := vmlinux.Unpack(image); err == nil && !bytes.HasPrefix(kernel, []byte("\x7fELF")) {
			t.Errorf("unpacked %.16x", kernel)
		}
	})
}
