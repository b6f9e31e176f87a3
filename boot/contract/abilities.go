package contract

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"path"

	"github.com/u-root/u-root/pkg/cpio"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/strictjson"
)

// AbilitiesPath is where a UKI says what its initagent can read. It is the only file
// of the second, uncompressed archive of the initramfs. The contract itself has no
// room for it: an initagent that does not know a field refuses the whole contract,
// and with it the release that it is to stage.
const AbilitiesPath = "halogen/abilities.json"

// Abilities are the newest formats that the initagent of a UKI reads, of what
// initagents of several releases share on one machine. Fields that are not known are
// passed over: they say more than is asked here. As the contract they are true only
// once the UKI's signature is.
type Abilities struct {
	// PolicyRecord is the version of the record in the TPM's NV index.
	PolicyRecord int `json:"policy_record"`
	// NewSecret is the version of what is left by a cut while the machine secret is
	// replaced: an initagent that does not know it cannot finish that. From 3 on the
	// Secure Boot keys may be replaced as well, from 4 on the secret may come with a PIN.
	NewSecret int `json:"new_secret"`
	// Revocations: release.json may have entries for dbx.
	Revocations bool `json:"revocations,omitempty"`
	// Beside: it makes itself on a disk that has partitions of other systems; one that
	// does not say so refuses such a disk at its first start.
	Beside bool `json:"beside,omitempty"`
	// Others: where an installer has left the wish that other systems go on starting with
	// Secure Boot on, its first start asks for it.
	Others bool `json:"others,omitempty"`
	// Grow: it makes the slots of its machine larger where that is asked for, for a release
	// with a larger SlotSize.
	Grow bool `json:"grow_slots,omitempty"`

	// ESPSize is the size in bytes of the EFI system partition that an installation of
	// the release makes; 0 stands for layout.ESPSize. It is here and not in the contract
	// for the same reason, and because no machine asks for it once it is installed.
	ESPSize int64 `json:"esp_size,omitempty"`
	// LeastESP is the smallest that an installation of a release before has made, as far
	// as its builder knew; 0 stands for ESPSize.
	LeastESP int64 `json:"least_esp,omitempty"`
}

// ESP is the size in bytes of the EFI system partition that an installation makes.
func (a Abilities) ESP() int64 { return cmp.Or(a.ESPSize, layout.ESPSize) }

// SmallestESP is the size in bytes of the smallest that a machine may have which
// takes the release as an update.
func (a Abilities) SmallestESP() int64 { return min(a.ESP(), cmp.Or(a.LeastESP, a.ESP())) }

// WithESP returns the abilities with the size of the partition and of the smallest one
// before it.
func (a Abilities) WithESP(size, least int64) Abilities {
	a.ESPSize, a.LeastESP = 0, 0
	if size != layout.ESPSize {
		a.ESPSize = size
	}
	if least < size {
		a.LeastESP = least
	}
	return a
}

// validESP reports whether a size, where it is given, is one that a disk can have.
func validESP(size int64) bool { return size == 0 || layout.ValidESP(size) }

// Own are the abilities of this source tree; policy.RecordNewest is checked against
// them by a test.
func Own() Abilities {
	return Abilities{PolicyRecord: 2, NewSecret: 4, Revocations: true, Beside: true, Others: true, Grow: true}
}

// before are the abilities of releases that say nothing of them.
func before() Abilities { return Abilities{PolicyRecord: 1} }

// maxAbilities bounds the file in bytes.
const maxAbilities = 4 << 10

// AbilitiesFromInitrd reads them from a UKI's .initrd section. What cannot be read
// counts as a release that says nothing: less is then expected of it.
func AbilitiesFromInitrd(initrd []byte) Abilities {
	end, err := endOfFirst(initrd)
	if err != nil {
		return before()
	}
	rest := initrd[end:]
	rec, err := firstFile(rest)
	if err != nil || rec.Name != AbilitiesPath || rec.FileSize > maxAbilities {
		return before()
	}
	text := make([]byte, rec.FileSize)
	if _, err := rec.ReadAt(text, 0); err != nil && !errors.Is(err, io.EOF) {
		return before()
	}
	a := before()
	if strictjson.Unmarshal(text, &a) != nil || a.PolicyRecord < 1 || !validESP(a.ESPSize) || !validESP(a.LeastESP) {
		return before()
	}
	return a
}

// endOfFirst is where the first archive ends, with the zeros that follow it.
func endOfFirst(initrd []byte) (int, error) {
	rec, err := firstFile(initrd)
	if err != nil {
		return 0, err
	}
	at := (rec.FilePos + int64(rec.FileSize) + 3) &^ 3
	if at > int64(len(initrd)) {
		return 0, io.ErrUnexpectedEOF
	}
	// The trailer is a record of a fixed form, whose inode alone differs.
	const header, name = 110, "TRAILER!!!\x00"
	trailer := initrd[at:]
	if len(trailer) < header+len(name) || string(trailer[header:header+len(name)]) != name {
		return 0, fmt.Errorf("the archive at byte 0 has more than %q", rec.Name)
	}
	end := (int(at) + header + len(name) + archiveAlign - 1) &^ (archiveAlign - 1)
	if end > len(initrd) || len(bytes.Trim(initrd[int(at)+header+len(name):end], "\x00")) > 0 {
		return 0, io.ErrUnexpectedEOF
	}
	return end, nil
}

// archiveAlign is the size in bytes that each archive is padded to.
const archiveAlign = 512

// archive is an uncompressed cpio archive with one file, padded so that another can
// follow.
func archive(name string, content []byte) ([]byte, error) {
	var out bytes.Buffer
	w := cpio.Newc.Writer(&out)
	records := []cpio.Record{cpio.Directory(path.Dir(name), 0o755), cpio.StaticFile(name, string(content), 0o444)}
	if err := cpio.WriteRecords(w, records); err != nil {
		return nil, fmt.Errorf("write %s: %w", name, err)
	}
	if err := cpio.WriteTrailer(w); err != nil {
		return nil, fmt.Errorf("end archive of %s: %w", name, err)
	}
	if rest := out.Len() % archiveAlign; rest != 0 {
		out.Write(make([]byte, archiveAlign-rest))
	}
	return out.Bytes(), nil
}
