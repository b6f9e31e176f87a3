package hw

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/testkit"
)

// real are names of devices as kernels gave them on machines, of every bus that a
// boot may depend on.
var real = []string{
	"pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01", "pci:v0000144Dd0000A808sv0000144Dsd0000A801bc01sc08i02",
	"pci:v00008086d00000F14sv00001043sd000015BDbc08sc05i01", "pci:v00001AF4d00001042sv00001AF4sd00001100bc01sc00i00",
	"pci:v00001000d00000097sv00001028sd00001F45bc01sc07i00", "pci:v000015ADd000007C0sv000015ADsd000007C0bc01sc07i02",
	"pci:v00008086d00009D2Fsv000017AAsd00002258bc0Csc03i30", "pci:v00001022d0000149Csv00001462sd00007C35bc0Csc03i30",
	"pci:v000010ECd00008168sv00001458sd0000E000bc02sc00i00", "pci:v00008086d000015B8sv00001043sd00008672bc02sc00i00",
	"pci:v00008086d0000201Dsv00001028sd00000000bc01sc04i00", "pci:v00008086d00007010sv00001AF4sd00001100bc01sc01i80",
	"usb:v0781p5581d0100dc00dsc00dp00ic08isc06ip50in00", "usb:v13FDp3940d0124dc00dsc00dp00ic08isc06ip62in00",
	"usb:v05ACp0250d0074dc00dsc00dp00ic03isc01ip01in00", "usb:v1D6Bp0002d0612dc09dsc00dp01ic09isc00ip00in00",
	"usb:v046DpC52Bd1211dc00dsc00dp00ic03isc01ip01in00", "usb:v0BDAp8153d3000dc00dsc00dp00icFFiscFFip00in00",
	"acpi:80860F14:INT33BB:", "acpi:INT33C3:", "acpi:ELAN0001:PNP0C50:", "acpi:VMBUS:", "acpi:PNP0D40:", "acpi:AMDI0040:",
	"acpi:MSFT0101:MSFT0101:", "acpi:PNP0303:", "acpi:PNP0F13:SYN0A06:SYN0A00:SYN0002:PNP0F03:PNP0F13:PNP0F12:", "acpi:LNXSYBUS:",
	"acpi:IBM0068:LEN0268:LEN0068:", "acpi:INT3452:INT3452:", "acpi:PNP0C14:", "acpi:SMO8800:", "acpi:QEMU0002:",
	"hid:b0003g0001v000005ACp00000250", "hid:b0018g0001v000004F3p00002A1C", "hid:b0003g0101v0000046Dp0000C52B", "hid:b0018g0004v0000056Ap000048ED",
	"hid:b0005g0001v0000054Cp000009CC", "mmc:block", "mmc:rpmb", "sdio:c00v02D0d4330", "sdio:c07v02D0dA9A6",
	"serio:ty06pr00id00ex00", "serio:ty01pr00id00ex00", "virtio:d00000002v00001AF4", "virtio:d00000008v00001AF4", "virtio:d00000004v00001AF4",
	"vmbus:d96361baa104294db60572e2ffb1dc7f", "vmbus:6dad12f9172bea48bd65f927a61c7684", "xen:vbd", "xen:vif", "scsi:t-0x00", "scsi:t-0x05",
	"i2c:elan_i2c", "i2c:lm75", "i2c:24c02", "spi:spi-nor", "spi:mx25l6405d", "platform:pcspkr", "platform:iTCO_wdt", "platform:i2c_designware", "platform:efi-framebuffer",
	"of:NmmcT(null)Carm,sdhci-5.1", "of:NflashT(null)Cjedec,spi-nor", "of:NpmicTCmaxim,max77620", "of:NeepromT(null)Catmel,24c64Catmel,24c128",
	"hdaudio:v10EC0256r00100002a01", "hdaudio:v8086280Br00100000a01", "input:b0011v0001p0001eAB41-e0,1,4,11,14,k71,72,73,ram4,l0,1,2,sfw",
	"cpu:type:x86,ven0000fam0006mod009E:feature:,0000,0001,0002,0003,0004,0081,0083,00C0,0126,", "cpu:type:x86,ven0002fam0017mod0071:feature:,0099,0081,",
	"dmi:bvnLENOVO:bvrN1CET70W(1.38):bd08/23/2018:br1.38:efr1.14:svnLENOVO:pn20F6CTO1WW:pvrThinkPadX260:rvnLENOVO:rn20F6CTO1WW:rvrNotDefined:cvnLENOVO:ct10:cvrNone:sku:",
	"dmi:bvnDellInc.:bvr1.9.0:bd06/05/2019:svnDellInc.:pnLatitude7400:pvr:rvnDellInc.:rn0X:rvrA00:cvnDellInc.:ct31:cvr:sku08E1:",
	"dmi:bvnAmericanMegatrends[AMI]:bvr1:svnASUSTeKCOMPUTERINC.:pnX205TA:pvr1.0:", "dmi:bvnA]:svnLENOVO:pnX:",
	"wmi:8D9DDCBC-A997-11DA-B012-B622A1EF5492", "wmi:97845ED0-4E6D-11DE-8A39-0800200C9A66", "typec:idFF01", "typec:id8087", "bcma:m04BFid0812rev18cl00",
	"ssb:v4243id0812rev05", "pnp:dPNP0501", "mei:pn544-mei:0BB17A78-2A8E-4C50-94D4-50266723775C:01", "auxiliary:intel_vsec.telemetry",
	"tee:", "nd:t1", "dax:t0", "cxl:t5", "mhi:IPCR", "eisa:sADP0002", "ieee1394:ven00000000mo00000000sp0000609Ever00010483", "sdw:m025Dp0711v02c01",
	"mdio:00000000000000010100000110010000", "usbfunc:ffs", "isa:x", "", ":", "*", "acpi*:PNP0C50:*", "pci:*", "usb:v[0-9]", "a/b:c-d",
}

