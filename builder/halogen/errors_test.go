package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/testkit"
	"halogenos.internal/builder/rootfs/rootfstest"
)

// A desk is what errors are provoked on.
type desk struct {
	t   *testing.T
	dir string
}

// file writes a file of the desk.
func (b *desk) file(name, text string) string {
	b.t.Helper()
	path := filepath.Join(b.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o600)); err != nil {
		b.t.Fatal(err)
	}
	return path
}

const goodConfig = "[UKI]\nCmdline=quiet\n[Image]\nImageID=test-os\nSlotSize=16M\nReleaseKey=none\n[Initramfs]\nModules=one ?two\n"

// config writes a configuration, with some of it replaced.
func (b *desk) config(changes ...string) string {
	b.t.Helper()
	return b.file("uki.conf", strings.NewReplacer(changes...).Replace(goodConfig))
}

// root writes a root file system that is good but for some files.
func (b *desk) root(change func(f rootfstest.Files)) string {
	b.t.Helper()
	f := rootfstest.Minimal()
	if change != nil {
		change(f)
	}
	return f.Write(b.t, false)
}

// archive writes a tar archive with one file.
func (b *desk) archive(name, file string) string {
	b.t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	if err := errors.Join(w.WriteHeader(&tar.Header{Name: file, Mode: 0o644}), w.Close()); err != nil {
		b.t.Fatal(err)
	}
	return b.file(name, out.String())
}

// build is a command line.
func (b *desk) build(config, root string, more ...string) []string {
	return append([]string{"build", "--config", config, "--rootfs", root, "--version", "7", "--out", filepath.Join(b.dir, "out")}, more...)
}

// A mistake is a command line that fails, and what is to be said.
type mistake struct {
	testkit.Error
	args func(b *desk) []string
}

// tell makes the mistakes.
func tell(t *testing.T, all []mistake) {
	t.Helper()
	for _, m := range all {
		t.Run(m.What, func(t *testing.T) {
			b := &desk{t, t.TempDir()}
			args := m.args(b)
			code, _, stderr := run(t, nil, args...)
			if code == exitOK {
				t.Errorf("%q succeeds", args)
			}
			// What it was doing before is not what is wrong.
			if i := strings.LastIndex(stderr, "halogen "+args[0]+": "); i >= 0 {
				stderr = stderr[i:]
			}
			testkit.Tells(t, m.Error, strings.ReplaceAll(stderr, b.dir, "DIR"))
		})
	}
}

func is(what, thing, cure string) testkit.Error {
	return testkit.Error{What: what, Thing: thing, Cure: cure}
}

