package hw

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/testkit"
)

// The running system writes to the directory in which extensions are opened. FAULTS 12, 80
func TestOpenImage(t *testing.T) {
	root := tree(t, map[string]string{"a/good": "12345678", "a/short": "1234567", "a/long": "123456789", "a/link": "->good", "b": "->a", "a/out": "->../../outside"})
	for name, make := range map[string]func(string) error{
		"a/pipe":      func(p string) error { return unix.Mkfifo(p, 0o600) },
		"a/directory": func(p string) error { return os.Mkdir(p, 0o700) },
		"a/socket":    func(p string) error { return unix.Mknod(p, unix.S_IFSOCK|0o600, 0) },
	} {
		if err := make(filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(root, "a/good"), 0o400); err != nil {
		t.Fatal(err)
	}
	store := LinuxStore{Root: root}
	image, err := store.OpenImage("a/good", 8)
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	// What takes its name later is not read.
	if err := os.Rename(filepath.Join(root, "a/long"), filepath.Join(root, "a/good")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4)
	if _, err := image.ReadAt(b, 4); err != nil || string(b) != "5678" {
		t.Errorf("%q, %v", b, err)
	}
	for name, want := range map[string]error{
		"a/none": fs.ErrNotExist, "none/none": fs.ErrNotExist, "a/short": ErrUnfit, "a/good": ErrUnfit, "a/link": ErrUnfit, "b/short": ErrUnfit, "a/out": ErrUnfit,
		"a/pipe": ErrUnfit, "a/directory": ErrUnfit, "a/socket": ErrUnfit, "a/short/x": ErrUnfit, "../x": unix.EXDEV,
	} {
		if _, err := store.OpenImage(name, 8); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
}

// The block device has the file's bytes, cannot be written, and goes with the last that has
// it open.
func TestAttach(t *testing.T) {
	testkit.Root(t, "make a loop device")
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		testkit.Skip(t, "the kernel has no loop devices")
	}
	content := bytes.Repeat([]byte("halogen."), 1024)
	root := tree(t, map[string]string{"image": string(content)})
	image, err := LinuxStore{Root: root}.OpenImage("image", int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	node, err := image.Attach()
	if err != nil {
		image.Close()
		t.Fatal(err)
	}
	holder, err := os.Open(node) // as dm-verity has it
	if err != nil {
		t.Fatal(err)
	}
	if err := image.Close(); err != nil {
		t.Error(err)
	}
	have := make([]byte, len(content))
	if _, err := holder.ReadAt(have, 0); err != nil || !bytes.Equal(have, content) {
		t.Errorf("the device has other bytes than the file: %v", err)
	}
	if w, err := os.OpenFile(node, os.O_WRONLY, 0); err == nil {
		if _, err := w.WriteAt([]byte{1}, 0); err == nil {
			t.Error("it can be written")
		}
		w.Close()
	}
	if err := holder.Close(); err != nil {
		t.Error(err)
	}
	backing := filepath.Join("/sys/block", filepath.Base(node), "loop/backing_file")
	for range 50 {
		if text, err := os.ReadFile(backing); err != nil || !bytes.Contains(text, []byte(root)) {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Errorf("%s still has the file when nobody has it open", node)
}
