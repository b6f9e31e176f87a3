package enroll

import (
	"bytes"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/testkit"
)

func tempESP(t *testing.T, files map[string][]byte) MountedDir {
	t.Helper()
	root := t.TempDir()
	for name, data := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return MountedDir{root}
}

// A directory that is not an efivarfs says nothing of the firmware's room.
func TestRoomOfNoFirmware(t *testing.T) {
	for _, root := range []string{t.TempDir(), filepath.Join(t.TempDir(), "absent")} {
		if bytes, known := (EFIVarFS{root}).Room(); known {
			t.Errorf("%s has room for %d bytes", root, bytes)
		}
	}
}

func TestMountedDirSigns(t *testing.T) {
	s := toySigner{"machine"}
	d := tempESP(t, installed())
	results, err := SignAll(d, State{SetupMode: On}, s, anything)
	if err != nil || len(results) != 4 {
		t.Fatalf("results %v, %v", results, err)
	}
	if err := CheckSigned(d, s, anything, nil); err != nil {
		t.Error(err)
	}
	if err := Replace(d, "EFI/Linux/example_1+3.efi", []byte("signed"), "EFI/Linux/example_1.efi"); err != nil {
		t.Error(err)
	}
	if names, err := EFIFiles(d); err != nil || len(names) != 4 || names[0] != "EFI/Linux/example_1+3.efi" {
		t.Errorf("files %v, %v", names, err)
	}
	if left, err := filepath.Glob(filepath.Join(d.Root, "EFI/*/*"+noteSuffix)); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestMountedDirRefuses(t *testing.T) {
	d := tempESP(t, installed())
	for _, name := range []string{"../x", "/etc/passwd", "EFI/../../x"} {
		if _, err := d.Read(name); err == nil {
			t.Errorf("%s was read", name)
		}
		if err := d.Create(name, nil); err == nil {
			t.Errorf("%s was made", name)
		}
		if err := d.Remove(name); err == nil {
			t.Errorf("%s was removed", name)
		}
		if _, err := d.Open(name); err == nil {
			t.Errorf("%s was opened", name)
		}
		if _, err := d.List(name); err == nil {
			t.Errorf("%s was listed", name)
		}
	}
	if err := d.Create(layout.RemovableManager, nil); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a file was made over another: %v", err)
	}
	if _, err := d.Read("EFI"); err == nil {
		t.Error("a directory was read")
	}
	if err := os.Truncate(filepath.Join(d.Root, secondCopy), MaxEFIFile+1); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Read(secondCopy); err == nil {
		t.Error("an oversized file was read")
	}
}

// What the design relies on: room is reserved without the length changing.
func TestReserveKeepsTheLength(t *testing.T) {
	d := tempESP(t, installed())
	f, err := d.Open(layout.RemovableManager)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for range 2 {
		if err := errors.Join(f.Reserve(1<<20), f.Sync()); err != nil {
			t.Fatal(err)
		}
		if b, err := d.Read(layout.RemovableManager); err != nil || !bytes.Equal(b, installed()[layout.RemovableManager]) {
			t.Errorf("%d bytes, %v", len(b), err)
		}
	}
}

// The real signer signs the real boot manager in place, a single sector of the
// headers changes, and sbverify agrees.
func TestRealBootManager(t *testing.T) {
	const manager = "/usr/lib/systemd/boot/efi/systemd-bootx64.efi"
	image, err := os.ReadFile(manager)
	if err != nil {
		testkit.Skip(t, "systemd-boot-efi is not installed: "+err.Error())
	}
	testkit.Need(t, "sbverify")
	k, other := testSets(t)
	dir := tempESP(t, map[string][]byte{layout.RemovableManager: image, secondCopy: image, "EFI/Linux/a_1.efi": image})
	for _, set := range []*secureboot.KeySet{k, other} {
		s := DBSigner{Pair: set.DB, Time: set.DB.Certificate.NotBefore}
		if err := CheckSigned(dir, s, anything, nil); err == nil {
			t.Fatal("not signed yet, and it passed")
		}
		if _, err := SignAll(dir, State{SetupMode: On}, s, anything); err != nil {
			t.Fatal(err)
		}
		if err := CheckSigned(dir, s, anything, nil); err != nil {
			t.Error(err)
		}
		crt := filepath.Join(t.TempDir(), "db.crt")
		if err := os.WriteFile(crt, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: set.DB.Certificate.Raw}), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{layout.RemovableManager, secondCopy} {
			testkit.Run(t, "sbverify", "--cert", crt, filepath.Join(dir.Root, name))
		}
	}
	s := DBSigner{Pair: k.DB, Time: buildDate}
	signed, err := s.Sign(image)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := changedSector(image, signed); err != nil {
		t.Error(err)
	}
	if _, err := (DBSigner{Pair: secureboot.Pair{Certificate: k.DB.Certificate}, Time: buildDate}).Sign(image); err == nil {
		t.Error("a wiped key signs")
	}
}

