package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/release"
	"halogenos.internal/builder/install/installtest"
	"halogenos.internal/uroot-cmds/ota/offer"
	"halogenos.internal/uroot-cmds/ota/worker"
)

// A fixture is a site with two releases and a machine that runs the first.
type fixture struct {
	site, key string // the root, and the public key's file
	directory string // of the image, in the site
	running   *contract.Contract
	image     []byte // of release 8
	signer    *installtest.Signer
	now       []byte // the manifest, and its signature
	signature []byte
}

// newFixture makes a site, whose manifest is signed and has an end.
func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{site: t.TempDir(), signer: installtest.NewSigner(t)}
	public := f.signer.Public()
	f.directory, f.key = filepath.Join(f.site, "x86_64/test"), filepath.Join(t.TempDir(), "key.pgp")
	f.write(t, f.key, public)
	f.write(t, filepath.Join(f.directory, "release-key.pgp"), public)
	for _, v := range []contract.Version{7, 8} {
		build := installtest.Build(t, func(c *contract.Contract) {
			c.ReleaseKey, c.Version = public, v
			if v == 7 {
				f.running = c
			}
		})
		packed := installtest.Archive(t, build, f.signer.Sign)
		f.write(t, filepath.Join(f.directory, manifest.ArchiveName(v)), packed)
		f.write(t, filepath.Join(f.directory, manifest.ArchiveSignatureName(v)), f.signer.Sign(packed))
		f.image = read(t, filepath.Join(build, release.ImageFile))
	}
	f.now, f.signature = f.manifest(t, 8, 5, 30*24*time.Hour)
	f.write(t, filepath.Join(f.directory, manifest.FileName), f.now)
	f.write(t, filepath.Join(f.directory, manifest.SignatureName), f.signature)
	// Servers that root starts have users of their own.
	for dir := f.site; dir != os.TempDir() && len(dir) > 1; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// manifest makes one that is signed.
func (f *fixture) manifest(t *testing.T, v contract.Version, sequence uint64, life time.Duration) (text, signature []byte) {
	t.Helper()
	m := &manifest.Manifest{Stable: manifest.Entry{Version: v}, PubKey: "release-key.pgp", Sequence: sequence}
	if life != 0 {
		m.Expires = time.Now().Add(life).UTC().Truncate(time.Second)
	}
	text, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return text, f.signer.Sign(text)
}

func (f *fixture) write(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, content, 0o644)); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// fetch brings release 8 into a slot, as a machine's worker does. ranges is whether
// the server sends parts of files.
func (f *fixture) fetch(t *testing.T, p place) (ranges bool, err error) {
	t.Helper()
	dir := t.TempDir()
	r := worker.Request{Do: worker.Look, Address: p.base, Proxy: p.proxy, Self: &offer.Self{
		Running: f.running, Channel: manifest.Stable, Signed: "auto", Now: time.Now(), Machine: []byte("m"), Seen: offer.Seen{Sequence: 5, Signed: true},
	}}
	if p.ca != "" {
		r.CA = read(t, p.ca)
	}
	tell := func(e worker.Event) {
		if e.Found != nil {
			r.Found = e.Found
		}
	}
	if err := worker.Do(t.Context(), r, worker.Files{}, dir, tell); err != nil {
		return false, err
	}
	d, _, _, err := r.Found.Judge(r.Self)
	if err != nil {
		return false, err
	}
	if d.Verdict != offer.Take || d.Version != 8 {
		return false, errors.New(d.Reason)
	}
	var files worker.Files
	for i, name := range map[int]string{worker.System: "system", worker.Tree: "tree"} {
		if files[i], err = os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
			t.Fatal(err)
		}
		defer files[i].Close()
		if err := files[i].Truncate(installtest.SlotSize); err != nil {
			t.Fatal(err)
		}
	}
	r.Do = worker.Fetch
	if err := worker.Do(t.Context(), r, files, dir, func(worker.Event) {}); err != nil {
		return false, err
	}
	if got := read(t, files[worker.System].Name()); !bytes.HasPrefix(got, f.image) {
		t.Error("the slot does not hold the image")
	}
	return r.Found.Ranges, nil
}

