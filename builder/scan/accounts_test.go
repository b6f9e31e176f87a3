package scan

import (
	"errors"
	"slices"
	"testing"
)

// An account that anybody may log in to is named, by the file and the line.
func TestEmptyPasswords(t *testing.T) {
	for _, c := range []struct {
		name, file, text string
		at               []int64
	}{
		{"root", "/etc/shadow", "root::20000:0:99999:7:::\nbin:*:20000:0:99999:7:::\n", []int64{0}},
		{"the second of three", "/etc/shadow", "root:*:1:0:9:7:::\nme::1:::::::\nx:!:1:::::::\n", []int64{18}},
		{"a line that has lost its fields", "/etc/shadow", "nonsense\nroot::\n", []int64{9}},
		{"line ends of Windows", "/etc/shadow", "root::1::::::\r\n", []int64{0}},
		{"the copy beside it", "/etc/shadow-", "root::1::::::\n", []int64{0}},
		{"systemd's factory", "/usr/share/factory/etc/shadow", "root::1::::::\n", []int64{0}},
		{"of an initramfs", "initramfs!/etc/shadow", "root::1::::::\n", []int64{0}},
		{"passwd", "/etc/passwd", "root::0:0:root:/root:/bin/bash\nme::1000:1000::/home/me:\n", []int64{0, 31}},
		{"lines of passwd that have lost their fields", "/etc/passwd", "toor::0:0\nme::1000:1000::/home/me\nno::1\n", []int64{0, 10}},
		{"nss-altfiles", "/usr/lib/passwd", "me::1000:1000::/home/me:/bin/sh\n", []int64{0}},

		{"locked, or with a password", "/etc/shadow", "a:*:1::::::\nb:!:1::::::\nc:!*:1::::::\nd:x:1::::::\n\n#e::1::::::\n", nil},
		{"no shell", "/etc/passwd", "a::1:1::/:/usr/sbin/nologin\nb::2:2::/:/bin/false\nc:x:3:3::/:/bin/sh\n", nil},
		{"of NIS", "/etc/passwd", "+::::::\n-me::::::\n", nil},
		{"a manual's", "/usr/share/doc/shadow/example", "root::1::::::\n", nil},
		{"PAM's own", "/etc/pam.d/passwd", "root::0:0:root:/root:/bin/bash\n", nil},
		{"a program", "/usr/bin/passwd", "root::0:0:root:/root:/bin/bash\n", nil},
	} {
		s := New(nil)
		if err := s.Bytes(t.Context(), c.file, []byte(c.text)); err != nil {
			t.Fatal(err)
		}
		findings, _ := s.Findings()
		var at []int64
		for _, f := range findings {
			if f.Rule != ruleEmpty || f.File != c.file {
				t.Errorf("%s: %v", c.name, f)
			}
			at = append(at, f.Offset)
		}
		var secrets *SecretsError
		if err := s.Finish(); !slices.Equal(at, c.at) || errors.As(err, &secrets) != (len(c.at) > 0) {
			t.Errorf("%s: found at %v, want %v; the image is refused with %v", c.name, at, c.at, err)
		}
		s = New(must[[]Allow](t)(ParseAllow(ruleEmpty, "?"+c.file+" for a kiosk")))
		if err := errors.Join(s.Bytes(t.Context(), c.file, []byte(c.text)), s.Finish()); err != nil {
			t.Errorf("%s, allowed: %v", c.name, err)
		}
	}
}
