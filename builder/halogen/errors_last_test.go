package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"halogenos.internal/boot/pgp"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/builder/install/installtest"
	"halogenos.internal/builder/rootfs/rootfstest"
)

// unreachable is an address that Linux has no way to, whatever the machine's network: TCP
// reaches one machine, and this is all of them.
const unreachable = "http://255.255.255.255/x86_64/test-os"

// FAULTS 112: what does not fit, and what cannot be reached
func TestTellsLimits(t *testing.T) {
	testkit.Need(t, "mkfs.erofs")
	out, _, _ := build(t)
	tell(t, []mistake{
		{is("build: a UKI that is too large for the ESP", "the UKI has 2", "use a smaller kernel"), func(b *desk) []string {
			return b.build(b.config(), b.root(func(f rootfstest.Files) {
				name := "boot/vmlinuz-" + rootfstest.Release
				f[name] = append(bytes.Clone(f[name]), make([]byte, 255<<20)...)
			}))
		}},
		{is("release: a network that is not there", "255.255.255.255", "check this machine's network"), func(*desk) []string {
			return []string{"release", "--verify", unreachable}
		}},
		{is("release: an address for the server's root", "--server http://", "copy it to the web server"), func(*desk) []string {
			return []string{"release", "--build", out, "--server", unreachable}
		}},
		{is("promote: an address for the server's root", "--server http://", "copy it to the web server"), func(*desk) []string {
			return []string{"release", "promote", "7", "--server", unreachable, "--channel", "beta"}
		}},
	})
}

// gpgKey is a release key of gpg's of 2025 that is good for a time: its fingerprint, and
// the files with its public and secret part.
func (b *desk) gpgKey(password, life string) (fingerprint, public, secret string) {
	b.t.Helper()
	testkit.Need(b.t, "gpg")
	home, err := os.MkdirTemp("", "g") // short: a socket lies in it
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		_ = exec.Command("gpgconf", "--homedir", home, "--kill", "all").Run()
		os.RemoveAll(home)
	})
	gpg := func(args ...string) {
		b.t.Helper()
		args = append([]string{"--homedir", home, "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", password, "--faked-system-time", "20250101T000000!"}, args...)
		testkit.Run(b.t, "gpg", args...)
	}
	public, secret = filepath.Join(b.dir, "old.pgp"), filepath.Join(b.dir, "old.secret.asc")
	gpg("--quick-generate-key", "old@example.org", "ed25519", "sign", life)
	gpg("--output", public, "--export", "old@example.org")
	gpg("--output", secret, "--armor", "--export-secret-keys", "old@example.org")
	text, err := os.ReadFile(public)
	if err != nil {
		b.t.Fatal(err)
	}
	key, err := pgp.ParseKey(text)
	if err != nil {
		b.t.Fatal(err)
	}
	return key.Fingerprint().String(), public, secret
}

// FAULTS 112: a release key that has expired, where it is pinned and where it signs
func TestTellsExpiredKey(t *testing.T) {
	testkit.Need(t, "mkfs.erofs")
	password := "plinth oversee cobalt drizzle yearbook"
	b := &desk{t, t.TempDir()}
	fingerprint, public, secret := b.gpgKey(password, "30d")
	args := b.build(b.config("ReleaseKey=none", "ReleaseKeyFile="+public+"\nReleaseKey="+fingerprint), b.root(nil))
	if code, _, stderr := run(t, nil, append(args, "--allow-expiring-key")...); code != exitOK {
		t.Fatal(stderr)
	}
	tell(t, []mistake{
		{is("build: a release key that has expired", fingerprint, "gpg --quick-set-expire "+fingerprint), func(*desk) []string { return args }},
		{is("release: a key that has expired", fingerprint, "gpg --quick-set-expire "+fingerprint), func(*desk) []string {
			return []string{"release", "--build", filepath.Join(b.dir, "out"), "--server", filepath.Join(b.dir, "www"), "--key", secret,
				"--password-file", b.file("password", password+"\n"), "--allow-unencrypted-storage"}
		}},
	})
}

