package hw

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/anatol/devmapper.go"
	"golang.org/x/sys/unix"

	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
)

// kernelDM is the device mapper of a kernel: it has devices by name, and refuses what the
// kernel refuses.
type kernelDM struct {
	devices map[string]*devmapper.DeviceInfo
	tables  map[string][]devmapper.Table
	busy    map[string]bool
	before  func() // somebody else, while create is under way
	slept   int
	slow    func(*kernelDM)
}

func (k *kernelDM) mapper() deviceMapper {
	return deviceMapper{
		info: func(name string) (*devmapper.DeviceInfo, error) {
			if d := k.devices[name]; d != nil {
				return d, nil
			}
			return nil, os.NewSyscallError("dm ioctl", unix.ENXIO)
		},
		create: func(name, uuid string, _ uint32, tables ...devmapper.Table) error {
			if k.before != nil {
				k.before()
			}
			if k.devices[name] != nil {
				return os.NewSyscallError("dm ioctl", unix.EBUSY)
			}
			k.add(name, uuid, unix.DM_ACTIVE_PRESENT_FLAG)
			k.tables[name] = tables
			return nil
		},
		remove: func(name string) error {
			if k.busy[name] {
				return os.NewSyscallError("dm ioctl", unix.EBUSY)
			}
			delete(k.devices, name)
			return nil
		},
		sleep: func(time.Duration) {
			if k.slept++; k.slow != nil {
				k.slow(k)
			}
		},
	}
}

func (k *kernelDM) add(name, uuid string, flags uint32) {
	k.devices[name] = &devmapper.DeviceInfo{Name: name, UUID: uuid, Flags: flags, DevNo: unix.Mkdev(253, uint32(4+len(k.devices)))}
}

func newKernelDM() *kernelDM {
	return &kernelDM{devices: map[string]*devmapper.DeviceInfo{}, tables: map[string][]devmapper.Table{}, busy: map[string]bool{}}
}

