// Package server reads files from where releases are published: a web server
// or a directory.
//
// It believes nothing that a server says about itself and bounds all of it:
// headers, sizes, redirects, time. It refuses a part of a file that is not the
// one that was asked for, a web page in a file's place, and a redirect to a less
// protected place. It never decompresses, and it does
// not know what the files mean: that they are genuine is for others to say.
package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"
)

var (
	// ErrNotFound says that there is no such file, or none for us.
	ErrNotFound = errors.New("there is no such file")
	// ErrNoRanges says that the server only sends whole files.
	ErrNoRanges = errors.New("server sends no parts of files")
	// ErrChanged says that the file is shorter than it was.
	ErrChanged = errors.New("file has changed on the server")
	// ErrSlow says that next to nothing arrived for a long time.
	ErrSlow = errors.New("server is too slow")
)

// Info is what is known about a file.
type Info struct {
	Size int64 // bytes; -1 when the server does not say
}

// A Transport reads published files. Names are relative, with slashes. It may
// be used by several goroutines.
type Transport interface {
	// Get returns a small file, which has at most limit bytes.
	Get(ctx context.Context, name string, limit int64) ([]byte, error)
	// Open streams a file from its start. What ends it early is an error of
	// Read's.
	Open(ctx context.Context, name string) (io.ReadCloser, Info, error)
	// Range reads n bytes of a file from byte off on, writes them to w as they
	// arrive, and returns how many those were: fewer only where the file ends,
	// and then with io.EOF.
	Range(ctx context.Context, name string, w io.Writer, off, n int64) (int64, Info, error)
	// String is the address for people, without a password.
	String() string
}

// Options of reading from a web server. Zero values stand for what is said.
type Options struct {
	UserAgent string
	RateLimit int64         // bytes a second of all transfers together; 0: none
	Attempts  int           // at a request before it has failed; 0: 5
	Pause     time.Duration // before the second attempt, doubled for each one after; 0: 1 s
	// A transfer of less than MinSpeed bytes a second over a Window is given up.
	MinSpeed int64         // 0: 200
	Window   time.Duration // 0: 30 s
	// NotBefore is a time that has passed whatever the clock says: certificates are
	// judged by the later of the two.
	NotBefore time.Time
	// Proxy is the URL of what requests go through; empty: what the environment
	// says; NoProxy: none.
	Proxy string
	// CA are certificates of authorities in PEM form, beside the system's.
	CA []byte
	// Note is told why a request is made again; nil: nobody is.
	Note func(text string)
}

// NoProxy is the Proxy that stands for none.
const NoProxy = "none"

func (o Options) withDefaults() Options {
	if o.UserAgent == "" {
		o.UserAgent = "halogen-ota/1"
	}
	if o.Attempts <= 0 {
		o.Attempts = 5
	}
	if o.Pause <= 0 {
		o.Pause = time.Second
	}
	if o.MinSpeed <= 0 {
		o.MinSpeed = 200
	}
	if o.Window <= 0 {
		o.Window = 30 * time.Second
	}
	if o.Note == nil {
		o.Note = func(string) {}
	}
	return o
}

// New returns what reads from a server's address: an http or https URL, or the
// absolute path of a directory.
func New(address string, o Options) (Transport, error) {
	if address == "" {
		return nil, errors.New("no server is set: write Server=https://... into /etc/halogen/ota.conf, or name one with --from")
	}
	if filepath.IsAbs(address) {
		return OpenDirectory(address)
	}
	return newWeb(address, o)
}

// optionalAttempts is how often a file is asked for that can be done without.
const optionalAttempts = 2

// Optional returns what reads, from the same place, files that can be done without: they are
// soon given up, and what they take is not held against the other files (progress).
func Optional(t Transport) Transport {
	w, ok := t.(*web)
	if !ok {
		return t
	}
	o := *w
	o.Attempts, o.progress = min(w.Attempts, optionalAttempts), newProgress(w.String(), w.RateLimit)
	return &o
}

// valid refuses names that would lead elsewhere.
func valid(name string) error {
	if !filepath.IsLocal(name) || name == "." {
		return fmt.Errorf("%q is not a name on a server", name)
	}
	return nil
}
