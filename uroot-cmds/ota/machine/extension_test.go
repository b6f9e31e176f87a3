package machine

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/extension"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/initagent/bootinfo"
	"halogenos.internal/uroot-cmds/ota/fetch"
	"halogenos.internal/uroot-cmds/ota/otatest"
	"halogenos.internal/uroot-cmds/ota/worker"
)

// TestExtensions enables one, updates, goes on with the new release and disables it.
func TestExtensions(t *testing.T) {
	w := newExtended(t)
	vpn1, vpn2, vpn3, drivers2, drivers3 := &w.one.Extensions[0], &w.two.Extensions[0], &w.three.Extensions[0], &w.two.Extensions[1], &w.three.Extensions[1]
	if x, err := w.m.ListExtensions(); err != nil || len(x.Releases) != 2 || x.Releases[0].Role != RoleRuns || x.Releases[1].Role != RoleOlder || len(x.Releases[0].Extensions) != 2 || x.Releases[0].Extensions[0].Name != "drivers" || x.Releases[0].Extensions[1].There {
		t.Fatalf("%+v, %v", x, err)
	}
	out, err := w.enable("vpn", "drivers")
	if err != nil || len(out.Fetched) != 3 || len(out.Warnings) > 0 {
		t.Fatalf("%+v, %v", out, err)
	}
	// The release in the other slot has vpn as well, of which most can be copied.
	if f := out.Fetched[1]; f.Version != 1 || f.Result.Copied < extensionBlocks/2*4096 {
		t.Errorf("of the other slot: %+v", f.Result)
	}
	w.holds(`"drivers","vpn"`, vpn1, vpn2, drivers2)
	again, err := w.enable("vpn")
	if err != nil || !again.Fetched[0].There || again.Fetched[0].Result != nil {
		t.Errorf("a second time: %+v, %v", again, err)
	}
	fetched, err := w.fetch()
	if err != nil || !fetched.Staged || len(fetched.Extensions) != 2 || fetched.Extensions[1].Result.Copied == 0 {
		t.Fatalf("%+v, %v", fetched, err)
	}
	w.complete()
	w.holds(`"drivers","vpn"`, vpn2, drivers2, vpn3, drivers3) // version 1 is gone
	x, err := w.m.ListExtensions()
	if err != nil || len(x.Releases) != 2 || x.Releases[1].Role != RoleWaits || x.Releases[1].Version != 3 || !x.Releases[1].Extensions[0].There {
		t.Errorf("%+v, %v", x, err)
	}
	out, err = w.m.DisableExtensions([]string{"drivers"})
	if err != nil || len(out.Warnings) != 1 || !strings.Contains(out.Warnings[0], "essential to version 2 and 3") {
		t.Errorf("%+v, %v", out, err)
	}
	w.holds(`"vpn"`, vpn2, drivers2, vpn3, drivers3) // both slots' releases list them
	if _, err := w.m.DisableExtensions([]string{"other"}); err == nil || !strings.Contains(err.Error(), "enabled are vpn") {
		t.Errorf("one that is nowhere: %v", err)
	}
}

// TestExtensionsState takes from the boot's report what became of each.
func TestExtensionsState(t *testing.T) {
	w := newExtended(t)
	for i, e := range w.two.Extensions {
		w.write(w.file(&e), e.File[:len(e.File)-i*4096])
	}
	w.write(filepath.Join(stateDirectory, extension.Directory, extension.ChoiceName), []byte(`{"format":1,"enabled":["drivers","gone","vpn"]}`))
	report, err := json.Marshal(struct {
		bootinfo.Report
		Extensions []extension.State `json:"extensions"`
	}{bootinfo.Report{Slot: layout.SlotA, Contract: w.two.Contract}, []extension.State{
		{Extension: w.two.Extensions[0].Listed, Enabled: true, Opened: true},
		{Extension: w.two.Extensions[1].Listed, Enabled: true, LeftOut: "its file is too short"},
	}})
	must(t, err)
	w.write(reportFile, report)
	x, err := w.m.ListExtensions()
	if err != nil {
		t.Fatal(err)
	}
	drivers, vpn := x.Releases[0].Extensions[0], x.Releases[0].Extensions[1]
	if !vpn.Opened || !vpn.There || !vpn.Enabled || vpn.Size != int64(len(w.two.Extensions[0].File)) {
		t.Errorf("%+v", vpn)
	}
	if drivers.Opened || drivers.There || !drivers.Essential || drivers.LeftOut != "its file is too short" {
		t.Errorf("%+v", drivers)
	}
	if !slices.Equal(x.Unknown, []string{"gone"}) {
		t.Errorf("unknown: %v", x.Unknown)
	}
}