// asNobody makes the test's process another user's until the test ends, where it is
// root's, with a directory for its files.
func asNobody(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	const nobody = 65534
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chown(d, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Seteuid(nobody); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Seteuid(0); err != nil {
			panic(err) // all other tests would fail
		}
	})
}

// FAULTS 112: not root, where only root can do it
func TestTellsNotRoot(t *testing.T) {
	for _, c := range []struct {
		testkit.Error
		header tar.Header
	}{
		{is("build: a device, without root", "dev/null", "run as root"), tar.Header{Name: "dev/null", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 3}},
		{is("build: a file of another user's, without root", "var/mail", "run as root"), tar.Header{Name: "var/mail", Mode: 0o644, Gid: 8}},
	} {
		t.Run(c.What, func(t *testing.T) {
			asNobody(t)
			b := &desk{t, t.TempDir()}
			var text bytes.Buffer
			w := tar.NewWriter(&text)
			if err := errors.Join(w.WriteHeader(&c.header), w.Close()); err != nil {
				t.Fatal(err)
			}
			code, _, stderr := run(t, nil, b.build(b.config(), b.file("root.tar", text.String()))...)
			if code == exitOK {
				t.Error("it is built")
			}
			testkit.Tells(t, c.Error, strings.ReplaceAll(stderr, b.dir, "DIR"))
		})
	}
	t.Run("install", func(t *testing.T) {
		asNobody(t)
		m := newTarget(t)
		if err := os.Chmod(m.disk, 0); err != nil {
			t.Fatal(err)
		}
		_, err := m.install(installtest.Build(t, nil), installFlags{yes: "S1"})
		if err == nil {
			t.Fatal("it is installed")
		}
		testkit.Tells(t, is("install: without root", "sda", "run this as root"), "halogen install: "+strings.ReplaceAll(err.Error()+cure(err), filepath.Dir(m.system.Sys), ""))
	})
}

// FAULTS 112: a run that was interrupted says what it has left, and that is so
func TestTellsInterrupted(t *testing.T) {
	testkit.Need(t, "mkfs.erofs")
	// The program that it runs at the time is what Ctrl-C reaches, too: gpg ends by it, a
	// moment later, and is waited for.
	const interrupt = "kill -INT $PPID; sleep 2; kill -INT $$; exec sleep 60\n"
	t.Run("build", func(t *testing.T) {
		b := &desk{t, t.TempDir()}
		b.program("mkfs.erofs", interrupt)
		code, stdout, stderr := run(t, nil, b.build(b.config(), b.root(nil))...)
		if code != exitFailure || stdout != "" {
			t.Errorf("exit code %d, %q", code, stdout)
		}
		if left, err := os.ReadDir(filepath.Join(b.dir, "out")); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
		testkit.Tells(t, is("build: interrupted", "interrupted", "run it again"), last(stderr))
	})
	t.Run("release", func(t *testing.T) {
		b := &desk{t, t.TempDir()}
		fingerprint, public, _ := b.gpgKey("", "never")
		args := b.build(b.config("ReleaseKey=none", "ReleaseKeyFile="+public+"\nReleaseKey="+fingerprint), b.root(nil))
		if code, _, stderr := run(t, nil, args...); code != exitOK {
			t.Fatal(stderr)
		}
		b.program("gpg", interrupt)
		server := filepath.Join(b.dir, "www")
		code, stdout, stderr := run(t, nil, "release", "--build", filepath.Join(b.dir, "out"), "--server", server, "--gpg")
		if code != exitFailure || stdout != "" {
			t.Errorf("exit code %d, %q", code, stdout)
		}
		var left []string
		_ = filepath.Walk(server, func(name string, info os.FileInfo, err error) error {
			if err == nil && !info.IsDir() {
				left = append(left, name)
			}
			return nil
		})
		if len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
		testkit.Tells(t, is("release: interrupted", "interrupted", "run it again"), last(stderr))
	})
}

// last is the last line.
func last(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}
