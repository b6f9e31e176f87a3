package microcode_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/microcode"
	"halogenos.internal/boot/microcode/microcodetest"
	"halogenos.internal/boot/testkit"
)

// Places of the real files in a Debian 13 with intel-microcode and amd64-microcode.
const (
	intelFiles = "usr/lib/firmware/intel-ucode"
	amdFiles   = "usr/lib/firmware/amd-ucode"
)

// real returns the files of a directory of Debian 13, and adds them to a set.
func real(t *testing.T, tree *testkit.Tree, dir string, s *microcode.Set) (files [][]byte) {
	t.Helper()
	names, err := os.ReadDir(tree.Host(dir))
	if err != nil {
		t.Fatalf("make tools13 again: %v", err)
	}
	for _, n := range names {
		data := tree.Read(filepath.Join(dir, n.Name()))
		if err := s.Add(data); err != nil {
			t.Errorf("%s: %v", n.Name(), err)
		}
		files = append(files, data)
	}
	return files
}

func archive(t testing.TB, s *microcode.Set) []byte {
	t.Helper()
	out, err := s.Archive()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// The judge of Intel's part: iucode_tool finds the same microcode in the files and in what
// is made of them, and we find the same as it does.
func TestIntelAgainstIucodeTool(t *testing.T) {
	tree := testkit.Tools13(t)
	s := new(microcode.Set)
	if len(real(t, tree, intelFiles, s)) < 100 {
		t.Error("Debian's intel-microcode has fewer files than ever")
	}
	list := func(file string) []string {
		var all []string
		for line := range strings.Lines(string(tree.Run("iucode_tool", "-l", file))) {
			if _, what, ok := strings.Cut(line, ": sig "); ok {
				all = append(all, strings.TrimSpace(what))
			}
		}
		slices.Sort(all)
		return all
	}
	before := list("/" + intelFiles)
	after := list(tree.Put("GenuineIntel.bin", s.File(microcode.Intel)))
	if !slices.Equal(before, after) {
		t.Errorf("iucode_tool finds %d updates in the files, %d in what was made of them", len(before), len(after))
	}
	var ours, its []string
	for _, p := range s.Processors(microcode.Intel) {
		ours = append(ours, fmt.Sprintf("0x%08x, pf_mask 0x%02x, rev 0x%04x", p.Signature, p.Platforms, p.Revision))
	}
	for _, line := range before {
		fields := strings.Split(line, ", ")
		its = append(its, strings.Join([]string{fields[0], fields[1], fields[3]}, ", "))
	}
	slices.Sort(ours)
	if slices.Sort(its); !slices.Equal(ours, its) {
		t.Errorf("we find\n%s\niucode_tool\n%s", strings.Join(ours, "\n"), strings.Join(its, "\n"))
	}
	// Those of several processors are in a file for each, and in the archive once.
	made := tree.Path("early.cpio")
	tree.Run("iucode_tool", "-q", "--write-earlyfw="+made, "/"+intelFiles)
	if theirs, ours := len(tree.Read(made)), len(archive(t, s)); ours > theirs+4096 || ours < theirs-4096 {
		t.Errorf("the archive has %d bytes, iucode_tool's %d", ours, theirs)
	}
	found, others, err := microcode.Find(tree.Read(made))
	if err != nil || len(others) > 0 || !slices.Equal(found.Processors(microcode.Intel), s.Processors(microcode.Intel)) {
		t.Errorf("in iucode_tool's archive: %d processors, others %q, %v", len(found.Processors(microcode.Intel)), others, err)
	}
}

// The kernel's documentation makes AMD's part by `cat`.
func TestAMDIsConcatenated(t *testing.T) {
	tree := testkit.Tools13(t)
	s := new(microcode.Set)
	files := real(t, tree, amdFiles, s)
	if !bytes.Equal(s.File(microcode.AMD), bytes.Join(files, nil)) {
		t.Error("AMD's files are not one after the other")
	}
	names := s.Names(microcode.AMD)
	for _, want := range []string{"10-02-02", "15-02-00", "17-01-02", "19-21-02"} { // Barcelona, Piledriver, Zen, Zen 3
		if !slices.Contains(names, want) {
			t.Errorf("no microcode for %s among %q", want, names)
		}
	}
}

// The archive is one for GNU cpio and for Debian's lsinitramfs, and the data in it lies
// as Intel's processors want it.
func TestArchive(t *testing.T) {
	testkit.Need(t, "cpio")
	a, b := microcode.Processor{Signature: 0x906ea, Platforms: 0x22, Revision: 0xf8}, microcode.Processor{Signature: 0xa20f12, Revision: 0xa201210}
	for name, add := range map[string][][]byte{
		"both": {microcodetest.Intel(a), microcodetest.AMD(b)}, "Intel": {microcodetest.Intel(a)}, "AMD": {microcodetest.AMD(b)},
		"odd": {microcodetest.AMD(b), append(microcodetest.AMD(b, b, b), microcodetest.AMD(a, b)...), microcodetest.Intel(a)},
	} {
		s := new(microcode.Set)
		for _, data := range add {
			if err := s.Add(data); err != nil {
				t.Fatal(err)
			}
		}
		out := archive(t, s)
		if again := archive(t, s); !bytes.Equal(out, again) || len(out)%16 != 0 {
			t.Errorf("%s: another archive the second time, or %d bytes", name, len(out))
		}
		dir := t.TempDir()
		cmd := exec.Command("cpio", "-i", "--quiet", "--no-preserve-owner")
		cmd.Dir, cmd.Stdin = dir, bytes.NewReader(out)
		if said, err := cmd.CombinedOutput(); err != nil || len(said) > 0 {
			t.Errorf("%s: cpio: %v\n%s", name, err, said)
		}
		for _, v := range microcode.Vendors() {
			unpacked, err := os.ReadFile(filepath.Join(dir, v.Path()))
			if s.Has(v) != (err == nil) || !bytes.Equal(unpacked, s.File(v)) {
				t.Errorf("%s: cpio unpacks %d bytes of %s's, %v", name, len(unpacked), v.Name(), err)
			}
			if at := bytes.Index(out, s.File(v)); s.Has(v) && at%16 != 0 {
				t.Errorf("%s: %s's data lies at byte %d", name, v.Name(), at)
			}
		}
		same(t, name, s, out)
		same(t, name+" behind another archive", s, append(append(slices.Clone(out[:0]), nothing(t)...), out...))
	}
	if out, err := new(microcode.Set).Archive(); len(out) > 0 || err != nil {
		t.Errorf("without microcode: %d bytes, %v", len(out), err)
	}
}

// nothing is an archive with another file, as a UKI of ours begins with.
func nothing(t testing.TB) []byte {
	t.Helper()
	testkit.Need(t, "cpio")
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "x"), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("cpio", "-o", "-H", "newc", "--quiet")
	cmd.Dir, cmd.Stdin = dir, strings.NewReader("x\n")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func same(t *testing.T, name string, want *microcode.Set, in []byte) {
	t.Helper()
	found, _, err := microcode.Find(append(slices.Clone(in), "\x28\xb5\x2f\xfd compressed"...))
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	for _, v := range microcode.Vendors() {
		if !bytes.Equal(found.File(v), want.File(v)) {
			t.Errorf("%s: %d bytes of %s's are found, want %d", name, len(found.File(v)), v.Name(), len(want.File(v)))
		}
	}
}

func TestNewest(t *testing.T) {
	p := microcode.Processor{Signature: 0x906ea, Platforms: 0x22, Revision: 0xf6}
	older, newer, trial := p, p, p
	older.Revision, newer.Revision, trial.Revision = 0xf4, 0xf8, 0x800000f9 // negative: of before the release
	s := new(microcode.Set)
	for _, one := range []microcode.Processor{p, older, newer, trial, p} {
		if err := s.Add(microcodetest.Intel(one)); err != nil {
			t.Fatal(err)
		}
	}
	if got := s.Processors(microcode.Intel); !slices.Equal(got, []microcode.Processor{newer}) {
		t.Errorf("kept %+v, want %+v", got, newer)
	}
	// Another platform's, or one that is for more processors, is another.
	other := p
	other.Platforms = 1
	if err := s.Add(append(microcodetest.Intel(other), microcodetest.Intel(older, other)...)); err != nil {
		t.Fatal(err)
	}
	if got := len(s.File(microcode.Intel)); got != 2048+2048+3072 {
		t.Errorf("kept %d bytes", got)
	}
	if names := s.Names(microcode.Intel); !slices.Equal(names, []string{"06-9e-0a"}) {
		t.Errorf("names %q", names)
	}
}

func TestSignatureName(t *testing.T) {
	for signature, want := range map[uint32]string{0x906ea: "06-9e-0a", 0xf4a: "0f-04-0a", 0x652: "06-05-02", 0xa20f12: "19-21-02", 0x600f20: "15-02-00", 0x562: "05-06-02"} {
		if got := microcode.SignatureName(signature); got != want {
			t.Errorf("%#x is named %s, want %s", signature, got, want)
		}
	}
}

func TestRefuses(t *testing.T) {
	le := binary.LittleEndian
	p := microcode.Processor{Signature: 0x906ea, Platforms: 0x22, Revision: 0xf8}
	change := func(data []byte, at int, to uint32) []byte {
		data = slices.Clone(data)
		le.PutUint32(data[at:], to)
		return data
	}
	intel, several, amd := microcodetest.Intel(p), microcodetest.Intel(p, p), microcodetest.AMD(p)
	both := new(microcode.Set)
	if err := both.Add(intel); err != nil {
		t.Fatal(err)
	}
	packed := archive(t, both)
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"empty":             {nil, "is empty"},
		"text":              {[]byte("/* Intel's old form of text */\n0x00000001, 0x00000002\n"), "is not microcode of Intel's: update 1, at byte 0: header version"},
		"short":             {intel[:47], "47 bytes are left"},
		"cut":               {intel[:2047], "2000 bytes of data in 2048 bytes, of which the file has 2047"},
		"second is cut":     {append(slices.Clone(intel), intel[:100]...), "update 2, at byte 2048"},
		"bit":               {change(intel, 1000, 1), "checksum of header and data is 0x1, want 0"},
		"header version":    {change(intel, 0, 2), "header version 2"},
		"loader":            {change(intel, 20, 2), "loader revision 2"},
		"odd size":          {change(intel, 28, 1999), "1999 bytes of data"},
		"odd total":         {change(intel, 32, 2047), "in 2047 bytes"},
		"data beyond total": {change(intel, 28, 2004), "2004 bytes of data in 2048"},
		"huge":              {change(intel, 28, 0xfffffffc), "4294967292 bytes of data"},
		"table cut":         {change(several, 28, uint32(3072-48-16)), "checksum of header and data"},
		"table's count":     {change(several, 3072-32, 2), "want 44"},
		"table's checksum":  {change(several, 3072-12, 1), "the checksum is"},
		"AMD cut":           {amd[:len(amd)-1], "96 bytes, 95 are left"},
		"AMD nothing":       {amd[:4], "does not begin"},
		"AMD no patch":      {amd[:12+32], "has no patch"},
		"AMD other part":    {change(amd, 4, 1), "does not begin"},
		"AMD long table":    {change(amd, 8, 0xfffffff0), "the table of processors ends at byte"},
		"AMD odd table":     {change(amd, 8, 31), "31 bytes, want up to"},
		"AMD endless table": {change(amd, 8, 16), "has no end"},
		"AMD small patch":   {change(amd, 12+32+4, 63), "has 63 bytes"},
		"AMD huge patch":    {change(amd, 12+32+4, 0xffffffff), "has 4294967295 bytes"},
		"AMD stranger":      {change(amd, 12+32+8+24, 0x2000), "number 0x2000, which the table gives no processor"},
		"AMD then others":   {append(slices.Clone(amd), 7), "container 2, at byte"},
		"archive cut":       {packed[:1000], "and the archive ends at 1000"},
		"archive of others": {nothing(t), `has "x", which is not microcode`},
		"archive, damaged":  {change(packed, len(packed)-300, 1), "GenuineIntel.bin is not microcode of Intel's"},
		"archive's header":  {[]byte("070701000000"), "has 12 bytes, its header has 110"},
		"archive's field":   {append([]byte("070701 000000"), make([]byte, 200)...), "want a hexadecimal number"},
		"archive, no name":  {append([]byte("070701"+strings.Repeat("0", 104)), make([]byte, 200)...), "a name of 0 bytes"},
	} {
		s := new(microcode.Set)
		if err := s.Add(c.data); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want an error with %q", name, err, c.want)
		}
		if s.Has(microcode.Intel) || s.Has(microcode.AMD) {
			t.Errorf("%s: something was kept", name)
		}
	}
}

