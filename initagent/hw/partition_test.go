package hw

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
)

// A partition is found by what the table says of it, wherever it lies among others, and
// opened only where the kernel has it in the same place.
func TestPartitionPath(t *testing.T) {
	const sectors = 1 << 20
	ours, theirs := gpt.GUID{1}, gpt.GUID{2}
	table := &gpt.Table{Disk: gpt.GUID{9}, SectorSize: 512, Sectors: sectors, Partitions: []gpt.Partition{
		{Number: 1, Type: layout.TypeESP, UUID: theirs, First: 2048, Last: 4095, Label: layout.ESPLabel},
		{Number: 3, Type: gpt.MustGUID("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7"), UUID: gpt.GUID{3}, First: 4096, Last: 8191, Label: layout.RootLabel},
		{Number: 7, Type: layout.TypeESP, UUID: ours, First: 8192, Last: 10239, Label: layout.ESPLabel},
		{Number: 10, Type: layout.TypeLUKS, UUID: gpt.GUID{4}, First: 10240, Last: 12287, Label: layout.RootLabel},
		{Number: 12, Type: layout.TypeRoot, UUID: gpt.GUID{5}, First: 12288, Last: 14335, Label: "system-a"},
		{Number: 13, Type: layout.TypeRoot, UUID: gpt.GUID{6}, First: 14336, Last: 16383, Label: "system-a"},
		{Number: 14, Type: layout.TypeRoot, UUID: gpt.GUID{7}, First: 16384, Last: 18431, Label: "system-b"},
		{Number: 15, Type: layout.TypeRootVerity, UUID: gpt.GUID{8}, First: 18432, Last: 20479, Label: "verity-b"},
		{Number: 16, Type: layout.TypeData, UUID: gpt.GUID{9}, First: 20480, Last: 22527, Label: layout.InstallerLabel},
	}}
	dev := t.TempDir()
	f, err := os.Create(filepath.Join(dev, "nvme0n1"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(sectors*512), table.Write(f), f.Close()); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for number, start := range map[string]string{"1": "2048", "3": "4096", "7": "8192", "10": "10240", "12": "12288", "13": "14336", "14": "99999", "16": "20480"} {
		files["block/nvme0n1/nvme0n1p"+number+"/partition"], files["block/nvme0n1/nvme0n1p"+number+"/start"] = number, start
		files["block/nvme0n1/nvme0n1p"+number+"/size"] = "2048"
	}
	files["block/nvme0n1/nvme0n1p16/size"] = "4096"
	l := LinuxDisks{Sys: tree(t, files), Dev: dev}
	disk := Disk{Name: "nvme0n1", SectorSize: 512, Sectors: sectors}
	started := disk
	started.ESP = ours
	for _, c := range []struct {
		disk    Disk
		role    layout.Role
		want    string
		says    string
		wantErr error
	}{
		{disk, layout.Root, "nvme0n1p10", "", nil},
		{started, layout.Root, "nvme0n1p10", "", nil},
		{started, layout.ESP, "nvme0n1p7", "", nil},
		{disk, layout.ESP, "", "1 and 7 could both be", layout.ErrAmbiguous},
		{disk, layout.SystemA, "", "12 and 13 could both be", layout.ErrAmbiguous},
		{disk, layout.VerityA, "", "none has the label", layout.ErrMissing},
		{disk, layout.SystemB, "", "is elsewhere than", nil},
		{disk, layout.Installer, "", "is not as long as", nil},
		{disk, layout.VerityB, "", "the kernel does not know partition 15 (verity-b)", os.ErrNotExist},
	} {
		path, err := l.PartitionPath(c.disk, c.role)
		switch {
		case c.want != "" && (err != nil || filepath.Base(path) != c.want):
			t.Errorf("%v is %q, %v, want %s", c.role, path, err, c.want)
		case c.want == "" && (err == nil || !strings.Contains(err.Error(), c.says) || c.wantErr != nil && !errors.Is(err, c.wantErr)):
			t.Errorf("%v is %q, %v, want %q", c.role, path, err, c.says)
		}
	}
}
