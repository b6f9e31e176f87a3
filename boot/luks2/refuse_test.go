package luks2

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"halogenos.internal/boot/blocktest"
)

// object walks into nested JSON objects.
func object(m map[string]any, path ...string) map[string]any {
	for _, name := range path {
		m = m[name].(map[string]any)
	}
	return m
}

// spoil rewrites the metadata of a volume behind the package's back, in both
// copies and with good checksums.
func spoil(t testing.TB, d *blocktest.Disk, edit func(map[string]any)) {
	t.Helper()
	c, err := readCopy(d, primary)
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(c.json, &m); err != nil {
		t.Fatal(err)
	}
	edit(m)
	text, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	replaceJSON(t, d, text)
}

func replaceJSON(t testing.TB, d *blocktest.Disk, text []byte) {
	t.Helper()
	c, err := readCopy(d, primary)
	if err != nil {
		t.Fatal(err)
	}
	c.json = text
	for _, s := range []side{primary, secondary} {
		if err := c.writeTo(testRand(9), d, s); err != nil {
			t.Fatal(err)
		}
	}
}

// FAULTS 64, 65, 67
func TestOpenRefusesMetadata(t *testing.T) {
	kslot := func(name string, value any) func(map[string]any) {
		return func(m map[string]any) { object(m, "keyslots", "0")[name] = value }
	}
	in := func(value any, path ...string) func(map[string]any) {
		return func(m map[string]any) { object(m, path[:len(path)-1]...)[path[len(path)-1]] = value }
	}
	tests := []struct {
		name string
		edit func(map[string]any)
		want string
	}{
		{"null cipher of segment", in("cipher_null-ecb", "segments", "0", "encryption"), "segment 0 is"},
		{"null cipher, short form", in("null", "segments", "0", "encryption"), "segment 0 is"},
		{"no cipher of segment", in("", "segments", "0", "encryption"), "segment 0 is"},
		{"other cipher of segment", in("aes-cbc-plain", "segments", "0", "encryption"), `"encryption":"aes-cbc-plain"`},
		{"null cipher of keyslot", in("cipher_null-ecb", "keyslots", "0", "area", "encryption"), "cipher"},
		{"linear segment", in("linear", "segments", "0", "type"), `"type":"linear"`},
		{"integrity", in(map[string]any{"type": "none"}, "segments", "0", "integrity"), "unknown field"},
		{"segment flags", in([]any{"in-reencryption"}, "segments", "0", "flags"), "unknown field"},
		{"second segment", in(map[string]any{}, "segments", "1"), "2 segments"},
		{"null segment", in(nil, "segments", "0"), "segments"},
		{"no segment", in(map[string]any{}, "segments"), "0 segments"},
		{"segments missing", func(m map[string]any) { delete(m, "segments") }, "missing"},
		{"segment in the header", in("4096", "segments", "0", "offset"), `"offset":"4096"`},
		{"segment behind the device", in("17825792", "segments", "0", "offset"), `"offset":"17825792"`},
		{"segment at 2^63", in("9223372036854775808", "segments", "0", "offset"), "2^63"},
		{"segment at -1", in("-1", "segments", "0", "offset"), "2^63"},
		{"segment at 0x1000000", in("0x1000000", "segments", "0", "offset"), "2^63"},
		{"segment offset as number", in(16777216, "segments", "0", "offset"), "unmarshal"},
		{"segment misaligned", in("16777728", "segments", "0", "offset"), `"offset":"16777728"`},
		{"segment too long", in("1052672", "segments", "0", "size"), `"size":"1052672"`},
		{"segment of no size", in("0", "segments", "0", "size"), `"size":"0"`},
		{"sector of 8192", in(8192, "segments", "0", "sector_size"), `"sector_size":8192`},
		{"sector of 0", in(0, "segments", "0", "sector_size"), `"sector_size":0`},
		{"reencryption requirement", in(map[string]any{"mandatory": []any{"online-reencrypt-v2"}}, "config", "requirements"), "reencrypted"},
		{"offline reencryption", in(map[string]any{"mandatory": []any{"offline-reencrypt"}}, "config", "requirements"), "reencrypted"},
		{"unknown requirement", in(map[string]any{"mandatory": []any{"opal"}}, "config", "requirements"), `requirements ["opal"]`},
		{"other requirements", in(map[string]any{"optional": []any{"x"}}, "config", "requirements"), "unknown field"},
		{"reencryption keyslot", kslot("type", "reencrypt"), "reencrypted"},
		{"unknown keyslot type", kslot("type", "luks3"), "luks3"},
		{"keyslot of 16 bytes", kslot("key_size", 16), "key of 16"},
		{"keyslot of 2^31 bytes", kslot("key_size", 1<<31), "key of 2147483648"},
		{"keyslot of -64 bytes", kslot("key_size", -64), "key of -64"},
		{"keyslot of 32 bytes", kslot("key_size", 32), "key of 32"},
		{"null keyslot", in(nil, "keyslots", "0"), "null"},
		{"keyslot 32", in(map[string]any{}, "keyslots", "32"), "number"},
		{"keyslot 00", in(map[string]any{}, "keyslots", "00"), "number"},
		{"33 keyslots", func(m map[string]any) {
			for i := range 33 {
				object(m, "keyslots")[fmt.Sprint(i)] = object(m, "keyslots", "0")
			}
		}, "33 keyslots"},
		{"unbound keyslot", func(m map[string]any) { object(m, "digests", "0")["keyslots"] = []any{"0"} }, "1 of 2"},
		{"priority 3", kslot("priority", 3), "priority"},
		{"1 stripe", in(1, "keyslots", "0", "af", "stripes"), "stripes"},
		{"2^40 stripes", in(1<<40, "keyslots", "0", "af", "stripes"), "stripes"},
		{"unknown af", in("luks9", "keyslots", "0", "af", "type"), "luks9"},
		{"af by md5", in("md5", "keyslots", "0", "af", "hash"), "md5"},
		{"area of another type", in("datashift", "keyslots", "0", "area", "type"), "datashift"},
		{"area in the header", in("16384", "keyslots", "0", "area", "offset"), "offset 16384"},
		{"area in the data", in("16777216", "keyslots", "0", "area", "offset"), "offset 16777216"},
		{"area across the end", in("16773120", "keyslots", "0", "area", "offset"), "offset 16773120"},
		{"area that is endless", in("9223372036854775807", "keyslots", "0", "area", "size"), "area of 9223372036854775807"},
		{"area too small", in("249856", "keyslots", "0", "area", "size"), "area of 249856"},
		{"area misaligned", in("32769", "keyslots", "0", "area", "offset"), "offset 32769"},
		{"areas overlap", in("36864", "keyslots", "1", "area", "offset"), "overlap"},
		{"area key of 0", in(0, "keyslots", "0", "area", "key_size"), "key of 0"},
		{"kdf none", in("none", "keyslots", "0", "kdf", "type"), "none"},
		{"kdf argon2i", in("argon2i", "keyslots", "1", "kdf", "type"), "argon2i"},
		{"kdf of 1 iteration", in(1, "keyslots", "0", "kdf", "iterations"), "1 iterations"},
		{"kdf of 2^40 iterations", in(1<<40, "keyslots", "0", "kdf", "iterations"), "iterations"},
		{"kdf of both kinds", in(4, "keyslots", "0", "kdf", "time"), "parameters of argon2"},
		{"argon2 with 4 GiB and a bit", in(4<<20+1, "keyslots", "1", "kdf", "memory"), "4194305 KiB"},
		{"argon2 without memory", in(0, "keyslots", "1", "kdf", "memory"), "0 KiB"},
		{"argon2 without passes", in(0, "keyslots", "1", "kdf", "time"), "0 passes"},
		{"argon2 without end", in(math.MaxUint32, "keyslots", "1", "kdf", "time"), "passes"},
		{"argon2 on 255 CPUs", in(255, "keyslots", "1", "kdf", "cpus"), "255 lanes"},
		{"argon2 on 256 CPUs", in(256, "keyslots", "1", "kdf", "cpus"), "256"},
		{"no salt", in("", "keyslots", "0", "kdf", "salt"), "salt"},
		{"salt of 65 bytes", in(make([]byte, 65), "keyslots", "0", "kdf", "salt"), "salt"},
		{"salt that is not base64", in("*", "keyslots", "0", "kdf", "salt"), "base64"},
		{"no digest", in(map[string]any{}, "digests"), "0 digests"},
		{"null digest", in(nil, "digests", "0"), "digest 0"},
		{"second digest", func(m map[string]any) { object(m, "digests")["1"] = object(m, "digests", "0") }, "2 digests"},
		{"unknown digest", in("sha1", "digests", "0", "type"), "type"},
		{"digest by md5", in("md5", "digests", "0", "hash"), "md5"},
		{"digest of 1 byte", in([]byte{1}, "digests", "0", "digest"), "1 bytes"},
		{"digest of another segment", in([]any{"1"}, "digests", "0", "segments"), "segments"},
		{"digest for a keyslot twice", in([]any{"0", "0"}, "digests", "0", "keyslots"), "twice"},
		{"digest for an absent keyslot", in([]any{"0", "9"}, "digests", "0", "keyslots"), "not there"},
		{"digest of 2^31 iterations", in(1<<31, "digests", "0", "iterations"), "iterations"},
		{"token without type", in("", "tokens", "0", "type"), "token 0"},
		{"null token", in(nil, "tokens", "0"), "token 0"},
		{"token that is a list", in([]any{}, "tokens", "0"), "token 0"},
		{"token for an absent keyslot", in([]any{"9"}, "tokens", "0", "keyslots"), "token 0"},
		{"token 32", func(m map[string]any) { object(m, "tokens")["32"] = object(m, "tokens", "0") }, "number"},
		{"33 tokens", func(m map[string]any) {
			for i := range 33 {
				object(m, "tokens")[fmt.Sprint(i)] = object(m, "tokens", "0")
			}
		}, "33 tokens"},
		{"unknown field", in(1, "hidden"), "unknown field"},
		{"unknown field of keyslot", kslot("hidden", 1), "unknown field"},
		{"no config", in(nil, "config"), "missing"},
		{"other JSON size", in("4096", "config", "json_size"), "JSON area"},
		{"endless keyslots area", in("9223372036854771712", "config", "keyslots_size"), "keyslots area"},
		{"keyslots area over the data", in("17793024", "config", "keyslots_size"), "keyslots area"},
		{"33 flags", in(strings.Split(strings.Repeat("f", 33), ""), "config", "flags"), "33 flags"},
	}
	clean, _ := newVolume(t)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			d := clean.Overlay()
			spoil(t, d, test.edit)
			_, _, err := Open(d, testSize)
			if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v; want ErrUnsupported that says %q", err, test.want)
			}
		})
	}
}

