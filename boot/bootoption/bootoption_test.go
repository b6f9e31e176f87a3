package bootoption

import (
	"encoding/hex"
	"slices"
	"testing"

	"halogenos.internal/boot/gpt"
)

// option puts a load option together: attributes, path length, description.
func option(path string) []byte {
	nodes, err := hex.DecodeString(path)
	if err != nil {
		panic(err)
	}
	b := []byte{1, 0, 0, 0, byte(len(nodes)), byte(len(nodes) >> 8), 'd', 0, 0, 0}
	return append(append(b, nodes...), "optional data"...)
}

const (
	root = "02010c00d041030a00000000" // PciRoot(0x0)
	end  = "7fff0400"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		path string
		want []Function
	}{
		{root + "010106000003" + end, []Function{{3, 0}}},
		{root + "010106000002" + "010106000100" + "03171000010000000000000000000000" + end, []Function{{2, 0}, {0, 1}}}, // behind a bridge, NVMe
		{"04012a0001000000000800000000000000001000000000000102030405060708090a0b0c0d0e0f100202" + end, nil},             // HD() alone
		{end, nil},
	} {
		got, err := Parse(option(c.path))
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, %v, want %v", c.path, got, err, c.want)
		}
	}
	if s := (Function{Device: 0x1f, Function: 2}).String(); s != "1f.2" {
		t.Errorf("function is called %s", s)
	}
}

// The name is the one that was written, in whatever script.
func TestDescribe(t *testing.T) {
	for _, want := range []string{"", "Windows Boot Manager", "Загрузчик 💾"} {
		got, err := Describe(Encode(want, 1, 2048, 4096, gpt.GUID{1}, `\EFI\BOOT\BOOTX64.EFI`))
		if err != nil || got != want {
			t.Errorf("%q is called %q, %v", want, got, err)
		}
	}
	if _, err := Describe([]byte{1, 0, 0, 0, 4, 0, 'd', 0}); err == nil {
		t.Error("a name without an end is read")
	}
}

func TestParseRefused(t *testing.T) {
	good := option(root + "010106000003" + end)
	for name, b := range map[string][]byte{
		"empty":                nil,
		"no description's end": {1, 0, 0, 0, 4, 0, 'd', 0},
		"path past the end":    good[:len(good)-len("optional data")-1],
		"no end":               option(root),
		"node of no size":      option("01010000"),
		"node past the path":   option("0101ff00"),
		"PCI node too long":    option("0101080000030000" + end),
		"cut node":             option("0101"),
		"too large":            make([]byte, MaxSize+1),
	} {
		if way, err := Parse(b); err == nil {
			t.Errorf("%s: %v", name, way)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(option(root + "010106000003" + end))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		way, err := Parse(b)
		if err == nil && len(way)*pciSize > len(b) {
			t.Fatalf("%d functions from %d bytes", len(way), len(b))
		}
		if name, derr := Describe(b); (derr == nil) != (err == nil) || 2*len([]rune(name)) > len(b) {
			t.Fatalf("it is called %q, %v, and Parse says %v", name, derr, err)
		}
	})
}
