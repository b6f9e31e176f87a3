package scan

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"math"
	"regexp"
	"slices"
	"strings"

	"halogenos.internal/boot/microcode"
)

// whole judges a file as a whole, or a part of one. It calls found for each
// secret.
func whole(data []byte, isFile bool, found func(rule string, at int)) {
	if keytab(data) {
		found(ruleStore, 0)
	}
	if isFile && len(data) <= maxKeyFile && keyFile(data) && !isPNG(data) && !emptyQM(data) {
		found(ruleKeyFile, 0)
	}
	if isFile && machineID.Match(data[:min(len(data), 64)]) {
		found(ruleMachineID, 0)
	}
	if len(data) > 1<<20 || bytes.IndexByte(data, 0) >= 0 {
		return
	}
	shadow(data, found)
	sections(data, found)
	if gitCredentials.Match(data) {
		found(ruleLogin, 0)
	}
}

var (
	machineID      = regexp.MustCompile(`\A[0-9a-f]{32}\n?\z`)
	gitCredentials = regexp.MustCompile(`\A(?:https?://[^:@/\s]+:[^@/\s]+@[^\s/]+[^\s]*\n)+\z`)
)

// emptyQM reports whether data is a catalog of Qt's without a translation: its magic number,
// which is as good as random, and at most the section that names its language (qtbase,
// qtranslator.cpp).
func emptyQM(data []byte) bool {
	rest, is := bytes.CutPrefix(data, []byte("\x3c\xb8\x64\x18\xca\xef\x9c\x95\xcd\x21\x1c\xbf\x60\xa1\xbd\xdd"))
	return is && (len(rest) == 0 || rest[0] == 0xa7 && languageSection.Match(rest[1:]))
}

var languageSection = regexp.MustCompile(`\A\x00\x00\x00[\x01-\x10][A-Za-z_@]+\z`)

// keySizes are those of keys, in bytes: of ciphers, of TLS session tickets, of
// key files that cryptsetup's manual and installers make, and of systemd's
// credential.secret.
var keySizes = []int{16, 24, 32, 48, 64, 80, 96, 128, 256, 512, 1024, 2048, 4096, 4112}

const maxKeyFile = 4112 // bytes

// keyFile reports whether a file is nothing but random bytes in the size of a
// key, or lines of such bytes in hexadecimal or Base64.
func keyFile(data []byte) bool {
	if slices.Contains(keySizes, len(data)) && random(data) {
		return new(microcode.Set).Add(data) != nil // Intel's is encrypted, and has such sizes
	}
	lines := strings.Fields(string(data))
	return len(lines) > 0 && len(lines) <= 8 && !slices.ContainsFunc(lines, func(line string) bool { return !keyLetters(line) })
}

// keyLetters reports whether a word is a key in letters.
func keyLetters(word string) bool {
	if len(word) < 32 || len(word) > 1024 {
		return false
	}
	for _, decode := range []func(string) ([]byte, error){
		hex.DecodeString, base64.StdEncoding.DecodeString, base64.RawURLEncoding.DecodeString,
	} {
		if plain, err := decode(word); err == nil && slices.Contains(keySizes, len(plain)) && random(plain) {
			return true
		}
	}
	return false
}

// random reports whether bytes look as if drawn by chance: about as many
// different ones, and as many bits set, as chance gives.
func random(data []byte) bool {
	var counts [256]int
	bits, printable := 0, 0
	for _, b := range data {
		counts[b]++
		for ; b != 0; b &= b - 1 {
			bits++
		}
	}
	different := 0
	for b, n := range counts {
		if n > 0 {
			different++
		}
		if b == '\n' || b == '\t' || b >= ' ' && b <= '~' {
			printable += n
		}
	}
	n := float64(len(data))
	expected := 256 * (1 - math.Pow(255.0/256, n))
	// Five standard deviations of the number of bits, and for the others a
	// margin that no file of 16 random bytes is likely to miss.
	return printable < len(data)*9/10 && float64(different) > expected*0.8-2 && math.Abs(float64(bits)-4*n) < 5*math.Sqrt(2*n)
}

// shadow finds hashes in a file of the form of shadow(5), whatever their kind.
// Those that cryptHash finds by themselves are not found again.
func shadow(data []byte, found func(rule string, at int)) {
	at := 0
	for line := range bytes.Lines(data) {
		start := at
		at += len(line)
		line = bytes.TrimRight(line, "\r\n")
		if len(bytes.TrimSpace(line)) == 0 {
			continue
		}
		m := shadowLine.FindSubmatchIndex(line)
		if m == nil {
			return
		}
		if m[2] >= 0 {
			found(ruleShadow, start+m[2])
		}
	}
}

// shadowLine has what crypt(3) made without a sign for how, and dates.
var shadowLine = regexp.MustCompile(`\A[^:\s<>"'=]+:!?(?:([./A-Za-z0-9]{13,}|_[./A-Za-z0-9]{19})|[^:\s]*)(?::-?[0-9]*){6}:[^:]*\z`)

// sections finds secrets in files of NetworkManager's and wpa_supplicant's
// form, where a key's name alone would say too little.
func sections(data []byte, found func(rule string, at int)) {
	manager := bytes.Contains(data, []byte("[connection]\n")) && bytes.Contains(data, []byte("\ntype="))
	supplicant := bytes.Contains(data, []byte("network={"))
	if !manager && !supplicant {
		return
	}
	for _, m := range sectionSecret.FindAllSubmatchIndex(data, -1) {
		if !shownInManual(data, m[2]) {
			found(ruleWiFi, m[0])
		}
	}
}

// psk= has a rule of its own.
var sectionSecret = regexp.MustCompile(`(?m)^[ \t]*((?:password|wep-key[0-3]|wep_key[0-3]|leap-password|private-key-password|private_key_passwd|pin|secret|wpa-psk)=[^\s][^\n]{2,})$`)

// netrc finds logins in a file of the form of netrc(5), or in a part of one: a
// line, or several, with nothing but its words. Hosts with the names that
// RFC 2606 keeps for examples are none.
func netrc(data []byte, at int) (int, bool) {
	if !lineStart(data, at) {
		return 0, false
	}
	m := netrcEntry.FindSubmatch(data[at:min(len(data), at+512)])
	return at, m != nil && !exampleHost.Match(slices.Concat(m[1], m[2]))
}

var (
	netrcEntry = regexp.MustCompile(`\Amachine\s+([^\s"'<>%\\]+)\s+(?:login\s+[^\s"'<>%]+\s+)(?:account\s+\S+\s+)?password\s+[^\s"'<>%]{3,}\s*(?:\n|\r|\z|machine\s|default\s|account\s|macdef\s|["'])` +
		`|\Amachine\s+([^\s"'<>%\\]+)\s+password\s+[^\s"'<>%]{3,}\s+login\s+\S`)
	exampleHost = regexp.MustCompile(`(?i)(?:\A|\.)(?:example(?:\.(?:com|org|net))?|test|invalid)(?:[:/].*)?\z`)
)

// lineStart reports whether there is nothing but blanks, or a quote, before a
// place in its line.
func lineStart(data []byte, at int) bool {
	for i := at - 1; i >= 0 && data[i] != '\n'; i-- {
		if data[i] != ' ' && data[i] != '\t' && data[i] != '"' && data[i] != '\'' {
			return false
		}
	}
	return true
}
