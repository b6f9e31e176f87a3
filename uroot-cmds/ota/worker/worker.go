// Package worker runs the part of the fetcher that talks to a server, as a
// process of its own without privileges.
//
// The worker refuses to run as root. It has the rights of a user that owns one
// directory, and the open files that it was given: the slot's two partitions, and
// to read the running system's. It gets one request and answers with events;
// the one who asked judges again what it brings.
//
// When it has read the request, and before it talks to anybody, it gives up what
// that one does not take: with Landlock all other files and ports, with seccomp
// all other system calls (among them execve, ptrace, mount, ioctl and sockets that
// are not of IP). It does without what the kernel does not have, and says so.
package worker

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/fat"
	"halogenos.internal/boot/verity"
	"halogenos.internal/uroot-cmds/ota/fetch"
	"halogenos.internal/uroot-cmds/ota/offer"
	"halogenos.internal/uroot-cmds/ota/server"
)

// What a worker can be asked to do.
const (
	Look    = "look"
	Measure = "measure" // like Fetch, with partitions that are open for reading alone
	Fetch   = "fetch"
	List    = "list" // says which extensions a release has, of which no more is there
	Tell    = "tell" // puts a report of an update on a server
)

// A Request is what a worker is started for.
type Request struct {
	Do        string      `json:"do"`
	Address   string      `json:"address,omitempty"` // of the server
	Archive   string      `json:"archive,omitempty"` // there is only this one, and no manifest
	UserAgent string      `json:"user_agent,omitempty"`
	RateLimit int64       `json:"rate_limit,omitempty"` // bytes a second; 0: none
	Proxy     string      `json:"proxy,omitempty"`
	CA        []byte      `json:"ca,omitempty"` // certificates
	Self      *offer.Self `json:"self"`
	// Found is what a worker that looked has found.
	Found *fetch.Found `json:"found,omitempty"`
	// Extension is the system extension that all of it is about; nil where it is a release.
	// System is its file then. Have is the same extension of another release, whose file is
	// ActiveSystem.
	Extension *fetch.Extension    `json:"extension,omitempty"`
	Have      *contract.Extension `json:"have,omitempty"`
	// UKI is the running UKI's name on the ESP.
	UKI string `json:"uki,omitempty"`
	// Name and Text are of the file that Tell puts on the server.
	Name string `json:"name,omitempty"`
	Text []byte `json:"text,omitempty"`
	// Has says which of the files the worker was given.
	Has [filesCount]bool `json:"has"`
}

// The files that a worker is given, in the order of their descriptors.
const (
	System       = iota // the slot's system partition, to write to
	Tree                // the slot's verity partition, to write to
	ActiveSystem        // the running system's partitions
	ActiveTree
	ESP
	Archive // an archive, instead of a server
	// Lock is held as long as either process has it: a worker that outlives
	// the one who started it keeps others from its slot.
	Lock
	// Directory is the worker's own, for small files. It may lie where the worker's
	// rights do not lead: at the recovery console it does.
	Directory
	filesCount
)

// Files are the open files; absent ones are nil.
type Files [filesCount]*os.File

// firstFile is the descriptor of the first of them.
const firstFile = 3

// An Event is one line of what a worker says.
type Event struct {
	Progress *fetch.Progress `json:"progress,omitempty"`
	Note     string          `json:"note,omitempty"`
	Found    *fetch.Found    `json:"found,omitempty"`
	Result   *fetch.Result   `json:"result,omitempty"`
	Measured *fetch.Measured `json:"measured,omitempty"`
	Listed   *fetch.Listed   `json:"listed,omitempty"`
	Told     bool            `json:"told,omitempty"`
	Error    string          `json:"error,omitempty"`
	// Full: the error is that a file system has no room.
	Full bool `json:"full,omitempty"`
}

const (
	maxLine = 16 << 20 // bytes of a request or an event
	// Memory is what the worker keeps its heap under, in bytes, as long as
	// nothing needs more. The program's own pages come on top.
	Memory = 24 << 20
	// settle is how long to wait for a manifest that does not fit its signature.
	settle = 3 * time.Second
	// reports is how often progress is told.
	reports = 100 * time.Millisecond
)

// Main is the worker's process. It returns the exit code.
func Main(stdin io.Reader, stdout io.Writer) int {
	events := &events{w: stdout}
	err := harden()
	if err == nil {
		err = serve(stdin, events)
	}
	if err != nil {
		events.send(Event{Error: err.Error(), Full: errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)})
		return 1
	}
	return 0
}

// harden makes sure that there is nothing to be gained here, before a byte is
// read.
func harden() error {
	if err := checkPrivileges(); err != nil {
		return err
	}
	// The next worker has the same user.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("close the worker's memory to others: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("switch core dumps off: %w", err)
	}
	unix.Umask(0o077)
	debug.SetMemoryLimit(Memory)
	return nil
}

func serve(stdin io.Reader, events *events) error {
	in := bufio.NewReader(io.LimitReader(stdin, maxLine))
	line, err := in.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("read the request: %w", err)
	}
	var r Request
	if err := json.Unmarshal(line, &r); err != nil {
		return fmt.Errorf("read the request: %w", err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, in) // ends when the one who asked has ended
		cancel(errors.New("interrupted"))
	}()
	var files Files
	for i := range files {
		if r.Has[i] {
			files[i] = os.NewFile(uintptr(firstFile+i), fmt.Sprint("file ", i))
		}
	}
	if f := files[Directory]; f != nil {
		if err := f.Chdir(); err != nil {
			return err
		}
	}
	n, err := needsOf(&r, os.Getenv)
	if err == nil {
		err = confineTo(n, func(text string) { events.send(Event{Note: text}) })
	}
	if err != nil {
		return err
	}
	err = Do(ctx, r, files, ".", events.send)
	runtime.KeepAlive(files) // the lock is only held
	return err
}

