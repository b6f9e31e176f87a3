// Package install puts a release on a disk, as a manual installation does: the
// partition table, the ESP with UKI and boot manager, and the first slot's
// system image. The machine makes everything else at its first boot.
//
// It refuses to write to a disk that is in use or that holds something nobody
// has given up, to install a release whose signature was not checked, and to
// leave a disk that looks installed and is not: the partition table comes last.
package install

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"time"

	"halogenos.internal/boot/answers"
	"halogenos.internal/boot/block"
	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/fat"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/verity"
	"halogenos.internal/boot/words"
)

// LoaderConf starts the newest UKI at once. It names no default entry, since a
// default would switch the counting of tries off. The editor would let anyone who
// sits there change a command line, where Secure Boot is off.
const LoaderConf = `timeout 0
editor no
auto-entries no
secure-boot-enroll off
`

// IDs are the identifiers that an installation gives.
type IDs struct {
	Disk, ESP gpt.GUID
	Volume    uint32 // serial number of the ESP's file system
}

// RandomIDs returns IDs that no other machine has.
func RandomIDs(random io.Reader) (ids IDs, err error) {
	if ids.Disk, err = gpt.RandomGUID(random); err != nil {
		return IDs{}, err
	}
	if ids.ESP, err = gpt.RandomGUID(random); err != nil {
		return IDs{}, err
	}
	var volume [4]byte
	if _, err := io.ReadFull(random, volume[:]); err != nil {
		return IDs{}, fmt.Errorf("random serial number: %w", err)
	}
	ids.Volume = binary.BigEndian.Uint32(volume[:])
	return ids, nil
}

// Table lays out what an installation makes on a disk of so many sectors of
// sectorSize bytes: the ESP, and the first system partition. That has the size
// of a slot where the disk has room for it, and else the size of the image. kept
// is the root partition that stays where it is, or nil: before it the ESP leaves the
// slots their room, down to the size that every installation has had. What the slots had
// behind it (Root.More) stays only if they have no room without: initagents from before
// know nothing of it.
func Table(e ESP, ids IDs, sectors uint64, sectorSize int, kept *Root) (*gpt.Table, error) {
	if kept != nil && len(kept.More) > 0 {
		alone := *kept
		alone.More = nil
		t, err := table(e, ids, sectors, sectorSize, &alone)
		if err == nil {
			_, err = layout.NewPlan(t, e.Release.SlotSize, rand.Reader) // its UUIDs go nowhere
		}
		if err == nil {
			return t, nil
		}
	}
	return table(e, ids, sectors, sectorSize, kept)
}

func table(e ESP, ids IDs, sectors uint64, sectorSize int, kept *Root) (*gpt.Table, error) {
	if sectorSize != 512 && sectorSize != 4096 {
		return nil, words.Errorf(words.InSectors, sectorSize)
	}
	r := e.Release
	if len(r.RootHash) != len(verity.Root{}) {
		return nil, fmt.Errorf("root hash has %d bytes, want %d", len(r.RootHash), len(verity.Root{}))
	}
	esp := e.size()
	if kept != nil {
		least, err := layout.LeastDisk(0, r.SlotSize)
		if err != nil {
			return nil, err
		}
		all, _ := kept.behind(sectorSize)
		free := int64(kept.Partition.First)*int64(sectorSize) - (least - all - layout.MinRoot - layout.Align)
		esp = max(min(esp, free/layout.Align*layout.Align), layout.ESPSize)
	}
	start := layout.Align + esp
	room := int64(sectors)*int64(sectorSize) - start - layout.Align // the alternate table lies in the last piece
	if kept != nil {
		room = int64(kept.Partition.First)*int64(sectorSize) - start
	}
	var behind int64
	if kept != nil {
		_, behind = kept.behind(sectorSize)
	}
	size := max(r.SlotSize-behind, layout.Align)
	if size > room {
		size = max(layout.AlignUp(r.ImageSize-behind), layout.Align)
	}
	if size > room {
		return nil, words.Errorf(words.InBehindESP, ErrNoRoom, max(room, 0)>>20, r.ImageSize>>20)
	}
	unit := uint64(sectorSize)
	t := &gpt.Table{Disk: ids.Disk, SectorSize: sectorSize, Sectors: sectors}
	if kept != nil {
		t.Partitions = append([]gpt.Partition{kept.Partition}, kept.More...)
		slices.SortFunc(t.Partitions, func(a, b gpt.Partition) int { return a.Number - b.Number })
	}
	layout.Insert(t, layout.ESP, ids.ESP, layout.Align/unit, uint64(start)/unit-1)
	layout.Insert(t, layout.SystemA, layout.SystemUUID(verity.Root(r.RootHash)), uint64(start)/unit, uint64(start+size)/unit-1)
	return t, t.Validate()
}

