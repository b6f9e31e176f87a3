package container

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/eddsa"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"
	"golang.org/x/sync/errgroup"

	"halogenos.internal/boot/testkit"
	"halogenos.internal/boot/uki"
)

// A whole release is made twice, by `make image` in a fresh copy of the sources
// with docker, and by `halogen build --container` elsewhere with buildah: in two
// containers of two images of their own, at two times, on two days of the
// calendar, with two umasks. Both are the same to the byte, and nothing that is
// left of either knows the key or the password.
func TestReleaseInContainers(t *testing.T) {
	base := os.Getenv("HALOGEN_BASE")
	if base == "" {
		testkit.Skip(t, "HALOGEN_BASE names no base image: `make container-test` has one")
	}
	for _, tool := range []string{"docker", "dockerd", "buildah", "mkfs.erofs", "fsck.erofs", "gpg"} {
		testkit.Need(t, tool)
	}
	testkit.Root(t, "run these containers")
	s := newScene(t)
	a, b := s.builder(t, "a"), s.builder(t, "b")
	a.useDocker(t)
	b.useBuildah(t)
	var both errgroup.Group
	both.Go(func() error {
		return a.run(t.Context(), s.sources, "sh", "-c", `umask 077 && exec "$@"`, "sh", "make", "image", "BASE="+a.base, "MIRROR="+s.mirror,
			"VERSION=7", "CONFIG="+s.config, "RELEASE_KEY="+s.key, "RELEASE_PASSWORD="+s.password, "ENGINE=docker", "NETWORK=host")
	})
	elsewhere := t.TempDir()
	both.Go(func() error {
		time.Sleep(5 * time.Second) // no step of both falls into the same second by chance
		return b.run(t.Context(), elsewhere, filepath.Join(s.sources, "bin/halogen"), "build", "--container", "--engine", "buildah",
			"--network", "host", "--set", "TZ="+otherDay(), "--base", b.base, "--mirror", s.mirror, "--version", "7", "--config", s.config, "--disk",
			"--out", b.out, "--release-key", s.key, "--release-key-password-file", s.password)
	})
	if err := both.Wait(); err != nil {
		t.Fatal(err)
	}
	a.out = filepath.Join(s.sources, "out/release/7")

	t.Run("the same", func(t *testing.T) { s.compare(t, a.out, b.out) })
	t.Run("signed", func(t *testing.T) {
		out := testkit.Run(t, filepath.Join(s.sources, "bin/halogen"), "release", "--verify", filepath.Join(a.out, "server"), "--pinned", s.public)
		if strings.Contains(out, "WARNING") {
			t.Errorf("the release is not what a machine takes:\n%s", out)
		}
	})
	a.open(t) // the same bytes as the other's
	for _, built := range []*builder{a, b} {
		built.export(t)
		t.Run("no secret of "+built.planting[0]+"'s", func(t *testing.T) { s.search(t, built, false) })
		t.Run("planted secrets in "+built.planting[0]+"'s", func(t *testing.T) {
			s.plant(t, built)
			s.search(t, built, true)
		})
	}
}

// otherDay is a time zone where it is another day than in UTC.
func otherDay() string {
	if time.Now().UTC().Hour() >= 12 {
		return "UTC-14"
	}
	return "UTC+14"
}

// scene is what both builds share.
type scene struct {
	sources                       string // a fresh copy
	mirror                        string // URL of packages that do not change
	config, key, password, public string // paths
	secrets                       *hunt
	word                          string // the password
}

// builder is one build with all that it leaves.
type builder struct {
	dir  string // everything
	base string
	out  string
	env  []string

	// What differs from engine to engine: how to make an image with secrets, how
	// to add an image as it is handed on, and what runs but while it is searched.
	planting []string
	export   func(*testing.T)
	wake     func(*testing.T)
	rest     func() error
}

