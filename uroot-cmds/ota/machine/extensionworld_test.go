package machine

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"halogenos.internal/boot/extension"
	"halogenos.internal/boot/layout"
	"halogenos.internal/uroot-cmds/ota/fetch"
	"halogenos.internal/uroot-cmds/ota/otatest"
	"halogenos.internal/uroot-cmds/ota/worker"
)

// An extendedWorld is one whose machine runs version 2, which has the extensions vpn and, as an
// essential one, drivers. Version 3 has them as well, of other content, and waits on the
// server; version 1, in slot B, has vpn.
type extendedWorld struct{ *world }

const extensionBlocks = 300

func newExtended(t testing.TB) extendedWorld {
	t.Helper()
	w := extendedWorld{newWorld(t)}
	w.one, w.two, w.three = extendedReleases(w.world)
	w.install(layout.SlotA, w.two, "test-os_2.efi")
	w.install(layout.SlotB, w.one, "test-os_1.efi")
	w.boot(layout.SlotA, w.two)
	for _, r := range []*otatest.Release{w.one, w.two, w.three} {
		w.site.Publish(r, nil)
	}
	return w
}

// extendedLine has these releases, which are made once.
var extendedLine struct {
	sync.Mutex
	made [3]*otatest.Release
}

func extendedReleases(w *world) (one, two, three *otatest.Release) {
	l := &extendedLine
	l.Lock()
	defer l.Unlock()
	if l.made[0] != nil {
		return l.made[0], l.made[1], l.made[2]
	}
	spec := func(of *otatest.Release, extensions ...otatest.Extension) *otatest.Release {
		return otatest.Make(w.t, otatest.Spec{Version: of.Contract.Version, Key: w.key, Image: of.Image, Extensions: extensions})
	}
	vpn := func(every int, change uint64) otatest.Extension {
		return otatest.Extension{Name: "vpn", Image: otatest.Image(extensionBlocks, 5, every, change)}
	}
	drivers := func(blocks, every int) otatest.Extension {
		return otatest.Extension{Name: "drivers", Image: otatest.Image(blocks, 6, every, 3), Essential: true}
	}
	l.made = [3]*otatest.Release{spec(w.one, vpn(7, 1)), spec(w.two, vpn(0, 0), drivers(40, 0)), spec(w.three, vpn(60, 3), drivers(44, 5))}
	return l.made[0], l.made[1], l.made[2]
}

func (w extendedWorld) enable(names ...string) (*ExtensionChange, error) {
	return w.m.EnableExtensions(w.t.Context(), names, Options{Tell: func(e worker.Event) {
		if e.Note != "" {
			w.t.Log(e.Note)
		}
	}})
}

func (w extendedWorld) file(e *otatest.Extension) string {
	return filepath.Join(stateDirectory, extension.Directory, extension.FileName(e.Listed.Root()))
}

func (w extendedWorld) choice() string {
	return strings.TrimSpace(w.read(filepath.Join(stateDirectory, extension.Directory, extension.ChoiceName)))
}

// holds checks what lies in the directory.
func (w extendedWorld) holds(choice string, files ...*otatest.Extension) {
	w.t.Helper()
	var want []string
	if choice != "" {
		want = append(want, extension.ChoiceName)
		if got := w.choice(); got != `{"format":1,"enabled":[`+choice+`]}` {
			w.t.Errorf("the choice is %s", got)
		}
	}
	for _, e := range files {
		want = append(want, filepath.Base(w.file(e)))
		if got := w.read(w.file(e)); got != string(e.File) {
			w.t.Errorf("the file of %s differs (%d bytes)", e.Name, len(got))
		}
	}
	entries, err := os.ReadDir(w.path(filepath.Join(stateDirectory, extension.Directory)))
	must(w.t, err)
	var have []string
	for _, e := range entries {
		have = append(have, e.Name())
		if info, err := e.Info(); err != nil || info.Mode().Perm() != 0o600 {
			w.t.Errorf("%s has the mode %v, %v", e.Name(), info.Mode(), err)
		}
	}
	slices.Sort(want)
	if !slices.Equal(have, want) {
		w.t.Errorf("the directory has %v, want %v", have, want)
	}
}

// extensionOf is an extension of the release that runs.
func (x *Extensions) extensionOf(name string) *fetch.Extension {
	c := x.Releases[0]
	for _, e := range c.list {
		if e.Name == name {
			return &fetch.Extension{Extension: e, Of: c.contract}
		}
	}
	return nil
}
