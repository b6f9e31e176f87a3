package machine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"halogenos.internal/boot/blockindex"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/uroot-cmds/ota/worker"
)

// workers returns the process IDs of the workers that this process has started.
func workers() []int {
	list, _ := filepath.Glob("/proc/[0-9]*/stat")
	var out []int
	for _, name := range list {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended meanwhile
		}
		fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if err != nil || len(fields) < 2 || fields[1] != strconv.Itoa(os.Getpid()) {
			continue
		}
		command, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if bytes.Contains(command, []byte("\x00"+worker.Argument)) {
			out = append(out, pid)
		}
	}
	return out
}

// inPlace reports which blocks of the image slot B has.
func (w *world) inPlace() []bool {
	w.t.Helper()
	f, err := os.Open(w.part(layout.SystemB))
	must(w.t, err)
	defer f.Close()
	out := make([]bool, blocks)
	b := make([]byte, blockindex.BlockSize)
	for i := range out {
		_, err := f.ReadAt(b, int64(i)*blockindex.BlockSize)
		must(w.t, err)
		out[i] = bytes.Equal(b, w.three.Image[i*blockindex.BlockSize:][:blockindex.BlockSize])
	}
	return out
}

// A fetch that is killed at 20 points goes on each time, ends with the same
// bytes, and asks for no block again that the slot has.
func TestKilled(t *testing.T) {
	w := newWorld(t)
	// Nothing can be copied, so that there is much to fetch.
	f, err := os.OpenFile(w.part(layout.SystemA), os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt(make([]byte, len(w.two.Image)), 0)
	must(t, err)
	must(t, f.Close())

	place, _ := w.three.Head.Place(release.IndexFile)
	content, err := w.three.Head.Content(bytes.NewReader(w.three.Archive[place.Offset:]), release.IndexFile)
	must(t, err)
	raw := make([]byte, place.Size)
	_, err = content.Read(raw)
	must(t, err)
	index, err := w.three.Head.Index(io.NewSectionReader(bytes.NewReader(raw), 0, int64(len(raw))), 0)
	must(t, err)
	image, _ := index.File(release.ImageFile)
	var part blockindex.Part
	must(t, part.Load(image, 0))

	var left, sent atomic.Int64 // bytes until the kill; bytes sent
	var have []bool
	again := 0
	w.onArchive = func(out http.ResponseWriter, r *http.Request) http.ResponseWriter {
		var first, last int64
		if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &first, &last); err != nil {
			t.Error(err)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		for i := range image.Members() {
			at, size := part.Member(i)
			if at >= first && at+int64(size)-1 <= last && have != nil && !slices.Contains(have[image.First(i):image.First(i+1)], false) {
				again++
			}
		}
		return &killing{ResponseWriter: out, left: &left, sent: &sent}
	}
	random := rand.New(rand.NewPCG(1, 2))
	for kill := range 20 {
		w.mu.Lock()
		have = w.inPlace()
		w.mu.Unlock()
		left.Store(20_000 + random.Int64N(150_000))
		_, err := w.fetch()
		if err == nil || !strings.Contains(err.Error(), "killed") {
			t.Fatalf("kill %d: %v", kill, err)
		}
		if _, err := os.Stat(w.path(filepath.Join(stateDirectory, stagedFile))); err == nil {
			t.Fatal("half a slot is staged")
		}
	}
	left.Store(1 << 40)
	have = w.inPlace()
	if _, err := w.fetch(); err != nil {
		t.Fatal(err)
	}
	w.complete()
	if again > 0 {
		t.Errorf("%d members with blocks that the slot had were asked for again", again)
	}
	if limit := int64(len(w.three.Archive)) + 20*100_000; sent.Load() > limit {
		t.Errorf("%d bytes were sent, want at most %d", sent.Load(), limit)
	}
	t.Logf("sent %d bytes of an archive of %d", sent.Load(), len(w.three.Archive))
}

// The worker has no rights but its directory and its files, and little memory.
func TestWorkerRights(t *testing.T) {
	testkit.Root(t, "start something with other rights")
	w := newWorld(t)
	var status, fds string
	w.onArchive = func(out http.ResponseWriter, _ *http.Request) http.ResponseWriter {
		for _, pid := range workers() {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			if err != nil {
				t.Error(err)
			}
			list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
			if err != nil {
				t.Error(err)
			}
			var open []string
			for _, e := range list {
				target, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, e.Name()))
				if name, ok := strings.CutPrefix(target, w.dir); ok && !strings.HasPrefix(name, "/var/lib/halogen/fetch/3.work") {
					open = append(open, name)
				}
			}
			w.mu.Lock()
			status, fds = string(text), strings.Join(open, " ")
			w.mu.Unlock()
		}
		return out
	}
	_, err := w.fetch()
	must(t, err)
	w.complete()
	for _, want := range []string{"\nUid:\t65521\t65521\t65521\t65521\n", "\nGid:\t65521\t65521\t65521\t65521\n", "\nNoNewPrivs:\t1\n", "\nSeccomp:\t2\n", "\nCapPrm:\t0000000000000000\n", "\nCapEff:\t0000000000000000\n", "\nCapInh:\t0000000000000000\n"} {
		if !strings.Contains(status, want) {
			t.Errorf("the worker's status lacks %q:\n%s", want, status)
		}
	}
	if _, groups, _ := strings.Cut(status, "\nGroups:\t"); strings.TrimSpace(strings.SplitN(groups, "\n", 2)[0]) != "" {
		t.Errorf("the worker has groups: %.40q", groups)
	}
	if want := "/parts/system-b /parts/verity-b /parts/system-a /parts/verity-a /parts/esp /var/lib/halogen/ota.lock"; fds != want {
		t.Errorf("the worker has open %s, want %s", fds, want)
	}
	var peak int64
	if _, text, ok := strings.Cut(status, "\nVmHWM:"); ok {
		_, _ = fmt.Sscan(text, &peak)
	}
	if peak == 0 || peak > 64<<10 {
		t.Errorf("the worker has taken %d KiB", peak)
	}
}

