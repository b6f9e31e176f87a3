package config

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

const (
	beginKey = "-----BEGIN PGP PUBLIC KEY BLOCK-----"
	endKey   = "-----END PGP PUBLIC KEY BLOCK-----"
)

// plainArmor returns the one armored key of a file as machines would read it: without
// what people, mailers and key servers put around it, which says nothing. A binary key
// comes back as it is. What somebody may have taken for a key is named.
func plainArmor(text []byte) ([]byte, error) {
	if len(text) > 0 && (text[0] == 0x98 || text[0] == 0x99 || text[0] == 0xc6) { // the head of a public key
		return text, nil
	}
	if kind := notKey(string(bytes.TrimSpace(text))); kind != "" {
		return nil, errors.New(kind)
	}
	lines := strings.Split(strings.ReplaceAll(string(text), "\r\n", "\n"), "\n")
	start, end := -1, -1
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " \t")
		switch {
		case lines[i] == beginKey && start >= 0:
			return nil, errors.New("has two armored keys, want one public key: export it alone, with gpg --export and its fingerprint")
		case lines[i] == beginKey:
			start = i
		case lines[i] == endKey && end < 0:
			end = i
		}
	}
	if start < 0 || end < start || strings.TrimSpace(strings.Join(lines[end+1:], "")) != "" {
		return text, nil // for the parser to say what is wrong
	}
	body := lines[start+1 : end]
	// Headers end with an empty line; only these two say nothing that counts.
	for len(body) > 0 && (strings.HasPrefix(body[0], "Comment:") || strings.HasPrefix(body[0], "Version:")) {
		body = body[1:]
	}
	return []byte(strings.Join(append(append([]string{beginKey}, body...), endKey, ""), "\n")), nil
}

// notKey says what a file is that is not an OpenPGP key; empty where it may be one.
func notKey(text string) string {
	const want = "ReleaseKeyFile wants the OpenPGP key itself (gpg --export FINGERPRINT, or release-key.asc of 'halogen keys generate')"
	bare := strings.Join(strings.Fields(strings.TrimPrefix(text, "0x")), "")
	_, err := hex.DecodeString(bare)
	has := func(prefixes ...string) bool {
		for _, p := range prefixes {
			if strings.HasPrefix(text, p) {
				return true
			}
		}
		return false
	}
	switch {
	case text == "":
		return "is empty: " + want
	case err == nil && (len(bare) == 40 || len(bare) == 16 || len(bare) == 64):
		return fmt.Sprintf("holds a fingerprint, which belongs into ReleaseKey=: %s", want)
	case has("ssh-", "ecdsa-sha2-", "sk-ssh-", "-----BEGIN OPENSSH", "---- BEGIN SSH2"):
		return "holds an SSH key: " + want
	case has("untrusted comment:", "RW") && (strings.Contains(text, "minisign") || strings.Contains(text, "signify") || strings.Contains(text, "\nRW") || len(text) == 56):
		return "holds a key of minisign or signify: " + want
	case has("-----BEGIN CERTIFICATE", "-----BEGIN PUBLIC KEY", "-----BEGIN RSA PUBLIC"):
		return "holds an X.509 certificate or key: " + want
	case has("-----BEGIN PGP SIGNATURE"):
		return "holds a signature: " + want
	}
	return ""
}