func FuzzAdd(f *testing.F) {
	p := microcode.Processor{Signature: 0x906ea, Platforms: 0x22, Revision: 0xf8}
	f.Add(microcodetest.Intel(p))
	f.Add(microcodetest.Intel(p, p, p))
	f.Add(microcodetest.AMD(p, p))
	s := new(microcode.Set)
	if err := s.Add(microcodetest.AMD(p)); err != nil {
		f.Fatal(err)
	}
	f.Add(archive(f, s))
	f.Fuzz(func(t *testing.T, data []byte) {
		s := new(microcode.Set)
		if s.Add(data) == nil {
			same(t, "archive", s, archive(t, s))
		}
	})
}

func FuzzFind(f *testing.F) {
	s := new(microcode.Set)
	if err := s.Add(microcodetest.Intel(microcode.Processor{Signature: 0x906ea, Revision: 1})); err != nil {
		f.Fatal(err)
	}
	f.Add(archive(f, s))
	f.Add(append(nothing(f), archive(f, s)...))
	f.Fuzz(func(t *testing.T, data []byte) {
		if found, _, err := microcode.Find(data); err == nil && (found.Has(microcode.Intel) || found.Has(microcode.AMD)) {
			same(t, "archive", found, archive(t, found))
		}
	})
}

func TestParseCPUInfo(t *testing.T) {
	own, err := os.ReadFile(microcode.CPUInfo)
	if err != nil {
		t.Fatal(err)
	}
	if r := microcode.ParseCPUInfo(own); r == nil || r.Vendor == "" || strings.Count(r.Name, "-") != 2 {
		t.Errorf("of this machine: %+v", r)
	}
	const intel = "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 158\nmodel name\t: Intel(R) Core(TM) i7-8700 CPU @ 3.20GHz\nstepping\t: 10\nmicrocode\t: 0xf8\ncpu MHz\t\t: 3200.000\n\nprocessor\t: 1\nstepping\t: 11\nmicrocode\t: 0xf4\n"
	if r := microcode.ParseCPUInfo([]byte(intel)); r == nil || *r != (microcode.Running{Vendor: "GenuineIntel", Name: "06-9e-0a", Revision: "0xf8"}) || r.String() != "GenuineIntel 06-9e-0a, microcode 0xf8" {
		t.Errorf("%+v", r)
	}
	if r := microcode.ParseCPUInfo([]byte(strings.Replace(intel, "cpu MHz", "flags\t\t: fpu vme hypervisor lahf_lm\ncpu MHz", 1))); r == nil || !r.Virtual {
		t.Errorf("in a virtual machine: %+v", r)
	}
	if r := microcode.ParseCPUInfo([]byte(strings.ReplaceAll(intel, "microcode\t: 0xf8\n", ""))); r == nil || r.String() != "GenuineIntel 06-9e-0a, microcode unknown" {
		t.Errorf("without a revision: %+v", r)
	}
	for _, text := range []string{"", "processor\t: 0\nBogoMIPS\t: 50.00\n", "vendor_id: x\ncpu family: -1\nmodel: 2\nstepping: 3\n"} {
		if r := microcode.ParseCPUInfo([]byte(text)); r != nil {
			t.Errorf("%q: %+v", text, r)
		}
	}
	s := new(microcode.Set)
	for revision, platforms := range map[uint32]uint32{0xf8: 2, 0xf4: 4} {
		if err := s.Add(microcodetest.Intel(microcode.Processor{Signature: 0x906ea, Platforms: platforms, Revision: revision})); err != nil {
			t.Fatal(err)
		}
	}
	if p, ok := s.Newest(microcode.Running{Vendor: "GenuineIntel", Name: "06-9e-0a"}); !ok || p.Revision != 0xf8 {
		t.Errorf("newest %+v, %v", p, ok)
	}
	if p, ok := s.Newest(microcode.Running{Vendor: "GenuineIntel", Name: "06-9e-0a", Platform: 4}); !ok || p.Revision != 0xf4 {
		t.Errorf("newest for the platform %+v, %v", p, ok)
	}
	if p, ok := s.Newest(microcode.Running{Vendor: "AuthenticAMD", Name: "06-9e-0a"}); ok {
		t.Errorf("of another maker: %+v", p)
	}
}
