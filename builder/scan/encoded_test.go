package scan

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	stdpem "encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf16"
)

// lines breaks a text into lines.
func lines(text string, width int, before, after string) string {
	var b strings.Builder
	for len(text) > 0 {
		n := min(width, len(text))
		b.WriteString(before + text[:n] + after)
		text = text[n:]
	}
	return b.String()
}

// each writes every byte in its own way.
func each(data []byte, format string) string {
	var b strings.Builder
	for i, c := range data {
		if i%12 == 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, format, c)
	}
	return b.String()
}

var urlEscape = regexp.MustCompile(`%[0-9a-f]{2}`)

// encodedPlants are keys in what people and programs write them as. FAULTS 96
func encodedPlants(t testing.TB) []plant {
	t.Helper()
	rsaKey := must[*rsa.PrivateKey](t)(rsa.GenerateKey(rand.Reader, 2048))
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der := must[[]byte](t)(x509.MarshalPKCS8PrivateKey(rsaKey))
	ed := must[[]byte](t)(x509.MarshalPKCS8PrivateKey(edKey))
	text := string(stdpem.EncodeToMemory(&stdpem.Block{Type: "PRIVATE KEY", Bytes: der}))
	std := base64.StdEncoding.EncodeToString(der)
	var all []plant
	add := func(name, rule, data string) {
		// Letters before digits, and a sign before the first zero, belong to them.
		inexact := name == "PKCS#8 in lines of hexadecimal" || name == "PEM in UTF-16 of the other order"
		all = append(all, plant{name: name, rule: rule, data: []byte(data), whole: inexact})
	}
	add("PKCS#8 in Base64", ruleDER, "key="+std+"\n")
	add("PKCS#8 of Ed25519 in Base64", ruleDER, "key: "+base64.StdEncoding.EncodeToString(ed)+"\n")
	add("PKCS#8 in Base64 for URLs", ruleDER, `{"key":"`+base64.RawURLEncoding.EncodeToString(der)+`"}`)
	add("PKCS#8 in lines of Base64", ruleDER, "key:\n"+lines(std, 76, "    ", "\n"))
	add("PKCS#8 in strings of Java", ruleDER, "String k =\n"+lines(std, 60, `    "`, "\" +\n")+";")
	add("PKCS#8 in strings of C with escaped ends", ruleDER, lines(std, 64, `"`, `\n"`+"\n"))
	add("PKCS#8 in JSON with escaped slashes", ruleDER, `{"k":"`+strings.ReplaceAll(std, "/", `\/`)+`"}`)
	add("PKCS#8 in JSON with escaped signs", ruleDER, `{"k":"`+strings.NewReplacer("+", `\u002b`, "/", `\u002F`, "=", `\u003d`).Replace(std)+`"}`)
	add("PKCS#8 in Base64 twice", ruleDER, "x: "+base64.StdEncoding.EncodeToString([]byte(std))+"\n")
	add("PKCS#8 in hexadecimal", ruleDER, "key "+hex.EncodeToString(der)+"\n")
	add("PKCS#8 in lines of hexadecimal", ruleDER, lines(strings.ToUpper(hex.EncodeToString(der)), 60, "", "\n"))
	add("PKCS#8 in hexadecimal with colons", ruleDER, "key="+strings.TrimSuffix(each(der, "%02x:"), ":")+"\n")
	add("PKCS#8 as an array of C", ruleDER, "unsigned char der[] = {"+each(der, " 0x%02x,")+"\n};\n")
	add("PKCS#8 as an array of decimals", ruleDER, "var key = ["+each(der, "%d, ")+"];\n")
	add("PKCS#8 as escapes of C", ruleDER, `char *k = "`+strings.ReplaceAll(each(der, `\x%02x`), "\n", "")+`";`)
	add("PKCS#8 as octal escapes", ruleDER, `char *k = "`+strings.ReplaceAll(each(der, `\%03o`), "\n", "")+`";`)
	python := func(der []byte) string {
		return "k = b'" + strings.ReplaceAll(strings.Trim(strconv.QuoteToASCII(string(latin1(der))), `"`), `\u00`, `\x`) + "'"
	}
	add("PKCS#8 as Python prints it", ruleDER, python(der))
	for { // until it has what looks like the escape of a URL
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if text := python(must[[]byte](t)(x509.MarshalPKCS8PrivateKey(key))); urlEscape.MatchString(text) {
			add("PKCS#8 as Python prints it, with a percent sign", ruleDER, text)
			break
		}
	}
	add("bytes of Java", ruleDER, "byte[] k = {"+signed(der)+"};")
	add("PKCS#8, one character of Base64 a line", ruleDER, lines(std, 1, "", "\n"))
	add("PEM, one character a line", rulePEM, strings.ReplaceAll(lines(text, 1, "", "\n"), "\n\n\n", "\n\n"))
	add("PEM, one character a line of Windows", rulePEM, lines(strings.ReplaceAll(text, "\n", ""), 1, "", "\r\n"))
	add("PEM with a blank after each character", rulePEM, lines(strings.ReplaceAll(text, "\n", ""), 1, "", " "))
	add("PEM in UTF-16 of the other order", rulePEM, string(utf16be(text)))
	add("PEM quoted", rulePEM, "> "+strings.ReplaceAll(text, "\n", "\n> "))
	add("PEM in comments", rulePEM, "# "+strings.ReplaceAll(text, "\n", "\n# "))
	add("PEM in strings of Go", rulePEM, `"`+strings.ReplaceAll(text, "\n", "\\n\" +\n\t\"")+`"`)
	add("PEM with escaped dashes", rulePEM, `{"k":"`+strings.NewReplacer("-", `\u002d`, "\n", `\u000a`).Replace(text)+`"}`)
	add("PEM with every character escaped", rulePEM, `"`+strings.ReplaceAll(each([]byte(text), `\u%04x`), "\n", "")+`"`)
	add("PEM in a URL", rulePEM, "https://host/?k="+url.PathEscape(text))
	add("PEM in a form", rulePEM, "k="+url.QueryEscape(text))
	add("PEM in HTML", rulePEM, strings.NewReplacer("-", "&#45;", " ", "&#32;").Replace(text))
	add("PEM in JSON in JSON", rulePEM, `{"a":"{\"k\":\"`+strings.ReplaceAll(text, "\n", `\\n`)+`\"}"}`)
	add("archive in Base64", ruleAge, "data: "+base64.StdEncoding.EncodeToString(gzipOf(t, []byte("AGE-SECRET-KEY-1"+chance(t, 58, upper+digits))))+"\n")
	return all
}

