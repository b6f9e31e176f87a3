package hwreport_test

import (
	"bytes"
	"io/fs"
	"maps"
	"strings"
	"testing"
	"testing/fstest"

	"halogenos.internal/boot/hwreport"
)

// instance is a name that Hyper-V gives one machine's disk.
const instance = "f8b3781a-1e82-4818-a1c3-63d806ec15bb"

// machine is a sysfs with what must not be told.
func machine() fstest.MapFS {
	const disk, stick = "devices/pci0000:00/0000:00:17.0/ata1/host0/target0:0:0/0:0:0:0/block/sda", "devices/pci0000:00/0000:00:14.0/usb1/1-3"
	const hyperV = "devices/LNXSYSTM:00/VMBUS:00/" + instance
	sys := fstest.MapFS{}
	for name, content := range map[string]string{
		disk + "/size": "2000\n", disk + "/queue/logical_block_size": "512\n", disk + "/device/model": "A Disk  \n", disk + "/sda1/partition": "1\n", disk + "/sda1/start": "8\n",
		"devices/pci0000:00/0000:00:17.0/modalias": "pci:v00008086d0000A102\n", "devices/pci0000:00/0000:00:17.0/class": "0x010601\n",
		stick + "/modalias": "usb:v0781p5581\n", stick + "/uevent": "DEVTYPE=usb_device\nMODALIAS=usb:v0781p5581\nHID_UNIQ=SECRET1\n",
		disk + "/serial": "SECRET2\n", disk + "/wwid": "naa.SECRET3\n", disk + "/device/vpd_pg80": "SECRET4", disk + "/device/serial": "SECRET5", stick + "/serial": "SECRET6",
		disk + "/sda1/uevent": "PARTUUID=SECRET7\n", "class/dmi/id/product_serial": "SECRET8", "class/dmi/id/product_uuid": "SECRET9", "class/net/eth0/address": "52:54:00:SECRET",
		"bus/w1/devices/28-SECRET10/modalias": "w1:x\n", "class/dmi/id/modalias": "dmi:bvnX:\n", "class/dmi/id/sys_vendor": "A Vendor\n", "class/tty/console/active": "tty0\n", "devices/system/cpu/cpu0/microcode/version": "0xf8\n",
		hyperV + "/modalias":               "vmbus:d96361baa104294db60572e2ffb1dc7f\n",
		"bus/platform/devices/silent/name": "nothing\n", "firmware/efi/efivars/Boot0000-x": "SECRET11",
	} {
		sys[name] = &fstest.MapFile{Data: []byte(content)}
	}
	for name, target := range map[string]string{
		"block/sda": "../" + disk, "bus/pci/devices/0000:00:17.0": "../../../devices/pci0000:00/0000:00:17.0", "bus/usb/devices/1-3": "../../../" + stick,
		"bus/vmbus/devices/" + instance: "../../../" + hyperV,
	} {
		sys[name] = &fstest.MapFile{Data: []byte(target), Mode: fs.ModeSymlink}
	}
	return sys
}

// FAULTS 112: a report has what a boot decides by, and nothing that tells a machine
// from others of its kind.
func TestCollect(t *testing.T) {
	r, err := hwreport.Collect(machine())
	if err != nil {
		t.Fatal(err)
	}
	text := r.Bytes()
	if bytes.Contains(text, []byte("SECRET")) || bytes.Contains(text, []byte(instance)) {
		t.Errorf("it tells too much:\n%s", text)
	}
	for _, want := range []string{
		`block/sda -> "../devices/pci0000:00/0000:00:17.0/ata1/host0/target0:0:0/0:0:0:0/block/sda"`, `/sda/size = "2000\n"`, `/sda/sda1/partition = "1\n"`, `/sda/device/model = "A Disk  \n"`,
		`devices/pci0000:00/0000:00:17.0/class = "0x010601\n"`, `bus/usb/devices/1-3 -> "../../../devices/pci0000:00/0000:00:14.0/usb1/1-3"`, `1-3/uevent = "MODALIAS=usb:v0781p5581\n"`,
		`class/dmi/id/modalias = "dmi:bvnX:\n"`, `class/dmi/id/sys_vendor = "A Vendor\n"`, `class/tty/console/active = "tty0\n"`, `cpu0/microcode/version = "0xf8\n"`,
		`bus/vmbus/devices/00000000-0000-0000-0000-000000000001 -> "../../../devices/LNXSYSTM:00/VMBUS:00/00000000-0000-0000-0000-000000000001"`,
		`VMBUS:00/00000000-0000-0000-0000-000000000001/modalias = "vmbus:d96361baa104294db60572e2ffb1dc7f\n"`,
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("it lacks %s:\n%s", want, text)
		}
	}
	again, err := hwreport.Parse(text)
	if err != nil || !maps.Equal(again.Files, r.Files) || !maps.Equal(again.Links, r.Links) {
		t.Errorf("read back: %v\n%s", err, again.Bytes())
	}
	if _, err := hwreport.Collect(fstest.MapFS{}); err == nil {
		t.Error("an empty sysfs was reported")
	}
}

func TestParseRefuses(t *testing.T) {
	const first = "halogen-hardware-report 1\n"
	for text, want := range map[string]string{
		"": "the first line", "halogen-hardware-report 2\n": "the first line", first + "a b\n": "line 2: want NAME", first + `a = b`: "want NAME", first + "a = `b`": "want NAME",
		first + `../a = "b"`: "not a name", first + `/a = "b"`: "not a name", first + `. = "b"`: "not a name", first + `a/../b = "c"`: "not a name",
		first + `a -> "/etc/passwd"`: "leads out", first + `a/b -> "../../c"`: "leads out", first + "# x\n\na = \"b\"\na -> \"c\"": "line 5: a occurs twice",
	} {
		if r, err := hwreport.Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, %v; want %q", text, r, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("halogen-hardware-report 1\na = \"b\"\nc/d -> \"../a\"\n# x\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := hwreport.Parse(text)
		if err != nil {
			return
		}
		if again, err := hwreport.Parse(r.Bytes()); err != nil || !maps.Equal(again.Files, r.Files) || !maps.Equal(again.Links, r.Links) {
			t.Errorf("%q: read back: %v", text, err)
		}
	})
}
