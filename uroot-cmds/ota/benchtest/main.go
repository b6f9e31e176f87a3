// Command benchtest measures what an update costs a machine: bytes, time and
// memory of a whole fetch, and of one that copies what has not changed.
//
//	benchtest -old BUILD -new BUILD -server ROOT -json FILE
//
// BUILD is a directory that `halogen build` filled, ROOT a server's directory that
// names the new one. Slots are files, the web server is this program; each fetch
// is a process of its own, so that its memory is its alone. It is not part of any
// image.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"halogenos.internal/boot/release"
	"halogenos.internal/boot/verity"
)

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "benchtest:", err)
		os.Exit(1)
	}
}

// A Measurement is what one fetch cost.
type Measurement struct {
	Update  string  `json:"update"`
	Sent    int64   `json:"sent"`   // bytes of the server's answers
	Copied  int64   `json:"copied"` // bytes from the running system
	Share   float64 `json:"share"`  // of the archive's bytes that was sent
	Archive int64   `json:"archive"`
	Seconds float64 `json:"seconds"`
	// Memory is the most that was resident, in bytes; without the file cache.
	Memory int64 `json:"memory"`
}

// The updates that are measured: nothing is there; nothing is there, and the
// server sends only whole files; the running system is there to copy from.
const full, streamed, incremental = "full", "streamed", "incremental"

type bench struct {
	old, new, server, work string
	archive                int64
	url                    string
	sent                   *atomic.Int64
}

func run(ctx context.Context, args []string) error {
	var b bench
	var report string
	var one job
	f := flag.NewFlagSet("benchtest", flag.ContinueOnError)
	f.StringVar(&b.old, "old", "", "`BUILD` of the running system")
	f.StringVar(&b.new, "new", "", "`BUILD` to fetch")
	f.StringVar(&b.server, "server", "", "`ROOT` that names it")
	f.StringVar(&report, "json", "", "`FILE` for the results")
	f.StringVar(&one.work, "fetch", "", "`DIRECTORY` with the slots of one fetch, which this process makes")
	f.StringVar(&one.url, "url", "", "`URL` that it fetches from")
	f.BoolVar(&one.copies, "copies", false, "it copies what the running system has")
	if err := f.Parse(args); err != nil {
		return err
	}
	if one.work != "" {
		one.old = b.old
		return one.fetch(ctx)
	}
	work, err := os.MkdirTemp(filepath.Dir(report), "work-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	b.work = work
	results, err := b.measure(ctx)
	if err != nil {
		return err
	}
	text, err := json.MarshalIndent(results, "", "  ")
	if err != nil {
		return err
	}
	fmt.Printf("%-12s %10s %8s %10s %8s %8s\n", "update", "sent MB", "share", "copied MB", "seconds", "RSS MB")
	for _, m := range results {
		fmt.Printf("%-12s %10.1f %7.1f%% %10.1f %8.1f %8.1f\n", m.Update, mega(m.Sent), 100*m.Share, mega(m.Copied), m.Seconds, mega(m.Memory))
	}
	return os.WriteFile(report, append(text, '\n'), 0o644)
}

func mega(n int64) float64 { return float64(n) / 1e6 }

// measure makes the running system's slot and fetches into another one, once for each kind.
func (b *bench) measure(ctx context.Context) ([]Measurement, error) {
	r, err := describe(b.new)
	if err != nil {
		return nil, err
	}
	if err := b.makeTree(ctx); err != nil {
		return nil, err
	}
	info, err := os.Stat(filepath.Join(b.server, r.Arch, r.ImageID, r.Version.String(), r.Version.String()+".tar.gz"))
	if err != nil {
		return nil, err
	}
	b.archive, b.sent = info.Size(), new(atomic.Int64)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	b.url = "http://" + l.Addr().String()
	var whole atomic.Bool
	server := &http.Server{Handler: counted(b.sent, &whole, http.FileServer(http.Dir(b.server))), ReadHeaderTimeout: time.Minute}
	stopped := make(chan error, 1)
	go func() { stopped <- server.Serve(l) }()
	defer func() {
		_ = server.Close() // nobody is left to answer
		<-stopped
	}()
	var all []Measurement
	for _, update := range []string{full, streamed, incremental} {
		whole.Store(update == streamed)
		m, err := b.child(ctx, update)
		if err != nil {
			return nil, fmt.Errorf("%s update: %w", update, err)
		}
		all = append(all, *m)
	}
	return all, nil
}

// child runs one fetch in a process of its own.
func (b *bench) child(ctx context.Context, update string) (*Measurement, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	directory := filepath.Join(b.work, update)
	if err := os.Mkdir(directory, 0o755); err != nil {
		return nil, err
	}
	args := []string{"-fetch", directory, "-url", b.url, "-old", b.old}
	if update == incremental {
		args = append(args, "-copies")
	}
	before, start := b.sent.Load(), time.Now()
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Stderr = os.Stderr
	said, err := cmd.Output()
	if err != nil {
		return nil, err
	}
	m := &Measurement{Update: update, Archive: b.archive, Seconds: time.Since(start).Seconds(), Sent: b.sent.Load() - before}
	m.Share = float64(m.Sent) / float64(b.archive)
	if usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		m.Memory = usage.Maxrss << 10 // KiB, getrusage(2)
	}
	return m, json.Unmarshal(said, m)
}

// makeTree generates the verity tree of the running system's slot.
func (b *bench) makeTree(ctx context.Context) error {
	r, err := describe(b.old)
	if err != nil {
		return err
	}
	image, err := os.Open(filepath.Join(b.old, release.ImageFile))
	if err != nil {
		return err
	}
	defer image.Close()
	tree, err := os.Create(filepath.Join(b.work, treeFile))
	if err != nil {
		return err
	}
	_, err = verity.Generate(ctx, image, verity.Params{DataBlocks: uint64(r.ImageSize) / verity.BlockSize, Salt: r.Salt}, tree, nil)
	if closed := tree.Close(); err == nil {
		err = closed
	}
	return err
}

// describe reads the description of a build.
func describe(build string) (*release.Release, error) {
	text, err := os.ReadFile(filepath.Join(build, release.FileName))
	if err != nil {
		return nil, err
	}
	return release.Parse(text)
}

// counted counts the bytes of a server's answers. It can be one that sends only
// whole files.
func counted(n *atomic.Int64, whole *atomic.Bool, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if whole.Load() {
			r.Header.Del("Range")
		}
		h.ServeHTTP(&counter{w, n}, r)
	})
}

type counter struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.n.Add(int64(n))
	return n, err
}
