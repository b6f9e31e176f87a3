package scan

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/boot/testkit"
)

// A workshop runs tools in a directory of its own.
type workshop struct {
	t   testing.TB
	dir string
}

func newWorkshop(t testing.TB) *workshop {
	return &workshop{t, t.TempDir()}
}

func (w *workshop) path(name string) string { return filepath.Join(w.dir, name) }

// run executes a tool with the directory as its own, what it reads, and an
// environment in which it finds nothing of the user's.
func (w *workshop) run(input []byte, tool string, args ...string) []byte {
	w.t.Helper()
	testkit.Need(w.t, tool)
	c := exec.Command(tool, args...)
	c.Dir, c.Stdin = w.dir, bytes.NewReader(input)
	c.Env = append(os.Environ(), "HOME="+w.dir, "GNUPGHOME="+w.path("gnupg"), "SYSTEMD_CREDENTIAL_SECRET="+w.path("credential.secret"))
	var out, said bytes.Buffer
	c.Stdout, c.Stderr = &out, &said
	if err := c.Run(); err != nil {
		w.t.Fatalf("%s %s: %v\n%s", tool, strings.Join(args, " "), err, said.Bytes())
	}
	return out.Bytes()
}

func (w *workshop) put(name string, data []byte) {
	w.t.Helper()
	if err := os.WriteFile(w.path(name), data, 0o600); err != nil {
		w.t.Fatal(err)
	}
}

func (w *workshop) get(name string) []byte {
	w.t.Helper()
	data, err := os.ReadFile(w.path(name))
	if err != nil {
		w.t.Fatal(err)
	}
	return data
}

// toolPlants are keys by the tools that make them.
func toolPlants(t testing.TB) []plant {
	w := newWorkshop(t)
	var all []plant
	add := func(name, rule string, data []byte) { all = append(all, plant{name: name, rule: rule, data: data}) }

	for _, kind := range [][]string{{"RSA", "rsa_keygen_bits:2048"}, {"EC", "ec_paramgen_curve:P-384"}, {"ED25519"}, {"ED448"}, {"X25519"}} {
		args := []string{"genpkey", "-algorithm", kind[0]}
		if len(kind) > 1 {
			args = append(args, "-pkeyopt", kind[1])
		}
		pem := w.run(nil, "openssl", args...)
		add("openssl, "+kind[0], rulePEM, pem)
		add("openssl, DER, "+kind[0], ruleDER, w.run(pem, "openssl", "pkcs8", "-topk8", "-nocrypt", "-outform", "DER"))
		add("openssl, encrypted, "+kind[0], rulePEM, w.run(pem, "openssl", "pkcs8", "-topk8", "-passout", "pass:word"))
		add("openssl, printed, "+kind[0], ruleOther, w.run(pem, "openssl", "pkey", "-noout", "-text"))
	}
	w.put("rsa", w.run(nil, "openssl", "genrsa", "2048"))
	add("openssl, PVK", ruleOther, w.run(nil, "openssl", "rsa", "-in", "rsa", "-outform", "PVK", "-pvk-none"))
	add("openssl, key blob", ruleOther, w.run(nil, "openssl", "rsa", "-in", "rsa", "-outform", "MSBLOB"))
	add("openssl, encrypted as of old", rulePEM, w.run(nil, "openssl", "rsa", "-in", "rsa", "-traditional", "-aes128", "-passout", "pass:word"))
	add("openssl, hash", ruleShadow, []byte("me:"+string(w.run(nil, "openssl", "passwd", "-6", "word"))))

	for _, kind := range []string{"rsa", "ecdsa", "ed25519"} {
		w.run(nil, "ssh-keygen", "-q", "-t", kind, "-N", "", "-f", "ssh-"+kind)
		add("ssh-keygen, "+kind, ruleSSH, w.get("ssh-"+kind))
		w.run(nil, "dropbearkey", "-t", kind, "-f", "dropbear-"+kind)
		add("dropbearkey, "+kind, ruleSSH, w.get("dropbear-"+kind))
	}
	w.run(nil, "ssh-keygen", "-q", "-t", "rsa", "-m", "PEM", "-N", "password", "-f", "ssh-pem")
	add("ssh-keygen, PEM", rulePEM, w.get("ssh-pem"))

	private := w.run(nil, "wg", "genkey")
	add("wg genkey", ruleKeyFile, private)
	add("wg genkey in a configuration", ruleWireGuard, []byte("[Interface]\nPrivateKey = "+string(private)))
	add("wg genpsk in JSON", ruleWireGuard, []byte(`{"presharedKey":"`+strings.TrimSpace(string(w.run(nil, "wg", "genpsk")))+`"}`))

	add("certtool", rulePEM, w.run(nil, "certtool", "--generate-privkey", "--ecc"))
	add("certtool, DER", ruleDER, w.run(nil, "certtool", "--generate-privkey", "--ecc", "--outder"))
	printed := w.run(nil, "certtool", "--generate-privkey", "--bits", "2048", "--to-rsa", "--text")
	add("certtool, printed", ruleOther, printed[:bytes.Index(printed, []byte("-----BEGIN"))])

	w.run(nil, "systemd-creds", "setup")
	add("systemd-creds, host key", ruleKeyFile, w.get("credential.secret"))
	add("systemd-creds without a key", ruleOther, w.run([]byte("hunter2"), "systemd-creds", "encrypt", "--with-key=tpm2-absent", "--name=x", "-", "-"))

	w.run([]byte("create secrets.tdb\ninsert SECRETS/MACHINE_PASSWORD/HOST hunter22\nquit\n"), "tdbtool")
	add("secrets.tdb", ruleStore, w.get("secrets.tdb"))
	return append(all, gnupgPlants(w)...)
}

