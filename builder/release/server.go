package release

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/manifest"
)

// A Server is an image's folder on a release server, as a machine sees it.
type Server interface {
	// Open opens a file by its path below the folder, with slashes. What is
	// not there is fs.ErrNotExist.
	Open(ctx context.Context, name string) (io.ReadCloser, error)
	// Versions returns the releases that are there, as far as can be told.
	Versions(ctx context.Context) ([]contract.Version, error)
	// Place returns the last two names of the folder's path.
	Place() (arch, imageID string)
	String() string
}

// Folder is an image's folder on this machine.
type Folder string

// Open implements Server.
func (f Folder) Open(_ context.Context, name string) (io.ReadCloser, error) {
	return os.Open(filepath.Join(string(f), filepath.FromSlash(name)))
}

// Versions implements Server.
func (f Folder) Versions(context.Context) ([]contract.Version, error) {
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

func (f Folder) String() string { return string(f) }

// Place implements Server.
func (f Folder) Place() (arch, imageID string) {
	whole, err := filepath.Abs(string(f))
	if err != nil {
		whole = string(f)
	}
	return filepath.Base(filepath.Dir(whole)), filepath.Base(whole)
}

// Folders returns the images' folders in a server's root, or the folder itself
// if it is an image's.
func Folders(root string) ([]Folder, error) {
	for _, pattern := range []string{"manifest.env", "*/*/manifest.env"} {
		found, err := filepath.Glob(filepath.Join(escape(root), pattern))
		if err != nil {
			return nil, err
		}
		var all []Folder
		for _, name := range found {
			all = append(all, Folder(filepath.Dir(name)))
		}
		if len(all) > 0 {
			return all, nil
		}
	}
	return nil, fmt.Errorf("%s has no manifest.env, nor has any <arch>/<image-id> in it", root)
}

// escape makes a path mean itself in a pattern.
func escape(path string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(path)
}

// Web is an image's folder on a web server.
type Web struct {
	base   *url.URL
	client *http.Client
}

// stalled is how long a web server may say nothing.
const stalled = 30 * time.Second

// NewWeb takes the URL of an image's folder, <base>/<arch>/<image-id>. Proxies
// are taken from the environment; redirects stay with https once it is https.
func NewWeb(text string) (*Web, error) {
	base, err := url.Parse(text)
	if err != nil {
		return nil, err
	}
	if base.Scheme != "https" && base.Scheme != "http" || base.Host == "" || base.RawQuery != "" || base.Fragment != "" {
		return nil, fmt.Errorf("%q is not the http or https address of a folder", text)
	}
	return &Web{base, &http.Client{
		Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, ResponseHeaderTimeout: stalled, TLSHandshakeTimeout: stalled, DisableCompression: true},
		CheckRedirect: func(next *http.Request, via []*http.Request) error {
			if len(via) > 5 {
				return errors.New("more than 5 redirects")
			}
			if next.URL.Scheme != "https" && via[0].URL.Scheme == "https" {
				return fmt.Errorf("redirect to %s, which is not https", next.URL.Redacted())
			}
			return nil
		},
	}}, nil
}

// Open implements Server.
func (w *Web) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	at := w.base.JoinPath(name).String()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return nil, err
	}
	response, err := w.client.Do(request)
	if err != nil {
		return nil, err
	}
	if response.StatusCode == http.StatusOK {
		return response.Body, nil
	}
	err = fmt.Errorf("get %s: %s", at, response.Status)
	if response.StatusCode == http.StatusNotFound || response.StatusCode == http.StatusGone {
		err = fmt.Errorf("%w: %w", err, fs.ErrNotExist)
	}
	return nil, errors.Join(err, response.Body.Close())
}

// Versions implements Server: a web server tells only of those that its
// manifest names.
func (w *Web) Versions(ctx context.Context) ([]contract.Version, error) {
	f, err := w.Open(ctx, manifest.FileName)
	if err != nil {
		return nil, err
	}
	text, err := readAll(f, manifest.MaxSize)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	m, err := manifest.Parse(text)
	if err != nil {
		return nil, err
	}
	var all []contract.Version
	for _, c := range manifest.Channels() {
		if v := m.Entry(c).Version; v != 0 {
			all = append(all, v)
		}
	}
	return all, nil
}

func (w *Web) String() string { return w.base.Redacted() }

// Place implements Server.
func (w *Web) Place() (arch, imageID string) {
	whole := path.Clean("/" + w.base.Path)
	return path.Base(path.Dir(whole)), path.Base(whole)
}
