package scan

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"image"
	"image/color"
	"image/png"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// silent searches a file, which must have nothing.
func silent(t *testing.T, name string, data []byte) {
	t.Helper()
	if f := searched(t, name, data); len(f) > 0 {
		t.Errorf("%s: found %v", name, f)
	}
}

func searched(t *testing.T, name string, data []byte) []Finding {
	t.Helper()
	s := New(nil)
	if err := s.Bytes(t.Context(), name, data); err != nil {
		t.Fatal(err)
	}
	found, _ := s.Findings()
	return found
}

// icon is a picture of noise in exactly so many bytes.
func icon(t *testing.T, size int) []byte {
	t.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	m := image.NewNRGBA(image.Rect(0, 0, 13, 13))
	for i := range m.Pix {
		m.Pix[i] = byte(r.Uint32())
	}
	m.Set(0, 0, color.White)
	var b bytes.Buffer
	if err := png.Encode(&b, m); err != nil {
		t.Fatal(err)
	}
	// What remains is a chunk of its own, before the last, which has 12 bytes.
	text := make([]byte, size-b.Len()-12)
	for i := range text {
		text[i] = byte(r.Uint32())
	}
	return slices.Insert(b.Bytes(), b.Len()-12, chunk("prVt", text)...)
}

func chunk(kind string, data []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(data)))
	b = append(append(b, kind...), data...)
	return binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b[4:]))
}

// A picture in the size of a key is none, and a key that takes its first bytes over is found.
func TestPicture(t *testing.T) {
	data := icon(t, 1024)
	silent(t, "/icon.png", data)
	for _, at := range []int{len(data) / 2, len(data) - 1} {
		changed := slices.Clone(data)
		changed[at] ^= 1
		if f := searched(t, "/icon.png", changed); len(f) != 1 || f[0].Rule != ruleKeyFile {
			t.Errorf("another byte at %d: found %v", at, f)
		}
	}
	// Chunks with a checksum alone are not a picture: somebody has wrapped a key in them.
	key := slices.Concat([]byte("\x89PNG\r\n\x1a\n"), chunk("prVt", data[:1024-8-12-12]), chunk("IEND", nil))
	if f := searched(t, "/wrapped", key); len(f) != 1 || f[0].Rule != ruleKeyFile {
		t.Errorf("no picture: found %v", f)
	}
	silent(t, "/long.png", append(slices.Clone(icon(t, 2048)), "PK"...)) // not the size of a key
	if longer := append(icon(t, 1008), data[:16]...); len(searched(t, "/longer.png", longer)) != 1 {
		t.Error("a picture with something after it is taken for one")
	}
	for _, data := range []string{"", "\x89PNG\r\n\x1a\n", "\x89PNG\r\n\x1a\n\xff\xff\xff\xffIEND", "\x89PNG\r\n\x1a\n\x00\x00\x00\x00IEND"} {
		if isPNG([]byte(data)) {
			t.Errorf("%q is taken", data)
		}
	}
}

// A manual shows passwords, and a configuration has them. Only what wpa_supplicant's own
// pages show is passed over, and only in a page.
func TestManualPages(t *testing.T) {
	const (
		page    = ".\\\" made by docbook2man\n.\\\" and so on\n.TH WPA_SUPPLICANT.CONF 5\n.SH EXAMPLE\n.nf\n"
		network = "network={\n\tssid=\"home\"\n\tpsk=\"very secret passphrase\"\n\teap=TTLS\n\tpassword=\"foobar\"\n\tprivate_key_passwd=\"password\"\n}\n"
	)
	silent(t, "/man5/a.5", []byte(page+network+".fi\n"))
	silent(t, "/man5/b.5", []byte("'\\\" t\n.Dd November 29, 2026\n.Dt B 5\n"+network))
	silent(t, "/man8/wpa_action.8", []byte(page+"\tpsk=123456789...\n"))
	own := strings.NewReplacer("very secret passphrase", "very secret passphrase of mine", "foobar", "foobar1", `"password"`, `"password "`).Replace(network)
	for name, c := range map[string]struct {
		text string
		want int
	}{
		"a configuration":                   {network, 3},
		"one that speaks of macros":         {"# .TH is a macro\n" + network, 3},
		"a macro that is not the first":     {"hello\n.TH A 5\n" + network, 3},
		"somebody's own, noted in a page":   {page + own, 3},
		"one more than the examples":        {page + network + own, 3},
		"a disk that begins with a page":    {page + ".fi\n\x00\x00\x00" + network, 1},
		"behind more examples than counted": {page + strings.Repeat(network, 60) + own, 3},
		"a key in hexadecimal":              {page + "\tpsk=" + strings.Repeat("0123456789abcdef", 4) + "\n", 1},
		"a network of NetworkManager":       {page + "[connection]\ntype=wifi\n[wifi-security]\npsk=very secret passphrase\n", 1},
		"iwd's":                             {page + "Passphrase=very secret passphrase\n", 1},
		"hostapd's":                         {page + "wpa_passphrase=passphrase\n", 1},
		"IPsec's":                           {page + ": PSK \"foobar\"\n", 1},
	} {
		found := searched(t, "/f", []byte(c.text))
		if len(found) != c.want || found[0].Rule != ruleWiFi {
			t.Errorf("%s: found %v, want %d secrets of networks", name, found, c.want)
		}
	}
	// A key is a key, wherever it is printed.
	key := ".TH A 5\n" + strings.Repeat("x", 40) + " AGE-SECRET-KEY-1QL3Z7HJY54PW3HYWW5AYYFG7ZQGVC7W3J2ELW8ZMRJ2KG5SFN9AQMCAC8P\n"
	if f := searched(t, "/age.5", []byte(key)); len(f) != 1 || f[0].Rule != ruleAge {
		t.Errorf("found %v", f)
	}
}

