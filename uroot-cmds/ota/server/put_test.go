package server

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestPut(t *testing.T) {
	for name, tt := range map[string]struct {
		serve http.HandlerFunc
		want  string // of the error; empty: none
		asked int
	}{
		"created":     {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusCreated) }, "", 1},
		"replaced":    {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }, "", 1},
		"refused":     {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusMethodNotAllowed) }, "must allow PUT", 1},
		"not allowed": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }, "403", 1},
		"busy":        {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }, "503", 2},
		"moved, and kept": {func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/there" {
				return
			}
			http.Redirect(w, r, "/there", http.StatusTemporaryRedirect)
		}, "", 2},
		"moved to a page": {func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/there" {
				http.Redirect(w, r, "/there", http.StatusFound)
			}
		}, "307 or 308", 2},
		"moved to another host": {func(w http.ResponseWriter, r *http.Request) {
			_, port, _ := strings.Cut(r.Host, ":")
			http.Redirect(w, r, "http://localhost:"+port+"/there", http.StatusTemporaryRedirect)
		}, "another host", 1},
		"cut": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "unexpected end", 2},
	} {
		t.Run(name, func(t *testing.T) {
			asked, got := 0, ""
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked++
				if r.Method == http.MethodPut {
					b, _ := io.ReadAll(r.Body)
					got = r.URL.Path + " " + string(b)
				}
				tt.serve(w, r)
			}))
			defer s.Close()
			w, err := New(s.URL+"/in", Options{Attempts: 2, Pause: time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			err = Put(t.Context(), w, "a.json", []byte("{}"))
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) || asked != tt.asked {
				t.Errorf("%v after %d requests", err, asked)
			}
			if tt.want == "" && !strings.HasSuffix(got, " {}") {
				t.Errorf("the server has %q", got)
			}
		})
	}
	d, err := New(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := Put(t.Context(), d, "a.json", nil); err == nil || !strings.Contains(err.Error(), "not a web server") {
		t.Errorf("a directory: %v", err)
	}
}
