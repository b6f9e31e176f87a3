package hw

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/hwreport"
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

// Reports of machines that somebody has sent: NAME.report with, in NAME.want, the disks
// that a boot must see there and the modules that it must try, one a line ("disk sda",
// "module ahci"). Modules are looked for in a Debian's.
func TestReports(t *testing.T) {
	reports, err := filepath.Glob("testdata/*.report")
	if err != nil || len(reports) == 0 {
		t.Fatalf("there are no reports: %v", err)
	}
	root, release := debian(t)
	for _, path := range reports {
		t.Run(filepath.Base(path), func(t *testing.T) {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			r, err := hwreport.Parse(text)
			if err != nil {
				t.Fatal(err)
			}
			k, _ := kernelIn(t, root, release)
			k.Sys = replay(t, r)
			var got []string
			k.load = func(module string) error { got = append(got, "module "+module); return nil }
			if _, err := k.Coldplug(nil); err != nil {
				t.Fatal(err)
			}
			disks, err := LinuxDisks{Sys: k.Sys, Dev: "/dev"}.List()
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
			for line := range strings.Lines(string(want)) {
				line = strings.TrimSpace(line)
				if line != "" && line[0] != '#' && !slices.Contains(got, line) {
					t.Errorf("it has no %s: %q", line, got)
				}
				got = slices.DeleteFunc(got, func(s string) bool { return s == line })
			}
			for _, left := range got {
				if strings.HasPrefix(left, "disk ") {
					t.Errorf("it has the %s as well", left)
				}
			}
		})
	}
}
