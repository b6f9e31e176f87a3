package image

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/builder/rootfs/rootfstest"
)

// The stick is judged by sgdisk and fsck.erofs, and is the same each time.
func TestStick(t *testing.T) {
	for _, tool := range []string{"sgdisk", "fsck.erofs", "mkfs.erofs"} {
		testkit.Need(t, tool)
	}
	o := options(t, rootfstest.Minimal().Write(t, false))
	mustBuild(t, o)
	b := o.Out
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, []byte("program"), 0o700); err != nil {
		t.Fatal(err)
	}
	var first []byte
	for range 2 {
		if err := Stick(t.Context(), b, program); err != nil {
			t.Fatal(err)
		}
		stick, err := os.ReadFile(filepath.Join(b, StickFile))
		if err != nil {
			t.Fatal(err)
		}
		if first != nil && !bytes.Equal(stick, first) {
			t.Error("a second stick is another")
		}
		first = stick
	}
	table, _, err := gpt.Read(bytes.NewReader(first), uint64(len(first)/sectorSize), sectorSize)
	if err != nil || !layout.IsInstaller(table) {
		t.Fatalf("table %+v, %v", table, err)
	}
	output(t, "sgdisk", "--verify", filepath.Join(b, StickFile))
	at, size := table.Bytes(table.Partitions[1])
	payload, directory := filepath.Join(t.TempDir(), "payload"), filepath.Join(t.TempDir(), "out")
	if err := os.WriteFile(payload, first[at:at+size], 0o600); err != nil {
		t.Fatal(err)
	}
	output(t, "fsck.erofs", "--extract="+directory, payload)
	for name, same := range map[string]string{"halogen": program, "release/" + release.UKIFile: filepath.Join(b, release.UKIFile), "release/" + release.ImageFile: filepath.Join(b, release.ImageFile)} {
		have, err := os.ReadFile(filepath.Join(directory, name))
		if err != nil {
			t.Fatal(err)
		}
		if want, err := os.ReadFile(same); err != nil || !bytes.Equal(have, want) {
			t.Errorf("%s on the stick is another (%v)", name, err)
		}
	}
	if info, err := os.Stat(filepath.Join(directory, "halogen")); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("the program on the stick: %v, %v", info, err)
	}
}

func output(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}