// debian is where an unpacked Debian lies, and its kernel.
func debian(t *testing.T) (root, release string) {
	t.Helper()
	root = testkit.Debian(t)
	found, err := filepath.Glob(filepath.Join(root, "usr/lib/modules/*/modules.alias"))
	if err != nil || len(found) == 0 {
		t.Fatalf("HALOGEN_DEBIAN has no kernel modules: %v", err)
	}
	return root, filepath.Base(filepath.Dir(found[0]))
}

// instance makes a name that a pattern stands for: what '*' stands for is fill.
func instance(pattern, fill string) string {
	var out strings.Builder
	for i := 0; i < len(pattern); i++ {
		switch pattern[i] {
		case '*':
			out.WriteString(fill)
		case '?':
			out.WriteByte('0')
		case '[':
			out.WriteByte(pattern[i+1])
			i += strings.IndexByte(pattern[i:], ']')
		default:
			out.WriteByte(pattern[i])
		}
	}
	return out.String()
}

// sample takes some aliases of each bus, the same each time.
func sample(t *testing.T, k *LinuxKernel, each int) []string {
	byBus := map[string][]alias{}
	if err := k.lines("modules.alias", func(w []string) {
		if len(w) == 3 && strings.Contains(w[1], ":") {
			bus, _, _ := strings.Cut(w[1], ":")
			byBus[bus] = append(byBus[bus], alias{pattern: w[1]})
		}
	}); err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, bus := range slices.Sorted(maps.Keys(byBus)) {
		list := byBus[bus]
		for i := range min(each, len(list)) {
			out = append(out, instance(list[i*len(list)/min(each, len(list))].pattern, []string{"", "0", "x/y-Z"}[i%3]))
		}
		for _, a := range list {
			if strings.ContainsAny(a.pattern, "[?") && len(out)%5 == 0 {
				out = append(out, instance(a.pattern, "0"))
			}
		}
	}
	return out
}

