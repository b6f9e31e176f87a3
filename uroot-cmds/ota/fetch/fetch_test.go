package fetch

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"halogenos.internal/boot/archive"
	"halogenos.internal/boot/block"
	"halogenos.internal/boot/blockindex"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/verity"
	"halogenos.internal/uroot-cmds/ota/offer"
	"halogenos.internal/uroot-cmds/ota/otatest"
	"halogenos.internal/uroot-cmds/ota/server"
)

const imageBlocks = 1300 // 5 MB

// A machine has two slots in plain files and a directory.
type machine struct {
	t      testing.TB
	dir    string
	self   *offer.Self
	source *Source
	notes  strings.Builder
	mu     sync.Mutex
}

func newMachine(t testing.TB, running *otatest.Release) *machine {
	t.Helper()
	m := &machine{t: t, dir: t.TempDir(), self: &offer.Self{Running: running.Contract, Channel: "stable", Signed: "auto", Now: otatest.Date.Add(time.Hour), Machine: []byte("m")}}
	system, tree := m.file("a"), m.file("tree-a")
	if _, err := system.WriteAt(running.Image, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := verity.Generate(t.Context(), system, running.Contract.VerityParams(), tree, nil); err != nil {
		t.Fatal(err)
	}
	m.source = &Source{
		System: system, Tree: tree, Blocks: uint64(len(running.Image) / verity.BlockSize), Salt: running.Contract.Salt,
		UKI: func() (io.ReadCloser, int64, error) {
			return io.NopCloser(bytes.NewReader(running.UKI)), int64(len(running.UKI)), nil
		},
	}
	for _, name := range []string{"b", "tree-b"} {
		if err := m.file(name).Truncate(otatest.SlotSize); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(m.dir, "directory"), 0o700); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *machine) file(name string) *os.File {
	m.t.Helper()
	f, err := os.OpenFile(filepath.Join(m.dir, name), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { _ = f.Close() })
	return f
}

// quick are limits that a test can wait for.
func quick() server.Options {
	return server.Options{Attempts: 2, Pause: time.Millisecond, MinSpeed: 1000, Window: 300 * time.Millisecond}
}

func (m *machine) look(ctx context.Context, address string) (*Found, server.Transport, error) {
	m.t.Helper()
	t, err := server.New(address, quick())
	if err != nil {
		m.t.Fatal(err)
	}
	f, err := Look(ctx, t, m.self, "", time.Millisecond)
	return f, t, err
}

func (m *machine) job(t server.Transport, f *Found, system block.Device) *Job {
	root, err := os.OpenRoot(filepath.Join(m.dir, "directory"))
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { _ = root.Close() })
	if system == nil {
		system = m.file("b")
	}
	note := func(text string) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.notes.WriteString(text + "\n")
	}
	return &Job{Server: t, Archive: f.Archive, Found: f, Self: m.self, Directory: root, System: system, Tree: m.file("tree-b"), Source: m.source, Note: note,
		PartBlocks: 100, // so that there are several
	}
}

// fetch looks and fetches.
func (m *machine) fetch(ctx context.Context, address string) (Result, error) {
	f, t, err := m.look(ctx, address)
	if err != nil {
		return Result{}, err
	}
	return m.job(t, f, nil).Run(ctx)
}

// has compares slot and directory with a release.
func (m *machine) has(r *otatest.Release) {
	m.t.Helper()
	got := make([]byte, len(r.Image))
	if _, err := m.file("b").ReadAt(got, 0); err != nil || !bytes.Equal(got, r.Image) {
		m.t.Errorf("slot b differs from the release (%v)", err)
	}
	if err := verity.Verify(m.t.Context(), m.file("b"), m.file("tree-b"), r.Contract.VerityParams(), r.Contract.Root(), nil); err != nil {
		m.t.Error(err)
	}
	for name, want := range map[string][]byte{release.UKIFile: r.UKI, release.FileName: r.Text, archive.SignatureFile: r.Head.Signature} {
		if got, err := os.ReadFile(filepath.Join(m.dir, "directory", name)); err != nil || !bytes.Equal(got, want) {
			m.t.Errorf("%s: %d bytes, %v, want %d", name, len(got), err, len(want))
		}
	}
}

// names lists the directory.
func (m *machine) names() string {
	entries, err := os.ReadDir(filepath.Join(m.dir, "directory"))
	if err != nil {
		m.t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return strings.Join(out, " ")
}

// world is two releases and a site that offers the second.
type world struct {
	key      *otatest.Key
	old, new *otatest.Release
	site     *otatest.Site
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{key: otatest.NewKey(t)}
	w.old = otatest.Make(t, otatest.Spec{Version: 1, Key: w.key, Image: otatest.Image(imageBlocks, 1, 0, 0)})
	w.new = otatest.Make(t, otatest.Spec{Version: 2, Key: w.key, Image: otatest.Image(imageBlocks+100, 1, 12, 2)})
	w.site = otatest.NewSite(w.key)
	w.site.Publish(w.new, nil)
	return w
}

// served is a web server with or without ranges that counts what it sends.
type served struct {
	*httptest.Server
	mu       sync.Mutex
	sent     int64
	requests []*http.Request
	// onArchive, if not nil, is asked before the archive is sent.
	onArchive func(w http.ResponseWriter, r *http.Request) bool
	// onPatch, if not nil, is asked before a file of patches is sent.
	onPatch func(w http.ResponseWriter, r *http.Request) bool
}

func serve(t testing.TB, site *otatest.Site, ranges bool) *served {
	s := &served{}
	files := http.FileServerFS(site.Files)
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.requests = append(s.requests, r.Clone(context.Background()))
		hook := s.onArchive
		s.mu.Unlock()
		if !ranges {
			r.Header.Del("Range")
		}
		c := &counting{ResponseWriter: w, s: s}
		if strings.HasSuffix(r.URL.Path, ".tar.gz") && hook != nil && hook(c, r) {
			return
		}
		if strings.HasSuffix(r.URL.Path, ".patch") && s.onPatch != nil && s.onPatch(c, r) {
			return
		}
		files.ServeHTTP(c, r)
	}))
	t.Cleanup(s.Close)
	return s
}

