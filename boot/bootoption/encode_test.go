package bootoption

import (
	"bytes"
	"encoding/hex"
	"testing"

	"halogenos.internal/boot/gpt"
)

// A short-form option names no way through PCI, and parses to its last byte.
func TestEncode(t *testing.T) {
	id := gpt.MustGUID("01234567-89ab-cdef-0123-456789abcdef")
	option := Encode("Name", 1, 2048, 1048576, id, `\EFI\X.EFI`)
	way, err := Parse(option)
	if err != nil || len(way) != 0 {
		t.Errorf("Parse = %v, %v", way, err)
	}
	// UEFI 2.10, table 10-49: type 4, subtype 1, 42 bytes, partition, start,
	// size, signature as GPT has it, format GPT, signature GUID.
	want, err := hex.DecodeString("04012a00" + "01000000" + "0008000000000000" + "0000100000000000" + "67452301ab89efcd0123456789abcdef" + "0202")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(option, want) {
		t.Errorf("option %x lacks %x", option, want)
	}
	if !bytes.HasSuffix(option, []byte("\x00\x00\x7f\xff\x04\x00")) {
		t.Errorf("option ends in %x", option[len(option)-6:])
	}
}
