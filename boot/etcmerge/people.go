package etcmerge

import (
	"cmp"
	"maps"
	"path"
	"slices"
	"strings"
)

// People are the accounts of a machine's people, to be kept where all else of its /etc
// goes: lines of the account files, by the files' names. A person is a user with an
// ordinary number whose home lies under /home.
type People map[string][]byte

// A Person is one of these accounts, as it is shown.
type Person struct {
	Name   Name
	Number uint32
	// Groups are those that they are in, or administrate, but for one of their own: with their
	// name, and an ordinary number. They are in the order of the file.
	Groups []Name
}

// PeopleOf finds the people in a machine's account files, by the files' names. A line that is
// not understood belongs to nobody. Nothing is bounded here: a merge has read the same files.
func PeopleOf(files map[string][]byte) (People, []Person) {
	of := func(file string) records { return parseRecords(files[file], fieldsOf(file)) }
	var people []Person
	passwd, at, primary, numbers := records{}, map[string]int{}, map[uint32]bool{}, map[uint32]bool{}
	all := of("passwd")
	for i, rec := range all.lines {
		n, is := person(rec)
		if !is || all.first[rec.name] != i {
			continue
		}
		passwd.lines = append(passwd.lines, rec)
		at[rec.name], numbers[n] = len(people), true
		people = append(people, Person{Name: Name(rec.name), Number: n})
		if gid, ok := number(rec.fields[groupField]); ok {
			primary[gid] = true
		}
	}
	if len(people) == 0 {
		return nil, nil
	}
	here := func(name string) bool { _, is := at[name]; return is }
	groups := peoplesGroups(of("group"), primary, here)
	gshadow := withMembers(firstLines(of("gshadow"), func(name string) bool { _, is := groups.first[name]; return is }), here, 2, 3)
	out := People{"passwd": passwd.text(), "group": groups.text()}
	out.add("shadow", firstLines(of("shadow"), here))
	out.add("gshadow", gshadow)
	taken := map[string][]uint32{"subuid": slices.Sorted(maps.Keys(numbers))}
	groups.numbers(func(_ string, n uint32) { taken["subgid"] = append(taken["subgid"], n) })
	taken["subgid"] = slices.Sorted(slices.Values(slices.Concat(taken["subgid"], taken["subuid"])))
	for _, file := range []string{"subuid", "subgid"} {
		ranges := of(file)
		ranges.lines = slices.DeleteFunc(ranges.lines, func(rec record) bool {
			n, isNumber := number(rec.name) // subuid(5) takes a user's number, too
			return rec.name == "" || !here(rec.name) && !(isNumber && numbers[n]) || !peoplesRange(rec, taken[file])
		})
		out.add(file, ranges)
	}
	nameGroups(people, passwd, groups, gshadow)
	return out, people
}

