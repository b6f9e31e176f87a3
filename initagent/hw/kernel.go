package hw

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/u-root/u-root/pkg/kmodule"
	"golang.org/x/sys/unix"

	"halogenos.internal/boot/bootoption"
)

// LinuxKernel loads the modules of a directory: the initramfs's, or the system
// image's.
type LinuxKernel struct {
	Sys     string                    // /sys
	Modules string                    // /lib/modules
	load    func(module string) error // with what it depends on
	aliases aliasIndex
	needs   map[string][]string // what a module depends on, directly or not
	pre     map[string][]string // softdep: modules or aliases to load first
	post    map[string][]string // and afterwards
	banned  map[string]bool     // modules that no device is to get (modprobe.d, command line)
	seen    map[string]bool     // names of devices that were looked up already
}

// NewLinuxKernel reads what modules there are for the running kernel.
func NewLinuxKernel(sys, modules string) (*LinuxKernel, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return nil, fmt.Errorf("name of the running kernel: %w", err)
	}
	k := &LinuxKernel{Sys: sys, Modules: filepath.Join(modules, unix.ByteSliceToString(u.Release[:])), aliases: aliasIndex{}, seen: map[string]bool{}}
	// Nothing is loaded yet, so there is no need to look at /proc/modules; and one
	// that is there counts as loaded.
	prober, err := kmodule.NewProber(kmodule.ProbeOpts{RootDir: strings.TrimSuffix(modules, "/lib/modules"), IgnoreProcMods: true})
	if err != nil {
		return nil, fmt.Errorf("read list of kernel modules: %w", err)
	}
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return nil, fmt.Errorf("read the parameters of kernel modules: %w", err)
	}
	options, banned := moduleOptions(string(cmdline))
	k.load = k.withOptions(prober.Probe, options)
	for _, read := range []func() error{k.readAliases, k.readDeps, k.readSoftdeps} {
		if err := read(); err != nil {
			return nil, err
		}
	}
	k.banned, err = readBlacklists(modules)
	maps.Copy(banned, k.banned)
	k.banned = banned
	return k, err
}

// lines calls visit with the words of each line of an index file of depmod's;
// a missing file has none.
func (k *LinuxKernel) lines(file string, visit func(words []string)) error {
	text, err := os.ReadFile(filepath.Join(k.Modules, file))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read index of kernel modules: %w", err)
	}
	scan := bufio.NewScanner(bytes.NewReader(text))
	for scan.Scan() {
		visit(strings.Fields(scan.Text()))
	}
	return scan.Err()
}

func (k *LinuxKernel) readAliases() error {
	order := 0
	return k.lines("modules.alias", func(w []string) {
		if len(w) == 3 && w[0] == "alias" {
			k.aliases.add(w[1], w[2], order)
			order++
		}
	})
}

func (k *LinuxKernel) readDeps() error {
	k.needs = map[string][]string{}
	return k.lines("modules.dep", func(w []string) {
		if len(w) == 0 {
			return
		}
		var needs []string
		for _, file := range w[1:] {
			needs = append(needs, moduleName(file))
		}
		k.needs[moduleName(strings.TrimSuffix(w[0], ":"))] = needs
	})
}

func (k *LinuxKernel) readSoftdeps() error {
	k.pre, k.post = map[string][]string{}, map[string][]string{}
	return k.lines("modules.softdep", func(w []string) {
		if len(w) < 3 || w[0] != "softdep" {
			return
		}
		name := canonical(w[1])
		var to map[string][]string // words before "pre:" and "post:" mean nothing
		for _, word := range w[2:] {
			switch word {
			case "pre:":
				to = k.pre
			case "post:":
				to = k.post
			default:
				if to != nil {
					to[name] = append(to[name], word)
				}
			}
		}
	})
}

