package container

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"halogenos.internal/boot/testkit"
)

// freeze serves this machine's package archives as they were when a file of
// them was first asked for, so that what differs is not the packages.
func freeze(t *testing.T) string {
	archive := func(name string) string {
		return strings.TrimSpace(testkit.Run(t, "../recipes/debian/mirror", name))
	}
	main := archive("debian")
	security := archive("debian-security")
	if security == "" {
		security = strings.TrimSuffix(main, "/debian") + "/debian-security"
	}
	f := &frozen{dir: t.TempDir(), from: map[string]string{"debian": main, "debian-security": security}, files: make(map[string]*frozenFile)}
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	return server.URL + "/snapshot/archive/debian/1"
}

// frozen is a mirror that fetches every file once.
type frozen struct {
	dir   string
	from  map[string]string // the archives
	mu    sync.Mutex
	files map[string]*frozenFile
}

type frozenFile struct {
	path string
	get  func() (status int, err error)
}

func (f *frozen) file(url string) *frozenFile {
	f.mu.Lock()
	defer f.mu.Unlock()
	file := f.files[url]
	if file == nil {
		file = &frozenFile{path: filepath.Join(f.dir, strconv.Itoa(len(f.files)))}
		file.get = sync.OnceValues(func() (int, error) { return download(url, file.path) })
		f.files[url] = file
	}
	return file
}

func (f *frozen) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	place, rest, ok := strings.Cut(strings.TrimPrefix(r.URL.Path, "/snapshot/archive/"), "/1/")
	from := f.from[place]
	if !ok || from == "" {
		http.NotFound(w, r)
		return
	}
	file := f.file(from + "/" + rest)
	switch status, err := file.get(); {
	case err != nil:
		http.Error(w, err.Error(), http.StatusBadGateway)
	case status != http.StatusOK:
		w.WriteHeader(status)
	default:
		http.ServeFile(w, r, file.path)
	}
}

func download(url, path string) (status int, err error) {
	answer, err := http.Get(url)
	if err != nil {
		return 0, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return answer.StatusCode, nil
	}
	file, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	_, err = io.Copy(file, answer.Body)
	return answer.StatusCode, errors.Join(err, file.Close())
}