func TestOpenRefusesText(t *testing.T) {
	clean, _ := newVolume(t)
	c, err := readCopy(clean, primary)
	if err != nil {
		t.Fatal(err)
	}
	good := string(c.json)
	tests := map[string]string{
		"empty":             "",
		"no object":         "[]",
		"null":              "null",
		"half":              good[:len(good)/2],
		"two values":        good + "{}",
		"name twice":        strings.Replace(good, `"encryption"`, `"encryption":"cipher_null-ecb","encryption"`, 1),
		"name in two cases": strings.Replace(good, `"encryption"`, `"Encryption":"cipher_null-ecb","encryption"`, 1),
		"keyslot 0 twice":   strings.Replace(good, `"keyslots":{`, `"keyslots":{"0":{},`, 1),
		"deep": strings.Replace(good, `"tokens":{`, `"tokens":{"1":{"type":"x","keyslots":[],"y":`+
			strings.Repeat("[", 2000)+strings.Repeat("]", 2000)+"},", 1),
	}
	for name, text := range tests {
		t.Run(name, func(t *testing.T) {
			if text == good {
				t.Fatal("nothing was changed")
			}
			d := clean.Overlay()
			replaceJSON(t, d, []byte(text))
			if _, _, err := Open(d, testSize); !errors.Is(err, ErrUnsupported) {
				t.Errorf("%v; want ErrUnsupported", err)
			}
		})
	}
}