func TestEFIVarFS(t *testing.T) {
	e := EFIVarFS{t.TempDir()}
	v := secureboot.DB
	if _, _, err := e.Read(v.Name, v.GUID); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("absent: %v", err)
	}
	if err := e.WriteAuthenticated(v.Name, v.GUID, secureboot.KeyAttributes, []byte("payload")); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(e.Root, "db-d719b2cb-3d3a-4596-a3bc-dad00e67656f")
	if b, err := os.ReadFile(path); err != nil || string(b) != "\x27\x00\x00\x00payload" {
		t.Errorf("file %q, %v", b, err)
	}
	attributes, data, err := e.Read(v.Name, v.GUID)
	if err != nil || attributes != secureboot.KeyAttributes || string(data) != "payload" {
		t.Errorf("%#x, %q, %v", attributes, data, err)
	}
	for name, b := range map[string][]byte{"short": []byte("abc"), "huge": make([]byte, secureboot.MaxDatabase+5)} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := e.Read(v.Name, v.GUID); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// efivarfs keeps an empty file where a first write was refused.
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := e.Read(v.Name, v.GUID); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("empty: %v", err)
	}
	missing := EFIVarFS{filepath.Join(e.Root, "none")}
	if err := missing.WriteAuthenticated(v.Name, v.GUID, 7, nil); err == nil || !strings.Contains(err.Error(), "db") {
		t.Errorf("no efivarfs: %v", err)
	}
	s, err := Observe(missing)
	if err != nil || s.SetupMode != Absent {
		t.Errorf("no efivarfs: %+v, %v", s, err)
	}
}

// efivarfs marks its keys immutable; ext4 knows the same flag.
func TestImmutableVariable(t *testing.T) {
	e := EFIVarFS{t.TempDir()}
	v := secureboot.KEK
	path := e.path(v.Name, v.GUID)
	if err := e.WriteAuthenticated(v.Name, v.GUID, secureboot.KeyAttributes, []byte("old")); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags|immutableFlag)
	}
	if err != nil {
		t.Skipf("the immutable flag needs root and a file system that has it: %v", err)
	}
	t.Cleanup(func() { _ = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags) })
	if _, err := os.OpenFile(path, os.O_WRONLY, 0); err == nil {
		t.Fatal("the flag does not protect the file, so this test shows nothing")
	}
	if err := e.WriteAuthenticated(v.Name, v.GUID, secureboot.KeyAttributes, []byte("new")); err != nil {
		t.Fatal(err)
	}
	if _, data, err := e.Read(v.Name, v.GUID); err != nil || string(data) != "new" {
		t.Errorf("%q, %v", data, err)
	}
	if now, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS); err != nil || now&immutableFlag == 0 {
		t.Errorf("flags %#x afterwards, %v", now, err)
	}
}

// A variable behind one with a long name is not listed, and the kernel obeys it all the
// same: what efivarfs says when it is asked by name counts. What was made to ask is gone
// afterwards, and nothing is made for others. FAULTS 85
func TestUnlistedVariable(t *testing.T) {
	root := t.TempDir()
	e := EFIVarFS{root}
	mok := secureboot.UnmeasuredVariables[0]
	path := e.path(mok.Name, mok.Vendor)
	hidden := filepath.Join(t.TempDir(), "hidden")
	if err := os.WriteFile(hidden, []byte{7, 0, 0, 0, 'k', 'e', 'y'}, 0o600); err != nil {
		t.Fatal(err)
	}
	var flags int
	asks := func(to string, fails error) func(string, int) (int, error) {
		return func(name string, with int) (int, error) {
			if flags = with; name != path {
				t.Errorf("it opens %s", name)
			}
			if fails != nil {
				return -1, fails
			}
			return open(to, with)
		}
	}
	attributes, data, err := unlisted(path, mok.Name, asks(hidden, nil))
	if attributes != 7 || string(data) != "key" || err != nil || flags&unix.O_CREAT == 0 {
		t.Errorf("it reads %d %q, %v, with the flags %#x", attributes, data, err, flags)
	}
	for _, odd := range []error{unix.EROFS, unix.EIO, unix.EPERM} {
		if _, _, err := unlisted(path, mok.Name, asks("", odd)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("firmware that answers with %v: %v", odd, err)
		}
	}
	watch, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(watch)
	if _, err := unix.InotifyAddWatch(watch, root, unix.IN_CREATE); err != nil {
		t.Fatal(err)
	}
	created := func() bool {
		n, err := unix.Read(watch, make([]byte, 4096))
		return err == nil && n > 0
	}
	for _, c := range []struct {
		v    secureboot.Variable
		asks bool
	}{{secureboot.Variable{Name: mok.Name, GUID: mok.Vendor}, true}, {secureboot.DBDefault, false}} {
		if _, _, err := e.Read(c.v.Name, c.v.GUID); !errors.Is(err, fs.ErrNotExist) || created() != c.asks {
			t.Errorf("%s: %v; asked for by name, want %v", c.v, err, c.asks)
		}
		if left, err := os.ReadDir(root); err != nil || len(left) > 0 {
			t.Errorf("%s leaves %v (%v)", c.v, left, err)
		}
	}
}
