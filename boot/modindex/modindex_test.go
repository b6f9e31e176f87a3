package modindex

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/testkit"
)

// kernelModules are some of Debian's, with dependencies and aliases.
func kernelModules(t *testing.T) (from string, files []string) {
	t.Helper()
	found, err := filepath.Glob(testkit.Debian(t) + "/usr/lib/modules/*")
	if err != nil || len(found) == 0 {
		t.Fatalf("kernels %q, %v", found, err)
	}
	from = found[0]
	for _, pattern := range []string{"kernel/fs/*/*.ko*", "kernel/lib/*.ko*", "kernel/drivers/net/ethernet/intel/*/*.ko*", "kernel/drivers/hid/*.ko*"} {
		some, err := filepath.Glob(filepath.Join(from, pattern))
		if err != nil || len(some) == 0 {
			t.Fatalf("%s: modules %q, %v", pattern, some, err)
		}
		files = append(files, some[:min(len(some), 40)]...)
	}
	return from, files
}

const release = "6.12.0-test"

// depmodOf is what depmod writes of some modules.
func depmodOf(t *testing.T, from string, files []string) map[string][]byte {
	t.Helper()
	base := t.TempDir()
	dir := filepath.Join(base, "lib/modules", release)
	for _, f := range files {
		own, err := filepath.Rel(from, f)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := os.ReadFile(f)
		if err == nil {
			err = os.MkdirAll(filepath.Dir(filepath.Join(dir, own)), 0o755)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, own), raw, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	testkit.Run(t, "depmod", "-b", base, release)
	out := map[string][]byte{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !Is(e.Name()) {
			continue
		}
		if out[e.Name()], err = os.ReadFile(filepath.Join(dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// What is merged has the entries that depmod writes of all modules at once: the image's and
// an extension's that depends on some of the image's. What is written is depmod's, byte for byte.
func TestMergeAsDepmod(t *testing.T) {
	testkit.Need(t, "depmod")
	from, files := kernelModules(t)
	var image, more []string
	for i, f := range files {
		if i%3 == 0 && !strings.Contains(f, "/lib/") {
			more = append(more, f)
		} else {
			image = append(image, f)
		}
	}
	all, low := depmodOf(t, from, files), depmodOf(t, from, image)
	extension := map[string][]byte{}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if !Merges(name) {
			continue
		}
		extension[name] = only(t, name, all[name], more)
		got, err := Merge(name, low[name], extension[name])
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !strings.HasSuffix(name, ".bin") {
			if have, want := sorted(got), sorted(all[name]); !slices.Equal(have, want) {
				t.Errorf("%s has %d lines, want %d", name, len(have), len(want))
			}
			continue
		}
		have, err := Parse(got)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		want, err := Parse(all[name])
		if err != nil {
			t.Fatal(err)
		}
		if len(want) < 50 && name != "modules.alias.bin" || !reflect.DeepEqual(names(have), names(want)) {
			t.Errorf("%s has %d names, want %d", name, len(have), len(want))
		}
		if again, err := want.Encode(); err != nil || !bytes.Equal(again, all[name]) {
			t.Errorf("%s: written again it is another file: %v", name, err)
		}
	}
}

// only is what an index says of some modules.
func only(t *testing.T, name string, raw []byte, files []string) []byte {
	t.Helper()
	own := map[string]bool{}
	for _, f := range files {
		own[moduleOf(f)] = true
	}
	is := func(text string) bool {
		fields := strings.Fields(text)
		return len(fields) > 0 && (own[moduleOf(fields[len(fields)-1])] || own[moduleOf(fields[0])] || len(fields) > 1 && own[fields[1]])
	}
	if !strings.HasSuffix(name, ".bin") {
		var out []byte
		for line := range bytes.Lines(raw) {
			if is(string(line)) || name == "modules.dep" && own[moduleOf(string(line))] {
				out = append(out, line...)
			}
		}
		return out
	}
	x, err := Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	for key, have := range x {
		x[key] = slices.DeleteFunc(have, func(v Value) bool { return !own[moduleOf(v.Text)] })
		if len(x[key]) == 0 {
			delete(x, key)
		}
	}
	out, err := x.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// names are the values without their priorities, which follow the order of the modules.
func names(x Index) map[string][]string {
	out := map[string][]string{}
	for key, have := range x {
		for _, v := range have {
			out[key] = append(out[key], v.Text)
		}
		slices.Sort(out[key])
	}
	return out
}

func sorted(text []byte) []string {
	return slices.Sorted(slices.Values(strings.Split(strings.TrimSpace(string(text)), "\n")))
}

// kmod finds both the image's and the extension's modules by what is merged.
func TestModprobeFindsBoth(t *testing.T) {
	testkit.Need(t, "modprobe")
	from, files := kernelModules(t)
	all := depmodOf(t, from, files)
	x, err := Parse(all["modules.dep.bin"])
	if err != nil {
		t.Fatal(err)
	}
	name := slices.Sorted(maps.Keys(x))[0]
	image := Index{}
	maps.Copy(image, x)
	delete(image, name)
	low, err := image.Encode()
	if err != nil {
		t.Fatal(err)
	}
	high, err := Index{name: {{7, "updates/" + name + ".ko: "}}, "stranger": {{1, "updates/stranger.ko: kernel/" + name + ".ko"}}}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	merged, err := Merge("modules.dep.bin", low, high)
	if err != nil {
		t.Fatal(err)
	}
	base := t.TempDir()
	dir := filepath.Join(base, "lib/modules", release)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for file, text := range map[string][]byte{"modules.dep.bin": merged, "modules.alias.bin": all["modules.alias.bin"], "modules.builtin.bin": all["modules.builtin.bin"]} {
		if err := os.WriteFile(filepath.Join(dir, file), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out := testkit.Run(t, "modprobe", "-d", base, "-S", release, "--show-depends", "stranger")
	if !strings.Contains(out, "updates/stranger.ko") || !strings.Contains(out, "kernel/"+name+".ko") {
		t.Errorf("modprobe says %q", out)
	}
}

func TestMergeText(t *testing.T) {
	dep, err := Merge("modules.dep", []byte("kernel/a-b.ko.xz: kernel/c.ko\nkernel/c.ko:\n"), []byte("updates/a_b.ko:"), []byte("updates/d.ko: kernel/c.ko\n"))
	if want := "kernel/c.ko:\nupdates/a_b.ko:\nupdates/d.ko: kernel/c.ko\n"; err != nil || string(dep) != want {
		t.Errorf("%q, %v, want %q", dep, err, want)
	}
	alias, err := Merge("modules.alias", []byte("# Aliases\nalias x a\n"), []byte("# Aliases\nalias x a\nalias x b"))
	if want := "# Aliases\nalias x a\nalias x b\n"; err != nil || string(alias) != want {
		t.Errorf("%q, %v, want %q", alias, err, want)
	}
	for _, name := range []string{"modules.builtin", "modules.builtin.bin", "modules.builtin.modinfo", "a"} {
		if _, err := Merge(name, nil, nil); err == nil || Merges(name) {
			t.Errorf("%s is merged", name)
		}
	}
}

func TestMergeValues(t *testing.T) {
	encode := func(x Index) []byte {
		t.Helper()
		raw, err := x.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	low, high := encode(Index{"pci:*": {{1, "a"}, {5, "b"}}, "p": {{1, "x"}}}), encode(Index{"pci:*": {{3, "c"}, {9, "a"}}, "pci:v": {{1, "d"}}})
	raw, err := Merge("modules.alias.bin", low, high)
	if err != nil {
		t.Fatal(err)
	}
	have, err := Parse(raw)
	want := Index{"pci:*": {{1, "a"}, {3, "c"}, {5, "b"}}, "p": {{1, "x"}}, "pci:v": {{1, "d"}}}
	if err != nil || !reflect.DeepEqual(have, want) {
		t.Errorf("%v, %v, want %v", have, err, want)
	}
	if _, err := Merge("modules.dep.bin", low, []byte("no index")); err == nil {
		t.Error("what is no index is merged")
	}
}

func TestEncodeRefuses(t *testing.T) {
	for _, x := range []Index{{"a\x00": {{1, "b"}}}, {"ä": {{1, "b"}}}, {"a": {{1, "b\x00"}}}, {strings.Repeat("a", 3): nil, "\xff": nil}} {
		if raw, err := x.Encode(); err == nil {
			t.Errorf("%v becomes %x", x, raw)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("\xb0\x07\xf4\x57\x00\x02\x00\x01\x20\x00\x00\x1dab\x00\x00\x00\x00\x01\x00\x00\x00\x05k/a.ko.xz:\x00"))
	f.Add([]byte("\xb0\x07\xf4\x57\x00\x02\x00\x01\x20\x00\x00\x0caa\x20\x00\x00\x0c"))
	if raw, err := (Index{"": {{2, "r"}}, "ab": {{1, "x"}, {1, "y"}}, "abc": {{0, ""}}}).Encode(); err == nil {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		x, err := Parse(raw)
		if err != nil {
			return
		}
		out, err := x.Encode()
		if err != nil {
			return // a name that kmod could not write either
		}
		again, err := Parse(out)
		if err != nil || !reflect.DeepEqual(again, x) {
			t.Errorf("%x has %v, and written again %v: %v", raw, x, again, err)
		}
		for _, name := range []string{"modules.dep.bin", "modules.alias.bin"} {
			if merged, err := Merge(name, out, out); err != nil || len(merged) > len(out) {
				t.Errorf("%s merged with itself has %d bytes of %d: %v", name, len(merged), len(out), err)
			}
		}
	})
}
