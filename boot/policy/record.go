package policy

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
)

// RecordSize is the size of the NV index in bytes. All of it is written by one
// TPM2_NV_Write, so it must not exceed the TPM's MAX_NV_BUFFER_SIZE (at least
// 512 on the PC Client TPMs that are sold; asked before the index is defined).
const RecordSize = recordSum + sha256.Size

// Offsets in a record; integers are big-endian, as everything in a TPM is.
const (
	recordDigest   = 2  // digest of the TPMT_HA, after its algorithm
	recordMagic    = 34 // "HALR"
	recordVersion  = 38 // uint16
	recordOver     = 40 // byte: which PCRs the branches are over, besides; 0 in version 1
	recordCount    = 41 // byte: branches in use
	recordFloor    = 42 // uint64
	recordVolume   = 50 // 32 bytes
	recordBranches = 82 // MaxBranches of them
	branchSize     = sha256.Size + 8 + 8
	recordSum      = recordBranches + MaxBranches*branchSize // SHA-256 of all before it

	recordMagicText = "HALR"

	overPrograms = 0x01    // of recordOver: PCR 4
	passingBit   = 1 << 63 // of a branch's version, which has 63 bits

	recordVersion1 = 1 // over [WithoutPrograms], or [Provisional]
	// recordVersion2 is over PCR 4 as well, and has branches that are passing. An
	// initagent that knows version 1 alone takes it for damage, so that it is
	// written only where no such system may be started any more.
	recordVersion2 = 2
)

// RecordNewest is the newest version of the record that this program reads.
const RecordNewest = recordVersion2

// managerPolicy stands in a branch that is not a boot: its version is [Record.Manager]. No
// session has this digest, which is that of a text. An initagent that does not know it
// takes the branch for a system, and drops it once that system cannot be started.
var managerPolicy = Digest(sha256.Sum256([]byte("halogen: the newest release that has put its boot manager in place")))

// ErrRecord is wrapped by every refusal to decode a record.
var ErrRecord = errors.New("policy record")

// Branch is one boot that the record allows, by the policy digest of its PCRs.
type Branch struct {
	Policy  Digest // of [Boot.Branch]
	Version uint64 // of the release, for people and for picking what to drop
	Epoch   uint64 // of the release; not below the record's floor
	// Passing: it is a boot by a boot manager that is being replaced. It goes once
	// the new one has started a system and nothing of the old one is left.
	Passing bool
}

// Record is the content of the NV index. Its first 34 bytes are the TPMT_HA
// that TPM2_PolicyAuthorizeNV compares the session with: the policy OR over the
// branches. What follows is for initagent, which needs the branches to satisfy
// that OR; the TPM does not look at it.
//
// A record without a volume is provisional: it stands from the first boot, which
// makes the Secure Boot keys, to the second, which makes the volume. Its
// branches leave PCR 7 out, since no firmware can be trusted to measure what was
// predicted for keys it has never seen, and the machine would be lost if it did
// not. Nothing but the new keys is at stake then; and since an object sealed to
// the index obeys whatever record is there, the first full record shuts that
// door for good.
type Record struct {
	Floor    uint64   // lowest epoch that any allowed boot has
	Volume   [32]byte // VolumeFingerprint of the root partition; zero while there is none
	Programs bool     // the branches are over PCR 4, too
	Branches []Branch // 1 to MaxBranches, no two alike
	// Manager is the version of the newest release that has put its boot manager in
	// place, and 0 where that is not known. A record with MaxBranches has no room for it.
	Manager uint64
}

// TakeManager notes that a release puts its boot manager in place. It never goes back. The
// system with the most boots, of two alike the running one, which is the first, gives up
// its least likely for it, but not the boot that runs: of another system's boots nobody
// knows which is the real one.
func (r *Record) TakeManager(version uint64, runs Boot) {
	r.Manager = max(r.Manager, version)
	if r.Manager == 0 || len(r.Branches) < MaxBranches {
		return
	}
	now, err := runs.BranchOver(r.PCRs())
	boots, last := map[uint64]int{}, map[uint64]int{}
	for i, b := range r.Branches {
		boots[b.Version]++
		if err != nil || b.Policy != now {
			last[b.Version] = i
		}
	}
	most := r.Branches[0].Version
	for _, b := range r.Branches {
		if boots[b.Version] > boots[most] {
			most = b.Version
		}
	}
	at, ok := last[most]
	if !ok { // as many systems as boots
		at = len(r.Branches) - 1
	}
	r.Branches = slices.Delete(slices.Clone(r.Branches), at, at+1)
}

// written are the branches as they are encoded.
func (r *Record) written() []Branch {
	if r.Manager == 0 || len(r.Branches) >= MaxBranches {
		return r.Branches
	}
	return append(slices.Clip(r.Branches), Branch{Policy: managerPolicy, Version: r.Manager, Epoch: math.MaxUint64})
}

// Provisional reports whether there is no volume yet.
func (r *Record) Provisional() bool { return r.Volume == [32]byte{} }

// PCRs returns the registers that the branches are over.
func (r *Record) PCRs() []int {
	if r.Provisional() {
		return Provisional()
	}
	return registers(r.Programs)
}

// version is that of the encoding.
func (r *Record) version() uint16 {
	if r.Programs {
		return recordVersion2
	}
	return recordVersion1
}

