package hw

import (
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"github.com/anatol/devmapper.go"
	"golang.org/x/sys/unix"

	"halogenos.internal/boot/verity"
)

// LinuxMapper talks to the kernel's device mapper.
type LinuxMapper struct{ Dev string }

// VerityTable is the table line of a dm-verity device (kernel documentation,
// admin-guide/device-mapper/verity.rst). Corruption is never ignored.
func VerityTable(v Verity) devmapper.VerityTable {
	params := []string(nil)
	if v.RestartOnCorruption {
		params = []string{"1", "restart_on_corruption"}
	}
	return devmapper.VerityTable{
		Length:         v.Params.DataBlocks * verity.BlockSize,
		HashType:       1,
		DataDevice:     v.DataDevice,
		HashDevice:     v.HashDevice,
		DataBlockSize:  verity.BlockSize,
		HashBlockSize:  verity.BlockSize,
		NumDataBlocks:  v.Params.DataBlocks,
		HashStartBlock: uint64(v.HashStart)/verity.BlockSize + 1, // the tree follows its superblock
		Algorithm:      "sha256",
		Digest:         v.Root.String(),
		Salt:           hex.EncodeToString(v.Params.Salt),
		Params:         params,
	}
}

// OpenVerity implements Mapper. What is corrupt from the start is an error also where
// later corruption restarts the machine: the boot then says what is wrong with the
// slot, and need not find out again at each try.
func (l LinuxMapper) OpenVerity(v Verity) (string, error) {
	first := v
	first.RestartOnCorruption = false
	err := devmapper.CreateAndLoad(v.Name, "CRYPT-VERITY-halogen-"+v.Name, devmapper.ReadOnlyFlag, VerityTable(first))
	if err != nil {
		return "", fmt.Errorf("make verity device %s: %w", v.Name, err)
	}
	node, err := l.node(v.Name)
	if err != nil {
		return "", err
	}
	if err := readFirst(node); err != nil || !v.RestartOnCorruption {
		return node, err
	}
	// The kernel puts the new table in the place of the old one when it resumes.
	if err := devmapper.Load(v.Name, devmapper.ReadOnlyFlag, VerityTable(v)); err != nil {
		return "", fmt.Errorf("load another table of verity device %s: %w", v.Name, err)
	}
	if err := devmapper.Resume(v.Name); err != nil {
		return "", fmt.Errorf("change the table of verity device %s: %w", v.Name, err)
	}
	return node, nil
}

func readFirst(device string) error {
	f, err := os.Open(device)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.ReadFull(f, make([]byte, verity.BlockSize)); err != nil {
		return fmt.Errorf("first read through dm-verity: %w", err)
	}
	return nil
}

// OpenCrypt implements Mapper. The volume key goes to the kernel through a key
// of type logon, which no user space can read back, and not through the table,
// which root can.
func (l LinuxMapper) OpenCrypt(c Crypt) (string, error) {
	runtime.LockOSThread() // the kernel looks the key up in this thread's keyring
	defer runtime.UnlockOSThread()
	description := "halogen:" + c.Name
	id, err := unix.AddKey("logon", description, c.VolumeKey, unix.KEY_SPEC_THREAD_KEYRING)
	if err != nil {
		return "", fmt.Errorf("give volume key of %s to the kernel: %w", c.Name, err)
	}
	defer unix.KeyctlInt(unix.KEYCTL_REVOKE, id, 0, 0, 0)
	err = devmapper.CreateAndLoad(c.Name, c.UUID, 0, devmapper.CryptTable{
		Length:        uint64(c.Length),
		BackendDevice: c.Device,
		BackendOffset: uint64(c.Offset),
		Encryption:    c.Cipher,
		KeyID:         fmt.Sprintf(":%d:logon:%s", len(c.VolumeKey), description),
		Flags:         []string{devmapper.CryptFlagAllowDiscards},
		SectorSize:    uint64(c.SectorSize),
	})
	if err != nil {
		return "", fmt.Errorf("make encrypted device %s: %w", c.Name, err)
	}
	return l.node(c.Name)
}

// Close implements Mapper.
func (l LinuxMapper) Close(name string) error {
	if err := devmapper.Remove(name); err != nil {
		return fmt.Errorf("remove device %s: %w", name, err)
	}
	return nil
}

// node is the device's node in devtmpfs: there is no udev to make a link.
func (l LinuxMapper) node(name string) (string, error) {
	info, err := devmapper.InfoByName(name)
	if err != nil {
		return "", fmt.Errorf("look up device %s: %w", name, err)
	}
	return filepath.Join(l.Dev, fmt.Sprintf("dm-%d", unix.Minor(info.DevNo))), nil
}
