package rootpart

import (
	"bytes"
	"crypto/aes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strconv"
	"testing"

	"golang.org/x/crypto/xts"

	"halogenos.internal/boot/block"
	"halogenos.internal/boot/blocktest"
	"halogenos.internal/boot/bootflow"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/policy"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootlock"
)

// The machine of these tests: a disk with only the partition that matters, and a
// user's file, a file system image, which lies at byte fileAt of the volume.
const (
	diskSize   = 96 << 20
	sector     = 512
	rootStart  = 8 << 20
	rootSize   = 48 << 20
	headerArea = luks2.DataOffset
	fileAt     = 4 << 20
	fileSize   = 64 << 10
)

// attacked is a disk in the hands of somebody who has stored a file on it before.
// They have no key: crypt and key are what the test looks with.
type attacked struct {
	t    *testing.T
	disk *blocktest.Disk
	file []byte // what they have stored
	key  []byte // the volume key
}

// random repeats itself.
func random(seed byte) io.Reader { return rand.NewChaCha8([32]byte{seed}) }

func newAttacked(t *testing.T) *attacked {
	t.Helper()
	a := &attacked{t: t, disk: blocktest.New(diskSize, blocktest.Zero), file: make([]byte, fileSize)}
	a.writeTable(rootStart, rootSize)
	secret, err := policy.NewSecret(random(1))
	a.must(err)
	recovery, err := luks2.NewRecoveryKey(random(2))
	a.must(err)
	lock, key, err := rootlock.Make(random(3), a.partition(), rootlock.Options{
		UUID: "01234567-89ab-cdef-0123-456789abcdef", Size: rootSize, Memory: 64 << 10, CPUs: 1, Secret: secret, Recovery: &recovery,
	})
	a.must(err)
	a.must(lock.Finish(random(4), a.partition()))
	a.key = key
	_, err = io.ReadFull(random(5), a.file)
	a.must(err)
	binary.LittleEndian.PutUint16(a.file[1080:], 0xef53) // ext4's
	a.storeFile(a.file)
	return a
}

func (a *attacked) must(err error) {
	a.t.Helper()
	if err != nil {
		a.t.Fatal(err)
	}
}

// writeTable makes a partition table whose root partition lies there.
func (a *attacked) writeTable(start, size int64) {
	a.t.Helper()
	table := &gpt.Table{Disk: gpt.GUID{1}, SectorSize: sector, Sectors: diskSize / sector, Partitions: []gpt.Partition{{
		Number: 6, Type: layout.TypeLUKS, UUID: gpt.GUID{2}, Label: layout.RootLabel,
		First: uint64(start / sector), Last: uint64((start+size)/sector - 1),
	}}}
	a.must(table.Write(a.disk))
}

func (a *attacked) table() *gpt.Table {
	a.t.Helper()
	table, _, err := gpt.Read(a.disk, diskSize/sector, sector)
	a.must(err)
	return table
}

func (a *attacked) partition() *block.Section {
	a.t.Helper()
	p, err := layout.Find(a.table(), layout.Root)
	if err != nil {
		a.t.Fatal(err)
	}
	s, err := block.NewSection(a.disk, int64(p.First)*sector, int64(p.Sectors())*sector)
	a.must(err)
	return s
}

// storeFile is the running system that stores content in the file.
func (a *attacked) storeFile(content []byte) {
	a.t.Helper()
	b := bytes.Clone(content)
	a.crypt(b, fileAt/512, luks2.CryptSector, (*xts.Cipher).Encrypt)
	_, err := a.disk.WriteAt(b, rootStart+headerArea+fileAt)
	a.must(err)
}

// crypt is what the kernel's crypt target does to sectors of that size from the
// tweak on (aes-xts-plain64, the tweak counting units of 512 bytes).
func (a *attacked) crypt(b []byte, tweak uint64, size int, do func(c *xts.Cipher, dst, src []byte, n uint64)) {
	a.t.Helper()
	c, err := xts.NewCipher(aes.NewCipher, a.key)
	a.must(err)
	for at := 0; at < len(b); at += size {
		do(c, b[at:at+size], b[at:at+size], tweak+uint64(at/512))
	}
}

