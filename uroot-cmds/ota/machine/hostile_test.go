package machine

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/release"
	"halogenos.internal/uroot-cmds/ota/otatest"
)

// A memory knows the most memory that the workers of this process have taken, in KiB.
type memory struct{ peak atomic.Int64 }

// look looks at those that are there now.
func (m *memory) look() {
	for _, pid := range workers() {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			continue // it has ended meanwhile
		}
		var now int64
		if _, rest, ok := strings.Cut(string(text), "\nVmHWM:"); ok {
			_, _ = fmt.Sscan(rest, &now)
		}
		for old := m.peak.Load(); now > old && !m.peak.CompareAndSwap(old, now); old = m.peak.Load() {
		}
	}
}

// watch looks all the time, until the context ends.
func (m *memory) watch(ctx context.Context) {
	for ctx.Err() == nil {
		m.look()
		time.Sleep(5 * time.Millisecond)
	}
}

// elsewhere is all that a fetch may not change, and the size of its directory.
func (w *world) elsewhere() (print string, directory int64) {
	w.t.Helper()
	var out strings.Builder
	ours := filepath.Join(w.dir, stateDirectory, fetchDirectory)
	err := filepath.WalkDir(w.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path, w.dir+"/")
		switch {
		case strings.HasPrefix(path, ours+"/"):
			directory += info.Size()
		case name == "parts/system-b" || name == "parts/verity-b":
			fmt.Fprintf(&out, "%s has %d bytes\n", name, info.Size())
		case name == "disk" || strings.HasPrefix(name, "esp/") || path == w.path(filepath.Join(stateDirectory, lockFile)):
			// A slot's names and its UKI go before it is filled: TestCutWhileEmptying.
		case name == aliveFile || name == progressFile:
			// How far it is, for `ota status`.
		case name == "parts/root" || name == "parts/esp":
			// Large and never written to: what would be written takes room.
			fmt.Fprintf(&out, "%s has %d bytes in %d blocks\n", name, info.Size(), info.Sys().(*syscall.Stat_t).Blocks)
		default:
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			sum := sha256.New()
			if _, err := io.Copy(sum, f); err != nil {
				return err
			}
			fmt.Fprintf(&out, "%s %x\n", name, sum.Sum(nil))
		}
		return nil
	})
	must(w.t, err)
	return out.String(), directory
}