// A worker that outlives the process that started it keeps the lock until it
// ends, which it does at once. FAULTS 83
func TestWorkerKeepsLock(t *testing.T) {
	w := newWorld(t)
	r, err := w.m.Running()
	must(t, err)
	lock, err := w.m.lock(r)
	must(t, err)
	script := filepath.Join(w.dir, "worker")
	must(t, os.WriteFile(script, []byte("#!/bin/sh\necho '{\"note\":\"up\"}'\ncat >/dev/null\n"), 0o755))
	up, ended := make(chan bool, 1), make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		s := worker.Starter{Program: script, User: w.m.Worker.User}
		ended <- s.Run(ctx, worker.Request{}, worker.Files{worker.Lock: lock}, func(worker.Event) { up <- true })
	}()
	<-up
	must(t, lock.Close())
	if _, err := w.fetch(); !errors.Is(err, ErrBusy) {
		t.Errorf("beside a worker: %v", err)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the worker: %v", err)
	}
	if _, err := w.fetch(); err != nil {
		t.Errorf("after the worker: %v", err)
	}
}

// killing kills the worker after so many bytes.
type killing struct {
	http.ResponseWriter
	left, sent *atomic.Int64
}

func (k *killing) Write(p []byte) (int, error) {
	for n := 0; n < len(p); {
		part := p[n:min(n+4096, len(p))]
		if k.left.Add(-int64(len(part))) < 0 {
			for _, pid := range workers() {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
			return n, io.ErrClosedPipe
		}
		if _, err := k.ResponseWriter.Write(part); err != nil {
			return n, err
		}
		if err := http.NewResponseController(k.ResponseWriter).Flush(); err != nil {
			return n, err
		}
		k.sent.Add(int64(len(part)))
		n += len(part)
	}
	return len(p), nil
}

// What a worker says is not believed.
func TestLyingWorker(t *testing.T) {
	for name, c := range map[string]struct{ program, want string }{
		"nonsense":    {"echo hello", "is malformed"},
		"silence":     {"true", "does not say why"},
		"failure":     {"echo 'no idea' >&2; exit 3", "no idea"},
		"a bad find":  {`echo '{"found":{"manifest":"U1RBQkxFPTk="}}'`, "no PUBKEY"},
		"no head":     {`echo '{"found":{"manifest":"U1RBQkxFPTkKUFVCS0VZPWsK"}}'`, "brings no release"},
		"endless":     {"yes | tr -d '\\n'", "listen to the worker"},
		"no manifest": {`echo '{"found":{"archive":"x","head":"AAAA"}}'`, "brought no manifest"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			script := filepath.Join(w.dir, "worker")
			must(t, os.WriteFile(script, []byte("#!/bin/sh\n"+c.program+"\n"), 0o755))
			w.m.Worker.Program = script
			w.log = nil
			out, err := w.fetch()
			if err == nil || !strings.Contains(err.Error(), c.want) || len(w.log) > 0 {
				t.Errorf("%+v, %v, want %q; %v", out, err, c.want, w.log)
			}
		})
	}
}