// FAULTS 112: the most likely errors of who builds
func TestTellsBuild(t *testing.T) {
	testkit.Need(t, "mkfs.erofs")
	with := func(change func(f rootfstest.Files)) func(b *desk) []string {
		return func(b *desk) []string { return b.build(b.config(), b.root(change)) }
	}
	conf := func(changes ...string) func(b *desk) []string {
		return func(b *desk) []string { return b.build(b.config(changes...), b.root(nil)) }
	}
	tell(t, []mistake{
		{is("build: a root file system that is not there", "DIR/none", "check the name"), func(b *desk) []string { return b.build(b.config(), filepath.Join(b.dir, "none")) }},
		{is("build: a text file for a root file system", "DIR/text", "want tar"), func(b *desk) []string { return b.build(b.config(), b.file("text", "hello")) }},
		{is("build: an empty directory", "kernel", "with Linux= in [UKI]"), func(b *desk) []string { return b.build(b.config(), b.t.TempDir()) }},
		{is("build: an archive that is cut off", "DIR/cut.tar", "make or copy it again"), func(b *desk) []string {
			whole := b.archive("whole.tar", "file")
			text, _ := os.ReadFile(whole)
			return b.build(b.config(), b.file("cut.tar", string(text[:512])))
		}},
		{is("build: an empty archive", "DIR/empty.tar", "pack a root file system"), func(b *desk) []string { return b.build(b.config(), b.file("empty.tar", strings.Repeat("\x00", 10240))) }},
		{is("build: a name of 256 bytes", "nnn", "a shorter one"), func(b *desk) []string { return b.build(b.config(), b.archive("long.tar", strings.Repeat("n", 256))) }},
		{is("build: a hole of 40 GB", "var/log/lastlog", "truncate -s 0"), func(b *desk) []string {
			root := b.root(nil)
			if err := errors.Join(os.MkdirAll(root+"/var/log", 0o755), os.WriteFile(root+"/var/log/lastlog", nil, 0o644), os.Truncate(root+"/var/log/lastlog", 40<<30)); err != nil {
				b.t.Fatal(err)
			}
			return b.build(b.config(), root)
		}},
		{is("build: a device or socket for a root file system", "/dev/null", "give one of these"), func(b *desk) []string { return b.build(b.config(), "/dev/null") }},
		{is("build: no configuration", "DIR/none.conf", "check the name"), func(b *desk) []string { return b.build(filepath.Join(b.dir, "none.conf"), b.root(nil)) }},
		{is("build: a key that the configuration does not know", "SlotSiz", "take it out"), conf("SlotSize", "SlotSiz")},
		{is("build: a slot size that is none", "SlotSize", "want a number with K, M, G or T"), conf("16M", "huge")},
		{is("build: no image ID", "ImageID", "ImageID=my-os"), conf("ImageID=test-os\n", "")},
		{is("build: an image ID with a slash", "ImageID", "want 1 to 64 of"), conf("test-os", "test/os")},
		{is("build: no release key", "ReleaseKey", "want the fingerprint"), conf("ReleaseKey=none\n", "")},
		{is("build: a release key file that is not there", "none.pgp", "check the name"), conf("ReleaseKey=none", "ReleaseKeyFile=none.pgp\nReleaseKey=0123456789012345678901234567890123456789")},
		{is("build: a module that the kernel does not have", "nonesuch", "mark it with '?'"), conf("Modules=one", "Modules=one nonesuch")},
		{is("build: a slot that is too small", "SlotSize", "make SlotSize in [Image] larger"), with(func(f rootfstest.Files) {
			for i := range 20 {
				f["usr/share/big/"+string(rune('a'+i))] = chance(1 << 20)
			}
		})},
		{is("build: a secret in the image", "/etc/key", "take them out, or say in [Allow]"), with(func(f rootfstest.Files) {
			f["etc/key"] = []byte("AGE-SECRET-KEY-1QQPYYGQQZZXXDDFFGGHH2233445566778899AACCEEJJKKLLMM77PP")
		})},
		{is("build: output below a file", "DIR/x", "name another place"), func(b *desk) []string {
			return append(b.build(b.config(), b.root(nil))[:7], "--out", filepath.Join(b.file("x", ""), "out"))
		}},
		{is("build: mkfs.erofs is not installed", "mkfs.erofs", "package erofs-utils"), func(b *desk) []string {
			b.t.Setenv("PATH", b.dir)
			return b.build(b.config(), b.root(nil))
		}},
		{is("build: a version with a dot", "--version", "from 1 to"), func(b *desk) []string {
			return []string{"build", "--config", b.config(), "--rootfs", b.root(nil), "--version", "1.0", "--out", "o"}
		}},
		{is("build: a disk that is too small", "disk of 64 MiB is too small", "a larger --disk-size"), func(b *desk) []string { return b.build(b.config(), b.root(nil), "--disk", "--disk-size", "64M") }},
		{is("build: no engine for containers", "docker", "install one"), func(b *desk) []string {
			b.t.Setenv("PATH", b.dir)
			return []string{"build", "--container", "--version", "1", "--out", filepath.Join(b.dir, "out"), "--config", b.config()}
		}},
		{is("build: the disk is full", "out", "make room"), func(b *desk) []string {
			testkit.Root(b.t, "mount a small file system")
			args := b.build(b.config(), b.root(nil))
			small := filepath.Join(b.dir, "small")
			if err := errors.Join(os.Mkdir(small, 0o755), unix.Mount("tmpfs", small, "tmpfs", 0, "size=100k")); err != nil {
				b.t.Fatal(err)
			}
			b.t.Cleanup(func() { _ = unix.Unmount(small, 0) })
			args[len(args)-1] = filepath.Join(small, "out")
			return args
		}},
		{is("inspect: a directory", "DIR", "name a file"), func(b *desk) []string { return []string{"inspect", b.dir} }},
		{is("inspect: a text file", "DIR/text", "check that it is whole"), func(b *desk) []string { return []string{"inspect", b.file("text", "hello")} }},
		{is("inspect: a file that is not there", "DIR/none", "check the name"), func(b *desk) []string { return []string{"inspect", b.dir + "/none"} }},
		{is("diff: one of two", "diff", "want two"), func(b *desk) []string { return []string{"diff", b.dir} }},
		{is("run: an image that is not there", "DIR/none.img", "halogen build --disk"), func(b *desk) []string {
			return []string{"run", "--image", b.dir + "/none.img", "--state", b.dir + "/state"}
		}},
		{is("run: QEMU is not installed", "qemu", "apt-get install"), func(b *desk) []string {
			b.t.Setenv("PATH", b.dir)
			return []string{"run", "--image", b.file("disk.img", strings.Repeat("x", 4096)), "--state", b.dir + "/state"}
		}},
		{is("an unknown command", "bulid", "Commands:"), func(b *desk) []string { return []string{"bulid"} }},
	})
}

