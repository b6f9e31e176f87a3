package qemutests

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"
)

// TestWebServer: the server that the update tests count the bytes of counts right.
func TestWebServer(t *testing.T) {
	t.Parallel()
	s := Serve(t)
	if err := os.WriteFile(filepath.Join(s.Root, "file"), []byte("0123456789"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ path, asked, want string }{
		{"/file", "", "0123456789"}, {"/file", "bytes=2-4", "234"},
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.Host+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if c.asked != "" {
			r.Header.Set("Range", c.asked)
		}
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		have, err := io.ReadAll(answer.Body)
		_ = answer.Body.Close() // read to its end
		if err != nil || string(have) != c.want {
			t.Errorf("%s %s: %q, %v", c.path, c.asked, have, err)
		}
	}
	want := []Request{{200, 10, "-", "/file"}, {206, 3, "bytes=2-4", "/file"}}
	var have []Request
	for range 100 {
		if have = s.Requests(); len(have) == len(want) {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if !reflect.DeepEqual(have, want) || Sent(have) != 13 {
		t.Errorf("requests %+v, %d bytes", have, Sent(have))
	}
}
