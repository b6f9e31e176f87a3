package verity

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

func TestParseRoot(t *testing.T) {
	good := strings.Repeat("0aF9", 16)
	r, err := ParseRoot(good)
	if err != nil || r.String() != strings.ToLower(good) {
		t.Errorf("%s: %v", r, err)
	}
	for _, bad := range []string{"", good[1:], good + "0", " " + good[1:], good[:62] + "0x", "0x" + good} {
		if _, err := ParseRoot(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestParseSuperblock(t *testing.T) {
	p := params(7, 32)
	good := p.superblock()
	s, err := ParseSuperblock(good)
	if err != nil {
		t.Fatal(err)
	}
	if s.UUID != p.UUID || s.DataBlocks != 7 || !bytes.Equal(s.Salt, p.Salt) || s.Algorithm != Algorithm ||
		s.DataBlockSize != BlockSize || s.HashBlockSize != BlockSize || s.HashType != HashType {
		t.Errorf("%+v", s)
	}
	bad := map[string]func([]byte){
		"magic":           func(b []byte) { b[0] = 'V' },
		"version":         func(b []byte) { b[offVersion] = 2 },
		"hash type":       func(b []byte) { b[offHashType] = 2 },
		"data block size": func(b []byte) { b[offDataBlockSize] = 1 },
		"hash block size": func(b []byte) { b[offHashBlockSize+3] = 0x80 },
		"no algorithm":    func(b []byte) { b[offAlgorithm] = 0 },
		"endless name":    func(b []byte) { copy(b[offAlgorithm:], strings.Repeat("a", 32)) },
		"control in name": func(b []byte) { b[offAlgorithm] = '\n' },
		"salt of 257":     func(b []byte) { b[offSaltSize], b[offSaltSize+1] = 1, 1 },
	}
	for name, spoil := range bad {
		b := bytes.Clone(good)
		spoil(b)
		if s, err := ParseSuperblock(b); err == nil {
			t.Errorf("%s: taken as %+v", name, s)
		}
	}
	if _, err := ParseSuperblock(good[:511]); err == nil {
		t.Error("511 bytes were taken")
	}
}

// FAULTS 33
func FuzzParseSuperblock(f *testing.F) {
	f.Add(params(7, 32).superblock()[:SuperblockSize])
	f.Add(params(1<<40, 256).superblock()[:SuperblockSize])
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseSuperblock(b)
		if err != nil {
			return
		}
		if s.Algorithm != Algorithm || s.HashType != HashType || s.DataBlockSize != BlockSize || s.HashBlockSize != BlockSize {
			return
		}
		again, err := ParseSuperblock(Params{DataBlocks: s.DataBlocks, Salt: s.Salt, UUID: s.UUID}.superblock())
		if err != nil || fmt.Sprint(again) != fmt.Sprint(s) {
			t.Errorf("%+v came back as %+v, %v", s, again, err)
		}
	})
}
