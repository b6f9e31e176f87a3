package steps

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/answers"
	"halogenos.internal/boot/questions"
)

const hash = "$y$j9T$F5Jx5fExrKuPp53xLKQ..1$X3DX6M94c7o.9agCG9G317fhZg9SqC.5i5rd.RhAtQ7"

// debian are the facts of a Debian 13 with a desktop, in the main.
func debian() *Facts {
	return &Facts{
		Locales: []string{"C.UTF-8", "de_CH.UTF-8", "de_DE.UTF-8", "el_GR.UTF-8", "en_US.UTF-8", "es_MX.UTF-8"},
		Layouts: []Layout{{Name: "ch"}, {Name: "de"}, {Name: "de(nodeadkeys)"}, {Name: "gr"}, {Name: "latam"}, {Name: "us"}},
		Zones:   []Zone{{Name: "Etc/UTC"}, {Name: "Europe/Berlin", Country: "DE"}, {Name: "America/New_York"}},
		Files: map[string]string{
			localeConf: "# here\nLANG=C.UTF-8\nLC_TIME=en_DK.UTF-8\n", hostname: "halogen\n", hosts: "127.0.0.1 localhost\n127.0.1.1 halogen\n::1 localhost\n",
			defaultKeyboard: "XKBMODEL=\"pc105\"\nXKBLAYOUT=\"us\"\nXKBVARIANT=\"\"\nXKBOPTIONS=\"compose:menu\"\nBACKSPACE=\"guess\"\n", nsswitch: "hosts: files dns\n",
		},
		Links:       map[string]string{vconsoleConf: "default/keyboard", defaultLocale: "../locale.conf", localtime: "/usr/share/zoneinfo/Etc/UTC"},
		Directories: map[string]bool{"/etc/default": true, "/etc/X11": true},
		Users:       []User{{Name: "root"}, {Name: "nobody", UID: 65534}, {Name: "halogen-ota", UID: 990}},
		Groups:      []string{"root", "audio", "sudo", "netdev", "users"},
		Tools:       map[string]bool{"useradd": true, "usermod": true, "userdel": true, "groupdel": true, "chpasswd": true, "systemctl": true, "setupcon": true, "udevadm": true, "bash": true},
		Updates:     On, Systemd: true,
	}
}

// short says what steps do, a line each.
func short(all []Step) (lines []string) {
	for _, s := range all {
		switch s.Kind {
		case Write:
			lines = append(lines, "write "+s.Path+" "+s.Text)
		case Symlink:
			lines = append(lines, "link "+s.Path+" "+s.Text)
		case Remove:
			lines = append(lines, "remove "+s.Path)
		case Run:
			lines = append(lines, strings.TrimSpace("run "+strings.Join(s.Args, " ")+" < "+string(s.Input)))
		case Name:
			lines = append(lines, "name "+s.Text)
		}
	}
	return lines
}

func check(t *testing.T, what string, all []Step, want ...string) {
	t.Helper()
	if have := short(all); !slices.Equal(have, want) {
		t.Errorf("%s:\n%s\nwant:\n%s", what, strings.Join(have, "\n"), strings.Join(want, "\n"))
	}
}

