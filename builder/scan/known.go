package scan

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"path"
	"strings"
	"unicode/utf8"
)

// Results are what earlier searches have come to, by the digest of a file's content and
// of what else counts. They belong to this very program: with another rule or decompressor
// the same content is searched again. Their methods may run at the same time.
type Results interface {
	Get(key [sha256.Size]byte) (result []byte, ok bool)
	Put(key [sha256.Size]byte, result []byte)
}

// A result is what the search of one file has come to by its content alone. A name in a
// finding is what follows that of the file.
type result struct {
	Findings []Finding `json:"f,omitempty"`
	Unpacked int64     `json:"u,omitempty"` // bytes
	Note     []byte    `json:"n,omitempty"` // of Unpacked
}

// key names what the result of a file depends on. Its name is part of that where the search
// asks for it: it tells a file of accounts from an example, and says how a kernel module is
// unpacked. Whatever else asks for a name belongs here, too.
func (s *Scanner) key(name string, content []byte) [sha256.Size]byte {
	sum := sha256.Sum256(content)
	what := fmt.Appendf(nil, "file %x %d", sum, accountFields(name))
	if s.Unpacked != nil && module(name) {
		what = fmt.Appendf(what, " module %q %q", path.Base(name), s.Depends(name))
	}
	return sha256.Sum256(what)
}

// known takes over the result of a file that was searched before, and reports whether
// there is one.
func (s *Scanner) known(j *job, key [sha256.Size]byte, name string) bool {
	text, ok := s.Results.Get(key)
	var r result
	if !ok || json.Unmarshal(text, &r) != nil {
		return false
	}
	if s.Unpacked != nil && module(name) && !s.Known(name, r.Note) {
		return false
	}
	for _, f := range r.Findings {
		f.File = name + f.File
		j.findings = append(j.findings, f)
	}
	j.budget -= r.Unpacked
	return true
}

// remember keeps the result of a file. Where a bound has cut the findings off, what is
// left depends on the allow list, and is not kept; nor is a name that JSON would change.
func (s *Scanner) remember(j *job, key [sha256.Size]byte, name string) {
	if j.cut {
		return
	}
	r := result{Unpacked: maxUnpacked - j.budget, Note: j.note}
	for _, f := range j.findings {
		rest, ok := strings.CutPrefix(f.File, name)
		if !ok || !utf8.ValidString(rest) {
			return
		}
		r.Findings = append(r.Findings, Finding{rest, f.Offset, f.Rule})
	}
	if text, err := json.Marshal(r); err == nil {
		s.Results.Put(key, text)
	}
}
