package hw

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/bootoption"
	"halogenos.internal/boot/verity"
)

// tree makes files, and links where the content starts with "->".
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, link := strings.CutPrefix(content, "->"); link {
			err = os.Symlink(target, path)
		} else {
			err = os.WriteFile(path, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestDisks(t *testing.T) {
	const nvme = "devices/pci0000:00/0000:00:1c.5/0000:03:00.0/nvme/nvme0/nvme0n1/"
	const vda = "devices/pci0000:00/0000:00:03.0/virtio1/block/vda/"
	sys := tree(t, map[string]string{
		nvme + "size": "8192\n", nvme + "queue/logical_block_size": "4096\n", nvme + "device/model": "Some Disk  \n", nvme + "device/serial": " S1 \n",
		nvme + "nvme0n1p2/partition": "2\n", nvme + "nvme0n1p10/partition": "10\n",
		vda + "size": "2048\n", vda + "queue/logical_block_size": "512\n", vda + "serial": "V1", vda + "ro": "1\n",
		"block/nvme0n1": "->../" + nvme, "block/vda": "->../" + vda,
		"block/loop0/size": "100", "block/dm-0/size": "100", "block/sr0/size": "100",
		"block/sdb/size": "0", "block/sdc/size": "many",
	})
	l := LinuxDisks{Sys: sys, Dev: "/dev"}
	got, err := l.List()
	want := []Disk{
		{Name: "nvme0n1", Model: "Some Disk", Serial: "S1", SectorSize: 4096, Sectors: 1024, PCI: []bootoption.Function{{Device: 0x1c, Function: 5}, {}}},
		{Name: "vda", Serial: "V1", SectorSize: 512, Sectors: 2048, ReadOnly: true, PCI: []bootoption.Function{{Device: 3}}},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("List = %+v, %v", got, err)
	}
	if none, err := (LinuxDisks{Sys: t.TempDir()}).List(); err != nil || none != nil {
		t.Errorf("without disks: %v, %v", none, err)
	}
}

// FAULTS 112 (M3, M4): an NVMe disk with native multipath lies behind no controller,
// and the ways to it are those of its hidden paths. What is part of a disk, or made of
// others, is none.
func TestMultipath(t *testing.T) {
	const one, two = "devices/pci0000:00/0000:00:1d.0/0000:03:00.0/nvme/nvme0/", "devices/pci0000:00/0000:00:1d.4/0000:04:00.0/nvme/nvme1/"
	const head, mmc = "devices/virtual/nvme-subsystem/nvme-subsys0/", "devices/platform/80860F14:00/mmc_host/mmc0/mmc0:0001/block/mmcblk0/"
	files := map[string]string{
		head + "nvme0n1/nvme0n1p2/partition": "2", head + "nvme0n1/device": "->../../nvme-subsys0", head + "model": "Twin", head + "serial": "S2",
		head + "nvme0":           "->../../../pci0000:00/0000:00:1d.0/0000:03:00.0/nvme/nvme0",
		one + "nvme0c0n1/hidden": "1", two + "nvme0c1n1/hidden": "1",
	}
	for place, size := range map[string]string{
		head + "nvme0n1": "8192", one + "nvme0c0n1": "8192", two + "nvme0c1n1": "8192", mmc[:len(mmc)-1]: "8192", mmc + "mmcblk0boot0": "8192", mmc + "mmcblk0rpmb": "8192",
		"devices/virtual/block/zd0": "8192", "devices/virtual/block/bcache0": "8192", "devices/pci0000:00/0000:00:14.0/block/sdr": "0",
	} {
		files[place+"/size"], files[place+"/queue/logical_block_size"] = size, "512"
		files["block/"+filepath.Base(place)] = "->../" + place
	}
	disks, err := LinuxDisks{Sys: tree(t, files), Dev: "/dev"}.List()
	if err != nil || len(disks) != 2 || disks[0].Name != "mmcblk0" || disks[1].Name != "nvme0n1" {
		t.Fatalf("disks %+v, %v", disks, err)
	}
	d := disks[1]
	first, second := Way{{Device: 0x1d}, {}}, Way{{Device: 0x1d, Function: 4}, {}}
	if d.Model != "Twin" || d.Serial != "S2" || !d.At(first) || !d.At(second) || d.At(Way{{Device: 0x1d}}) || !d.Behind(second) || !d.Behind(second[:1]) || !d.Behind(nil) || d.Behind(Way{{Device: 3}}) {
		t.Errorf("disk %+v", d)
	}
	if disks[0].PCI != nil || !disks[0].Behind(nil) || disks[0].Behind(first) {
		t.Errorf("disk %+v", disks[0])
	}
}

func TestFirmware(t *testing.T) {
	text := "\x06\x00\x00\x00" + "A\x00-\x00" + "\x00\x00" + "x\x00"
	option := make([]byte, 8)
	binary.LittleEndian.PutUint16(option[4:], 10)
	option = append(option, 1, 1, 6, 0, 2, 0x1f, 0x7f, 0xff, 4, 0)
	vars := tree(t, map[string]string{
		"LoaderDevicePartUUID-" + loaderGUID: text,
		"LoaderBootCountPath-" + loaderGUID:  "\x07\x00\x00\x00" + "x\x00",
		"StubImageIdentifier-" + loaderGUID:  "\x07\x00\x00\x00" + strings.Repeat("x\x00", maxVariable),
		"SecureBoot-" + globalGUID:           "\x06\x00\x00\x00\x01",
		"SetupMode-" + globalGUID:            "\x06\x00\x00\x00\x00",
		"Short-" + globalGUID:                "\x06",
		"BootCurrent-" + globalGUID:          "\x06\x00\x00\x00\x0a\x00",
		"Boot000A-" + globalGUID:             "\x07\x00\x00\x00" + string(option),
	})
	l := LinuxFirmware{EFIVars: vars}
	if s, err := l.LoaderString("LoaderDevicePartUUID"); err != nil || s != "A-" {
		t.Errorf("string %q, %v", s, err)
	}
	for name, what := range map[string]string{"LoaderInfo": "absent", "LoaderBootCountPath": "non-volatile", "StubImageIdentifier": "large non-volatile"} {
		if s, err := l.LoaderString(name); err != nil || s != "" {
			t.Errorf("%s string %q, %v", what, s, err)
		}
	}
	for name, want := range map[string]bool{"SecureBoot": true, "SetupMode": false, "AuditMode": false} {
		if got, err := l.Flag(name); err != nil || got != want {
			t.Errorf("%s is %v, %v", name, got, err)
		}
	}
	if _, err := l.Flag("Short"); err == nil {
		t.Error("a variable without attributes was read")
	}
	if way, err := l.BootedFrom(); err != nil || !reflect.DeepEqual(way, []bootoption.Function{{Device: 0x1f, Function: 2}}) {
		t.Errorf("started from %v, %v", way, err)
	}
	if way, err := (LinuxFirmware{EFIVars: t.TempDir()}).BootedFrom(); err != nil || way != nil {
		t.Errorf("without variables: started from %v, %v", way, err)
	}
}

// FAULTS 36
func TestVerityTable(t *testing.T) {
	v := Verity{Params: verity.Params{DataBlocks: 7, Salt: []byte{0xab}}, DataDevice: "/dev/a", HashDevice: "/dev/b"}
	table := VerityTable(v)
	if table.Params != nil || table.Length != 7*4096 || table.Salt != "ab" || table.HashStartBlock != 1 || table.Algorithm != "sha256" || len(table.Digest) != 64 {
		t.Errorf("table %+v", table)
	}
	v.RestartOnCorruption = true
	behind := v
	behind.HashStart = 5 * 4096 // the superblock is block 5, and the tree follows it
	if got := VerityTable(behind).HashStartBlock; got != 6 || table.HashStartBlock != 1 {
		t.Errorf("the tree starts at block %d, and of a device of its own at %d", got, table.HashStartBlock)
	}
	if table = VerityTable(v); !reflect.DeepEqual(table.Params, []string{"1", "restart_on_corruption"}) {
		t.Errorf("on trial: options %q", table.Params)
	}
}

func TestSplitNames(t *testing.T) {
	if got := splitNames([]byte("user.a\x00security.capability\x00cut")); !reflect.DeepEqual(got, []string{"user.a", "security.capability"}) {
		t.Errorf("names %q", got)
	}
}

// devices resembles a machine with a disk on an NVMe controller, an empty SATA
// controller, a disk by virtio and one that only its uevent tells of.
func devices(t *testing.T) string {
	const nvme, sata, virtio = "devices/pci0000:00/0000:00:1c.5/0000:03:00.0/", "devices/pci0000:00/0000:00:1f.2/", "devices/pci0000:00/0000:00:03.0/"
	return tree(t, map[string]string{
		nvme + "modalias": "pci:nvme\n", nvme + "class": "0x010802\n", sata + "modalias": "pci:sata\n", sata + "class": "0x010601\n",
		virtio + "class": "0x010000\n", virtio + "virtio0/modalias": "virtio:d2\n",
		"devices/pci0000:00/0000:00:14.0/modalias": "pci:usb\n", "devices/pci0000:00/0000:00:14.0/class": "0x0c0330\n",
		"devices/platform/mmc/uevent": "DRIVER=\nMODALIAS=mmc:block\n", "devices/virtual/dmi/id/modalias": "dmi:machine\n", "devices/platform/odd/name": "odd",
		"bus/pci/devices/0000:03:00.0": "->../../../" + nvme, "bus/pci/devices/0000:00:1f.2": "->../../../" + sata,
		"bus/pci/devices/0000:00:14.0": "->../../../devices/pci0000:00/0000:00:14.0", "bus/virtio/devices/virtio0": "->../../../" + virtio + "virtio0",
		"bus/mmc/devices/mmc": "->../../../devices/platform/mmc", "bus/platform/devices/odd": "->../../../devices/platform/odd",
		"class/dmi/id": "->../../devices/virtual/dmi/id",
	})
}

func TestColdplug(t *testing.T) {
	for name, c := range map[string]struct {
		way  []bootoption.Function
		want []string
	}{
		"from anywhere":                      {nil, []string{"block", "machine", "nvme", "sata", "usb", "virtio"}},
		"from NVMe":                          {[]bootoption.Function{{Device: 0x1c, Function: 5}, {}}, []string{"block", "machine", "nvme", "usb"}},
		"from virtio":                        {[]bootoption.Function{{Device: 3}}, []string{"block", "machine", "usb", "virtio"}},
		"from a stick":                       {[]bootoption.Function{{Device: 0x14}}, []string{"block", "machine", "usb"}},
		"from what the firmware hides":       {[]bootoption.Function{{Device: 0x1c, Function: 5}}, []string{"block", "machine", "nvme", "usb"}},
		"from a controller that is not here": {[]bootoption.Function{{Device: 0x1e}}, []string{"block", "machine", "usb"}},
	} {
		var loaded []string
		k := &LinuxKernel{Sys: devices(t), aliases: aliasIndex{}, seen: map[string]bool{}, load: func(module string) error {
			loaded = append(loaded, module)
			return errors.New("a driver that does not load stops nothing")
		}}
		for _, a := range []string{"pci:nvme nvme", "pci:nv* nvme", "pci:sata sata", "pci:usb usb", "virtio:d2 virtio", "mmc:block block", "dmi:* machine"} {
			pattern, module, _ := strings.Cut(a, " ")
			k.aliases.add(pattern, module, 0)
		}
		tried, err := k.Coldplug(c.way)
		slices.Sort(loaded)
		if err != nil || tried != len(c.want) || !slices.Equal(loaded, c.want) {
			t.Errorf("%s: tried %d, loaded %q, %v; want %q", name, tried, loaded, err, c.want)
		}
		rest, err := k.Coldplug(nil)
		if err != nil || tried+rest != 6 || len(loaded) != 6 {
			t.Errorf("%s: then %d more, loaded %q, %v; want 6 in all", name, rest, loaded, err)
		}
	}
}

// What is plugged in later gets its driver, once, and a TPM gets none. FAULTS 112
func TestHotplug(t *testing.T) {
	root := tree(t, map[string]string{
		"modules/modules.dep":   "kernel/drivers/usb/storage/usb-storage.ko:\nkernel/drivers/char/tpm/tpm_tis.ko:\n",
		"sys/bus/usb/devices/x": "", "sys/bus/acpi/devices/x": "",
	})
	loaded := make(chan string, 10)
	k := &LinuxKernel{Sys: filepath.Join(root, "sys"), Modules: filepath.Join(root, "modules"), aliases: aliasIndex{}, seen: map[string]bool{}}
	k.load = func(module string) error { loaded <- module; return nil }
	k.aliases.add("usb:v1*", "usb_storage", 0)
	k.aliases.add("acpi*:TPM*", "tpm_tis", 1)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { k.Hotplug(ctx); close(ended) }()
	for name, modalias := range map[string]string{"acpi/devices/tpm": "acpi:TPM1:", "usb/devices/stick": "usb:v1p1\n", "usb/devices/stick2": "usb:v1p1\n"} {
		directory := filepath.Join(root, "sys/bus", name)
		if err := errors.Join(os.Mkdir(directory, 0o755), os.WriteFile(filepath.Join(directory, "modalias"), []byte(modalias), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case module := <-loaded:
		if module != "usb_storage" {
			t.Errorf("loaded %s", module)
		}
	case <-time.After(30 * time.Second):
		t.Error("a stick got no driver")
	}
	time.Sleep(2 * hotplugEvery)
	stop()
	<-ended
	if len(loaded) > 0 {
		t.Errorf("then loaded %s, too", <-loaded)
	}
}

// Of another directory's modules only the drivers that are wanted are tried, each once.
func TestColdplugOnly(t *testing.T) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	modules := "usr/lib/modules/" + unix.ByteSliceToString(u.Release[:])
	root := tree(t, map[string]string{
		modules + "/modules.dep":           "kernel/drivers/net/some-net.ko.xz: kernel/lib/dep.ko\nkernel/lib/dep.ko:\nkernel/drivers/gpu/card.ko:\n",
		modules + "/modules.alias":         "alias pci:v1* card\nalias pci:v2* some_net\n",
		"sys/devices/pci/1/modalias":       "pci:v1\n",
		"sys/devices/pci/2/modalias":       "pci:v2\n",
		"sys/devices/pci/2/again/modalias": "pci:v2\n",
		"sys/bus/pci/devices/1":            "->../../../devices/pci/1", "sys/bus/pci/devices/2": "->../../../devices/pci/2",
	})
	k, err := NewLinuxKernel(filepath.Join(root, "sys"), filepath.Join(root, "usr/lib/modules"))
	if err != nil {
		t.Fatal(err)
	}
	tried, err := k.ColdplugOnly(func(file string) bool { return strings.HasPrefix(file, "kernel/drivers/net/") })
	if err != nil || tried != 1 {
		t.Errorf("%d modules were tried, %v; want one", tried, err)
	}
	if err := k.Load("card"); err == nil || !strings.Contains(err.Error(), "card.ko: no such file") {
		t.Errorf("a module without a file: %v", err)
	}
}
