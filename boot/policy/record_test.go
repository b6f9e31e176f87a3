package policy

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"reflect"
	"slices"
	"testing"

	"halogenos.internal/boot/contract"
)

func full(n int) *Record {
	r := &Record{Floor: 3, Volume: sum("volume")}
	for i := range n {
		r.Branches = append(r.Branches, Branch{Policy: sum(string(rune('a' + i))), Version: uint64(20 + i), Epoch: 3})
	}
	return r
}

// over4 is a record of version 2.
func over4(n int) *Record {
	r := full(n)
	r.Programs, r.Branches[n-1].Passing = true, true
	return r
}

func TestRecordRoundTrip(t *testing.T) {
	for n := range 2 * MaxBranches {
		r := full(n/2 + 1)
		if n%2 == 1 {
			r = over4(n/2 + 1)
		}
		b, err := r.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if len(b) != RecordSize || len(b) > 512 {
			t.Errorf("%d bytes, want %d and no more than 512", len(b), RecordSize)
		}
		or, err := OR(r.Digests())
		if err != nil || binary.BigEndian.Uint16(b) != 0x000B || !bytes.Equal(b[2:34], or[:]) {
			t.Errorf("it begins with %x, want a TPMT_HA of %s (%v)", b[:34], or, err)
		}
		back, err := DecodeRecord(b)
		if err != nil || !reflect.DeepEqual(back, r) {
			t.Errorf("%+v, %v, want %+v", back, err, r)
		}
	}
}