func latin1(data []byte) []rune {
	var r []rune
	for _, b := range data {
		r = append(r, rune(b))
	}
	return r
}

func signed(data []byte) string {
	var b strings.Builder
	for _, c := range data {
		fmt.Fprintf(&b, "%d, ", int8(c))
	}
	return b.String()
}

func utf16be(text string) []byte {
	var out []byte
	for _, u := range utf16.Encode([]rune(text)) {
		out = binary.BigEndian.AppendUint16(out, u)
	}
	return out
}

// otherPlants are keys in formats that no small tool writes. FAULTS 96
func otherPlants(t testing.TB) []plant {
	t.Helper()
	key := must[*rsa.PrivateKey](t)(rsa.GenerateKey(rand.Reader, 2048))
	number := func(n *big.Int) string { return base64.StdEncoding.EncodeToString(n.Bytes()) }
	secret := make([]byte, 32)
	rand.Read(secret)
	ticket := make([]byte, 80)
	rand.Read(ticket)
	host := make([]byte, 4112)
	rand.Read(host)
	wireGuard := base64.StdEncoding.EncodeToString(secret)
	le := binary.LittleEndian.AppendUint32
	blob := le(le(le(le(le([]byte("RSA3"), 2048), 3), 256), 128), 128)
	blob = append(append(append(blob, 1, 0, 1), key.N.Bytes()...), append(key.Primes[0].Bytes(), key.Primes[1].Bytes()...)...)
	curve := append(le([]byte("ECS2"), 32), append(append(secret[:32:32], ticket[:32]...), ticket[32:64]...)...)
	return []plant{
		{name: "TLS ticket key", rule: ruleKeyFile, data: ticket, whole: true},
		{name: "TLS ticket keys in Base64", rule: ruleKeyFile, data: []byte(base64.StdEncoding.EncodeToString(ticket) + "\n" + base64.StdEncoding.EncodeToString(host[:80]) + "\n"), whole: true},
		{name: "host key of systemd-creds", rule: ruleKeyFile, data: host, whole: true},
		{name: "signing key of Synapse", rule: ruleOther, data: []byte("ed25519 a_KFvb " + base64.RawStdEncoding.EncodeToString(secret) + "\n")},
		{name: "RSA key in XML", rule: ruleOther, data: []byte("<RSAKeyValue><Modulus>" + number(key.N) + "</Modulus><Exponent>AQAB</Exponent><P>" + number(key.Primes[0]) + "</P><D>" + number(key.D) + "</D></RSAKeyValue>")},
		{name: "RSA key of BCrypt", rule: ruleOther, data: blob},
		{name: "ECDSA key of BCrypt", rule: ruleOther, data: curve},
		{name: "state of tailscaled", rule: ruleOther, data: []byte(`{"_machinekey":"` + base64.StdEncoding.EncodeToString([]byte("privkey:"+hex.EncodeToString(secret))) + `","_current-profile":"cHJvZmlsZS1hYmNk"}`)},
		{name: "Ethereum key store", rule: ruleStore, data: []byte(`{"crypto":{"cipher":"aes-128-ctr","cipherparams":{"iv":"00"},"ciphertext":"` + chance(t, 64, hexa) + `","kdf":"scrypt","kdfparams":{"n":262144},"mac":"` + chance(t, 64, hexa) + `"},"version":3}`)},
		// Test vector 1 of BIP 32, and that of NIP-19.
		{name: "key of BIP 32", rule: ruleOther, data: []byte("seed: xprv9s21ZrQH143K3QTDL4LXw2F7HEK3wJUD2nW2nRk4stbPy6cq3jPPqjiChkVvvNKmPGJxWUtg6LnF5kejMRNNU3TGtRBeJgk33yuGBxrMPHi\n")},
		{name: "key of Nostr", rule: ruleOther, data: []byte("key=nsec1vl029mgpspedva04g90vltkh6fvh240zqtv9k0t9af8935ke9laqsnlfe5\n")},
		{name: "WireGuard in JSON", rule: ruleWireGuard, data: []byte(`{"private_key": "` + wireGuard + `", "peers": []}`)},
		{name: "WireGuard in JSON of Go", rule: ruleWireGuard, data: []byte(`{"PrivateKey":"` + wireGuard + `"}`)},
		{name: "WireGuard in YAML", rule: ruleWireGuard, data: []byte("peers:\n  - presharedKey: '" + wireGuard + "'\n")},
		{name: "WireGuard in NetworkManager", rule: ruleWireGuard, data: []byte("[connection]\ntype=wireguard\n\n[wireguard]\nprivate-key=" + wireGuard + "\n")},
		{name: "WireGuard in an environment", rule: ruleWireGuard, data: []byte("export WG_PRIVATE_KEY=" + wireGuard + "\n")},
		{name: "WireGuard's own interface", rule: ruleWireGuard, data: []byte("set=1\nprivate_key=" + hex.EncodeToString(secret) + "\n")},
		{name: "netrc in a script", rule: ruleLogin, data: []byte("cat >~/.netrc <<EOF\nmachine git.internal login me password " + chance(t, 12, alnum) + "\nEOF\n")},
		{name: "message that is encrypted", rule: ruleUnsearched, data: []byte("-----BEGIN PGP MESSAGE-----\n\n" + chance(t, 64, alnum)), whole: true},
		{name: "archive of RAR", rule: ruleUnsearched, data: []byte("Rar!\x1a\x07\x01\x00" + chance(t, 64, alnum)), whole: true},
	}
}

