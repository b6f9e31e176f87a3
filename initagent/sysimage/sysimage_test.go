package sysimage

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/verity"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/inventory/inventorytest"
)

// A console notes what is done to the kernel.
type console struct {
	hw.Disks
	hw.Kernel
	hw.Mapper
	hw.Mounts
	t      *testing.T
	root   string
	log    []string
	want   verity.Root
	opens  error
	mounts error
}

func (c *console) PartitionPath(_ hw.Disk, r layout.Role) (string, error) {
	return "/dev/" + r.String(), nil
}

func (c *console) Load(names ...string) error {
	c.log = append(c.log, "load "+strings.Join(names, " "))
	return nil
}

func (c *console) OpenVerity(v hw.Verity) (string, error) {
	c.log = append(c.log, "open "+v.Name+" "+v.DataDevice+" "+v.HashDevice)
	if v.Root != c.want || v.RestartOnCorruption {
		c.t.Errorf("opened with %+v", v)
	}
	return "/dev/dm-0", c.opens
}

func (c *console) Mount(source, target, kind string, flags uintptr, _ string) error {
	c.log = append(c.log, "mount "+source+" "+strings.TrimPrefix(target, c.root)+" "+kind)
	if flags&unix.MS_RDONLY == 0 || flags&unix.MS_NODEV == 0 {
		c.t.Errorf("mounted with the flags %x", flags)
	}
	return c.mounts
}

func (c *console) Close(name string) error {
	c.log = append(c.log, "close "+name)
	return unix.ENXIO
}

func (c *console) machine(h hw.Machine) hw.Machine {
	c.Disks = h.Disks
	h.Disks, h.Kernel, h.Mapper, h.Mounts = c, c, c, c
	return h
}

func TestOpen(t *testing.T) {
	m := inventorytest.New(t)
	one, two := m.Install(layout.SlotA, "os_1.efi"), m.Install(layout.SlotB, "os_2.efi")
	three := *two
	three.RootHash = make([]byte, 32)
	fails := errors.New("it fails")
	for name, c := range map[string]struct {
		contract      *contract.Contract
		opens, mounts error
		log, want     string
	}{
		"slot a":     {one, nil, nil, "load dm_verity erofs, open system /dev/system-a /dev/verity-a, mount /dev/dm-0 /sysroot erofs", ""},
		"slot b":     {two, nil, nil, "load dm_verity erofs, open system /dev/system-b /dev/verity-b, mount /dev/dm-0 /sysroot erofs", ""},
		"no slot":    {&three, nil, nil, "", "version 2 does not open: no slot holds it"},
		"corrupt":    {one, fails, nil, "load dm_verity erofs, open system /dev/system-a /dev/verity-a, close system", "it fails"},
		"no mount":   {one, nil, fails, "load dm_verity erofs, open system /dev/system-a /dev/verity-a, mount /dev/dm-0 /sysroot erofs, close system", "it fails"},
		"no console": {nil, nil, nil, "", "this is not the recovery console"},
	} {
		t.Run(name, func(t *testing.T) {
			k := &console{t: t, root: t.TempDir(), opens: c.opens, mounts: c.mounts}
			if c.contract != nil {
				k.want = c.contract.Root()
				text, err := c.contract.Encode()
				if err == nil {
					err = os.MkdirAll(filepath.Join(k.root, filepath.Dir(contract.Path)), 0o755)
				}
				if err == nil {
					err = os.WriteFile(filepath.Join(k.root, contract.Path), text, 0o644)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			directory, err := Open(k.machine(m.Hardware()), k.root)
			if got := strings.Join(k.log, ", "); got != c.log {
				t.Errorf("did %s, want %s", got, c.log)
			}
			if c.want == "" && (err != nil || directory != filepath.Join(k.root, Directory)) || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%q, %v, want %q", directory, err, c.want)
			}
		})
	}
}

// What is open stays as it is.
func TestOpenAlready(t *testing.T) {
	if mounted(t.TempDir()) {
		t.Error("an empty directory is mounted")
	}
	if !mounted("/proc") {
		t.Error("/proc is not mounted")
	}
}
