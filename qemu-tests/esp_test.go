package qemutests

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/builder/vm"
)

// mtools runs one of the mtools on the ESP of a machine that is off.
func mtools(t testing.TB, s vm.State, tool string, args ...string) string {
	t.Helper()
	offset, _ := openDisk(t, s.Disk(), os.O_RDONLY).partition(layout.ESP)
	all := append([]string{"-i", fmt.Sprintf("%s@@%d", s.Disk(), offset)}, args...)
	cmd := exec.Command(testkit.Need(t, tool), all...)
	cmd.Env = append(os.Environ(), "MTOOLS_SKIP_CHECK=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v: %s", tool, all, err, out)
	}
	return string(out)
}

// espWrite puts a file on the ESP, with its directories.
func espWrite(t testing.TB, s vm.State, name string, content []byte) {
	t.Helper()
	local := filepath.Join(t.TempDir(), "content")
	if err := os.WriteFile(local, content, 0o644); err != nil {
		t.Fatal(err)
	}
	var missing []string
	for dir := path.Dir(name); dir != "." && !espHas(t, s, dir); dir = path.Dir(dir) {
		missing = append(missing, "::"+dir)
	}
	slices.Reverse(missing)
	for _, dir := range missing {
		mtools(t, s, "mmd", dir)
	}
	mtools(t, s, "mcopy", "-D", "o", local, "::"+name)
}

// espHas reports whether the ESP has a directory.
func espHas(t testing.TB, s vm.State, dir string) bool {
	t.Helper()
	all := strings.Split(mtools(t, s, "mdir", "-/", "-b", "::"), "\n")
	return slices.ContainsFunc(all, func(name string) bool {
		return strings.HasPrefix(strings.TrimPrefix(name, "::/")+"/", dir+"/")
	})
}

// espRead copies a file from the ESP.
func espRead(t testing.TB, s vm.State, name, local string) {
	t.Helper()
	mtools(t, s, "mcopy", "-n", "::"+name, local)
}

// espFiles lists the files of the ESP whose name ends so.
func espFiles(t testing.TB, s vm.State, suffix string) []string {
	t.Helper()
	var files []string
	for line := range strings.Lines(mtools(t, s, "mdir", "-/", "-b", "::")) {
		name := strings.TrimPrefix(strings.TrimSpace(line), "::/")
		if strings.HasSuffix(strings.ToLower(name), suffix) {
			files = append(files, name)
		}
	}
	slices.Sort(files)
	return files
}

// bootFilesDigest hashes what the firmware and the boot manager start.
func bootFilesDigest(t testing.TB, s vm.State) string {
	t.Helper()
	h := sha256.New()
	for _, name := range espFiles(t, s, ".efi") {
		local := filepath.Join(t.TempDir(), "file.efi")
		espRead(t, s, name, local)
		b, err := os.ReadFile(local)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(h, "%s %d\n", name, len(b))
		h.Write(b)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// theUKI is the name of the only UKI.
func theUKI(t testing.TB, s vm.State) string {
	t.Helper()
	files := slices.DeleteFunc(espFiles(t, s, ".efi"), func(name string) bool { return !strings.HasPrefix(name, "EFI/Linux/") })
	if len(files) != 1 {
		t.Fatalf("UKIs on the ESP: %q; want one", files)
	}
	return files[0]
}