// setChecksum makes the checksum of a copy in a buffer right.
func setChecksum(b []byte) []byte {
	sum := checksum(b[:binarySize], b[binarySize:])
	copy(b[offChecksum:], sum[:])
	return b
}

func readBytes(t testing.TB, d *blocktest.Disk, off, n int64) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := d.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestOpenRefusesBinaryHeader(t *testing.T) {
	clean, _ := newVolume(t)
	tests := map[string]struct {
		spoil func([]byte)
		want  error
	}{
		"header of 2^63 bytes":  {func(b []byte) { b[offHeaderSize] = 0x80 }, ErrDamaged},
		"header of 0 bytes":     {func(b []byte) { clear(b[offHeaderSize:offSeq]) }, ErrDamaged},
		"header of 24 KiB":      {func(b []byte) { b[offHeaderSize+6] = 0x60 }, ErrDamaged},
		"another offset":        {func(b []byte) { b[offOffset+7] = 1 }, ErrDamaged},
		"checksum of no sort":   {func(b []byte) { copy(b[offAlgorithm:], "crc32\x00") }, ErrDamaged},
		"endless algorithm":     {func(b []byte) { copy(b[offAlgorithm:], strings.Repeat("a", algorithmSize)) }, ErrDamaged},
		"header of 32 KiB":      {func(b []byte) { b[offHeaderSize+6] = 0x80 }, ErrDamaged},
		"UUID of another form":  {func(b []byte) { copy(b[offUUID:], "../sda\x00") }, ErrUnsupported},
		"LUKS1":                 {func(b []byte) { b[offVersion+1] = 1 }, ErrUnsupported},
		"last sequence":         {func(b []byte) { copy(b[offSeq:], bytes.Repeat([]byte{0xff}, 8)) }, ErrUnsupported},
		"label without end":     {func(b []byte) { copy(b[offLabel:], strings.Repeat("l", labelSize)) }, ErrUnsupported},
		"escape in label":       {func(b []byte) { copy(b[offLabel:], "\x1b[2J") }, ErrUnsupported},
		"UUID that is not text": {func(b []byte) { b[offUUID] = 0xff }, ErrUnsupported},
		"JSON without end":      {func(b []byte) { copy(b[binarySize:], strings.Repeat(" ", headerSize-binarySize)) }, ErrUnsupported},
		"something behind JSON": {func(b []byte) { b[len(b)-1] = 1 }, ErrUnsupported},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			d := clean.Overlay()
			for _, off := range []int64{0, headerSize} {
				b := readBytes(t, d, off, headerSize)
				test.spoil(b)
				if _, err := d.WriteAt(setChecksum(b), off); err != nil {
					t.Fatal(err)
				}
			}
			if _, _, err := Open(d, testSize); !errors.Is(err, test.want) {
				t.Errorf("%v; want %v", err, test.want)
			}
		})
	}
}

