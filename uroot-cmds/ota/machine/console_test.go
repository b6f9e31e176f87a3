package machine

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/upper"
	"halogenos.internal/uroot-cmds/ota/otatest"
)

// newConsole is a world at the recovery console, which the UKI of version 2 has
// opened. The root partition is locked.
func newConsole(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	text, err := w.two.Contract.Encode()
	must(t, err)
	w.write(contractFile, text)
	w.write("sysroot/usr/lib/halogen/ota.conf", []byte("Server="+w.server.URL+"\n"))
	must(t, os.RemoveAll(w.path("etc")))
	must(t, os.RemoveAll(w.path(stateDirectory)))
	w.m.Corrupt = func() (bool, error) { return false, ErrNotOpen }
	return w
}

// ownEtc is the upper directory of /etc of version 2.
func (w *world) ownEtc() string {
	directory, _ := upper.Overlay(w.two.Contract.Root().String(), "etc")
	return filepath.Join(consoleRoot, directory)
}

func (w *world) unlock() {
	w.t.Helper()
	must(w.t, os.MkdirAll(w.path(consoleState), 0o755))
	must(w.t, os.MkdirAll(w.path(w.ownEtc()), 0o755))
	// Of the directories above the shared one, its own is root's alone.
	must(w.t, os.Chmod(filepath.Dir(w.path(consoleState)), 0o700))
}

// damage flips a byte of a block of a slot's image.
func (w *world) damage(s layout.Slot, block int64) {
	w.t.Helper()
	f, err := os.OpenFile(w.part(s.System()), os.O_RDWR, 0)
	must(w.t, err)
	b := make([]byte, 1)
	_, err = f.ReadAt(b, block*4096)
	must(w.t, err)
	b[0] ^= 1
	_, err = f.WriteAt(b, block*4096)
	must(w.t, errors.Join(err, f.Close()))
}

// At the recovery console the same UKI's contract says what this is, though a
// report of the boot that failed is there.
func TestConsole(t *testing.T) {
	w := newConsole(t)
	if s, err := w.m.Status(t.Context()); err != nil || !s.Console || s.Version != 2 || !strings.Contains(strings.Join(s.Warnings, " "), "type `unlock` first") {
		t.Errorf("status: %+v, %v", s, err)
	}
	for what, run := range map[string]func() error{
		"fetch":    func() error { _, err := w.fetch(); return err },
		"check":    func() error { _, err := w.m.Check(t.Context(), Options{}); return err },
		"rollback": func() error { _, err := w.m.GiveUp(""); return err },
		"channel":  func() error { return w.m.SetChannel("beta") },
	} {
		if err := run(); !errors.Is(err, errLocked) {
			t.Errorf("%s without the root partition: %v", what, err)
		}
	}
	if _, err := w.m.Bless(); err == nil || !strings.Contains(err.Error(), "no system runs") {
		t.Errorf("bless: %v", err)
	}
	w.unlock()
	w.offline = true
	if _, err := w.fetch(); err == nil || !strings.Contains(err.Error(), "type `network` first") || len(w.log) > 0 {
		t.Errorf("without a network: %v, %v", err, w.log)
	}
	if out, err := w.m.Check(t.Context(), Options{From: w.stick()}); err != nil || out.Version != 3 {
		t.Errorf("from a stick: %+v, %v", out, err)
	}
	w.offline = false
	out, err := w.fetch()
	if err != nil || !out.Staged {
		t.Fatalf("%+v, %v", out, err)
	}
	if got := w.read(filepath.Join(consoleState, stagedFile)); !strings.Contains(got, `"3"`) {
		t.Errorf("staged.json is %s", got)
	}
	must(t, w.m.SetChannel("beta"))
	if got := w.read(filepath.Join(w.ownEtc(), "halogen/ota.conf")); got != "Channel=beta\n" {
		t.Errorf("ota.conf is %q", got)
	}
	if s, err := w.m.Settings(); err != nil || s.Channel != "beta" || s.Server != w.server.URL {
		t.Errorf("settings %+v, %v", s, err)
	}
	given, err := w.m.GiveUp("no")
	if err != nil || given.Given != 3 || given.Next != 2 {
		t.Errorf("rollback: %+v, %v", given, err)
	}
}

// The slot that would be the only one is read as a whole, and given up only where
// the other one is no better.
func TestConsoleDamaged(t *testing.T) {
	w := newConsole(t)
	w.unlock()
	w.damage(layout.SlotA, 77)
	if _, err := w.fetch(); err == nil || !strings.Contains(err.Error(), "data block 77") || len(w.log) > 0 {
		t.Errorf("with a corrupt slot: %v, %v", err, w.log)
	}
	esp := w.path("esp/" + bls.Directory)
	must(t, os.Rename(filepath.Join(esp, "test-os_2.efi"), filepath.Join(esp, "test-os_2+0-3.efi")))
	if _, err := w.fetch(); err == nil || !strings.Contains(err.Error(), "only a blessed system installs") || len(w.log) > 0 {
		t.Errorf("from a system that has failed: %v, %v", err, w.log)
	}
	must(t, os.Rename(filepath.Join(esp, "test-os_2+0-3.efi"), filepath.Join(esp, "test-os_2.efi")))
	w.damage(layout.SlotB, 7)
	out, err := w.fetch()
	if err != nil || !out.Staged {
		t.Errorf("with two corrupt slots: %+v, %v", out, err)
	}
}

