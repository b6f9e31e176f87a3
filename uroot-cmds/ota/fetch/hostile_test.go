package fetch

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/release"
	"halogenos.internal/uroot-cmds/ota/offer"
	"halogenos.internal/uroot-cmds/ota/otatest"
	"halogenos.internal/uroot-cmds/ota/server"
)

// print is what a machine has besides the slot that is written and the fetcher's
// directory, whose names and sizes are checked instead.
func (m *machine) print() string {
	m.t.Helper()
	var out strings.Builder
	total := int64(0)
	err := filepath.WalkDir(m.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, info := d.Name(), fs.FileInfo(nil)
		if info, err = d.Info(); err != nil {
			return err
		}
		switch {
		case filepath.Base(filepath.Dir(path)) == "directory":
			if total += info.Size(); !slices.Contains(own(), name) || !info.Mode().IsRegular() {
				m.t.Errorf("the directory has %s", name)
			}
		case name == "b" || name == "tree-b":
			if info.Size() != otatest.SlotSize {
				m.t.Errorf("%s has %d bytes", name, info.Size())
			}
		default:
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&out, "%s %x\n", path, sha256.Sum256(content))
		}
		return nil
	})
	if err != nil {
		m.t.Fatal(err)
	}
	if total > 4<<20 {
		m.t.Errorf("the directory has %d bytes", total)
	}
	return out.String()
}

// refused wants a fetch refused, with nothing changed that is none of its
// business.
func (m *machine) refused(address, want string) {
	m.t.Helper()
	before := m.print()
	_, err := m.fetch(m.t.Context(), address)
	if err == nil || !strings.Contains(err.Error(), want) {
		m.t.Errorf("error %v, want %q", err, want)
	}
	if after := m.print(); after != before {
		m.t.Errorf("the machine changed from\n%s\nto\n%s", before, after)
	}
	if _, err := os.Stat(filepath.Join(m.dir, "directory", release.FileName)); err == nil {
		m.t.Error("release.json says that all is there")
	}
}

