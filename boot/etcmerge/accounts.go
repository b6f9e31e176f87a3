package etcmerge

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
)

// The account files, and how many fields a line of theirs has. Other lines are not
// understood, and stay as they are.
var accountFiles = []struct {
	path   string
	fields int
}{
	{"group", 4}, {"passwd", 7}, {"gshadow", 4}, {"shadow", 9}, {"subgid", 3}, {"subuid", 3}, {"shells", 1},
}

// AccountFiles are the names of the account files in /etc.
func AccountFiles() (names []string) {
	for _, f := range accountFiles {
		names = append(names, f.path)
	}
	return names
}

// fieldsOf is how many fields a line of an account file has.
func fieldsOf(path string) int {
	for _, f := range accountFiles {
		if f.path == path {
			return f.fields
		}
	}
	return 0
}

// account is a merged account file.
type account struct {
	text    []byte
	clashes bool
}

// A table is an account file in its three versions.
type table struct {
	path               string
	fields             int
	base, theirs, ours records
	out                records
	known              bool // base is
	// absent: this machine never changed it, and there is no base: the image's is in
	// effect.
	absent bool
	// follows: this machine changed none of the files on users and groups, so that names
	// which the image drops go.
	follows bool
	clashes bool
	// leftOut are the entries that an earlier merge could not take in.
	leftOut map[string]bool

	holders map[uint32]string // see holder
}

// record is a line. One without a name is a comment, or not understood.
type record struct {
	name   string
	fields []string
}

func (r record) line() string { return strings.Join(r.fields, ":") }

func (r record) equal(o record) bool { return slices.Equal(r.fields, o.fields) }

type records struct {
	lines []record
	// first is the first line of each name: that is the one in effect.
	first map[string]int
}

// result is the table as it will be.
func (t *table) result() records {
	switch {
	case t == nil:
		return records{}
	case len(t.out.lines) == 0:
		return t.theirs
	}
	return t.out
}

func (r records) get(name string) (record, bool) {
	i, ok := r.first[name]
	if !ok {
		return record{}, false
	}
	return r.lines[i], true
}

func parseRecords(text []byte, fields int) records {
	r := records{first: map[string]int{}}
	for line := range strings.SplitSeq(strings.TrimSuffix(string(text), "\n"), "\n") {
		if line == "" && len(text) == 0 {
			break
		}
		rec := record{fields: strings.Split(line, ":")}
		// subuid's names come more than once: see mergeRanges.
		if len(rec.fields) == fields && line != "" && line[0] != '#' {
			rec.name = rec.fields[0]
			if _, twice := r.first[rec.name]; !twice {
				r.first[rec.name] = len(r.lines)
			}
		}
		r.lines = append(r.lines, rec)
	}
	return r
}

func (r records) text() []byte {
	var out bytes.Buffer
	for _, rec := range r.lines {
		out.WriteString(rec.line())
		out.WriteByte('\n')
	}
	return out.Bytes()
}

// mergeAccounts merges the account files where this machine changed any of them, or the
// image gives a number to somebody else. They are merged before all others, since they say
// whose number is whose.
func (p *planner) mergeAccounts() error {
	p.accounts = map[string]account{}
	tables := map[string]*table{}
	touched := map[string]bool{}
	for _, f := range accountFiles {
		t, changed, err := p.table(f.path, f.fields)
		if err != nil {
			return err
		}
		touched[f.path] = changed
		if t != nil {
			tables[f.path] = t
		}
	}
	changedHere := touched["group"] || touched["passwd"] || touched["gshadow"] || touched["shadow"]
	if changedHere || tables["group"].moves() || tables["passwd"].moves() {
		for _, t := range tables {
			t.follows = !changedHere
		}
		if err := p.mergeUsers(tables); err != nil {
			return err
		}
		for _, path := range []string{"group", "passwd", "gshadow", "shadow"} {
			p.merged(tables[path])
		}
	}
	for _, path := range []string{"subgid", "subuid"} {
		switch t := tables[path]; {
		case t == nil:
		case touched[path]:
			p.mergeRanges(t, tables["passwd"].result())
			p.merged(t)
		default:
			p.noteMovedRanges(t)
		}
	}
	if t := tables["shells"]; t != nil && touched["shells"] {
		p.mergeShells(t, tables["passwd"].result())
		p.merged(t)
	}
	return nil
}

// leaveOut lists an entry of the image that cannot come in. The next merge tries again.
func (p *planner) leaveOut(t *table, name, format string, args ...any) {
	p.clash(t.path, name, stateLine, fmt.Sprintf(format, args...))
	p.conflicts[len(p.conflicts)-1].LeftOut = true
	t.clashes = true
}

func (p *planner) merged(t *table) {
	if t == nil {
		return
	}
	a := account{t.out.text(), t.clashes}
	p.accounts[t.path] = a
	p.budget.content -= len(a.text)
}

