package scan

import (
	"archive/tar"
	"bytes"
	"compress/zlib"
	"crypto/dsa" //lint:ignore SA1019 such keys still lie about
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	stdpem "encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zip"
	"github.com/klauspost/compress/zstd"
	"github.com/u-root/u-root/pkg/cpio"
	"github.com/ulikunitz/xz"
	"github.com/youmark/pkcs8"
	"golang.org/x/crypto/ssh"

	"halogenos.internal/boot/testkit"
)

// A plant is a file with a secret, by the rule that must find it.
type plant struct {
	name  string // says what it is; the file's name does not
	rule  string
	data  []byte
	in    string // the member that it is found in
	whole bool   // where it is found depends on what is before it
}

// must returns a value, or ends the test.
func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// chance returns random text of an alphabet.
func chance(t testing.TB, n int, alphabet string) string {
	t.Helper()
	b := make([]byte, n)
	rand.Read(b)
	for i := range b {
		b[i] = alphabet[int(b[i])%len(alphabet)]
	}
	return string(b)
}

const (
	lower  = "abcdefghijklmnopqrstuvwxyz"
	upper  = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	digits = "0123456789"
	hexa   = "0123456789abcdef"
	alnum  = lower + upper + digits
)

func block2pem(label string, der []byte) []byte {
	return stdpem.EncodeToMemory(&stdpem.Block{Type: label, Bytes: der})
}

// plants makes one of each kind of secret, again each time.
func plants(t testing.TB) []plant {
	t.Helper()
	var all []plant
	all = append(all, keyPlants(t)...)
	all = append(all, openpgpPlants(t)...)
	all = append(all, storePlants(t)...)
	all = append(all, textPlants(t)...)
	all = append(all, tokenPlants(t)...)
	all = append(all, otherPlants(t)...)
	all = append(all, encodedPlants(t)...)
	return append(all, archivePlants(t)...)
}