func plan(t *testing.T, a *answers.Answers, f *Facts) []Step {
	t.Helper()
	all, err := Plan(a, f)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// All of a Debian, in order: the note that all is done comes last.
func TestPlan(t *testing.T) {
	no := false
	a := &answers.Answers{
		Version: 1, Language: "de_DE.UTF-8", Keyboard: "de(nodeadkeys)", TimeZone: "Europe/Berlin", HostName: "kitchen.example.org",
		Account: &answers.Account{Name: "alice", FullName: "Alice Example", PasswordHash: hash}, AutomaticUpdates: &no,
	}
	check(t, "Debian", plan(t, a, debian()),
		"write /etc/locale.conf # here\nLANG=de_DE.UTF-8\nLC_TIME=en_DK.UTF-8\n",
		"run systemctl set-environment LANG=de_DE.UTF-8 <",
		"write /etc/default/keyboard XKBMODEL=\"pc105\"\nXKBLAYOUT=\"de\"\nXKBVARIANT=\"nodeadkeys\"\nXKBOPTIONS=\"compose:menu\"\nBACKSPACE=\"guess\"\n",
		"run setupcon --keyboard-only --force <",
		"run udevadm trigger --subsystem-match=input --action=change <",
		"link /etc/localtime ../usr/share/zoneinfo/Europe/Berlin",
		"write /etc/hostname kitchen.example.org\n",
		"write /etc/hosts 127.0.0.1 localhost\n127.0.1.1\tkitchen.example.org kitchen\n::1 localhost\n",
		"name kitchen.example.org",
		"remove "+TimerLink,
		"run systemctl --no-block stop ota-fetch.timer <",
		"write /etc/halogen/setup-begun alice\n",
		"run useradd --create-home --user-group --comment Alice Example --shell /bin/bash --groups sudo,audio,netdev alice <",
		"run chpasswd --encrypted < alice:"+hash,
		"remove /etc/halogen/setup-begun",
		"remove /var/lib/halogen/setup.json", "remove /var/lib/halogen/first-start")
	check(t, "nothing but a version", plan(t, &answers.Answers{Version: 1}, debian()), "remove /var/lib/halogen/setup.json", "remove /var/lib/halogen/first-start")
}

// Other distributions have the same in other files.
func TestOthers(t *testing.T) {
	yes := true
	f := debian()
	f.Links, f.Files = map[string]string{}, map[string]string{timezone: "UTC\n", nsswitch: "hosts: mymachines resolve [!UNAVAIL=return] files myhostname dns\n", vconsoleConf: "FONT=ter\n"}
	f.Tools = map[string]bool{"loadkeys": true, "halogenctl": true}
	f.Systemd = false
	f.Keymaps = "# keymap layout model variant options\nde-latin1 de pc105 - terminate:x\nde-latin1-nodeadkeys de pc105 nodeadkeys -\nde de x other -\n"
	a := &answers.Answers{Version: 1, Language: "de_DE.UTF-8", Keyboard: "de(nodeadkeys)", TimeZone: "Europe/Berlin", HostName: "kitchen", AutomaticUpdates: &yes}
	check(t, "another", plan(t, a, f),
		"write /etc/locale.conf LANG=de_DE.UTF-8\n",
		"write /etc/default/locale LANG=de_DE.UTF-8\n",
		"run halogenctl language de <",
		"write /etc/vconsole.conf FONT=ter\nXKBMODEL=\"pc105\"\nXKBLAYOUT=\"de\"\nXKBVARIANT=\"nodeadkeys\"\nKEYMAP=\"de-latin1-nodeadkeys\"\n",
		"write /etc/X11/xorg.conf.d/00-keyboard.conf "+xorg("de", "nodeadkeys", ""),
		"run loadkeys --quiet de-latin1-nodeadkeys <",
		"link /etc/localtime ../usr/share/zoneinfo/Europe/Berlin",
		"write /etc/timezone Europe/Berlin\n",
		"write /etc/hostname kitchen\n",
		"name kitchen",
		"link "+TimerLink+" /usr/lib/systemd/system/ota-fetch.timer",
		"remove /var/lib/halogen/setup.json", "remove /var/lib/halogen/first-start")
	// Into what there is no translation the screens before the system stay as they are.
	f.Locales = append(f.Locales, "fr_FR.UTF-8")
	check(t, "without a translation", locale("fr_FR.UTF-8", f), "write /etc/locale.conf LANG=fr_FR.UTF-8\n", "write /etc/default/locale LANG=fr_FR.UTF-8\n")
	for of, want := range map[string]string{"de": "de-latin1", "de(unknown)": "de-latin1", "fr": "fr", "fr(bepo)": "fr-bepo"} {
		layout, variant := answers.SplitKeyboard(of)
		if have := keymap(f.Keymaps, layout, variant); have != want {
			t.Errorf("keymap of %s is %s, want %s", of, have, want)
		}
	}
}

// Where the keys bear no Latin letters, the account's name could not be typed: US is there,
// too, and goes when the layout changes.
func TestForeignKeyboard(t *testing.T) {
	f := debian()
	f.Files[defaultKeyboard] = "XKBLAYOUT=us\n"
	all := Keyboard("gr", f)
	want := "XKBLAYOUT=\"us,gr\"\nXKBMODEL=\"pc105\"\nXKBVARIANT=\",\"\nXKBOPTIONS=\"grp:alt_shift_toggle\"\n"
	if all[0].Text != want {
		t.Errorf("%s\nwant\n%s", all[0].Text, want)
	}
	f.Files[defaultKeyboard] = all[0].Text
	if text := Keyboard("de", f)[0].Text; questions.Value(text, "XKBLAYOUT") != "de" || questions.Value(text, "XKBVARIANT") != "" || questions.Value(text, "XKBOPTIONS") != "" {
		t.Errorf("%s", text)
	}
}

// An account that was being made when the power failed is made again; no other is touched.
func TestCutAccount(t *testing.T) {
	a := &answers.Answers{Version: 1, Account: &answers.Account{Name: "alice", Typed: []byte("pass:word")}}
	add := "run useradd --create-home --user-group --comment  --shell /bin/bash --groups sudo,audio,netdev alice <"
	uid := strings.Replace(add, " alice", " --uid 1003 alice", 1)
	join := "run usermod --append --groups sudo,audio,netdev alice <"
	here, open := User{Name: "alice", UID: 1003, Password: false}, User{Name: "alice", UID: 1003, Password: true}
	for _, c := range []struct {
		name  string
		begun string
		users []User
		group string
		home  map[string]uint32
		want  []string
	}{
		{"new", "", nil, "", nil, []string{add}},
		{"nothing was made", "alice", nil, "", nil, []string{add}},
		{"a user and no password", "alice", []User{here}, "alice", map[string]uint32{"alice": 1003}, []string{"run userdel alice <", "run groupdel alice <", uid}},
		{"a group was left", "alice", nil, "alice", nil, []string{"run groupdel alice <", add}},
		{"a home that nobody owns yet", "alice", []User{here}, "", map[string]uint32{"alice": 0}, []string{"run userdel alice <", "remove /home/alice", add}},
		{"all but the last note", "alice", []User{open}, "alice", map[string]uint32{"alice": 1003}, []string{join}},
		{"another name the second time", "bob", []User{{Name: "bob", UID: 1000, Password: false}}, "bob", nil, []string{"run userdel bob <", "run groupdel bob <", add}},
		{"another, who has a password", "bob", []User{{Name: "bob", UID: 1000, Password: true}}, "bob", nil, []string{add}},
		{"a note about somebody of the system", "root", []User{{Name: "root", UID: 0, Password: false}}, "root", nil, []string{add}},
		{"there without a note, with keys alone", "", []User{here}, "alice", nil, []string{join}},
		{"a home that was kept", "", nil, "", map[string]uint32{"alice": 1003}, []string{uid}},
		{"a home of somebody else", "", []User{{Name: "carol", UID: 1003, Password: true}}, "", map[string]uint32{"alice": 1003}, []string{add}},
	} {
		f := debian()
		f.Begun, f.Homes, f.First = c.begun, c.home, asking
		f.Users = append(f.Users, c.users...)
		if c.group != "" {
			f.Groups = append(f.Groups, c.group)
		}
		all := short(plan(t, a, f))
		begins := slices.Index(all, "write /etc/halogen/setup-begun alice\n")
		// An account that was there is none to take back.
		if new := slices.ContainsFunc(c.want, func(s string) bool { return strings.HasPrefix(s, "run useradd") }); new != (begins >= 0) {
			t.Errorf("%s: the note of an account that is made: %q", c.name, all)
		}
		want := append(slices.Clone(c.want), "run chpasswd < alice:pass:word", "remove /etc/halogen/setup-begun", "remove /var/lib/halogen/setup.json", "remove /var/lib/halogen/first-start")
		have := slices.Clone(all)
		if begins >= 0 {
			have = slices.Delete(have, begins, begins+1)
		}
		if !slices.Equal(have, want) {
			t.Errorf("%s:\n%q\nwant\n%q", c.name, have, want)
		}
		// What makes something of the new account comes after the note about it.
		if made := slices.IndexFunc(all, func(s string) bool { return strings.HasPrefix(s, "run useradd") }); made >= 0 && made < begins {
			t.Errorf("%s: made before the note: %q", c.name, all)
		}
	}
	// Weeks later somebody may use what was begun, by keys.
	f := debian()
	f.Begun, f.Users = "bob", append(f.Users, User{Name: "bob", UID: 1000, Password: false})
	if all := short(plan(t, a, f)); slices.Contains(all, "run userdel bob <") {
		t.Errorf("after the first start: %q", all)
	}
}

// What the image cannot follow is refused before there is any step.
func TestRefused(t *testing.T) {
	yes := true
	account := func(name string) *answers.Answers {
		return &answers.Answers{Account: &answers.Account{Name: name, PasswordHash: hash}}
	}
	for _, c := range []struct {
		a    *answers.Answers
		but  func(*Facts)
		want string
	}{
		{&answers.Answers{Language: "xx_XX.UTF-8"}, nil, "language: the image has no xx_XX.UTF-8"},
		{&answers.Answers{Keyboard: "xx"}, nil, "knows no layout xx"},
		{&answers.Answers{Keyboard: "us"}, func(f *Facts) { f.Layouts = nil }, "no list of keyboard layouts"},
		{&answers.Answers{TimeZone: "Mars/Olympus"}, nil, "time_zone: the image knows no Mars/Olympus"},
		{&answers.Answers{AutomaticUpdates: &yes}, func(f *Facts) { f.Updates = Unknown }, "automatic_updates"},
		{account("root"), nil, "root is an account of the system"},
		{account("nobody"), nil, "nobody is an account of the system"},
		{account("sudo"), nil, "sudo is a group of the system"},
		{account("alice"), func(f *Facts) { f.Tools["chpasswd"] = false }, "lacks useradd"},
	} {
		f := debian()
		if c.but != nil {
			c.but(f)
		}
		if all, err := Plan(c.a, f); err == nil || !strings.Contains(err.Error(), c.want) || all != nil {
			t.Errorf("%q, %v; want %q", short(all), err, c.want)
		}
	}
}

// What somebody is asked, by what the machine is.
func TestChoices(t *testing.T) {
	f := debian()
	f.Users, f.Groups, f.Begun = append(f.Users, User{Name: "alice", UID: 1000, Password: true}), append(f.Groups, "alice", "bob"), "bob"
	c := f.Choices()
	if c.Language != "C.UTF-8" || c.Keyboard != "us" || c.TimeZone != "Etc/UTC" || c.DefaultHostName() != "halogen" || !c.Accounts || c.AutomaticUpdates == nil || !*c.AutomaticUpdates {
		t.Errorf("%+v", c)
	}
	for name, free := range map[string]bool{"root": false, "sudo": false, "alice": true, "bob": true, "carol": true} {
		if err := c.Free(name); (err == nil) != free {
			t.Errorf("%s: %v", name, err)
		}
	}
	if text, err := c.Encode(); err != nil {
		t.Errorf("%v\n%s", err, text)
	}
	if f.LivedIn() != true || debian().LivedIn() {
		t.Error("who lives there")
	}
}

// Doing it again changes nothing more.
func TestTextAgain(t *testing.T) {
	for _, text := range []string{"", "LANG=a", "LANG=a\nLANG=b\n", "#LANG=x\nx\n LANG = 'y'\n"} {
		once := set(text, "LANG", "de")
		if questions.Value(once, "LANG") != "de" || set(once, "LANG", "de") != once || strings.Count(once, "\nLANG=")+strings.Count(once[:5], "LANG=") > 1 {
			t.Errorf("%q becomes %q", text, once)
		}
		named := setHost(text, "a.b")
		if setHost(named, "a.b") != named || !strings.Contains(named, "127.0.1.1\ta.b a\n") {
			t.Errorf("%q becomes %q", text, named)
		}
	}
	if all := LookedTools(); !reflect.DeepEqual(all, slices.Compact(slices.Clone(all))) {
		t.Error(all)
	}
}
