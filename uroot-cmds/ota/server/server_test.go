package server

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// quick are limits that a test can wait for.
var quick = Options{Attempts: 3, Pause: time.Millisecond, MinSpeed: 1000, Window: 200 * time.Millisecond}

func content(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

// serve starts a server and a transport to it.
func serve(t *testing.T, h http.HandlerFunc) Transport {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return open(t, s.URL, quick)
}

func open(t *testing.T, address string, o Options) Transport {
	t.Helper()
	w, err := New(address, o)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func wants(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v, want %q", err, want)
	}
}

// ranged reads a range into p.
func ranged(ctx context.Context, tr Transport, name string, p []byte, off int64) (int, Info, error) {
	var b bytes.Buffer
	n, info, err := tr.Range(ctx, name, &b, off, int64(len(p)))
	if copy(p, b.Bytes()) != int(n) {
		err = fmt.Errorf("%d bytes arrived, it says %d: %w", b.Len(), n, err)
	}
	return int(n), info, err
}

// A web server, a directory and one file behave the same.
func TestTransports(t *testing.T) {
	dir, want := t.TempDir(), content(100_000)
	if err := os.MkdirAll(filepath.Join(dir, "os", "1"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "os", "1", "1.tar.gz"), want, 0o644); err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(http.FileServer(http.Dir(dir)))
	defer web.Close()
	file, err := os.Open(filepath.Join(dir, "os", "1", "1.tar.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	const name = "os/1/1.tar.gz"
	for kind, tr := range map[string]Transport{"web": open(t, web.URL+"/", quick), "directory": open(t, dir, quick), "file": NewFile(file)} {
		t.Run(kind, func(t *testing.T) {
			ctx := t.Context()
			if kind != "file" {
				if b, err := tr.Get(ctx, name, 100_000); err != nil || !bytes.Equal(b, want) {
					t.Errorf("Get: %d bytes, %v", len(b), err)
				}
				_, err := tr.Get(ctx, name, 99_999)
				wants(t, err, "more than")
				for _, bad := range []string{"../x", "/x", "", "."} {
					_, err := tr.Get(ctx, bad, 10)
					wants(t, err, "not a name on a server")
				}
			}
			if _, err := tr.Get(ctx, "os/none", 10); !errors.Is(err, ErrNotFound) {
				t.Errorf("Get of nothing: %v", err)
			}
			body, info, err := tr.Open(ctx, name)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(body)
			if err = errors.Join(err, body.Close()); err != nil || !bytes.Equal(b, want) || info.Size != 100_000 {
				t.Errorf("Open: %d bytes, %+v, %v", len(b), info, err)
			}
			p := make([]byte, 1000)
			n, first, err := ranged(ctx, tr, name, p, 5000)
			if err != nil || n != 1000 || !bytes.Equal(p, want[5000:6000]) || first.Size != 100_000 {
				t.Errorf("Range: %d, %+v, %v", n, first, err)
			}
			n, _, err = ranged(ctx, tr, name, p, 99_500)
			if err != io.EOF || n != 500 || !bytes.Equal(p[:n], want[99_500:]) {
				t.Errorf("Range at the end: %d, %v", n, err)
			}
		})
	}
}

// FAULTS 25
func TestDirectoryRefusesTricks(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	secret := filepath.Join(outside, "secret")
	if err := os.WriteFile(secret, []byte("s"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"link": secret, "up": "../" + filepath.Base(outside) + "/secret", "directory": outside} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	tr := open(t, dir, quick)
	for _, name := range []string{"link", "up", "directory/secret"} {
		if b, err := tr.Get(t.Context(), name, 10); err == nil {
			t.Errorf("%s: %q", name, b)
		}
	}
	_, err := open(t, outside, quick).Get(t.Context(), "secret/x", 10)
	wants(t, err, "secret")
	if _, err := open(t, "/dev", quick).Get(t.Context(), "zero", 10); err == nil {
		t.Error("a device was read")
	}
}

// FAULTS 7: with and without a length, the file ends where it may be no longer.
func TestEndlessFile(t *testing.T) {
	for _, length := range []string{"", "1000000000"} {
		var sent atomic.Int64
		tr := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			if length != "" {
				w.Header().Set("Content-Length", length)
			}
			for b := content(4096); ; {
				n, err := w.Write(b)
				if sent.Add(int64(n)); err != nil {
					return
				}
			}
		})
		_, err := tr.Get(t.Context(), "manifest.env", 10_000)
		wants(t, err, "that the file may have")
		if n := sent.Load(); n > 32<<20 {
			t.Errorf("%d bytes were sent", n)
		}
	}
}

// Headers have bounds as well.
func TestEndlessHeaders(t *testing.T) {
	tr := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		for i := range 40 {
			w.Header().Set(fmt.Sprint("X-", i), strings.Repeat("x", 4096))
		}
	})
	_, err := tr.Get(t.Context(), "x", 10)
	wants(t, err, "exceeded")
}