// table reads the versions of an account file. It is nil where one is not a text file
// that all could read, and changed says that this machine has another than the base.
func (p *planner) table(path string, fields int) (t *table, changed bool, err error) {
	b, there, o, err := p.three(path, scope{base: p.base != nil, theirs: true})
	if err != nil || !there.is(Regular) {
		return nil, false, err
	}
	t = &table{path: path, fields: fields, known: b.is(Regular), leftOut: map[string]bool{}}
	inUpper := o != nil
	switch {
	case o == nil && p.base == nil:
		o, t.absent = there, true
	case o == nil:
		o = b
	}
	if !o.is(Regular) {
		return nil, false, nil
	}
	for _, c := range p.old {
		if c.LeftOut && c.Path == Name(path) {
			t.leftOut[string(c.Entry)] = true
		}
	}
	for _, in := range []struct {
		*file
		into *records
	}{{b, &t.base}, {there, &t.theirs}, {o, &t.ours}} {
		if !in.is(Regular) {
			continue
		}
		text, ok, err := p.accountText(in.from, path)
		if err == nil && !ok && in.from == p.upper {
			p.notText[path] = true
		}
		if err != nil || !ok {
			return nil, false, err
		}
		*in.into = parseRecords(text, fields)
	}
	same := func(a, b record) bool { return a.equal(b) }
	return t, inUpper && !(t.known && slices.EqualFunc(t.base.lines, t.ours.lines, same)), nil
}

// accountFile is the choice for an account file's content.
func (p *planner) accountFile(a account, o *file) choice {
	c := choice{from: FromContent, text: a.text, reason: "merged entry by entry", clashes: a.clashes}
	if theirs, _, err := p.accountText(p.theirs, o.path); err == nil && bytes.Equal(theirs, a.text) {
		c.from, c.text, c.reason = FromImage, nil, "as in the image"
	} else if ours, _, err := p.accountText(o.from, o.path); o.from == p.upper && err == nil && bytes.Equal(ours, a.text) {
		c.from, c.text, c.reason = FromUpper, nil, "changed here"
	}
	return c
}

// A rule merges the fields of a record that both have. It returns this machine's
// record with what the image changed, and what clashed.
type rule func(base *record, theirs, ours record) (record, []string)

// An intake decides over records of the image that this machine does not have.
type intake struct {
	// returns: the record was in the old image as well, and nobody deleted it here.
	returns func(record) bool
	// admit takes it in; it may change it.
	admit func(record) (record, bool)
}

// mergeTable merges by name. What is not understood stays as this machine has it.
func (p *planner) mergeTable(t *table, kind string, merge rule, in intake) {
	for i, ours := range t.ours.lines {
		theirs, there := t.theirs.get(ours.name)
		if t.follows && t.dropped(ours.name) {
			continue
		}
		if first, ok := t.ours.first[ours.name]; ours.name == "" || !ok || first != i || !there {
			if _, was := t.base.get(ours.name); was && ours.name != "" && !there {
				p.note(t.path, "%s %s is no longer in the image and stays: files may belong to it", kind, Name(ours.name))
			}
			t.out.lines = append(t.out.lines, ours)
			continue
		}
		var base *record
		if was, ok := t.base.get(ours.name); ok {
			base = &was
		}
		merged, clashes := merge(base, theirs, ours)
		if len(clashes) > 0 && p.base != nil {
			p.clash(t.path, ours.name, stateLine, fmt.Sprintf("%s %s: %s", kind, Name(ours.name), strings.Join(clashes, "; ")))
			t.clashes = true
		}
		t.out.lines = append(t.out.lines, merged)
	}
	var fresh []record
	for i, theirs := range t.theirs.lines {
		if _, here := t.ours.get(theirs.name); theirs.name == "" || here || t.theirs.first[theirs.name] != i {
			continue
		}
		if was, ok := t.base.get(theirs.name); ok && !in.returns(theirs) {
			if !sameButDate(t.path, was, theirs) {
				p.clash(t.path, theirs.name, stateLine, fmt.Sprintf("%s %s: deleted here, changed in the image", kind, Name(theirs.name)))
				t.clashes = true
			}
			continue
		}
		if rec, ok := in.admit(theirs); ok {
			fresh = append(fresh, rec)
		}
	}
	t.out = index(slices.Insert(t.out.lines, endOfNames(t.out.lines), fresh...))
}

// dropped reports whether the image no longer has a name of the old image.
func (t *table) dropped(name string) bool {
	_, was := t.base.first[name]
	_, there := t.theirs.first[name]
	return was && !there
}

// endOfNames is where new names go: what stands for the accounts of a directory service
// (+, -) stays last, with the comments among it.
func endOfNames(lines []record) int {
	end := len(lines)
	for at := len(lines) - 1; at >= 0; at-- {
		switch first := lines[at].fields[0]; {
		case directory(first):
			end = at
		case first != "" && first[0] != '#':
			return end
		}
	}
	return end
}

