package release

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/builder/files"
	"halogenos.internal/uroot-cmds/ota/server"
)

// A Server is an image's directory on a release server, as a machine sees it.
type Server interface {
	// Open opens a file by its path below the directory, with slashes. What is
	// not there is fs.ErrNotExist.
	Open(ctx context.Context, name string) (io.ReadCloser, error)
	// Get returns a small file, of at most limit bytes.
	Get(ctx context.Context, name string, limit int64) ([]byte, error)
	// Versions returns the releases that are there, as far as can be told.
	Versions(ctx context.Context) ([]contract.Version, error)
	// Place returns the last two names of the directory's path.
	Place() (arch, imageID string)
	String() string
}

// Directory is an image's directory on this machine.
type Directory string

// Open implements Server.
func (f Directory) Open(_ context.Context, name string) (io.ReadCloser, error) {
	return os.Open(filepath.Join(string(f), filepath.FromSlash(name)))
}

// Get implements Server.
func (f Directory) Get(_ context.Context, name string, limit int64) ([]byte, error) {
	text, err := files.Read(filepath.Join(string(f), filepath.FromSlash(name)), limit)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%s: %w", name, err)
	}
	return text, err
}

// Versions implements Server.
func (f Directory) Versions(context.Context) ([]contract.Version, error) {
	list, err := os.ReadDir(string(f))
	if err != nil {
		return nil, err
	}
	var all []contract.Version
	for _, e := range list {
		if v, err := contract.ParseVersion(e.Name()); err == nil && e.IsDir() {
			all = append(all, v)
		}
	}
	return all, nil
}

// String implements fmt.Stringer.
func (f Directory) String() string { return string(f) }

// Place implements Server.
func (f Directory) Place() (arch, imageID string) {
	whole, err := filepath.Abs(string(f))
	if err != nil {
		whole = string(f)
	}
	return filepath.Base(filepath.Dir(whole)), filepath.Base(whole)
}

// Directories returns the images' directories in a server's root, or the directory itself
// if it is an image's.
func Directories(root string) ([]Directory, error) {
	for _, pattern := range []string{"manifest.env", "*/*/manifest.env"} {
		found, err := filepath.Glob(filepath.Join(escape(root), pattern))
		if err != nil {
			return nil, err
		}
		var all []Directory
		for _, name := range found {
			all = append(all, Directory(filepath.Dir(name)))
		}
		if len(all) > 0 {
			return all, nil
		}
	}
	return nil, fmt.Errorf("%s has no manifest.env, nor has any <arch>/<image-id> in it: name the server's root, or publish there first", root)
}

// escape makes a path mean itself in a pattern.
func escape(path string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(path)
}

// Web is an image's directory on a web server. It is read as machines read it.
type Web struct {
	base   *url.URL
	reader server.Transport
}

// NewWeb takes the URL of an image's directory, <base>/<arch>/<image-id>. Proxies
// are taken from the environment, and so are certificates, where the options do not
// say otherwise.
func NewWeb(text string, o server.Options) (*Web, error) {
	base, err := url.Parse(text)
	if err != nil {
		return nil, err
	}
	if base.Scheme != "https" && base.Scheme != "http" || base.Host == "" || base.RawQuery != "" || base.Fragment != "" {
		return nil, fmt.Errorf("%q is not the http or https address of an image's directory, such as https://example.org/x86_64/my-os", text)
	}
	o.UserAgent = "halogen/1"
	reader, err := server.New(text, o)
	if err != nil {
		return nil, err
	}
	return &Web{base, reader}, nil
}

// missing makes the reader's word for what is not there everybody's.
func missing(err error) error {
	if errors.Is(err, server.ErrNotFound) {
		return fmt.Errorf("%w: %w", err, fs.ErrNotExist)
	}
	return err
}

// Open implements Server.
func (w *Web) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	body, _, err := w.reader.Open(ctx, name)
	return body, missing(err)
}

// Get implements Server.
func (w *Web) Get(ctx context.Context, name string, limit int64) ([]byte, error) {
	text, err := w.reader.Get(ctx, name, limit)
	return text, missing(err)
}

// Versions implements Server: a web server tells only of those that its
// manifest names.
func (w *Web) Versions(ctx context.Context) ([]contract.Version, error) {
	text, err := w.Get(ctx, manifest.FileName, manifest.MaxSize)
	if err != nil {
		return nil, err
	}
	m, err := manifest.Parse(text)
	if err != nil {
		return nil, err
	}
	var all []contract.Version
	for _, c := range manifest.Channels() {
		if v := m.Entry(c).Version; v != 0 && !slices.Contains(all, v) {
			all = append(all, v)
		}
	}
	return all, nil
}

// String implements fmt.Stringer.
func (w *Web) String() string { return w.base.Redacted() }

// Place implements Server.
func (w *Web) Place() (arch, imageID string) {
	whole := path.Clean("/" + w.base.Path)
	return path.Base(path.Dir(whole)), path.Base(whole)
}