// An ESP is what the EFI system partition gets.
type ESP struct {
	Release          *release.Release
	UKI, BootManager []byte
	// Size is what the partition has in bytes; 0 stands for layout.ESPSize.
	Size int64
	// Setup are the answers for the machine's first start (setup.json(5)), or nil. They are
	// on this machine's ESP alone, and in no release.
	Setup []byte
	// Others is the wish that other systems go on starting (secureboot.EncodeOthers), or nil.
	Others []byte
}

func (e ESP) size() int64 { return cmp.Or(e.Size, layout.ESPSize) }

// files are the ESP's files by their paths.
func (e ESP) files() map[string][]byte {
	files := map[string][]byte{layout.LoaderConf: []byte(LoaderConf)}
	for _, name := range layout.Managers() {
		files[name] = e.BootManager
	}
	name := bls.Name{ImageID: e.Release.ImageID, Version: e.Release.Version}.String()
	files[path.Join(bls.Directory, name)] = e.UKI
	if e.Setup != nil {
		files[answers.OnESP] = e.Setup
	}
	if e.Others != nil {
		files[secureboot.OthersOnESP] = e.Others
	}
	return files
}

// Format makes the ESP's file system of size bytes. zeroed says that
// everything reads as zero already.
func (e ESP) Format(w io.WriterAt, size int64, volume uint32, sectorSize int, zeroed bool) error {
	var files []fat.File
	for name, content := range e.files() {
		files = append(files, fat.File{Path: name, Size: int64(len(content)), Open: func() (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(content)), nil
		}})
	}
	o := fat.Options{Label: "ESP", VolumeID: volume, Time: time.Unix(e.Release.SourceDate, 0), SectorSize: sectorSize, Zeroed: zeroed}
	if err := fat.Format(w, size, o, files); err != nil {
		return fmt.Errorf("format ESP: %w", err)
	}
	return nil
}

// check reads the ESP back.
func (e ESP) check(r io.ReaderAt) error {
	files, err := fat.Open(r)
	if err != nil {
		return fmt.Errorf("read the ESP back: %w", err)
	}
	for name, want := range e.files() {
		have, err := fs.ReadFile(files, name)
		if err != nil {
			return fmt.Errorf("read the ESP back: %w", err)
		}
		if !bytes.Equal(have, want) {
			return words.Errorf(words.InFileFailing, name)
		}
	}
	return nil
}

// A Target is a disk that is written to. Uncached makes what is read afterwards
// come from the disk.
type Target interface {
	block.Device
	Uncached() error
}

// Progress is told how many bytes of how many are done.
type Progress func(what string, done, total int64)

// Install writes the release to the disk and reads all of it back.
//
// The order: what the disk held is made unusable first, its partition tables
// zeroed and flushed; then ESP and system image are written, flushed and read
// back; and the new table comes last. Cut anywhere before that, the disk has no
// partition table and no firmware starts it; it can be installed again. Cut
// after it, the installation is whole.
//
// Where the table keeps a root partition, the old one is not zeroed but replaced by
// one that has the root partition alone (leave).
func Install(ctx context.Context, d Target, t *gpt.Table, s *Source, ids IDs, progress Progress) error {
	clear := erase
	if kept, err := layout.Find(t, layout.Root); err == nil {
		clear = func(d Target, t *gpt.Table) error { return leave(d, t, kept) }
	}
	if err := clear(d, t); err != nil {
		return err
	}
	if err := writeContents(ctx, d, t, s, ids, progress); err != nil {
		return err
	}
	return writeTable(d, t)
}

