package inspect

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"path"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/fat"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/uki"
)

// Disk describes a disk by its partition table and the ESP.
type Disk struct {
	GUID       string      `json:"guid"`
	SectorSize int         `json:"sector_size"` // bytes
	Table      string      `json:"table"`       // how the two copies of the table are
	Partitions []Partition `json:"partitions"`
	ESP        []ESPFile   `json:"esp"`
}

// Partition is one partition.
type Partition struct {
	Number int     `json:"number"`
	Label  string  `json:"label"`
	Type   string  `json:"type"`
	UUID   string  `json:"uuid"`
	Start  int64   `json:"start"` // bytes
	Size   int64   `json:"size"`  // bytes
	System *System `json:"system,omitempty"`
	LUKS   *LUKS   `json:"luks,omitempty"`
	Fault  string  `json:"fault,omitempty"` // why it cannot be read as what its type says
}

// ESPFile is a file on the ESP.
type ESPFile struct {
	Path  string `json:"path"`
	Size  int64  `json:"size"` // bytes
	Fault string `json:"fault,omitempty"`
	// Of a UKI with a boot contract:
	Version  contract.Version `json:"version,omitempty"`
	RootHash contract.Hex     `json:"root_hash,omitempty"`
	// Partition is the number of the system partition that is named by the
	// root hash; zero for none.
	Partition int `json:"partition,omitempty"`
}

var gptMagic = []byte("EFI PART")

// hasGPT looks for a table's header after the first sector of either size, or
// in the last one, where the alternate is.
func hasGPT(start []byte, f io.ReaderAt, size int64) bool {
	for _, sector := range []int64{512, 4096} {
		if int64(len(start)) >= sector+8 && bytes.HasPrefix(start[sector:], gptMagic) {
			return true
		}
		end := make([]byte, 8)
		if size >= 2*sector {
			if _, err := f.ReadAt(end, size/sector*sector-sector); err == nil && bytes.Equal(end, gptMagic) {
				return true
			}
		}
	}
	return false
}

func describeDisk(f io.ReaderAt, size int64) (*Disk, error) {
	table, health, err := gpt.Read(f, uint64(size/512), 512)
	if err != nil {
		other, otherHealth, otherErr := gpt.Read(f, uint64(size/4096), 4096)
		if otherErr != nil {
			return nil, err
		}
		table, health = other, otherHealth
	}
	d := &Disk{GUID: table.Disk.String(), SectorSize: table.SectorSize, Table: health.String()}
	for _, p := range table.Partitions {
		off, length := table.Bytes(p)
		part := Partition{Number: p.Number, Label: p.Label, Type: p.Type.String(), UUID: p.UUID.String(), Start: off, Size: length}
		section := io.NewSectionReader(f, off, length)
		if p.Type == layout.TypeRoot {
			// A partition without a file system is shown without one.
			part.System, _ = describeSystem(section)
		}
		if p.Type == layout.TypeLUKS {
			// Likewise.
			part.LUKS, _ = describeLUKS(section, length)
		}
		if p.Type == layout.TypeESP {
			files, err := describeESP(section, table)
			if err != nil {
				part.Fault = err.Error()
			}
			d.ESP = append(d.ESP, files...)
		}
		d.Partitions = append(d.Partitions, part)
	}
	return d, nil
}

// describeMBR describes a disk with a table of before GPT by its first sector;
// nil for what has none.
func describeMBR(sector []byte, size int64) *Disk {
	const table, entrySize, sectorSize = 446, 16, 512
	if len(sector) < sectorSize || sector[510] != 0x55 || sector[511] != 0xaa {
		return nil
	}
	d := &Disk{SectorSize: sectorSize, Table: "MBR, no GPT"}
	for i := range 4 {
		e := sector[table+i*entrySize:][:entrySize]
		start, length := int64(binary.LittleEndian.Uint32(e[8:]))*sectorSize, int64(binary.LittleEndian.Uint32(e[12:]))*sectorSize
		switch {
		case e[0]&0x7f != 0: // neither 0 nor "active": code, not a table
			return nil
		case e[4] == 0:
			continue
		}
		part := Partition{Number: i + 1, Type: fmt.Sprintf("%#02x", e[4]), Start: start, Size: length}
		if start+length > size {
			part.Fault = fmt.Sprintf("ends at byte %d, the disk at %d", start+length, size)
		}
		d.Partitions = append(d.Partitions, part)
	}
	if d.Partitions == nil {
		return nil
	}
	return d
}

const maxESPFiles = 10_000

func describeESP(r io.ReaderAt, table *gpt.Table) ([]ESPFile, error) {
	esp, err := fat.Open(r)
	if err != nil {
		return nil, err
	}
	var files []ESPFile
	err = esp.Walk(func(name string, info fs.FileInfo, err error) error {
		switch {
		case len(files) == maxESPFiles:
			return fmt.Errorf("more than %d files", maxESPFiles)
		case err != nil:
			files = append(files, ESPFile{Path: name, Fault: err.Error()})
			return nil
		case info.IsDir():
			return nil
		}
		file := ESPFile{Path: name, Size: info.Size()}
		if path.Dir(name) == bls.Directory && info.Size() <= maxEFI {
			file.describeUKI(esp, table)
		}
		files = append(files, file)
		return nil
	})
	return files, err
}

// describeUKI adds what the UKI's boot contract says.
func (e *ESPFile) describeUKI(esp *fat.FS, table *gpt.Table) {
	c, err := readContract(esp, e.Path)
	if err != nil {
		e.Fault = err.Error()
		return
	}
	e.Version, e.RootHash = c.Version, c.RootHash
	for _, p := range table.Partitions {
		if p.Type == layout.TypeRoot && p.UUID == layout.SystemUUID(c.Root()) {
			e.Partition = p.Number
		}
	}
}

func readContract(esp *fat.FS, name string) (*contract.Contract, error) {
	image, err := esp.ReadFile(name)
	if err != nil {
		return nil, err
	}
	img, err := uki.Parse(image)
	if err != nil {
		return nil, err
	}
	initrd, ok := img.Section(".initrd")
	if !ok {
		return nil, fmt.Errorf("has no section .initrd")
	}
	return contract.FromInitrd(initrd)
}