type counting struct {
	http.ResponseWriter
	s *served
}

// Unwrap is for the response's controller.
func (c *counting) Unwrap() http.ResponseWriter { return c.ResponseWriter }

func (c *counting) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.s.mu.Lock()
	c.s.sent += int64(n)
	c.s.mu.Unlock()
	return n, err
}

func (s *served) bytes() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent
}

// asked counts the requests for files whose names end so.
func (s *served) asked(end string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.requests {
		if strings.HasSuffix(r.URL.Path, end) {
			n++
		}
	}
	return n
}

func (s *served) hook(h func(w http.ResponseWriter, r *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onArchive, s.sent, s.requests = h, 0, nil
}

func TestFetch(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	if err := os.CopyFS(dir, w.site.Files); err != nil {
		t.Fatal(err)
	}
	whole := int64(len(w.new.Archive))
	for name, c := range map[string]struct {
		address  string
		source   bool
		min, max int64
	}{
		"ranges":                {serve(t, w.site, true).URL, true, whole / 20, whole * 40 / 100},
		"ranges, no source":     {serve(t, w.site, true).URL, false, whole * 9 / 10, whole},
		"no ranges":             {serve(t, w.site, false).URL, true, whole, whole},
		"directory":             {dir, true, whole / 20, whole * 40 / 100},
		"the image's directory": {filepath.Join(dir, otatest.Directory), true, whole / 20, whole * 40 / 100},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t, w.old)
			if !c.source {
				m.source = nil
			}
			r, err := m.fetch(t.Context(), c.address)
			if err != nil {
				t.Fatal(err)
			}
			m.has(w.new)
			if r.Fetched < c.min || r.Fetched > c.max {
				t.Errorf("fetched %d bytes of %d, want %d to %d", r.Fetched, whole, c.min, c.max)
			}
			if want := "bootx64.efi release.json release.json.pgp system.index uki.efi"; m.names() != want {
				t.Errorf("the directory has %s, want %s", m.names(), want)
			}
			t.Logf("%+v of %d; %s", r, whole, m.notes.String())
			// Again: everything is there.
			r, err = m.fetch(t.Context(), c.address)
			if err != nil || r.Fetched != 0 || r.Copied != 0 {
				t.Errorf("a second time: %+v, %v", r, err)
			}
		})
	}
}

// An active slot whose tree or data lies is not a source, and does no harm.
func TestLyingSource(t *testing.T) {
	w := newWorld(t)
	s := serve(t, w.site, true)
	m := newMachine(t, w.old)
	for i := range 200 {
		if _, err := m.file("a").WriteAt([]byte("damage"), int64(i)*5*4096); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.file("tree-a").Truncate(40_000); err != nil {
		t.Fatal(err)
	}
	if _, err := m.fetch(t.Context(), s.URL); err != nil {
		t.Fatal(err)
	}
	m.has(w.new)
}

// The kernel is in the UKI and in the image: its blocks are fetched once, by a machine
// with a running system and by one without.
func TestKernelOnce(t *testing.T) {
	t.Parallel()
	const at, blocks = 100, 15
	w := newWorld(t)
	image := bytes.Clone(w.new.Image)
	first := len(w.new.UKI)/blockindex.BlockSize - 20
	kernel := w.new.UKI[first*blockindex.BlockSize:][:blocks*blockindex.BlockSize]
	copy(image[at*blockindex.BlockSize:], kernel)
	w.new = otatest.Make(t, otatest.Spec{Version: 2, Key: w.key, Image: image})
	if !bytes.Equal(w.new.UKI[first*blockindex.BlockSize:][:len(kernel)], kernel) {
		t.Fatal("the UKI has another kernel")
	}
	w.site.Publish(w.new, nil)
	s := serve(t, w.site, true)
	for _, source := range []bool{true, false} {
		m := newMachine(t, w.old)
		if !source {
			m.source = nil
		}
		said := m.measure(s.URL)
		r, err := m.fetch(t.Context(), s.URL)
		if err != nil || r.Fetched != said.Bytes || !source && r.Copied != int64(len(kernel)) || source && r.Copied <= int64(len(kernel)) {
			t.Errorf("%+v, said %+v, %v", r, said, err)
		}
		m.has(w.new)
		if left := m.measure(s.URL); left != (Measured{}) {
			t.Errorf("when all is there: %+v", left)
		}
	}
}