// mapped returns length bytes of what the kernel would show for a table entry:
// data from offset on, whose first sector has that tweak.
func (a *attacked) mapped(offset, length int64, tweak uint64, size int) []byte {
	a.t.Helper()
	b := make([]byte, length)
	_, err := a.partition().ReadAt(b, offset)
	a.must(err)
	a.crypt(b, tweak, size, (*xts.Cipher).Decrypt)
	return b
}

// readable are the places in b, in units of 512 bytes, where the file's content
// can be read.
func (a *attacked) readable(b []byte) (places []int) {
	known := map[[512]byte]bool{}
	for at := 0; at < len(a.file); at += 512 {
		known[[512]byte(a.file[at:])] = true
	}
	for at := 0; at < len(b); at += 512 {
		if known[[512]byte(b[at:])] {
			places = append(places, at/512)
		}
	}
	return places
}

// editHeader changes the metadata in both copies of the header, with good
// checksums and a higher sequence number.
func (a *attacked) editHeader(edit func(meta map[string]any)) {
	a.t.Helper()
	for _, off := range []int64{0, 16 << 10} {
		a.editCopy(off, edit, nil)
	}
}

func (a *attacked) editCopy(off int64, edit func(meta map[string]any), binaryEdit func(b []byte)) {
	a.t.Helper()
	part := a.partition()
	b := make([]byte, 16<<10)
	_, err := part.ReadAt(b, off)
	a.must(err)
	if edit != nil {
		text, _, _ := bytes.Cut(b[4096:], []byte{0})
		var meta map[string]any
		a.must(json.Unmarshal(text, &meta))
		edit(meta)
		text, err = json.Marshal(meta)
		a.must(err)
		clear(b[4096:])
		copy(b[4096:], text)
	}
	binary.BigEndian.PutUint64(b[16:], binary.BigEndian.Uint64(b[16:])+1)
	if binaryEdit != nil {
		binaryEdit(b)
	}
	clear(b[448:512])
	sum := sha256.Sum256(b)
	copy(b[448:], sum[:])
	_, err = part.WriteAt(b, off)
	a.must(err)
}

// copyBytes copies from one place of the disk to another.
func (a *attacked) copyBytes(from, to, length int64) {
	a.t.Helper()
	b := make([]byte, length)
	_, err := a.disk.ReadAt(b, from)
	a.must(err)
	_, err = a.disk.WriteAt(b, to)
	a.must(err)
}

// moved gives the partition another start, by that many bytes, with the header
// there; what was on the disk besides stays where it is.
func (a *attacked) moved(by, grow int64) {
	a.t.Helper()
	head := make([]byte, headerArea)
	_, err := a.partition().ReadAt(head, 0)
	a.must(err)
	a.writeTable(rootStart+by, rootSize-by+grow)
	_, err = a.partition().WriteAt(head, 0)
	a.must(err)
}

// onlyRoot implements hw.Disks for the attacked disk, as the kernel would see it.
type onlyRoot struct {
	hw.Disks
	a *attacked
}

type closer struct{ block.Device }

func (closer) Close() error { return nil }

func (o onlyRoot) OpenPartition(hw.Disk, layout.Role, bool) (hw.File, error) {
	return closer{o.a.partition()}, nil
}

func (o onlyRoot) PartitionPath(hw.Disk, layout.Role) (string, error) {
	return "/dev/root-partition", nil
}

type anyModule struct{ hw.Kernel }

func (anyModule) Load(...string) error { return nil }

// told implements hw.Mapper and keeps what the kernel is told.
type told struct {
	hw.Mapper
	crypt *hw.Crypt
}

func (m *told) OpenCrypt(c hw.Crypt) (string, error) { m.crypt = &c; return "/dev/dm-0", nil }

// attach opens the volume as the boot and the recovery console do, and returns
// what the kernel is told.
func (a *attacked) attach() (*hw.Crypt, error) {
	a.t.Helper()
	root, lock, err := Look(onlyRoot{a: a}, hw.Disk{}, a.table())
	if err != nil {
		return nil, err
	}
	if root != bootflow.RootLocked {
		return nil, fmt.Errorf("condition %v", root)
	}
	if err := lock.Header.VerifyVolumeKey(a.key); err != nil {
		return nil, err
	}
	m := new(told)
	_, err = Volume{Machine: hw.Machine{Disks: onlyRoot{a: a}, Kernel: anyModule{}, Mapper: m}, Lock: lock, Key: a.key}.Attach()
	return m.crypt, err
}

func segment0(meta map[string]any) map[string]any {
	return meta["segments"].(map[string]any)["0"].(map[string]any)
}

