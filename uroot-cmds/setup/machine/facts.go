package machine

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/questions"
	"halogenos.internal/uroot-cmds/ota/settings"
	"halogenos.internal/uroot-cmds/setup/steps"
)

// Facts looks at the image and the machine.
func (m *Machine) Facts(ctx context.Context) (*steps.Facts, error) {
	f := &steps.Facts{Files: map[string]string{}, Links: map[string]string{}, Directories: map[string]bool{}, Tools: map[string]bool{}}
	for _, name := range steps.Looked() {
		if err := m.look(name, f); err != nil {
			return nil, err
		}
	}
	for _, name := range steps.LookedDirectories() {
		info, err := os.Stat(m.path(name))
		f.Directories[name] = err == nil && info.IsDir()
	}
	for _, name := range steps.LookedTools() {
		f.Tools[name] = m.Has(name)
	}
	f.Locales = m.locales(ctx)
	f.Layouts = m.layouts()
	f.Zones = m.zones()
	f.Keymaps = m.text("/usr/share/systemd/kbd-model-map")
	f.Begun = strings.TrimSpace(m.text(steps.BegunFile))
	f.First = strings.TrimSpace(m.text(steps.FirstFile))
	f.Systemd = m.exists("/run/systemd/system")
	f.Updates = m.updates()
	f.Homes = m.homes()
	f.Wireless = m.wireless()
	return f, m.accounts(f)
}

func (m *Machine) exists(name string) bool {
	_, err := os.Lstat(m.path(name))
	return err == nil
}

// text is that of a file of the image that may be missing.
func (m *Machine) text(name string) string {
	text, _ := m.read(name)
	return string(text)
}

// look reads one of the files that are changed in part: to take one that cannot be read for
// one that is missing would lose what it says.
func (m *Machine) look(name string, f *steps.Facts) error {
	info, err := os.Lstat(m.path(name))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() == fs.ModeSymlink:
		f.Links[name], err = os.Readlink(m.path(name))
		return err
	}
	text, err := m.read(name)
	f.Files[name] = string(text)
	return err
}

// locales are those of the image: locale(1) knows where the C library has them.
func (m *Machine) locales(ctx context.Context) []string {
	said, err := m.Command(ctx, []string{"locale", "-a"}, nil)
	if err != nil {
		return nil // an image without locale(1) has one language
	}
	return questions.Locales(strings.Fields(said))
}

// layouts are those of XKB's list.
func (m *Machine) layouts() []questions.Layout {
	text := m.text(questions.LayoutFile)
	if text == "" {
		text = m.text(questions.OtherLayoutFile)
	}
	return questions.Layouts(text)
}

// zones are those that the image has, with the countries that zone.tab gives them.
func (m *Machine) zones() []questions.Zone {
	var names []string
	_ = fs.WalkDir(os.DirFS(m.path(questions.ZoneDirectory)), ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil || len(names) == questions.MaxEntries:
			return nil
		case d.IsDir() && (name == "posix" || name == "right"):
			return fs.SkipDir
		case !d.IsDir() && questions.IsZone(name):
			names = append(names, name)
		}
		return nil
	})
	return questions.Zones(names, m.text(questions.ZoneTable))
}

// updates says whether the timer is there and switched on, and has something to look for.
func (m *Machine) updates() steps.Updates {
	s, err := settings.Load([]byte(m.text(settings.ImageFile)), []byte(m.text(settings.OwnerFile)))
	if err != nil || s.Server == "" || !m.exists("/usr/lib/systemd/system/"+steps.Timer) {
		return steps.Unknown
	}
	if m.exists(steps.TimerLink) {
		return steps.On
	}
	return steps.Off
}

// wireless reports whether there is a wireless device (Linux,
// Documentation/ABI/testing/sysfs-class-net): it belongs to a phy.
func (m *Machine) wireless() bool {
	const class = "/sys/class/net"
	entries, _ := os.ReadDir(m.path(class))
	return slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return m.exists(filepath.Join(class, e.Name(), "phy80211")) })
}

// homes are the owners of the directories in /home.
func (m *Machine) homes() map[string]uint32 {
	entries, _ := os.ReadDir(m.path("/home"))
	all := map[string]uint32{}
	for _, e := range entries[:min(len(entries), questions.MaxEntries)] {
		var s unix.Stat_t
		if unix.Lstat(filepath.Join(m.path("/home"), e.Name()), &s) == nil {
			all[e.Name()] = s.Uid
		}
	}
	return all
}

// accounts reads users and groups. A file that cannot be read is an error: a name would
// otherwise look free that is taken.
func (m *Machine) accounts(f *steps.Facts) error {
	passwd, err := m.read("/etc/passwd")
	if err != nil {
		return err
	}
	group, err := m.read("/etc/group")
	if err != nil {
		return err
	}
	shadow, err := m.read("/etc/shadow")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f.Users, f.Groups = questions.Accounts(string(passwd), string(shadow), string(group))
	return nil
}
