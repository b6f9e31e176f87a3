package scan

import (
	"bytes"
	"encoding/base64"
	"regexp"
	"strings"
)

func anywhere(_ []byte, at int) (int, bool) { return at, true }

func atStart(_ []byte, at int) (int, bool) { return at, at == 0 }

// pemLabel is what stands before PRIVATE KEY: RFC 7468, section 2, and the
// armor of OpenPGP (RFC 9580, section 6.2) and SSH 2 (RFC 4716).
var pemLabel = regexp.MustCompile(`-----?\s?BEGIN [A-Z0-9 ]{0,32}\z`)

// pemBody is what comes after: the end of the line, headers, and the start of
// the key. Between its characters stand the ends of lines, as they are or
// escaped, and what programs and mails put around lines.
var pemBody = regexp.MustCompile(`\APRIVATE KEY(?: BLOCK)?\s?-----?` + pemGap + `(?:[A-Z][A-Za-z0-9-]*: [^\n\\]*` + pemGap + `)*(?:` + pemGap + b64 + `{4}){6}`)

const pemGap = `(?:\s|\\+[nrt]|["',;.+#>*|\\()&])*`

// pem finds a private key between lines of dashes. The words alone, which
// every program that reads keys has, are none.
func pem(data []byte, at int) (int, bool) {
	from := max(0, at-48)
	label := pemLabel.FindIndex(data[from:at])
	if label == nil || !pemBody.Match(data[at:min(len(data), at+2048)]) {
		return 0, false
	}
	return from + label[0], true
}

// pemOther is pem without the labels that have rules of their own.
func pemOther(data []byte, at int) (int, bool) {
	start, ok := pem(data, at)
	if !ok {
		return 0, false // not a label: without one, all before it would be copied
	}
	label := string(data[start:at])
	return start, !strings.HasSuffix(label, "OPENSSH ") && !strings.HasSuffix(label, "PGP ")
}

var cryptValue = regexp.MustCompile(`\A.\$(?:1|apr1)\$[./A-Za-z0-9]{1,8}\$[./A-Za-z0-9]{22}` +
	`|\A.\$2[aby]\$[0-9]{2}\$[./A-Za-z0-9]{53}` +
	`|\A.\$[56]\$(?:rounds=[0-9]+\$)?[^$:\s]{1,16}\$[./A-Za-z0-9]{43}` +
	`|\A.\$(?:7|y|gy)\$[./A-Za-z0-9]{1,20}\$[./A-Za-z0-9]{0,86}\$?[./A-Za-z0-9]{40}` +
	`|\A.\$sha1\$[0-9]+\$[./A-Za-z0-9]{1,64}\$[./A-Za-z0-9]{28}`)

// cryptHash finds a password's hash of crypt(5), in shadow(5) or elsewhere. A
// manual's example has a salt of one letter.
func cryptHash(data []byte, at int) (int, bool) {
	m := cryptValue.Find(data[at:min(len(data), at+256)])
	if m == nil {
		return 0, false
	}
	parts := bytes.Split(m[1:], []byte("$"))
	salt := parts[min(len(parts)-1, 2)]
	return at + 1, len(salt) < 3 || !same(salt)
}

// dockerAuth finds the name and password in a Docker configuration.
func dockerAuth(data []byte, at int) (int, bool) {
	m := authValue.FindSubmatch(data[at:min(len(data), at+1024)])
	if m == nil {
		return 0, false
	}
	plain, err := base64.StdEncoding.DecodeString(string(m[1]))
	return at, err == nil && bytes.IndexByte(plain, ':') > 0
}

var authValue = regexp.MustCompile(`\A"auth"\s*:\s*"(` + b64 + `{8,}={0,2})"`)

// openVPN finds a shared key of OpenVPN behind the line that announces it.
func openVPN(data []byte, at int) (int, bool) {
	return at, staticKey.Match(data[at:min(len(data), at+256)])
}

var staticKey = regexp.MustCompile(`\AOpenVPN (?:Static key V1|tls-crypt-v2 [a-z]+ key)-----\s+` + b64 + `{32}`)

// signifyKey finds a secret key of OpenBSD's signify or of minisign: a line of
// comment, then Base64 of "Ed" and more than a public key has.
func signifyKey(data []byte, at int) (int, bool) {
	const comment = "untrusted comment: "
	start := bytes.LastIndexByte(data[:at], '\n') + 1
	if !bytes.HasPrefix(data[start:], []byte(comment)) {
		return 0, false
	}
	line, _, _ := bytes.Cut(data[at+len("secret key\n"):], []byte("\n"))
	plain, err := base64.StdEncoding.DecodeString(string(bytes.TrimSpace(line[:min(len(line), 512)])))
	return start, err == nil && len(plain) >= 100 && string(plain[:2]) == "Ed"
}

// jwk finds a JSON web key with its secret part (RFC 7518, section 6).
func jwk(data []byte, at int) (int, bool) {
	start := bytes.LastIndexByte(data[max(0, at-4096):at], '{')
	if start < 0 {
		return 0, false
	}
	start += max(0, at-4096)
	object := data[start:min(len(data), start+8192)]
	if stop := bytes.IndexByte(object, '}'); stop >= 0 {
		object = object[:stop]
	}
	return start, jwkSecret.Match(object)
}

var jwkSecret = regexp.MustCompile(`"(?:d|k|priv)"\s*:\s*"` + b64url + `{20}`)
