package health

import (
	"bytes"
	"cmp"
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// What somebody at the machine misses, though no unit has failed: a login on the screen,
// and the network.
const displayManager = "display-manager.service"

// networkServices are those of which one or the other has a desktop's network.
var networkServices = []string{"NetworkManager.service", "systemd-networkd.service", "connman.service", "dhcpcd.service"}

// showing are the display managers that start a display server by themselves. Others, as
// greetd, may ask for the name on a text console, and are only looked at for whether they run.
var showing = []string{
	"gdm.service", "gdm3.service", "sddm.service", "lightdm.service", "lxdm.service", "plasmalogin.service", "slim.service", "wdm.service", "xdm.service",
}

// Where display servers listen, and what makes one say something.
var displays = []struct{ pattern, hello string }{
	// A client's first message, in version 11.0 without authorization (X Window System
	// Protocol, "Connection Setup"). It is answered in any case.
	{"tmp/.X11-unix/X[0-9]*", "l\x00\x0b\x00\x00\x00\x00\x00\x00\x00\x00\x00"},
	// wl_display.sync(2): object 1, 12 bytes with request 0, and the new object.
	{"run/user/*/wayland-*", "\x01\x00\x00\x00\x00\x00\x0c\x00\x02\x00\x00\x00"},
}

// How many are asked, and how long each has. Anybody may make such a socket and be
// silent: all are asked at a time, those of the system's users before those of people.
const (
	maxDisplays = 16
	oneDisplay  = 5 * time.Second
)

// desktop looks at a system whose image has a display manager, once graphical.target is
// reached: its display server must answer, and the network service that is enabled must
// run.
func (l *Look) desktop(ctx context.Context, root string, run Run) error {
	const target = "graphical.target"
	const wanted = "--property=Names,LoadState,ActiveState,UnitFileState,ConditionResult,ConditionTimestampMonotonic"
	text, err := run(ctx, "systemctl", slices.Concat([]string{"show", wanted, "--", displayManager, target}, networkServices)...)
	if err != nil {
		return err
	}
	units := byName(string(text))
	manager := units[displayManager]
	if manager["LoadState"] != "loaded" || units[target]["ActiveState"] != "active" {
		return nil // there is none, or the owner has switched it off
	}
	if hasScreen(root) {
		l.display(ctx, root, manager)
	}
	for _, name := range networkServices {
		if u := units[name]; u["UnitFileState"] == "enabled" {
			l.there(name, u)
		}
	}
	return nil
}

// display looks at a display manager.
func (l *Look) display(ctx context.Context, root string, manager map[string]string) {
	if manager["ActiveState"] == "active" && slices.ContainsFunc(strings.Fields(manager["Names"]), func(name string) bool { return slices.Contains(showing, name) }) && !displayAnswers(ctx, root) {
		l.Silent, l.Busy = true, busy(root)
		return
	}
	l.there(displayManager, manager)
}

// there notes whether a unit runs. What has failed is told by systemd, what is about to
// start or to end says nothing, and neither does what has a condition that is not met;
// what was never tried has none that was looked at.
func (l *Look) there(name string, unit map[string]string) {
	excused := unit["ConditionResult"] == "no" && unit["ConditionTimestampMonotonic"] != "0"
	switch state := unit["ActiveState"]; {
	case state == "active":
		l.Present = append(l.Present, name)
	case state == "inactive" && !excused:
		l.Missed = append(l.Missed, name)
	}
}

// missing says for people what it means that one of Missed is.
func missing(name string) string {
	if name == displayManager {
		return name + " does not run, or no display server answers"
	}
	return name + " is enabled and does not run"
}

// byName reads `systemctl show` of units by all of their names: an alias has those of the
// unit that it stands for.
func byName(text string) map[string]map[string]string {
	units := map[string]map[string]string{}
	for block := range strings.SplitSeq(text, "\n\n") {
		unit := properties(block)
		for name := range strings.FieldsSeq(unit["Names"]) {
			units[name] = unit
		}
	}
	return units
}

// maxConnectors bounds how many are looked at.
const maxConnectors = 256

// hasScreen reports whether a picture could be seen: something is plugged in, or there is
// graphics hardware whose driver says nothing of that.
func hasScreen(root string) bool {
	under := func(pattern string) []string {
		found, _ := filepath.Glob(filepath.Join(root, "sys", pattern)) // the patterns are right
		return found[:min(len(found), maxConnectors)]
	}
	connectors := 0
	for _, path := range under("class/drm/card*-*/status") {
		if strings.Contains(path, "-Writeback-") {
			continue // it writes into memory
		}
		connectors++
		if status, err := os.ReadFile(path); err != nil || string(bytes.TrimSpace(status)) != "disconnected" {
			return true
		}
	}
	if connectors > 0 {
		return false
	}
	for _, path := range under("bus/pci/devices/*/class") {
		if class, err := os.ReadFile(path); err == nil && bytes.HasPrefix(class, []byte("0x03")) { // PCI Code and ID Assignment, 1.4: display controllers
			return true
		}
	}
	return len(under("class/drm/card*"))+len(under("class/graphics/fb*")) > 0
}

// busyShare is the share of a minute, in percent, in which something waited for a
// processor, a disk or memory; a login that is slow then is not broken.
const busyShare = 50

// busy reports whether the machine is overloaded (Linux, Documentation/accounting/psi.rst:
// "some avg10=0.00 avg60=0.00 avg300=0.00 total=0"). Kernels without it say nothing.
func busy(root string) bool {
	for _, what := range []string{"cpu", "io", "memory"} {
		text, err := os.ReadFile(filepath.Join(root, "proc/pressure", what))
		_, rest, ok := strings.Cut(string(text), " avg60=")
		word, _, _ := strings.Cut(rest, " ")
		if share, bad := strconv.ParseFloat(word, 64); err == nil && ok && bad == nil && share >= busyShare {
			return true
		}
	}
	return false
}

// A listener is the socket of a display server, or of what pretends to be one.
type listener struct {
	path, hello string
	owner       uint32
}

// listeners finds those to ask.
func listeners(root string) []listener {
	var all []listener
	for _, d := range displays {
		found, _ := filepath.Glob(filepath.Join(root, d.pattern)) // the patterns are right
		for _, path := range found {
			info, err := os.Lstat(path)
			if err != nil || info.Mode().Type() != os.ModeSocket {
				continue
			}
			if stat, ok := info.Sys().(*syscall.Stat_t); ok {
				all = append(all, listener{path, d.hello, stat.Uid})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b listener) int { return cmp.Compare(a.owner, b.owner) })
	return all[:min(len(all), maxDisplays)]
}

// displayAnswers reports whether a display server listens and says something.
func displayAnswers(ctx context.Context, root string) bool {
	ctx, cancel := context.WithTimeout(ctx, oneDisplay)
	defer cancel()
	all := listeners(root)
	said := make(chan bool, len(all))
	for _, l := range all {
		go func() { said <- l.answers(ctx) }()
	}
	for range all {
		if <-said {
			return true
		}
	}
	return false
}

// answers reports whether anything comes back.
func (l listener) answers(ctx context.Context) bool {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", l.path)
	if err != nil {
		return false
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if _, err := conn.Write([]byte(l.hello)); err != nil {
		return false
	}
	n, _ := conn.Read(make([]byte, 1))
	return n > 0
}
