package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/builder/install/installtest"
	"halogenos.internal/builder/rootfs/rootfstest"
)

// program puts a program on the path that is not what it says, before all others.
func (b *desk) program(name, text string) {
	b.t.Helper()
	path := b.file("bin/"+name, "#!/bin/sh\n"+text)
	if err := os.Chmod(path, 0o755); err != nil {
		b.t.Fatal(err)
	}
	b.t.Setenv("PATH", filepath.Dir(path)+":"+os.Getenv("PATH"))
}

// mounted is a small file system of a test's.
func (b *desk) mounted(options string, flags uintptr) string {
	b.t.Helper()
	testkit.Root(b.t, "mount a file system")
	dir := filepath.Join(b.dir, "mounted")
	if err := errors.Join(os.Mkdir(dir, 0o755), unix.Mount("tmpfs", dir, "tmpfs", flags, options)); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = unix.Unmount(dir, 0) })
	return dir
}

// FAULTS 112: what a root file system lacks, and a configuration says wrongly
func TestTellsParts(t *testing.T) {
	testkit.Need(t, "mkfs.erofs")
	with := func(change func(f rootfstest.Files)) func(b *desk) []string {
		return func(b *desk) []string { return b.build(b.config(), b.root(change)) }
	}
	conf := func(changes ...string) func(b *desk) []string {
		return func(b *desk) []string { return b.build(b.config(changes...), b.root(nil)) }
	}
	drop := func(part string) func(b *desk) []string {
		return with(func(f rootfstest.Files) {
			for name := range f {
				if strings.Contains(name, part) {
					delete(f, name)
				}
			}
		})
	}
	tell(t, []mistake{
		{is("build: no systemd-boot", "systemd-bootx64.efi", "install systemd-boot"), drop("systemd-boot")},
		{is("build: no modules", "modules.dep", "run `depmod"), drop("/modules/")},
		{is("build: two kernels", "kernels", "Linux="), with(func(f rootfstest.Files) { f["boot/vmlinuz-6.1.0-other"] = rootfstest.Kernel("6.1.0-other") })},
		{is("build: a kernel that is none", "/boot/vmlinuz-", "Linux="), with(func(f rootfstest.Files) { f["boot/vmlinuz-"+rootfstest.Release] = []byte("hello") })},
		{is("build: a command line that switches protection off", "lockdown=none", "take it out"), conf("quiet", "quiet lockdown=none")},
		{is("build: a section that is not known", "[Imag]", "want [UKI]"), conf("[Image]", "[Imag]")},
		{is("build: a line that is none", "line 2", "such as"), conf("Cmdline=quiet", "Cmdline quiet")},
		{is("build: a key twice", "ImageID", "take one"), conf("ImageID=test-os", "ImageID=test-os\nImageID=other")},
		{is("build: a slot size that is not whole", "SlotSize", "want a multiple of"), conf("16M", "1000K")},
		{is("build: a file for the release key that holds none", "none.pgp", "gpg --export"), func(b *desk) []string {
			b.file("none.pgp", "hello")
			return b.build(b.config("ReleaseKey=none", "ReleaseKeyFile=none.pgp\nReleaseKey=0123456789012345678901234567890123456789"), b.root(nil))
		}},
		{is("build: a module in Allow that matches nothing", "/etc/nothing", "mark it with '?'"), conf("[Initramfs]", "[Allow]\nprivate-key-pem=\n\t/etc/nothing for no reason\n[Initramfs]")},
		{is("build: output on a read-only file system", "DIR/mounted/out", "another"), func(b *desk) []string {
			args := b.build(b.config(), b.root(nil))
			args[len(args)-1] = filepath.Join(b.mounted("", unix.MS_RDONLY), "out")
			return args
		}},
		{is("build: docker does not run", "docker", "is it running"), func(b *desk) []string {
			b.program("docker", "echo 'Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?' >&2; exit 1\n")
			return []string{"build", "--container", "--engine", "docker", "--version", "1", "--out", filepath.Join(b.dir, "out"), "--config", b.config()}
		}},
	})
}

// An image for containers has nothing that a machine could start. FAULTS 112
func TestTellsInit(t *testing.T) {
	testkit.Need(t, "mkfs.erofs")
	for name, init := range map[string]bool{"build: a root file system without init": false, "one with": true} {
		b := &desk{t, t.TempDir()}
		code, _, stderr := run(t, nil, b.build(b.config(), b.root(func(f rootfstest.Files) {
			if init {
				f["sbin/init"] = rootfstest.Program(false)
			}
		}))...)
		if code != exitOK || strings.Contains(stderr, "has no /sbin/init") == init {
			t.Errorf("%s: exit code %d:\n%s", name, code, stderr)
		}
		if i := strings.Index(stderr, "halogen: WARNING: the root file system"); i >= 0 {
			line, _, _ := strings.Cut(stderr[i:], "\n")
			testkit.Tells(t, is(name, "/sbin/init", "Install an init system"), line)
		}
	}
}

