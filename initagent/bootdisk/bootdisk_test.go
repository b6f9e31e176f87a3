package bootdisk

import (
	"errors"
	"strconv"
	"testing"

	"halogenos.internal/boot/blocktest"
	"halogenos.internal/boot/bootoption"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/initagent/hw"
)

const size = 1 << 30

// machine is what it holds: disks, and what its firmware says.
type machine struct {
	disks  []*blocktest.Disk
	pci    [][]bootoption.Function
	from   []bootoption.Function
	esp    string
	serial string // of all disks
}

type open struct{ *blocktest.Recorder }

func (open) Close() error { return nil }

func (m *machine) List() (out []hw.Disk, err error) {
	for i := range m.disks {
		out = append(out, hw.Disk{Name: strconv.Itoa(i), SectorSize: 512, Sectors: size / 512, PCI: m.pci[i], Serial: m.serial})
	}
	return out, nil
}

func (m *machine) Open(d hw.Disk, write bool) (hw.File, error) {
	i, err := strconv.Atoi(d.Name)
	return open{blocktest.Record(m.disks[i])}, err
}

func (m *machine) OpenPartition(hw.Disk, layout.Role, bool) (hw.File, error) {
	return nil, errors.ErrUnsupported
}
func (m *machine) PartitionPath(hw.Disk, layout.Role) (string, error) {
	return "", errors.ErrUnsupported
}
func (m *machine) Reread(hw.Disk) error                       { return errors.ErrUnsupported }
func (m *machine) LoaderString(string) (string, error)        { return m.esp, nil }
func (m *machine) Flag(string) (bool, error)                  { return false, nil }
func (m *machine) BootedFrom() ([]bootoption.Function, error) { return m.from, nil }

// disk has an ESP of that UUID, and a first system partition of that label.
func disk(t *testing.T, esp gpt.GUID, label string) *blocktest.Disk {
	t.Helper()
	d := blocktest.New(size, blocktest.Zero)
	r := blocktest.Record(d)
	table := &gpt.Table{Disk: gpt.GUID{1}, SectorSize: 512, Sectors: size / 512, Partitions: []gpt.Partition{
		{Number: 1, Type: layout.TypeESP, UUID: esp, First: 2048, Last: 4095, Label: "esp"},
		{Number: 2, Type: layout.TypeRoot, UUID: gpt.GUID{2}, First: 4096, Last: 8191, Label: label},
	}}
	if err := table.Write(r); err != nil {
		t.Fatal(err)
	}
	return r.Disk()
}

// twice is a disk of which two partitions have the same UUID, as an ESP.
func twice(t *testing.T, esp gpt.GUID) *blocktest.Disk {
	t.Helper()
	r := blocktest.Record(blocktest.New(size, blocktest.Zero))
	table := &gpt.Table{Disk: gpt.GUID{1}, SectorSize: 512, Sectors: size / 512, Partitions: []gpt.Partition{
		{Number: 1, Type: layout.TypeESP, UUID: esp, First: 2048, Last: 4095, Label: "esp"},
		{Number: 2, Type: layout.TypeESP, UUID: layout.OwnESP(esp, gpt.GUID{1}), First: 4096, Last: 8191, Label: "esp"},
	}}
	if err := table.Write(r); err != nil {
		t.Fatal(err)
	}
	return r.Disk()
}