func TestRecordRefuses(t *testing.T) {
	for name, change := range map[string]func(*Record){
		"no branch":            func(r *Record) { r.Branches = nil },
		"nine branches":        func(r *Record) { r.Branches = full(9).Branches },
		"a branch twice":       func(r *Record) { r.Branches[1].Policy = r.Branches[0].Policy },
		"below the floor":      func(r *Record) { r.Branches[1].Epoch = 2 },
		"version too large":    func(r *Record) { r.Branches[1].Version = 1 << 63 },
		"passing in version 1": func(r *Record) { r.Branches[1].Passing = true },
		"manager too large":    func(r *Record) { r.Manager = 1 << 63 },
		"the manager's branch": func(r *Record) { r.Branches[1].Policy = managerPolicy },
		"PCR 4, no volume":     func(r *Record) { r.Programs, r.Volume = true, [32]byte{} },
	} {
		r := full(2)
		change(r)
		if _, err := r.Encode(); !errors.Is(err, ErrRecord) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// reseal makes a changed record's checksum right again.
func reseal(b []byte) []byte {
	s := sha256.Sum256(b[:recordSum])
	copy(b[recordSum:], s[:])
	return b
}

func TestDecodeRecordRefuses(t *testing.T) {
	good, err := full(3).Encode()
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(b []byte) []byte{
		"nothing":            func([]byte) []byte { return nil },
		"a byte short":       func(b []byte) []byte { return b[1:] },
		"a byte more":        func(b []byte) []byte { return append(b, 0) },
		"zeros":              func([]byte) []byte { return make([]byte, RecordSize) },
		"erased flash":       func([]byte) []byte { return bytes.Repeat([]byte{0xff}, RecordSize) },
		"magic":              func(b []byte) []byte { b[recordMagic]++; return reseal(b) },
		"version":            func(b []byte) []byte { b[recordVersion+1] = 3; return reseal(b) },
		"algorithm":          func(b []byte) []byte { b[1]++; return reseal(b) },
		"policy":             func(b []byte) []byte { b[recordDigest]++; return reseal(b) },
		"a branch":           func(b []byte) []byte { b[recordBranches]++; return reseal(b) },
		"count 0":            func(b []byte) []byte { b[recordCount] = 0; return reseal(b) },
		"count 2":            func(b []byte) []byte { b[recordCount] = 2; return reseal(b) },
		"count 8":            func(b []byte) []byte { b[recordCount] = 8; return reseal(b) },
		"count 9":            func(b []byte) []byte { b[recordCount] = 9; return reseal(b) },
		"count 255":          func(b []byte) []byte { b[recordCount] = 255; return reseal(b) },
		"PCR 4 in version 1": func(b []byte) []byte { b[recordOver] = overPrograms; return reseal(b) },
		"an unknown PCR":     func(b []byte) []byte { b[recordOver] = 2; return reseal(b) },
		"version 2, no PCR":  func(b []byte) []byte { b[recordVersion+1] = 2; return reseal(b) },
		"passing, version 1": func(b []byte) []byte { b[recordBranches+32] |= 0x80; return reseal(b) },
		"unused room in use": func(b []byte) []byte { b[recordBranches+3*branchSize]++; return reseal(b) },
		"epoch under floor":  func(b []byte) []byte { b[recordFloor+7] = 4; return reseal(b) },
		"torn floor":         func(b []byte) []byte { b[recordFloor+7] = 0; return b },
		"torn volume":        func(b []byte) []byte { b[recordVolume] ^= 1; return b },
	} {
		if r, err := DecodeRecord(change(bytes.Clone(good))); !errors.Is(err, ErrRecord) {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
}

// Records as machines have them: what an earlier release has written is read, and
// what it could not read differs in its version alone.
func TestRecordGolden(t *testing.T) {
	for _, c := range []struct {
		r           *Record
		head, tails string
	}{
		{full(2), "48414c52" + "0001" + "0002" + "0000000000000003", "0000000000000014"},
		{over4(2), "48414c52" + "0002" + "0102" + "0000000000000003", "0000000000000014"},
	} {
		b, err := c.r.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if got := hex.EncodeToString(b[recordMagic:recordVolume]); got != c.head {
			t.Errorf("the head is %s, want %s", got, c.head)
		}
		if got := hex.EncodeToString(b[recordBranches+32:][:8]); got != c.tails {
			t.Errorf("the first branch's version is %s, want %s", got, c.tails)
		}
	}
	if able := contract.Own().PolicyRecord; able != RecordNewest {
		t.Errorf("UKIs say that they read version %d, this program reads %d", able, RecordNewest)
	}
	b, err := over4(2).Encode()
	if err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(b[recordBranches+branchSize+32:][:8]); got != "8000000000000015" {
		t.Errorf("a passing branch's version is %s", got)
	}
}

// Whose boot manager the machine has stands in one more branch: what an earlier release
// reads is a system that cannot be started. A full record has no room for it, and a boot
// makes some.
func TestRecordManager(t *testing.T) {
	for _, r := range []*Record{full(1), over4(2), over4(MaxBranches)} {
		n := len(r.Branches)
		r.TakeManager(7, Boot{})
		r.TakeManager(3, Boot{})
		if r.Manager != 7 || len(r.Branches) != min(n, MaxBranches-1) {
			t.Fatalf("%d branches and version %d", len(r.Branches), r.Manager)
		}
		b, err := r.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if back, err := DecodeRecord(b); err != nil || !reflect.DeepEqual(back, r) {
			t.Errorf("%+v, %v, want %+v", back, err, r)
		}
		if or, err := OR(r.Digests()); err != nil || len(r.Digests()) != len(r.Branches)+1 || !bytes.Equal(b[2:34], or[:]) {
			t.Errorf("it begins with %x, want a TPMT_HA of %s (%v)", b[:34], or, err)
		}
		at := b[recordBranches+len(r.Branches)*branchSize:]
		if int(b[recordCount]) != len(r.Branches)+1 || Digest(at[:32]) != managerPolicy ||
			hex.EncodeToString(at[32:48]) != "0000000000000007ffffffffffffffff" || binary.BigEndian.Uint16(b[recordVersion:]) != r.version() {
			t.Errorf("%d branches, the last one %x", b[recordCount], at[:branchSize])
		}
		for name, at := range map[string]int{"version 0": 39, "another epoch": 47, "passing": 32} {
			bad := bytes.Clone(b)
			p := &bad[recordBranches+len(r.Branches)*branchSize+at]
			*p = map[bool]byte{true: *p | 0x80, false: 0}[at == 32]
			if got, err := DecodeRecord(reseal(bad)); !errors.Is(err, ErrRecord) {
				t.Errorf("%s: %+v, %v", name, got, err)
			}
		}
	}
	r := full(MaxBranches)
	r.Manager = 7
	b, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if back, err := DecodeRecord(b); err != nil || back.Manager != 0 || len(back.Branches) != MaxBranches {
		t.Errorf("%+v, %v", back, err)
	}
}

// What makes room for the boot manager's branch is not a system's only boot: of a fallback
// with another stub nobody knows which of two is the real one.
func TestRecordManagerRoom(t *testing.T) {
	boots := func(from, n int) (out []Boot) {
		for i := range n {
			out = append(out, bootOf(byte(from+i), byte(from+i)))
		}
		return out
	}
	for _, c := range []struct{ running, fallback, lost int }{{2, 2, 1}, {1, 3, 2}, {3, 1, 1}} {
		mine := System{Version: 2, Epoch: 5, Boots: boots(10, c.running), Passing: boots(20, c.running)}
		other := System{Version: 1, Epoch: 5, Boots: boots(30, c.fallback), Passing: boots(40, c.fallback)}
		r, err := Compose(5, [32]byte{1}, true, mine, other)
		if err != nil || len(r.Branches) != MaxBranches {
			t.Fatalf("%d branches, %v", len(r.Branches), err)
		}
		before, whole := slices.Clone(r.Branches), slices.Clone(r.Branches)
		r.TakeManager(2, mine.Boots[0])
		gone := slices.DeleteFunc(before, func(b Branch) bool { return slices.Contains(r.Branches, b) })
		want := map[int]System{1: mine, 2: other}[c.lost]
		if n := len(want.Passing); len(gone) != 1 || gone[0].Policy != want.Passing[n-1].branch(true) {
			t.Errorf("%+v: %+v went, want the last boot of version %d", c, gone, want.Version)
		}
		// What runs stays, by whichever boot manager it came up.
		for _, runs := range slices.Concat(mine.Boots, mine.Passing) {
			r.Branches, r.Manager = slices.Clone(whole), 0
			if r.TakeManager(2, runs); !r.Allows(&runs) || len(r.Branches) != MaxBranches-1 {
				t.Errorf("%+v: the running boot went, or nothing did: %d branches", c, len(r.Branches))
			}
		}
	}
}

// A write that a TPM tore in two, at any byte, is never taken for a record
// unless it is the old one or the new one.
func TestTornRecord(t *testing.T) {
	before, err := full(2).Encode()
	if err != nil {
		t.Fatal(err)
	}
	after, err := over4(3).Encode() // the first of version 2
	if err != nil {
		t.Fatal(err)
	}
	for cut := range RecordSize {
		torn := append(bytes.Clone(after[:cut]), before[cut:]...)
		_, err := DecodeRecord(torn)
		if whole := bytes.Equal(torn, before) || bytes.Equal(torn, after); (err == nil) != whole {
			t.Errorf("cut at %d: %v", cut, err)
		}
	}
}

func TestRecordRules(t *testing.T) {
	b := sample()
	r := &Record{Floor: 1, Volume: sum("volume"), Branches: []Branch{{Policy: b.Branch(), Epoch: 1}}}
	if !r.Allows(&b) {
		t.Error("its own boot is not allowed")
	}
	b.PCR15[3] = 1
	if r.Allows(&b) {
		t.Error("an unlocked boot is allowed")
	}
	higher := &Record{Floor: 2, Volume: r.Volume}
	if err := higher.Succeeds(r); err != nil {
		t.Error(err)
	}
	if err := r.Succeeds(higher); !errors.Is(err, ErrRecord) {
		t.Errorf("the floor fell: %v", err)
	}
	if err := (&Record{Floor: 9, Volume: sum("x")}).Succeeds(r); !errors.Is(err, ErrRecord) {
		t.Errorf("another volume: %v", err)
	}
}

// A provisional record allows a boot whatever its PCR 7 holds, and is followed
// by one for whichever volume was made.
func TestProvisionalRecord(t *testing.T) {
	b := sample()
	over, err := b.BranchOver(Provisional())
	if err != nil {
		t.Fatal(err)
	}
	r := &Record{Branches: []Branch{{Policy: over}}}
	b.PCR7[0] ^= 1
	if !r.Provisional() || !r.Allows(&b) {
		t.Error("another PCR 7 is not allowed")
	}
	for n, change := range map[int]func(*Boot){
		11: func(b *Boot) { b.PCR11[0] ^= 1 }, 12: func(b *Boot) { b.PCR12[0] ^= 1 },
		13: func(b *Boot) { b.PCR13[0] ^= 1 }, 15: func(b *Boot) { b.PCR15[0] ^= 1 },
	} {
		other := b
		if change(&other); r.Allows(&other) {
			t.Errorf("another PCR %d is allowed", n)
		}
	}
	full := &Record{Volume: sum("volume"), Branches: []Branch{{Policy: b.Branch()}}}
	if err := full.Succeeds(r); err != nil {
		t.Error(err)
	}
	if err := r.Succeeds(full); !errors.Is(err, ErrRecord) {
		t.Errorf("a full record became provisional: %v", err)
	}
}

func FuzzDecodeRecord(f *testing.F) {
	for _, n := range []int{1, 3, MaxBranches} {
		b, err := full(n).Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, true)
	}
	b, err := over4(MaxBranches).Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b, true)
	f.Add([]byte{}, false)
	f.Fuzz(func(t *testing.T, b []byte, fix bool) {
		if fix && len(b) == RecordSize { // get past the checksum
			reseal(b)
		}
		r, err := DecodeRecord(b)
		if err != nil {
			return
		}
		again, err := r.Encode()
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("%x encodes as %x, %v", b, again, err)
		}
	})
}