// install installs it on a disk.
func (f *fixture) install(t *testing.T, p place) error {
	t.Helper()
	_, err := newTarget(t).install(p.base+"/x86_64/test", installFlags{yes: "S1", key: f.key, channel: "stable", reader: readerFlags{p.proxy, p.ca}})
	return err
}

// verify checks the server.
func (f *fixture) verify(t *testing.T, p place) error {
	t.Helper()
	args := []string{"release", "--verify", p.base + "/x86_64/test", "--pinned", f.key}
	if p.proxy != "" {
		args = append(args, "--proxy", p.proxy)
	}
	if p.ca != "" {
		args = append(args, "--ca", p.ca)
	}
	code, _, stderr := run(t, nil, args...)
	if code == exitOK && strings.Contains(stderr, "is good") {
		return nil
	}
	return errors.New(stderr)
}

// read has all three read a server. want is what each says, empty where it works.
func (f *fixture) read(t *testing.T, p place, want wants) {
	t.Helper()
	judge := func(t *testing.T, err error, want string) {
		t.Helper()
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%v, want %q", err, want)
		}
		if err != nil {
			t.Log(strings.ReplaceAll(err.Error(), p.base, "BASE"))
		}
	}
	t.Run("fetch", func(t *testing.T) {
		t.Parallel()
		ranges, err := f.fetch(t, p)
		judge(t, err, want.fetch)
		if err == nil && ranges == want.whole {
			t.Errorf("the server sends parts of files: %v", ranges)
		}
	})
	t.Run("install", func(t *testing.T) {
		t.Parallel()
		judge(t, f.install(t, p), want.install)
	})
	t.Run("verify", func(t *testing.T) {
		t.Parallel()
		judge(t, f.verify(t, p), want.verify)
	})
}

// wants are the outcomes of the three.
type wants struct {
	fetch, install, verify string
	whole                  bool // the server sends whole files only
}

func all(text string) wants { return wants{text, text, text, false} }