// FAULTS 8
func TestSlowServer(t *testing.T) {
	tr := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1000")
		for range 1000 {
			if _, err := w.Write([]byte("x")); err != nil {
				return
			}
			if http.NewResponseController(w).Flush() != nil {
				return
			}
			select {
			case <-r.Context().Done():
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
	start := time.Now()
	if _, err := tr.Get(t.Context(), "x", 1000); !errors.Is(err, ErrSlow) {
		t.Errorf("Get: %v", err)
	}
	body, _, err := tr.Open(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if _, err := io.ReadAll(body); !errors.Is(err, ErrSlow) {
		t.Errorf("Open: %v", err)
	}
	if d := time.Since(start); d >= 20*time.Second { // what the body alone takes
		t.Errorf("given up after %s", d)
	}
}

// Silence before the headers is given up as well.
func TestSilentServer(t *testing.T) {
	tr := serve(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	_, err := tr.Get(t.Context(), "x", 1000)
	wants(t, err, "timeout")
}

// A reader that takes its time is not the server's fault.
func TestSlowReader(t *testing.T) {
	tr := serve(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(content(300_000)) })
	body, _, err := tr.Open(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	time.Sleep(500 * time.Millisecond)
	if b, err := io.ReadAll(body); err != nil || len(b) != 300_000 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

func TestRetry(t *testing.T) {
	var asked atomic.Int32
	tr := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		if asked.Add(1) < 3 {
			w.Header().Set("Retry-After", "0")
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, "yes")
	})
	if b, err := tr.Get(t.Context(), "x", 10); err != nil || string(b) != "yes" {
		t.Errorf("%q, %v", b, err)
	}
	asked.Store(-5)
	_, err := tr.Get(t.Context(), "x", 10)
	wants(t, err, "503")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := tr.Get(ctx, "x", 10); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// A range that is cut goes on where it was.
func TestTruncatedRange(t *testing.T) {
	want := content(100_000)
	var sent atomic.Int64
	tr := serve(t, func(w http.ResponseWriter, r *http.Request) {
		var first, last int
		if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &first, &last); err != nil {
			t.Error(err)
		}
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, len(want)))
		w.Header().Set("Content-Length", fmt.Sprint(last-first+1))
		w.WriteHeader(http.StatusPartialContent)
		part := want[first:min(last+1, first+20_000)]
		sent.Add(int64(len(part))) // before the other side has them
		_, _ = w.Write(part)
	})
	p := make([]byte, 50_000)
	n, _, err := ranged(t.Context(), tr, "x", p, 10_000)
	if err != nil || n != len(p) || !bytes.Equal(p, want[10_000:60_000]) {
		t.Errorf("%d bytes, %v", n, err)
	}
	if sent.Load() != 50_000 {
		t.Errorf("%d bytes were sent for 50000", sent.Load())
	}
}

// FAULTS 9
func TestWrongRanges(t *testing.T) {
	body := content(100_000)
	part := func(header string, n int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", header)
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(body[:n])
		}
	}
	for name, c := range map[string]struct {
		h    http.HandlerFunc
		want string
	}{
		"whole file":       {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(body) }, ErrNoRanges.Error()},
		"shifted back":     {part("bytes 0-999/100000", 1000), "cannot be used"},
		"shifted on":       {part("bytes 1001-2000/100000", 1000), "cannot be used"},
		"longer":           {part("bytes 1000-2000/100000", 1001), "cannot be used"},
		"longer than said": {part("bytes 1000-1999/100000", 5000), "cannot be used"},
		"beyond the end":   {part("bytes 1000-1999/1500", 1000), "cannot be used"},
		"unknown length":   {part("bytes 1000-1999/*", 1000), "cannot be used"},
		"no header":        {part("", 1000), "cannot be used"},
		"negative":         {part("bytes -1000-1999/100000", 1000), "cannot be used"},
		"other unit":       {part("lines 1000-1999/100000", 1000), "cannot be used"},
		"huge":             {part("bytes 1000-1999/99999999999999999999", 1000), "cannot be used"},
		"short each time":  {part("bytes 1000-1000/100000", 1), "cannot be used"}, // the second part is not where it belongs
		"nothing there":    {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusRequestedRangeNotSatisfiable) }, "ends before byte 1000"},
		"not found":        {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) }, "404"},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := ranged(t.Context(), serve(t, c.h), "x", make([]byte, 1000), 1000)
			wants(t, err, c.want)
		})
	}
}