// Whatever a server sends, the worker takes under 64 MiB of memory, little of the
// root partition, and nothing is written but the slot and the fetcher's directory.
// FAULTS 5, 7, 8, 9, 10, 24, 25, 27
func TestHostileServer(t *testing.T) {
	const (
		maxMemory    = 64 << 10 // KiB
		maxDirectory = 4 << 20  // bytes
		long         = 2 * time.Second
	)
	garbage := otatest.Stored(make([]byte, 50_000))
	endless := func(out http.ResponseWriter, start []byte, length string) {
		if length != "" {
			out.Header().Set("Content-Length", length)
		}
		for b := start; ; b = garbage {
			if _, err := out.Write(b); err != nil {
				return
			}
		}
	}
	for name, c := range map[string]struct {
		file string // that is answered otherwise
		ok   int    // so often it is answered as it should be
		// answer answers a request for the file; the archive is w.three's.
		answer func(w *world, out http.ResponseWriter, r *http.Request)
		want   string // "": it goes on for ever, and is interrupted
	}{
		"endless manifest":  {manifest.FileName, 0, func(_ *world, out http.ResponseWriter, _ *http.Request) { endless(out, garbage, "") }, "may have"},
		"endless signature": {manifest.SignatureName, 0, func(_ *world, out http.ResponseWriter, _ *http.Request) { endless(out, garbage, "") }, "may have"},
		"endless key":       {"release-key.pgp", 0, func(_ *world, out http.ResponseWriter, _ *http.Request) { endless(out, garbage, "") }, "may have"},
		"endless archive":   {"3.tar.gz", 0, func(_ *world, out http.ResponseWriter, _ *http.Request) { endless(out, garbage, "") }, "3.tar.gz"},
		"endless archive behind its head": {"3.tar.gz", 0, func(w *world, out http.ResponseWriter, _ *http.Request) {
			endless(out, w.three.Archive[:w.three.Head.Size], "")
		}, "SHA-256"},
		"endless archive behind its end": {"3.tar.gz", 0, func(w *world, out http.ResponseWriter, _ *http.Request) {
			endless(out, w.three.Archive, "1000000000000")
		}, "follows the end"},
		"endless range": {"3.tar.gz", 1, func(w *world, out http.ResponseWriter, r *http.Request) {
			var first, last int
			_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &first, &last)
			out.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, len(w.three.Archive)))
			out.WriteHeader(http.StatusPartialContent)
			endless(out, garbage, "")
		}, "more than the range that it names"},
		"bomb, in ranges": {"3.tar.gz", 1, func(w *world, out http.ResponseWriter, r *http.Request) {
			http.ServeContent(out, r, "3.tar.gz", otatest.Date, bytes.NewReader(w.withBomb()))
		}, "not what was signed"},
		"bomb, streamed": {"3.tar.gz", 0, func(w *world, out http.ResponseWriter, _ *http.Request) { _, _ = out.Write(w.withBomb()) }, "more than it says"},
		"one byte at a time": {"3.tar.gz", 1, func(w *world, out http.ResponseWriter, r *http.Request) {
			var first, last int
			_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &first, &last)
			out.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, len(w.three.Archive)))
			out.WriteHeader(http.StatusPartialContent)
			for i := first; i <= last; i++ {
				if _, err := out.Write(w.three.Archive[i : i+1]); err != nil || http.NewResponseController(out).Flush() != nil {
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
		}, ""},
		"ranges cut short": {"3.tar.gz", 1, func(w *world, out http.ResponseWriter, r *http.Request) {
			var first, last int
			_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &first, &last)
			out.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, len(w.three.Archive)))
			out.Header().Set("Content-Length", fmt.Sprint(last-first+1))
			out.WriteHeader(http.StatusPartialContent)
			_, _ = out.Write(w.three.Archive[first : first+(last-first)/100])
		}, ""},
		"other ranges": {"3.tar.gz", 1, func(w *world, out http.ResponseWriter, r *http.Request) {
			var first, last int
			_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &first, &last)
			r.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", first+1, last+1))
			http.ServeContent(out, r, "3.tar.gz", time.Time{}, bytes.NewReader(w.three.Archive))
		}, "cannot be used"},
		"ranges that say another place": {"3.tar.gz", 1, func(w *world, out http.ResponseWriter, r *http.Request) {
			var first, last int
			_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &first, &last)
			out.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, len(w.three.Archive)))
			out.WriteHeader(http.StatusPartialContent)
			_, _ = out.Write(w.three.Archive[:last-first+1])
		}, "not what was signed"},
		"two releases mixed, in ranges": {"3.tar.gz", 0, func(w *world, out http.ResponseWriter, r *http.Request) {
			http.ServeContent(out, r, "3.tar.gz", time.Time{}, bytes.NewReader(w.mixed()))
		}, "not what was signed"},
		"two releases mixed, streamed": {"3.tar.gz", 0, func(w *world, out http.ResponseWriter, _ *http.Request) { _, _ = out.Write(w.mixed()) }, "SHA-256"},
		"a link":                       {"3.tar.gz", 0, evilHead(func(h []byte) { h[156] = '2'; copy(h[157:], "/etc/passwd") }), "where it belongs"},
		"dot dot":                      {"3.tar.gz", 0, evilHead(func(h []byte) { copy(h, "../../etc/passwd\x00") }), "where it belongs"},
		"manifest redirected to a file": {manifest.FileName, 0, func(_ *world, out http.ResponseWriter, r *http.Request) {
			http.Redirect(out, r, "file:///etc/passwd", http.StatusFound)
		}, "leads from http to file"},
		"archive redirected to a file": {"3.tar.gz", 1, func(_ *world, out http.ResponseWriter, r *http.Request) {
			http.Redirect(out, r, "ftp://example.org/3.tar.gz", http.StatusFound)
		}, "leads from http to ftp"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			var asked atomic.Int32
			var used memory
			honest := w.server.Config.Handler
			w.server.Config.Handler = http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
				if strings.HasSuffix(r.URL.Path, "/"+c.file) && int(asked.Add(1)) > c.ok {
					used.look()
					c.answer(w, out, r)
					return
				}
				honest.ServeHTTP(out, r)
			})
			before, _ := w.elsewhere()
			watched, stop := context.WithCancel(t.Context())
			go used.watch(watched)
			ctx, cancel := context.WithTimeout(t.Context(), long)
			defer cancel()
			if c.want != "" {
				ctx = t.Context()
			}
			_, err := w.m.Fetch(ctx, Options{})
			stop()
			if peak := used.peak.Load(); peak == 0 || peak > maxMemory {
				t.Errorf("the worker has taken %d KiB, want at most %d", peak, maxMemory)
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || c.want == "" && ctx.Err() == nil {
				t.Errorf("error %v, want %q", err, c.want)
			}
			after, size := w.elsewhere()
			if after != before {
				t.Errorf("the machine changed from\n%s\nto\n%s", before, after)
			}
			if size > maxDirectory {
				t.Errorf("the fetcher's directory has %d bytes", size)
			}
			// Put right, the server is taken as if nothing had been.
			w.server.Config.Handler = honest
			if _, err := w.fetch(); err != nil {
				t.Error(err)
			}
			w.complete()
		})
	}
}

// withBomb is version 3's archive with a bomb at the image's start.
func (w *world) withBomb() []byte {
	place, _ := w.three.Head.Place(release.ImageFile)
	b := bytes.Clone(w.three.Archive)
	at := b[place.Offset:]
	copy(at, otatest.Bomb(w.t, binary.LittleEndian.Uint32(at[16:]), binary.LittleEndian.Uint32(at[20:])))
	return b
}

// mixed is version 3's archive with another release's files behind its head.
func (w *world) mixed() []byte {
	other := otatest.Make(w.t, otatest.Spec{Version: 3, Key: w.key, Image: otatest.Image(blocks, 7, 3, 0)})
	return append(bytes.Clone(w.three.Archive[:w.three.Head.Size]), other.Archive[other.Head.Size:]...)
}

// evilHead answers with version 3's archive, one tar header of which is changed.
func evilHead(change func(h []byte)) func(w *world, out http.ResponseWriter, r *http.Request) {
	return func(w *world, out http.ResponseWriter, r *http.Request) {
		head := w.three.Archive[:w.three.Head.Size]
		tar := otatest.Unhead(head)
		otatest.ChangeHeader(tar[:512], change)
		var evil []byte
		for rest := tar; len(rest) > 0; {
			n := min(len(rest), 60000)
			evil = append(evil, otatest.Stored(rest[:n])...)
			rest = rest[n:]
		}
		http.ServeContent(out, r, "3.tar.gz", time.Time{}, bytes.NewReader(append(evil, w.three.Archive[len(head):]...)))
	}
}
