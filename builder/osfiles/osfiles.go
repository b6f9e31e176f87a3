// Package osfiles adds to a system image what makes its running system fetch
// releases, bless a trial that is healthy and give up one that is not, and say at a login
// what waits for a decision: systemd's units where the image has systemd, and what another
// init can use.
//
// It refuses to replace a file of the distributor's: what is there already has
// precedence, and is named. fwupd's settings alone get one more line.
package osfiles

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"halogenos.internal/boot/healthignore"
	"halogenos.internal/builder/config"
	"halogenos.internal/builder/rootfs"
)

//go:embed files
var files embed.FS

// Where systemd looks for units, whether /usr is merged or not.
const units = "usr/lib/systemd/system/"

// A file of the system. Its content is that of the embedded file, or else text,
// or else it is a symbolic link.
type file struct {
	name     string // in the image
	embedded string // below files/
	text     string
	link     string
	mode     uint32
}

// common are the files of every image.
var common = []file{
	{name: "usr/lib/halogen/health", embedded: "health.sh", mode: 0o755},
	{name: healthignore.DefaultFile, embedded: "health-ignore.default", mode: 0o644},
	{name: "usr/lib/halogen/updated", embedded: "updated.sh", mode: 0o755},
	{name: "usr/lib/halogen/swap", embedded: "swap.sh", mode: 0o755},
	{name: "usr/share/halogen/examples/ota.cron", embedded: "examples/ota.cron", mode: 0o644},
	{name: "usr/share/halogen/examples/ota-boot", embedded: "examples/ota-boot", mode: 0o755},
	{name: "usr/share/halogen/examples/updated.openrc", embedded: "examples/updated.openrc", mode: 0o755},
	{name: "usr/share/halogen/examples/updated.sysv", embedded: "examples/updated.sysv", mode: 0o755},
	{name: "usr/lib/sysusers.d/halogen-ota.conf", embedded: "sysusers.conf", mode: 0o644},
	{name: "etc/profile.d/halogen-changes.sh", embedded: "profile.sh", mode: 0o644},
}

// forSystemd are the files of an image with systemd. What decides about a trial is
// not for the machine's owner to switch off, so its links are the vendor's.
var forSystemd = []file{
	{name: "usr/lib/halogen/unhealthy", embedded: "unhealthy.sh", mode: 0o755},
	{name: units + "ota-fetch.service", embedded: "systemd/ota-fetch.service", mode: 0o644},
	{name: units + "ota-fetch.timer", embedded: "systemd/ota-fetch.timer", mode: 0o644},
	{name: units + "ota-bless.service", embedded: "systemd/ota-bless.service", mode: 0o644},
	{name: units + "ota-health.service", embedded: "systemd/ota-health.service", mode: 0o644},
	{name: units + "ota-failures.service", embedded: "systemd/ota-failures.service", mode: 0o644},
	{name: units + "ota-unhealthy.service", embedded: "systemd/ota-unhealthy.service", mode: 0o644},
	{name: units + "ota-restart.service", embedded: "systemd/ota-restart.service", mode: 0o644},
	{name: units + "ota-restart.timer", embedded: "systemd/ota-restart.timer", mode: 0o644},
	{name: units + "timers.target.wants/ota-restart.timer", link: "../ota-restart.timer"},
	{name: units + "otad.socket", embedded: "systemd/otad.socket", mode: 0o644},
	{name: units + "otad.service", embedded: "systemd/otad.service", mode: 0o644},
	{name: "usr/share/polkit-1/actions/org.halogenos.update.policy", embedded: "otad/org.halogenos.update.policy", mode: 0o644},
	{name: units + "sockets.target.wants/otad.socket", link: "../otad.socket"},
	{name: units + "halogen-changes.service", embedded: "systemd/halogen-changes.service", mode: 0o644},
	{name: units + "halogen-swap.service", embedded: "systemd/halogen-swap.service", mode: 0o644},
	{name: units + "boot-complete.target.d/halogen.conf", embedded: "systemd/boot-complete.conf", mode: 0o644},
	{name: units + "emergency.service.d/halogen.conf", embedded: "systemd/emergency.conf", mode: 0o644},
	{name: units + "multi-user.target.wants/ota-bless.service", link: "../ota-bless.service"},
	{name: units + "multi-user.target.wants/ota-failures.service", link: "../ota-failures.service"},
	{name: units + "multi-user.target.wants/halogen-changes.service", link: "../halogen-changes.service"},
	{name: units + "sysinit.target.wants/halogen-swap.service", link: "../halogen-swap.service"},
	{name: units + "boot-complete.target.requires/ota-health.service", link: "../ota-health.service"},
}