// Validate refuses a record that must not be written: without a branch, with
// too many, with one twice, or with one below the floor.
func (r *Record) Validate() error {
	if n := len(r.Branches); n == 0 || n > MaxBranches {
		return fmt.Errorf("%w: %d branches, want 1 to %d", ErrRecord, n, MaxBranches)
	}
	if r.Programs && r.Provisional() {
		return fmt.Errorf("%w: PCR 4 is bound before there is a volume", ErrRecord)
	}
	if r.Manager >= passingBit {
		return fmt.Errorf("%w: version %d of the boot manager cannot be encoded", ErrRecord, r.Manager)
	}
	for i, b := range r.Branches {
		if b.Policy == managerPolicy {
			return fmt.Errorf("%w: version %d is not a boot", ErrRecord, b.Version)
		}
		if b.Version >= passingBit || b.Passing && !r.Programs {
			return fmt.Errorf("%w: version %d, passing %v, cannot be encoded", ErrRecord, b.Version, b.Passing)
		}
		if b.Epoch < r.Floor {
			return fmt.Errorf("%w: version %d has epoch %d, the floor is %d", ErrRecord, b.Version, b.Epoch, r.Floor)
		}
		for _, o := range r.Branches[:i] {
			if o.Policy == b.Policy {
				return fmt.Errorf("%w: versions %d and %d have the same policy", ErrRecord, o.Version, b.Version)
			}
		}
	}
	return nil
}

// Digests returns the policy digests that the TPM compares with, in their order.
func (r *Record) Digests() []Digest {
	branches := r.written()
	out := make([]Digest, len(branches))
	for i, b := range branches {
		out[i] = b.Policy
	}
	return out
}

// Allows reports whether the record has a branch for this boot.
func (r *Record) Allows(b *Boot) bool {
	want, err := b.BranchOver(r.PCRs())
	if err != nil {
		return false
	}
	for _, have := range r.Branches {
		if have.Policy == want {
			return true
		}
	}
	return false
}

// Succeeds refuses a record that must not replace an older one: a floor never
// falls, and the volume stays the same once there is one.
func (r *Record) Succeeds(old *Record) error {
	if r.Floor < old.Floor {
		return fmt.Errorf("%w: floor %d would replace floor %d", ErrRecord, r.Floor, old.Floor)
	}
	if r.Volume != old.Volume && !old.Provisional() {
		return fmt.Errorf("%w: it is for another volume than the one it would replace", ErrRecord)
	}
	return nil
}

// Encode returns the RecordSize bytes to write.
func (r *Record) Encode() ([]byte, error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	or, err := OR(r.Digests())
	if err != nil {
		return nil, err
	}
	b := make([]byte, RecordSize)
	be := binary.BigEndian
	be.PutUint16(b, algSHA256)
	copy(b[recordDigest:], or[:])
	copy(b[recordMagic:], recordMagicText)
	be.PutUint16(b[recordVersion:], r.version())
	if r.Programs {
		b[recordOver] = overPrograms
	}
	branches := r.written()
	b[recordCount] = byte(len(branches))
	be.PutUint64(b[recordFloor:], r.Floor)
	copy(b[recordVolume:], r.Volume[:])
	for i, branch := range branches {
		p := b[recordBranches+i*branchSize:]
		copy(p, branch.Policy[:])
		version := branch.Version
		if branch.Passing {
			version |= passingBit
		}
		be.PutUint64(p[sha256.Size:], version)
		be.PutUint64(p[sha256.Size+8:], branch.Epoch)
	}
	sum := sha256.Sum256(b[:recordSum])
	copy(b[recordSum:], sum[:])
	return b, nil
}

// DecodeRecord takes back what Encode returned and nothing else. The checksum
// finds what a TPM that lost power during the write may have left.
func DecodeRecord(b []byte) (*Record, error) {
	if len(b) != RecordSize {
		return nil, fmt.Errorf("%w: %d bytes, want %d", ErrRecord, len(b), RecordSize)
	}
	be := binary.BigEndian
	if string(b[recordMagic:recordVersion]) != recordMagicText {
		return nil, fmt.Errorf("%w: magic %q, want %q", ErrRecord, b[recordMagic:recordVersion], recordMagicText)
	}
	if v := be.Uint16(b[recordVersion:]); v != recordVersion1 && v != recordVersion2 {
		newer := ""
		if v > recordVersion2 {
			newer = ": a newer system has written it, which is the one to start"
		}
		return nil, fmt.Errorf("%w: version %d, want %d or %d%s", ErrRecord, v, recordVersion1, recordVersion2, newer)
	}
	if sum := sha256.Sum256(b[:recordSum]); !bytes.Equal(sum[:], b[recordSum:]) {
		return nil, fmt.Errorf("%w: checksum does not match: a write was cut, or something else wrote it", ErrRecord)
	}
	n := int(b[recordCount])
	if n > MaxBranches {
		return nil, fmt.Errorf("%w: %d branches, want 1 to %d", ErrRecord, n, MaxBranches)
	}
	r := &Record{Floor: be.Uint64(b[recordFloor:]), Programs: b[recordOver] == overPrograms}
	copy(r.Volume[:], b[recordVolume:])
	for i := range n {
		p := b[recordBranches+i*branchSize:]
		version := be.Uint64(p[sha256.Size:])
		r.Branches = append(r.Branches, Branch{
			Policy:  Digest(p[:sha256.Size]),
			Version: version &^ passingBit,
			Epoch:   be.Uint64(p[sha256.Size+8:]),
			Passing: version&passingBit != 0,
		})
	}
	if n > 0 && r.Branches[n-1].Policy == managerPolicy {
		r.Manager, r.Branches = r.Branches[n-1].Version, r.Branches[:n-1]
	}
	// Encoding again checks what is left: the rules of Validate, the TPMT_HA
	// against the branches, that version and PCRs fit, and that unused room is zero.
	again, err := r.Encode()
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(again, b) {
		return nil, fmt.Errorf("%w: the policy digest is not that of its branches, or unused room is not zero", ErrRecord)
	}
	return r, nil
}