// Every server that somebody may have, or meet on the way, read by all three that
// read servers: each works, or says what is wrong and what to do. FAULTS 112 (R12, R13): the
// servers, a portal, an old manifest, Proxy= and CA=
func TestServers(t *testing.T) {
	f := newFixture(t)
	last := time.Now().Add(-time.Hour)
	handler := func(h func(f *fixture) http.Handler) func(*testing.T, *fixture) place {
		return func(t *testing.T, f *fixture) place { return serveHTTP(t, h(f)) }
	}
	over := func(change func(p *place), password string, refuses int) func(*testing.T, *fixture) place {
		return func(t *testing.T, f *fixture) place {
			p, through := byProxy(t, f, password, refuses)
			change(&p)
			t.Cleanup(func() {
				if n := through.Load(); (n > 0) != (refuses == 0 && !t.Failed()) && !strings.Contains(t.Name(), "password_is") {
					t.Errorf("%d requests went by the proxy", n)
				}
			})
			return p
		}
	}
	tls := func(names ...string) func(*testing.T, *fixture) place {
		return func(t *testing.T, f *fixture) place { return newAuthority(t).serve(t, f.files(), nil, names...) }
	}
	old := func(v contract.Version, sequence uint64, life time.Duration, both bool) func(*testing.T, *fixture) place {
		return handler(func(f *fixture) http.Handler {
			text, signature := f.manifest(t, v, sequence, life)
			h := f.instead(manifest.FileName, sends(text))
			if !both {
				return h
			}
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.HasSuffix(r.URL.Path, "/"+manifest.SignatureName) {
					_, _ = w.Write(signature)
					return
				}
				h.ServeHTTP(w, r)
			})
		})
	}
	for _, row := range []struct {
		name  string
		serve func(t *testing.T, f *fixture) place
		want  wants
	}{
		{"nginx", nginx("").start, all("")},
		{"nginx without ranges", nginx("max_ranges 0;").start, wants{whole: true}},
		{"Apache, deflate on everything", apache("SetOutputFilter DEFLATE\n").start, all("")},
		{"Apache, gz as an encoding", apache("AddEncoding x-gzip .gz\n").start, all("")},
		{"lighttpd", lighttpd().start, all("")},
		{"caddy", caddy().start, all("")},
		{"busybox", busybox().start, all("")},
		{"python", python().start, wants{whole: true}},
		{"an object store", objectStore, all("")},
		{"a cut every 64 KiB", handler(func(f *fixture) http.Handler { return cutting(f, 64<<10) }), all("")},
		{"every third answer is 500", handler(func(f *fixture) http.Handler { return failing(f) }), all("")},
		{"IPv6 only", overIPv6, all("")},

		// Without an end, only machines that have seen the newer one can tell.
		{"a cache with an old manifest", old(7, 4, 0, true), wants{fetch: "somebody shows an old one"}},
		{"a cache with a manifest that has ended", old(8, 5, -time.Hour, true), all("expired on")},
		{"a cache with half of an old state", old(7, 4, 0, false), all("an old copy of")},
		{"a cache with a key of before", handler(func(f *fixture) http.Handler {
			stranger := installtest.NewSigner(t)
			return f.instead("release-key.pgp", sends(stranger.Public()))
		}), wants{fetch: "this machine has pinned", install: "want " + fingerprint(t, f.key), verify: "want " + fingerprint(t, f.key)}},

		{"a private authority", tls("127.0.0.1"), all("")},
		{"an authority that nobody named", func(t *testing.T, f *fixture) place {
			return place{base: tls("127.0.0.1")(t, f).base}
		}, all("CA= in ota.conf, --ca of halogen")},
		{"a certificate of another name", tls("releases.example.org"), all("use the name that the server's certificate has")},
		{"a certificate that has ended", func(t *testing.T, f *fixture) place {
			return newAuthority(t).serve(t, f.files(), &last, "127.0.0.1")
		}, all("must renew its certificate")},

		{"a proxy by CONNECT", over(func(*place) {}, "", 0), all("")},
		{"a proxy with a password", over(func(p *place) { p.proxy = strings.Replace(p.proxy, "http://", "http://me:secret@", 1) }, "secret", 0), all("")},
		{"a proxy for http", over(func(p *place) { p.base = "http://" + hidden }, "", 0), all("")},
		{"a proxy whose password is missing", over(func(*place) {}, "secret", http.StatusTeapot), all("http://USER:PASSWORD@HOST:PORT")},
		{"a proxy for http whose password is missing", over(func(p *place) { p.base = "http://" + hidden }, "secret", http.StatusTeapot), all("http://USER:PASSWORD@HOST:PORT")},
		{"a proxy that forbids it", over(func(*place) {}, "", http.StatusForbidden), all("answers 403 Forbidden: its address comes from Proxy=")},
		{"a proxy's address without http", func(t *testing.T, f *fixture) place {
			return place{base: "http://127.0.0.1:1", proxy: "proxy:3128"}
		}, all("neither none nor an address like http://")},

		{"a portal", handler(func(*fixture) http.Handler { return http.HandlerFunc(portal) }), all("wants a login")},
		{"a portal that redirects", redirectingPortal, all("wants a login")},
		{"a portal that comes in between", handler(func(f *fixture) http.Handler { return f.instead("8.tar.gz", portal) }), all("8.tar.gz: the server's answer cannot be used: it is a web page: a network that wants a login")},
		{"a network that says so", handler(func(*fixture) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNetworkAuthenticationRequired) })
		}), all("wants a login")},
		{"a server that wants a password", handler(func(*fixture) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) })
		}), all("https://USER:PASSWORD@HOST")},
		{"another directory", handler(func(f *fixture) http.Handler { return http.FileServer(http.Dir(filepath.Dir(f.directory))) }),
			wants{fetch: "has no manifest.env for x86_64/test", install: "name the image's directory", verify: "name the image's directory"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			f.read(t, row.serve(t, f), row.want)
		})
	}
}