// grownDisk is a disk with a slot that has two extents, and one whose second extent the
// kernel does not know, and one that has two of the same marks.
func grownDisk(t *testing.T) (LinuxDisks, Disk, *kernelDM) {
	t.Helper()
	const sectors = 1 << 20
	table := &gpt.Table{Disk: gpt.GUID{9}, SectorSize: 512, Sectors: sectors}
	files := map[string]string{}
	for i, r := range []layout.Role{layout.SystemA, layout.VerityA, layout.SystemB, layout.VerityB, layout.MoreSystemA, layout.MoreVerityA, layout.MoreSystemB, layout.MoreSystemB} {
		first := uint64(2048 * (i + 1))
		p := layout.Insert(table, r, gpt.GUID{byte(i + 1)}, first, first+2047-uint64(i))
		at := fmt.Sprintf("block/vda/vda%d/", p.Number)
		if r != layout.MoreVerityA {
			files[at+"partition"], files[at+"start"], files[at+"size"], files[at+"dev"] = fmt.Sprint(p.Number), fmt.Sprint(first), fmt.Sprint(p.Sectors()), fmt.Sprintf("254:%d", p.Number)
		}
	}
	dev := t.TempDir()
	f, err := os.Create(filepath.Join(dev, "vda"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(sectors*512), table.Write(f), f.Close()); err != nil {
		t.Fatal(err)
	}
	k := newKernelDM()
	return LinuxDisks{Sys: tree(t, files), Dev: dev, mapper: k.mapper()}, Disk{Name: "vda", SectorSize: 512, Sectors: sectors}, k
}

// A slot that has grown is one device; everything else is what the kernel has without it.
func TestJoinedPath(t *testing.T) {
	l, d, k := grownDisk(t)
	loaded := []string(nil)
	l.load = func(modules ...string) error {
		loaded = append(loaded, modules...)
		return nil
	}
	for role, want := range map[layout.Role]string{layout.SystemA: "dm-4", layout.VerityA: "vda2", layout.SystemB: "vda3", layout.VerityB: "vda4"} {
		for range 2 {
			if path, err := l.PartitionPath(d, role); err != nil || path != filepath.Join(l.Dev, want) {
				t.Errorf("%s is %s, %v; want %s", role, path, err, want)
			}
		}
	}
	if !slices.Equal(loaded, []string{"dm_mod", "dm_mod"}) {
		t.Errorf("loaded %q", loaded)
	}
	want := []devmapper.Table{
		devmapper.LinearTable{Start: 0, Length: 2048 * 512, BackendDevice: filepath.Join(l.Dev, "vda1")},
		devmapper.LinearTable{Start: 2048 * 512, Length: 2044 * 512, BackendDevice: filepath.Join(l.Dev, "vda5")},
	}
	if got := k.tables["halogen-system-a"]; !slices.Equal(got, want) {
		t.Errorf("table %+v, want %+v", got, want)
	}
	if got := k.devices["halogen-system-a"].UUID; got != "HALOGEN-SLOT-254:1+2048-254:5+2044" {
		t.Errorf("UUID %s", got)
	}
	l.part()
	if len(k.devices) != 0 {
		t.Errorf("%v are there still", k.devices)
	}
	l.load = func(...string) error { return fs.ErrNotExist }
	if path, err := l.PartitionPath(d, layout.SystemA); err == nil {
		t.Errorf("without the module: %s", path)
	}
}

func TestJoin(t *testing.T) {
	extents := []extent{{"/dev/vda2", "254:2", 1 << 20}, {"/dev/vda7", "254:7", 1 << 20}}
	const name = "halogen-system-b"
	uuid := joinedIs(extents)
	for what, c := range map[string]struct {
		start func(*kernelDM)
		want  string // of the error
	}{
		"none":                {func(*kernelDM) {}, ""},
		"made":                {func(k *kernelDM) { k.add(name, uuid, unix.DM_ACTIVE_PRESENT_FLAG) }, ""},
		"of other partitions": {func(k *kernelDM) { k.add(name, uuid+"0", unix.DM_ACTIVE_PRESENT_FLAG) }, "made of other partitions"},
		"made meanwhile": {func(k *kernelDM) {
			k.before = func() { k.add(name, uuid, unix.DM_ACTIVE_PRESENT_FLAG) }
		}, ""},
		"being made": {func(k *kernelDM) {
			k.add(name, uuid, unix.DM_SUSPEND_FLAG)
			k.slow = func(k *kernelDM) {
				if k.slept == 3 {
					k.devices[name].Flags = unix.DM_ACTIVE_PRESENT_FLAG
				}
			}
		}, ""},
		"left without a table": {func(k *kernelDM) { k.add(name, uuid, unix.DM_SUSPEND_FLAG) }, ""},
		"suspended and held": {func(k *kernelDM) {
			k.add(name, uuid, unix.DM_SUSPEND_FLAG|unix.DM_ACTIVE_PRESENT_FLAG)
			k.busy[name] = true
		}, "which has no table"},
		"partition held by others": {func(k *kernelDM) { k.before = func() { k.devices[name] = nil }; k.busy["create"] = true }, "join the two partitions system-b and system-b-2"},
	} {
		k := newKernelDM()
		c.start(k)
		m := k.mapper()
		if k.busy["create"] {
			m.create = func(string, string, uint32, ...devmapper.Table) error { return unix.EBUSY }
		}
		minor, err := m.join(layout.SystemB, extents)
		switch {
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %d, %v; want %q", what, minor, err, c.want)
		case c.want == "" && (err != nil || minor != 4):
			t.Errorf("%s: %d, %v", what, minor, err)
		}
	}
	long := []extent{{"", "259:1048575", 1 << 62}, {"", "259:1048575", 1 << 62}}
	if n := len(joinedIs(long)); n >= unix.DM_UUID_LEN {
		t.Errorf("a UUID of %d bytes", n)
	}
}
