package server

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// ranges answers a request for a part with at most limit bytes of it, and says that
// all of it comes.
func ranges(body []byte, limit int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		first, last := 0, len(body)-1
		if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &first, &last); err == nil {
			last = min(last, len(body)-1)
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, len(body)))
			w.Header().Set("Content-Length", fmt.Sprint(last-first+1))
			w.WriteHeader(http.StatusPartialContent)
		} else {
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		}
		_, _ = w.Write(body[first : first+min(last-first+1, limit)])
	}
}

// A server that gets on is gone on with, however often it stops. FAULTS 112 (R12): a cut
// every 64 KiB, half a range, mirrors that differ
func TestGetsOn(t *testing.T) {
	want := content(1 << 20)
	var asked atomic.Int64
	for name, h := range map[string]http.HandlerFunc{
		"a cut every 64 KiB": ranges(want, 64<<10),
		"half of each range": func(w http.ResponseWriter, r *http.Request) {
			var first, last int
			if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &first, &last); err != nil {
				first, last = 0, len(want)-1
			}
			ranges(want, max(1, (last-first+1)/2))(w, r)
		},
		"every other answer fails": func(w http.ResponseWriter, r *http.Request) {
			if asked.Add(1)%2 == 0 {
				w.WriteHeader(http.StatusInternalServerError)
				return
			}
			ranges(want, 50<<10)(w, r)
		},
		"mirrors": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", fmt.Sprintf(`"%d"`, asked.Add(1)))
			w.Header().Set("Last-Modified", time.Unix(asked.Load(), 0).UTC().Format(http.TimeFormat))
			if r.Header.Get("If-Range") != "" {
				w.WriteHeader(http.StatusOK)
				return
			}
			ranges(want, 90<<10)(w, r)
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := make([]byte, 900_000)
			if n, _, err := ranged(t.Context(), serve(t, h), "x", p, 1000); err != nil || !bytes.Equal(p[:n], want[1000:901_000]) {
				t.Errorf("range: %d bytes, %v", n, err)
			}
			body, info, err := serve(t, h).Open(t.Context(), "x")
			if err != nil {
				t.Fatal(err)
			}
			defer body.Close()
			if b, err := io.ReadAll(body); err != nil || !bytes.Equal(b, want) || info.Size != int64(len(want)) {
				t.Errorf("whole: %d bytes, %v", len(b), err)
			}
		})
	}
}

// One that does not get on is given up, also where each answer brings a little.
func TestDoesNotGetOn(t *testing.T) {
	want := content(1 << 20)
	for name, h := range map[string]http.HandlerFunc{"a byte each time": ranges(want, 1), "nothing": ranges(want, 0)} {
		var asked atomic.Int64
		tr := serve(t, func(w http.ResponseWriter, r *http.Request) { asked.Add(1); h(w, r) })
		if _, _, err := ranged(t.Context(), tr, "x", make([]byte, 500_000), 0); err == nil {
			t.Errorf("%s: all arrived", name)
		}
		body, _, err := tr.Open(t.Context(), "x")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(body); err == nil {
			t.Errorf("%s: all arrived", name)
		}
		_ = body.Close()
		if n := asked.Load(); n > 40 {
			t.Errorf("%s: asked %d times", name, n)
		}
	}
	// Without parts of files a cut is the end.
	tr := serve(t, func(w http.ResponseWriter, r *http.Request) { r.Header.Del("Range"); ranges(want, 1000)(w, r) })
	body, _, err := tr.Open(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if b, err := io.ReadAll(body); !errors.Is(err, io.ErrUnexpectedEOF) || len(b) != 1000 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

// FAULTS 112 (R13): Retry-After in seconds, of a day, as a date
func TestRetryAfter(t *testing.T) {
	for header, wait := range map[string]bool{
		"0": true, "1": true, "86400": false, "9999999999": false, "Sat, 01 Jan 2050 00:00:00 GMT": false, "Sat, 01 Jan 2000 00:00:00 GMT": true, "soon": true, "": true, "-5": true,
	} {
		var asked atomic.Int64
		tr := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			if asked.Add(1) == 1 {
				w.Header().Set("Retry-After", header)
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			_, _ = io.WriteString(w, "yes")
		})
		b, err := tr.Get(t.Context(), "x", 10)
		switch {
		case wait && (err != nil || string(b) != "yes"):
			t.Errorf("%q: %v", header, err)
		case !wait && (err == nil || asked.Load() != 1) && header != "9999999999":
			t.Errorf("%q: asked %d times, %v", header, asked.Load(), err)
		case !wait && header == "86400" && !strings.Contains(err.Error(), "come back in 24h"):
			t.Errorf("%q: %v", header, err)
		}
	}
	// A date counts from the server's own clock, whatever ours says.
	sent := time.Unix(1_000_000_000, 0).UTC()
	tr := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Date", sent.Format(http.TimeFormat))
		w.Header().Set("Retry-After", sent.Add(2*time.Hour).Format(http.TimeFormat))
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	_, err := tr.Get(t.Context(), "x", 10)
	wants(t, err, "come back in 2h")
}

// FAULTS 112 (R16): a network that wants a login answers everything with a page
func TestPortal(t *testing.T) {
	const page = "<!DOCTYPE html>\n<html><head><title>Welcome to our hotel</title></head><body>Log in</body></html>"
	var asked atomic.Int64
	tr := serve(t, func(w http.ResponseWriter, _ *http.Request) { asked.Add(1); _, _ = io.WriteString(w, page) })
	for _, limit := range []int64{10, 10_000} {
		_, err := tr.Get(t.Context(), "manifest.env", limit)
		wants(t, err, "wants a login")
	}
	body, _, err := tr.Open(t.Context(), "1/1.tar.gz") // where the login ended meanwhile
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	b, err := io.ReadAll(body)
	wants(t, err, "1/1.tar.gz: ")
	wants(t, err, "wants a login")
	if n := asked.Load(); n != 3 || len(b) != 0 {
		t.Errorf("asked %d times, %d bytes", n, len(b))
	}
}

// An object store does not say that there is nothing. FAULTS 112 (R13)
func TestForbiddenIsMissing(t *testing.T) {
	tr := serve(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) })
	if _, err := tr.Get(t.Context(), "x", 10); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "403") {
		t.Errorf("%v", err)
	}
}

