package image

import (
	"bytes"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/testkit"
	"halogenos.internal/builder/rootfs/rootfstest"
)

// What has a name like depmod's files, and is none, is the extension's as any other file.
func TestNamesLikeDepmods(t *testing.T) {
	o := withExtensions(t, map[string]rootfstest.Files{"vpn": {
		moduleDir + "modules.extra/a.ko": driver(t), moduleDir + "modules.b.ko": driver(t), moduleDir + "modules.order": []byte("x\n"),
	}})
	mustBuild(t, o)
	list := listed(t, o.Out)
	if !list[0].Modules {
		t.Error("the UKI knows of no modules")
	}
	root := unpackExtension(t, o.Out, &list[0])
	for name, want := range map[string]string{"modules.dep": "modules.b.ko:\nmodules.extra/a.ko:\n", "modules.extra/a.ko": string(driver(t)), "modules.b.ko": string(driver(t))} {
		if got := string(read(t, root, moduleDir+name)); got != want {
			t.Errorf("%s is %.80q, want %.80q", name, got, want)
		}
	}
	if names := listing(t, root+"/"+moduleDir); strings.Contains(strings.Join(names, " "), "modules.order") {
		t.Errorf("depmod's files of the source are kept: %q", names)
	}
	o = withExtensions(t, map[string]rootfstest.Files{"a": {moduleDir + "extra/modules.list": []byte("a")}, "b": {moduleDir + "extra/modules.list": []byte("b")}})
	if _, err := Build(t.Context(), o); err == nil || !strings.Contains(err.Error(), "extra/modules.list is in the extension a, too") {
		t.Errorf("the same file in two extensions: %v", err)
	}
}

// What the source says in its extension-release is kept as it is written there, and a shell reads
// the same of it.
func TestReleaseFileIsKept(t *testing.T) {
	const own = "ID='_any'\nARCHITECTURE=\"x86-64\"\nSYSEXT_SCOPE=system\nA=\"say \\\"no\\\" to \\$HOME\"\nB='one'\"'\"'s'\n"
	o := withExtensions(t, map[string]rootfstest.Files{"vpn": {releaseFileName("vpn"): []byte(own), "usr/lib/vpn/x": nil}})
	mustBuild(t, o)
	list := listed(t, o.Out)
	file := filepath.Join(unpackExtension(t, o.Out, &list[0]), releaseFileName("vpn"))
	said := testkit.Run(t, "sh", "-c", `. "$1" && echo "$ID|$VERSION_ID|$ARCHITECTURE|$SYSEXT_SCOPE|$A|$B"`, "sh", file)
	if want := "test|13 (of 1)|x86-64|system|say \"no\" to $HOME|one's\n"; said != want {
		t.Errorf("the shell reads %q, want %q", said, want)
	}
}

// What of a source does not get into the extension, and which rights its programs have, is said as
// of the image.
func TestWhatIsSaidOfExtensions(t *testing.T) {
	var said bytes.Buffer
	o := withExtensions(t, map[string]rootfstest.Files{"vpn": vpn()})
	o.Progress = NewProgress(&said)
	dir := o.Config.Extensions[0].Source
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "usr/bin/s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	want := []string{"sockets of extension vpn are left out: 1, such as /usr/bin/s\n", "files of extension vpn dated before 1970, such as /usr/lib/same/two, get the date 1970-01-01\n"}
	old := time.Unix(-1000, 0)
	if err := errors.Join(l.Close(), os.Chtimes(filepath.Join(dir, "usr/lib/same/two"), old, old)); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 { // nobody else can set it
		capable := []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")
		if err := unix.Setxattr(filepath.Join(dir, "usr/bin/vpn"), "security.capability", capable, 0); err != nil {
			t.Fatal(err)
		}
		want = append(want, "(set-ID or capabilities), such as /usr/bin/vpn\n")
	}
	mustBuild(t, o)
	for _, w := range want {
		if !strings.Contains(said.String(), w) {
			t.Errorf("%q is not said:\n%s", w, &said)
		}
	}
}