func gnupgPlants(w *workshop) (all []plant) {
	if err := os.Mkdir(w.path("gnupg"), 0o700); err != nil {
		w.t.Fatal(err)
	}
	defer w.run(nil, "gpgconf", "--kill", "all")
	gpg := func(args ...string) []byte {
		return w.run(nil, "gpg", append([]string{"--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase"}, args...)...)
	}
	for i, algorithm := range []string{"rsa2048", "ed25519", "nistp384"} {
		for _, password := range []string{"", "word"} {
			id := fmt.Sprintf("%s%d%s@example.org", algorithm, i, password)
			gpg(password, "--quick-generate-key", id, algorithm)
			all = append(all,
				plant{name: "gpg, " + id, rule: ruleOpenPGP, data: gpg(password, "--export-secret-keys", id)},
				plant{name: "gpg, armored, " + id, rule: ruleOpenPGP, data: gpg(password, "--armor", "--export-secret-keys", id)})
		}
	}
	files, err := filepath.Glob(w.path("gnupg/private-keys-v1.d/*.key"))
	if err != nil || len(files) < 6 {
		w.t.Fatalf("%d keys of gpg-agent: %v", len(files), err)
	}
	for _, f := range files {
		all = append(all, plant{name: "gpg-agent, " + filepath.Base(f), rule: ruleOpenPGP, data: must[[]byte](w.t)(os.ReadFile(f))})
	}
	return all
}

// javaPlants are the key stores of keytool, where there is a Java: it is too
// large for a test's tools. storePlants makes the same by hand.
func javaPlants(t testing.TB) []plant {
	if _, err := exec.LookPath("keytool"); err != nil {
		return nil
	}
	w := newWorkshop(t)
	word := []string{"-storepass", "password", "-keypass", "password"}
	var all []plant
	for _, kind := range []string{"JKS", "JCEKS", "PKCS12"} {
		w.run(nil, "keytool", append(word, "-genkeypair", "-keyalg", "EC", "-dname", "CN=x", "-storetype", kind, "-keystore", kind)...)
		all = append(all, plant{name: "keytool, " + kind, rule: ruleStore, data: w.get(kind)})
	}
	w.run(nil, "keytool", append(word, "-genseckey", "-keyalg", "AES", "-keysize", "256", "-storetype", "JCEKS", "-keystore", "secret")...)
	return append(all, plant{name: "keytool, secret key", rule: ruleStore, data: w.get("secret")})
}

