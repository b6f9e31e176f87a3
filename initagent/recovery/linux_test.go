package recovery

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/policy"
	"halogenos.internal/initagent/hw"
)

func TestKeyring(t *testing.T) {
	secret, err := policy.NewSecret(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	k := Keyring{Description: fmt.Sprintf("halogen:test-%d", os.Getpid())}
	secret.Guard()
	o := &Opened{Secret: secret, VolumeKey: bytes.Repeat([]byte{7}, 64)}
	if err := k.Keep(o); errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		t.Skipf("there is no keyring here: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		again, err := k.Kept()
		if err != nil {
			t.Fatal(err)
		}
		if !again.Secret.Equal(secret) || !again.Secret.Guarded() || !bytes.Equal(again.VolumeKey, o.VolumeKey) {
			t.Error("something else was kept")
		}
		again.Wipe()
	}
	for range 2 {
		if err := k.Forget(); err != nil {
			t.Error(err)
		}
	}
	if _, err := k.Kept(); !errors.Is(err, ErrLocked) {
		t.Errorf("after Forget: %v", err)
	}
}

// The top of a btrfs is mounted, also read-only, no matter which subvolume is its default.
func TestMounting(t *testing.T) {
	for _, c := range []struct {
		fileSystem string
		readOnly   bool
		want       string
	}{{"ext4", false, ""}, {"ext4", true, "norecovery"}, {"btrfs", false, "subvolid=5"}, {"btrfs", true, "subvolid=5,norecovery"}} {
		flags, options := mounting(hw.Disk{ReadOnly: c.readOnly}, c.fileSystem)
		if options != c.want || (flags&unix.MS_RDONLY != 0) != c.readOnly {
			t.Errorf("%+v: options %q, flags %#x", c, options, flags)
		}
	}
}
