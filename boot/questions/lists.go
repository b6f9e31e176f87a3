package questions

import (
	"slices"
	"strings"

	"halogenos.internal/boot/answers"
)

// The files of an image that have its lists.
const (
	LayoutFile      = "/usr/share/X11/xkb/rules/evdev.lst"
	OtherLayoutFile = "/usr/share/X11/xkb/rules/base.lst"
	ZoneDirectory   = "/usr/share/zoneinfo"
	ZoneTable       = ZoneDirectory + "/zone.tab"
)

// Locale is a locale of the C library by the name that answers have for it, such as de_DE.UTF-8
// for de_DE.utf8; "" for one without UTF-8.
func Locale(name string) string {
	base, modifier, has := strings.Cut(name, "@")
	speech, charset, _ := strings.Cut(base, ".")
	if c := strings.ToLower(charset); c != "utf8" && c != "utf-8" {
		return ""
	}
	name = speech + ".UTF-8"
	if has {
		name += "@" + modifier
	}
	if answers.Language(name) != nil {
		return ""
	}
	return name
}

// Locales are those of a list that have UTF-8, in the order of their names.
func Locales(names []string) (all []string) {
	for _, name := range names {
		if l := Locale(name); l != "" && len(all) < MaxEntries {
			all = append(all, l)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// Layouts are those of XKB's list, in the order of their names. What a terminal might obey
// is left out of their texts.
func Layouts(list string) (all []Layout) {
	section := ""
	for line := range strings.Lines(list) {
		words := strings.Fields(line)
		switch {
		case len(words) < 2 || len(all) == MaxEntries:
			continue
		case words[0] == "!":
			section = words[1]
			continue
		}
		l := Layout{Name: words[0], Text: strings.Join(words[1:], " ")}
		if of, found := strings.CutSuffix(words[1], ":"); found && section == "variant" {
			l = Layout{Name: of + "(" + words[0] + ")", Text: strings.Join(words[2:], " ")}
		} else if section != "layout" || words[0] == "custom" {
			continue
		}
		if answers.Keyboard(l.Name) == nil {
			l.Text = plain(l.Text)
			if len(l.Text) > maxText {
				l.Text = ""
			}
			all = append(all, l)
		}
	}
	slices.SortStableFunc(all, func(a, b Layout) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// IsZone reports whether a file of that name, from the top of the time zone database, is a
// zone that somebody chooses.
func IsZone(name string) bool {
	return name != "" && name[0] >= 'A' && name[0] <= 'Z' && name != "Factory" && answers.TimeZone(name) == nil
}

// Zones are the files of the time zone database that are zones, with the countries that its
// zone.tab gives them.
func Zones(names []string, table string) (all []Zone) {
	only := map[string]string{} // a country's zone; "" where it has several
	for line := range strings.Lines(table) {
		c := strings.Split(strings.TrimRight(line, "\n"), "\t")
		if len(c) < 3 || len(c[0]) != 2 || strings.Trim(c[0], upper) != "" {
			continue
		}
		if _, several := only[c[0]]; several {
			c[2] = ""
		}
		only[c[0]] = c[2]
	}
	country := map[string]string{}
	for c, zone := range only {
		country[zone] = c
	}
	delete(country, "")
	for _, name := range names {
		if IsZone(name) && len(all) < MaxEntries {
			all = append(all, Zone{Name: name, Country: country[name]})
		}
	}
	return all
}
