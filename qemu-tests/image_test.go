package qemutests

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"halogenos.internal/boot/release"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/boot/uki"
	"halogenos.internal/boot/verity"
	"halogenos.internal/builder/inspect"
)

// The images under test that tools of others look at.
var judged = []string{"testos-1", "debian-1"}

// TestImageTree: veritysetup accepts the tree that a machine generates over the
// system image, by the root hash of release.json.
func TestImageTree(t *testing.T) {
	t.Parallel()
	for _, image := range judged {
		t.Run(image, func(t *testing.T) {
			t.Parallel()
			testkit.Need(t, "veritysetup")
			path, r := imageFile(t, image, release.ImageFile), imageRelease(t, image)
			data, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer data.Close()
			tree, err := os.Create(filepath.Join(t.TempDir(), "tree"))
			if err != nil {
				t.Fatal(err)
			}
			defer tree.Close()
			root, err := verity.Generate(t.Context(), data, verityParams(r), tree, nil)
			if err != nil {
				t.Fatal(err)
			}
			want, err := r.RootHash.MarshalText()
			if err != nil || root.String() != string(want) {
				t.Errorf("root hash %s; release.json has %s (%v)", root, want, err)
			}
			testkit.Run(t, "veritysetup", "verify", path, tree.Name(), string(want))
			// A judge that accepts everything is none.
			root[0] ^= 1
			if out, err := exec.Command("veritysetup", "verify", path, tree.Name(), root.String()).CombinedOutput(); err == nil {
				t.Errorf("veritysetup accepts another root hash: %s", out)
			}
		})
	}
}

// TestImageDisk: the partition table, the ESP and the system image are without fault
// to the tools of others.
func TestImageDisk(t *testing.T) {
	t.Parallel()
	for _, image := range judged {
		t.Run(image, func(t *testing.T) {
			t.Parallel()
			for _, tool := range []string{"sgdisk", "fsck.vfat", "fsck.erofs"} {
				testkit.Need(t, tool)
			}
			d := openDisk(t, Image(t, image), os.O_RDONLY)
			d.checkTable()
			d.checkESP()
			testkit.Run(t, "fsck.erofs", "--extract", imageFile(t, image, release.ImageFile))
			if n := len(d.table.Partitions); n != 2 {
				t.Errorf("%d partitions; a manual installation makes the ESP and one more", n)
			}
		})
	}
}

// sections are the sections that ukify inspect describes.
type sections map[string]struct {
	Size   int
	SHA256 string
	Text   string
}

// TestImageUKI: ukify and systemd-measure of the stub's own release see in the UKI
// what `halogen inspect` sees, and measure the same.
func TestImageUKI(t *testing.T) {
	t.Parallel()
	for _, image := range judged {
		t.Run(image, func(t *testing.T) {
			t.Parallel()
			tree := testkit.Tools13(t)
			path, r := imageFile(t, image, release.UKIFile), imageRelease(t, image)
			ours, err := inspect.File(path)
			if err != nil {
				t.Fatal(err)
			}
			file, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			compareSections(t, tree, file, ours.EFI)
			want := []string{ours.EFI.PCR11.Stub.String(), ours.EFI.PCR11.EnterInitrd.String(), ours.EFI.PCR11.LeaveInitrd.String()}
			measured := measure(t, tree, file)
			if strings.Join(measured, " ") != strings.Join(want, " ") {
				t.Errorf("systemd-measure comes to %q, halogen inspect to %q", measured, want)
			}
			if text, err := r.PCR11.MarshalText(); err != nil || string(text) != want[0] {
				t.Errorf("PCR 11 is %s in release.json (%v), %s in the UKI", text, err, want[0])
			}
		})
	}
}

func compareSections(t *testing.T, tree *testkit.Tree, file []byte, ours *inspect.EFI) {
	t.Helper()
	var theirs sections
	said := tree.Run("ukify", "--json=short", "--all", "inspect", tree.Put("uki.efi", file))
	if err := json.Unmarshal(said, &theirs); err != nil {
		t.Fatalf("ukify inspect: %v: %.300s", err, said)
	}
	if len(theirs) != len(ours.Sections) {
		t.Errorf("ukify sees %d sections, we see %d", len(theirs), len(ours.Sections))
	}
	for _, s := range ours.Sections {
		sum, err := s.SHA256.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		if their := theirs[s.Name]; their.Size != s.Size || their.SHA256 != string(sum) {
			t.Errorf("section %s: ukify sees %d bytes %s, we see %d bytes %s", s.Name, their.Size, their.SHA256, s.Size, sum)
		}
	}
	if text := theirs[".cmdline"].Text; strings.TrimRight(text, "\x00") != ours.Cmdline {
		t.Errorf("command line: ukify sees %q, we see %q", text, ours.Cmdline)
	}
}

// measure has systemd-measure compute PCR 11 before, in and after the initramfs.
func measure(t *testing.T, tree *testkit.Tree, file []byte) (values []string) {
	t.Helper()
	img, err := uki.Parse(file)
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"calculate", "--bank=sha256", "--phase=", "--phase=enter-initrd", "--phase=enter-initrd:leave-initrd"}
	for _, s := range img.Sections() {
		switch s.Name {
		case ".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat", ".pcrpkey":
			args = append(args, "--"+s.Name[1:]+"="+tree.Put(s.Name[1:], s.Data))
		}
	}
	said := string(tree.Run("/usr/lib/systemd/systemd-measure", args...))
	for _, m := range regexp.MustCompile(`11:sha256=([0-9a-f]{64})`).FindAllStringSubmatch(said, -1) {
		values = append(values, m[1])
	}
	return values
}
