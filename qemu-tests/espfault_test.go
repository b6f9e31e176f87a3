package qemutests

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/layout"
	"halogenos.internal/builder/vm"
)

// An espFAT is the tables of the ESP's FAT32, as somebody writes them who cares for
// nothing (Microsoft FAT specification, 3 to 6).
type espFAT struct {
	*disk
	start    int64 // of the partition, in bytes
	boot     []byte
	reserved int64 // sectors before the first table
	size     int64 // of a table, in sectors
	clusters int
}

const (
	fatSector  = 512
	fatBad     = 0x0ffffff7
	fatMask    = 0x0fffffff
	fatDirty   = 0x41 // in the boot sector: was not unmounted
	infoSector = 1    // as mkfs.vfat and ours have it
	infoFree   = 488  // of the info sector: free clusters
	rootAt     = 44   // of the boot sector: first cluster of the root directory
	dirEntry   = 32   // bytes
)

// openFAT reads the ESP of a machine that is off.
func openFAT(t testing.TB, s vm.State) *espFAT {
	t.Helper()
	f := &espFAT{disk: openDisk(t, s.Disk(), os.O_RDWR), boot: make([]byte, fatSector)}
	f.start, _ = f.partition(layout.ESP)
	_, err := f.ReadAt(f.boot, f.start)
	must(t, err)
	le := binary.LittleEndian
	f.reserved, f.size = int64(le.Uint16(f.boot[14:])), int64(le.Uint32(f.boot[36:]))
	if le.Uint16(f.boot[11:]) != fatSector || f.boot[16] != 2 || le.Uint16(f.boot[48:]) != infoSector || string(f.boot[82:87]) != "FAT32" {
		t.Fatalf("the ESP is not FAT32 with two tables: % x", f.boot[:90])
	}
	f.clusters = int((int64(le.Uint32(f.boot[32:])) - f.reserved - 2*f.size) / int64(f.boot[13]))
	return f
}

// table is where the bytes of one of the two tables are.
func (f *espFAT) table(number int64) int64 {
	return f.start + (f.reserved+number*f.size)*fatSector
}

// change rewrites every entry of both tables.
func (f *espFAT) change(to func(cluster int, value uint32) uint32) {
	f.t.Helper()
	for number := range int64(2) {
		b := make([]byte, (f.clusters+2)*4)
		_, err := f.ReadAt(b, f.table(number))
		must(f.t, err)
		for c := 2; c < f.clusters+2; c++ {
			binary.LittleEndian.PutUint32(b[4*c:], to(c, binary.LittleEndian.Uint32(b[4*c:])&fatMask))
		}
		_, err = f.WriteAt(b, f.table(number))
		must(f.t, err)
	}
}

// fill leaves no cluster free.
func (f *espFAT) fill() {
	f.t.Helper()
	f.change(func(_ int, value uint32) uint32 {
		if value == 0 {
			return fatBad
		}
		return value
	})
	_, err := f.WriteAt(make([]byte, 4), f.start+infoSector*fatSector+infoFree)
	must(f.t, err)
}

// first is the first cluster of the file or directory at the end of a path of names as they are
// without long ones.
func (f *espFAT) first(path string) uint32 {
	f.t.Helper()
	cluster := binary.LittleEndian.Uint32(f.boot[rootAt:])
	for element := range strings.SplitSeq(path, "/") {
		base, ext, _ := strings.Cut(element, ".")
		want := fmt.Sprintf("%-8s%-3s", base, ext)
		perCluster := int64(f.boot[13]) * fatSector
		b := make([]byte, perCluster)
		_, err := f.ReadAt(b, f.table(2)+int64(cluster-2)*perCluster)
		must(f.t, err)
		at := slices.IndexFunc(slices.Collect(slices.Chunk(b, dirEntry)), func(entry []byte) bool { return string(entry[:11]) == want })
		if at < 0 {
			f.t.Fatalf("the ESP has no %s in %s", element, path)
		}
		entry := b[at*dirEntry:]
		cluster = uint32(binary.LittleEndian.Uint16(entry[20:]))<<16 | uint32(binary.LittleEndian.Uint16(entry[26:]))
	}
	return cluster
}

// TestESPDamaged: the ESP's file system is damaged where the firmware does not look. It
// boots, and what it needs is as it was.
// FAULTS 48
func TestESPDamaged(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		damage func(t *testing.T, f *espFAT)
	}{
		{"second table, info, dirty", func(t *testing.T, f *espFAT) {
			noise := []byte(strings.Repeat("\xa5\x5a\x00\xff", int(f.size)*fatSector/4))
			_, err := f.WriteAt(noise, f.table(1))
			must(t, err)
			_, err = f.WriteAt(noise[:fatSector], f.start+infoSector*fatSector)
			must(t, err)
			_, err = f.WriteAt([]byte{1}, f.start+fatDirty)
			must(t, err)
		}},
		{"loops and crossed chains", func(t *testing.T, f *espFAT) {
			conf, other := int(f.first("LOADER/LOADER~1.CON")), int(f.first("EFI/SYSTEMD/SYSTEM~1.EFI"))
			f.change(func(c int, value uint32) uint32 {
				switch c {
				case conf:
					return uint32(conf)
				case other:
					return uint32(conf)
				}
				return value
			})
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := provisioned(t)
			uki := theUKI(t, p.State)
			g := Machine(t, Options{State: p.State, Prepare: func(s vm.State) error {
				tt.damage(t, openFAT(t, s))
				return nil
			}})
			checkSecured(t, tt.name, g.Boot())
			g.PowerOff()
			same := func(name string) bool {
				return slices.Equal(espContent(t, p.State, name), espContent(t, g.State(), name))
			}
			if !same(uki) || !same(bootManager) {
				t.Error("the UKI or the boot manager is another than before")
			}
		})
	}
}

// espContent is a file of the ESP.
func espContent(t testing.TB, s vm.State, name string) []byte {
	t.Helper()
	local := filepath.Join(t.TempDir(), "file")
	espRead(t, s, name, local)
	b, err := os.ReadFile(local)
	must(t, err)
	return b
}
