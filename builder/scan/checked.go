package scan

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"regexp"
	"slices"
	"strings"
)

// Secrets that carry a checksum, or that are known not to be secret.

// base58Key finds an extended private key of BIP 32, whose checksum must fit.
func base58Key(data []byte, at int) (int, bool) {
	const size = 78 + 4 // bytes
	if at > 0 && wordByte(data[at-1]) {
		return 0, false
	}
	const alphabet = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
	n, value, base := 0, new(big.Int), big.NewInt(58)
	for ; at+n < len(data) && n <= 112; n++ {
		i := strings.IndexByte(alphabet, data[at+n])
		if i < 0 {
			break
		}
		value.Add(value.Mul(value, base), big.NewInt(int64(i)))
	}
	if n < 100 || n > 112 || value.BitLen() > 8*size {
		return 0, false
	}
	raw := value.FillBytes(make([]byte, size))
	once := sha256.Sum256(raw[:78])
	sum := sha256.Sum256(once[:])
	return at, bytes.Equal(sum[:4], raw[78:]) && raw[45] == 0
}

// bech32Key finds a key of Nostr, whose checksum must fit (BIP 173; NIP-19).
func bech32Key(data []byte, at int) (int, bool) {
	const prefix, size = "nsec", 58
	const alphabet = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
	start := at + len(prefix) + 1
	if at > 0 && wordByte(data[at-1]) || start+size > len(data) || start+size < len(data) && wordByte(data[start+size]) {
		return 0, false
	}
	sum := uint32(1)
	add := func(v byte) {
		top := sum >> 25
		sum = sum&0x1ffffff<<5 ^ uint32(v)
		for i, g := range []uint32{0x3b6a57b2, 0x26508e6d, 0x1ea119fa, 0x3d4233dd, 0x2a1462b3} {
			if top>>i&1 != 0 {
				sum ^= g
			}
		}
	}
	for _, c := range []byte(prefix) {
		add(c >> 5)
	}
	add(0)
	for _, c := range []byte(prefix) {
		add(c & 31)
	}
	for _, c := range data[start : start+size] {
		i := strings.IndexByte(alphabet, c)
		if i < 0 {
			return 0, false
		}
		add(byte(i))
	}
	return at, sum == 1
}

// webToken finds a signed JSON web token that is good for something: it says
// for whom, by whom or for how long (RFC 7519, section 4.1).
func webToken(data []byte, at int) (int, bool) {
	if at > 0 && wordByte(data[at-1]) {
		return 0, false
	}
	m := tokenParts.FindSubmatch(data[at:min(len(data), at+8192)])
	if m == nil {
		return 0, false
	}
	plain, err := base64.RawURLEncoding.DecodeString(string(m[1]))
	var claims map[string]any
	if err != nil || json.Unmarshal(plain, &claims) != nil {
		return 0, false
	}
	for _, name := range []string{"iss", "sub", "aud", "exp", "nbf", "iat", "jti", "scope", "azp", "client_id", "uid", "email", "role"} {
		if _, ok := claims[name]; ok {
			return at, true
		}
	}
	return 0, false
}

var tokenParts = regexp.MustCompile(`\AeyJ` + b64url + `{12,}\.(eyJ` + b64url + `{12,})\.` + b64url + `{20}`)

// wireGuardKey finds a private or preshared key of WireGuard beside its name,
// in any syntax. A key of zeros or letters is a placeholder.
func wireGuardKey(data []byte, at int) (int, bool) {
	if at > 0 && data[at-1] != '_' && wordByte(data[at-1]) {
		return 0, false
	}
	m := wireGuardValue.FindSubmatch(data[at:min(len(data), at+160)])
	if m == nil {
		return 0, false
	}
	plain, err := base64.StdEncoding.DecodeString(string(m[1]))
	return at, err == nil && random(plain)
}

const wireGuardName = `(?i:private|preshared)[-_]?(?i:key)["']?[ \t]*[=:>][ \t]*\\?["']?`

var wireGuardValue = regexp.MustCompile(`\A` + wireGuardName + `(` + b64of32 + `)(?:[^=]|\z)`)

// examples are keys that manuals and standards print. Each expression takes the secret
// from its start to its end: one that merely has an example near it is a secret still.
var examples = []*regexp.Regexp{
	regexp.MustCompile(`\AAKIAIOSFODNN7EXAMPLE` + end),
	regexp.MustCompile(`\A` + awsSecretName + `wJalrXUtnFEMI/K7MDENG/bPxRfiCYz?EXAMPLEKEY(?:[^A-Za-z0-9+/=]|\z)`),
	// systemd.netdev(5), wg-quick(8)
	regexp.MustCompile(`\A` + wireGuardName + `(?:EEGlnEPYJV//kbvvIqxKkQwOiS\+UENyPncC4bF46ong=|yAnz5TF\+lXXJte14tji3zlMNq\+hd2rYUIgJBgB3fBmk=)(?:[^=]|\z)`),
	// jwt.io: {"sub":"1234567890","name":"John Doe"
	regexp.MustCompile(`\AeyJ` + b64url + `+\.eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6IkpvaG4gRG9lI`),
}

// published reports whether the secret that starts here is such an example, or a key by
// which libgcrypt tests itself.
func published(data []byte) bool {
	head := data[:min(len(data), 256)]
	return slices.ContainsFunc(examples, func(e *regexp.Regexp) bool { return e.Match(head) }) || agentExample(data)
}

// ethereum finds an encrypted key of an Ethereum wallet (Web3 Secret Storage
// Definition, version 3).
func ethereum(data []byte, at int) (int, bool) {
	from := max(0, at-2048)
	start := bytes.LastIndexByte(data[from:at], '{')
	if start < 0 {
		return 0, false
	}
	part := data[from:min(len(data), at+2048)]
	return from + start, cipherText.Match(part) && cipherMAC.Match(part)
}

var (
	cipherText = regexp.MustCompile(`(?i)"ciphertext"\s*:\s*"[0-9a-f]{32,}"`)
	cipherMAC  = regexp.MustCompile(`(?i)"mac"\s*:\s*"[0-9a-f]{64}"`)
)

// xmlKey finds an RSA or DSA key in the XML of .NET with its secret number.
func xmlKey(data []byte, at int) (int, bool) {
	return at, xmlSecret.Match(data[at:min(len(data), at+16<<10)])
}

var xmlSecret = regexp.MustCompile(`(?s)\A<(?:RSAKeyValue>.*?<D>|DSAKeyValue>.*?<X>)\s*` + b64 + `{16}`)
