package release

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/builder/config"
	"halogenos.internal/builder/image"
	"halogenos.internal/builder/rootfs/rootfstest"
)

var now = time.Unix(1_800_000_000, 0).UTC()

// world is a directory with keys and builds.
type world struct {
	t    testing.TB
	dir  string
	home string // of gpg
	// more is what the root file system has beside what it needs.
	more rootfstest.Files
	// extensions are those of the builds, by name; one whose name ends in '!' is essential.
	extensions map[string]rootfstest.Files
}

const password = "plinth oversee cobalt drizzle yearbook"

func newWorld(t testing.TB) *world {
	t.Helper()
	testkit.Need(t, "gpg")
	testkit.Need(t, "mkfs.erofs")
	home, err := os.MkdirTemp("", "g") // short: a socket lies in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = exec.Command("gpgconf", "--homedir", home, "--kill", "all").Run()
		os.RemoveAll(home)
	})
	// The least work to try a password: each of gpg's commands does it, for each subkey.
	if err := os.WriteFile(filepath.Join(home, "gpg-agent.conf"), []byte("s2k-count 65536\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, dir: t.TempDir(), home: home}
	w.write("password", password+"\n")
	return w
}

func (w *world) write(name, content string) string {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return path
}

func (w *world) gpg(args ...string) string {
	w.t.Helper()
	args = append([]string{"--homedir", w.home, "--batch", "--yes", "--quiet", "--no-auto-check-trustdb", "--trust-model", "always", "--pinentry-mode", "loopback",
		"--faked-system-time", now.Format("20060102T150405!")}, args...)
	for tries := 1; ; tries++ {
		var stdout, stderr bytes.Buffer
		cmd := exec.Command("gpg", args...)
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		err := cmd.Run()
		if err == nil {
			return stdout.String()
		}
		if tries == 3 || !bytes.Contains(stderr.Bytes(), []byte("Corrupted protection")) {
			w.t.Fatalf("gpg %q: %v\n%s", args, err, stderr.Bytes())
		}
		// The agent of gpg 2.2.40 fails so, once in thousands of keys, on one that it has
		// just made; gpg changes nothing then. What it keeps in memory goes with it.
		w.t.Logf("gpg %q is tried again: %s", args, stderr.Bytes())
		_ = exec.Command("gpgconf", "--homedir", w.home, "--kill", "gpg-agent").Run()
	}
}

// key makes a key with gpg and writes its parts to <name>.pub and <name>.sec.
func (w *world) key(name, algorithm, password string) string {
	w.t.Helper()
	id := name + "@example.org"
	w.gpg("--passphrase", password, "--quick-generate-key", id, algorithm, "sign", "never")
	w.export(name, password)
	for line := range strings.Lines(w.gpg("--with-colons", "--list-keys", id)) {
		if f := strings.Split(line, ":"); f[0] == "fpr" {
			return f[9]
		}
	}
	w.t.Fatal("gpg made no key")
	return ""
}

func (w *world) export(name, password string) {
	w.t.Helper()
	id := name + "@example.org"
	w.write(name+".pub", w.gpg("--export", id))
	w.write(name+".sec", w.gpg("--passphrase", password, "--armor", "--export-secret-keys", id))
}

// buildsAt is when somebody builds who has a key as it is now: after all that it
// says of itself.
func (w *world) buildsAt(key string) time.Time {
	at := now
	if key == "" {
		return at
	}
	for line := range strings.Lines(w.gpg("--list-packets", filepath.Join(w.dir, key+".pub"))) {
		if _, text, ok := strings.Cut(line, ", created "); ok {
			text, _, _ = strings.Cut(text, ",")
			if seconds, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64); err == nil && seconds > at.Unix() {
				at = time.Unix(seconds, 0)
			}
		}
	}
	return at
}

// build makes a build of a version with a pinned key.
func (w *world) build(version contract.Version, key, fingerprint string, more ...string) string {
	w.t.Helper()
	text := "[UKI]\nCmdline=quiet\n[Image]\nImageID=test-os\nSlotSize=16M\nReleaseKey=none\n[Initramfs]\nModules=one\n"
	if key != "" {
		text = strings.Replace(text, "ReleaseKey=none", "ReleaseKeyFile="+key+".pub\nReleaseKey="+fingerprint, 1)
	}
	for i := 0; i < len(more); i += 2 {
		text = strings.Replace(text, more[i], more[i+1], 1)
	}
	c, err := config.Parse(text, w.dir)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, name := range slices.Sorted(maps.Keys(w.extensions)) {
		text := strings.TrimSuffix(name, "!") + "=" + w.extensions[name].Write(w.t, false)
		if strings.HasSuffix(name, "!") {
			text += ",essential"
		}
		if err := c.AddExtension(text); err != nil {
			w.t.Fatal(err)
		}
	}
	out := filepath.Join(w.t.TempDir(), "build")
	tree := rootfstest.Minimal()
	maps.Copy(tree, w.more)
	_, err = image.Build(w.t.Context(), image.Options{
		Config: c, RootFS: tree.Write(w.t, false), Version: version, Out: out,
		Machine: rootfstest.Machine(w.t), Progress: image.NewProgress(io.Discard), Now: w.buildsAt(key), ExpiringKey: true,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

func (w *world) options(build, key string) Options {
	o := Options{Build: build, Server: filepath.Join(w.dir, "server"), Channel: manifest.Stable, Now: now, Note: w.t.Logf}
	if key != "" {
		o.Key = KeyFile{Path: filepath.Join(w.dir, key+".sec"), Password: filepath.Join(w.dir, "password"), UnencryptedStorage: true}
	}
	return o
}

func (w *world) publish(o Options) *Result {
	w.t.Helper()
	r, err := Publish(w.t.Context(), o)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// refused publishes and wants it refused, with the server as it was.
func (w *world) refused(name string, o Options, want string) {
	w.t.Helper()
	before := snapshot(w.t, o.Server)
	if _, err := Publish(w.t.Context(), o); err == nil || !strings.Contains(err.Error(), want) {
		w.t.Errorf("%s: %v, want %q", name, err, want)
	}
	if after := snapshot(w.t, o.Server); after != before {
		w.t.Errorf("%s: the server changed from\n%s\nto\n%s", name, before, after)
	}
}

// snapshot lists files, links and contents.
func snapshot(t testing.TB, dir string) string {
	t.Helper()
	var out strings.Builder
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if os.IsNotExist(err) {
			return nil
		}
		if err != nil || info.IsDir() {
			return err
		}
		link, _ := os.Readlink(path)
		content, err := os.ReadFile(path)
		if link != "" {
			content, err = nil, nil
		}
		fmt.Fprintf(&out, "%s %s %s %x\n", path, info.Mode(), link, sum(content))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func (w *world) verify(o Options) error {
	directories, err := Directories(o.Server)
	if err != nil {
		return err
	}
	for _, f := range directories {
		if err := Verify(w.t.Context(), f, VerifyOptions{Now: now, Note: w.t.Logf}); err != nil {
			return err
		}
	}
	return nil
}

func mustRead(t testing.TB, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}
