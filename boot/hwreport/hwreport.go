// Package hwreport writes down what Linux's sysfs says of a machine's disks and devices,
// so that a boot's choices can be tried again elsewhere: which driver a device gets,
// which disks there are, and by which way they are reached.
//
// It refuses to carry what tells one machine from others of its kind: it has a list of
// the attributes that it reads, and no serial number, address, UUID or worldwide name
// is among them. Devices whose names are serial numbers (1-Wire) are left out.
//
// # Format
//
// A report is text in UTF-8. The first line is
//
//	halogen-hardware-report 1
//
// and each further one is an entry below /sys, sorted by name: a file with its content,
// or a symbolic link with where it leads, quoted like strings in Go.
//
//	block/sda -> "../devices/pci0000:00/0000:00:17.0/ata1/host0/target0:0:0/0:0:0:0/block/sda"
//	devices/pci0000:00/0000:00:17.0/modalias = "pci:v00008086d0000A102sv00001028sd000006C7bc01sc06i01\n"
//
// Lines that begin with '#' are for people.
package hwreport

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

const (
	magic      = "halogen-hardware-report 1"
	maxReport  = 16 << 20 // bytes
	maxContent = 4096     // bytes of one attribute: sysfs gives a page
)

// A Report is what is known of a machine: by their names below /sys, the contents of
// files and the targets of links.
type Report struct{ Files, Links map[string]string }

// attributes are those of a disk, of a partition and of a device that are read.
var (
	diskAttributes = []string{
		"size", "ro", "removable", "hidden", "dev", "queue/logical_block_size", "queue/physical_block_size", "queue/rotational", "queue/zoned",
		"device/model", "device/vendor", "device/type",
	}
	partitionAttributes = []string{"partition", "start", "size", "ro", "dev"}
	deviceAttributes    = []string{"modalias", "class"}
	otherFiles          = []string{
		"class/tty/console/active", "class/tpm/tpm0/tpm_version_major", "firmware/efi/fw_platform_size",
		"class/dmi/id/sys_vendor", "class/dmi/id/product_name", "class/dmi/id/bios_vendor", "class/dmi/id/bios_version",
		"devices/system/cpu/cpu0/microcode/version",
	}
)

// leftOut are buses whose devices have serial numbers for names.
var leftOut = []string{"w1"}

// Collect reads a machine's sysfs, which must be able to read links. What is not there
// is left out: no machine has all of it.
func Collect(sys fs.FS) (*Report, error) {
	c := &collector{sys: sys, Report: Report{map[string]string{}, map[string]string{}}}
	disks, err := fs.ReadDir(sys, "block")
	if err != nil {
		return nil, fmt.Errorf("list disks: %w", err)
	}
	for _, d := range disks {
		c.disk("block/" + d.Name())
	}
	buses, err := fs.ReadDir(sys, "bus")
	if err != nil {
		return nil, fmt.Errorf("list buses: %w", err)
	}
	for _, b := range buses {
		if !slices.Contains(leftOut, b.Name()) {
			c.devices("bus/" + b.Name() + "/devices")
		}
	}
	c.devices("class/dmi")
	c.devices("class/input")
	for _, name := range otherFiles {
		c.file(name, name)
	}
	return c.Report.anonymous(), nil
}

var guid = regexp.MustCompile(`[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}`)

// anonymous is the report with GUIDs that count instead of those in its devices' names:
// on Hyper-V they are the machine's own. What drivers are looked for by stays.
func (r *Report) anonymous() *Report {
	numbers := map[string]string{}
	replace := func(name string) string {
		return guid.ReplaceAllStringFunc(name, func(g string) string {
			if numbers[g] == "" {
				numbers[g] = fmt.Sprintf("00000000-0000-0000-0000-%012d", len(numbers)+1)
			}
			return numbers[g]
		})
	}
	out := &Report{map[string]string{}, map[string]string{}}
	for _, name := range slices.Sorted(maps.Keys(r.Files)) {
		out.Files[replace(name)] = r.Files[name]
	}
	for _, name := range slices.Sorted(maps.Keys(r.Links)) {
		out.Links[replace(name)] = replace(r.Links[name])
	}
	return out
}

type collector struct {
	Report
	sys fs.FS
}

// place notes a link, and returns where it leads; the name itself where it is none.
func (c *collector) place(name string) string {
	target, err := fs.ReadLink(c.sys, name)
	if err != nil {
		return name
	}
	at := path.Join(path.Dir(name), target)
	if path.IsAbs(target) || !fs.ValidPath(at) {
		return name
	}
	c.Links[name] = target
	return at
}