// readBlacklists reads which modules devices do not get of themselves, from the
// directories of modprobe.d(5) that belong to a directory of modules. The initramfs
// has none: there the list of modules is the choice. A file hides those of its name
// in later directories.
func readBlacklists(modules string) (map[string]bool, error) {
	lib := filepath.Dir(modules)
	root := strings.TrimSuffix(filepath.Dir(lib), "/usr")
	hidden, banned := map[string]bool{}, map[string]bool{}
	for _, dir := range []string{filepath.Join(root, "etc/modprobe.d"), filepath.Join(root, "usr/local/lib/modprobe.d"), filepath.Join(lib, "modprobe.d")} {
		files, err := filepath.Glob(filepath.Join(dir, "*.conf"))
		if err != nil {
			return nil, fmt.Errorf("look for blacklists of kernel modules: %w", err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil || hidden[filepath.Base(file)] {
				continue // a link to /dev/null or to nothing is how one is switched off
			}
			hidden[filepath.Base(file)] = true
			for line := range strings.Lines(strings.ReplaceAll(string(text), "\\\n", " ")) {
				if w := strings.Fields(line); len(w) == 2 && w[0] == "blacklist" {
					banned[canonical(w[1])] = true
				}
			}
		}
	}
	return banned, nil
}

// canonical is the spelling of a module's name that the kernel shows.
func canonical(name string) string { return strings.ReplaceAll(name, "-", "_") }

// moduleName is the name of the module in a file, however it is compressed.
func moduleName(file string) string {
	name, _, _ := strings.Cut(filepath.Base(file), ".ko")
	return canonical(name)
}

// Load implements Kernel. A module that the initramfs does not have is an
// error; what a soft dependency lacks is not.
func (k *LinuxKernel) Load(names ...string) error {
	for _, name := range names {
		if err := k.loadWith(name, map[string]bool{}); err != nil {
			return fmt.Errorf("load kernel module %s: %w", name, err)
		}
	}
	return nil
}

// loadWith loads a module amid its soft dependencies and those of what it depends
// on. Soft dependencies may go in circles: none is loaded twice.
func (k *LinuxKernel) loadWith(name string, begun map[string]bool) error {
	if begun[canonical(name)] {
		return nil
	}
	begun[canonical(name)] = true
	all := append([]string{canonical(name)}, k.needs[canonical(name)]...)
	for _, module := range all {
		k.loadSoft(k.pre[module], begun)
	}
	if err := k.load(name); err != nil {
		return err
	}
	for _, module := range all {
		k.loadSoft(k.post[module], begun)
	}
	return nil
}

// loadSoft loads what may be missing, by definition: modules by name or by alias.
func (k *LinuxKernel) loadSoft(wanted []string, begun map[string]bool) {
	for _, word := range wanted {
		names := []string{word}
		if _, module := k.needs[canonical(word)]; !module {
			if by := k.aliases.modules(word); len(by) > 0 {
				names = by
			}
		}
		for _, name := range names {
			_ = k.loadWith(name, begun)
		}
	}
}

// Coldplug implements Kernel. A driver that does not load is its device's
// trouble: the boot misses the device by itself if it needs it. A device that
// appears when another one gets its driver is found by the next pass.
func (k *LinuxKernel) Coldplug(way []bootoption.Function) (int, error) {
	for tried := 0; ; {
		n, err := k.pass(way)
		if err != nil || n == 0 {
			return tried, err
		}
		tried += n
	}
}

// pass looks at every device once: through the buses, since the tree below
// /sys/devices has ten times as many directories, and the two classes that have
// modules without being a bus.
func (k *LinuxKernel) pass(way []bootoption.Function) (tried int, err error) {
	buses, err := filepath.Glob(filepath.Join(k.Sys, "bus", "*", "devices"))
	if err != nil {
		return 0, fmt.Errorf("look for devices without a driver: %w", err)
	}
	for _, directory := range append(buses, filepath.Join(k.Sys, "class/dmi"), filepath.Join(k.Sys, "class/input")) {
		devices, err := os.ReadDir(directory)
		if err != nil {
			continue // a machine need not have any
		}
		for _, d := range devices {
			device := filepath.Join(directory, d.Name())
			for _, name := range modaliases(device) {
				tried += k.loadAlias(name, device, way)
			}
		}
	}
	return tried, nil
}

// ColdplugOnly is Coldplug for the modules whose file, as modules.dep has it, is
// wanted.
func (k *LinuxKernel) ColdplugOnly(wanted func(file string) bool) (int, error) {
	only := map[string]bool{}
	err := k.lines("modules.dep", func(w []string) {
		if len(w) > 0 && wanted(strings.TrimSuffix(w[0], ":")) {
			only[moduleName(w[0])] = true
		}
	})
	if err != nil {
		return 0, err
	}
	all := k.aliases
	defer func() { k.aliases = all }()
	k.keepOnly(only)
	return k.Coldplug(nil)
}

// keepOnly leaves the aliases of some modules.
func (k *LinuxKernel) keepOnly(modules map[string]bool) {
	all := k.aliases
	k.aliases = aliasIndex{}
	for start, list := range all {
		for _, a := range list {
			if modules[canonical(a.module)] {
				k.aliases[start] = append(k.aliases[start], a)
			}
		}
	}
}

// hotplugEvery is how often Hotplug looks. A person with a stick does not notice it, nor
// does an idle machine.
const hotplugEvery = time.Second

// Hotplug implements Kernel. Nobody else may use k meanwhile.
func (k *LinuxKernel) Hotplug(ctx context.Context) {
	look := time.NewTicker(hotplugEvery)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
			// What fails now is the device's trouble, and is tried with the next one.
			_, _ = k.ColdplugOnly(func(file string) bool { return !strings.Contains(file, "/tpm/") })
		}
	}
}