// Offers that are not taken. FAULTS 1, 3, 5, 6
func TestOffersRefused(t *testing.T) {
	key, stranger := otatest.NewKey(t), otatest.NewKey(t)
	image := otatest.Image(60, 1, 0, 0)
	old := otatest.Make(t, otatest.Spec{Version: 1, Key: key, Image: image})
	spec := otatest.Spec{Version: 2, Key: key, Image: image}
	make := func(change func(s *otatest.Spec)) *otatest.Release {
		s := spec
		change(&s)
		return otatest.Make(t, s)
	}
	good := make(func(*otatest.Spec) {})
	text := func(s string) func(site *otatest.Site) {
		return func(site *otatest.Site) {
			site.Put(otatest.Directory+manifest.FileName, []byte(s+"\nPUBKEY=release-key.pgp\n"))
		}
	}
	place := func(r *otatest.Release) func(site *otatest.Site) {
		return func(site *otatest.Site) { site.Put(otatest.Directory+"2/2.tar.gz", r.Archive) }
	}
	for name, c := range map[string]struct {
		change func(site *otatest.Site)
		want   string
	}{
		"not signed":       {place(make(func(s *otatest.Spec) { s.Key, s.Pinned = nil, key })), "is not signed"},
		"another signer":   {place(make(func(s *otatest.Spec) { s.Key, s.Pinned = stranger, key })), "signature is by the OpenPGP key"},
		"another pin":      {place(make(func(s *otatest.Spec) { s.Pinned = stranger })), "have not pinned the same release key"},
		"another image":    {place(make(func(s *otatest.Spec) { s.ImageID = "other-os" })), "another image is another installation"},
		"another machine":  {place(make(func(s *otatest.Spec) { s.Arch = "aarch64" })), "this one is x86_64"},
		"an older release": {place(old), "holds version 1"},
		"another UKI":      {place(make(func(s *otatest.Spec) { s.Change = func(r *release.Release) { r.Epoch = 3 } })), "epoch is 3 in release.json and 0 in the UKI's"},
		"another image ":   {place(make(func(s *otatest.Spec) { s.Change = func(r *release.Release) { r.RootHash[0] ^= 1 } })), "root hash is"},
		"too large":        {place(make(func(s *otatest.Spec) { s.Change = func(r *release.Release) { r.SlotSize, r.ImageSize = 1<<30, 1<<30 } })), "this machine's have 32 MiB: `ota grow`"},
		"version 2^63":     {text("STABLE=9223372036854775808"), "version"},
		"version -1":       {text("STABLE=-1"), "version"},
		"version 02":       {text("STABLE=02"), "version"},
		"version 2a":       {text("STABLE=2a"), "version"},
		"version ../2":     {text("STABLE=../2"), "version"},
		"no manifest":      {func(site *otatest.Site) { delete(site.Files, otatest.Directory+manifest.FileName) }, "has no manifest.env"},
		"no archive":       {func(site *otatest.Site) { delete(site.Files, otatest.Directory+"2/2.tar.gz") }, "does not have it: it may be publishing"},
		"no archive of a step": {func(site *otatest.Site) {
			site.Put(otatest.Directory+manifest.FileName, append(bytes.Replace(site.Files[otatest.Directory+manifest.FileName].Data, []byte("STABLE=2"), []byte("STABLE=3"), 1), "STEPS=2\n"...))
			delete(site.Files, otatest.Directory+manifest.SignatureName)
			delete(site.Files, otatest.Directory+"2/2.tar.gz")
		}, "which this machine needs before anything newer (STEPS in manifest.env): tell its distributor"},
		"half a head":                            {func(site *otatest.Site) { site.Put(otatest.Directory+"2/2.tar.gz", good.Archive[:900]) }, "half uploaded"},
		"an empty archive":                       {func(site *otatest.Site) { site.Put(otatest.Directory+"2/2.tar.gz", nil) }, "2.tar.gz"},
		"another file":                           {func(site *otatest.Site) { site.Put(otatest.Directory+"2/2.tar.gz", image) }, "not a gzip member"},
		"another key":                            {func(site *otatest.Site) { site.Put(otatest.Directory+"release-key.pgp", stranger.Public) }, "this machine has pinned"},
		"no key":                                 {func(site *otatest.Site) { delete(site.Files, otatest.Directory+"release-key.pgp") }, "release key that the manifest names"},
		"no PUBKEY":                              {func(site *otatest.Site) { site.Put(otatest.Directory+manifest.FileName, []byte("STABLE=2\n")) }, "names no PUBKEY"},
		"no key in the key":                      {func(site *otatest.Site) { site.Put(otatest.Directory+"release-key.pgp", image[:100]) }, "PUBKEY"},
		"a signature that is not the manifest's": {func(site *otatest.Site) { site.Put(otatest.Directory+manifest.SignatureName, key.Sign([]byte("x"))) }, "do not belong together"},
		"a stranger's manifest": {func(site *otatest.Site) {
			site.Put(otatest.Directory+manifest.SignatureName, stranger.Sign(site.Files[otatest.Directory+manifest.FileName].Data))
		}, "do not belong together"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, ranges := range []bool{true, false} {
				site := otatest.NewSite(key)
				site.Publish(good, nil)
				c.change(site)
				m := newMachine(t, old)
				m.self.SlotSize = otatest.SlotSize
				s := serve(t, site, ranges)
				// As the part with privileges does, before anything is written.
				f, _, err := m.look(t.Context(), s.URL)
				if err == nil {
					var d offer.Decision
					if d, _, _, err = f.Judge(m.self); err == nil {
						err = d.Err()
					}
				}
				if err == nil {
					m.refused(s.URL, c.want)
				} else if !strings.Contains(err.Error(), c.want) {
					t.Errorf("error %v, want %q", err, c.want)
				}
			}
		})
	}
}

// Each bit of the head counts. FAULTS 1, 12
func TestHeadFlipped(t *testing.T) {
	w := newWorld(t)
	m := newMachine(t, w.old)
	self := *m.self
	step := 7
	for at := 0; at < int(w.new.Head.Size); at += step {
		flipped := bytes.Clone(w.new.Archive[:w.new.Head.Size])
		flipped[at] ^= 1 << (at % 8)
		if bytes.Equal(flipped, w.new.Archive[:w.new.Head.Size]) {
			t.Fatal("nothing was flipped")
		}
		if _, err := (&Found{Archive: "x", Head: flipped}).head(&self); err == nil {
			t.Errorf("byte %d can be flipped", at)
		}
	}
}

// A manifest that is being published fits its signature a moment later.
func TestSettling(t *testing.T) {
	w := newWorld(t)
	w.site.SignManifest()
	good := w.site.Files[otatest.Directory+manifest.SignatureName]
	w.site.Put(otatest.Directory+manifest.SignatureName, w.key.Sign([]byte("the one before")))
	bad := w.site.Files[otatest.Directory+manifest.SignatureName]
	s := serve(t, w.site, true)
	asked := 0
	handler := s.Config.Handler
	s.Config.Handler = http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, manifest.SignatureName) {
			file := bad
			if asked++; asked > 2 {
				file = good
			}
			_, _ = out.Write(file.Data)
			return
		}
		handler.ServeHTTP(out, r)
	})
	m := newMachine(t, w.old)
	if _, _, err := m.look(t.Context(), s.URL); err != nil || asked != 3 {
		t.Errorf("%v after %d times", err, asked)
	}
}

