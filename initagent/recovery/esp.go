package recovery

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"halogenos.internal/boot/block"
	"halogenos.internal/boot/bounded"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/fat"
	"halogenos.internal/boot/layout"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/esp"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootpart"
)

// espSettings is the boot manager's configuration where no copy of it was kept.
// It names no default entry, which would switch the counting of tries off.
const espSettings = "timeout 0\n"

// RebuildESP makes a new file system on the ESP, from the copies that the root
// partition keeps. Nothing is written before all of them were read and found
// good. From the first write until the boot sector, which comes last, there is no
// file system, and a cut leaves none: so it asks.
func (m *Machine) RebuildESP(c hw.Console) error {
	open, err := m.kept()
	if err != nil {
		return err
	}
	defer open.Wipe()
	files, err := m.saved(open, c)
	if err != nil {
		return err
	}
	for _, f := range files {
		c.Print(fmt.Sprintf("%s, %d KiB\n", f.Path, (f.Size+1023)>>10))
	}
	partition, err := layout.FindESP(m.Table, m.Disk.ESP)
	if err != nil {
		return fmt.Errorf("%s: %w", m.Disk.Name, err)
	}
	_, size := m.Table.Bytes(partition)
	question := fmt.Sprintf("Make a new EFI system partition of this, in partition %d of %s (%q, %d MiB), and lose whatever else is on it?\n", partition.Number, m.Disk.Name, partition.Label, size>>20) +
		"Until it is done the machine has nothing to start from: see that the power stays on."
	if m.readable() {
		question = "THE EFI SYSTEM PARTITION CAN BE READ: the next boot puts back by itself what is lost or damaged on it.\n" + question
	}
	if err := confirm(c, question); err != nil {
		return err
	}
	if err := m.format(files); err != nil {
		return fmt.Errorf("the EFI system partition is not whole, so try again before the machine is switched off: %w", err)
	}
	if err := m.compare(files); err != nil {
		return fmt.Errorf("the EFI system partition does not read back, so the disk may be failing: %w", err)
	}
	c.Print("The EFI system partition is made.\n")
	return nil
}

// saved is what the new file system is to hold.
func (m *Machine) saved(open *Opened, c hw.Console) ([]fat.File, error) {
	say := func(format string, args ...any) { c.Print(fmt.Sprintf(format+"\n", args...)) }
	k := &esp.Keeper{
		Store: m.Store, Directory: rootpart.Copies, ImageID: m.Contract.ImageID, Now: m.Now(), Say: say,
		Belongs: func(*contract.Contract) error { return nil },
	}
	state, err := enroll.Observe(m.Variables)
	if err != nil && m.Contract.SecureBoot == contract.Required {
		return nil, fmt.Errorf("whether the firmware would start the copies is not known: %w", err)
	}
	if err == nil {
		if k.Starts, err = m.starts(open, state); err != nil {
			return nil, err
		}
	}
	saved, err := k.Saved()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New("the root partition keeps no copies of the EFI system partition yet")
	}
	if err != nil {
		return nil, err
	}
	var files []fat.File
	settings := false
	for _, s := range saved {
		settings = settings || s.Name == layout.LoaderConf
		files = append(files, file(s.Name, s.Data))
	}
	if !settings {
		files = append(files, file(layout.LoaderConf, []byte(espSettings)))
	}
	return files, nil
}

// starts says why an image is not this machine's own, or would not start; nil
// where the machine has no keys of its own to tell by.
func (m *Machine) starts(open *Opened, state enroll.State) (func([]byte) error, error) {
	if !rootpart.HasKeys(m.Store) {
		return nil, nil
	}
	lock, err := m.lockOf(open)
	if err != nil {
		return nil, err
	}
	list, _, err := rootpart.OwnList(m.Store, open.Secret, lock, &state)
	if err != nil || list == nil || !rootpart.ListEnforced(state, list) {
		return nil, err
	}
	return func(image []byte) error { return rootpart.CheckOwn(image, state, list) }, nil
}

func file(name string, data []byte) fat.File {
	return fat.File{Path: name, Size: int64(len(data)), Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }}
}

// readable reports whether the file system that is there can be read.
func (m *Machine) readable() bool {
	err := m.ReadESP(func(files fs.FS) error {
		_, err := fs.ReadDir(files, "EFI")
		return err
	})
	return err == nil
}

func (m *Machine) format(files []fat.File) error {
	partition, err := layout.FindESP(m.Table, m.Disk.ESP)
	if err != nil {
		return fmt.Errorf("%s: %w", m.Disk.Name, err)
	}
	_, size := m.Table.Bytes(partition)
	var id [4]byte
	if _, err := io.ReadFull(m.Random, id[:]); err != nil {
		return err
	}
	f, err := m.Disks.OpenPartition(m.Disk, layout.ESP, true)
	if err != nil {
		return err
	}
	o := fat.Options{SectorSize: m.Disk.SectorSize, VolumeID: binary.LittleEndian.Uint32(id[:]), Label: "ESP", Time: m.Now()}
	// Whatever can fail without the disk fails before the old file system goes.
	err = fat.Format(nowhere{}, size, o, files)
	if err == nil {
		err = errors.Join(block.Zero(f, 0, bootSectors), f.Sync())
	}
	if err == nil {
		err = errors.Join(fat.Format(f, size, o, files), f.Sync())
	}
	return errors.Join(err, f.Close())
}

// bootSectors is where a FAT32 file system has its boot sector and the copy of it,
// in bytes, for sectors of up to 4096. Zeroed and flushed first, they let nothing
// take what is half written for a file system.
const bootSectors = 64 << 10

// nowhere is a disk for trying.
type nowhere struct{}

func (nowhere) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

// compare reads every file back.
func (m *Machine) compare(files []fat.File) error {
	return m.ReadESP(func(have fs.FS) error {
		for _, f := range files {
			r, err := f.Open()
			if err != nil {
				return err
			}
			want, err := io.ReadAll(r)
			if err != nil {
				return err
			}
			got, err := bounded.File(have, f.Path, enroll.MaxEFIFile)
			if err != nil {
				return err
			}
			if !bytes.Equal(got, want) {
				return fmt.Errorf("%s reads back otherwise", f.Path)
			}
		}
		return nil
	})
}
