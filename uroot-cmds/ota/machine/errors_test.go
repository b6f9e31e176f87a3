package machine

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/uroot-cmds/ota/otatest"
)

// A fault is what is wrong with a machine or its server, and what a fetch has to say.
type fault struct {
	what, thing, cure string
	change            func(w *world)
}

// FAULTS 112: the most likely errors of a machine's owner
func TestTells(t *testing.T) {
	serve := func(h http.HandlerFunc) func(w *world) {
		return func(w *world) {
			s := httptest.NewServer(h)
			w.t.Cleanup(s.Close)
			w.conf("Server=" + s.URL)
		}
	}
	signed := func(change func(m *manifest.Manifest)) func(w *world) {
		return func(w *world) {
			w.site.Publish(w.three, change)
			w.site.SignManifest()
		}
	}
	other := func(change func(r *release.Release)) func(w *world) {
		return func(w *world) {
			w.site.Publish(otatest.Make(w.t, otatest.Spec{Version: 9, Key: w.key, Image: otatest.Image(50, 1, 0, 0), Change: change}), nil)
		}
	}
	for _, f := range []fault{
		{"fetch: no server is set", "no server", "write Server=", func(w *world) { w.conf() }},
		{"fetch: a server that does not answer", "manifest.env", "that the server runs", func(w *world) { w.server.Close() }},
		{"fetch: a network that is not there", "255.255.255.255", "check this machine's network", func(w *world) { w.conf("Server=http://255.255.255.255") }},
		{"fetch: a server's name that is wrong", "nonesuch.invalid", "check the server's name", func(w *world) { w.conf("Server=http://nonesuch.invalid") }},
		{"fetch: the wrong directory of a server", "manifest.env", "correct Server=", serve(http.NotFound)},
		{"fetch: a login page", "manifest.env", "open a browser", serve(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) })},
		{"fetch: a server that is busy for an hour", "manifest.env", "run this again then", serve(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(http.StatusServiceUnavailable)
		})},
		{"fetch: a server that wants a password", "manifest.env", "USER:PASSWORD@HOST", serve(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) })},
		{"fetch: a server that redirects for ever", "manifest.env", "correct the server", serve(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) })},
		{"fetch: a server of a private authority", "manifest.env", "CA= in ota.conf", func(w *world) {
			s := httptest.NewTLSServer(http.FileServerFS(w.site.Files))
			w.t.Cleanup(s.Close)
			w.conf("Server=" + s.URL)
		}},
		{"fetch: a proxy that does not answer", "manifest.env", "Proxy= in ota.conf", func(w *world) { w.conf("Server=http://192.0.2.1", "Proxy=http://127.0.0.1:1") }},
		{"fetch: certificates that are not there", "/nowhere.pem", "correct it, or take it out", func(w *world) { w.conf("Server="+w.server.URL, "CA=/nowhere.pem") }},
		{"fetch: ota.conf with a mistake", "ota.conf", "like https://", func(w *world) { w.conf("Server=updates") }},
		{"fetch: a manifest with a mistake", "manifest.env, line 1", "write STABLE=3", func(w *world) { w.site.Put(otatest.Directory+"manifest.env", []byte("stable=3\n")) }},
		{"fetch: a manifest without a signature, which is wanted", "manifest.env.pgp", "set it to auto", func(w *world) { w.conf("Server="+w.server.URL, "RequireSignedManifest=yes") }},
		{"fetch: a manifest that somebody has changed", "manifest", "run this again later", func(w *world) {
			signed(nil)(w)
			w.site.Files[otatest.Directory+"manifest.env"].Data = append(w.site.Files[otatest.Directory+"manifest.env"].Data, '\n')
		}},
		{"fetch: a manifest that is older than one seen", "SEQUENCE", "try again later", func(w *world) {
			signed(func(m *manifest.Manifest) { m.Sequence = 7 })(w)
			_, err := w.m.Check(w.t.Context(), Options{})
			must(w.t, err)
			signed(func(m *manifest.Manifest) { m.Sequence = 6 })(w)
		}},
		{"fetch: a manifest that has expired", "expired", "tell the distributor", signed(func(m *manifest.Manifest) { m.Expires = otatest.Date.Add(time.Minute).UTC().Truncate(time.Second) })},
		{"fetch: another distributor's key", "release key", "Correct Server=", func(w *world) {
			w.site = otatest.NewSite(otatest.NewKey(w.t))
			site := w.site
			site.Publish(w.three, nil)
			serve(func(out http.ResponseWriter, r *http.Request) { http.FileServerFS(site.Files).ServeHTTP(out, r) })(w)
		}},
		{"fetch: a release that another key has signed", "release.json", "until its distributor signs", func(w *world) {
			w.site.Publish(otatest.Make(w.t, otatest.Spec{Version: 9, Key: otatest.NewKey(w.t), Image: otatest.Image(50, 1, 0, 0)}), nil)
		}},
		{"fetch: unsigned releases on a server", "manifest", "tell the distributor", func(w *world) { w.site.Put(otatest.Directory+"manifest.env", []byte("STABLE=3\n")) }},
		{"fetch: an archive that is not there", "3.tar.gz", "run this again later", func(w *world) { delete(w.site.Files, otatest.Directory+"3/3.tar.gz") }},
		{"fetch: an archive that is damaged", "system.erofs", "run this again", func(w *world) {
			f := w.site.Files[otatest.Directory+"3/3.tar.gz"]
			f.Data = bytes.Clone(f.Data)
			for i := len(f.Data) / 2; i < len(f.Data)/2+5000; i++ {
				f.Data[i] ^= 1
			}
		}},
		{"fetch: a release for another image", "other", "tell the distributor", other(func(r *release.Release) { r.ImageID = "other" })},
		{"fetch: a release that does not fit the slot", "needs slots of 64 MiB", "`ota grow` makes them larger", other(func(r *release.Release) { r.ImageSize, r.SlotSize = 64<<20, 64<<20 })},
		{"fetch: an epoch that is too low", "epoch", "wait for a release of epoch 5", func(w *world) {
			w.two.Contract.Epoch = 5
			w.boot(layout.SlotA, w.two)
		}},
		{"fetch: a version that has failed", "version 3", "ota retry 3", func(w *world) {
			w.box.journal(journal.Entry{Kind: journal.Failed, Version: 3, Reason: "the watchdog ended it"})
		}},
		{"fetch: during a trial", "on trial", "ota bless", func(w *world) {
			must(w.t, os.Rename(w.path("esp/EFI/Linux/test-os_2.efi"), w.path("esp/EFI/Linux/test-os_2+2-1.efi")))
		}},
		{"fetch: a system with corrupt blocks", "corrupt blocks", "halogenctl repair", func(w *world) { w.corrupt = true }},
		{"fetch: no UKI of this system", "version 2", "restart", func(w *world) { must(w.t, os.Remove(w.path("esp/EFI/Linux/test-os_2.efi"))) }},
		{"fetch: no root partition", "var/lib/halogen", "restart", func(w *world) { must(w.t, os.RemoveAll(w.path(stateDirectory))) }},
		{"fetch: another ota is at work", "another ota", "wait until", func(w *world) {
			r, err := w.m.Running()
			must(w.t, err)
			lock, err := w.m.lock(r)
			must(w.t, err)
			w.t.Cleanup(func() { _ = lock.Close() })
		}},
		{"fetch: not started by HalogenOS", "boot.json", "run it on the installed machine", func(w *world) { must(w.t, os.Remove(w.path(reportFile))) }},
		{"fetch: what was seen is damaged", "seen.json", "try again", func(w *world) { w.write(filepath.Join(stateDirectory, seenFile), []byte("{")) }},
	} {
		t.Run(f.what, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			f.change(w)
			out, err := w.fetch()
			if err == nil {
				t.Fatalf("%+v", out)
			}
			testkit.Tells(t, testkit.Error{What: f.what, Thing: f.thing, Cure: f.cure}, strings.ReplaceAll(err.Error(), w.dir, ""))
		})
	}
}

// conf writes the owner's settings.
func (w *world) conf(lines ...string) {
	w.write("etc/halogen/ota.conf", []byte(strings.Join(lines, "\n")+"\n"))
}
