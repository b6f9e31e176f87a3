package scan

import (
	"archive/tar"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"
	"golang.org/x/sys/unix"

	"halogenos.internal/boot/microcode"
	"halogenos.internal/boot/microcode/microcodetest"
	"halogenos.internal/boot/testkit"
)

// grow puts files into a directory under names that say nothing.
func grow(t testing.TB, dir string, all []plant) {
	t.Helper()
	for i, p := range all {
		name := filepath.Join(dir, fmt.Sprintf("d%d/file%02d.dat", i%3, i))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, p.data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// missed checks that each plant is found, by its rule and where it is, and
// returns what else was found.
func missed(t testing.TB, all []plant, base string, findings []Finding) []Finding {
	t.Helper()
	for i, p := range all {
		name := fmt.Sprintf("%s/d%d/file%02d.dat", base, i%3, i)
		if !slices.ContainsFunc(findings, func(f Finding) bool { return f.File == name+p.in && f.Rule == p.rule }) {
			t.Errorf("%s was not found in %s%s by the rule %s", p.name, name, p.in, p.rule)
		}
		findings = slices.DeleteFunc(findings, func(f Finding) bool {
			return f.File == name || strings.HasPrefix(f.File, name+"!") || strings.HasPrefix(f.File, name+"#")
		})
	}
	return findings
}

func TestFindsWhatIsPlanted(t *testing.T) {
	dir, all := t.TempDir(), plants(t)
	if len(all) < 40 {
		t.Fatalf("only %d plants", len(all))
	}
	grow(t, dir, all)
	s := New(nil)
	if err := s.Tree(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	findings, allowed := s.Findings()
	if rest := missed(t, all, "", findings); len(rest) > 0 || len(allowed) > 0 {
		t.Errorf("also found %v, allowed %v", rest, allowed)
	}
	var secrets *SecretsError
	if err := s.Finish(); !errors.As(err, &secrets) || len(secrets.Findings) != len(findings) || !strings.Contains(err.Error(), findings[0].String()) {
		t.Errorf("the image is refused with %v", err)
	}
	t.Logf("%d plants", len(all))
}

// TestOffset sees where in a file the findings are.
func TestOffset(t *testing.T) {
	for _, p := range plants(t) {
		before := []byte("some text before\n")
		if p.in != "" || slices.Contains([]string{ruleMachineID, ruleKeyFile, ruleUnsearched, ruleStore, ruleLogin}, p.rule) ||
			bytes.HasPrefix(p.data, []byte("(")) || bytes.HasPrefix(p.data, []byte{0xff, 0xfe}) || slices.Contains([]string{"gzip", "xz", "zstd", "shadow, DES, locked"}, p.name) || p.whole {
			continue // found only at the start of a file, or unpacked
		}
		alone, shifted := New(nil), New(nil)
		if err := errors.Join(alone.Bytes(t.Context(), "/f", p.data), shifted.Bytes(t.Context(), "/f", append(before, p.data...))); err != nil {
			t.Fatal(err)
		}
		a, _ := alone.Findings()
		b, _ := shifted.Findings()
		if len(a) == 0 || len(b) == 0 || b[0].Offset-a[0].Offset != int64(len(before)) || a[0].Offset >= int64(len(p.data)) {
			t.Errorf("%s: found %v, and %d bytes later %v", p.name, a, len(before), b)
		}
	}
}

// clean are files that only look like secrets.
func clean(t testing.TB) map[string][]byte {
	t.Helper()
	key := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	public := must[[]byte](t)(x509.MarshalPKIXPublicKey(&key.PublicKey))
	entity := must[*openpgp.Entity](t)(openpgp.NewEntity("Somebody", "", "s@example.org", &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA}))
	var pgp bytes.Buffer
	if err := entity.Serialize(&pgp); err != nil {
		t.Fatal(err)
	}
	return map[string][]byte{
		"template of gpg-agent":               []byte("\x00(private-key(ecc(curve %s)(flags eddsa)(q %m)(d %m))(comment%s))\x00(21:protected-private-key(3:rsa(1:n%m)(1:e%m)(9:protected25:%s((4:sha18:%b%u)%b)%b)))\x00" + strings.Repeat("(1:d32:", 20)),
		"constants of netrc.py":               []byte("\xda\x08machine z\x07\n\tlogin r\x01\x00\x00\x00z\x0b\n\tpassword \xda\x01\n"),
		"netrc of a manual":                   []byte("machine example.com login daniel password qwerty\nmachine example\\&.org/deb\n login apt\n password debian\n"),
		"prose about passwords":               []byte("Use default\nmachine account password change\nmachine trust account password\nmachine password %s\n"),
		"drawing of one line":                 []byte("<svg a=\"http://www.w3.org/2000/svg\" style=\"line-height:normal;a:b;c:d;e:f;g:h;i:j;k:l\"/>"),
		"hash of a manual":                    []byte("\\&  $1$xxxxxxxx$UYCIxa628.9qXjpQCjM4a.\n"),
		"key of a manual":                     []byte("PrivateKey=EEGlnEPYJV//kbvvIqxKkQwOiS+UENyPncC4bF46ong=\n"),
		"placeholder for a key":               []byte("private_key: " + strings.Repeat("A", 43) + "=\n"),
		"web token without a claim":           []byte("// eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJuYW1lIjoiP34_fj9-In0.KIumXQmDxL1bJ0RGNV2-mm-8h0LEQATKbtHUsCHMGcg\n"),
		"start of a PKCS#8 in code":           append([]byte("\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x6e\x04\x22\x04\x20e_access"), append(make([]byte, 8), "wgpu_ray_query_vload"...)...),
		"new secrets.tdb":                     append([]byte("TDB file\n"), append(make([]byte, 8192), "SECRETS/SID/HOST\x00"...)...),
		"extended public key, damaged":        []byte("xprv9s21ZrQH143K3QTDL4LXw2F7HEK3wJUD2nW2nRk4stbPy6cq3jPPqjiChkVvvNKmPGJxWUtg6LnF5kejMRNNU3TGtRBeJgk33yuGBxrMPHa\n"),
		"checksums in Base64":                 []byte("sha512-" + base64.StdEncoding.EncodeToString([]byte(chance(t, 64, alnum))) + "\n" + "sha256-" + base64.StdEncoding.EncodeToString([]byte(chance(t, 32, alnum))) + " file\n"),
		"public SSH key in Base64":            []byte("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA" + "I" + chance(t, 43, alnum) + " me\n"),
		"chance that starts like compress(1)": []byte("\x1f\x9d\x8c\xac\x1b\x58\x0f\x5c\x37\x1c\xe6\x25\xe1\x82\x68\x4e\xed\x4a\x65\xd4\x08\xd2\xde\xae\x21\xa7\xe7\xff\x8c\x78\x8a\x2d\x01"),
		"magic of 7z in a list":               []byte("0 string 7z\xbc\xaf\x27\x1c 7-zip archive data\n0 string Rar! RAR\n"),

		"public key":              public,
		"public key in PEM":       block2pem("PUBLIC KEY", public),
		"public OpenPGP key":      pgp.Bytes(),
		"words of a library":      []byte("\x00-----BEGIN RSA PRIVATE KEY-----\x00-----END RSA PRIVATE KEY-----\x00-----BEGIN %s PRIVATE KEY-----\n\x00openssh-key-v1\x00none\x00"),
		"manual":                  []byte("A file starts with -----BEGIN PRIVATE KEY----- and is readable by its owner.\n"),
		"names in libgcrypt":      []byte("(private-key(%s%m))\x00protected-private-key\x00(11:private-key"),
		"magic in cryptsetup":     []byte("LUKS\xba\xbe\x00\x00SKUL\xba\xbe\x00some more text of a program that is long enough to be a header of it" + strings.Repeat("\x01", 300)),
		"shadow without words":    []byte("root:*:20000:0:99999:7:::\nbin:!*:20000::::::\nme:!:20000:0:99999:7:::\nx::1:2:3:4:::\n"),
		"empty machine-id":        []byte("uninitialized\n"),
		"Java trust store":        append([]byte{0xfe, 0xed, 0xfe, 0xed, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2, 0, 1, 'x'}, append(make([]byte, 8), 0, 1, 'X', 0, 0, 0, 2, 9, 9)...),
		"upper-case text":         []byte("FOOAKIA" + strings.Repeat("BCDEFGHIJKL", 3)),
		"example of a manual":     []byte("PrivateKey=<the key>\npsk=<passphrase>\npassword=\n"),
		"checksum with a name":    []byte(hex.EncodeToString(bytes.Repeat([]byte{7, 200}, 16)) + "  file\n"),
		"text of 64 bytes":        []byte(strings.Repeat("abcdefg ", 8)),
		"text of 32 letters":      []byte(strings.Repeat("abcdefgh", 4)),
		"zeros":                   make([]byte, 4096),
		"damaged gzip":            []byte("\x1f\x8b\x08\x00 this is not what it seems to be, though it starts so"),
		"web key without secrets": []byte(`{"kty":"RSA","n":"` + strings.Repeat("abcdef", 50) + `","e":"AQAB","kid":"d"}`),
		"OpenPGP key on a card":   cardStub(t),
		"microcode of Intel's":    microcodetest.Encrypted(microcodetest.Intel(microcode.Processor{Signature: 0x6fa, Platforms: 0x80, Revision: 0x95})),
	}
}

// cardStub is what gpg exports of a secret key that lies elsewhere.
func cardStub(t testing.TB) []byte {
	t.Helper()
	public := secretKey(t, packet.PubKeyAlgoEdDSA, false, "")
	packets := packet.NewReader(bytes.NewReader(public))
	p := must[packet.Packet](t)(packets.Next())
	key := p.(*packet.PrivateKey).PublicKey
	var body bytes.Buffer
	if err := key.Serialize(&body); err != nil {
		t.Fatal(err)
	}
	content := append(packetBody(body.Bytes()), 255, 0, 101, 0, 'G', 'N', 'U', 1)
	return append([]byte{0x94, byte(len(content))}, content...)
}

func TestFindsNothingElse(t *testing.T) {
	for name, data := range clean(t) {
		s := New(nil)
		if err := s.Bytes(t.Context(), "/f", data); err != nil {
			t.Fatal(err)
		}
		if err := s.Finish(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestDebian searches a whole system, as it is and with secrets planted in it.
func TestDebian(t *testing.T) {
	source := testkit.Debian(t)
	dir := t.TempDir()
	all := plants(t)
	grow(t, dir, all)
	var allow []Allow
	for rule, value := range map[string]string{
		ruleShadow: "?/etc/shadow with DEV=1",
	} {
		allow = append(allow, must[[]Allow](t)(ParseAllow(rule, value))...)
	}
	s := New(allow)
	start := time.Now()
	if err := errors.Join(s.Tree(t.Context(), source), s.Tree(t.Context(), dir)); err != nil {
		t.Fatal(err)
	}
	files, bytes := s.Searched()
	t.Logf("%d files, %d MB in %.1f s", files, bytes>>20, time.Since(start).Seconds())
	findings, _ := s.Findings()
	if rest := missed(t, all, "", findings); len(rest) > 0 {
		t.Errorf("the clean tree has %v", rest)
	}
}

func TestAllow(t *testing.T) {
	for _, c := range []struct{ rule, value, say string }{
		{ruleAge, "/etc/key", "no reason"},
		{ruleAge, "/etc/key  ", "no reason"},
		{ruleAge, "/etc/a why\n/etc/b", "no reason"},
		{ruleAge, "", "names no file"},
		{ruleAge, "etc/key because", "not the name of a file"},
		{ruleAge, "/** because", "allows every file"},
		{ruleAge, "/*/* because", "allows every file"},
		{ruleAge, "initramfs!/** because", "allows every file"},
		{"any", "/etc/key because", "no rule"},
		{"*", "/etc/key because", "no rule"},
	} {
		if _, err := ParseAllow(c.rule, c.value); err == nil || !strings.Contains(err.Error(), c.say) {
			t.Errorf("%s=%q: error %v, want %q", c.rule, c.value, err, c.say)
		}
	}
	key := []byte("AGE-SECRET-KEY-1" + chance(t, 58, upper+digits))
	for _, c := range []struct {
		name, rule, value string
		say               string // empty: the image is taken
	}{
		{"by its name", ruleAge, "/etc/key for a reason", ""},
		{"by a star", ruleAge, "/e*/k* for a reason", ""},
		{"by two stars", ruleAge, "/etc** for a reason", ""},
		{"one of two entries", ruleAge, "/etc/key for a reason\n?/other for a reason", ""},
		{"a star is not a slash", ruleAge, "/*key for a reason", "would share (1):"},
		{"another rule", rulePEM, "/etc/key for a reason", "would share (1):"},
		{"no regular expression", ruleAge, "/etc/ke. for a reason", "would share (1):"},
		{"not longer", ruleAge, "/etc/ke for a reason", "would share (1):"},
		{"an entry that matches nothing", ruleAge, "/etc/key for a reason\n/other for a reason", "matches nothing"},
	} {
		allow, err := ParseAllow(c.rule, c.value)
		if err != nil {
			t.Fatal(err)
		}
		s := New(allow)
		if err := s.Bytes(t.Context(), "/etc/key", key); err != nil {
			t.Fatal(err)
		}
		if err := s.Finish(); c.say == "" && err != nil || c.say != "" && (err == nil || !strings.Contains(err.Error(), c.say)) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// FAULTS 96
func TestExtendedAttributesOfAnything(t *testing.T) {
	dir := t.TempDir()
	token := func() []byte { return []byte("ghp_" + chance(t, 36, alnum)) }
	if err := errors.Join(os.WriteFile(dir+"/file", []byte("text"), 0o644), os.Mkdir(dir+"/dir", 0o755), os.Symlink("nowhere", dir+"/link"), unix.Mkfifo(dir+"/fifo", 0o644)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unix.Setxattr(dir+"/file", "user.key", token(), 0), unix.Setxattr(dir+"/dir", "user.key", token(), 0), unix.Setxattr(dir, "user.key", token(), 0)); errors.Is(err, unix.ENOTSUP) {
		t.Skip("the directory for temporary files has no extended attributes")
	} else if err != nil {
		t.Fatal(err)
	}
	want := []Finding{{"/#user.key", 0, ruleCloud}, {"/dir#user.key", 0, ruleCloud}, {"/file#user.key", 0, ruleCloud}}
	// Links and pipes have none of the user's, and only root may set others.
	if err := errors.Join(unix.Lsetxattr(dir+"/link", "trusted.key", token(), 0), unix.Lsetxattr(dir+"/fifo", "trusted.key", token(), 0)); err == nil {
		want = append(want, Finding{"/fifo#trusted.key", 0, ruleCloud}, Finding{"/link#trusted.key", 0, ruleCloud})
	}
	s := New(nil)
	if err := s.Tree(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	findings, _ := s.Findings()
	for _, f := range want {
		if !slices.Contains(findings, f) {
			t.Errorf("%v was not found", f)
		}
	}
	if len(findings) != len(want) {
		t.Errorf("found %v, want %v", findings, want)
	}
}

// TestTargetsAndNames sees that the targets of links and the names of files are
// searched. FAULTS 96
func TestTargetsAndNames(t *testing.T) {
	dir, key := t.TempDir(), "ghp_"+chance(t, 36, alnum)
	if err := errors.Join(os.Symlink("/etc/"+key, dir+"/link"), os.Mkdir(dir+"/"+key, 0o755)); err != nil {
		t.Fatal(err)
	}
	s := New(nil)
	if err := s.Tree(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	findings, _ := s.Findings()
	if want := []Finding{{"/" + key, 0, ruleCloud}, {"/link#target", 5, ruleCloud}}; !slices.Equal(findings, want) {
		t.Errorf("found %v, want %v", findings, want)
	}
}

// TestDoesNotLeaveTheTree sees that links out of the image are not followed.
func TestDoesNotLeaveTheTree(t *testing.T) {
	dir, outside := t.TempDir(), filepath.Join(t.TempDir(), "key")
	if err := errors.Join(os.WriteFile(outside, []byte("AGE-SECRET-KEY-1"+chance(t, 58, upper+digits)), 0o600), os.Symlink(outside, dir+"/link"), os.Symlink("/etc", dir+"/dir")); err != nil {
		t.Fatal(err)
	}
	s := New(nil)
	if err := s.Tree(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if files, _ := s.Searched(); files != 0 || s.Finish() != nil {
		t.Errorf("%d files, %v", files, s.Finish())
	}
}

func TestModulesAreHandedOver(t *testing.T) {
	dir := t.TempDir()
	for name, data := range map[string][]byte{"a.ko": []byte("one"), "b.ko.xz": xzOf(t, []byte("two")), "c.ko.zst": zstdOf(t, []byte("three")), "d.txt": []byte("four"), "e.ko.catalog": []byte("five"),
		"f.ko": append([]byte("six "), zipOf(t, "a", []byte("x"))...), "g.ko.xz": []byte("not packed"), "h.ko": xzOf(t, []byte("packed"))} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have := make(chan string, 9)
	s := New(nil)
	s.Unpacked = func(name string, content []byte) ([]byte, error) {
		have <- name + " " + string(content[:min(len(content), 10)])
		return nil, nil
	}
	if err := s.Tree(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	close(have)
	var names []string
	for name := range have {
		names = append(names, name)
	}
	slices.Sort(names)
	if want := []string{"/a.ko one", "/b.ko.xz two", "/c.ko.zst three", "/f.ko six PK\x03\x04\x14\x00", "/g.ko.xz not packed", "/h.ko " + string(xzOf(t, nil)[:10])}; !slices.Equal(names, want) {
		t.Errorf("have %q, want %q", names, want)
	}
	s.Unpacked = func(string, []byte) ([]byte, error) { return nil, errors.New("bad module") }
	if err := s.Tree(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "bad module") {
		t.Errorf("error %v", err)
	}
}

func FuzzBytes(f *testing.F) {
	for _, p := range plants(f) {
		if len(p.data) < 1<<14 {
			f.Add(p.data)
		}
	}
	for _, data := range clean(f) {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		s := New(nil)
		if err := s.Bytes(t.Context(), "/f", data); err != nil {
			t.Fatal(err)
		}
		findings, _ := s.Findings()
		for _, finding := range findings {
			if finding.Offset < 0 || !strings.HasPrefix(finding.File, "/f") {
				t.Errorf("found %v", finding)
			}
		}
	})
}

// Findings that are allowed, however many, do not use up the bound of those that are not.
func TestManyAllowed(t *testing.T) {
	key := func() []byte { return []byte("AGE-SECRET-KEY-1" + chance(t, 58, upper+digits) + "\n") }
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	add := func(name string, data []byte) {
		t.Helper()
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	for i := range maxPerRule + 50 {
		add(fmt.Sprintf("tests/%d", i), key())
	}
	add("real", key())
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	s := New(must[[]Allow](t)(ParseAllow(ruleAge, "/a.tar!/tests/* for tests")))
	if err := s.Bytes(t.Context(), "/a.tar", archive.Bytes()); err != nil {
		t.Fatal(err)
	}
	found, allowed := s.Findings()
	if len(found) != 1 || found[0].File != "/a.tar!/real" || len(allowed) != maxPerRule+50 {
		t.Errorf("found %v, allowed %d", found, len(allowed))
	}
	// In one file the bound is still one.
	s = New(must[[]Allow](t)(ParseAllow(ruleAge, "/a for tests")))
	if err := errors.Join(s.Bytes(t.Context(), "/a", bytes.Repeat(key(), 3*maxPerRule)), s.Bytes(t.Context(), "/b", bytes.Repeat(key(), 3*maxPerRule))); err != nil {
		t.Fatal(err)
	}
	if found, allowed := s.Findings(); len(found) != maxPerRule || len(allowed) != maxPerRule {
		t.Errorf("found %d, allowed %d", len(found), len(allowed))
	}
}