// FAULTS 10
func TestRedirects(t *testing.T) {
	var elsewhere atomic.Pointer[http.Request]
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		elsewhere.Store(r.Clone(context.Background()))
		_, _ = io.WriteString(w, "other")
	}))
	defer other.Close()
	var target atomic.Value
	own := func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "me" || password != "secret" {
			t.Errorf("our own server got the password %q of %q", password, user)
		}
		http.Redirect(w, r, target.Load().(string), http.StatusFound)
	}
	plain := httptest.NewServer(http.HandlerFunc(own))
	defer plain.Close()
	tr := open(t, strings.Replace(plain.URL, "://", "://me:secret@", 1), quick)
	if strings.Contains(tr.String(), "secret") {
		t.Errorf("the password is shown: %s", tr)
	}
	target.Store(other.URL + "/there")
	b, err := tr.Get(t.Context(), "x", 10)
	if err != nil || string(b) != "other" {
		t.Errorf("to another host: %q, %v", b, err)
	}
	if r := elsewhere.Load(); r.Header.Get("Authorization") != "" || r.Header.Get("Referer") != "" || r.URL.User != nil {
		t.Errorf("another host was told %v", r.Header)
	}
	for to, want := range map[string]string{"file:///etc/passwd": "from http to file", "ftp://x/y": "from http to ftp", "/again": "more than 5"} {
		target.Store(to)
		_, err := tr.Get(t.Context(), "x", 10)
		wants(t, err, want)
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("the password is in %v", err)
		}
	}
}

func TestRedirectFromTLS(t *testing.T) {
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		t.Error("an unprotected server was asked")
		_, _ = io.WriteString(w, "x")
	}))
	defer plain.Close()
	safe := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, plain.URL, http.StatusFound)
	}))
	defer safe.Close()
	// A certificate that nobody vouches for is final, and says why.
	_, err := open(t, safe.URL, quick).Get(t.Context(), "x", 10)
	wants(t, err, "certificate")
	w, err := newWeb(safe.URL, quick)
	if err != nil {
		t.Fatal(err)
	}
	id := w.client.Transport.(identified)
	id.next = safe.Client().Transport
	w.client.Transport = id
	_, err = w.Get(t.Context(), "x", 10)
	wants(t, err, "from https to http")
}

func TestRateLimit(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.UserAgent() != "test/1" {
			t.Errorf("user agent %q", r.UserAgent())
		}
		_, _ = w.Write(content(40_000))
	}))
	defer s.Close()
	o := quick
	o.RateLimit, o.UserAgent = 80_000, "test/1"
	start := time.Now()
	if _, err := open(t, s.URL, o).Get(t.Context(), "x", 40_000); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(start); d < 400*time.Millisecond {
		t.Errorf("40 kB at 80 kB a second took %s", d)
	}
}

func TestNew(t *testing.T) {
	for address, want := range map[string]string{"": "no server is set", "ftp://x": "not an http or https address", "https://": "not an http or https address", "/does/not/exist": "no such file"} {
		_, err := New(address, Options{})
		wants(t, err, want)
	}
}

// A port that speaks http is said to be that.
func TestHTTPSToAnHTTPPort(t *testing.T) {
	s := httptest.NewServer(http.NotFoundHandler())
	defer s.Close()
	place, err := New("HTTPS"+strings.TrimPrefix(s.URL, "http")+"/x86_64/os", quick)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	_, err = place.Get(ctx, "manifest.env", 100)
	wants(t, err, "this port speaks http and not https")
}

func FuzzContentRange(f *testing.F) {
	f.Add("bytes 0-99/100", int64(0), int64(100))
	f.Add("bytes 5-9/*", int64(5), int64(5))
	f.Fuzz(func(t *testing.T, s string, off, want int64) {
		if off < 0 || want < 1 || off > 1<<40 || want > 1<<40 {
			return
		}
		n, total, err := contentRange(s, off, want)
		if err == nil && (n < 1 || n > want || off+n > total) {
			t.Fatalf("%q: %d of %d", s, n, total)
		}
	})
}

// Certificates are judged by a time that has passed for certain, where the clock is
// behind it. FAULTS 81
func TestClock(t *testing.T) {
	safe := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("here")) }))
	defer safe.Close()
	for _, c := range []struct {
		notBefore time.Time
		want      string
	}{
		{time.Time{}, ""},
		{time.Unix(0, 0), ""},
		{safe.Certificate().NotAfter.Add(time.Hour), "expired"},
	} {
		o := quick
		o.NotBefore = c.notBefore
		w, err := newWeb(safe.URL, o)
		if err != nil {
			t.Fatal(err)
		}
		pool := x509.NewCertPool()
		pool.AddCert(safe.Certificate())
		w.client.Transport.(identified).next.(*http.Transport).TLSClientConfig.RootCAs = pool
		got, err := w.Get(t.Context(), "x", 10)
		if c.want != "" {
			wants(t, err, c.want)
		} else if err != nil || string(got) != "here" {
			t.Errorf("at %s: %q, %v", c.notBefore, got, err)
		}
	}
}
