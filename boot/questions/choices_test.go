package questions

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"halogenos.internal/boot/answers"
)

func TestDefaults(t *testing.T) {
	c := &Choices{
		Keyboards: []Layout{{Name: "ch"}, {Name: "de"}, {Name: "latam"}, {Name: "us"}},
		TimeZones: []Zone{{"Etc/UTC", ""}, {"Europe/Berlin", "DE"}, {"America/New_York", ""}}, HostName: "Halogen\n",
	}
	for _, w := range []struct{ language, keyboard, zone string }{
		{"de_DE.UTF-8", "de", "Europe/Berlin"}, {"de_CH.UTF-8", "ch", "Etc/UTC"}, {"en_US.UTF-8", "us", "Etc/UTC"}, {"en_DE.UTF-8", "us", "Europe/Berlin"},
		{"es_MX.UTF-8", "latam", "Etc/UTC"}, {"C.UTF-8", "us", "Etc/UTC"}, {"", "us", "Etc/UTC"}, {"ja_JP.UTF-8", "us", "Etc/UTC"},
	} {
		if k, z := c.DefaultKeyboard(w.language), c.DefaultTimeZone(w.language); k != w.keyboard || z != w.zone {
			t.Errorf("%s: %s, %s; want %s, %s", w.language, k, z, w.keyboard, w.zone)
		}
	}
	if c.Keyboard, c.TimeZone = "de", "America/New_York"; c.DefaultKeyboard("") != "de" || c.DefaultTimeZone("") != "America/New_York" {
		t.Error("the machine's own are not taken")
	}
	if c.DefaultHostName() != "halogen" {
		t.Errorf("%q", c.DefaultHostName())
	}
	if c.HostName = "localhost\n"; c.DefaultHostName() != "computer" {
		t.Errorf("%q", c.DefaultHostName())
	}
}

// safe are choices that may be in a file.
func safe() *Choices {
	c := debian()
	c.Keyboards[2].Text, c.HostName = "English (US)", "halogen"
	return c
}

func TestFile(t *testing.T) {
	want := safe()
	text, err := want.Encode()
	if err != nil {
		t.Fatal(err)
	}
	have, err := Parse(text)
	if err != nil || !reflect.DeepEqual(have, want) {
		t.Errorf("%+v, %v\n%s", have, err, text)
	}
	if _, err := Parse([]byte(`{"version":1,"of_a_later_release":[1]}`)); err != nil {
		t.Error(err)
	}
	for _, but := range []struct {
		change func(*Choices)
		want   string
	}{
		{func(c *Choices) { c.Version = 2 }, "has version 2"},
		{func(c *Choices) { c.Languages[0] = "\x1b[2J" }, "languages: "},
		{func(c *Choices) { c.Keyboards[0].Name = "de;reboot" }, "keyboards: "},
		{func(c *Choices) { c.Keyboards[0].Text = "a\x1b[2J" }, "keyboards: de: "},
		{func(c *Choices) { c.Keyboards[0].Text = strings.Repeat("x", 201) }, "201 bytes"},
		{func(c *Choices) { c.TimeZones[0].Name = "../../etc/passwd" }, "time_zones: "},
		{func(c *Choices) { c.TimeZones[0].Country = "DEU" }, "not a country's code"},
		{func(c *Choices) { c.TimeZones = make([]Zone, 10001) }, "10001 entries"},
		{func(c *Choices) { c.Users[0] = "" }, "the name of an account"},
		{func(c *Choices) { c.Groups[0] = "a\nb" }, "control character"},
		{func(c *Choices) { c.HostName = "a b" }, "host_name: "},
		{func(c *Choices) { c.TimeZone = "/etc" }, "time_zone: "},
	} {
		c := safe()
		but.change(c)
		text := raw(t, c)
		if have, err := Parse(text); err == nil || !strings.Contains(err.Error(), but.want) || strings.ContainsRune(err.Error(), '\x1b') {
			t.Errorf("%+v, %v; want %q", have, err, but.want)
		}
		if _, err := c.Encode(); err == nil && c.Version == Version {
			t.Errorf("written, and not read: %s", but.want)
		}
	}
	if _, err := Parse([]byte(`{"version":1}` + strings.Repeat(" ", MaxSize))); err == nil {
		t.Error("a file of more than the limit is read")
	}
}