func FuzzEncoded(f *testing.F) {
	for _, p := range encodedPlants(f) {
		f.Add(p.data[:min(len(p.data), 1024)])
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for i := 0; i < min(len(data), 4096); i += 61 {
			for _, decode := range []func([]byte, int, int) (int, int, []byte){spread, coded} {
				start, end, plain := decode(data, 0, i)
				if start < 0 || start > end && plain != nil || end > len(data) || len(plain) > len(data) {
					t.Fatalf("at %d: from %d to %d, %d bytes", i, start, end, len(plain))
				}
			}
		}
		for _, kind := range []byte(`\%&+`) {
			if plain := unescape(data, kind); len(plain) > len(data) {
				t.Fatalf("%d bytes became %d", len(data), len(plain))
			}
		}
		if e, rest, ok := parseSexp(data, 0); ok && (len(rest) >= len(data) || len(e.list) > len(data)) {
			t.Fatal("an expression of nothing")
		}
	})
}

// TestLongText sees that a text longer than what is decoded at a time is named.
func TestLongText(t *testing.T) {
	s := New(nil)
	if err := s.Bytes(t.Context(), "/f", bytes.Repeat([]byte("AbCdEfGhIjKlMnOp"), maxEncoded/16+10)); err != nil {
		t.Fatal(err)
	}
	findings, _ := s.Findings()
	if len(findings) == 0 || findings[0].Rule != ruleUnsearched {
		t.Errorf("found %v", findings)
	}
}

// TestMemoryIsBounded sees that what does not fit into memory beside what is
// unpacked already is named.
func TestMemoryIsBounded(t *testing.T) {
	j := New(nil).job(t.Context())
	j.held = maxHeld - 100
	key := "AGE-SECRET-KEY-1" + chance(t, 58, upper+digits)
	if err := j.member("/f", strings.NewReader(key+strings.Repeat("\n", 200)), 1); err != nil {
		t.Fatal(err)
	}
	if want := []Finding{{"/f", 0, ruleUnsearched}, {"/f", 0, ruleAge}}; !slices.Equal(j.findings[:2], want) || j.held != maxHeld-100 {
		t.Errorf("found %v, %d bytes are held", j.findings, j.held)
	}
	if err := j.view("/f", 9, 9, 99, make([]byte, 200), 1); err != nil {
		t.Fatal(err)
	}
	if last := j.findings[len(j.findings)-1]; last != (Finding{"/f", 9, ruleUnsearched}) {
		t.Errorf("a text: found %v", last)
	}
}

// A password's hash that is allowed does not hide the key beside it.
func TestKeyBesideAnotherSecret(t *testing.T) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der := must[[]byte](t)(x509.MarshalPKCS8PrivateKey(key))
	s := New(must[[]Allow](t)(ParseAllow(ruleShadow, "/f for a reason")))
	text := `{"hash":"$6$abcdefgh$` + chance(t, 86, alnum) + `","key":"` + base64.StdEncoding.EncodeToString(der) + `"}`
	if err := s.Bytes(t.Context(), "/f", []byte(text)); err != nil {
		t.Fatal(err)
	}
	found, allowed := s.Findings()
	if len(allowed) != 1 || len(found) != 1 || found[0].Rule != ruleDER {
		t.Errorf("found %v, allowed %v", found, allowed)
	}
}