func set(name string, value any) func(map[string]any) {
	return func(meta map[string]any) { segment0(meta)[name] = value }
}

// Who has stored a file on the volume, knows where it lies, and holds the disk
// later cannot make its content appear anywhere but in that place: not by the
// LUKS2 header, and not by the partition table. FAULTS 86
func TestNothingOnTheDiskMovesData(t *testing.T) {
	const offset, tweak = "20971520", "8192" // of the file: headerArea + fileAt, fileAt / 512
	edited := func(edits ...func(map[string]any)) func(a *attacked) {
		return func(a *attacked) {
			a.editHeader(func(meta map[string]any) {
				for _, edit := range edits {
					edit(meta)
				}
			})
		}
	}
	for _, c := range []struct {
		name   string
		change func(a *attacked)
		opens  bool // the header says nothing else than it did
	}{
		{"nothing", func(*attacked) {}, true},
		{"offset and tweak", edited(set("offset", offset), set("iv_tweak", tweak)), false},
		{"offset", edited(set("offset", offset)), false},
		{"tweak", edited(set("iv_tweak", tweak)), false},
		{"offset by a sector", edited(set("offset", "16781312"), set("iv_tweak", "8")), false},
		{"sectors of 512", edited(set("sector_size", 512)), false},
		{"sectors of 512 elsewhere", edited(set("offset", offset), set("iv_tweak", tweak), set("sector_size", 512)), false},
		{"sectors without a size", edited(func(m map[string]any) { delete(segment0(m), "sector_size") }), false},
		{"a size", edited(set("size", strconv.Itoa(fileSize))), false},
		{"another cipher", edited(set("encryption", "aes-xts-plain")), false},
		{"a tweak of large sectors", edited(set("encryption", "aes-xts-plain64be")), false},
		{"no cipher", edited(set("encryption", "cipher_null-ecb")), false},
		{"linear", edited(set("type", "linear")), false},
		{"flags of the segment", edited(set("flags", []any{"backup-final"})), false},
		{"integrity", edited(set("integrity", map[string]any{"type": "none", "journal_encryption": "none", "journal_integrity": "none"})), false},
		{"another number", edited(func(m map[string]any) { m["segments"] = map[string]any{"1": segment0(m)} }), false},
		{"two segments", edited(func(m map[string]any) {
			m["segments"].(map[string]any)["1"] = map[string]any{"type": "crypt", "offset": offset, "size": "dynamic", "iv_tweak": tweak, "encryption": luks2.Cipher, "sector_size": 4096}
		}), false},
		{"a requirement", edited(func(m map[string]any) {
			m["config"].(map[string]any)["requirements"] = map[string]any{"mandatory": []any{"online-reencrypt-v2"}}
		}), false},
		{"flags that are for cryptsetup", edited(func(m map[string]any) {
			m["config"].(map[string]any)["flags"] = []any{"allow-discards", "same-cpu-crypt", "no-read-workqueue"}
		}), true},
		{"keyslots area over the data", edited(func(m map[string]any) { m["config"].(map[string]any)["keyslots_size"] = "20938752" }), false},
		{"keys of 32 bytes", edited(func(m map[string]any) {
			for _, k := range m["keyslots"].(map[string]any) {
				k.(map[string]any)["key_size"] = 32
			}
		}), false},
		{"only the first copy", func(a *attacked) {
			a.editCopy(0, func(m map[string]any) { set("offset", offset)(m); set("iv_tweak", tweak)(m) }, nil)
		}, false},
		{"only the second copy", func(a *attacked) {
			a.editCopy(16<<10, func(m map[string]any) { set("offset", offset)(m); set("iv_tweak", tweak)(m) }, nil)
		}, false},
		{"the first copy is gone, the second is another", func(a *attacked) {
			a.editCopy(16<<10, func(m map[string]any) { set("offset", offset)(m); set("iv_tweak", tweak)(m) }, nil)
			_, err := a.partition().WriteAt(make([]byte, 4096), 0)
			a.must(err)
		}, false},
		{"larger copies", func(a *attacked) {
			for _, off := range []int64{0, 16 << 10} {
				a.editCopy(off, nil, func(b []byte) { binary.BigEndian.PutUint64(b[8:], 32<<10) })
			}
		}, false},
		{"a header that says it lies elsewhere", func(a *attacked) {
			for _, off := range []int64{0, 16 << 10} {
				a.editCopy(off, nil, func(b []byte) { binary.BigEndian.PutUint64(b[256:], uint64(off+fileAt)) })
			}
		}, false},
		// The partition table: a header that lies fileAt bytes later has the file at
		// the start of its data, and the tweaks are counted from there.
		{"the partition begins later", func(a *attacked) { a.moved(fileAt, 0) }, true},
		{"the partition begins a sector later", func(a *attacked) { a.moved(4096, 0) }, true},
		{"the partition begins earlier", func(a *attacked) { a.moved(-fileAt, 0) }, true},
		{"the partition begins later, header with it", func(a *attacked) {
			a.moved(fileAt, 0)
			a.editHeader(func(m map[string]any) { set("iv_tweak", tweak)(m) })
		}, false},
		{"the partition begins earlier, data moved back", func(a *attacked) {
			a.moved(-fileAt, 0)
			a.editHeader(func(m map[string]any) { set("offset", strconv.Itoa(headerArea+2*fileAt))(m) })
		}, false},
		{"the partition is shorter", func(a *attacked) { a.writeTable(rootStart, rootSize-fileAt) }, true},
		{"the partition is longer", func(a *attacked) { a.writeTable(rootStart, rootSize+fileAt) }, true},
		{"the file's sectors are copied to the start", func(a *attacked) {
			a.copyBytes(rootStart+headerArea+fileAt, rootStart+headerArea, fileSize)
		}, true},
		{"volume copied to another place", func(a *attacked) {
			a.copyBytes(rootStart, rootStart+32<<20, rootSize)
			a.writeTable(rootStart+32<<20, rootSize)
		}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := newAttacked(t)
			c.change(a)
			crypt, err := a.attach()
			if !c.opens {
				if !errors.Is(err, luks2.ErrUnsupported) && !errors.Is(err, luks2.ErrDamaged) || crypt != nil {
					t.Errorf("%v, the kernel is told %+v; want the header refused", err, crypt)
				}
				return
			}
			a.must(err)
			if crypt.Offset != headerArea || crypt.SectorSize != 4096 || crypt.Cipher != "aes-xts-plain64" {
				t.Errorf("the kernel is told %+v", crypt)
			}
			for _, place := range a.readable(a.mapped(crypt.Offset, crypt.Length, 0, crypt.SectorSize)) {
				if place < fileAt/512 || place >= (fileAt+fileSize)/512 {
					t.Errorf("the file can be read in sector %d, where it was not stored", place)
				}
			}
		})
	}
}