// Messages implements Kernel.
func (*LinuxKernel) Messages() ([]byte, error) { return KernelLog() }

// modaliases are the names that a device's driver is found by; none for a device
// that has no driver of its own or that vanishes while we look. ACPI gives a device
// that a devicetree describes, too, a second line. Some buses tell the name in the
// uevent alone.
func modaliases(device string) (names []string) {
	text, err := os.ReadFile(filepath.Join(device, "modalias"))
	if err == nil {
		return strings.FieldsFunc(string(text), func(r rune) bool { return r == '\n' })
	}
	if text, err = os.ReadFile(filepath.Join(device, "uevent")); err != nil {
		return nil
	}
	for line := range strings.Lines(string(text)) {
		if name, ok := strings.CutPrefix(line, "MODALIAS="); ok {
			names = append(names, strings.TrimRight(name, "\n"))
		}
	}
	return names
}

func (k *LinuxKernel) loadAlias(modalias, device string, way []bootoption.Function) int {
	if modalias == "" || k.seen[modalias] {
		return 0
	}
	names := slices.DeleteFunc(k.aliases.modules(modalias), func(module string) bool { return k.banned[canonical(module)] })
	if len(names) > 0 && k.isOtherStorage(device, way) {
		return 0 // and not seen: a later call may want it
	}
	k.seen[modalias] = true
	for _, name := range names {
		_ = k.Load(name)
	}
	return len(names)
}

// isOtherStorage reports whether a device belongs to a PCI function of the mass
// storage class (01h) that is neither on the way nor behind it.
func (k *LinuxKernel) isOtherStorage(device string, way []bootoption.Function) bool {
	if len(way) == 0 {
		return false
	}
	place, err := filepath.EvalSymlinks(device)
	if err != nil {
		return false
	}
	functions, last := pciFunctions(place)
	n := min(len(functions), len(way))
	if n == 0 || slices.Equal(functions[:n], way[:n]) {
		return false
	}
	class, err := os.ReadFile(filepath.Join(last, "class"))
	return err == nil && strings.HasPrefix(string(class), "0x01")
}