// FAULTS 4, 81
func TestExpiry(t *testing.T) {
	w := newWorld(t)
	s := serve(t, w.site, true)
	end := otatest.Date.Add(30 * 24 * time.Hour)
	w.site.Publish(w.new, func(m *manifest.Manifest) { m.Expires, m.Sequence = end, 5 })
	w.site.SignManifest()
	for _, c := range []struct {
		now  time.Time
		want string
	}{
		{otatest.Date.Add(time.Hour), ""},
		{time.Unix(0, 0), ""}, // a dead clock: it cannot be before the running system's date
		{end, "expired on"},
		{end.AddDate(74, 0, 0), "this machine's clock is wrong"},
	} {
		m := newMachine(t, w.old)
		m.self.Now = c.now
		_, _, err := m.look(t.Context(), s.URL)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("at %s: %v, want %q", c.now, err, c.want)
		}
	}
	// With the clock set back, the number still tells an old manifest.
	m := newMachine(t, w.old)
	m.self.Now, m.self.Seen = time.Unix(0, 0), offer.Seen{Sequence: 6, Signed: true}
	if _, _, err := m.look(t.Context(), s.URL); err == nil || !strings.Contains(err.Error(), "has seen 6") {
		t.Errorf("an old manifest: %v", err)
	}
}

// FAULTS 7: an archive that never ends, before and behind its head.
func TestEndlessArchive(t *testing.T) {
	w := newWorld(t)
	for name, start := range map[string][]byte{
		"from the start": otatest.Stored(make([]byte, 50_000)), "behind the head": w.new.Archive[:w.new.Head.Size], "behind the end": w.new.Archive,
	} {
		for _, length := range []string{"", "1000000000000"} {
			s := serve(t, w.site, false)
			s.hook(func(out http.ResponseWriter, _ *http.Request) bool {
				if length != "" {
					out.Header().Set("Content-Length", length)
				}
				for b := start; ; b = otatest.Stored(make([]byte, 50_000)) {
					if _, err := out.Write(b); err != nil {
						return true
					}
				}
			})
			m := newMachine(t, w.old)
			before := m.print()
			_, err := m.fetch(t.Context(), s.URL)
			if err == nil || m.print() != before {
				t.Errorf("%s: %v", name, err)
			}
			if n := s.bytes(); n > int64(len(w.new.Archive))+100<<20 {
				t.Errorf("%s: %d bytes were sent", name, n)
			}
		}
	}
}

// FAULTS 8: too slow a server is given up, what has arrived is kept, and the next
// time it goes on from there.
func TestSlowServer(t *testing.T) {
	w := newWorld(t)
	s := serve(t, w.site, true)
	m := newMachine(t, w.old)
	m.source = nil
	var asked atomic.Int32
	s.hook(func(out http.ResponseWriter, r *http.Request) bool {
		if asked.Add(1) < 5 {
			return false
		}
		var first, last int
		if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &first, &last); err != nil {
			return false
		}
		out.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, len(w.new.Archive)))
		out.WriteHeader(http.StatusPartialContent)
		for i := first; i <= last; i++ {
			if _, err := out.Write(w.new.Archive[i : i+1]); err != nil || http.NewResponseController(out).Flush() != nil {
				return true
			}
			select {
			case <-r.Context().Done():
				return true
			case <-time.After(20 * time.Millisecond):
			}
		}
		return true
	})
	before := m.print()
	_, err := m.fetch(t.Context(), s.URL)
	if !errors.Is(err, server.ErrSlow) || !strings.Contains(err.Error(), "goes on from there") || m.print() != before {
		t.Errorf("error %v", err)
	}
	had := s.bytes()
	s.hook(nil)
	if _, err := m.fetch(t.Context(), s.URL); err != nil {
		t.Fatal(err)
	}
	m.has(w.new)
	if all := had + s.bytes(); all > int64(len(w.new.Archive))+256<<10 {
		t.Errorf("%d bytes in all for %d", all, len(w.new.Archive))
	}
}