// A choice that cannot be read is refused by all, left as it is, and named.
func TestExtensionsMalformed(t *testing.T) {
	for _, text := range []string{"", "{}", `{"format":2,"enabled":[]}`, `{"format":1,"enabled":["vpn","vpn"]}`, `{"format":1,"enabled":["../x"]}`, strings.Repeat("x", extension.MaxChoice+1)} {
		w := newExtended(t)
		name := filepath.Join(stateDirectory, extension.Directory, extension.ChoiceName)
		w.write(name, []byte(text))
		_, list := w.m.ListExtensions()
		_, enable := w.enable("vpn")
		_, disable := w.m.DisableExtensions([]string{"vpn"})
		_, fetched := w.fetch()
		for what, err := range map[string]error{"list": list, "enable": enable, "disable": disable, "fetch": fetched} {
			if err == nil || !strings.Contains(err.Error(), "`mv "+w.path(name)) {
				t.Errorf("%s with %.40q: %v", what, text, err)
			}
		}
		if w.read(name) != text {
			t.Errorf("%.40q became %s", text, w.read(name))
		}
		if _, err := os.Stat(w.path(filepath.Join(stateDirectory, stagedFile))); err == nil {
			t.Error("a release was staged")
		}
	}
}

// Exchanged, torn and foreign files are refused, and nothing is enabled. FAULTS 111, 113
func TestExtensionsExchanged(t *testing.T) {
	stranger := otatest.NewKey(t)
	vpn := func(w extendedWorld) string {
		return otatest.Directory + manifest.ExtensionArchiveName(2, "vpn")
	}
	for name, c := range map[string]struct {
		change func(w extendedWorld)
		want   string
	}{
		"of another release":  {func(w extendedWorld) { w.site.Put(vpn(w), w.three.Extensions[0].Archive) }, "version is 3"},
		"another extension":   {func(w extendedWorld) { w.site.Put(vpn(w), w.two.Extensions[1].Archive) }, "name is drivers"},
		"a release's archive": {func(w extendedWorld) { w.site.Put(vpn(w), w.two.Archive) }, "describes a release"},
		"torn":                {func(w extendedWorld) { w.site.Put(vpn(w), w.two.Extensions[0].Archive[:9000]) }, "bytes early"},
		"torn in its head":    {func(w extendedWorld) { w.site.Put(vpn(w), w.two.Extensions[0].Archive[:700]) }, "is not whole"},
		"not there":           {func(w extendedWorld) { delete(w.site.Files, vpn(w)) }, "does not have vpn of version 2"},
		"endless":             {func(w extendedWorld) { w.site.Put(vpn(w), make([]byte, 8<<20)) }, "not a release's archive"},
		"a page":              {func(w extendedWorld) { w.site.Put(vpn(w), []byte("<!DOCTYPE html><html>")) }, "web page"},
		"by a stranger":       {func(w extendedWorld) { w.otherKey(stranger) }, "release.json.pgp"},
		"of other content":    {func(w extendedWorld) { w.rebuilt() }, "root hash is "},
		"changed in its middle": {func(w extendedWorld) {
			changed := bytes.Clone(w.two.Extensions[0].Archive)
			changed[len(changed)/2] ^= 1
			w.site.Put(vpn(w), changed)
		}, "not what was signed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newExtended(t)
			c.change(w)
			if out, err := w.enable("vpn"); err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "is not enabled") {
				t.Errorf("%+v, %v, want %q", out, err, c.want)
			}
			x, err := w.m.ListExtensions()
			if err != nil || x.Releases[0].Extensions[1].Enabled || x.Releases[0].Extensions[1].There {
				t.Errorf("%+v, %v", x, err)
			}
		})
	}
}

