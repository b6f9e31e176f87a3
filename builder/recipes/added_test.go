package recipes_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/boot/testkit"
)

const capability = "SCHILY.xattr.security.capability"

// archiveOf writes members: those without a type are files, whose content is their link name.
func archiveOf(t *testing.T, members ...tar.Header) string {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range members {
		var content string
		if h.Typeflag == 0 {
			h.Typeflag, h.Format, content, h.Linkname = tar.TypeReg, tar.FormatPAX, h.Linkname, ""
			h.Size = int64(len(content))
		}
		h.Name = "./" + h.Name
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "system.tar")
	if err := os.WriteFile(path, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func file(name, content string) tar.Header { return tar.Header{Name: name, Linkname: content} }
func link(name, to string) tar.Header {
	return tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeSymlink}
}
func directory(name string) tar.Header { return tar.Header{Name: name + "/", Typeflag: tar.TypeDir} }

// installed is dpkg's list of packages, each with its version behind a '='.
func installed(packages ...string) tar.Header {
	var text string
	for _, p := range packages {
		name, version, _ := strings.Cut(p, "=")
		text += fmt.Sprintf("Package: %s\nStatus: install ok installed\nArchitecture: amd64\nVersion: %s\nDescription: a\n b\n\n", name, version)
	}
	return file("usr/lib/sysimage/dpkg/status", text)
}

// added runs the script, and returns what the archive has and what was said.
func added(t *testing.T, image, more string) (members map[string]tar.Header, raw []byte, said string) {
	t.Helper()
	testkit.Need(t, "python3")
	out := filepath.Join(t.TempDir(), "out.tar")
	text, err := exec.CommandContext(t.Context(), "./added", image, more, out).CombinedOutput()
	if err != nil {
		return nil, nil, string(text)
	}
	raw, err = os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	members = map[string]tar.Header{}
	for r := tar.NewReader(bytes.NewReader(raw)); ; {
		h, err := r.Next()
		if err == io.EOF {
			return members, raw, string(text)
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			content, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			h.Linkname = string(content)
		}
		members[strings.TrimSuffix(strings.TrimPrefix(h.Name, "./"), "/")] = *h
	}
}

// An extension gets what the packages add below /usr and /opt, what enables their units and
// what Debian's alternatives name; all else is said.
func TestAdded(t *testing.T) {
	had := []tar.Header{
		directory("usr"), file("usr/bin/had", "had"), file("usr/share/cache", "of one"), directory("etc"), file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"), file("etc/group", "root:x:0:\ndisk:x:6:\n"),
	}
	able := file("usr/bin/new", "new")
	able.PAXRecords = map[string]string{capability: "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}
	more := append([]tar.Header{
		link("etc/alternatives/edit", "/usr/bin/new"), directory("etc/new"), file("etc/new/conf", "x"), link("etc/systemd/system/multi-user.target.wants/new.service", "/usr/lib/systemd/system/new.service"),
	}, had...)
	more[6].Linkname, more[8].Linkname = "of all", had[4].Linkname+"new:x:100:101:A daemon:/run/new:/bin/false\nknown:x:102:102::/:\n"
	more[9].Linkname = "root:x:0:\ndisk:x:6:root,new\nnew:x:101:\nknown:x:102:\nshared:x:103:\n"
	theirs := file("opt/new/x", "x")
	theirs.Gid = 103
	more = append(more, able, link("usr/bin/edit", "/etc/alternatives/edit"), file("usr/lib/systemd/system/new.service", "[Service]"),
		tar.Header{Name: "usr/bin/again", Linkname: "./usr/bin/had", Typeflag: tar.TypeLink}, tar.Header{Name: "usr/bin/newer", Linkname: "./usr/bin/new", Typeflag: tar.TypeLink},
		file("usr/lib/sysusers.d/known.conf", "u known -\n"), file("usr/local/bin/x", "x"), directory("opt/new"), theirs, directory("var/lib/new"), file("var/log/dpkg.log", "x"), file("etc/ld.so.cache", "x"))
	image := archiveOf(t, append(had, installed("a=1", "gone=1"))...)
	both := archiveOf(t, append(more, installed("a=1", "new=2"))...)
	members, raw, said := added(t, image, both)
	for name, want := range map[string]string{
		"usr/bin/new": "new", "usr/bin/edit": "/usr/bin/new", "usr/bin/again": "had", "usr/bin/newer": "./usr/bin/new", "opt/new": "", "opt/new/x": "x", "usr/lib/sysusers.d/known.conf": "u known -\n", "usr/lib/sysusers.d/added-new.conf": "u new - \"A daemon\" /run/new /bin/false\nm new disk\n",
		"usr/lib/sysusers.d/added-shared.conf": "g shared -\n", "usr/lib/systemd/system/systemd-sysusers.service.d/added-known.conf": "[Unit]\nConditionNeedsUpdate=\n", "usr/lib/systemd/system/new.service": "[Service]",
		"usr/lib/systemd/system/multi-user.target.wants/new.service": "/usr/lib/systemd/system/new.service",
	} {
		if h, ok := members[name]; !ok || h.Linkname != want {
			t.Errorf("%s is %q (%v); want %q", name, h.Linkname, ok, want)
		}
		delete(members, name)
	}
	if h := members["var/lib/dpkg/status"]; !strings.Contains(h.Linkname, "Package: new\n") {
		t.Errorf("the list of packages is %q", h.Linkname)
	}
	delete(members, "var/lib/dpkg/status")
	if len(members) > 0 {
		t.Errorf("it has %v, too", members)
	}
	if !bytes.Contains(raw, []byte(capability+"=\x01")) {
		t.Error("the capability is lost")
	}
	for _, want := range []string{"left out, ", "\n\t/etc/new/conf\n\t/usr/local/bin/x\n\t/var/lib/new/\n", "changed by the packages, ", "\n\t/usr/share/cache\n",
		"each start makes, if they are not there (sysusers.d(5)):\n\tknown\n\tnew\n\tshared\n", "which get other numbers on the machine: leave them out, or give the accounts numbers in the image:\n\t/opt/new/x\n", "not there beside the new ones: made with other settings, or in conflict with them:\n\tgone\n"} {
		if !strings.Contains(said, want) {
			t.Errorf("it says %q; want %q in it", said, want)
		}
	}
	if strings.Contains(said, "ld.so.cache") || strings.Contains(said, "log") {
		t.Errorf("it says %q", said)
	}
	if _, again, _ := added(t, image, both); !bytes.Equal(raw, again) {
		t.Error("the same input gives another archive")
	}
	if list := testkit.Run(t, "tar", "-tf", archiveFile(t, raw)); !strings.Contains(list, "./usr/bin/again\n") {
		t.Errorf("tar lists %q", list)
	}
	if _, _, said := added(t, image, archiveOf(t, append(more, installed("a=2"))...)); !strings.Contains(said, "a is 1 in the image, and 2 beside the new packages") {
		t.Errorf("of another version it says %q", said)
	}
	if _, _, said := added(t, image, image); !strings.Contains(said, "add nothing below /usr or /opt") {
		t.Errorf("of nothing it says %q", said)
	}
}

func archiveFile(t *testing.T, raw []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "archive.tar")
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