func newScene(t *testing.T) *scene {
	s := &scene{sources: filepath.Join(t.TempDir(), "sources"), mirror: freeze(t), secrets: new(hunt)}
	if err := os.Mkdir(s.sources, 0o755); err != nil {
		t.Fatal(err)
	}
	testkit.Run(t, "sh", "-c", fmt.Sprintf("cd ../.. && git ls-files -z | tar --null --ignore-failed-read -cf - -T - | tar -C %s -xf -", s.sources))
	// The programs are the same wherever they are compiled; make does it where
	// they are older than the sources.
	if bin, err := filepath.Abs("../../bin"); err == nil && exec.Command("cp", "-a", bin, s.sources).Run() != nil {
		t.Log("compiling the programs: there is no bin with them")
	}
	s.make(t, "build")
	s.makeKey(t)
	return s
}

// make calls make in the fresh copy.
func (s *scene) make(t *testing.T, target string) {
	cmd := exec.CommandContext(t.Context(), "make", target)
	cmd.Dir = s.sources
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make %s: %v\n%s", target, err, out)
	}
}

// makeKey makes a release key in memory, as a distributor would, and learns
// what nobody else may.
func (s *scene) makeKey(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "halogen-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	random := make([]byte, 24)
	if _, err := rand.Read(random); err != nil {
		t.Fatal(err)
	}
	s.word = base64.RawURLEncoding.EncodeToString(random)
	s.password = filepath.Join(dir, "password")
	if err := os.WriteFile(s.password, []byte(s.word+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	keys := filepath.Join(dir, "keys")
	out := testkit.Run(t, filepath.Join(s.sources, "bin/halogen"), "keys", "generate", "--out", keys, "--name", "Test of containers", "--password-file", s.password)
	fingerprint := regexp.MustCompile(`ReleaseKey=([0-9A-F]{40})`).FindStringSubmatch(out)
	if fingerprint == nil {
		t.Fatalf("no fingerprint in\n%s", out)
	}
	s.key, s.public = filepath.Join(keys, "release-key.secret.asc"), filepath.Join(keys, "release-key.asc")
	config := string(read(t, "../../uki.conf"))
	config = strings.Replace(config, "ReleaseKey=none", "ReleaseKey="+fingerprint[1], 1)
	config = strings.Replace(config, "#ReleaseKeyFile=release-key.asc", "ReleaseKeyFile=release-key.asc", 1)
	directory := t.TempDir() // beside no secret
	s.config = filepath.Join(directory, "uki.conf")
	for name, text := range map[string][]byte{"uki.conf": []byte(config), "release-key.asc": read(t, s.public)} {
		if err := os.WriteFile(filepath.Join(directory, name), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s.learn(t)
}

// learn takes down the password, the secret numbers, and the key's file as far
// as it is not public.
func (s *scene) learn(t *testing.T) {
	s.secrets.add("password", []byte(s.word))
	ring, err := openpgp.ReadArmoredKeyRing(bytes.NewReader(read(t, s.key)))
	if err != nil || len(ring) != 1 || len(ring[0].Subkeys) == 0 {
		t.Fatalf("the release key has %d entities: %v", len(ring), err)
	}
	if err := ring[0].DecryptPrivateKeys([]byte(s.word)); err != nil {
		t.Fatal(err)
	}
	numbers := []any{ring[0].PrivateKey.PrivateKey}
	for _, sub := range ring[0].Subkeys {
		numbers = append(numbers, sub.PrivateKey.PrivateKey)
	}
	for i, n := range numbers {
		k, ok := n.(*eddsa.PrivateKey)
		if !ok || len(k.D) != 32 {
			t.Fatalf("key %d is a %T", i, n)
		}
		s.secrets.add(fmt.Sprintf("secret number %d", i), k.D)
	}
	secret, public := dearmor(t, s.key), dearmor(t, s.public)
	chunks := 0
	for at := 0; at+24 <= len(secret); at += 24 {
		if chunk := secret[at : at+24]; !bytes.Contains(public, chunk[:8]) {
			s.secrets.add(fmt.Sprintf("the key's file from %d", at), chunk)
			chunks++
		}
	}
	if chunks < 4 {
		t.Fatalf("only %d parts of the key's file are not public", chunks)
	}
}

func dearmor(t *testing.T, path string) []byte {
	block, err := armor.Decode(bytes.NewReader(read(t, path)))
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(block.Body)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// builder makes a place for a build.
func (s *scene) builder(t *testing.T, name string) *builder {
	b := &builder{dir: filepath.Join(t.TempDir(), name), base: os.Getenv("HALOGEN_BASE")}
	b.out = filepath.Join(b.dir, "out")
	for _, dir := range []string{"bin", "tmp"} {
		if err := os.MkdirAll(filepath.Join(b.dir, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b.env = append(os.Environ(), "PATH="+b.dir+"/bin:"+os.Getenv("PATH"), "TMPDIR="+b.dir+"/tmp", "SOURCE_DATE_EPOCH=1767225600")
	return b
}

// shim puts something before an engine, that it forgets nothing: a shell script,
// which changes its arguments.
func (b *builder) shim(t *testing.T, engine, script string) {
	script = "#!/bin/sh\n" + script + "\nexec " + testkit.Need(t, engine) + " \"$@\"\n"
	if err := os.WriteFile(filepath.Join(b.dir, "bin", engine), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
}

// useBuildah gives a build a storage for containers of its own.
func (b *builder) useBuildah(t *testing.T) {
	b.shim(t, "buildah", `[ "$1" != rm ] || exit 0`)
	storage := fmt.Sprintf("[storage]\ndriver = %q\ngraphroot = %q\nrunroot = %q\n", driver(t), b.dir+"/storage/graph", b.dir+"/storage/run")
	if err := os.WriteFile(filepath.Join(b.dir, "storage.conf"), []byte(storage), 0o644); err != nil {
		t.Fatal(err)
	}
	b.env = append(b.env, "CONTAINERS_STORAGE_CONF="+b.dir+"/storage.conf", "BUILDAH_ISOLATION=chroot")
	// What the storage has mounted must go before its directory can.
	t.Cleanup(func() {
		if out, err := b.command(context.WithoutCancel(t.Context()), "/", testkit.Need(t, "buildah"), "rm", "--all").CombinedOutput(); err != nil {
			t.Errorf("remove the containers: %v\n%s", err, out)
		}
	})
	b.planting = []string{"buildah", "build", "--layers"}
	b.wake, b.rest = func(*testing.T) {}, func() error { return nil }
	b.export = func(t *testing.T) {
		t.Helper()
		out, err := b.command(t.Context(), "/", "buildah", "push", "localhost/halogen-builder:latest", "oci:"+b.dir+"/exported:latest").CombinedOutput()
		if err != nil {
			t.Fatalf("export the image: %v\n%s", err, out)
		}
		blobs, err := filepath.Glob(b.dir + "/exported/blobs/sha256/*")
		if err != nil || len(blobs) < 3 {
			t.Fatalf("the exported image has the files %q (%v)", blobs, err)
		}
	}
}

// driver is overlay where the kernel lets it be mounted here.
func driver(t *testing.T) string {
	dir := t.TempDir()
	testkit.Run(t, "mkdir", "-p", dir+"/l", dir+"/u", dir+"/w", dir+"/m")
	if exec.Command("unshare", "--mount", "mount", "-t", "overlay", "overlay", "-o", fmt.Sprintf("lowerdir=%s/l,upperdir=%s/u,workdir=%s/w", dir, dir, dir), dir+"/m").Run() != nil {
		return "vfs"
	}
	return "overlay"
}

func (b *builder) command(ctx context.Context, dir, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env = dir, b.env
	return cmd
}

func (b *builder) log() string { return filepath.Join(b.dir, "log") }

func (b *builder) run(ctx context.Context, dir, name string, args ...string) error {
	log, err := os.Create(b.log())
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := b.command(ctx, dir, name, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(b.log())
		return fmt.Errorf("%s %s: %w\n%s", name, args[0], err, text[max(0, len(text)-4000):])
	}
	return nil
}

// compare has halogen judge, and wants no other difference between the signed
// releases than the signatures, which say when they were made.
func (s *scene) compare(t *testing.T, a, b string) {
	halogen := filepath.Join(s.sources, "bin/halogen")
	for _, name := range []string{"system.erofs", "uki.efi", "bootx64.efi", "release.json", "sbom.cdx.json", "provenance.intoto.json", "disk.img"} {
		if out, err := exec.Command(halogen, "diff", filepath.Join(a, name), filepath.Join(b, name)).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
		if name != "disk.img" { // which is long, and made of two of the others
			testkit.Run(t, "cmp", filepath.Join(a, name), filepath.Join(b, name)) // halogen judges itself here
		}
	}
	out, err := exec.Command(halogen, "diff", filepath.Join(a, "server"), filepath.Join(b, "server")).Output()
	if err == nil {
		t.Error("two signatures are the same, made at two times")
	}
	for line := range strings.Lines(string(out)) {
		if name, _, _ := strings.Cut(line, ": "); !strings.HasSuffix(name, ".pgp") {
			t.Errorf("not only signatures differ: %s", line)
		}
	}
}

// open unpacks what the search does not see through.
func (b *builder) open(t *testing.T) {
	t.Helper()
	testkit.Run(t, "fsck.erofs", "--extract="+b.dir+"/system", b.out+"/system.erofs")
	image, err := uki.Parse(read(t, b.out+"/uki.efi"))
	if err != nil {
		t.Fatal(err)
	}
	initrd, ok := image.Section(".initrd")
	// Its archives begin at blocks, with zeros before them.
	const block = 4096
	var pieces []string
	for at, start := 0, -1; ok && at < len(initrd); {
		end := min(at+block, len(initrd))
		if bytes.HasPrefix(initrd[at:], []byte{0x28, 0xb5, 0x2f, 0xfd}) {
			start = at
		}
		if at = end; start >= 0 && (end == len(initrd) || bytes.HasPrefix(initrd[end:], []byte{0x28, 0xb5, 0x2f, 0xfd})) {
			pieces = append(pieces, string(bytes.TrimRight(initrd[start:end], "\x00")))
		}
	}
	if len(pieces) < 2 {
		t.Fatalf("the UKI has %d compressed archives in its initramfs", len(pieces))
	}
	for i, piece := range pieces {
		if err := os.WriteFile(filepath.Join(b.dir, fmt.Sprint("initramfs-", i)), []byte(piece), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// plant leaves secrets where careless builds leave them: in a layer, packed, in
// an image's configuration, and in the log.
func (s *scene) plant(t *testing.T, b *builder) {
	t.Helper()
	if err := os.RemoveAll(b.out); err != nil { // nothing is planted there
		t.Fatal(err)
	}
	b.out = filepath.Join(b.dir, "out") // and nothing is searched
	dir := t.TempDir()
	testkit.Run(t, "sh", "-c", fmt.Sprintf("gzip <%s >%s/layer.gz", s.key, dir))
	recipe := "FROM scratch\nCOPY layer.gz /layer.gz\nENV PASSWORD=" + s.word + "\n"
	if err := os.WriteFile(filepath.Join(dir, "Containerfile"), []byte(recipe), 0o644); err != nil {
		t.Fatal(err)
	}
	b.wake(t)
	args := append(b.planting[1:], "--tag", "planted", "--file", dir+"/Containerfile", dir)
	out, err := b.command(t.Context(), dir, b.planting[0], args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	log, err := os.OpenFile(b.log(), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(log, "Authorization: Basic %s\n", base64.StdEncoding.EncodeToString([]byte("builder:"+s.word)))
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
}

// search looks through everything that a build has left: its storage with all
// layers, its temporary files, its log, the results.
func (s *scene) search(t *testing.T, b *builder, planted bool) {
	t.Helper()
	if err := b.rest(); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	places := []string{b.dir}
	if !strings.HasPrefix(b.out, b.dir) {
		places = append(places, b.out)
	}
	var found []string
	for _, place := range places {
		here, err := s.secrets.below(place)
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, here...)
	}
	t.Logf("searched %q in %.1f s", places, time.Since(start).Seconds())
	if !planted {
		for _, f := range found {
			t.Errorf("found: %s", f)
		}
		return
	}
	all := strings.Join(found, "\n")
	for _, want := range []string{"/layer.gz unpacked: the key's file", "log: password, base64", "/(graph|data)/.*: password"} {
		if !regexp.MustCompile(want).MatchString(all) {
			t.Errorf("%q was planted and not found in\n%s", want, all)
		}
	}
}
