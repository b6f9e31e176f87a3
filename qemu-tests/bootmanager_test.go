package qemutests

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/boot/uki/ukitest"
	"halogenos.internal/builder/vm"
)

// casesPerBoot is how many disks, each with an ESP and the boot manager, one machine
// has: it tries one after the other, since what is started there gives up at once.
const casesPerBoot = 29

// A menu is an ESP's UKIs and what the boot manager makes of them.
type menu struct {
	names  []string
	chosen string // as it was named before
	after  string // its name afterwards
}

// foreign are names that are not ours. The boot manager takes them all the same,
// which is why nothing of ours ever writes one.
func foreign() []menu {
	return []menu{
		{[]string{"os_1.efi", "os_2+255.efi"}, "os_2+255.efi", "os_2+254-1.efi"},
		{[]string{"os_1.efi", "os_2+2-2147483647.efi"}, "os_2+2-2147483647.efi", "os_2+1-2147483647.efi"},
		{[]string{"os_1.efi", "os_2+03.efi"}, "os_2+03.efi", "os_2+2-1.efi"},
		{[]string{"os_1.efi", "os_2+0-0.efi"}, "os_1.efi", "os_1.efi"},
		// What is not a number counts nothing: these are as good as blessed.
		{[]string{"os_1.efi", "os_2+.efi"}, "os_2+.efi", "os_2+.efi"},
		{[]string{"os_1.efi", "os_2+-1.efi"}, "os_2+-1.efi", "os_2+-1.efi"},
		{[]string{"os_1.efi", "os_2+x.efi"}, "os_2+x.efi", "os_2+x.efi"},
		{[]string{"os_1.efi", "os_2+1-.efi"}, "os_2+1-.efi", "os_2+1-.efi"},
		{[]string{"os_1.efi", "os_2+1-x.efi"}, "os_2+1-x.efi", "os_2+1-x.efi"},
		{[]string{"os_1.efi", "os_2+4294967296.efi"}, "os_2+4294967296.efi", "os_2+4294967296.efi"},
		{[]string{"os_1.efi", "os_2++0.efi"}, "os_1.efi", "os_1.efi"},
		// The version is what .osrel says, not the name.
		{[]string{"os_1.efi", "else+3.efi"}, "else+3.efi", "else+2-1.efi"},
		{[]string{"os_1.efi", "OS_2+3.EFI"}, "OS_2+3.EFI", "OS_2+2-1.efi"},
		// Neither is a UKI to the boot manager, and the same name in a directory is none.
		{[]string{"os_1.efi", "os_2+3.efi empty"}, "os_1.efi", "os_1.efi"},
		{[]string{"os_1.efi", "os_2+3.efi torn"}, "os_1.efi", "os_1.efi"},
		{[]string{"os_1.efi", "os_2+3.efi/os_2+3.efi"}, "os_1.efi", "os_1.efi"},
		{[]string{"os_1.efi", "os_2+3.efi.new"}, "os_1.efi", "os_1.efi"},
	}
}