// What the image and the owner say about updates is not guessed.
func TestConsoleSettings(t *testing.T) {
	w := newConsole(t)
	w.unlock()
	owner := filepath.Join(w.ownEtc(), "halogen/ota.conf")
	w.write("elsewhere", []byte("Channel=beta\n"))
	must(t, os.MkdirAll(filepath.Dir(w.path(owner)), 0o755))
	must(t, os.Symlink(w.path("elsewhere"), w.path(owner)))
	if _, err := w.fetch(); err == nil || !strings.Contains(err.Error(), "is a link") {
		t.Errorf("a link: %v", err)
	}
	must(t, os.Remove(w.path(owner)))
	w.noImage = errors.New("its first block is corrupt")
	if _, err := w.fetch(); !errors.Is(err, errNoImage) {
		t.Errorf("without the system image: %v", err)
	}
	// Then the manifest must be signed, since the image may have wanted that.
	if _, err := w.m.Check(t.Context(), Options{From: w.server.URL}); err == nil || !strings.Contains(err.Error(), "RequireSignedManifest is yes") {
		t.Errorf("an unsigned manifest: %v", err)
	}
	if out, err := w.m.Check(t.Context(), Options{From: w.server.URL + "/" + otatest.Directory + "3/3.tar.gz"}); err != nil || out.Version != 3 {
		t.Errorf("an archive: %+v, %v", out, err)
	}
	w.site.SignManifest()
	if out, err := w.m.Check(t.Context(), Options{From: w.server.URL}); err != nil || out.Version != 3 {
		t.Errorf("a signed manifest: %+v, %v", out, err)
	}
	// Where /etc is a directory of its own.
	must(t, os.MkdirAll(w.path(consoleBound), 0o755))
	must(t, w.m.SetChannel("alpha"))
	if got := w.read(filepath.Join(consoleBound, "halogen/ota.conf")); got != "Channel=alpha\n" {
		t.Errorf("ota.conf is %q", got)
	}
}

// stick is a directory with what the server has.
func (w *world) stick() string {
	w.t.Helper()
	must(w.t, os.CopyFS(w.path("stick"), w.site.Files))
	return w.path("stick")
}

// A stick's device is mounted for as long as it is read, and nothing of it runs. FAULTS
// 80
func TestStickDevice(t *testing.T) {
	testkit.Root(t, "make a device's node")
	w := newConsole(t)
	w.unlock()
	device := w.path("sdb1")
	if err := unix.Mknod(device, unix.S_IFBLK|0o600, int(unix.Mkdev(8, 17))); err != nil {
		t.Skipf("a device's node cannot be made here: %v", err)
	}
	s := &stick{w: w, kind: "ext4"}
	w.m.Hardware.Kernel, w.m.Hardware.Mounts = s, s
	out, err := w.m.Check(t.Context(), Options{From: device})
	if err != nil || out.Version != 3 || out.From != device {
		t.Errorf("%+v, %v", out, err)
	}
	if got := strings.Join(s.log, ", "); got != "mount vfat, mount ext4, unmount" {
		t.Errorf("did %s", got)
	}
	s.kind, s.log = "ntfs", nil
	if _, err := w.m.Check(t.Context(), Options{From: device}); err == nil || !strings.Contains(err.Error(), device) {
		t.Errorf("another file system: %v", err)
	}
	if got := strings.Join(s.log, ", "); got != "mount vfat, mount ext4, mount exfat" {
		t.Errorf("did %s", got)
	}
}

// A stick has a file system of one kind.
type stick struct {
	hw.Kernel
	hw.Mounts
	w    *world
	kind string
	log  []string
}

func (*stick) Load(...string) error { return nil }

func (s *stick) Mount(_, target, kind string, flags uintptr, _ string) error {
	s.log = append(s.log, "mount "+kind)
	const want = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if flags != want || target != s.w.path(stickDirectory) {
		s.w.t.Errorf("mounted on %s with the flags %x", target, flags)
	}
	if kind != s.kind {
		return unix.EINVAL
	}
	return os.CopyFS(target, s.w.site.Files)
}

func (s *stick) Unmount(string) error {
	s.log = append(s.log, "unmount")
	return nil
}

// The console's settings are those of the system that it belongs to, or else of the one
// that ran last, or else those of a release that kept one /etc for all.
func TestConsoleEtc(t *testing.T) {
	w := newConsole(t)
	must(t, os.MkdirAll(w.path(consoleState), 0o755))
	last := strings.Repeat("a", 64)
	w.write(filepath.Join(consoleRoot, upper.Blessed), []byte(strings.Repeat("b", 64)+"\n"+last+"\n"))
	var want []string
	for _, directory := range []string{"overlay/etc/upper", "systems/" + last + "/etc/upper", "systems/" + w.two.Contract.Root().String() + "/etc/upper", "bind/etc"} {
		must(t, os.MkdirAll(w.path(filepath.Join(consoleRoot, directory)), 0o755))
		want = append(want, w.path(filepath.Join(consoleRoot, directory)))
		if got, err := w.m.etc(); err != nil || got != want[len(want)-1] {
			t.Errorf("with %q: %s, %v", want, got, err)
		}
	}
}
