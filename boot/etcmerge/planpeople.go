package etcmerge

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
)

// PlanPeople plans an upper directory of /etc that holds nothing but what is needed for
// these people to be users of an image. They keep their numbers, to which what lies in
// /home belongs, and so do their groups: of a group that the image has, too, they are
// members still. A user, a group or a range of the image's whose number they have is given
// another one, as in a merge.
func PlanPeople(ctx context.Context, image Tree, people People, options Options) (*Result, error) {
	options.Masked, options.Other, options.Etc = false, false, nil
	p := newPlanner(ctx, nil, image, nil, options)
	services, err := p.services()
	if err != nil {
		return nil, err
	}
	people, _ = PeopleOf(WithoutServices(people, services))
	s := seating{planner: p, people: map[string]records{}, image: map[string]records{}, base: map[string][]byte{}, ours: map[string][]byte{}}
	if err := s.read(people); err != nil {
		return nil, err
	}
	s.seat()
	base, ours := texts{image, s.base, false}, texts{image, s.ours, true}
	p.base = &source{tree: base, name: "the image without its clashes"}
	p.upper = &source{tree: ours, name: "the accounts that are kept", upper: true}
	r, err := p.plan()
	if err != nil {
		return nil, err
	}
	for i, c := range r.Changes {
		if c.From == FromUpper {
			r.Changes[i].From, r.Changes[i].Content = FromContent, s.ours[c.Path]
		}
	}
	return r, nil
}

// services are the image's passwd and group, as far as it has them and they are understood.
func (p *planner) services() (map[string][]byte, error) {
	out := map[string][]byte{}
	for _, name := range []string{"passwd", "group"} {
		file, err := p.file(p.theirs, name)
		if err != nil {
			return nil, err
		}
		if !file.is(Regular) {
			continue
		}
		text, ok, err := p.accountText(p.theirs, name)
		if err != nil {
			return nil, err
		}
		if ok {
			out[name] = text
		}
	}
	return out, nil
}

// seating adds people to an image's accounts. base is the part of the image's that does not
// conflict with them, and ours is base with them added: what conflicts counts as new in the image,
// and a merge gives that other numbers.
type seating struct {
	*planner
	people, image map[string]records
	base, ours    map[string][]byte
}

func (s *seating) read(people People) error {
	for _, f := range accountFiles {
		file, err := s.file(s.theirs, f.path)
		if err != nil {
			return err
		}
		if s.people[f.path] = parseRecords(people[f.path], f.fields); len(people[f.path]) == 0 {
			s.people[f.path] = records{}
		}
		if !file.is(Regular) {
			continue
		}
		text, ok, err := s.accountText(s.theirs, f.path)
		if err != nil {
			return err
		}
		if ok {
			s.image[f.path] = parseRecords(text, f.fields)
		}
	}
	return nil
}

func (s *seating) seat() {
	s.people["group"] = s.groupsThatStay()
	s.shells()
	for _, file := range []string{"passwd", "group"} {
		taken := map[uint32]bool{}
		s.people[file].numbers(func(_ string, n uint32) { taken[n] = true })
		s.lay(file, func(rec record) bool { n, ok := number(rec.fields[numberField]); return ok && taken[n] })
	}
	nobody := func(record) bool { return false }
	s.people["gshadow"] = firstLines(s.people["gshadow"], func(name string) bool { _, is := s.people["group"].get(name); return is })
	s.lay("shadow", nobody)
	s.lay("gshadow", nobody)
	s.layRanges("subuid")
	s.layRanges("subgid")
}

// shells gives those a shell of the image's who have one that it does not offer: with
// nothing else they could not log in. What lies in /home is there still.
func (s *seating) shells() {
	offers := s.image["shells"]
	if len(offers.first) == 0 {
		return
	}
	used := map[string]bool{}
	for _, rec := range s.image["passwd"].lines {
		if rec.name != "" {
			used[rec.fields[6]] = true
		}
	}
	instead := "/bin/sh"
	if _, has := offers.get("/bin/bash"); has {
		instead = "/bin/bash"
	}
	for i, rec := range s.people["passwd"].lines {
		shell := rec.fields[6]
		if _, has := offers.get(shell); has || shell == "" || used[shell] || within(path.Clean(shell), peoplesHomes) {
			continue
		}
		rec.fields = slices.Clone(rec.fields)
		rec.fields[6] = instead
		s.people["passwd"].lines[i] = rec
		s.note("passwd", "%s has the shell %s now: %s is none of the image's (etc/shells)", Name(rec.name), instead, Name(shell))
	}
}