// XKB's list, and the table of zones, as Debian has them in the main, and with what nobody
// should be shown.
func TestLists(t *testing.T) {
	layouts := Layouts("! model\n  pc105  Generic\n\n! layout\n  us  English (US)\n  de  German\n  custom A user-defined layout\n  x\x1b  Evil\n\n! variant\n" +
		"  nodeadkeys de: German (no dead keys)\n  evil de: a\x1b[2Jb\n  long us: " + strings.Repeat("y", 300) + "\n\n! option\n  grp  Switching\n")
	if want := []Layout{{"de", "German"}, {"de(evil)", "a?[2Jb"}, {"de(nodeadkeys)", "German (no dead keys)"}, {"us", "English (US)"}, {"us(long)", ""}}; !reflect.DeepEqual(layouts, want) {
		t.Errorf("%q", layouts)
	}
	zones := Zones([]string{"America/New_York", "Etc/UTC", "Europe/Berlin", "Factory", "posixrules", "zone.tab", "Evil\x1b"}, "# a comment\nDE\t+5230+01322\tEurope/Berlin\nUS\t+40\tAmerica/New_York\tEastern\nUS\t+41\tAmerica/Detroit\nxx\t+1\tEtc/UTC\n")
	if want := []Zone{{"America/New_York", ""}, {"Etc/UTC", ""}, {"Europe/Berlin", "DE"}}; !reflect.DeepEqual(zones, want) {
		t.Errorf("%q", zones)
	}
	if all := Locales([]string{"C", "C.utf8", "POSIX", "en_US.utf8", "de_DE.UTF-8", "de_DE@euro", "ca_ES.utf8@valencia", "en_US.UTF-8", "\x1b.utf8"}); !reflect.DeepEqual(all, []string{"C.UTF-8", "ca_ES.UTF-8@valencia", "de_DE.UTF-8", "en_US.UTF-8"}) {
		t.Errorf("%q", all)
	}
	c := &Choices{Version: Version, Keyboards: layouts, TimeZones: zones}
	if _, err := c.Encode(); err != nil {
		t.Errorf("what the lists say cannot be written: %v", err)
	}
}

// What is taken can be written again, and shown.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"version":1,"languages":["de_DE.UTF-8"],"keyboards":[{"name":"de","text":"German"}],"time_zones":[{"name":"Europe/Berlin","country":"DE"}],"users":["root"],"automatic_updates":true}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := Parse(text)
		if err != nil {
			return
		}
		if _, err := c.Encode(); err != nil {
			t.Fatal(err)
		}
		for i := NewInterview(c, nil); i.Question() != nil; i.Leave() {
			for _, choice := range i.Question().Choices {
				if plain(choice.Name+choice.Text) != choice.Name+choice.Text {
					t.Fatalf("%q", choice)
				}
			}
		}
	})
}

// What an image cannot follow is found before a machine is installed with it.
func TestFollow(t *testing.T) {
	yes := true
	whole := answers.Answers{Language: "de_DE.UTF-8", Keyboard: "de", TimeZone: "Europe/Berlin", HostName: "box", AutomaticUpdates: &yes, Account: &answers.Account{Name: "alice"}}
	if err := errors.Join(debian().Follow(&whole), debian().Follow(&answers.Answers{}), new(Choices).Follow(&answers.Answers{HostName: "box"})); err != nil {
		t.Error(err)
	}
	for want, a := range map[string]answers.Answers{
		"language: the image has no fr_FR.UTF-8":      {Language: "fr_FR.UTF-8"},
		"keyboard: the image has no layout de(x)":     {Keyboard: "de(x)"},
		"time_zone: the image has no Europe/Atlantis": {TimeZone: "Europe/Atlantis"},
		"account: root is an account of the system":   {Account: &answers.Account{Name: "root"}},
		"account: sudo is a group of the system":      {Account: &answers.Account{Name: "sudo"}},
	} {
		if err := debian().Follow(&a); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	for want, a := range map[string]answers.Answers{"account: the image has no programs": {Account: whole.Account}, "automatic_updates: the image has no server": {AutomaticUpdates: &yes}} {
		if err := new(Choices).Follow(&a); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