// forBus are the files that put otad on D-Bus in the place of systemd-sysupdated. An image
// that has those of that program keeps them, and gets none of these: one of each would have
// the bus start a program that does not update the machine.
var forBus = []file{
	{name: "usr/share/dbus-1/system.d/org.freedesktop.sysupdate1.conf", embedded: "otad/dbus.conf", mode: 0o644},
	{name: "usr/share/dbus-1/system-services/org.freedesktop.sysupdate1.service", embedded: "otad/org.freedesktop.sysupdate1.service", mode: 0o644},
}

// forOldSystemd are the files of an image whose systemd does not say when an update is
// done (Debian's up to 252), and does not do all that waits for it.
var forOldSystemd = []file{
	{name: units + "halogen-updated.service", embedded: "systemd/halogen-updated.service", mode: 0o644},
	{name: units + "sysinit.target.wants/halogen-updated.service", link: "../halogen-updated.service"},
	// Units are ordered before it by systemd's name.
	{name: units + updateDone, link: "halogen-updated.service"},
}

// forFirstStart are the files of an image whose machines ask at their first start, with
// systemd.
var forFirstStart = []file{
	{name: units + "halogen-setup.service", embedded: "systemd/halogen-setup.service", mode: 0o644},
	{name: units + "multi-user.target.wants/halogen-setup.service", link: "../halogen-setup.service"},
}

// forOtherFirstStart are those of one with another init.
var forOtherFirstStart = []file{
	{name: "usr/share/halogen/examples/setup.openrc", embedded: "examples/setup.openrc", mode: 0o755},
	{name: "usr/share/halogen/examples/setup.sysv", embedded: "examples/setup.sysv", mode: 0o755},
}

// asking are the programs of desktops that ask at the first start themselves.
var asking = map[string]string{
	"usr/libexec/gnome-initial-setup":             "GNOME",
	"usr/lib/systemd/system/plasma-setup.service": "KDE",
}

// updateDone is the unit by which systemd says that an update is done.
const updateDone = "systemd-update-done.service"

// updatedScripts are the image's own for the first start of each release.
const updatedScripts = "usr/lib/halogen/updated.d"

// timer is what looks for releases by itself; `systemctl disable` ends that.
var timer = file{name: "etc/systemd/system/timers.target.wants/ota-fetch.timer", link: "/" + units + "ota-fetch.timer"}

