package scan

import (
	"context"
	"slices"
)

// job is the search of one file of the image, with all that is in it.
type job struct {
	*Scanner
	ctx      context.Context
	budget   int64 // bytes that may still be unpacked
	held     int   // bytes that are unpacked in memory now
	findings []Finding
	counts   map[counted]int // of findings
	cut      bool            // there may be more of them
	handed   bool            // Unpacked has had it
	note     []byte          // what it returned
}

// counted is what the bound of findings is for: a rule, and for those that are allowed
// a file in the archive too. Many that are allowed must hide none that is not.
type counted struct{ rule, allowed string }

func (s *Scanner) job(ctx context.Context) *job {
	return &job{Scanner: s, ctx: ctx, budget: maxUnpacked, counts: make(map[counted]int)}
}

// counter returns what a finding of a rule counts for.
func (j *job) counter(file, rule string) counted {
	for i := range j.allow {
		if j.allow[i].Matches(Finding{File: file, Rule: rule}) {
			return counted{rule, file}
		}
	}
	return counted{rule: rule}
}

// full reports whether enough is known of a rule.
func (j *job) full(file, rule string) bool { return j.counts[j.counter(file, rule)] >= maxPerRule }

// found keeps a finding.
func (j *job) found(file, rule string, at int64) {
	if j.full(file, rule) {
		j.cut = true
		return
	}
	j.counts[j.counter(file, rule)]++
	j.findings = append(j.findings, Finding{File: file, Offset: at, Rule: rule})
}

// object searches a file, and what is in it when it is an archive.
func (j *job) object(name string, data []byte, depth int) error {
	return j.search(name, data, depth, true)
}

// search does the same for a file or for a part of one. The rules that judge a
// file by its size do not judge a part: every checksum is so many random bytes.
func (j *job) search(name string, data []byte, depth int, isFile bool) error {
	if err := j.ctx.Err(); err != nil {
		return err
	}
	inside, err := j.archive(name, data, depth)
	if err != nil || inside == contents {
		return err
	}
	return j.own(name, data, depth, inside, isFile)
}

// own searches the bytes of a file themselves, whatever is packed in them.
func (j *job) own(name string, data []byte, depth int, inside kind, isFile bool) error {
	if err := j.match(name, data, depth); err != nil {
		return err
	}
	if inside == nothing {
		emptyPasswords(name, data, func(at int) { j.found(name, ruleEmpty, int64(at)) })
		j.packets(name, data)
		whole(data, isFile, func(rule string, at int) { j.found(name, rule, int64(at)) })
	}
	if inside == packed {
		return nil // compressed bytes are not text
	}
	return j.encoded(name, data, depth)
}

// match applies the rules that have anchors.
func (j *job) match(name string, data []byte, depth int) error {
	var err error
	escaped := map[byte]int{} // up to where escapes have been replaced, by their kind
	j.matcher.find(data, func(rule, at int) bool {
		r := &j.rules[rule]
		switch {
		case r.check == nil:
			kind := kindOf(data, at)
			escaped[kind], err = j.escapes(name, data, at, escaped[kind], depth)
			return err == nil
		case j.full(name, r.name):
			j.cut = true
		default:
			if start, ok := r.check(data, at); ok && !published(data[start:]) && !selfTest(data[start:]) {
				j.found(name, r.name, int64(start))
			}
		}
		return true
	})
	return err
}

// packets looks for OpenPGP keys, which have nothing fixed to look for.
func (j *job) packets(name string, data []byte) {
	if len(data) > 18 && string(data[:4]) == "\x7fELF" && data[16] == 1 {
		return // object code, of which kernels have hundreds of megabytes
	}
	for i, b := range data {
		if secretTag[b] && secretPacket(data[i:]) {
			j.found(name, ruleOpenPGP, int64(i))
		}
	}
}

// armors reports whether what a rule finds has its key within as Base64, which another
// rule would find once more.
func armors(rule string) bool {
	return rule == rulePEM || rule == ruleSSH || rule == ruleOpenPGP
}

// view searches what the bytes of a file from start to end stand for. It is
// reported at a place of these, unless one there was reported already: the key
// within a PEM block is not a second key. What another rule finds is: one of the
// two may be allowed.
func (j *job) view(name string, start, at, end int, plain []byte, depth int) error {
	if j.budget -= int64(len(plain)); depth >= maxDepth || j.budget < 0 || j.held+len(plain) > maxHeld {
		j.found(name, ruleUnsearched, int64(at))
		return nil
	}
	before := j.findings
	j.findings = nil
	j.held += len(plain)
	err := j.search(name, plain, depth+1, false)
	j.held -= len(plain)
	after := j.findings
	j.findings = before
	for _, f := range after {
		if f.File != name {
			j.findings = append(j.findings, f) // in an archive
			continue
		}
		known := func(b Finding) bool {
			return b.File == name && b.Offset >= int64(start)-256 && b.Offset < int64(end) && (b.Rule == f.Rule || armors(b.Rule))
		}
		if slices.ContainsFunc(before, known) {
			j.counts[j.counter(f.File, f.Rule)]--
			continue
		}
		f.Offset = int64(at)
		j.findings = append(j.findings, f)
	}
	return err
}