// otherKey signs the extension with a key that is not the pinned one.
func (w extendedWorld) otherKey(k *otatest.Key) {
	r := otatest.Make(w.t, otatest.Spec{Version: 2, Key: k.For(w.t), Image: otatest.Image(50, 1, 0, 0), Extensions: w.two.Extensions[:1]})
	w.site.Put(otatest.Directory+manifest.ExtensionArchiveName(2, "vpn"), r.Extensions[0].Archive)
}

// rebuilt puts a rightly signed vpn of version 2 there which the UKI does not list.
func (w extendedWorld) rebuilt() {
	r := otatest.Make(w.t, otatest.Spec{Version: 2, Key: w.key, Image: otatest.Image(50, 1, 0, 0), Extensions: w.three.Extensions[:1]})
	w.site.Put(otatest.Directory+manifest.ExtensionArchiveName(2, "vpn"), r.Extensions[0].Archive)
}

// An update with an essential extension that is not to be had is not tried; another one
// does not stop it.
func TestExtensionsMissing(t *testing.T) {
	w := newExtended(t)
	if _, err := w.enable("vpn", "drivers"); err != nil {
		t.Fatal(err)
	}
	for _, e := range w.three.Extensions {
		delete(w.site.Files, otatest.Directory+manifest.ExtensionArchiveName(3, e.Name))
	}
	before, ukis := w.table(), w.ukis()
	out, err := w.fetch()
	if err == nil || out.Staged || !strings.Contains(err.Error(), "version 3 is not fetched: ") || !strings.Contains(err.Error(), "`ota extension disable drivers`") {
		t.Fatalf("%+v, %v", out, err)
	}
	if w.ukis() != ukis || !slices.Equal(before.Partitions, w.table().Partitions) {
		t.Errorf("the other slot was emptied for it: %s", w.ukis())
	}
	w.noRanges = true // so that it is found out when the UKI is there
	if out, err = w.fetch(); err == nil || out.Staged || !strings.Contains(err.Error(), "version 3 is fetched, and is not tried: ") {
		t.Fatalf("%+v, %v", out, err)
	}
	w.noRanges = false
	if _, err := os.Stat(w.path(filepath.Join(stateDirectory, stagedFile))); err == nil {
		t.Error("it is staged")
	}
	if _, err := w.m.DisableExtensions([]string{"drivers"}); err != nil {
		t.Fatal(err)
	}
	if out, err = w.fetch(); err != nil || !out.Staged || len(out.Extensions) != 1 || !out.Extensions[0].Missing || out.Result.Fetched != 0 {
		t.Errorf("%+v, %v", out, err)
	}
	w.complete()
}

// What check says is what fetch fetches, with the extensions that are enabled.
func TestExtensionsMeasured(t *testing.T) {
	w := newExtended(t)
	plain, err := w.m.Check(t.Context(), Options{})
	if err != nil || plain.Fetch == nil {
		t.Fatalf("%+v, %v", plain, err)
	}
	if _, err := w.enable("vpn", "drivers"); err != nil {
		t.Fatal(err)
	}
	said, err := w.m.Check(t.Context(), Options{Tell: func(e worker.Event) {
		if e.Note != "" {
			t.Log(e.Note)
		}
	}})
	if err != nil || said.Fetch == nil || *said.Fetch <= *plain.Fetch {
		t.Fatalf("%+v, %v", said, err)
	}
	out, err := w.fetch()
	if err != nil {
		t.Fatal(err)
	}
	fetched := out.Result.Fetched
	for _, e := range out.Extensions {
		fetched += e.Result.Fetched
	}
	if fetched != *said.Fetch {
		t.Errorf("said %d bytes, fetched %d", *said.Fetch, fetched)
	}
	t.Logf("%d bytes, of them %d of extensions", fetched, *said.Fetch-*plain.Fetch)
}