// lay lays the people's lines of a file over the image's.
func (s *seating) lay(file string, inTheWay func(record) bool) {
	image, here := s.image[file], s.people[file]
	var base, ours []record
	for i, rec := range image.lines {
		mine, is := here.get(rec.name)
		switch {
		case rec.name == "" || image.first[rec.name] != i:
			base, ours = append(base, rec), append(ours, rec)
		case is:
			base, ours = append(base, rec), append(ours, joined(file, rec, mine))
		case !inTheWay(rec):
			base, ours = append(base, rec), append(ours, rec)
		}
	}
	var fresh []record
	for _, rec := range here.lines {
		if _, there := image.get(rec.name); rec.name != "" && !there {
			fresh = append(fresh, rec)
		}
	}
	s.put(file, base, slices.Insert(ours, endOfNames(ours), fresh...))
}

// joined is the line of a name that the image has, too. Its groups stay as it has them,
// but for the number, with the people as members.
func joined(file string, image, mine record) record {
	lists := map[string][]int{"group": {3}, "gshadow": {2, 3}}[file]
	if lists == nil {
		return mine
	}
	out := record{image.name, slices.Clone(image.fields)}
	if file == "group" {
		out.fields[numberField] = mine.fields[numberField]
	}
	for _, at := range lists {
		there := splitList(image.fields[at])
		out.fields[at] = strings.Join(append(there, without(splitList(mine.fields[at]), there)...), ",")
	}
	return out
}

// layRanges is lay for subordinate numbers. Those of a name are one thing: where one of
// them is in the way, all are.
func (s *seating) layRanges(file string) {
	image, here := s.image[file], s.people[file]
	taken := spansOf(here)
	moves := map[string]bool{}
	for _, rec := range image.lines {
		if rec.name == "" {
			continue
		}
		if s, ok := spanOf(rec); ok && slices.ContainsFunc(taken, s.overlaps) {
			moves[rec.name] = true
		}
	}
	var base, ours []record
	for _, rec := range image.lines {
		_, mine := here.get(rec.name)
		if mine || rec.name == "" || !moves[rec.name] {
			base = append(base, rec)
		}
		if !mine && (rec.name == "" || !moves[rec.name]) {
			ours = append(ours, rec)
		}
	}
	s.put(file, base, append(ours, here.lines...))
}

// put keeps a file's texts where there is something to be changed.
func (s *seating) put(file string, base, ours []record) {
	same := func(a, b record) bool { return a.equal(b) }
	image, has := s.image[file]
	if slices.EqualFunc(ours, image.lines, same) {
		return
	}
	if s.ours[file] = (records{lines: ours}).text(); has {
		s.base[file] = (records{lines: base}).text()
	}
}

// texts is an image with other texts in some of its files; alone: it has nothing else.
type texts struct {
	image Tree
	files map[string][]byte
	alone bool
}

// Entry implements Tree.
func (t texts) Entry(name string) (Entry, error) {
	text, own := t.files[name]
	if t.alone && !own && name != "." {
		return Entry{}, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	e, err := t.image.Entry(name)
	if !own {
		return e, err
	}
	if err != nil || e.Type != Regular {
		top, err := t.image.Entry(".")
		if err != nil {
			return Entry{}, err
		}
		e = Entry{Type: Regular, Mode: 0o644, ModTime: top.ModTime}
		if name == "shadow" || name == "gshadow" {
			e.Mode = 0o600
		}
	}
	e.Size = int64(len(text))
	return e, nil
}

// Names implements Tree.
func (t texts) Names(dir string) ([]string, error) {
	switch {
	case !t.alone:
		return t.image.Names(dir)
	case dir != ".":
		return nil, fmt.Errorf("%q is not a directory", dir)
	}
	return slices.Collect(maps.Keys(t.files)), nil
}

// Open implements Tree.
func (t texts) Open(name string) (io.ReadCloser, error) {
	if text, own := t.files[name]; own {
		return io.NopCloser(strings.NewReader(string(text))), nil
	}
	return t.image.Open(name)
}