// WithoutServices returns account files without the people whose name is a system user's of an
// image, whose services would run as them; image has its passwd and its group. A person's own
// group with the name of a system group of the image gets another name: under the old one they
// would be in the image's group, and have what the image gives to that. The groups that the image
// has come first, so that people are shown with these before all others.
func WithoutServices(files, image map[string][]byte) map[string][]byte {
	if len(files["passwd"]) == 0 {
		return files
	}
	of := func(from map[string][]byte, file string) records { return parseRecords(from[file], fieldsOf(file)) }
	theirs := map[string]records{"passwd": of(image, "passwd"), "group": of(image, "group")}
	systems := func(file, name string) bool { n, has := theirs[file].own(name); return has && system(n) }
	passwd, group, gshadow := of(files, "passwd"), of(files, "group"), of(files, "gshadow")
	renamed := map[string]string{}
	passwd.lines = slices.DeleteFunc(passwd.lines, func(rec record) bool {
		_, is := person(rec)
		if is && systems("passwd", rec.name) {
			return true
		}
		n, has := group.own(rec.name)
		if is && has && !system(n) && systems("group", rec.name) {
			renamed[rec.name] = freeName(rec.name+"-"+decimal(n), group, gshadow, theirs["group"])
		}
		return false
	})
	group = group.rename(renamed)
	known := func(rec record) int { // 1 for a group that the image has
		if _, has := theirs["group"].get(rec.name); has && rec.name != "" {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(group.lines, func(a, b record) int {
		return cmp.Compare(known(b), known(a))
	})
	files = maps.Clone(files)
	files["passwd"], files["group"], files["gshadow"] = passwd.text(), group.text(), gshadow.rename(renamed).text()
	return files
}

// freeName is a name that none of these have.
func freeName(name string, among ...records) string {
	for slices.ContainsFunc(among, func(r records) bool { _, has := r.first[name]; return has }) {
		name += "_"
	}
	return name
}

// rename gives lines other names, by the ones that they have.
func (r records) rename(names map[string]string) records {
	lines := slices.Clone(r.lines)
	for i, rec := range lines {
		if name, is := names[rec.name]; is && rec.name != "" {
			lines[i] = record{name, slices.Concat([]string{name}, rec.fields[1:])}
		}
	}
	return index(lines)
}

// nameGroups puts down which groups people are in, or administrate, so that they can become
// members. One of their own name is left out where its number is ordinary, which makes it
// their own (see [WithoutServices]).
func nameGroups(people []Person, passwd, groups, gshadow records) {
	at, named := map[string]*Person{}, map[[2]string]bool{}
	own := func(name string) bool { n, is := groups.own(name); return is && !system(n) }
	in := func(p *Person, group string) {
		if pair := [2]string{string(p.Name), group}; !named[pair] && (pair[0] != pair[1] || !own(group)) {
			named[pair] = true
			p.Groups = append(p.Groups, Name(group))
		}
	}
	called := map[uint32][]string{} // several names may have one number, and each counts
	groups.numbers(func(name string, n uint32) { called[n] = append(called[n], name) })
	for i, rec := range passwd.lines {
		at[rec.name] = &people[i]
		gid, _ := number(rec.fields[groupField]) // it is one ([person])
		if len(called[gid]) == 0 {
			in(&people[i], rec.fields[groupField]) // an image may have a group with that number
		}
		for _, group := range called[gid] {
			in(&people[i], group)
		}
	}
	members := func(of records, field int) {
		for _, rec := range of.lines {
			for _, name := range splitList(rec.fields[field]) {
				in(at[name], rec.name)
			}
		}
	}
	members(groups, 3)
	members(gshadow, 2)
	members(gshadow, 3)
	place := func(group Name) int {
		if i, is := groups.first[string(group)]; is {
			return i
		}
		return -1 // a number alone
	}
	for _, p := range people {
		slices.SortStableFunc(p.Groups, func(a, b Name) int { return cmp.Compare(place(a), place(b)) })
	}
}

// peoplesRange reports whether subordinate numbers may be a person's. With those of the
// system, of people or of their groups among them they would let one become any of these
// (newuidmap(1)), and with those below what ranges are given from, anybody who gets an
// account later. A zero in front makes them octal.
func peoplesRange(rec record, people []uint32) bool {
	s, ok := spanOf(rec)
	if !ok || s.first < firstRange || rec.fields[1][0] == '0' || !isText([]byte(rec.line())) {
		return false
	}
	at, _ := slices.BinarySearch(people, uint32(s.first))
	return at == len(people) || uint64(people[at]) >= s.end()
}

func (p People) add(file string, r records) {
	if len(r.lines) > 0 {
		p[file] = r.text()
	}
}

// person reports whether a line of passwd is a person's, with whose number.
func person(rec record) (uint32, bool) {
	if rec.name == "" || rec.name == "root" || strings.ContainsAny(rec.name[:1], "+-"+spaces) || !isText([]byte(rec.line())) {
		return 0, false
	}
	if _, ok := number(rec.fields[groupField]); !ok {
		return 0, false // programs pass over the line
	}
	n, ok := number(rec.fields[numberField])
	home := rec.fields[5]
	return n, ok && !system(n) && path.IsAbs(home) && path.Clean(home) != peoplesHomes && within(path.Clean(home), peoplesHomes)
}

const peoplesHomes = "/home"

// firstLines are those in effect, of these names.
func firstLines(all records, wanted func(name string) bool) records {
	var out []record
	for i, rec := range all.lines {
		if rec.name != "" && all.first[rec.name] == i && wanted(rec.name) && !passedOver(rec.name) && isText([]byte(rec.line())) {
			out = append(out, rec)
		}
	}
	return index(out)
}

// withMembers leaves those names in lists that are wanted. Programs pass over space in front of one.
func withMembers(r records, wanted func(name string) bool, fields ...int) records {
	for i, rec := range r.lines {
		rec.fields = slices.Clone(rec.fields)
		for _, at := range fields {
			var names []string
			for _, name := range splitList(rec.fields[at]) {
				if name = strings.TrimLeft(name, spaces); wanted(name) {
					names = append(names, name)
				}
			}
			rec.fields[at] = strings.Join(names, ",")
		}
		r.lines[i] = rec
	}
	return r
}

// peoplesGroups are those that people are in.
func peoplesGroups(all records, primary map[uint32]bool, here func(name string) bool) records {
	groups := withMembers(firstLines(all, func(string) bool { return true }), here, 3)
	return index(slices.DeleteFunc(groups.lines, func(rec record) bool {
		n, ok := number(rec.fields[numberField])
		return !ok || !primary[n] && rec.fields[3] == ""
	}))
}