// FAULTS 66
func TestOpenOtherThings(t *testing.T) {
	ext4 := blocktest.New(testSize, blocktest.Zero)
	if _, err := ext4.WriteAt([]byte{0x53, 0xef}, 1024+0x38); err != nil {
		t.Fatal(err)
	}
	tests := map[string]*blocktest.Disk{
		"ext4":    ext4,
		"zeros":   blocktest.New(testSize, blocktest.Zero),
		"garbage": blocktest.New(testSize, blocktest.Hostile),
	}
	for name, d := range tests {
		if _, _, err := Open(d, testSize); !errors.Is(err, ErrNotLUKS) {
			t.Errorf("%s: %v; want ErrNotLUKS", name, err)
		}
	}
	clean, _ := newVolume(t)
	whole := readBytes(t, clean, 0, testSize)
	for _, n := range []int{0, 6, 4095, 4096, 16383} {
		if _, _, err := Open(bytes.NewReader(whole[:n]), int64(n)); err == nil {
			t.Errorf("%d bytes were opened", n)
		}
	}
	for _, n := range []int64{-1, 0, 32768, DataOffset} {
		if _, _, err := Open(clean, n); !errors.Is(err, ErrUnsupported) {
			t.Errorf("a device of %d bytes: %v", n, err)
		}
	}
	broken := blocktest.Record(clean)
	broken.Inject(blocktest.Fault{Read: 1, Err: errors.New("medium error"), Sticky: true})
	if _, _, err := Open(broken, testSize); err == nil || errors.Is(err, ErrNotLUKS) || !strings.Contains(err.Error(), "medium error") {
		t.Errorf("a device that cannot be read: %v", err)
	}
	h := mustOpen(t, clean)
	if _, _, err := h.Unlock(broken, tpmSecret, testMemory); err == nil || errors.Is(err, ErrPassphrase) {
		t.Errorf("Unlock on a device that cannot be read: %v", err)
	}
}