// Do does what a request asks for; directory is the one that small files go to.
func Do(ctx context.Context, r Request, files Files, directory string, send func(Event)) error {
	if r.Self == nil || r.Self.Running == nil {
		return errors.New("request says nothing of the machine")
	}
	note := func(text string) { send(Event{Note: text}) }
	t, err := r.transport(files, note)
	if err != nil {
		return err
	}
	switch r.Do {
	case Look:
		f, err := r.look(ctx, t)
		if err != nil {
			// What is wrong may be a key that was revoked: who asked must not forget it.
			if f != nil && len(f.Key) > 0 {
				send(Event{Found: &fetch.Found{Key: f.Key}})
			}
			return err
		}
		send(Event{Found: f})
		return nil
	case Tell:
		if err := server.Put(ctx, t, r.Name, r.Text); err != nil {
			return err
		}
		send(Event{Told: true})
		return nil
	case Fetch, Measure, List:
		return r.fetch(ctx, t, files, directory, note, send)
	}
	return fmt.Errorf("request %q is not known", r.Do)
}

func (r *Request) look(ctx context.Context, t server.Transport) (*fetch.Found, error) {
	if r.Extension != nil {
		return fetch.LookExtension(ctx, t, r.Self, r.Extension, r.Archive, settle)
	}
	return fetch.Look(ctx, t, r.Self, r.Archive, settle)
}

func (r *Request) transport(files Files, note func(string)) (server.Transport, error) {
	if files[Archive] != nil {
		return server.NewFile(files[Archive]), nil
	}
	return server.New(r.Address, server.Options{UserAgent: r.UserAgent, RateLimit: r.RateLimit, Proxy: r.Proxy, CA: r.CA, NotBefore: r.Self.Running.Date(), Note: note})
}

func (r *Request) fetch(ctx context.Context, t server.Transport, files Files, directory string, note func(string), send func(Event)) error {
	slotless := r.Do == List || r.Extension != nil && (r.Do == Measure || files[System] != nil)
	if r.Found == nil || !slotless && (files[System] == nil || files[Tree] == nil) {
		return errors.New("request names nothing to fetch, or no slot")
	}
	if r.Extension != nil && (r.Extension.Of == nil || r.Found.Missing) {
		return errors.New("request names an extension of no release, or one that is not there")
	}
	root, err := os.OpenRoot(directory)
	if err != nil {
		return err
	}
	defer root.Close()
	j := &fetch.Job{
		Server: t, Archive: r.Found.Archive, Found: r.Found, Self: r.Self, Directory: root,
		Source: r.source(files), Progress: seldom(func(p fetch.Progress) { send(Event{Progress: &p}) }), Note: note,
	}
	if files[System] != nil {
		j.System = files[System]
	}
	if files[Tree] != nil {
		j.Tree = files[Tree]
	}
	if r.Do == List {
		l, err := j.List(ctx)
		if err == nil {
			send(Event{Listed: l})
		}
		return err
	}
	if r.Extension != nil {
		j.Extension, j.Source = r.Extension, r.otherExtension(files)
	}
	if r.Do == Measure {
		m, err := j.Measure(ctx)
		if err == nil {
			send(Event{Measured: &m})
		}
		return err
	}
	result, err := j.Run(ctx)
	if err != nil {
		return err
	}
	send(Event{Result: &result})
	return nil
}

// source is what the running system has.
func (r *Request) source(files Files) *fetch.Source {
	c := r.Self.Running
	s := &fetch.Source{Blocks: uint64(c.ImageSize) / verity.BlockSize, Salt: c.Salt}
	if files[ActiveSystem] != nil && files[ActiveTree] != nil {
		s.System, s.Tree = files[ActiveSystem], files[ActiveTree]
	}
	if esp := files[ESP]; esp != nil && r.UKI != "" {
		s.UKI = func() (io.ReadCloser, int64, error) {
			fs, err := fat.Open(esp)
			if err != nil {
				return nil, 0, err
			}
			f, err := fs.Open(r.UKI)
			if err != nil {
				return nil, 0, err
			}
			info, err := f.Stat()
			if err != nil {
				return nil, 0, errors.Join(err, f.Close())
			}
			return f, info.Size(), nil
		}
	}
	return s
}

// otherExtension is what the machine has of the same extension of another release.
func (r *Request) otherExtension(files Files) *fetch.Source {
	f := files[ActiveSystem]
	if f == nil || r.Have == nil {
		return nil
	}
	tree := io.NewSectionReader(f, r.Have.ImageSize, 1<<62-r.Have.ImageSize)
	return &fetch.Source{System: f, Tree: tree, Blocks: r.Have.VerityParams().DataBlocks, Salt: r.Have.Salt}
}

// seldom passes progress on when a phase starts or ends, and now and then.
func seldom(tell func(fetch.Progress)) func(fetch.Progress) {
	var mu sync.Mutex
	var last time.Time
	return func(p fetch.Progress) {
		mu.Lock()
		defer mu.Unlock()
		if now := time.Now(); p.Done == 0 || p.Done == p.Total || now.Sub(last) >= reports {
			last = now
			tell(p)
		}
	}
}

// events writes events as lines.
type events struct {
	mu sync.Mutex
	w  io.Writer
}

func (e *events) send(event Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	text, err := json.Marshal(event)
	if err != nil {
		text = []byte(`{"error":"an event cannot be encoded"}`)
	}
	_, _ = e.w.Write(append(text, '\n')) // the listener is gone: stdin ends too
}