// modelled are menus of which the model says what is chosen.
func modelled(t *testing.T) []menu {
	t.Helper()
	states := []string{"", "+3", "+2-1", "+1-2", "+0-3", "+0"}
	var all [][]string
	for _, older := range states {
		all = append(all, []string{"os_1" + older + ".efi"})
		for _, newer := range states {
			all = append(all, []string{"os_1" + older + ".efi", "os_2" + newer + ".efi"})
			if older < newer { // the same version twice
				all = append(all, []string{"os_2" + older + ".efi", "os_2" + newer + ".efi"})
			}
		}
	}
	for _, versions := range [][2]string{{"9", "10"}, {"2025091101", "2025091102"}, {"999999999", "9223372036854775807"}} {
		all = append(all, []string{"os_" + versions[0] + ".efi", "os_" + versions[1] + "+3.efi"}, []string{"os_" + versions[0] + "+0-3.efi", "os_" + versions[1] + "+0-3.efi"})
	}
	all = append(all, []string{"os_1.efi", "os_2.efi", "os_3+0-3.efi"}, []string{"os_1.efi", "os_2+1-2.efi", "os_3+0-3.efi"},
		[]string{"os_1+0-3.efi", "os_2+0-3.efi", "os_3+0-3.efi"}, []string{"os_1.efi", "os_2+99.efi"}, []string{"os_1+1-99.efi"}, []string{"os_1+0-2147483646.efi"}, []string{"os_1+0-2147483647.efi"})
	var menus []menu
	for _, files := range all {
		var names []bls.Name
		for _, file := range files {
			n, err := bls.Parse(file)
			must(t, err)
			names = append(names, n)
		}
		chosen, _ := bls.Choose(names)
		started, _, ok := bls.Start(names)
		if !ok {
			t.Fatalf("the model starts none of %q", files)
		}
		menus = append(menus, menu{files, chosen.String(), started.String()})
	}
	return menus
}

// TestBootManager asks the boot manager of the image what the model was asked: which
// UKI is started, and what it is called then.
// FAULTS 44, 45, 46
func TestBootManager(t *testing.T) {
	t.Parallel()
	for _, tool := range []string{"mkfs.vfat", "mmd", "mcopy", "mdir"} {
		testkit.Need(t, tool)
	}
	menus := append(modelled(t), foreign()...)
	boots := 0
	for part := range slices.Chunk(menus, casesPerBoot) {
		boots++
		judgeMenus(t, part)
	}
	t.Logf("%d menus in %d starts of a machine", len(menus), boots)
}

// judgeMenus gives one machine a disk for each menu, and one more that tells the end.
func judgeMenus(t *testing.T, menus []menu) {
	t.Helper()
	var disks []vm.Disk
	for i, m := range append(slices.Clip(menus), menu{names: []string{"last_1.efi"}}) {
		disks = append(disks, vm.Disk{Path: menuDisk(t, i, m.names), BootIndex: 20 + i})
	}
	g := Machine(t, Options{Image: "testos-1", VM: vm.Options{NoDisk: true, TPM: vm.NoTPM, Disks: disks}})
	g.Expect(`(?m)^CHOSEN [0-9]+ last_1\.efi$`)
	g.PowerCut()
	chosen := make(map[string][]string)
	for _, match := range regexp.MustCompile(`(?m)^CHOSEN ([0-9]+) (\S+)$`).FindAllStringSubmatch(g.Console().Text(), -1) {
		chosen[match[1]] = append(chosen[match[1]], match[2])
	}
	for i, m := range menus {
		if got := chosen[fmt.Sprint(i)]; !slices.Equal(got, []string{m.chosen}) {
			t.Errorf("of %q the boot manager started %q, want %q", m.names, got, m.chosen)
		}
		want := make([]string, 0, len(m.names))
		for _, name := range m.names {
			name, _, _ = strings.Cut(name, " ")
			name, _, _ = strings.Cut(name, "/")
			if name == m.chosen {
				name = m.after
			}
			want = append(want, name)
		}
		slices.Sort(want)
		if got := menuNames(t, disks[i].Path); !slices.Equal(got, want) {
			t.Errorf("%q became %q, want %q", m.names, got, want)
		}
	}
}

