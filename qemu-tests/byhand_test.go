package qemutests

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// byHand returns the commands of builder/install/BY-HAND.md as they stand there. The first
// block only sets variables, each to an example: those are for the person to name.
func byHand(t testing.TB) (variables []string, script string) {
	t.Helper()
	text, err := os.ReadFile("../builder/install/BY-HAND.md")
	must(t, err)
	var blocks []string
	within := false
	for line := range strings.Lines(string(text)) {
		command, ok := strings.CutPrefix(line, "    ")
		if ok && !within {
			blocks = append(blocks, "")
		}
		if within = ok; ok {
			blocks[len(blocks)-1] += command
		}
	}
	if len(blocks) < 2 {
		t.Fatalf("builder/install/BY-HAND.md has %d blocks of commands; want one that sets variables, and those that install", len(blocks))
	}
	for _, match := range regexp.MustCompile(`(?m)(?:^| )([A-Z]+)=\S`).FindAllStringSubmatch(blocks[0], -1) {
		variables = append(variables, match[1])
	}
	slices.Sort(variables)
	return slices.Compact(variables), strings.Join(blocks[1:], "")
}

// TestByHand: the steps use the tools that the text names and no others, and the
// variables that it sets.
func TestByHand(t *testing.T) {
	variables, script := byHand(t)
	tools := []string{"sgdisk", "mkfs.vfat", "mount", "mkdir", "cp", "umount", "dd", "until", "if", "echo"}
	for line := range strings.Lines(script) {
		if word, _, _ := strings.Cut(line, " "); !slices.Contains(tools, word) {
			t.Errorf("%q: none of %q", line, tools)
		}
	}
	for _, match := range regexp.MustCompile(`\$\{?([A-Za-z_]+)`).FindAllStringSubmatch(script, -1) {
		if !slices.Contains(variables, match[1]) {
			t.Errorf("the steps use %s, which is not among %q", match[1], variables)
		}
	}
}

// FAULTS 112 (M13): on a busy machine the kernel has the old table for a while, and
// the partitions' nodes come late. Nothing is written before, and never to what is
// no block device.
func TestByHandBusy(t *testing.T) {
	_, script := byHand(t)
	for _, tt := range []struct {
		name, blockdev, sleep, want string
		good                        bool
	}{
		{"at once", `touch "$ESP" "$SYSTEM"`, `exit 1`, "sgdisk sgdisk sgdisk udevadm blockdev udevadm mkfs.vfat mount mkdir cp cp umount dd", true},
		{
			"late", `[ $(grep -c ^blockdev "$NOTES") -gt 3 ]`, `[ $(grep -c ^sleep "$NOTES") -lt 6 ] || touch "$ESP" "$SYSTEM"`,
			"sgdisk sgdisk sgdisk udevadm blockdev sleep blockdev sleep blockdev sleep blockdev udevadm sleep sleep sleep mkfs.vfat mount mkdir cp cp umount dd", true,
		},
		{"never read", `exit 1`, `[ $(grep -c ^sleep "$NOTES") -lt 3 ]`, "sgdisk sgdisk sgdisk udevadm blockdev sleep blockdev sleep blockdev sleep", false},
		{"no node", `touch "$ESP"`, `[ $(grep -c ^sleep "$NOTES") -lt 3 ]`, "sgdisk sgdisk sgdisk udevadm blockdev udevadm sleep sleep sleep", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			notes := filepath.Join(dir, "notes")
			fake := func(name, does string) {
				must(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\nPATH=/usr/bin:/bin\necho "+name+` >>"$NOTES"`+"\n"+does+"\n"), 0o755))
			}
			for _, name := range []string{"sgdisk", "mkfs.vfat", "mount", "mkdir", "cp", "umount", "dd", "udevadm"} {
				fake(name, "")
			}
			fake("blockdev", tt.blockdev)
			fake("sleep", tt.sleep)
			// Nodes cannot be made without rights: files stand for them.
			cmd := exec.Command("/bin/sh", "-e", "-c", `test() { [ "$1" = -b ] && [ -e "$2" ]; }`+"\n"+script)
			cmd.Env = []string{"PATH=" + dir, "NOTES=" + notes, "DISK=" + filepath.Join(dir, "x"), "ESP=" + filepath.Join(dir, "x1"), "SYSTEM=" + filepath.Join(dir, "x2"), "RELEASE=.", "NAME=halogen_1", "SLOT=2G"}
			said, err := cmd.CombinedOutput()
			if good := err == nil && strings.HasSuffix(string(said), "installed\n"); good != tt.good {
				t.Errorf("worked: %v, want %v: %v\n%s", good, tt.good, err, said)
			}
			ran, err := os.ReadFile(notes)
			must(t, err)
			if got := strings.Join(strings.Fields(string(ran)), " "); got != tt.want {
				t.Errorf("it ran\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
	// The tools themselves make no file in place of a partition that has vanished.
	dir := t.TempDir()
	for line := range strings.Lines(script) {
		if !strings.HasPrefix(line, "dd ") && !strings.HasPrefix(line, "mkfs.vfat ") {
			continue
		}
		must(t, os.WriteFile(filepath.Join(dir, "system.erofs"), []byte("image"), 0o600))
		cmd := exec.Command("/bin/sh", "-c", strings.TrimSuffix(strings.TrimSpace(line), "&&"))
		cmd.Env = append(os.Environ(), "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "ESP="+filepath.Join(dir, "esp"), "SYSTEM="+filepath.Join(dir, "system"), "RELEASE="+dir)
		if said, err := cmd.CombinedOutput(); err == nil {
			t.Errorf("%s worked without a partition: %s", line, said)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("there are %v, %v; want the image alone", left, err)
	}
}