// keyring is the beginning of one of gnome-keyring's (docs/file-format.txt).
func keyring(name string) []byte {
	b := append([]byte("GnomeKeyring\n\r\x00\n\x00\x00\x00\x00"), binary.BigEndian.AppendUint32(nil, uint32(len(name)))...)
	b = append(append(b, name...), make([]byte, 8+8+4+4)...)
	b = binary.BigEndian.AppendUint32(b, 1735)
	return append(b, "saltsalt"+strings.Repeat("\x00", 20)...)
}

// A keyring is one whatever its owner calls it, and wherever it is cut.
func TestKeyringNames(t *testing.T) {
	for _, name := range []string{"", "login", "Zu Hause\n", "a\tb", "\x7f", "\u043a\u043b\u044e\u0447\u0438", strings.Repeat("n", 4096)} {
		data := keyring(name)
		cut := 16 + 8 + 24 + 4
		if name != "" {
			cut = 16 + 8 + 1
		}
		for _, part := range [][]byte{data, data[:cut], append([]byte("PK and other bytes before it"), data...)} {
			if f := searched(t, "/k", part); len(f) != 1 || f[0].Rule != ruleStore {
				t.Errorf("%.20q, %d bytes of it: found %v", name, len(part), f)
			}
		}
	}
}

// What has the mark of keyrings and no keyring: gnome-keyring-daemon, gkm-secret-store-standalone.so,
// libsecret and file's magic.mgc of Debian 13.
func TestKeyringMark(t *testing.T) {
	const mark = "GnomeKeyring\n\r\x00\n"
	for name, after := range map[string]string{
		"/usr/bin/gnome-keyring-daemon": strings.Repeat("\x00", 16) + "verify_decrypted_buffer",
		"/usr/lib/libsecret-1.so.0":     "A[\xff\xff\xe8Z\xff\xff\x00[\xff\xff\x18[\xff\xff",
		"/usr/lib/file/magic.mgc":       strings.Repeat("\x00", 64),
		"/cut":                          "\x00\x00\x00\x00",
		"/a-list":                       "\x00\x00\x00\x00\x00\x00\x00\x05a\x00b\x00c",
	} {
		silent(t, name, []byte("gkm_secret_textual_write\x00\x00"+mark+after))
	}
}

// Debian's KDE has catalogs of Qt's that are empty but for their language: 24 bytes. A key
// behind the magic number is found.
func TestEmptyCatalog(t *testing.T) {
	magic := "\x3c\xb8\x64\x18\xca\xef\x9c\x95\xcd\x21\x1c\xbf\x60\xa1\xbd\xdd"
	for _, data := range []string{magic, magic + "\xa7\x00\x00\x00\x03csb"} {
		silent(t, "/kauth6_qt.qm", []byte(data))
	}
	if f := searched(t, "/kauth6_qt.qm", []byte(magic+"\x8f\x01\xd2\x7b\xe4\x30\xc9\x56")); len(f) != 1 || f[0].Rule != ruleKeyFile {
		t.Errorf("another file of 24 bytes: found %v", f)
	}
}
