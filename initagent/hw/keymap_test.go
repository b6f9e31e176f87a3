package hw

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/keyboard"
)

// What the kernel gets is a struct kbentry, and a machine without a screen has no keys to
// set. That the kernel takes it is seen in a virtual machine.
func TestSetKeymap(t *testing.T) {
	if size, at := unsafe.Sizeof(keyboard.Entry{}), unsafe.Offsetof(keyboard.Entry{}.Value); size != 4 || at != 2 {
		t.Errorf("an entry has %d bytes, its value at %d; want 4 and 2", size, at)
	}
	k, err := keyboard.FindKeymap("de")
	if err != nil {
		t.Fatal(err)
	}
	if err := SetKeymap(filepath.Join(t.TempDir(), "tty0"), k.Entries()); err != nil {
		t.Errorf("without a screen: %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := SetKeymap(file, k.Entries()); !errors.Is(err, unix.ENOTTY) {
		t.Errorf("of a file: %v", err)
	}
	restore, err := SwapKeymap(filepath.Join(t.TempDir(), "tty0"), k.Entries())
	if err != nil || restore() != nil {
		t.Errorf("without a screen: %v", err)
	}
	if _, err := SwapKeymap(file, k.Entries()); !errors.Is(err, unix.ENOTTY) {
		t.Errorf("of a file: %v", err)
	}
}