// file notes a file that is found by one name under another.
func (c *collector) file(by, name string) {
	text, err := fs.ReadFile(c.sys, by)
	if err != nil || len(text) > maxContent {
		return
	}
	c.Files[name] = string(text)
}

func (c *collector) disk(name string) {
	at := c.place(name)
	for _, a := range diskAttributes {
		// What a disk's device has is noted as the disk's own: the link may lead
		// through names that say more than is wanted.
		c.file(name+"/"+a, at+"/"+a)
	}
	entries, err := fs.ReadDir(c.sys, name)
	if err != nil {
		return
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), path.Base(name)) {
			continue
		}
		for _, a := range partitionAttributes {
			c.file(name+"/"+e.Name()+"/"+a, at+"/"+e.Name()+"/"+a)
		}
	}
}

func (c *collector) devices(directory string) {
	entries, err := fs.ReadDir(c.sys, directory)
	if err != nil {
		return
	}
	for _, e := range entries {
		name := directory + "/" + e.Name()
		before := len(c.Files)
		at := name
		if target, err := fs.ReadLink(c.sys, name); err == nil {
			at = path.Join(directory, target)
		}
		for _, a := range deviceAttributes {
			c.file(name+"/"+a, at+"/"+a)
		}
		c.uevent(name, at)
		if len(c.Files) > before { // one without a name to find drivers by is of no interest
			c.place(name)
		}
	}
}

// uevent notes the names for drivers that a device has there, and nothing else: other
// lines can have serial numbers.
func (c *collector) uevent(by, at string) {
	text, err := fs.ReadFile(c.sys, by+"/uevent")
	if err != nil {
		return
	}
	var kept strings.Builder
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "MODALIAS=") {
			kept.WriteString(line)
		}
	}
	if kept.Len() > 0 {
		c.Files[at+"/uevent"] = kept.String()
	}
}

// Bytes is the report as text.
func (r *Report) Bytes() []byte {
	var out bytes.Buffer
	fmt.Fprintln(&out, magic)
	all := maps.Clone(r.Files)
	maps.Copy(all, r.Links)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if target, link := r.Links[name]; link {
			fmt.Fprintf(&out, "%s -> %q\n", name, target)
		} else {
			fmt.Fprintf(&out, "%s = %q\n", name, r.Files[name])
		}
	}
	return out.Bytes()
}

// Parse reads a report. Names stay within the tree, and so do links.
func Parse(text []byte) (*Report, error) {
	if len(text) > maxReport {
		return nil, fmt.Errorf("hardware report: more than %d bytes", maxReport)
	}
	head, rest, _ := strings.Cut(string(text), "\n")
	if strings.TrimRight(head, "\r") != magic {
		return nil, fmt.Errorf("hardware report: the first line is %.40q, want %q", head, magic)
	}
	r := &Report{map[string]string{}, map[string]string{}}
	number := 1
	for line := range strings.Lines(rest) {
		number++
		if line = strings.TrimRight(line, "\r\n"); line == "" || line[0] == '#' {
			continue
		}
		if err := r.add(line); err != nil {
			return nil, fmt.Errorf("hardware report: line %d: %w", number, err)
		}
	}
	return r, nil
}

func (r *Report) add(line string) error {
	name, quoted, link := strings.Cut(line, " -> ")
	if file, content, ok := strings.Cut(line, " = "); ok && (!link || len(file) < len(name)) {
		name, quoted, link = file, content, false
	}
	value, err := strconv.Unquote(quoted)
	if err != nil || !strings.HasPrefix(quoted, `"`) {
		return errors.New(`want NAME = "content" or NAME -> "target"`)
	}
	_, twice := r.Files[name]
	_, again := r.Links[name]
	switch {
	case !fs.ValidPath(name) || name == "." || strings.ContainsAny(name, "\x00\\"):
		return fmt.Errorf("%q is not a name below /sys", name)
	case twice || again:
		return fmt.Errorf("%s occurs twice", name)
	case link && (path.IsAbs(value) || !fs.ValidPath(path.Join(path.Dir(name), value))):
		return fmt.Errorf("the link %s leads out of /sys", name)
	case link:
		r.Links[name] = value
	default:
		r.Files[name] = value
	}
	return nil
}