// chance are bytes that no compressor gets smaller.
func chance(n int) []byte {
	out, x := make([]byte, n), uint64(88172645463325252)
	for i := range out {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		out[i] = byte(x)
	}
	return out
}

// FAULTS 112: the most likely errors of who keeps keys
func TestTellsKeys(t *testing.T) {
	dir := t.TempDir()
	b := &desk{t, dir}
	password := b.file("password", "plinth oversee cobalt drizzle yearbook\n")
	keysDir := filepath.Join(dir, "keys")
	if code, _, stderr := run(t, nil, "keys", "generate", "--out", keysDir, "--name", "Example", "--password-file", password, "--allow-unencrypted-storage"); code != exitOK {
		t.Fatal(stderr)
	}
	secret := filepath.Join(keysDir, "release-key.secret.asc")
	args := func(a ...string) func(*desk) []string {
		return func(*desk) []string { return append([]string{"keys"}, a...) }
	}
	tell(t, []mistake{
		{is("keys: a file that is not there", "none", "check the name"), args("check", filepath.Join(dir, "none"))},
		{is("keys: there is a key already", keysDir, "another --out"), args("generate", "--out", keysDir, "--name", "Example", "--password-file", password, "--allow-unencrypted-storage")},
		{is("keys: a weak password", "password", "six words"), args("generate", "--out", filepath.Join(dir, "new"), "--name", "Example", "--password-file", b.file("weak", "secret123\n"), "--allow-unencrypted-storage")},
		{is("keys: a password file that others may read", "loose", "chmod 0600"), func(*desk) []string {
			loose := b.file("loose", "plinth oversee cobalt drizzle yearbook\n")
			if err := os.Chmod(loose, 0o644); err != nil {
				t.Fatal(err)
			}
			return []string{"keys", "generate", "--out", filepath.Join(dir, "new"), "--name", "Example", "--password-file", loose, "--allow-unencrypted-storage"}
		}},
		{is("keys: the wrong password", "release-key.secret.asc", "try again"), args("check", secret, "--password-file", b.file("wrong", "correct horse battery staple of the day\n"), "--allow-unencrypted-storage")},
		{is("keys: a public key for a secret one", "release-key.asc", "name the file with the secret one"), args("check", filepath.Join(keysDir, "release-key.asc"), "--allow-unencrypted-storage")},
		{is("keys: a text file", "text", "--export-secret-keys"), args("check", b.file("text", "hello"), "--allow-unencrypted-storage")},
		{is("keys: no name", "--name", "--help"), args("generate", "--out", filepath.Join(dir, "new"))},
	})
}