// packedPlants are a key, packed by the tools that pack. FAULTS 96
func packedPlants(t testing.TB) []plant {
	w := newWorkshop(t)
	key := []byte("AGE-SECRET-KEY-1" + chance(t, 58, upper+digits) + "\n" + strings.Repeat("some more text\n", 99))
	w.put("inner", key)
	var all []plant
	add := func(name, in string, data []byte) {
		rule := ruleAge
		if strings.Contains(name, "encrypted") || strings.Contains(name, "PPMd") {
			rule = ruleUnsearched
		}
		all = append(all, plant{name: name, rule: rule, data: data, in: in})
	}
	for _, c := range []string{"gzip -c", "xz -c", "xz -c --check=none", "xz --x86 --lzma2 -c", "xz --delta --lzma2 -c", "xz --format=lzma -c", "zstd -c", "zstd --long=27 -c", "bzip2 -c", "lz4 -c", "lz4 -l -c", "lzip -c"} {
		words := strings.Fields(c)
		add(c, "", w.run(key, words[0], words[1:]...))
	}
	add("zstd behind a frame to skip", "", append([]byte("\x50\x2a\x4d\x18\x04\x00\x00\x00skip"), w.run(key, "zstd", "-c")...))

	for _, kind := range []string{"store", "deflate", "bzip2"} {
		w.run(nil, "zip", "-q", "-Z", kind, kind+".zip", "inner")
		add("zip, "+kind, "!/inner", w.get(kind+".zip"))
	}
	w.run(nil, "zip", "-q", "-P", "word", "encrypted.zip", "inner")
	add("zip, encrypted", "!/inner", w.get("encrypted.zip"))
	for _, args := range []string{"-tzip -mm=LZMA", "-t7z", "-t7z -m0=LZMA", "-t7z -m0=BZip2", "-t7z -m0=Deflate", "-t7z -m0=Copy", "-t7z -mf=BCJ", "-t7z -m0=PPMd", "-tzip -mm=PPMd", "-t7z -mhc=off", "-tzip -mem=AES256 -pencrypted", "-t7z -pencrypted"} {
		os.Remove(w.path("7.out"))
		w.run(nil, "7zz", append(append([]string{"a", "-bd"}, strings.Fields(args)...), "7.out", "inner")...)
		add("7zz "+args, "!/inner", w.get("7.out"))
	}
	os.Remove(w.path("7.out"))
	w.run(nil, "7zz", "a", "-bd", "-t7z", "-pword", "-mhe=on", "7.out", "inner")
	add("7zz, encrypted, names as well", "", w.get("7.out"))

	for _, kind := range []string{"newc", "crc", "odc"} {
		add("cpio, "+kind, "!/inner", w.run([]byte("inner\n"), "cpio", "-o", "--quiet", "-H", kind))
	}
	for _, kind := range []string{"v7", "ustar", "gnu", "posix"} {
		add("tar, "+kind, "!/inner", w.run(nil, "tar", "--format="+kind, "-c", "inner"))
	}
	w.run(nil, "ar", "rc", "ar", "inner")
	add("ar", "!/inner", w.get("ar"))

	// The other places of an archive: a link's target, an attribute, a file's end.
	token := "ghp_" + chance(t, 36, alnum)
	if err := os.Symlink(token, w.path("link")); err != nil {
		t.Fatal(err)
	}
	add2 := func(name, in string, data []byte) {
		all = append(all, plant{name: name, rule: ruleCloud, data: data, in: in})
	}
	add2("target of a link in tar", "!/link#target", w.run(nil, "tar", "-c", "link"))
	add2("target of a link in cpio", "!/link", w.run([]byte("link\n"), "cpio", "-o", "--quiet", "-H", "newc"))
	add2("attribute in tar", "!/inner#user.x", tarWithAttribute(t, token))
	return append(all, squashPlants(w, key)...)
}

