package qemutests

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"os"
	"strings"
	"testing"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/builder/vm"
)

// attackersKey opens the volumes that an attacker makes.
const attackersKey = "bcdefghi-bcdefghi-bcdefghi-bcdefghi-bcdefghi-bcdefghi-bcdefghi-bcdefghi"

// headerBytes is more than the header of a volume, and than what is looked at to
// tell whether there was one.
const headerBytes = 32 << 20

// TestSwappedVolume puts something else in the place of the root partition's volume.
// It is not opened, and it is not made again either.
// FAULTS 43, 63, 64, 66
func TestSwappedVolume(t *testing.T) {
	t.Parallel()
	const notOurs = "RECOVERY: the root partition was made on this machine, and what is there now is not it: "
	tests := []struct {
		name  string
		make  func(t *testing.T, volume string) // volume: a copy of the partition
		want  string
		typed bool // the boot asks for the recovery key, which does not open this
	}{
		{"an attacker's, without a TPM's token", func(t *testing.T, volume string) { rogue(t, volume, luks2.RecoveryTokenType) },
			"the root partition is not bound to a TPM", true},
		{"an attacker's, with the tokens of the real one", func(t *testing.T, volume string) {
			rogue(t, volume, "halogen-tpm2", luks2.RecoveryTokenType)
		}, "open the root partition with the TPM's key: ", true},
		{"null cipher", nullCipher, notOurs, false},
		{"ext4", func(t *testing.T, volume string) { testkit.Run(t, "mkfs.ext4", "-q", "-F", volume) }, notOurs + "it holds no LUKS2 volume, and is not empty", false},
		{"zeros", func(t *testing.T, volume string) {
			must(t, os.Truncate(volume, 0))
		}, notOurs + "its header is empty", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := provisionedAtInit(t)
			var before []byte
			g := Machine(t, Options{State: p.State, Prepare: func(s vm.State) error {
				d := openDisk(t, s.Disk(), os.O_RDWR)
				volume := d.cut(layout.Root)
				tt.make(t, volume)
				must(t, os.Truncate(volume, headerBytes)) // the rest stays, and is not looked at
				d.fill(layout.Root, volume)
				before = headerDigest(d)
				return nil
			}})
			if tt.typed {
				g.expectRefusal(tt.want)
				g.typeLine(p.Notes[recoveryKeyNote])
				g.Expect(`Nothing is lost: try again`)
				g.Expect(asksForKey)
				g.staysClosed()
			} else {
				g.stopsAt(tt.want)
			}
			g.PowerCut()
			if after := headerDigest(openDisk(t, g.State().Disk(), os.O_RDONLY)); !bytes.Equal(after, before) {
				t.Error("the partition was written to")
			}
		})
	}
}

func headerDigest(d *disk) []byte {
	d.t.Helper()
	offset, _ := d.partition(layout.Root)
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(d, offset, headerBytes)); err != nil {
		d.t.Fatal(err)
	}
	return h.Sum(nil)
}

// rogue makes a volume that the attacker's key opens, with some of the real one's
// tokens.
func rogue(t *testing.T, volume string, tokens ...string) {
	t.Helper()
	f, err := os.OpenFile(volume, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	info, err := f.Stat()
	must(t, err)
	was, _, err := luks2.Open(f, info.Size())
	must(t, err)
	must(t, f.Truncate(0))
	must(t, f.Truncate(info.Size()))
	_, volumeKey, err := luks2.Format(rand.Reader, f, luks2.Options{UUID: was.UUID, Label: was.Label, Size: info.Size()},
		func(c *luks2.Change, volumeKey []byte) error {
			slot, err := c.AddKeyslot(volumeKey, []byte(attackersKey), luks2.PBKDF2())
			copied := 0
			for _, token := range was.Tokens() {
				if err == nil && strings.Contains(strings.Join(tokens, " "), token.Type) {
					token.Keyslots = []int{slot}
					_, err = c.AddToken(token)
					copied++
				}
			}
			if copied != len(tokens) {
				t.Errorf("%d of the tokens %q are in the real header", copied, tokens)
			}
			return err
		})
	must(t, err)
	luks2.Wipe(volumeKey)
}

// nullCipher gives the real volume a cipher that encrypts nothing: anyone who wrote the
// data then needs no key. The header's checksums fit (LUKS2 On-Disk Format, 2.1).
func nullCipher(t *testing.T, volume string) {
	t.Helper()
	const sizeAt, sumAt, sumSize = 8, 448, 64
	must(t, os.Truncate(volume, headerBytes))
	b, err := os.ReadFile(volume)
	must(t, err)
	size := binary.BigEndian.Uint64(b[sizeAt:])
	for copies := range uint64(2) {
		header := b[copies*size : (copies+1)*size]
		clean := bytes.ReplaceAll(header, []byte(`"encryption":"aes-xts-plain64"`), []byte(`"encryption":"cipher_null-ecb"`))
		if copy(header, clean); !bytes.Contains(header, []byte("cipher_null")) {
			t.Fatal("no cipher in the header")
		}
		clear(header[sumAt : sumAt+sumSize])
		sum := sha256.Sum256(header)
		copy(header[sumAt:], sum[:])
	}
	must(t, os.WriteFile(volume, b, 0o600))
	if dump := testkit.Run(t, "cryptsetup", "luksDump", volume); !strings.Contains(dump, "cipher: cipher_null-ecb") {
		t.Fatalf("cryptsetup sees no null cipher:\n%s", dump)
	}
}