// modprobe says which modules kmod would load for a name, but for those that are
// built in. It reads no configuration.
func modprobe(t *testing.T, root, release, name string, builtin map[string]bool) []string {
	t.Helper()
	cmd := exec.Command("modprobe", "--resolve-alias", "-C", t.TempDir(), "-d", root, "-S", release, "--", name)
	out, err := cmd.Output()
	if _, failed := errors.AsType[*exec.ExitError](err); err != nil && !failed {
		t.Fatal(err)
	}
	var names []string
	for _, n := range strings.Fields(string(out)) {
		if !builtin[n] && !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	return names
}

// kernelIn reads the modules of a release below a root directory.
func kernelIn(t testing.TB, root, release string) (*LinuxKernel, map[string]bool) {
	t.Helper()
	k := &LinuxKernel{Modules: filepath.Join(root, "lib/modules", release), aliases: aliasIndex{}, seen: map[string]bool{}}
	builtin := map[string]bool{}
	err := errors.Join(k.readAliases(), k.readDeps(), k.readSoftdeps(), k.lines("modules.builtin", func(w []string) { builtin[moduleName(w[0])] = true }))
	if err != nil {
		t.Fatal(err)
	}
	return k, builtin
}

// FAULTS 112 (M1): for names of every bus the choice is that of modprobe, over all
// aliases of a real kernel.
func TestAliasesLikeModprobe(t *testing.T) {
	root, release := debian(t)
	testkit.Need(t, "modprobe")
	k, builtin := kernelIn(t, root, release)
	names := append(sample(t, k, 6), real...)
	matched := 0
	for _, name := range names {
		want := modprobe(t, root, release, name, builtin)
		got := k.aliases.modules(name)
		if len(got) > 0 {
			matched++
		}
		if !slices.Equal(got, want) {
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("%s: %q, modprobe says %q", name, got, want)
			} else {
				t.Errorf("%s: order %q", name, want)
			}
		}
	}
	t.Logf("%d names, %d with modules", len(names), matched)
	if matched < 200 {
		t.Errorf("%d names have modules, want 200", matched)
	}
}

// FAULTS 112 (M1): each alias of a real kernel is found by the names that it is for.
func TestEveryAlias(t *testing.T) {
	root, release := debian(t)
	k, _ := kernelIn(t, root, release)
	count := 0
	if err := k.lines("modules.alias", func(w []string) {
		if len(w) != 3 || w[0] != "alias" {
			return
		}
		count++
		for _, fill := range []string{"", "/a-b:"} {
			if name := instance(w[1], fill); !slices.Contains(k.aliases.modules(name), w[2]) {
				t.Errorf("%s %s: not found by %s", w[1], w[2], name)
			}
		}
	}); err != nil || count < 20000 {
		t.Errorf("%d aliases, %v", count, err)
	}
}