// Proxy= and CA= of the settings.
func TestProxyAndCA(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "yes") })
	private := httptest.NewTLSServer(h)
	defer private.Close()
	o := quick
	_, err := open(t, private.URL, o).Get(t.Context(), "x", 10)
	wants(t, err, "certificate")
	wants(t, err, "CA=")
	o.CA = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: private.Certificate().Raw})
	if b, err := open(t, private.URL, o).Get(t.Context(), "x", 10); err != nil || string(b) != "yes" {
		t.Errorf("with the authority: %q, %v", b, err)
	}
	if _, err := New(private.URL, Options{CA: []byte("no certificate")}); err == nil {
		t.Error("a file without a certificate")
	}
	var through atomic.Int64
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		through.Add(1)
		if r.URL.Host != "releases.example.org" {
			t.Errorf("asked for %s", r.URL)
		}
		_, _ = io.WriteString(w, "by proxy")
	}))
	defer proxy.Close()
	o = quick
	o.Proxy = proxy.URL
	if b, err := open(t, "http://releases.example.org/x", o).Get(t.Context(), "y", 10); err != nil || string(b) != "by proxy" || through.Load() != 1 {
		t.Errorf("by proxy: %q, %v", b, err)
	}
	o.Proxy = "http://me:secret@127.0.0.1:1"
	for _, address := range []string{"http://releases.example.org", "https://releases.example.org"} {
		_, err = open(t, address, o).Get(t.Context(), "x", 10)
		wants(t, err, "proxy cannot be reached")
		if strings.Contains(err.Error(), "secret") {
			t.Errorf("the password is said: %v", err)
		}
	}
	if _, err := New(private.URL, Options{Proxy: "proxy:3128"}); err == nil {
		t.Error("a proxy's address without http")
	}
	// A proxy's answer is none of the server's: its 404 is not a missing file.
	for code, attempts := range map[int]int64{http.StatusNotFound: 1, http.StatusBadGateway: int64(quick.withDefaults().Attempts)} {
		var asked atomic.Int64
		refusing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { asked.Add(1); w.WriteHeader(code) }))
		defer refusing.Close()
		o.Proxy = refusing.URL
		_, err = open(t, "https://releases.example.org", o).Get(t.Context(), "x", 10)
		wants(t, err, "does not connect to the server")
		if errors.Is(err, ErrNotFound) || asked.Load() != attempts {
			t.Errorf("asked %d times, want %d: %v", asked.Load(), attempts, err)
		}
	}
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	o.Proxy = NoProxy
	plain := httptest.NewServer(h)
	defer plain.Close()
	if b, err := open(t, plain.URL, o).Get(t.Context(), "x", 10); err != nil || string(b) != "yes" {
		t.Errorf("without a proxy: %q, %v", b, err)
	}
}

// A server, or a cache before it, that compresses unasked is told from one with a
// damaged file. FAULTS 112 (R13)
func TestCompressedUnasked(t *testing.T) {
	for coding, want := range map[string]string{"gzip": `Content-Encoding: "gzip"`, "br": "gzip off", "identity": "", "": ""} {
		tr := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Accept-Encoding") != "identity" {
				t.Errorf("asked for %q", r.Header.Get("Accept-Encoding"))
			}
			if coding != "" {
				w.Header().Set("Content-Encoding", coding)
			}
			_, _ = w.Write([]byte("\x1f\x8b\x08"))
		})
		b, err := tr.Get(t.Context(), "manifest.env", 100)
		if want == "" && (err != nil || len(b) != 3) || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %q, %v", coding, b, err)
		}
		// An archive is one that is compressed, and some servers say so.
		body, _, err := tr.Open(t.Context(), "1/1.tar.gz")
		if err != nil {
			t.Fatal(err)
		}
		body.Close()
	}
}
