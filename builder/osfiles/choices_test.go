package osfiles

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/questions"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/builder/config"
)

// archiveOf has glibc make an archive of two locales, and returns its bytes and what glibc says
// is in it.
func archiveOf(t *testing.T) (archive []byte, names []string) {
	t.Helper()
	localedef := testkit.Need(t, "localedef")
	prefix := t.TempDir()
	if err := os.MkdirAll(filepath.Join(prefix, localeDirectory), 0o755); err != nil {
		t.Fatal(err)
	}
	for of, charset := range map[string]string{"de_AT.UTF-8": "UTF-8", "de_AT": "ISO-8859-1"} {
		testkit.Run(t, localedef, "--prefix="+prefix, "-i", "de_AT", "-f", charset, of)
	}
	names = strings.Fields(testkit.Run(t, localedef, "--prefix="+prefix, "--list-archive"))
	archive, err := os.ReadFile(filepath.Join(prefix, localeDirectory, "locale-archive"))
	if err != nil {
		t.Fatal(err)
	}
	return archive, names
}

func TestLocaleArchive(t *testing.T) {
	archive, want := archiveOf(t)
	have, err := readLocaleArchive(bytes.NewReader(archive))
	slices.Sort(have)
	slices.Sort(want)
	if err != nil || !slices.Equal(have, want) || !slices.Contains(have, "de_AT.utf8") {
		t.Errorf("%q, %v; glibc has %q", have, err, want)
	}
	for what, at := range map[string]int{"magic": 0, "table's place": 2, "table's size": 4, "names' place": 5, "names' size": 6} {
		broken := bytes.Clone(archive)
		binary.LittleEndian.PutUint32(broken[4*at:], 0xfffffff0)
		if names, err := readLocaleArchive(bytes.NewReader(broken)); err == nil {
			t.Errorf("%s broken: %q", what, names)
		}
	}
}

// localeArchive is an archive with these names, each of which begins at a byte of names.
func localeArchive(names string, begins ...int) []byte {
	count := uint32(len(begins))
	at := localeHead + (count+1)*localeEntry // and an entry that nothing is in
	out := make([]byte, at)
	for n, v := range []uint32{localeMagic, 0, localeHead, count, count + 1, at, uint32(len(names)), uint32(len(names))} {
		binary.LittleEndian.PutUint32(out[4*n:], v)
	}
	for n, begin := range begins {
		binary.LittleEndian.PutUint32(out[localeHead+n*localeEntry+4:], at+uint32(begin))
		binary.LittleEndian.PutUint32(out[localeHead+n*localeEntry+8:], 1)
	}
	return append(out, names...)
}

// Entries that all have one long name would take a thousand times the archive's room.
func TestLongLocaleName(t *testing.T) {
	archive := localeArchive(strings.Repeat("a", maxLocaleText), make([]int, 200)...)
	if names, err := readLocaleArchive(bytes.NewReader(archive)); err == nil {
		t.Errorf("%d names, the first of %d bytes", len(names), len(names[0]))
	}
}

// What is read of an archive is bounded, and is no error of the program's.
func FuzzLocaleArchive(f *testing.F) {
	head := localeArchive("C.utf8", 0)
	if names, err := readLocaleArchive(bytes.NewReader(head)); err != nil || !slices.Equal(names, []string{"C.utf8"}) {
		f.Fatalf("%q, %v", names, err)
	}
	f.Add(head)
	f.Fuzz(func(t *testing.T, archive []byte) {
		names, err := readLocaleArchive(bytes.NewReader(archive))
		if err != nil && names != nil || len(names) > maxLocales {
			t.Fatalf("%q, %v", names, err)
		}
	})
}

const (
	xkbList   = "! layout\n  us  English (US)\n  de  German\n\n! variant\n  nodeadkeys de: German (no dead keys)\n"
	zoneTable = "DE\t+5230+01322\tEurope/Berlin\n"
)

// image is a desktop's, as far as somebody is asked about it.
func image() map[string]string {
	return map[string]string{
		systemd: "", "usr/sbin/useradd": "", "usr/sbin/usermod": "", "usr/sbin/userdel": "", "usr/sbin/groupdel": "", "usr/bin/chpasswd": "",
		"usr/lib/locale/C.utf8/LC_IDENTIFICATION": "", "usr/lib/locale/other/README": "", "usr/share/X11/xkb/rules/evdev.lst": xkbList,
		"usr/share/zoneinfo/Europe/Berlin": "TZif", "usr/share/zoneinfo/America/Argentina/Ushuaia": "TZif", "usr/share/zoneinfo/Etc/UTC": "TZif",
		"usr/share/zoneinfo/posix/Europe/Berlin": "TZif", "usr/share/zoneinfo/zone.tab": zoneTable, "usr/share/zoneinfo/Evil\x1b[2J": "TZif",
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\ndaemon:*:1:1::/:/bin/false\nguest:x:1000:1000::/:/bin/sh\n\x1bevil:x:2:2::/:\n", "etc/shadow": "root:*:1::::::\nguest:!:1::::::\n",
		"etc/group": "root:x:0:\nsudo:x:27:\n\n", "etc/default/keyboard": "XKBLAYOUT=\"de\"\n", "etc/hostname": "halogen\n", "etc/locale.conf": "LANG=C.UTF-8\n",
	}
}