func keyPlants(t testing.TB) []plant {
	t.Helper()
	bytesOf := must[[]byte](t)
	rsaKey := must[*rsa.PrivateKey](t)(rsa.GenerateKey(rand.Reader, 2048))
	ecKey := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pkcs1, sec1 := x509.MarshalPKCS1PrivateKey(rsaKey), bytesOf(x509.MarshalECPrivateKey(ecKey))
	rsa8, ed8 := bytesOf(x509.MarshalPKCS8PrivateKey(rsaKey)), bytesOf(x509.MarshalPKCS8PrivateKey(edKey))
	locked := bytesOf(pkcs8.MarshalPrivateKey(rsaKey, []byte("word"), nil))
	openssh := must[*stdpem.Block](t)(ssh.MarshalPrivateKey(edKey, "host"))
	opensshLocked := must[*stdpem.Block](t)(ssh.MarshalPrivateKeyWithPassphrase(rsaKey, "me", []byte("word")))
	text := string(block2pem("PRIVATE KEY", rsa8))
	return []plant{
		{name: "PKCS#1 in PEM", rule: rulePEM, data: block2pem("RSA PRIVATE KEY", pkcs1)},
		{name: "SEC1 in PEM", rule: rulePEM, data: block2pem("EC PRIVATE KEY", sec1)},
		{name: "PKCS#8 in PEM", rule: rulePEM, data: []byte(text)},
		{name: "encrypted PKCS#8 in PEM", rule: rulePEM, data: block2pem("ENCRYPTED PRIVATE KEY", locked)},
		{name: "PEM with a header", rule: rulePEM, data: []byte("-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\n" + base64.StdEncoding.EncodeToString(pkcs1) + "\n-----END RSA PRIVATE KEY-----\n")},
		{name: "PEM with the line ends of Windows, indented", rule: rulePEM, data: []byte("key: |\r\n  " + strings.ReplaceAll(text, "\n", "\r\n  "))},
		{name: "PEM in a program", rule: rulePEM, data: []byte("\x7fELF\x02\x01\x01\x00" + strings.Repeat("\x00\xff", 5000) + text + "\x00more")},
		{name: "PEM in JSON, as Google's accounts of services", rule: rulePEM, data: []byte(`{"type":"service_account","private_key":"` + strings.ReplaceAll(text, "\n", `\n`) + `"}`)},
		{name: "PEM in UTF-16", rule: rulePEM, data: utf16le(text)},
		{name: "PEM in Base64, as in a kubeconfig", rule: rulePEM, data: []byte("    client-key-data: " + base64.StdEncoding.EncodeToString([]byte(text)) + "\n")},
		{name: "TPM key in PEM", rule: rulePEM, data: block2pem("TSS2 PRIVATE KEY", rsa8)},
		{name: "PKCS#1 in DER", rule: ruleDER, data: pkcs1},
		{name: "PKCS#8 of RSA in DER", rule: ruleDER, data: rsa8},
		{name: "PKCS#8 of Ed25519 in DER, in the middle of others", rule: ruleDER, data: append(append(bytes.Repeat([]byte{0x30}, 999), ed8...), bytes.Repeat([]byte{2}, 99)...)},
		{name: "SEC1 in DER", rule: ruleDER, data: sec1},
		{name: "encrypted PKCS#8 in DER", rule: ruleDER, data: locked},
		{name: "DSA in DER", rule: ruleDER, data: dsaKey(t)},
		{name: "host key of OpenSSH", rule: ruleSSH, data: stdpem.EncodeToMemory(openssh)},
		{name: "encrypted key of OpenSSH", rule: ruleSSH, data: stdpem.EncodeToMemory(opensshLocked)},
		{name: "key of OpenSSH without armor", rule: ruleSSH, data: openssh.Bytes},
		{name: "key of PuTTY", rule: ruleSSH, data: []byte("PuTTY-User-Key-File-3: ssh-ed25519\r\nEncryption: none\r\nComment: x\r\nPublic-Lines: 1\r\n" + chance(t, 48, alnum) + "\r\nPrivate-Lines: 1\r\n" + chance(t, 44, alnum) + "\r\n")},
		{name: "key of SSH 1", rule: ruleSSH, data: []byte("SSH PRIVATE KEY FILE FORMAT 1.1\n\x00\x03\x00\x00\x00\x00" + chance(t, 300, alnum))},
		{name: "age identity", rule: ruleAge, data: []byte("# created: 2026\nAGE-SECRET-KEY-1" + chance(t, 58, upper+digits) + "\n")},
		{name: "JSON web key of RSA", rule: ruleJWK, data: []byte(`{"kty":"RSA","n":"` + chance(t, 342, alnum) + `","e":"AQAB","d":"` + chance(t, 342, alnum) + `"}`)},
		{name: "symmetric JSON web key", rule: ruleJWK, data: []byte(`{"keys":[{"k":"` + chance(t, 43, alnum) + `","kty":"oct"}]}`)},
	}
}

func dsaKey(t testing.TB) []byte {
	t.Helper()
	key := new(dsa.PrivateKey)
	// The form is what counts, not that the numbers fit together.
	key.P = must[*big.Int](t)(rand.Prime(rand.Reader, 1024))
	key.Q = must[*big.Int](t)(rand.Prime(rand.Reader, 160))
	return must[[]byte](t)(asn1.Marshal([]*big.Int{new(big.Int), key.P, key.Q, big.NewInt(2), new(big.Int).Sub(key.P, key.Q), key.Q}))
}

func utf16le(text string) []byte {
	out := []byte{0xff, 0xfe}
	for _, u := range utf16.Encode([]rune(text)) {
		out = append(out, byte(u), byte(u>>8))
	}
	return out
}

