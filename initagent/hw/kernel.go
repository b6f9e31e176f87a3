package hw

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/u-root/u-root/pkg/kmodule"
	"golang.org/x/sys/unix"

	"halogenos.internal/boot/bootoption"
)

// LinuxKernel loads the modules of a folder: the initramfs's, or the system
// image's.
type LinuxKernel struct {
	Sys     string                    // /sys
	Modules string                    // /lib/modules
	load    func(module string) error // with what it depends on
	aliases map[string][]alias        // by bus, the part before the first colon
	pre     map[string][]string       // softdep: modules to load first
	seen    map[string]bool           // modaliases that were looked up already
}

type alias struct{ pattern, module string }

// NewLinuxKernel reads what modules there are for the running kernel.
func NewLinuxKernel(sys, modules string) (*LinuxKernel, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return nil, fmt.Errorf("name of the running kernel: %w", err)
	}
	k := &LinuxKernel{Sys: sys, Modules: filepath.Join(modules, unix.ByteSliceToString(u.Release[:])), aliases: map[string][]alias{}, pre: map[string][]string{}, seen: map[string]bool{}}
	// Nothing is loaded yet, so there is no need to look at /proc/modules; and one
	// that is there counts as loaded.
	prober, err := kmodule.NewProber(kmodule.ProbeOpts{RootDir: strings.TrimSuffix(modules, "/lib/modules"), IgnoreProcMods: true})
	if err != nil {
		return nil, fmt.Errorf("read list of kernel modules: %w", err)
	}
	k.load = func(module string) error { return prober.Probe(module, "") }
	if err := k.readAliases(); err != nil {
		return nil, err
	}
	return k, k.readSoftdeps()
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
	return k.lines("modules.alias", func(w []string) {
		if len(w) == 3 && w[0] == "alias" {
			bus := busOf(w[1])
			k.aliases[bus] = append(k.aliases[bus], alias{w[1], w[2]})
		}
	})
}

func (k *LinuxKernel) readSoftdeps() error {
	return k.lines("modules.softdep", func(w []string) {
		if len(w) < 3 || w[0] != "softdep" {
			return
		}
		before := false
		for _, word := range w[2:] {
			switch word {
			case "pre:", "post:":
				before = word == "pre:"
			default:
				if before {
					k.pre[w[1]] = append(k.pre[w[1]], word)
				}
			}
		}
	})
}

// Load implements Kernel. A module that the initramfs does not have is an
// error; what a soft dependency lacks is not.
func (k *LinuxKernel) Load(names ...string) error {
	for _, name := range names {
		for _, soft := range k.pre[strings.ReplaceAll(name, "-", "_")] {
			_ = k.load(soft) // soft: fine without, by definition
		}
		if err := k.load(name); err != nil {
			return fmt.Errorf("load kernel module %s: %w", name, err)
		}
	}
	return nil
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
// /sys/devices has ten times as many folders, and the two classes that have
// modules without being a bus.
func (k *LinuxKernel) pass(way []bootoption.Function) (tried int, err error) {
	buses, err := filepath.Glob(filepath.Join(k.Sys, "bus", "*", "devices"))
	if err != nil {
		return 0, fmt.Errorf("look for devices without a driver: %w", err)
	}
	for _, folder := range append(buses, filepath.Join(k.Sys, "class/dmi"), filepath.Join(k.Sys, "class/input")) {
		devices, err := os.ReadDir(folder)
		if err != nil {
			continue // a machine need not have any
		}
		for _, d := range devices {
			device := filepath.Join(folder, d.Name())
			tried += k.loadAlias(modalias(device), device, way)
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
			name, _, _ := strings.Cut(filepath.Base(w[0]), ".ko")
			only[strings.ReplaceAll(name, "-", "_")] = true
		}
	})
	if err != nil {
		return 0, err
	}
	all := k.aliases
	defer func() { k.aliases = all }()
	k.aliases = map[string][]alias{}
	for bus, list := range all {
		for _, a := range list {
			if only[strings.ReplaceAll(a.module, "-", "_")] {
				k.aliases[bus] = append(k.aliases[bus], a)
			}
		}
	}
	return k.Coldplug(nil)
}

// modalias is what a device's driver is found by; empty for none, and for a device
// that vanishes while we look. Some buses tell it in the uevent alone.
func modalias(device string) string {
	if text, err := os.ReadFile(filepath.Join(device, "modalias")); err == nil {
		return strings.TrimSpace(string(text))
	}
	text, err := os.ReadFile(filepath.Join(device, "uevent"))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		if alias, ok := strings.CutPrefix(line, "MODALIAS="); ok {
			return strings.TrimSpace(alias)
		}
	}
	return ""
}

func busOf(modalias string) string {
	bus, _, _ := strings.Cut(modalias, ":")
	return bus
}

func (k *LinuxKernel) loadAlias(modalias, device string, way []bootoption.Function) int {
	if modalias == "" || k.seen[modalias] {
		return 0
	}
	var names []string
	for _, a := range k.aliases[busOf(modalias)] {
		if ok, err := filepath.Match(a.pattern, modalias); err == nil && ok && !slices.Contains(names, a.module) {
			names = append(names, a.module)
		}
	}
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