// FAULTS 9, 11: the archive becomes another one under way.
func TestArchiveChanges(t *testing.T) {
	w := newWorld(t)
	other := otatest.Make(t, otatest.Spec{Version: 2, Key: w.key, Image: otatest.Image(imageBlocks+100, 7, 0, 0)})
	for name, c := range map[string]struct {
		ranges bool
		change func(out http.ResponseWriter, r *http.Request) bool
		want   string
	}{
		// FAULTS 112: mirrors behind one name differ in what they say of a file
		"another tag": {true, func(out http.ResponseWriter, r *http.Request) bool {
			out.Header().Set("ETag", `"new"`)
			out.Header().Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
			return false
		}, ""},
		"no ranges any more": {true, func(out http.ResponseWriter, r *http.Request) bool {
			r.Header.Del("Range")
			return false
		}, ""},
		"shifted": {true, func(out http.ResponseWriter, r *http.Request) bool {
			var first, last int
			_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &first, &last)
			r.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", first+1, last+1))
			return false
		}, "cannot be used"},
		"gone": {true, func(out http.ResponseWriter, r *http.Request) bool {
			out.WriteHeader(http.StatusNotFound)
			return true
		}, "404"},
		"another archive, streamed": {false, func(out http.ResponseWriter, r *http.Request) bool {
			_, _ = out.Write(other.Archive)
			return true
		}, "another one than a moment ago"},
		"cut, streamed": {false, func(out http.ResponseWriter, r *http.Request) bool {
			out.Header().Set("Content-Length", fmt.Sprint(len(w.new.Archive)))
			_, _ = out.Write(w.new.Archive[:len(w.new.Archive)/2])
			return true
		}, "unexpected EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, w.site, c.ranges)
			var asked atomic.Int32
			s.hook(func(out http.ResponseWriter, r *http.Request) bool {
				// A server without ranges is asked for the head twice.
				looked := int32(1)
				if !c.ranges {
					looked = 2
				}
				return asked.Add(1) > looked && c.change(out, r)
			})
			m := newMachine(t, w.old)
			m.source = nil
			if c.want != "" {
				m.refused(s.URL, c.want)
			} else if _, err := m.fetch(t.Context(), s.URL); err != nil {
				t.Fatal(err)
			}
			s.hook(nil)
			if _, err := m.fetch(t.Context(), s.URL); err != nil {
				t.Error(err)
			}
			m.has(w.new)
		})
	}
}

// What lies in the fetcher's directory decides nothing. FAULTS 25
func TestDirectoryTricks(t *testing.T) {
	w := newWorld(t)
	s := serve(t, w.site, true)
	m := newMachine(t, w.old)
	victim := filepath.Join(m.dir, "victim")
	if err := os.WriteFile(victim, []byte("not ours"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range own() {
		if err := os.Symlink(victim, filepath.Join(m.dir, "directory", name)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.fetch(t.Context(), s.URL); err != nil {
		t.Fatal(err)
	}
	m.has(w.new)
	if got, err := os.ReadFile(victim); err != nil || string(got) != "not ours" {
		t.Errorf("%q, %v", got, err)
	}
	// Nor does garbage in the place of what an earlier try has left.
	m = newMachine(t, w.old)
	for _, name := range own() {
		if err := os.WriteFile(filepath.Join(m.dir, "directory", name), bytes.Repeat([]byte("garbage "), 20_000), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.fetch(t.Context(), s.URL); err != nil {
		t.Fatal(err)
	}
	m.has(w.new)
}

// FuzzJudge gives what a server sends to the one who has the privileges.
func FuzzJudge(f *testing.F) {
	key := otatest.NewKey(f)
	one := otatest.Make(f, otatest.Spec{Version: 1, Key: key, Image: otatest.Image(4, 1, 0, 0)})
	two := otatest.Make(f, otatest.Spec{Version: 2, Key: key, Image: otatest.Image(4, 2, 0, 0)})
	text := []byte("STABLE=2\nPUBKEY=k\nSEQUENCE=3\n")
	f.Add(text, key.Sign(text), two.Archive[:two.Head.Size], key.WithSubkey(otatest.Date).Public)
	f.Add(text, []byte(nil), two.Archive[:two.Head.Size], []byte(nil))
	f.Add([]byte(nil), []byte(nil), one.Archive[:one.Head.Size], otatest.NewKey(f).Public)
	f.Fuzz(func(t *testing.T, text, signature, head, shown []byte) {
		self := &offer.Self{Running: one.Contract, Channel: "stable", Signed: "auto", Now: otatest.Date.Add(time.Hour)}
		d, h, _, err := (&Found{Manifest: text, Signature: signature, Head: head, Key: shown}).Judge(self)
		// Nothing is taken that the key did not sign.
		if err == nil && h != nil && d.Verdict == offer.Take && !bytes.Equal(h.Description, two.Text) {
			t.Fatalf("took %+v", d)
		}
	})
}
