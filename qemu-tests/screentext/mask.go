package screentext

import (
	"fmt"
	"regexp"
	"strings"
)

// A rule says what is not the same on two machines, or at two starts, and what stands for it.
type rule struct {
	is  *regexp.Regexp
	put string
}

var rules = []rule{
	{regexp.MustCompile(`\b[cbdefghijklnrtuv]{8}(-[cbdefghijklnrtuv]{8})+`), "RECOVERY-KEY"},             // the letters of luks2.RecoveryKey
	{regexp.MustCompile(`(: {2}|^ {4})[a-z]+( [a-z]+){3}$`), "${1}FOUR WORDS"},                           // words.PhraseIs, words.PhraseFresh
	{regexp.MustCompile(`\b([Gg]roups?|Gruppen?) \d (and|und) ((?:group|Gruppe) )?\d`), "$1 N $2 ${3}N"}, // the machine chooses two
	{regexp.MustCompile(`\b[0-9a-f]{64}\b`), "HASH"},
	{regexp.MustCompile(`\b[0-9a-f]{32}\b`), "ID"},
	{regexp.MustCompile(`\(\d+(\.\d+)? ?(min|ms|s|µs)\)`), "(TIME)"},
	{regexp.MustCompile(`\b\d\d:\d\d:\d\d\b`), "TIME"},
	{regexp.MustCompile(`\b\d{4}-\d\d-\d\d\b`), "DATE"},
	{regexp.MustCompile(`\binitagent \d\S*`), "initagent VERSION"},
	{regexp.MustCompile(`(\bsd[a-z]  )\d\.\d GB\b`), "${1}N.N GB"}, // an image is as large as what is in it
}

// kernel is a line of the kernel's log, which another kernel writes otherwise.
var kernel = regexp.MustCompile(`^\[ *\d+\.\d+\] `)

// code is a line of a QR code: half blocks alone, and both borders.
var code = regexp.MustCompile(`^ *[█▀▄]{2}[█▀▄ ]{20,}[█▀▄]{2}$`)

// Mask puts a name in the place of what is random or chosen by chance (a recovery key's groups, the
// phrase, a QR code), tells one machine from another, or is a time, a size or a version. Lines of the
// kernel's log are left out.
func Mask(text string) string {
	var out strings.Builder
	height := 0 // of the QR code above
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if code.MatchString(line) {
			height++
			continue
		}
		if height > 0 {
			fmt.Fprintf(&out, "QR CODE of %d lines\n", height)
			height = 0
		}
		if kernel.MatchString(line) {
			continue
		}
		for _, r := range rules {
			line = r.is.ReplaceAllString(line, r.put)
		}
		out.WriteString(line + "\n")
	}
	if height > 0 {
		fmt.Fprintf(&out, "QR CODE of %d lines\n", height)
	}
	return out.String()
}

// From returns the last line of a text that has a mark in it, and what is below; the whole text where
// none has, or the mark is empty. What was above has scrolled there by chance.
func From(text, mark string) string {
	at := strings.LastIndex(text, mark)
	if mark == "" || at < 0 {
		return text
	}
	return text[strings.LastIndex(text[:at], "\n")+1:]
}
