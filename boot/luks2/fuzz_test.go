package luks2

import (
	"bytes"
	"io"
	"testing"

	"halogenos.internal/boot/blocktest"
)

// headerReader is a device that holds a primary header and zeros.
type headerReader []byte

func (h headerReader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= testSize {
		return 0, io.EOF
	}
	clear(p)
	if off < int64(len(h)) {
		copy(p, h[off:])
	}
	if room := testSize - off; int64(len(p)) > room {
		return int(room), io.EOF
	}
	return len(p), nil
}

// checkOpened holds what must be true of any header that Open accepts.
func checkOpened(t *testing.T, h *Header) {
	t.Helper()
	for _, k := range h.Keyslots() {
		if k.Number < 0 || k.Number >= MaxKeyslots || k.Offset < 2*headerSize || k.Size <= 0 || k.Offset+k.Size > testSize {
			t.Errorf("keyslot %+v", k)
		}
	}
	if len(h.Tokens()) != len(h.meta.Tokens) {
		t.Errorf("%d of %d tokens", len(h.Tokens()), len(h.meta.Tokens))
	}
	if s, err := h.Segment(); err == nil {
		if want := (Segment{Offset: DataOffset, Length: testSize - DataOffset, Cipher: "aes-xts-plain64", Sector: 4096}); s != want {
			t.Errorf("segment %+v", s)
		}
	}
	text, err := h.meta.encode()
	if err != nil {
		t.Fatal(err)
	}
	again, err := decodeMetadata(text)
	if err != nil {
		t.Fatalf("what was opened is not read again: %v", err)
	}
	if err := again.validate(h.size); err != nil {
		t.Fatalf("what was opened is refused: %v", err)
	}
	second, err := again.encode()
	if err != nil || !bytes.Equal(text, second) {
		t.Errorf("%v\n%s\n%s", err, text, second)
	}
}

func seedHeader(f *testing.F) []byte {
	d := blocktest.New(testSize, blocktest.Hostile)
	formatted(f, d, testOptions())
	return readBytes(f, d, 0, headerSize)
}

// FuzzOpen varies the binary header; the checksum is made right, or hardly any
// input would get past it.
func FuzzOpen(f *testing.F) {
	good := seedHeader(f)
	f.Add(good, true)
	f.Add(good, false)
	f.Add([]byte("SKUL\xba\xbe\x00\x02"), true)
	f.Fuzz(func(t *testing.T, b []byte, fix bool) {
		if len(b) > 1<<17 {
			return
		}
		if fix && len(b) >= headerSize {
			b = bytes.Clone(b[:headerSize])
			setChecksum(b)
		}
		if h, _, err := Open(headerReader(b), testSize); err == nil {
			checkOpened(t, h)
		}
	})
}

// FuzzMetadata varies the JSON text under a good binary header.
func FuzzMetadata(f *testing.F) {
	good := seedHeader(f)
	f.Add(bytes.TrimRight(good[binarySize:], "\x00"))
	f.Add([]byte(`{"keyslots":{},"tokens":{},"segments":{"0":{"type":"crypt","offset":"16777216","size":"dynamic","iv_tweak":"0",` +
		`"encryption":"aes-xts-plain64","sector_size":512}},"digests":{"0":{"type":"pbkdf2","keyslots":[],"segments":["0"],` +
		`"hash":"sha256","iterations":1000,"salt":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",` +
		`"digest":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}},"config":{"json_size":"12288","keyslots_size":"16744448",` +
		`"flags":["allow-discards"],"requirements":{"mandatory":[]}}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if len(text) >= headerSize-binarySize {
			return
		}
		b := bytes.Clone(good)
		clear(b[binarySize:])
		copy(b[binarySize:], text)
		if h, _, err := Open(headerReader(setChecksum(b)), testSize); err == nil {
			checkOpened(t, h)
		}
	})
}