// What the test above looks for can be found: with the offset and the tweak of the
// file, which the header has no way to say any more, all of the file is read from
// the start of the mapping.
func TestMovedDataWouldBeRead(t *testing.T) {
	a := newAttacked(t)
	if got := a.mapped(headerArea+fileAt, fileSize, fileAt/512, 4096); !bytes.Equal(got, a.file) {
		t.Error("the attack does not work without the header's rules: the test proves nothing")
	}
	if got := a.readable(a.mapped(headerArea, rootSize-headerArea, 0, 4096)); len(got) != fileSize/512 || got[0] != fileAt/512 {
		t.Errorf("the file is read in sectors %v", got)
	}
	a.moved(fileAt, 0)
	if got := a.mapped(headerArea, fileSize, fileAt/512, 4096); !bytes.Equal(got, a.file) {
		t.Error("a moved partition with the tweak of the file does not show it")
	}
}

// What encryption without authentication does not stop, and initagent/THREATS.md
// says: who has copied a sector's ciphertext can put it back into that sector, no matter who
// has been given the place since.
func TestOldSectorsCanBePutBack(t *testing.T) {
	a := newAttacked(t)
	old := make([]byte, fileSize)
	_, err := a.disk.ReadAt(old, rootStart+headerArea+fileAt)
	a.must(err)
	a.storeFile(make([]byte, fileSize)) // somebody else's
	_, err = a.disk.WriteAt(old, rootStart+headerArea+fileAt)
	a.must(err)
	crypt, err := a.attach()
	a.must(err)
	if got := a.readable(a.mapped(crypt.Offset, crypt.Length, 0, crypt.SectorSize)); len(got) != fileSize/512 || got[0] != fileAt/512 {
		t.Errorf("the old content is read in sectors %v: THREATS.md says less than is so", got)
	}
}