// squashPlants are file systems by mksquashfs.
func squashPlants(w *workshop, key []byte) (all []plant) {
	if err := os.Mkdir(w.path("tree"), 0o755); err != nil {
		w.t.Fatal(err)
	}
	w.put("tree/short", key)
	// Over the end of a block, and with a hole before it.
	long := append(make([]byte, 300<<10-40), key...)
	w.put("tree/long", append(long, []byte(chance(w.t, 99, alnum))...))
	if err := os.Symlink("ghp_"+chance(w.t, 36, alnum), w.path("tree/link")); err != nil {
		w.t.Fatal(err)
	}
	for _, options := range []string{"-comp gzip", "-comp xz", "-comp zstd", "-comp lz4", "-comp lzma", "-no-fragments", "-noI -noD -noF -noX"} {
		os.Remove(w.path("squash"))
		w.run(nil, "mksquashfs", append([]string{"tree", "squash", "-noappend", "-quiet", "-no-progress", "-all-root"}, strings.Fields(options)...)...)
		image := w.get("squash")
		for in, rule := range map[string]string{"!/short": ruleAge, "!/long": ruleAge, "#inodes": ruleCloud} {
			all = append(all, plant{name: "mksquashfs " + options, rule: rule, data: image, in: in})
		}
	}
	return all
}

// TestUnknownMethods sees that what is compressed in a way that is not known, or
// with a dictionary that does not fit into memory, is named.
func TestUnknownMethods(t *testing.T) {
	w := newWorkshop(t)
	text := []byte(strings.Repeat("a text that is searched ", 4))
	// What compress(1) would make of a short text without a repetition.
	z := append([]byte{0x1f, 0x9d, 0x90}, make([]byte, len(text)*9/8+2)...)
	for i, c := range text {
		at := 3 + i*9/8
		z[at] |= c << (i % 8)
		z[at+1] |= byte(uint16(c) << (i % 8) >> 8)
	}
	z = z[:3+(len(text)*9+7)/8]
	if got := w.run(z, "gzip", "-dc"); !bytes.Equal(got, text) {
		t.Fatalf("gzip reads %q", got)
	}
	lzma := w.run(text, "xz", "--format=lzma", "-c")
	copy(lzma[1:5], "\x00\x00\x00\x20")
	for name, data := range map[string][]byte{
		"compress": z, "lzma": lzma,
		"zstd of 2 GB":     w.run(text, "zstd", "--ultra", "--long=31", "-c"),
		"lz4 of elsewhere": append([]byte("\x04\x22\x4d\x18\x65\x40\x01\x02\x03\x04"), text...),
	} {
		s := New(nil)
		if err := s.Bytes(t.Context(), "/f", data); err != nil {
			t.Fatal(err)
		}
		findings, _ := s.Findings()
		if len(findings) != 1 || findings[0].Rule != ruleUnsearched {
			t.Errorf("%s: found %v", name, findings)
		}
	}
}

// TestFindsWhatToolsMake sees that keys are found as tools make and pack them.
func TestFindsWhatToolsMake(t *testing.T) {
	for name, plants := range map[string]func(testing.TB) []plant{"keys": toolPlants, "Java": javaPlants, "archives": packedPlants} {
		t.Run(name, func(t *testing.T) {
			dir, all := t.TempDir(), plants(t)
			grow(t, dir, all)
			s := New(nil)
			if err := s.Tree(t.Context(), dir); err != nil {
				t.Fatal(err)
			}
			findings, _ := s.Findings()
			if rest := missed(t, all, "", findings); len(rest) > 0 {
				t.Errorf("also found %v", rest)
			}
			t.Logf("%d plants", len(all))
		})
	}
}
