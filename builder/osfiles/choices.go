package osfiles

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"halogenos.internal/boot/answers"
	"halogenos.internal/boot/questions"
	"halogenos.internal/builder/config"
	"halogenos.internal/builder/rootfs"
)

// imageAnswers is where an image brings the answers for its machines.
const imageAnswers = "etc/halogen/setup.json"

// maxList bounds a file with one of the image's lists, in bytes.
const maxList = 4 << 20

// Choices are what somebody who installs an image can choose from, once Add has been there; nil
// where its machines ask nothing at their first start, another program asks, the image
// brings the answers along, or somebody has an account with a password in it.
func Choices(t *rootfs.Tree, c *config.Config) (*questions.Choices, error) {
	if asks, _ := asksAtFirstStart(t, c); len(asks) == 0 {
		return nil, nil
	}
	if _, err := t.Lstat(imageAnswers); err == nil {
		return nil, nil
	}
	l := lists{tree: t}
	users, groups := questions.Accounts(l.text("etc/passwd"), l.text("etc/shadow"), l.text("etc/group"))
	if questions.LivedIn(users) {
		return nil, nil
	}
	names, err := locales(t)
	if err != nil {
		return nil, err
	}
	layouts := l.text(questions.LayoutFile)
	if layouts == "" {
		layouts = l.text(questions.OtherLayoutFile)
	}
	out := &questions.Choices{
		Version: questions.Version, Languages: questions.Locales(names), Keyboards: questions.Layouts(layouts),
		TimeZones: questions.Zones(l.zones(), l.text(questions.ZoneTable)), Accounts: l.accounts(), AutomaticUpdates: l.updates(),
	}
	named := func(name string) bool { return name != "" && answers.FullName(name) == nil }
	out.SetUsers(slices.DeleteFunc(users, func(u questions.User) bool { return !named(u.Name) }))
	out.Groups = slices.DeleteFunc(groups, func(g string) bool { return !named(g) })
	l.now(out)
	return out, l.err
}

// lists reads what an image has; the first error that is not about a file that is missing stays.
type lists struct {
	tree *rootfs.Tree
	err  error
}

func (l *lists) fails(name string, err error) {
	if err != nil && !errors.Is(err, fs.ErrNotExist) && l.err == nil {
		l.err = fmt.Errorf("what the installer asks: /%s: %w", strings.Trim(name, "/"), err)
	}
}

// text is that of a file of the image; "" where there is none.
func (l *lists) text(name string) string {
	text, err := l.tree.ReadFile(name, maxList)
	l.fails(name, err)
	return string(text)
}

func (l *lists) has(name string) bool {
	_, err := l.tree.Resolve(name)
	return err == nil
}

// zones are the names of the files of the time zone database, which has two levels at most below
// its top.
func (l *lists) zones() (names []string) {
	var look func(below string, depth int)
	look = func(below string, depth int) {
		at := path.Join(questions.ZoneDirectory, below)
		inside, err := l.tree.List(at)
		l.fails(at, err)
		for _, name := range inside {
			name = path.Join(below, name)
			info, err := l.tree.Lstat(path.Join(questions.ZoneDirectory, name))
			switch {
			case err != nil || len(names) == questions.MaxEntries:
				l.fails(name, err)
			case info.IsDir() && depth < 2 && name != "posix" && name != "right":
				look(name, depth+1)
			case !info.IsDir() && questions.IsZone(name):
				names = append(names, name)
			}
		}
	}
	look("", 0)
	return names
}

// accounts reports whether the image has what makes an account.
func (l *lists) accounts() bool {
	for _, tool := range []string{"useradd", "usermod", "userdel", "groupdel", "chpasswd"} {
		if !slices.ContainsFunc([]string{"usr/sbin/", "usr/bin/", "sbin/", "bin/"}, func(at string) bool { return l.has(at + tool) }) {
			return false
		}
	}
	return true
}

// updates says whether machines fetch releases by themselves; nil where they have no server, or
// nothing that fetches.
func (l *lists) updates() *bool {
	server := ""
	for _, name := range []string{"usr/lib/halogen/ota.conf", "etc/halogen/ota.conf"} {
		if s := questions.Value(l.text(name), "Server"); s != "" {
			server = s
		}
	}
	if _, err := l.tree.Lstat(units + path.Base(timer.link)); err != nil || server == "" {
		return nil
	}
	_, err := l.tree.Lstat(timer.name)
	on := err == nil
	return &on
}

// now is what machines of the image have where nobody chooses. What no machine can have is left out.
func (l *lists) now(c *questions.Choices) {
	or := func(check func(string) error, all ...string) string {
		for _, s := range all {
			if s = strings.TrimSpace(s); s != "" && check(s) == nil {
				return s
			}
		}
		return ""
	}
	value := func(name, key string) string { return questions.Value(l.text(name), key) }
	c.Language = or(answers.Language, value("etc/locale.conf", "LANG"), value("etc/default/locale", "LANG"))
	c.Keyboard = or(answers.Keyboard, value("etc/default/keyboard", "XKBLAYOUT"), value("etc/vconsole.conf", "XKBLAYOUT"))
	c.HostName = or(answers.HostName, l.text("etc/hostname"))
	at, err := l.tree.Resolve("etc/localtime")
	l.fails("etc/localtime", err)
	if _, zone, found := strings.Cut("/"+at, questions.ZoneDirectory+"/"); found {
		c.TimeZone = or(answers.TimeZone, zone)
	}
}
