package sbom

import (
	"slices"
	"strings"
	"testing"
)

// What apk and pacman write, as their own images have it.
func TestPackagesOfOthers(t *testing.T) {
	for _, c := range []struct {
		name  string
		files memory
		want  string
	}{
		{"apk", memory{
			"etc/os-release":       "ID=alpine\nVERSION_ID=3.20.3\n",
			"lib/apk/db/installed": "C:Q1eVpkasfqZAukAXFYbgwt4xAMZWU=\nP:musl\nV:1.2.5-r0\nA:x86_64\nS:407278\nT:the musl c library\nL:MIT\no:musl\nm:Timo Teras <timo.teras@iki.fi>\np:so:libc.musl-x86_64.so.1=1\nF:lib\nR:ld-musl-x86_64.so.1\n\nP:musl-utils\nV:1.2.5-r0\nA:x86_64\nL:MIT AND BSD-2-Clause\no:musl\n\n",
		}, `pkg:apk/alpine/musl-utils@1.2.5-r0?arch=x86_64&distro=alpine-3.20.3&upstream=musl
pkg:apk/alpine/musl@1.2.5-r0?arch=x86_64&distro=alpine-3.20.3`},
		{"apk below /usr, of no distribution that tells", memory{"usr/lib/apk/db/installed": "P:a\nV:1-r0\n"}, "pkg:apk/alpine/a@1-r0"},
		{"pacman", memory{
			"usr/lib/os-release":                          "ID=arch\n",
			"var/lib/pacman/local/ALPM_DB_VERSION":        "9\n",
			"var/lib/pacman/local/gcc-libs-14.2.1-1/desc": "%NAME%\ngcc-libs\n\n%VERSION%\n14.2.1+r134-1\n\n%BASE%\ngcc\n\n%DESC%\nRuntime libraries\n\n%ARCH%\nx86_64\n\n%PACKAGER%\nSomebody <s@archlinux.org>\n\n%LICENSE%\nGPL\nLGPL\n\n%VALIDATION%\npgp\n\n",
			"var/lib/pacman/local/broken-1/desc":          "%VERSION%\n1\n",
		}, "pkg:alpm/arch/gcc-libs@14.2.1%2Br134-1?arch=x86_64&distro=arch&upstream=gcc"},
	} {
		all, err := Read(c.files)
		if have := urls(all); err != nil || have != c.want {
			t.Errorf("%s: %v\n%s\nwant\n%s", c.name, err, have, c.want)
		}
		if missing, err := Unread(c.files); err != nil || len(missing) > 0 {
			t.Errorf("%s: %v, %v", c.name, missing, err)
		}
	}
	all, err := Read(memory{"var/lib/pacman/local/a-1/desc": "%NAME%\na\n\n%VERSION%\n1\n\n%LICENSE%\nGPL\nLGPL\n"})
	if err != nil || len(all) != 1 || all[0].License != "GPL, LGPL" {
		t.Errorf("%+v, %v", all, err)
	}
}

func TestUnread(t *testing.T) {
	for name, want := range map[string]string{
		"usr/lib/sysimage/rpm/rpmdb.sqlite": "RPM (/usr/lib/sysimage/rpm)", "var/lib/rpm/Packages": "RPM (/var/lib/rpm)", "var/db/xbps/pkgdb-0.38.plist": "XBPS (/var/db/xbps)", "var/lib/dpkg/status": "",
	} {
		found, err := Unread(memory{name: "text"})
		if err != nil || strings.Join(found, " ") != want {
			t.Errorf("%s: %q, %v", name, found, err)
		}
	}
	if found, err := Unread(memory{"var/lib/rpm/x": "", "var/db/xbps/x": ""}); err != nil || !slices.Equal(found, []string{"RPM (/var/lib/rpm)", "XBPS (/var/db/xbps)"}) {
		t.Errorf("%q, %v", found, err)
	}
}