func TestChoices(t *testing.T) {
	const names = "C.utf8\x00de_AT.utf8\x00"
	archive := localeArchive(names, 0, 7)
	yes, no := true, false
	full := &questions.Choices{
		Version: 1, Languages: []string{"C.UTF-8", "de_AT.UTF-8"}, Keyboards: []questions.Layout{{Name: "de", Text: "German"}, {Name: "de(nodeadkeys)", Text: "German (no dead keys)"}, {Name: "us", Text: "English (US)"}},
		TimeZones: []questions.Zone{{Name: "America/Argentina/Ushuaia"}, {Name: "Etc/UTC"}, {Name: "Europe/Berlin", Country: "DE"}},
		Language:  "C.UTF-8", Keyboard: "de", TimeZone: "Europe/Berlin", HostName: "halogen", Accounts: true, Users: []string{"root", "daemon"}, Groups: []string{"root", "sudo"}, People: []string{"guest"}, AutomaticUpdates: &yes,
	}
	with := func(change func(*questions.Choices)) *questions.Choices {
		c := *full
		change(&c)
		return &c
	}
	for _, c := range []struct {
		name string
		but  func(files map[string]string, c *config.Config)
		want *questions.Choices
	}{
		{"a desktop", func(map[string]string, *config.Config) {}, full},
		{"nothing is asked", func(_ map[string]string, c *config.Config) { c.FirstStart = config.NoneAtFirstStart }, nil},
		{"GNOME asks", func(f map[string]string, _ *config.Config) { f["usr/libexec/gnome-initial-setup"] = "" }, nil},
		{"KDE asks", func(f map[string]string, _ *config.Config) { f["usr/lib/systemd/system/plasma-setup.service"] = "" }, nil},
		{"the image brings answers", func(f map[string]string, _ *config.Config) { f[imageAnswers] = "{}" }, nil},
		{"somebody lives there", func(f map[string]string, _ *config.Config) { f["etc/shadow"] = "guest:$y$x:1::::::\n" }, nil},
		{"no server", func(_ map[string]string, c *config.Config) { c.Server = "" }, with(func(c *questions.Choices) { c.AutomaticUpdates = nil })},
		{"a server of its own", func(f map[string]string, c *config.Config) {
			c.Server, f["etc/halogen/ota.conf"] = "", "# here\nServer=https://example.org\n"
		}, with(func(c *questions.Choices) { c.AutomaticUpdates = &no })},
		{"no chpasswd", func(f map[string]string, _ *config.Config) { delete(f, "usr/bin/chpasswd") }, with(func(c *questions.Choices) { c.Accounts = false })},
		{"no lists", func(f map[string]string, _ *config.Config) {
			delete(f, "usr/share/X11/xkb/rules/evdev.lst")
			delete(f, "etc/default/keyboard")
			f["etc/hostname"] = "\x1b[2J\n"
		}, with(func(c *questions.Choices) { c.Keyboards, c.Keyboard, c.HostName = nil, "", "" })},
	} {
		files, conf := image(), &config.Config{Machine: config.Machine{FirstStart: config.AskAtFirstStart}, Update: config.Update{Server: "https://example.org"}}
		files[localeDirectory+"/locale-archive"] = string(archive)
		c.but(files, conf)
		tree, _ := tree(t)
		for name, text := range files {
			if err := tree.AddFile(name, []byte(text), 0o755, date); err != nil {
				t.Fatal(err)
			}
		}
		if err := tree.AddSymlink("etc/localtime", "/usr/share/zoneinfo/Europe/Berlin", date); err != nil {
			t.Fatal(err)
		}
		if _, err := Add(tree, conf, date); err != nil {
			t.Fatal(err)
		}
		have, err := Choices(tree, conf)
		if err != nil || !reflect.DeepEqual(have, c.want) {
			t.Errorf("%s: %+v, %v\nwant %+v", c.name, have, err, c.want)
		}
		if have != nil {
			if _, err := have.Encode(); err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
		}
	}
}