// secretKey makes an OpenPGP key, encrypted where there is a password.
func secretKey(t testing.TB, algorithm packet.PublicKeyAlgorithm, v6 bool, password string) []byte {
	t.Helper()
	config := &packet.Config{Algorithm: algorithm, RSABits: 2048, V6Keys: v6, Time: func() time.Time { return time.Unix(1_700_000_000, 0) }}
	entity := must[*openpgp.Entity](t)(openpgp.NewEntity("Somebody", "", "s@example.org", config))
	if password != "" {
		if err := entity.EncryptPrivateKeys([]byte(password), config); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	if err := entity.SerializePrivateWithoutSigning(&out, config); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func openpgpPlants(t testing.TB) []plant {
	t.Helper()
	key := secretKey(t, packet.PubKeyAlgoEdDSA, false, "")
	var armored bytes.Buffer
	w := must[interface {
		Write([]byte) (int, error)
		Close() error
	}](t)(armor.Encode(&armored, "PGP PRIVATE KEY BLOCK", map[string]string{"Comment": "x"}))
	if _, err := w.Write(key); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return []plant{
		{name: "OpenPGP key, armored", rule: ruleOpenPGP, data: armored.Bytes()},
		{name: "OpenPGP key of EdDSA", rule: ruleOpenPGP, data: key},
		{name: "OpenPGP key of EdDSA, encrypted", rule: ruleOpenPGP, data: secretKey(t, packet.PubKeyAlgoEdDSA, false, "word")},
		{name: "OpenPGP key of RSA", rule: ruleOpenPGP, data: secretKey(t, packet.PubKeyAlgoRSA, false, "")},
		{name: "OpenPGP key of RSA, encrypted, behind others", rule: ruleOpenPGP, data: append([]byte("\x00\x94\x95prefix"), secretKey(t, packet.PubKeyAlgoRSA, false, "word")...)},
		{name: "OpenPGP key of version 6", rule: ruleOpenPGP, data: secretKey(t, packet.PubKeyAlgoEd25519, true, "")},
		{name: "OpenPGP key of version 6, encrypted", rule: ruleOpenPGP, data: secretKey(t, packet.PubKeyAlgoEd25519, true, "word")},
		{name: "key of gpg-agent", rule: ruleOpenPGP, data: []byte("(11:private-key(3:ecc(5:curve7:Ed25519)(1:q33:@" + chance(t, 32, alnum) + ")(1:d32:" + chance(t, 32, alnum) + ")))")},
		{name: "encrypted key of gpg-agent", rule: ruleOpenPGP, data: []byte("(21:protected-private-key(3:ecc(5:curve7:Ed25519)(1:q33:@" + chance(t, 32, alnum) + ")(9:protected25:openpgp-s2k3-sha1-aes-cbc((4:sha18:abcdefgh8:33816576)16:" + chance(t, 16, alnum) + ")48:" + chance(t, 48, alnum) + ")))")},
		{name: "readable key of gpg-agent", rule: ruleOpenPGP, data: []byte("Created: 20260101T000000\nKey: (private-key (ecc (curve Ed25519)(flags eddsa)(q\n  #40" + chance(t, 64, hexa) + "#)(d\n  #" + chance(t, 64, hexa) + "#)))\n")},
	}
}

func storePlants(t testing.TB) []plant {
	t.Helper()
	dir := t.TempDir()
	testkit.Need(t, "openssl")
	testkit.Run(t, "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=x", "-keyout", dir+"/key", "-out", dir+"/cert")
	testkit.Run(t, "openssl", "pkcs12", "-export", "-inkey", dir+"/key", "-in", dir+"/cert", "-passout", "pass:word", "-out", dir+"/p12")
	luks := func(version string) []byte {
		testkit.Need(t, "cryptsetup")
		file := filepath.Join(dir, version)
		if err := os.WriteFile(file, make([]byte, 32<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file+".word", []byte("word"), 0o600); err != nil {
			t.Fatal(err)
		}
		testkit.Run(t, "cryptsetup", "luksFormat", "--batch-mode", "--type", version, "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", file+".word", file)
		return must[[]byte](t)(os.ReadFile(file))[:1<<20]
	}
	java := func(tag byte) []byte {
		b := []byte{0xfe, 0xed, 0xfe, 0xed, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, tag, 0, 3, 'k', 'e', 'y'}
		return append(append(b, make([]byte, 8)...), chance(t, 400, alnum)...)
	}
	random := make([]byte, 64)
	rand.Read(random)
	large := make([]byte, 4096)
	rand.Read(large)
	luks2 := luks("luks2")
	return []plant{
		{name: "PKCS#12", rule: ruleStore, data: must[[]byte](t)(os.ReadFile(dir + "/p12"))},
		{name: "Java key store", rule: ruleStore, data: java(1)},
		{name: "Java key store with a secret key", rule: ruleStore, data: append([]byte{0xce, 0xce, 0xce, 0xce}, java(3)[4:]...)},
		{name: "keytab", rule: ruleStore, data: keytabOf("EXAMPLE.ORG", "host")},
		{name: "GNOME keyring", rule: ruleStore, data: []byte("GnomeKeyring\n\r\x00\n\x00\x00\x00\x00\x00\x00\x00\x05login\x00\x00\x00\x00")},
		{name: "GNOME keyring without a name", rule: ruleStore, data: []byte("GnomeKeyring\n\r\x00\n\x00\x00\x00\x00\xff\xff\xff\xff\x00\x00\x00\x00")},
		{name: "keyring of libsecret", rule: ruleStore, data: append([]byte("GnomeKeyring\n\r\x00\n\x01\x00\x20\x00\x00\x00"), random[:32]...)},
		{name: "KeePass database", rule: ruleStore, data: append([]byte{3, 0xd9, 0xa2, 0x9a, 0x67, 0xfb, 0x4b, 0xb5, 1, 0, 4, 0}, chance(t, 200, alnum)...)},
		{name: "database of NSS", rule: ruleStore, data: []byte("SQLite format 3\x00" + strings.Repeat("\x00", 100) + "CREATE TABLE nssPrivate (id PRIMARY KEY")},
		{name: "LUKS1 header", rule: ruleLUKS, data: luks("luks1")},
		{name: "LUKS2 header in a backup of a disk", rule: ruleLUKS, data: append(make([]byte, 8192), luks2...)},
		{name: "second LUKS2 header", rule: ruleLUKS, data: luks2[bytes.Index(luks2, []byte("SKUL\xba\xbe")):]},
		{name: "key file of 64 bytes", rule: ruleKeyFile, data: random},
		{name: "key file of 4096 bytes", rule: ruleKeyFile, data: large},
		{name: "key file in hexadecimal", rule: ruleKeyFile, data: []byte(hex.EncodeToString(random) + "\n")},
		{name: "key file in Base64", rule: ruleKeyFile, data: []byte(base64.StdEncoding.EncodeToString(random[:32]) + "\n")},
	}
}

func keytabOf(realm, name string) []byte {
	var e bytes.Buffer
	for _, part := range []any{uint16(1), uint16(len(realm)), []byte(realm), uint16(len(name)), []byte(name), uint32(1), uint32(1_700_000_000), uint8(1), uint16(18), uint16(32), make([]byte, 32)} {
		if err := binary.Write(&e, binary.BigEndian, part); err != nil {
			panic(err) // all have a fixed size
		}
	}
	return append(binary.BigEndian.AppendUint32([]byte{5, 2}, uint32(e.Len())), e.Bytes()...)
}

func textPlants(t testing.TB) []plant {
	t.Helper()
	secret := make([]byte, 32)
	rand.Read(secret)
	key := base64.StdEncoding.EncodeToString(secret)
	signify := base64.StdEncoding.EncodeToString(append([]byte("EdBK"), chance(t, 100, alnum)...))
	crypt := "./" + alnum
	return []plant{
		{name: "shadow, SHA-512", rule: ruleShadow, data: []byte("bin:*:20000:0:99999:7:::\nroot:$6$" + chance(t, 16, alnum) + "$" + chance(t, 86, crypt) + ":20000:0:99999:7:::\n")},
		{name: "shadow, yescrypt", rule: ruleShadow, data: []byte("root:$y$j9T$" + chance(t, 22, crypt) + "$" + chance(t, 43, crypt) + ":20000:0:99999:7:::\n")},
		{name: "shadow, DES, locked", rule: ruleShadow, data: []byte("root:!" + chance(t, 13, crypt) + ":20000:0:99999:7:::\n")},
		{name: "htpasswd, bcrypt", rule: ruleShadow, data: []byte("me:$2y$10$" + chance(t, 53, crypt) + "\n")},
		{name: "password of an installer", rule: ruleShadow, data: []byte("rootpw --iscrypted $5$" + chance(t, 16, alnum) + "$" + chance(t, 43, crypt) + "\n")},
		{name: "password of LDAP", rule: ruleShadow, data: []byte("userPassword: {SSHA}" + chance(t, 32, alnum) + "\n")},
		{name: "password of GRUB", rule: ruleShadow, data: []byte("password_pbkdf2 root grub.pbkdf2.sha512.10000." + strings.ToUpper(chance(t, 128, hexa)) + "." + strings.ToUpper(chance(t, 128, hexa)) + "\n")},
		{name: "machine-id", rule: ruleMachineID, data: []byte(chance(t, 32, hexa) + "\n")},
		{name: "WireGuard", rule: ruleWireGuard, data: []byte("[Interface]\nAddress = 10.0.0.1/24\nPrivateKey = " + key + "\n")},
		{name: "WireGuard's preshared key in systemd-networkd", rule: ruleWireGuard, data: []byte("[WireGuardPeer]\nPublicKey=" + key + "\nPresharedKey=" + key + "\n")},
		{name: "NetworkManager, Wi-Fi", rule: ruleWiFi, data: []byte("[connection]\nid=home\ntype=wifi\n\n[wifi-security]\nkey-mgmt=wpa-psk\npsk=correct horse\n")},
		{name: "NetworkManager, 802.1X", rule: ruleWiFi, data: []byte("[connection]\nid=work\ntype=ethernet\n\n[802-1x]\nidentity=me\npassword=hunter22\n")},
		{name: "wpa_supplicant", rule: ruleWiFi, data: []byte("network={\n\tssid=\"x\"\n\tpsk=\"correct horse\"\n}\n")},
		{name: "iwd", rule: ruleWiFi, data: []byte("[Security]\nPassphrase=correct horse\n")},
		{name: "IPsec", rule: ruleWiFi, data: []byte("10.0.0.1 10.0.0.2 : PSK \"" + chance(t, 20, alnum) + "\"\n")},
		{name: "netrc", rule: ruleLogin, data: []byte("machine api.internal\n  login me\n  password " + chance(t, 12, alnum) + "\n")},
		{name: "git-credentials", rule: ruleLogin, data: []byte("https://me:" + chance(t, 20, alnum) + "@example.org\n")},
		{name: "login of Docker", rule: ruleLogin, data: []byte(`{"auths":{"example.org":{"auth":"` + base64.StdEncoding.EncodeToString([]byte("me:"+chance(t, 12, alnum))) + `"}}}`)},
		{name: "key of signify", rule: ruleOther, data: []byte("untrusted comment: signify secret key\n" + signify + "\n")},
		{name: "key of DNSSEC", rule: ruleOther, data: []byte("Private-key-format: v1.3\nAlgorithm: 15 (ED25519)\nPrivateKey: " + key + "\n")},
		{name: "TSIG", rule: ruleOther, data: []byte("key \"x\" {\n\talgorithm hmac-sha256;\n\tsecret \"" + key + "\";\n};\n")},
		{name: "key of an onion service", rule: ruleOther, data: []byte("== ed25519v1-secret: type0 ==\x00\x00\x00" + chance(t, 64, alnum))},
		{name: "key of OpenVPN", rule: ruleOther, data: []byte("-----BEGIN OpenVPN Static key V1-----\n" + chance(t, 32, hexa) + "\n" + chance(t, 32, hexa) + "\n")},
	}
}

func tokenPlants(t testing.TB) []plant {
	t.Helper()
	var all []plant
	for name, text := range map[string]string{
		"AWS key":           "aws_access_key_id = AKIA" + chance(t, 16, upper+"234567"),
		"AWS secret":        "aws_secret_access_key = " + chance(t, 40, alnum),
		"AWS in JSON":       `{"SecretAccessKey": "` + chance(t, 40, alnum) + `"}`,
		"Google key":        "key=AIza" + chance(t, 35, alnum),
		"Google client":     "GOCSPX-" + chance(t, 28, alnum),
		"Azure storage":     "AccountName=x;AccountKey=" + chance(t, 86, alnum) + "==",
		"Azure application": "AZURE_CLIENT_SECRET=" + chance(t, 3, alnum) + "8Q~" + chance(t, 34, alnum),
		"GitHub":            "token: ghp_" + chance(t, 36, alnum),
		"GitHub, fine":      "github_pat_" + chance(t, 22, alnum) + "_" + chance(t, 59, alnum),
		"GitLab":            "glpat-" + chance(t, 20, alnum),
		"Slack":             "xoxb-" + chance(t, 12, digits) + "-" + chance(t, 24, alnum),
		"Slack hook":        "https://hooks.slack.com/services/T" + chance(t, 8, upper) + "/B" + chance(t, 8, upper) + "/" + chance(t, 24, alnum),
		"npm":               "//registry.example.org/:_authToken=npm_" + chance(t, 36, alnum),
		"SendGrid":          "API_KEY=SG." + chance(t, 22, alnum) + "." + chance(t, 43, alnum),
		"Stripe":            "sk_live_" + chance(t, 24, alnum),
		"Vault":             "VAULT_TOKEN=hvs." + chance(t, 90, alnum),
		"web token":         "Bearer eyJhbGciOiJIUzI1NiJ9." + base64.RawURLEncoding.EncodeToString([]byte(`{"sub":"`+chance(t, 20, alnum)+`"}`)) + "." + chance(t, 43, alnum),
	} {
		all = append(all, plant{name: name, rule: ruleCloud, data: []byte("# " + strings.Repeat("configuration ", 9) + "\n" + text + "\n")})
	}
	return all
}

// archivePlants hides a key in archives, and in archives within these.
func archivePlants(t testing.TB) []plant {
	t.Helper()
	key := []byte(fmt.Sprintf("AGE-SECRET-KEY-1%s\n", chance(t, 58, upper+digits)))
	id := []byte(chance(t, 32, hexa) + "\n") // only found as a whole file
	encrypted := zipOf(t, "inner", key)
	encrypted[bytes.Index(encrypted, []byte("PK\x01\x02"))+8] |= 1
	all := []plant{
		{name: "gzip", rule: ruleAge, data: gzipOf(t, key)},
		{name: "zlib, as git has it", rule: ruleAge, data: zlibOf(t, append([]byte("blob 75\x00"), key...)), whole: true},
		{name: "xz", rule: ruleAge, data: xzOf(t, key)},
		{name: "zstd", rule: ruleAge, data: zstdOf(t, key)},
		{name: "tar", rule: ruleMachineID, data: tarOf(t, "inner", id), in: "!/inner"},
		{name: "tar in gzip", rule: ruleMachineID, data: gzipOf(t, tarOf(t, "inner", id)), in: "!/inner"},
		{name: "tar in xz in tar in zstd", rule: ruleAge, data: zstdOf(t, tarOf(t, "a", xzOf(t, tarOf(t, "b", key)))), in: "!/a!/b"},
		{name: "cpio", rule: ruleMachineID, data: cpioOf(t, "inner", id), in: "!/inner"},
		{name: "three cpio archives in a row, two in zstd with zeros between them", rule: ruleMachineID, data: slices.Concat(cpioOf(t, "nothing", []byte("x")), zstdOf(t, cpioOf(t, "nor", []byte("y"))), make([]byte, 99), zstdOf(t, cpioOf(t, "inner", id))), in: "!/inner"},
		{name: "a cpio archive behind two frames of zstd and zeros", rule: ruleMachineID, data: slices.Concat(zstdOf(t, cpioOf(t, "nothing", []byte("x"))), zstdOf(t, cpioOf(t, "nor", []byte("y"))), make([]byte, 9), cpioOf(t, "inner", id)), in: "!/inner"},
		{name: "a cpio archive in the second frame of zstd", rule: ruleMachineID, data: slices.Concat(zstdOf(t, cpioOf(t, "nothing", []byte("x"))), zstdOf(t, cpioOf(t, "inner", id))), in: "!/inner"},
		{name: "a cpio archive right behind a frame of zstd", rule: ruleMachineID, data: slices.Concat(zstdOf(t, cpioOf(t, "nothing", []byte("x"))), cpioOf(t, "inner", id)), in: "!/inner"},
		{name: "two cpio archives in a row, the second in zstd", rule: ruleMachineID, data: append(cpioOf(t, "nothing", []byte("x")), zstdOf(t, cpioOf(t, "inner", id))...), in: "!/inner"},
		{name: "zip", rule: ruleAge, data: zipOf(t, "inner", key), in: "!/inner"},
		{name: "zip behind a program", rule: ruleAge, data: append([]byte("#!/bin/sh\nexit\n"), zipOf(t, "inner", key)...), in: "!/inner"},
		{name: "encrypted zip", rule: ruleUnsearched, data: encrypted, in: "!/inner"},
		{name: "ar", rule: ruleMachineID, data: []byte("!<arch>\n" + fmt.Sprintf("%-16s%-12d%-6d%-6d%-8s%-10d`\n", "inner/", 0, 0, 0, "100644", len(id)) + string(id) + "\n"), in: "!/inner"},
	}
	deep := key
	for range maxDepth + 2 {
		deep = gzipOf(t, deep)
	}
	return append(all, plant{name: "too deep", rule: ruleUnsearched, data: deep})
}

func gzipOf(t testing.TB, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(data)
	if err != nil || w.Close() != nil {
		t.Fatal("gzip", err)
	}
	return out.Bytes()
}

func zlibOf(t testing.TB, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := zlib.NewWriter(&out)
	_, err := w.Write(data)
	if err != nil || w.Close() != nil {
		t.Fatal("zlib", err)
	}
	return out.Bytes()
}

func xzOf(t testing.TB, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := must[*xz.Writer](t)(xz.NewWriter(&out))
	_, err := w.Write(data)
	if err != nil || w.Close() != nil {
		t.Fatal("xz", err)
	}
	return out.Bytes()
}

func zstdOf(t testing.TB, data []byte) []byte {
	t.Helper()
	w := must[*zstd.Encoder](t)(zstd.NewWriter(nil))
	defer w.Close()
	return w.EncodeAll(data, nil)
}

func tarOf(t testing.TB, name string, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	if err := w.WriteHeader(&tar.Header{Name: "./" + name, Mode: 0o644, Size: int64(len(data))}); err != nil {
		t.Fatal(err)
	}
	_, err := w.Write(data)
	if err != nil || w.Close() != nil {
		t.Fatal("tar", err)
	}
	return out.Bytes()
}

// tarWithAttribute is what tar --xattrs makes, wherever the test runs.
func tarWithAttribute(t testing.TB, value string) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	if err := errors.Join(w.WriteHeader(&tar.Header{Name: "inner", Mode: 0o644, PAXRecords: map[string]string{"SCHILY.xattr.user.x": value}}), w.Close()); err != nil {
		t.Fatal("tar", err)
	}
	return out.Bytes()
}

func cpioOf(t testing.TB, name string, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := cpio.Newc.Writer(&out)
	if err := w.WriteRecord(cpio.StaticFile(name, string(data), 0o644)); err != nil {
		t.Fatal(err)
	}
	if err := cpio.WriteTrailer(w); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func zipOf(t testing.TB, name string, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := zip.NewWriter(&out)
	f, err := w.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Write(data)
	if err != nil || w.Close() != nil {
		t.Fatal("zip", err)
	}
	return out.Bytes()
}