// menuDisk makes a disk that is an ESP with the boot manager and these UKIs.
func menuDisk(t *testing.T, number int, names []string) string {
	t.Helper()
	dir := t.TempDir()
	disk := filepath.Join(dir, "esp.img")
	testkit.Run(t, "mkfs.vfat", "-C", disk, "2048")
	testkit.Run(t, "mmd", "-i", disk, "::EFI", "::EFI/BOOT", "::EFI/Linux", "::loader")
	testkit.Run(t, "mcopy", "-i", disk, imageFile(t, "testos-1", "bootx64.efi"), "::EFI/BOOT/BOOTX64.EFI")
	put := func(name string, content []byte) {
		local := filepath.Join(dir, "content")
		must(t, os.WriteFile(local, content, 0o644))
		testkit.Run(t, "mcopy", "-i", disk, local, "::"+name)
	}
	espRead(t, vm.State{Dir: filepath.Dir(Image(t, "testos-1"))}, "loader/loader.conf", filepath.Join(dir, "loader.conf"))
	testkit.Run(t, "mcopy", "-i", disk, filepath.Join(dir, "loader.conf"), "::loader/loader.conf")
	version := regexp.MustCompile(`_([0-9]+)`)
	for _, word := range names {
		name, how, _ := strings.Cut(word, " ")
		directory, _, inDirectory := strings.Cut(name, "/")
		if inDirectory {
			testkit.Run(t, "mmd", "-i", disk, "::"+bls.Directory+"/"+directory)
		}
		told := "2"
		if match := version.FindStringSubmatch(name); match != nil {
			told = match[1]
		}
		image := teller(fmt.Sprintf("CHOSEN %d %s", number, name), told)
		switch how {
		case "empty":
			image = nil
		case "torn":
			clear(image[len(image)/2:]) // where the sections are
		}
		put(bls.Directory+"/"+name, image)
	}
	return disk
}

// menuNames lists what is in the directory of the UKIs.
func menuNames(t *testing.T, disk string) []string {
	t.Helper()
	var names []string
	for line := range strings.Lines(testkit.Run(t, "mdir", "-i", disk, "-b", "::"+bls.Directory)) {
		names = append(names, strings.Trim(strings.TrimPrefix(strings.TrimSpace(line), "::/"+bls.Directory), "/"))
	}
	slices.Sort(names)
	return names
}

// teller is a UKI with a program in the place of the stub, which prints one line and
// gives up, so that the firmware goes on with the next disk. It also makes time stand
// still: the boot manager waits seconds for its message to be read.
//
// By the UEFI specification's tables (2.10, sections 4.3, 4.4, 12.4): the system table
// comes in RDX, with ConOut at 0x40 and the boot services at 0x60; OutputString is
// ConOut's second function; of the boot services CheckEvent is at 0x78 and Stall at
// 0xf8. CheckEvent refuses whatever is not an event, which makes it a Stall of no length.
func teller(line, version string) []byte {
	code := []byte{
		0x48, 0x83, 0xec, 0x28, // sub rsp, 0x28
		0x48, 0x8b, 0x42, 0x60, // mov rax, [rdx+0x60]
		0x4c, 0x8b, 0x40, 0x78, // mov r8, [rax+0x78]
		0x4c, 0x89, 0x80, 0xf8, 0, 0, 0, // mov [rax+0xf8], r8
		0x48, 0x8b, 0x4a, 0x40, // mov rcx, [rdx+0x40]
		0x48, 0x8d, 0x15, 18, 0, 0, 0, // lea rdx, [rip+18]: the text
		0xff, 0x51, 0x08, // call [rcx+8]
		0x48, 0xb8, 21, 0, 0, 0, 0, 0, 0, 0x80, // mov rax, EFI_ABORTED
		0x48, 0x83, 0xc4, 0x28, // add rsp, 0x28
		0xc3, // ret
	}
	for _, u := range utf16.Encode([]rune("\r\n" + line + "\r\n\x00")) {
		code = binary.LittleEndian.AppendUint16(code, u)
	}
	return ukitest.Image(
		ukitest.Section{Name: ".text", Data: code},
		ukitest.Section{Name: ".osrel", Data: []byte("ID=os\nPRETTY_NAME=\"OS\"\nIMAGE_ID=os\nIMAGE_VERSION=" + version + "\n")},
		ukitest.Section{Name: ".cmdline", Data: []byte("quiet")},
		ukitest.Section{Name: ".linux", Data: []byte("MZ")},
	)
}
