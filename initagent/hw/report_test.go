package hw

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/hwreport"
	"halogenos.internal/builder/config"
	"halogenos.internal/builder/initramfs"
)

// replay makes a sysfs of a hardware report.
func replay(t *testing.T, r *hwreport.Report) string {
	t.Helper()
	files := map[string]string{}
	for name, content := range r.Files {
		files[name] = content
	}
	for name, target := range r.Links {
		files[name] = "->" + target
	}
	return tree(t, files)
}

// names are all names of devices that drivers are looked for by, in a sysfs.
func names(t *testing.T, sys string) (all []string) {
	t.Helper()
	k := &LinuxKernel{Sys: sys, aliases: aliasIndex{}, seen: map[string]bool{}}
	k.aliases.add("*", "any", 0)
	k.load = func(string) error { return nil }
	if _, err := k.Coldplug(nil); err != nil {
		t.Fatal(err)
	}
	for name := range k.seen {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}

// FAULTS 112: the report of a machine, replayed, has the machine's disks and devices:
// that of the machine which this runs on, whichever it is.
func TestReportOfThisMachine(t *testing.T) {
	if _, err := os.Stat("/sys/block"); err != nil {
		t.Skipf("this machine shows no disks: %v", err)
	}
	r, err := hwreport.Collect(os.DirFS("/sys"))
	if err != nil {
		t.Fatal(err)
	}
	read, err := hwreport.Parse(r.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	sys := replay(t, read)
	here, err := LinuxDisks{Sys: "/sys", Dev: "/dev"}.List()
	if err != nil {
		t.Fatal(err)
	}
	there, err := LinuxDisks{Sys: sys, Dev: "/dev"}.List()
	if err != nil || len(there) != len(here) {
		t.Fatalf("disks %+v, %v; want %+v", there, err, here)
	}
	for i, d := range here {
		got := there[i]
		if got.Serial != "" || got.Name != d.Name || got.Model != d.Model || got.Sectors != d.Sectors || got.SectorSize != d.SectorSize || !slices.Equal(got.PCI, d.PCI) {
			t.Errorf("disk %+v, want %+v but its serial number", got, d)
		}
	}
	if got, want := names(t, sys), names(t, "/sys"); !slices.Equal(got, want) {
		t.Errorf("devices\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if got, want := Terminals(sys), Terminals("/sys"); !slices.Equal(got, want) {
		t.Errorf("terminals %q, want %q", got, want)
	}
}

// replayFile makes a sysfs of the hardware report in a file.
func replayFile(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r, err := hwreport.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return replay(t, r)
}

// below reads the files of an unpacked root file system.
type below string

func (d below) ReadFile(name string, _ int64) ([]byte, error) {
	return os.ReadFile(filepath.Join(string(d), name))
}

// initramfsOf cuts a kernel's modules down to those that uki.conf puts into the
// initramfs, without one of them, and says which they are.
func initramfsOf(t *testing.T, k *LinuxKernel, root, release, without string) map[string]bool {
	t.Helper()
	c, err := config.Load("../../uki.conf")
	if err != nil {
		t.Fatal(err)
	}
	index, err := initramfs.LoadIndex(below(root), "usr/lib/modules/"+release, release)
	if err != nil {
		t.Fatal(err)
	}
	names, err := index.Select(slices.DeleteFunc(c.Modules, func(m config.Module) bool { return m.Name == without }))
	if err != nil {
		t.Fatal(err)
	}
	in := map[string]bool{}
	for _, name := range names {
		in[name] = true
	}
	k.keepOnly(in)
	for _, list := range []map[string][]string{k.needs, k.pre, k.post} {
		maps.DeleteFunc(list, func(name string, _ []string) bool { return !in[name] })
	}
	return in
}

// tries are the modules that a boot tries for the devices of a sysfs.
func tries(t *testing.T, k *LinuxKernel) (all []string) {
	t.Helper()
	k.seen = map[string]bool{}
	k.load = func(module string) error { all = append(all, canonical(module)); return nil }
	if _, err := k.Coldplug(nil); err != nil {
		t.Fatal(err)
	}
	return all
}

// startsWith is where the drivers are that a boot may need: disks and what they are on,
// keyboards and what they are on, TPMs.
var startsWith = regexp.MustCompile(`^kernel/drivers/(ata/|block/|char/tpm/|hid/|hv/|i2c/busses/i2c-designware|input/(keyboard|serio)/|message/|mfd/intel-lpss|mmc/|` +
	`nvme/|pci/controller/|pinctrl/|platform/surface/|scsi/|spi/spi-pxa2xx|ufs/|usb/(host|storage)/)`)

// missing are the drivers that a Debian has for a machine's disks, keyboards and TPM, and
// an initramfs lacks.
func missing(t *testing.T, k *LinuxKernel, in map[string]bool) (all []string) {
	t.Helper()
	file := map[string]string{}
	if err := k.lines("modules.dep", func(w []string) { file[moduleName(strings.TrimSuffix(w[0], ":"))] = w[0] }); err != nil {
		t.Fatal(err)
	}
	for _, name := range tries(t, k) {
		if !in[name] && startsWith.MatchString(file[name]) && !slices.Contains(all, name) {
			all = append(all, name)
		}
	}
	return all
}

// Reports of machines that somebody has sent: NAME.report with, in NAME.want, the disks
// that a boot must see there, the modules that it must try, and those that it does
// without, one a line ("disk sda", "module ahci", "without uas"). Modules are those that
// uki.conf puts into the initramfs, of a Debian's; what a Debian has for disks, keyboards and the
// TPM besides, and NAME.want does not name, is missing in uki.conf.
func TestReports(t *testing.T) {
	reports, err := filepath.Glob("testdata/*.report")
	if err != nil || len(reports) == 0 {
		t.Fatalf("there are no reports: %v", err)
	}
	root, release := debian(t)
	for _, path := range reports {
		t.Run(filepath.Base(path), func(t *testing.T) {
			whole, _ := kernelIn(t, root, release)
			k, _ := kernelIn(t, root, release)
			sys := replayFile(t, path)
			whole.Sys, k.Sys = sys, sys
			in := initramfsOf(t, k, root, release, "")
			var got []string
			for _, name := range tries(t, k) {
				got = append(got, "module "+name)
			}
			for _, name := range missing(t, whole, in) {
				got = append(got, "without "+name)
			}
			disks, err := LinuxDisks{Sys: sys, Dev: "/dev"}.List()
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range disks {
				got = append(got, "disk "+d.Name)
			}
			want, err := os.ReadFile(strings.TrimSuffix(path, ".report") + ".want")
			if err != nil {
				t.Fatal(err)
			}
			compareWant(t, string(want), got)
		})
	}
}

// compareWant wants each line of a NAME.want, and no disk and no driver that the boot
// does without besides.
func compareWant(t *testing.T, want string, got []string) {
	t.Helper()
	all := slices.Clone(got)
	for line := range strings.Lines(want) {
		line = strings.TrimSpace(line)
		if line != "" && line[0] != '#' && !slices.Contains(all, line) {
			t.Errorf("it has no %s: %q", line, all)
		}
		got = slices.DeleteFunc(got, func(s string) bool { return s == line })
	}
	for _, left := range got {
		if name, ok := strings.CutPrefix(left, "without "); ok {
			t.Errorf("uki.conf lacks %s, which a Debian has for this machine", name)
		} else if strings.HasPrefix(left, "disk ") {
			t.Errorf("it has the %s as well", left)
		}
	}
}

// A report shows what uki.conf lacks, whether or not somebody has thought of it.
func TestReportShowsMissingDriver(t *testing.T) {
	root, release := debian(t)
	for _, c := range []struct{ report, module string }{
		{"baytrail-tablet", "sdhci_acpi"}, {"baytrail-tablet", "i2c_hid_acpi"}, {"hyper-v-guest", "hv_storvsc"}, {"hyper-v-guest", "hyperv_keyboard"},
		{"nvme-multipath-server", "nvme"}, {"nvme-multipath-server", "ahci"},
	} {
		whole, _ := kernelIn(t, root, release)
		k, _ := kernelIn(t, root, release)
		whole.Sys = replayFile(t, "testdata/"+c.report+".report")
		k.Sys = whole.Sys
		in := initramfsOf(t, k, root, release, c.module)
		if got := missing(t, whole, in); !slices.Equal(got, []string{c.module}) || slices.Contains(tries(t, k), c.module) {
			t.Errorf("%s without %s: %q is missing", c.report, c.module, got)
		}
	}
}