// FAULTS 112 (M1): trees of other distributions' forms, indexed by the real depmod.
func TestAliasesOfOtherTrees(t *testing.T) {
	root, release := debian(t)
	testkit.Need(t, "depmod")
	want := []string{"sdhci-acpi", "i2c-hid-acpi", "usb-storage", "uas", "psmouse", "nvme", "snd-hda-codec-realtek", "mmc_block", "spi-nor", "aesni-intel", "hv_vmbus", "sd_mod", "at803x"}
	for _, form := range []struct{ name, release, under, suffix string }{
		{"Fedora", "6.17.8-300.fc43.x86_64", "kernel", ".xz"},
		{"Arch", "6.17.8-arch1-1", "kernel", ".zst"},
		{"Gentoo", "6.12.58-gentoo-dist", "kernel", ""},
		{"updates", "6.17.8+deb14-amd64", "updates/dkms", ".xz"},
	} {
		t.Run(form.name, func(t *testing.T) {
			dir := t.TempDir()
			modules := filepath.Join(dir, "lib/modules", form.release)
			for _, module := range want {
				copyModule(t, filepath.Join(root, "usr/lib/modules", release), filepath.Join(modules, form.under), module, form.suffix)
			}
			for _, file := range []string{"modules.order", "modules.builtin", "modules.builtin.modinfo"} {
				if err := os.WriteFile(filepath.Join(modules, file), nil, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if out, err := exec.Command("depmod", "-b", dir, form.release).CombinedOutput(); err != nil {
				t.Fatalf("depmod: %v: %s", err, out)
			}
			k, builtin := kernelIn(t, dir, form.release)
			matched := map[string]bool{}
			for _, name := range append(sample(t, k, 4), real...) {
				got, want := k.aliases.modules(name), modprobe(t, dir, form.release, name, builtin)
				if !slices.Equal(got, want) {
					t.Errorf("%s: %q, modprobe says %q", name, got, want)
				}
				for _, module := range got {
					matched[module] = true
				}
			}
			if len(matched) < len(want) {
				t.Errorf("only %v were found by a name", slices.Sorted(maps.Keys(matched)))
			}
		})
	}
}

// copyModule finds a module in a tree and stores it compressed in another way.
func copyModule(t *testing.T, from, to, module, suffix string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(from, "modules.dep"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		file, _, _ := strings.Cut(line, ":")
		if moduleName(file) != canonical(module) {
			continue
		}
		data, err := os.ReadFile(filepath.Join(from, file))
		if err != nil {
			t.Fatal(err)
		}
		pipe := func(data []byte, name string, args ...string) []byte {
			cmd := exec.Command(name, args...)
			cmd.Stdin = bytes.NewReader(data)
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			return out
		}
		if strings.HasSuffix(file, ".xz") {
			data = pipe(data, "xz", "-dc")
		}
		switch suffix {
		case ".xz":
			data = pipe(data, "xz", "-c", "--check=crc32")
		case ".gz":
			data = pipe(data, "gzip", "-c")
		case ".zst":
			data = pipe(data, "zstd", "-qc")
		}
		plain, _, _ := strings.Cut(path.Base(file), ".ko")
		target := filepath.Join(to, path.Base(path.Dir(file)), plain+".ko"+suffix)
		if err := errors.Join(os.MkdirAll(filepath.Dir(target), 0o755), os.WriteFile(target, data, 0o644)); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatalf("there is no module %s", module)
}

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, text string
		want          bool
	}{
		{"", "", true}, {"*", "", true}, {"**", "/a/b", true}, {"?", "", false}, {"a*", "a/b:c", true}, {"?b", "/b", true}, {"a*b*c", "aXbXbXc", true}, {"a*b*c", "aXbXbX", false},
		{"[0-2]x", "1x", true}, {"[0-2]x", "3x", false}, {"[!0-2]", "3", true}, {"[^0-2]", "1", false}, {"[a-]", "-", true}, {"[-a]", "-", true}, {"[]a]", "]", true}, {"[a", "[a", true}, {"[a", "a", false},
		{"*[0-9]", "ab7", true}, {"*[0-9]", "ab", false}, {`a\*b`, "a*b", true}, {`a\*b`, "axb", false}, {`[\]]`, "]", true}, {"a", "ab", false}, {"ab", "a", false}, {"*a", "aaaa", true}, {"/", "/", true}, {"[/]", "/", true},
	} {
		if got := match(c.pattern, c.text); got != c.want {
			t.Errorf("%q matches %q: %v", c.pattern, c.text, got)
		}
	}
	// Many stars cost no more than the product of the lengths.
	start := time.Now()
	if match(strings.Repeat("*a", 2000)+"b", strings.Repeat("a", 10000)) || time.Since(start) > 10*time.Second {
		t.Errorf("took %v", time.Since(start))
	}
}

// Without '/', '\' and '^' path.Match means the same, where it takes the pattern.
func FuzzMatch(f *testing.F) {
	f.Add("a*[0-2]?", "ab1x")
	f.Add("[!a-c]*", "dd")
	f.Fuzz(func(t *testing.T, pattern, text string) {
		got := match(pattern, text)
		for _, r := range pattern + text {
			if r <= ' ' || r > '~' || strings.ContainsRune(`/\^!-`, r) {
				return
			}
		}
		want, err := path.Match(pattern, text)
		if err == nil && !strings.Contains(pattern, "[]") && got != want {
			t.Errorf("%q matches %q: %v, path.Match says %v", pattern, text, got, want)
		}
		x := aliasIndex{}
		x.add(pattern, "m", 0)
		if n, ok := normal(text); ok && len(x) > 0 {
			p, _ := normal(pattern)
			if found := len(x.modules(text)) == 1; found != match(p, n) {
				t.Errorf("%q in the index by %q: %v", pattern, text, found)
			}
		}
	})
}

// FAULTS 112 (M1): both spellings of a name, lines of several names, soft
// dependencies by alias and of dependencies, and blacklists.
func TestModuleNames(t *testing.T) {
	root := tree(t, map[string]string{
		"lib/modules/1/modules.alias":   "# Aliases extracted from modules themselves.\nalias acpi*:ABC0001:* some_driver\nalias of:N*T*Cvendor,chip-1C* some_driver\nalias crypto-crc32c crc32c-intel\nalias pci:v1* rival\nalias pci:v* broad\nalias platform:a-b[0-9-] dash\n",
		"lib/modules/1/modules.dep":     "kernel/some-driver.ko.zst: kernel/lib/jbd2.ko.zst\nkernel/lib/jbd2.ko.zst:\nkernel/crc32c-intel.ko.gz:\nkernel/late.ko:\n",
		"lib/modules/1/modules.softdep": "softdep jbd2 pre: crypto-crc32c\nsoftdep some-driver stray post: late pre: early\nsoftdep late pre: some-driver\n",
		"etc/modprobe.d/mine.conf":      "# no\nblacklist \\\n  rival\nblacklist-not x\n", "lib/modprobe.d/mine.conf": "blacklist broad\n",
		"sys/bus/acpi/devices/x/modalias":   "acpi:ABC0001:PRP0001:\nof:NxT(null)Cvendor,chip-1\n",
		"sys/bus/pci/devices/y/modalias":    "pci:v1\n",
		"sys/bus/platform/devices/z/uevent": "DRIVER=x\nMODALIAS=platform:a_b7\n",
	})
	k, _ := kernelIn(t, root, "1")
	k.Sys = filepath.Join(root, "sys")
	banned, err := readBlacklists(filepath.Join(root, "lib/modules"))
	if err != nil {
		t.Fatal(err)
	}
	k.banned = banned
	var loaded []string
	k.load = func(m string) error { loaded = append(loaded, m); return nil }
	if _, err := k.Coldplug(nil); err != nil {
		t.Fatal(err)
	}
	// The second name of the device asks for the same module again, which costs nothing.
	want := []string{"early", "crc32c-intel", "some_driver", "late", "broad", "dash"}
	if got := slices.Compact(slices.Clone(loaded)); !slices.Equal(first(got), want) {
		t.Errorf("loaded %q, want %q", got, want)
	}
}

// first leaves out what was there before.
func first(list []string) (out []string) {
	for _, s := range list {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// BenchmarkColdplug looks up the names of a machine in all aliases of a kernel.
func BenchmarkColdplug(b *testing.B) {
	root := testkit.Debian(b)
	found, _ := filepath.Glob(filepath.Join(root, "usr/lib/modules/*/modules.alias"))
	if len(found) == 0 {
		b.Fatalf("%s has no modules.alias", root)
	}
	release := filepath.Base(filepath.Dir(found[0]))
	b.Run("read", func(b *testing.B) {
		for b.Loop() {
			kernelIn(b, root, release)
		}
	})
	k, _ := kernelIn(b, root, release)
	b.Run(fmt.Sprint(len(real), " names"), func(b *testing.B) {
		for b.Loop() {
			for _, name := range real {
				k.aliases.modules(name)
			}
		}
	})
	text, _ := os.ReadFile(found[0])
	old := map[string][]alias{}
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		if w := strings.Fields(s.Text()); len(w) == 3 {
			bus, _, _ := strings.Cut(w[1], ":")
			old[bus] = append(old[bus], alias{pattern: w[1]})
		}
	}
	b.Run("line by line", func(b *testing.B) {
		for b.Loop() {
			for _, name := range real {
				bus, _, _ := strings.Cut(name, ":")
				for _, a := range old[bus] {
					_, _ = filepath.Match(a.pattern, name)
				}
			}
		}
	})
}