// FAULTS 112: the most likely errors of who publishes
func TestTellsRelease(t *testing.T) {
	out, _, _ := build(t)
	root := filepath.Join(t.TempDir(), "www")
	if code, _, stderr := run(t, nil, "release", "--build", out, "--server", root); code != exitOK {
		t.Fatal(stderr)
	}
	place := filepath.Join(root, "x86_64", "test-os")
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := closed.Addr().String()
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	serve := func(h http.HandlerFunc) string {
		s := httptest.NewServer(h)
		t.Cleanup(s.Close)
		return s.URL + "/x86_64/test-os"
	}
	secure := httptest.NewTLSServer(http.FileServer(http.Dir(root)))
	t.Cleanup(secure.Close)
	verify := func(where string, more ...string) func(*desk) []string {
		return func(*desk) []string { return append([]string{"release", "--verify", where}, more...) }
	}
	manage := func(a ...string) func(*desk) []string {
		return func(*desk) []string { return append([]string{"release"}, a...) }
	}
	// spoiled is a copy of the server with another manifest.
	spoiled := func(text string) func(b *desk) []string {
		return func(b *desk) []string {
			www := filepath.Join(b.dir, "www")
			if err := os.CopyFS(www, os.DirFS(root)); err != nil {
				b.t.Fatal(err)
			}
			b.file("www/x86_64/test-os/manifest.env", text)
			return []string{"release", "--verify", www}
		}
	}
	tell(t, []mistake{
		{is("release: a build that is not there", "DIR/none", "halogen build --out"), func(b *desk) []string { return []string{"release", "--build", b.dir + "/none", "--server", root} }},
		{is("release: a build that is damaged", "uki.efi", "halogen build --out"), func(b *desk) []string {
			if err := os.CopyFS(filepath.Join(b.dir, "build"), os.DirFS(out)); err != nil {
				b.t.Fatal(err)
			}
			b.file("build/uki.efi", "x")
			return []string{"release", "--build", b.dir + "/build", "--server", root}
		}},
		{is("release: a key, and the image has pinned none", "ReleaseKey=none", "build it with the key"), func(b *desk) []string {
			return []string{"release", "--build", out, "--server", root, "--key", b.file("key", "")}
		}},
		{is("release: the same version again", "version 7", "greater --version"), manage("--build", out, "--server", root)},
		{is("release: beta first", "stable", "publish to stable first"), func(b *desk) []string {
			return []string{"release", "--build", out, "--server", b.dir + "/www", "--channel", "beta"}
		}},
		{is("release: a channel that is none", "nightly", "want stable, beta or alpha"), manage("--build", out, "--server", root, "--channel", "nightly")},
		{is("release: a share that is none", "101", "0 to 100"), manage("--build", out, "--server", root, "--rollout", "101")},
		{is("release: a server's root that is a file", "DIR/file", "name another place"), func(b *desk) []string { return []string{"release", "--build", out, "--server", b.file("file", "")} }},
		{is("release: another publisher is at work", "test-os", "wait until"), func(b *desk) []string {
			f, err := os.Open(place)
			if err != nil {
				b.t.Fatal(err)
			}
			b.t.Cleanup(func() { f.Close() })
			if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
				b.t.Fatal(err)
			}
			return []string{"release", "promote", "7", "--server", root, "--channel", "beta"}
		}},
		{is("release: a server that does not answer", "127.0.0.1", "that the server runs"), verify("http://" + address + "/x86_64/test-os")},
		{is("release: a server's name that is wrong", "nonesuch.invalid", "check"), verify("http://nonesuch.invalid/x86_64/test-os")},
		{is("release: the wrong directory of a server", "manifest.env", "ROOT/<arch>/<image-id>"), verify(serve(http.NotFound))},
		{is("release: a login page", "manifest.env", "open a browser"), verify(serve(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<!doctype html><title>x")) }))},
		{is("release: a server of a private authority", "certificate", "SSL_CERT_FILE"), verify(secure.URL + "/x86_64/test-os")},
		{is("release: a server that compresses", "manifest.env", "gzip off"), verify(serve(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write([]byte{31, 139})
		}))},
		{is("release: a URL without the image's directory", "http", "such as https://"), verify("https://")},
		{is("release: a pinned key that is not there", "/nowhere", "check the name"), verify(root, "--pinned", "/nowhere")},
		{is("release: a directory without a manifest", "DIR", "name the server's root"), func(b *desk) []string { return []string{"release", "--verify", b.dir} }},
		{is("release: a manifest with Windows' line ends", "manifest.env, line 1", "save the file"), spoiled("STABLE=7\r\n")},
		{is("release: a manifest in lower case", "manifest.env, line 1", "write STABLE=7"), spoiled("stable=7\n")},
		{is("release: a manifest without STABLE", "manifest.env", "add a line"), spoiled("BETA=7\n")},
		{is("release: a manifest that names what is not there", "release 9", "upload it"), spoiled("STABLE=9\n")},
		{is("release: a manifest that has expired", "manifest.env", "halogen release refresh"), spoiled("STABLE=7\nEXPIRES=2020-01-01T00:00:00Z\n")},
		{is("release: a manifest with a key that is not there", "release-key.pgp", "gpg --export"), spoiled("STABLE=7\nPUBKEY=release-key.pgp\n")},
		{is("promote: a version that is not there", "9", "halogen release list"), manage("promote", "9", "--server", root)},
		{is("withdraw: the only one", "7", "publish a newer one"), manage("withdraw", "7", "--server", root)},
		{is("withdraw: what no channel names", "9", "halogen release list"), manage("withdraw", "9", "--server", root)},
		{is("prune: nothing is to stay", "0", "want at least 1"), manage("prune", "--server", root, "--keep", "0")},
		{is("prune: no server there", "DIR", "name the server's root"), func(b *desk) []string { return []string{"release", "prune", "--server", b.dir} }},
		{is("install: no disk is named", "--disk", "--help"), func(b *desk) []string { return []string{"install", "--yes", "x", out} }},
	})
}