// FAULTS 112: keys, servers and clocks that are not as they were
func TestTellsSigning(t *testing.T) {
	out, _, _ := build(t)
	b := &desk{t, t.TempDir()}
	password := b.file("password", "plinth oversee cobalt drizzle yearbook\n")
	root := filepath.Join(b.dir, "www")
	if code, _, stderr := run(t, nil, "release", "--build", out, "--server", root); code != exitOK {
		t.Fatal(stderr)
	}
	over, authority := expired(t, http.FileServer(http.Dir(root)))
	tell(t, []mistake{
		{is("keys: a password file that is not there", "DIR/none", "check the name"), func(b *desk) []string {
			return []string{"keys", "generate", "--out", b.dir + "/new", "--name", "Example", "--password-file", b.dir + "/none", "--allow-unencrypted-storage"}
		}},
		{is("keys: an empty password file", "password", "six words"), func(b *desk) []string {
			return []string{"keys", "generate", "--out", b.dir + "/new", "--name", "Example", "--password-file", b.file("empty", ""), "--allow-unencrypted-storage"}
		}},
		{is("keys: a disk that is not encrypted", "password", "--allow-unencrypted-storage"), func(b *desk) []string {
			return []string{"keys", "generate", "--out", b.dir + "/new", "--name", "Example", "--password-file", password}
		}},
		{is("keys: a disk that is full", "DIR/mounted", "make room"), func(b *desk) []string {
			dir := b.mounted("size=4k", 0)
			b.file("mounted/fill", strings.Repeat("x", 4096))
			return []string{"keys", "generate", "--out", dir + "/new", "--name", "Example", "--password-file", password, "--allow-unencrypted-storage"}
		}},
		{is("release: no room on the server", "DIR/mounted", "make room"), func(b *desk) []string {
			return []string{"release", "--build", out, "--server", b.mounted("size=12k", 0)}
		}},
		{is("release: a server's root that can only be read", "DIR/mounted", "another"), func(b *desk) []string {
			return []string{"release", "--build", out, "--server", b.mounted("", unix.MS_RDONLY)}
		}},
		{is("release: a certificate that is over, or a clock that is wrong", "certificate has expired", "set it (date)"), func(b *desk) []string {
			return []string{"release", "--verify", over + "/x86_64/test-os", "--ca", b.file("ca.pem", authority)}
		}},
		{is("release: no server is named", "--server", "--help"), func(*desk) []string { return []string{"release", "--build", out} }},
		{is("withdraw: no version is named", "VERSION", "--help"), func(*desk) []string { return []string{"release", "withdraw", "--server", root} }},
	})
}

// expired is a server whose certificate is over, and the certificate.
func expired(t *testing.T, h http.Handler) (address, authority string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().AddDate(-2, 0, 0), NotAfter: time.Now().AddDate(-1, 0, 0), KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(h)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.URL, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// FAULTS 112: the most likely errors of who installs
func TestTellsInstall(t *testing.T) {
	good := installtest.Build(t, nil)
	for _, c := range []struct {
		testkit.Error
		change func(m *bench)
		build  func(c *contract.Contract)
		from   string
		o      installFlags
	}{
		{is("a disk that is too small", "sda", "larger"), func(m *bench) { m.resize(600 << 20) }, nil, "", installFlags{yes: "S1"}},
		{is("a disk that is mounted", "/mnt", "umount"), func(m *bench) { m.write("proc/self/mountinfo", "22 1 8:1 / /mnt rw shared:1 - ext4 /dev/x rw") }, nil, "", installFlags{yes: "S1"}},
		{is("a live system that a BIOS has started", "BIOS", "UEFI"), func(m *bench) { m.remove("sys/firmware") }, nil, "", installFlags{yes: "S1"}},
		{is("a machine without a TPM", "TPM", "firmware's setup"), func(m *bench) { m.remove("sys/class/tpm") }, nil, "", installFlags{yes: "S1"}},
		{is("a release for another architecture", "aarch64", "name a release for x86_64"), nil, func(c *contract.Contract) { c.Arch = "aarch64" }, "", installFlags{yes: "S1"}},
		{is("a disk with another system, and nobody to ask", "nobody", "--yes"), func(m *bench) { m.foreign() }, nil, "", installFlags{}},
		{is("another disk's serial number", "S2", "give that of the disk"), func(m *bench) { m.foreign() }, nil, "", installFlags{yes: "S2"}},
		{is("nothing to keep", "root partition", "--keep-root"), nil, nil, "", installFlags{keep: true, yes: "S1"}},
		{is("a partition for a disk", "sda1", "whole disk"), func(m *bench) {
			m.write("dev/sda1", "")
			m.write("sys/class/block/sda1/partition", "1")
		}, nil, "", installFlags{disk: "sda1", yes: "S1"}},
		{is("a disk that is not there", "sdz", "--list"), nil, nil, "", installFlags{disk: "sdz", yes: "S1"}},
		{is("a release that is not there", "/none", "check the name"), nil, nil, "/none", installFlags{yes: "S1"}},
	} {
		t.Run(c.What, func(t *testing.T) {
			m, from := newTarget(t), good
			if c.change != nil {
				c.change(m)
			}
			if c.build != nil {
				from = installtest.Build(t, c.build)
			}
			if c.from != "" {
				from = c.from
			}
			if c.o.disk != "" {
				c.o.disk = filepath.Join(m.system.Dev, c.o.disk)
			}
			_, err := m.install(from, c.o)
			if err == nil {
				t.Fatal("it is installed")
			}
			c.What = "install: " + c.What
			testkit.Tells(t, c.Error, "halogen install: "+strings.ReplaceAll(err.Error()+cure(err), filepath.Dir(m.system.Sys), ""))
		})
	}
}