// A list that no UKI can have is refused before a path is made of it.
func TestSaidRightly(t *testing.T) {
	w := newExtended(t)
	good := w.three.Extensions[0].Listed
	for name, c := range map[string]struct {
		l    fetch.Listed
		want bool
	}{
		"as it is":        {fetch.Listed{Contract: w.three.Contract, Extensions: []contract.Extension{good}}, true},
		"no contract":     {fetch.Listed{Extensions: []contract.Extension{good}}, false},
		"another release": {fetch.Listed{Contract: w.two.Contract, Extensions: []contract.Extension{good}}, false},
		"a short root":    {fetch.Listed{Contract: w.three.Contract, Extensions: []contract.Extension{{Name: "vpn", RootHash: []byte{1}, Salt: good.Salt, ImageSize: 4096}}}, false},
		"a path":          {fetch.Listed{Contract: w.three.Contract, Extensions: []contract.Extension{{Name: "../vpn", RootHash: good.RootHash, Salt: good.Salt, ImageSize: 4096}}}, false},
		"too many":        {fetch.Listed{Contract: w.three.Contract, Extensions: slices.Repeat([]contract.Extension{good}, 65)}, false},
	} {
		if err := saidRightly(&c.l, w.three.Head); (err == nil) != c.want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A release that has no extension of an enabled name is taken, and says so.
func TestExtensionsGone(t *testing.T) {
	w := newExtended(t)
	if _, err := w.enable("vpn"); err != nil {
		t.Fatal(err)
	}
	w.three = otatest.Make(t, otatest.Spec{Version: 3, Key: w.key, Image: w.three.Image})
	w.site.Publish(w.three, nil)
	var notes []string
	out, err := w.m.Fetch(t.Context(), Options{Tell: func(e worker.Event) { notes = append(notes, e.Note) }})
	if err != nil || !out.Staged || !slices.ContainsFunc(notes, func(n string) bool { return strings.Contains(n, "has none of that name") }) {
		t.Errorf("%+v, %v, %q", out, err, notes)
	}
	w.complete()
}

// A fetch of an extension that is killed at many points goes on each time, and asks for
// little again.
func TestExtensionsKilled(t *testing.T) {
	w := newExtended(t)
	vpn := &w.two.Extensions[0]
	var left, sent atomic.Int64
	w.onArchive = func(out http.ResponseWriter, _ *http.Request) http.ResponseWriter {
		return &killing{ResponseWriter: out, left: &left, sent: &sent}
	}
	kills := 0
	for left.Store(60_000); ; left.Store(60_000 + int64(kills)*7000) {
		out, err := w.enable("vpn")
		if err == nil && len(out.Warnings) == 0 {
			break
		}
		if kills++; kills > 40 {
			t.Fatal("it does not come to an end")
		}
		if err == nil { // killed while it fetched for the other slot's release
			continue
		}
		if !strings.Contains(err.Error(), "killed") && !strings.Contains(err.Error(), "EOF") && !strings.Contains(err.Error(), "worker") {
			t.Fatalf("kill %d: %v", kills, err)
		}
		if _, err := os.Stat(w.path(w.file(vpn))); err == nil && w.read(w.file(vpn)) != string(vpn.File) {
			t.Fatal("half a file has its name")
		}
		if !strings.Contains(w.choice(), "no such file") {
			t.Fatalf("it is enabled: %s", w.choice())
		}
	}
	if kills < 3 {
		t.Errorf("%d kills", kills)
	}
	w.holds(`"vpn"`, &w.one.Extensions[0], vpn)
	t.Logf("%d kills, %d bytes of archives of %d", kills, sent.Load(), len(vpn.Archive)+len(w.one.Extensions[0].Archive))
}

// Cut between any two steps, the next call ends as the first would have.
func TestExtensionsCut(t *testing.T) {
	directory := filepath.Join(stateDirectory, extension.Directory)
	for name, before := range map[string]func(w extendedWorld, at string){
		"the directory is made":       func(w extendedWorld, _ string) { must(t, os.Mkdir(w.path(directory), 0o700)) },
		"the part is made":            func(w extendedWorld, at string) { w.write(at+partEnding, nil) },
		"a part longer than the file": func(w extendedWorld, at string) { w.write(at+partEnding, make([]byte, 8<<20)) },
		"the part is whole":           func(w extendedWorld, at string) { w.write(at+partEnding, w.two.Extensions[0].File) },
		"it has its name":             func(w extendedWorld, at string) { w.write(at+fileEnding, w.two.Extensions[0].File) },
		"its work is there": func(w extendedWorld, at string) {
			w.write(at+fileEnding, w.two.Extensions[0].File)
			w.write(at+workEnding+"/x", nil)
		},
		"the choice is half written": func(w extendedWorld, at string) {
			w.write(filepath.Join(directory, extension.ChoiceName+".new"), []byte(`{"for`))
		},
		"a link is in the part's place": func(w extendedWorld, at string) {
			must(t, os.MkdirAll(w.path(directory), 0o700))
			must(t, os.Symlink("/etc/passwd", w.path(at+partEnding)))
		},
	} {
		w := newExtended(t)
		vpn := &w.two.Extensions[0]
		before(w, strings.TrimSuffix(w.file(vpn), fileEnding))
		if out, err := w.enable("vpn"); err != nil {
			t.Errorf("%s: %+v, %v", name, out, err)
		}
		if w.choice() != `{"format":1,"enabled":["vpn"]}` || w.read(w.file(vpn)) != string(vpn.File) {
			t.Errorf("%s: the choice is %s", name, w.choice())
		}
		if _, err := w.m.DisableExtensions([]string{"vpn"}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// At the recovery console one can be taken off, so that a machine starts without it.
func TestExtensionsAtConsole(t *testing.T) {
	w := newExtended(t)
	if _, err := w.enable("vpn", "drivers"); err != nil {
		t.Fatal(err)
	}
	text, err := w.two.Contract.Encode()
	must(t, err)
	w.write(contractFile, text)
	if _, err := w.m.DisableExtensions([]string{"drivers"}); !errors.Is(err, errLocked) {
		t.Errorf("before unlock: %v", err)
	}
	must(t, os.MkdirAll(filepath.Dir(w.path(consoleState)), 0o755))
	must(t, os.Rename(w.path(stateDirectory), w.path(consoleState)))
	out, err := w.m.DisableExtensions([]string{"drivers"})
	if err != nil || !slices.Equal(out.Enabled, []string{"vpn"}) {
		t.Errorf("%+v, %v", out, err)
	}
	if got := w.read(filepath.Join(consoleState, extension.Directory, extension.ChoiceName)); !strings.Contains(got, `["vpn"]`) {
		t.Errorf("the choice is %s", got)
	}
}

// What a worker leaves is compared with the UKI's root hash, whatever it says.
func TestExtensionsLyingWorker(t *testing.T) {
	w := newExtended(t)
	r, err := w.m.Running()
	must(t, err)
	lock, err := w.m.lock(r)
	must(t, err)
	defer lock.Close()
	must(t, w.m.makeExtensions(r))
	u := &update{Machine: w.m, running: r, Options: Options{Tell: func(worker.Event) {}}}
	x, err := w.m.extensions(r)
	must(t, err)
	e := x.extensionOf("vpn")
	part, err := u.openPart(e)
	must(t, err)
	defer part.Close()
	for _, c := range []struct {
		change func(b []byte)
		want   bool
	}{{func(b []byte) { b[5000] ^= 1 }, false}, {func(b []byte) { b[len(b)-1] ^= 1 }, false}, {func([]byte) {}, true}} {
		content := bytes.Clone(w.two.Extensions[0].File)
		c.change(content)
		_, err := part.WriteAt(content, 0)
		must(t, err)
		if err := u.settlePart(t.Context(), e, part); (err == nil) != c.want {
			t.Errorf("%v", err)
		}
		if w.m.extensionThere(r, &e.Extension) != c.want {
			t.Errorf("there: %v", !c.want)
		}
	}
}