// testHealed asserts that a damaged volume opens, and is whole after Heal.
func testHealed(t *testing.T, d *blocktest.Disk, key []byte, bad side) {
	t.Helper()
	h, health, err := Open(d, testSize)
	if err != nil {
		t.Fatal(err)
	}
	if (health.Primary != nil) != (bad == primary) || (health.Secondary != nil) != (bad == secondary) {
		t.Fatalf("health %+v, want a bad %s", health, bad)
	}
	opens(t, h, d, tpmSecret, key, 0)
	keep, heal := int64(0), int64(headerSize)
	if bad == primary {
		keep, heal = heal, keep
	}
	good := readBytes(t, d, keep, headerSize)
	if err := h.Heal(testRand(7), d); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(good, readBytes(t, d, keep, headerSize)) {
		t.Error("the good copy was touched")
	}
	if bytes.Equal(good[offSalt:offSalt+saltSize], readBytes(t, d, heal+offSalt, saltSize)) {
		t.Error("both copies have the same salt")
	}
	opens(t, mustOpen(t, d), d, typed, key, 1)
	r := blocktest.Record(d)
	if err := h.Heal(testRand(7), r); err != nil || len(r.Log()) > 0 {
		t.Errorf("healing what is whole: %v, %d operations", err, len(r.Log()))
	}
}

func TestHeal(t *testing.T) {
	clean, key := newVolume(t)
	for _, bad := range []side{primary, secondary} {
		base := int64(bad) * headerSize
		for _, at := range []int64{0, 5, offVersion + 1, offHeaderSize, offSeq + 7, offLabel, offAlgorithm, offSalt, offUUID, offOffset, offChecksum + 31, offChecksum + 63, 2048, binarySize, headerSize - 1} {
			t.Run(fmt.Sprintf("%s byte %d", bad, at), func(t *testing.T) {
				d := clean.Overlay()
				b := readBytes(t, d, base+at, 1)
				b[0] ^= 0x40
				if _, err := d.WriteAt(b, base+at); err != nil {
					t.Fatal(err)
				}
				testHealed(t, d, key, bad)
			})
		}
	}
	older := readBytes(t, clean, 0, headerSize)
	newer := bytes.Clone(older)
	newer[offSeq+7]++
	copy(newer[offLabel:], "newer")
	setChecksum(newer)
	t.Run("primary out of date", func(t *testing.T) {
		d := clean.Overlay()
		b := bytes.Clone(newer)
		copy(b, secondary.magic())
		b[offOffset+6] = headerSize >> 8
		if _, err := d.WriteAt(setChecksum(b), headerSize); err != nil {
			t.Fatal(err)
		}
		testHealed(t, d, key, primary)
		if h := mustOpen(t, d); h.Label != "newer" {
			t.Errorf("label %q", h.Label)
		}
	})
	t.Run("secondary out of date", func(t *testing.T) {
		d := clean.Overlay()
		if _, err := d.WriteAt(newer, 0); err != nil {
			t.Fatal(err)
		}
		testHealed(t, d, key, secondary)
	})
	t.Run("same sequence, other content", func(t *testing.T) {
		d := clean.Overlay()
		b := bytes.Clone(older)
		copy(b[offLabel:], "other")
		if _, err := d.WriteAt(setChecksum(b), 0); err != nil {
			t.Fatal(err)
		}
		testHealed(t, d, key, secondary)
	})
}