// Add adds the files, all dated alike, and returns a line for each that the
// image has of its own.
func Add(t *rootfs.Tree, c *config.Config, date time.Time) (notes []string, err error) {
	if err := checkIgnore(t); err != nil {
		return nil, err
	}
	all := append([]file{{name: "usr/lib/halogen/ota.conf", text: settings(c), mode: 0o644}}, common...)
	if c.Swap > 0 {
		said, err := canSwap(t, c)
		if err != nil {
			return nil, err
		}
		notes = append(notes, said...)
		all = append(all, file{name: "usr/lib/halogen/swap.conf", text: swapSettings(c), mode: 0o644})
	}
	if t.HasSystemd() {
		all = append(all, forSystemd...)
		if !slices.ContainsFunc(forBus, func(f file) bool { _, err := t.Lstat(f.name); return err == nil }) {
			all = append(all, forBus...)
		} else {
			notes = append(notes, "kept the root file system's own files of org.freedesktop.sysupdate1 on D-Bus (systemd-sysupdated's?): desktops do not see this system's updates there")
		}
		if !saysUpdated(t) {
			all = append(all, forOldSystemd...)
		} else if scripts, err := t.List(updatedScripts); err == nil && len(scripts) > 0 {
			notes = append(notes, "/"+updatedScripts+" is not run, since systemd does what waits for an update: write a unit with ConditionNeedsUpdate=, before systemd-update-done.service")
		}
		if c.Server != "" {
			all = append(all, timer)
		}
	}
	said, err := letFwupdStart(t, date)
	if err != nil {
		return nil, err
	}
	notes = append(notes, said...)
	first, note := asksAtFirstStart(t, c)
	all, notes = append(all, first...), append(notes, note...)
	for _, f := range all {
		if _, err := t.Lstat(f.name); err == nil {
			notes = append(notes, fmt.Sprintf("kept the root file system's own /%s", f.name))
			continue
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if err := f.add(t, date); err != nil {
			return nil, fmt.Errorf("add /%s: %w", f.name, err)
		}
	}
	// What /var starts with: the boot mounts the directory of what was fetched here.
	_, err = t.AddDirectory("var/lib/halogen", 0o755)
	return notes, err
}

// asksAtFirstStart are the files by which machines ask at their first start, where the image
// shall and has nothing of its own that does.
func asksAtFirstStart(t *rootfs.Tree, c *config.Config) (files []file, notes []string) {
	if c.FirstStart != config.AskAtFirstStart {
		return nil, nil
	}
	for name, whose := range asking {
		if _, err := t.Lstat(name); err == nil {
			return nil, []string{fmt.Sprintf("FirstStart is ask, and %s's own program asks (/%s): ours keeps away", whose, name)}
		}
	}
	if at := console(c.Cmdline); at != "" && !onScreen(at) {
		notes = append(notes, fmt.Sprintf("FirstStart is ask, and machines ask on %s alone, the last console= of Cmdline: a screen stays empty until somebody answers there; for one, end with console=tty0", at))
	}
	if t.HasSystemd() {
		return forFirstStart, notes
	}
	return forOtherFirstStart, append(notes, "FirstStart is ask, and there is no systemd: have the image's init run a script like /usr/share/halogen/examples/setup.openrc or setup.sysv")
}

// console is the device of the last console= of a command line; "" for none.
func console(cmdline string) (last string) {
	for word := range strings.FieldsSeq(cmdline) {
		if value, found := strings.CutPrefix(word, "console="); found {
			last, _, _ = strings.Cut(value, ",")
		}
	}
	return last
}

// onScreen reports whether a console is a screen's: tty and a number.
func onScreen(console string) bool {
	number, found := strings.CutPrefix(console, "tty")
	return found && strings.Trim(number, "0123456789") == ""
}

// checkIgnore refuses a list of services that may fail of which a line would excuse
// nothing.
func checkIgnore(t *rootfs.Tree) error {
	text, err := t.ReadFile(healthignore.ImageFile, healthignore.MaxSize)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		_, err = healthignore.Parse(healthignore.ImageFile, text)
	}
	return err
}

// saysUpdated reports whether the image's systemd says when an update is done. A unit
// that is masked does not, and neither does the alias of an image that this one is made of.
func saysUpdated(t *rootfs.Tree) bool {
	for _, directory := range []string{"etc/systemd/system/", units, "lib/systemd/system/"} {
		name := directory + updateDone
		if _, err := t.Lstat(name); err != nil {
			continue
		}
		at, err := t.Resolve(name)
		if err != nil { // a link to nothing, as to the /dev/null of a machine
			return false
		}
		info, err := t.Lstat(at)
		return err == nil && info.Mode().IsRegular() && info.Size() > 0 && path.Base(at) == updateDone
	}
	return false
}

func (f file) add(t *rootfs.Tree, date time.Time) error {
	if f.link != "" {
		return t.AddSymlink(f.name, f.link, date)
	}
	text := []byte(f.text)
	if f.embedded != "" {
		var err error
		if text, err = files.ReadFile(path.Join("files", f.embedded)); err != nil {
			return err
		}
	}
	return t.AddFile(f.name, text, f.mode, date)
}

// settings is the image's ota.conf.
func settings(c *config.Config) string {
	var s strings.Builder
	s.WriteString("# Where this image's updates come from. What /etc/halogen/ota.conf says goes\n# over it, key by key; ota.conf(5) lists the keys.\n")
	if c.Server == "" {
		s.WriteString("#Server=https://updates.example.org\n")
	} else {
		fmt.Fprintf(&s, "Server=%s\n", c.Server)
	}
	if c.ReportTo != "" {
		fmt.Fprintf(&s, "# Only where the owner has said so: ota report --on\nReportTo=%s\n", c.ReportTo)
	}
	fmt.Fprintf(&s, "Channel=%s\nRequireSignedManifest=%s\n", c.Channel, c.SignedManifest)
	return s.String()
}