// FAULTS 39
func TestDisk(t *testing.T) {
	ours, other := gpt.GUID{0xaa}, gpt.GUID{0xbb}
	here, there := []bootoption.Function{{Device: 3}}, []bootoption.Function{{Device: 4}}
	system, empty := layout.SlotA.SystemLabel(), blocktest.New(size, blocktest.Hostile)
	for name, c := range map[string]struct {
		m    machine
		want int
		err  error
	}{
		"named":             {machine{disks: []*blocktest.Disk{disk(t, other, system), disk(t, ours, system)}, esp: ours.String()}, 1, nil},
		"named in capitals": {machine{disks: []*blocktest.Disk{disk(t, ours, system)}, esp: "AA000000-0000-0000-0000-000000000000"}, 0, nil},
		"not named":         {machine{disks: []*blocktest.Disk{disk(t, other, "data"), empty, disk(t, ours, system)}}, 2, nil},
		"none":              {machine{disks: []*blocktest.Disk{disk(t, other, system), empty}, esp: ours.String()}, 0, ErrNone},
		// FAULTS 112 (M9): the boot manager's name for it is from before this boot.
		"renamed in this boot":    {machine{disks: []*blocktest.Disk{disk(t, other, system), disk(t, layout.OwnESP(ours, gpt.GUID{1}), system)}, esp: ours.String()}, 1, nil},
		"another one was renamed": {machine{disks: []*blocktest.Disk{disk(t, layout.OwnESP(ours, gpt.GUID{1}), system), disk(t, ours, system)}, esp: ours.String()}, 1, nil},
		"renamed in this boot, beside a copy of the image": {machine{
			disks: []*blocktest.Disk{disk(t, ours, system), disk(t, layout.OwnESP(ours, gpt.GUID{1}), system)},
			pci:   [][]bootoption.Function{there, here}, from: here, esp: ours.String(),
		}, 1, nil},
		"a stick, beside an older installation": {machine{
			disks: []*blocktest.Disk{disk(t, layout.OwnESP(ours, gpt.GUID{1}), system), disk(t, ours, system)},
			pci:   [][]bootoption.Function{there, here}, from: here, esp: ours.String(),
		}, 1, nil},
		"one that is ambiguous, and the one that was started":        {machine{disks: []*blocktest.Disk{twice(t, ours), disk(t, ours, system)}, pci: [][]bootoption.Function{there, here}, from: here, esp: ours.String()}, 1, nil},
		"one that is ambiguous, and another that was not started":    {machine{disks: []*blocktest.Disk{twice(t, ours), disk(t, ours, system)}, pci: [][]bootoption.Function{here, there}, from: here, esp: ours.String()}, 0, layout.ErrAmbiguous},
		"one that is ambiguous, and another, of which nothing tells": {machine{disks: []*blocktest.Disk{disk(t, ours, system), twice(t, ours)}, esp: ours.String()}, 0, layout.ErrAmbiguous},
		"one that is ambiguous":                                      {machine{disks: []*blocktest.Disk{twice(t, ours)}, esp: ours.String()}, 0, layout.ErrAmbiguous},
		"none yet":                                                   {machine{esp: ours.String()}, 0, ErrNone},
		"two":                                                        {machine{disks: []*blocktest.Disk{disk(t, ours, system), disk(t, ours, system)}, esp: ours.String()}, 0, ErrTwo},
		"two, the first started":                                     {machine{disks: []*blocktest.Disk{disk(t, ours, system), disk(t, ours, system)}, pci: [][]bootoption.Function{here, there}, from: here, esp: ours.String()}, 0, nil},
		"two, the second started":                                    {machine{disks: []*blocktest.Disk{disk(t, ours, system), disk(t, ours, system)}, pci: [][]bootoption.Function{there, here}, from: here, esp: ours.String()}, 1, nil},
		"two, on one controller":                                     {machine{disks: []*blocktest.Disk{disk(t, ours, system), disk(t, ours, system)}, pci: [][]bootoption.Function{here, here}, from: here, esp: ours.String()}, 0, ErrTwo},
		"one, by two ways":                                           {machine{disks: []*blocktest.Disk{disk(t, ours, system), disk(t, ours, system)}, pci: [][]bootoption.Function{here, here}, serial: "5000c5", esp: ours.String()}, 0, nil},
		"one serial number, two controllers":                         {machine{disks: []*blocktest.Disk{disk(t, ours, system), disk(t, ours, system)}, pci: [][]bootoption.Function{there, here}, serial: "5000c5", esp: ours.String()}, 0, ErrTwo},
		"two, neither started":                                       {machine{disks: []*blocktest.Disk{disk(t, ours, system), disk(t, ours, system)}, pci: [][]bootoption.Function{there, there}, from: here, esp: ours.String()}, 0, ErrTwo},
	} {
		if c.m.pci == nil {
			c.m.pci = make([][]bootoption.Function, len(c.m.disks))
		}
		got, err := Disk(&c.m, &c.m)
		if !errors.Is(err, c.err) || err == nil && got.Name != strconv.Itoa(c.want) {
			t.Errorf("%s: disk %q, %v", name, got.Name, err)
		}
	}
}
