package console

import (
	"io/fs"
	"os"
	"path"
	"strings"

	"halogenos.internal/initagent/hw"
)

// A terminal on a serial line may be read elsewhere: by anyone who holds the other
// end, a server that records it, a management controller. So what opens the disk is
// shown on screens, and on lines only where there is no screen.

// hasScreen reports whether the kernel shows its virtual terminals to anybody, by
// what sysfs says: a virtual console that is not the dummy, or a frame buffer that
// becomes one when something is written (CONFIG_FRAMEBUFFER_CONSOLE_DEFERRED_TAKEOVER).
// A graphics card none of whose connectors has a monitor is not a screen; a driver that
// cannot tell says "unknown" or "connected".
func hasScreen(sys fs.FS) bool {
	if connectors, _ := fs.Glob(sys, "class/drm/card*-*/status"); len(connectors) > 0 {
		connected := false
		for _, name := range connectors {
			connected = connected || attribute(sys, name) != "disconnected"
		}
		if !connected {
			return false
		}
	}
	if buffers, _ := fs.Glob(sys, "class/graphics/fb[0-9]*"); len(buffers) > 0 {
		return true
	}
	consoles, _ := fs.Glob(sys, "class/vtconsole/vtcon*/name")
	for _, name := range consoles {
		bound := attribute(sys, path.Join(path.Dir(name), "bind")) == "1"
		if bound && !strings.HasSuffix(attribute(sys, name), "dummy device") {
			return true
		}
	}
	return false
}

func attribute(sys fs.FS, name string) string {
	text, err := fs.ReadFile(sys, name)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// forSecrets says on which of the terminals a secret is shown: on the virtual ones
// where there is a screen, otherwise on all, since a key that nobody sees opens
// nothing.
func forSecrets(terminals []string, screen bool) []bool {
	show := make([]bool, len(terminals))
	some := false
	for i, tty := range terminals {
		show[i] = screen && hw.IsScreen(tty)
		some = some || show[i]
	}
	for i := range show {
		show[i] = show[i] || !some
	}
	return show
}

// PrintSecret shows text that opens something on the terminals that are for it, and
// says on the others where it is.
func (c *Console) PrintSecret(text, elsewhere string) {
	c.printSecret(text, elsewhere, hasScreen(os.DirFS("/sys")))
}

func (c *Console) printSecret(text, elsewhere string, screen bool) {
	names := make([]string, len(c.terminals))
	for i, t := range c.terminals {
		names[i] = t.Path
	}
	c.secret = make([]bool, len(c.terminals))
	for i, here := range forSecrets(names, screen) {
		c.secret[i] = here
		shown := text
		if !here {
			shown = elsewhere
		}
		show(c.terminals[i], shown)
	}
}