// writeContents writes what the ESP and the system partition of a table hold, and reads
// all of it back from the disk.
func writeContents(ctx context.Context, d Target, t *gpt.Table, s *Source, ids IDs, progress Progress) error {
	p, err := layout.FindESP(t, ids.ESP)
	if err != nil {
		return fmt.Errorf("the plan: %w", err)
	}
	at, size := t.Bytes(p)
	esp, err := block.NewSection(d, at, size)
	if err != nil {
		return err
	}
	system, err := layout.Content(d, t, layout.SystemA)
	if err != nil {
		return fmt.Errorf("the plan: %w", err)
	}
	progress(words.InStepESP, 0, 0)
	if err := s.ESP.Format(esp, esp.Size(), ids.Volume, t.SectorSize, false); err != nil {
		return err
	}
	if err := copyImage(ctx, system, s, progress); err != nil {
		return err
	}
	if err := d.Sync(); err != nil {
		return fmt.Errorf("flush the disk: %w", err)
	}
	if err := d.Uncached(); err != nil {
		return err
	}
	if err := s.ESP.check(esp); err != nil {
		return err
	}
	return checkImage(ctx, system, s, progress)
}

// writeTable writes a partition table and reads it back. Cut in it, one of its
// copies is good: the old one or the new one, each as a whole (gpt.Table.Write).
func writeTable(d Target, t *gpt.Table) error {
	if err := t.Write(d); err != nil {
		return err
	}
	if err := d.Uncached(); err != nil {
		return err
	}
	have, health, err := gpt.Read(d, t.Sectors, t.SectorSize)
	if err == nil && !health.OK() {
		err = errors.New(health.String())
	}
	if err != nil {
		return fmt.Errorf("read the partition table back: %w", err)
	}
	if have.Disk != t.Disk || !slices.Equal(have.Partitions, t.Partitions) {
		return words.Errorf(words.InTableFailing)
	}
	return nil
}

// erase zeroes both partition tables and what lies before the first partition.
func erase(d Target, t *gpt.Table) error {
	size := int64(t.Sectors) * int64(t.SectorSize)
	for _, at := range []int64{0, size - layout.Align} {
		if err := block.Zero(d, at, layout.Align); err != nil {
			return fmt.Errorf("erase the old partition table: %w", err)
		}
	}
	if err := d.Sync(); err != nil {
		return fmt.Errorf("erase the old partition table: %w", err)
	}
	return nil
}

// chunk is how much is copied at a time.
const chunk = 1 << 20

func copyImage(ctx context.Context, w io.WriterAt, s *Source, progress Progress) error {
	total := s.ESP.Release.ImageSize
	buffer := make([]byte, chunk)
	for done := int64(0); done < total; {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		n, err := io.ReadFull(s.Image, buffer[:min(chunk, total-done)])
		if err != nil {
			return words.Errorf(words.InReadImage, err)
		}
		if _, err := w.WriteAt(buffer[:n], done); err != nil {
			return words.Errorf(words.InWriteImage, done, err)
		}
		done += int64(n)
		progress(words.InStepWrite, done, total)
	}
	return s.Finish()
}

func checkImage(ctx context.Context, r io.ReaderAt, s *Source, progress Progress) error {
	f, ok := s.ESP.Release.File(release.ImageFile)
	if !ok {
		return errors.New("release.json names no system image")
	}
	h := sha256.New()
	buffer := make([]byte, chunk)
	for done := int64(0); done < f.Size; {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		n := min(chunk, f.Size-done)
		if _, err := r.ReadAt(buffer[:n], done); err != nil {
			return words.Errorf(words.InReadBack, done, err)
		}
		h.Write(buffer[:n])
		done += n
		progress(words.InStepRead, done, f.Size)
	}
	if !bytes.Equal(h.Sum(nil), f.SHA256) {
		return words.Errorf(words.InImageFailing)
	}
	return nil
}
