package hw

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/u-root/u-root/pkg/kmodule"
	"golang.org/x/sys/unix"
)

// LinuxKernel loads the modules of a folder: the initramfs's, or the system
// image's.
type LinuxKernel struct {
	Sys     string // /sys
	Modules string // /lib/modules/6.12.1
	prober  *kmodule.Prober
	aliases map[string][]alias  // by bus, the part before the first colon
	pre     map[string][]string // softdep: modules to load first
	seen    map[string]bool     // modaliases that were looked up already
}

type alias struct{ pattern, module string }

// NewLinuxKernel reads what modules there are for the running kernel.
func NewLinuxKernel(sys, modules string) (*LinuxKernel, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return nil, fmt.Errorf("name of the running kernel: %w", err)
	}
	k := &LinuxKernel{Sys: sys, Modules: filepath.Join(modules, unix.ByteSliceToString(u.Release[:])), aliases: map[string][]alias{}, pre: map[string][]string{}, seen: map[string]bool{}}
	var err error
	// Nothing is loaded yet, so there is no need to look at /proc/modules; and one
	// that is there counts as loaded.
	if k.prober, err = kmodule.NewProber(kmodule.ProbeOpts{RootDir: strings.TrimSuffix(modules, "/lib/modules"), IgnoreProcMods: true}); err != nil {
		return nil, fmt.Errorf("read list of kernel modules: %w", err)
	}
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
			_ = k.prober.Probe(soft, "") // soft: fine without, by definition
		}
		if err := k.prober.Probe(name, ""); err != nil {
			return fmt.Errorf("load kernel module %s: %w", name, err)
		}
	}
	return nil
}

// Coldplug implements Kernel. A driver that does not load is its device's
// trouble: the boot misses the device by itself if it needs it.
func (k *LinuxKernel) Coldplug() (int, error) {
	tried := 0
	err := filepath.WalkDir(filepath.Join(k.Sys, "devices"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != "modalias" {
			return nil // a device that vanishes while we look is none of ours
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return nil
		}
		tried += k.loadAlias(strings.TrimSpace(string(text)))
		return nil
	})
	if err != nil {
		return tried, fmt.Errorf("look for devices without a driver: %w", err)
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
	return k.Coldplug()
}

func busOf(modalias string) string {
	bus, _, _ := strings.Cut(modalias, ":")
	return bus
}

func (k *LinuxKernel) loadAlias(modalias string) int {
	if modalias == "" || k.seen[modalias] {
		return 0
	}
	k.seen[modalias] = true
	tried := 0
	for _, a := range k.aliases[busOf(modalias)] {
		if ok, err := filepath.Match(a.pattern, modalias); err == nil && ok {
			_ = k.Load(a.module)
			tried++
		}
	}
	return tried
}