func fingerprint(t *testing.T, name string) string {
	t.Helper()
	key, err := readKey(name)
	if err != nil {
		t.Fatal(err)
	}
	return key.Fingerprint().String()
}

// inEnvironment says to a test's child process what to read.
const inEnvironment = "HALOGEN_TEST_SERVER"

// The proxy and the certificates of the environment, as people are used to. Go reads
// both once, so that the readers have a process of their own.
// TestInstallOffered: the installer takes the release that the manifest offers, and not an
// older one, or another image's, in its place.
func TestInstallOffered(t *testing.T) {
	f := newFixture(t)
	web := httptest.NewServer(http.FileServer(http.Dir(f.site)))
	defer web.Close()
	open := func(want string) {
		t.Helper()
		s, done, err := openSource(t.Context(), web.URL+"/x86_64/test", installFlags{key: f.key, channel: "stable"})
		if err == nil {
			defer done()
		}
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
		if err == nil && s.ESP.Release.Version != 8 {
			t.Errorf("release %s, want 8", s.ESP.Release.Version)
		}
	}
	list := func(image string) {
		text := append(slices.Clone(f.now), "IMAGE="+image+"\n"...)
		f.write(t, filepath.Join(f.directory, manifest.FileName), text)
		f.write(t, filepath.Join(f.directory, manifest.SignatureName), f.signer.Sign(text))
	}
	open("")
	list("x86_64/test")
	open("")
	list("x86_64/kiosk")
	open("lists the releases of x86_64/kiosk, and the archive beside it has one of x86_64/test")
	list("x86_64/test\nROLLOUT_STABLE=0")
	open("'halogen release withdraw'")
	list("x86_64/test")
	f.write(t, filepath.Join(f.directory, manifest.ArchiveName(8)), read(t, filepath.Join(f.directory, manifest.ArchiveName(7))))
	open("offers release 8, and the archive of that name has release 7")
}

func TestServersOfTheEnvironment(t *testing.T) {
	type told struct {
		Site, Key, Base string
		Running         *contract.Contract
		Image           []byte
	}
	if text, ok := os.LookupEnv(inEnvironment); ok {
		var o told
		if err := json.Unmarshal([]byte(text), &o); err != nil {
			t.Fatal(err)
		}
		image := read(t, filepath.Join(o.Site, "image"))
		f := &fixture{site: o.Site, key: o.Key, running: o.Running, image: image}
		f.read(t, place{base: o.Base}, all(""))
		return
	}
	f := newFixture(t)
	p, through := byProxy(t, f, "secret", 0)
	f.write(t, filepath.Join(f.site, "image"), f.image)
	text, err := json.Marshal(told{Site: f.site, Key: f.key, Base: p.base, Running: f.running})
	if err != nil {
		t.Fatal(err)
	}
	proxy := strings.Replace(p.proxy, "http://", "http://me:secret@", 1)
	c := exec.Command(os.Args[0], "-test.run=^TestServersOfTheEnvironment$", "-test.v")
	c.Env = append(os.Environ(), inEnvironment+"="+string(text), "https_proxy="+proxy, "HTTPS_PROXY=", "no_proxy=", "NO_PROXY=", "SSL_CERT_FILE="+p.ca)
	if said, err := c.CombinedOutput(); err != nil || through.Load() < 3 || strings.Contains(string(said), "secret") {
		t.Errorf("%d connections by the proxy: %v\n%s", through.Load(), err, said)
	}
}