func index(lines []record) records {
	r := records{lines, map[string]int{}}
	for i, rec := range lines {
		if _, twice := r.first[rec.name]; rec.name != "" && !twice {
			r.first[rec.name] = i
		}
	}
	return r
}

// sameButDate compares records; the day of a password's last change is that of the
// image's build for most accounts.
func sameButDate(path string, a, b record) bool {
	if path == "shadow" && len(a.fields) == len(b.fields) && len(a.fields) > 2 {
		a.fields = slices.Clone(a.fields)
		a.fields[2] = b.fields[2]
	}
	return a.equal(b)
}

// field merges one field.
func field(base *record, theirs, ours record, i int, what string, clashes *[]string) string {
	was := ""
	if base != nil {
		was = base.fields[i]
	}
	take, clash := three(base != nil, was, theirs.fields[i], ours.fields[i])
	switch {
	case take:
		return theirs.fields[i]
	case clash && what == "password":
		*clashes = append(*clashes, "password") // which nobody prints
	case clash:
		*clashes = append(*clashes, fmt.Sprintf("%s %s here, %s in the image", what, Name(ours.fields[i]), Name(theirs.fields[i])))
	}
	return ours.fields[i]
}

// members merges a list of names: what either side adds comes in, what either side
// removes goes.
func (u *users) members(group string, base *record, theirs, ours record, i int) string {
	var was []string
	if base != nil {
		was = slices.DeleteFunc(splitList(base.fields[i]), u.comesIn)
	}
	there, here := splitList(theirs.fields[i]), splitList(ours.fields[i])
	if u.base == nil {
		u.noteMembers(group, without(there, here))
		return ours.fields[i]
	}
	if came := without(there, here); base == nil && len(came) > 0 {
		u.note("group", "members %s of group %s come in, which was made here and is new in the image, too", Name(strings.Join(came, ",")), Name(group))
	}
	if slices.Equal(there, was) {
		return ours.fields[i]
	}
	if slices.Equal(here, was) {
		return theirs.fields[i]
	}
	removed := without(was, there)
	return strings.Join(append(without(here, removed), without(without(there, here), was)...), ",")
}

// splitList are the names in a list.
func splitList(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' })
}

// without are the names that are not among others.
func without(names, others []string) []string {
	among := make(map[string]bool, len(others))
	for _, name := range others {
		among[name] = true
	}
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool { return among[name] })
}

// noteMembers says who does not come into a group that is here.
func (u *users) noteMembers(group string, names []string) {
	if len(names) > 0 {
		u.note("group", "members %s of group %s in the image do not come in: without the old image nobody can say who was removed here", Name(strings.Join(names, ",")), Name(group))
	}
}

func mergeShadow(base *record, theirs, ours record) (record, []string) {
	var clashes []string
	out := record{ours.name, slices.Clone(ours.fields)}
	out.fields[1] = field(base, theirs, ours, 1, "password", &clashes)
	// The day of the last change goes with the password.
	if base != nil && ours.fields[1] == base.fields[1] && ours.fields[2] == base.fields[2] {
		out.fields[2] = theirs.fields[2]
	}
	for i, what := range []string{3: "least age of the password", "greatest age of the password", "time of warning", "time of grace", "expiry", "last field"} {
		if what != "" {
			out.fields[i] = field(base, theirs, ours, i, what, &clashes)
		}
	}
	return out, clashes
}

func (u *users) mergeGshadow(base *record, theirs, ours record) (record, []string) {
	var clashes []string
	return record{ours.name, []string{
		ours.fields[0],
		field(base, theirs, ours, 1, "password", &clashes),
		u.members(ours.name, base, theirs, ours, 2),
		u.members(ours.name, base, theirs, ours, 3),
	}}, clashes
}

// mergeShells merges /etc/shells, which is a set. A shell that somebody has here stays.
func (p *planner) mergeShells(t *table, passwd records) {
	inUse := map[string]bool{}
	for _, u := range passwd.lines {
		if u.name != "" {
			inUse[u.fields[6]] = true
		}
	}
	for _, ours := range t.ours.lines {
		_, there := t.theirs.get(ours.name)
		_, was := t.base.get(ours.name)
		if ours.name == "" || there || !was {
			t.out.lines = append(t.out.lines, ours)
		} else if inUse[ours.name] {
			p.note(t.path, "%s is no longer in the image and stays: a user has it", Name(ours.name))
			t.out.lines = append(t.out.lines, ours)
		}
	}
	for _, theirs := range t.theirs.lines {
		_, here := t.ours.get(theirs.name)
		_, was := t.base.get(theirs.name)
		if theirs.name != "" && !here && (!was || p.options.Masked) {
			if was {
				p.note(t.path, "%s of the image comes in: it was not here, and nobody is known to have removed it", Name(theirs.name))
			}
			t.out.lines = append(t.out.lines, theirs)
		}
	}
}
