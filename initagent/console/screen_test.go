package console

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// sysfs has attributes as the kernel writes them.
func sysfs(attributes ...string) fstest.MapFS {
	m := fstest.MapFS{"class": {Mode: os.ModeDir}}
	for _, a := range attributes {
		name, value, _ := strings.Cut(a, "=")
		m["class/"+name] = &fstest.MapFile{Data: []byte(value + "\n")}
	}
	return m
}

// FAULTS 103
func TestHasScreen(t *testing.T) {
	dummy := []string{"vtconsole/vtcon0/name=(S) dummy device", "vtconsole/vtcon0/bind=1"}
	unbound := []string{"vtconsole/vtcon0/name=(S) dummy device", "vtconsole/vtcon0/bind=0", "vtconsole/vtcon1/name=(M) frame buffer device", "vtconsole/vtcon1/bind=1"}
	deferred := append(slices.Clone(dummy), "vtconsole/vtcon1/name=(M) frame buffer device", "vtconsole/vtcon1/bind=0", "graphics/fb0/name=simpledrmdrmfb")
	for name, c := range map[string]struct {
		attributes []string
		want       bool
	}{
		"nothing":                   {nil, false},
		"dummy":                     {dummy, false},
		"unbound frame buffer":      {append(slices.Clone(dummy), "vtconsole/vtcon1/name=(M) frame buffer device", "vtconsole/vtcon1/bind=0"), false},
		"VGA":                       {[]string{"vtconsole/vtcon0/name=(S) VGA+", "vtconsole/vtcon0/bind=1"}, true},
		"frame buffer":              {append(slices.Clone(unbound), "graphics/fb0/name=EFI VGA"), true},
		"frame buffer, deferred":    {deferred, true},
		"monitor":                   {append(slices.Clone(deferred), "drm/card0-HDMI-A-1/status=disconnected", "drm/card0-eDP-1/status=connected"), true},
		"monitor, not told":         {append(slices.Clone(deferred), "drm/card0-Unknown-1/status=unknown"), true},
		"card without monitor":      {append(slices.Clone(deferred), "drm/card0-HDMI-A-1/status=disconnected", "drm/card1-DP-1/status=disconnected"), false},
		"card without frame buffer": {append(slices.Clone(dummy), "drm/card0-HDMI-A-1/status=connected"), false},
	} {
		if got := hasScreen(sysfs(c.attributes...)); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// FAULTS 103
func TestForSecrets(t *testing.T) {
	for _, c := range []struct {
		terminals string
		screen    bool
		want      string
	}{
		{"/dev/tty1 /dev/ttyS0", true, "/dev/tty1"},
		{"/dev/ttyS0 /dev/tty1 /dev/hvc0", true, "/dev/tty1"},
		{"/dev/tty1 /dev/ttyS0", false, "/dev/tty1 /dev/ttyS0"}, // a dummy shows nothing
		{"/dev/ttyS0", true, "/dev/ttyS0"},                      // the kernel does not write to the screen
		{"/dev/console", true, "/dev/console"},
		{"/dev/ttyAMA0 /dev/ttyUSB0", false, "/dev/ttyAMA0 /dev/ttyUSB0"},
		{"/dev/tty", true, "/dev/tty"}, // of who has asked for it
		{"", true, ""},
	} {
		terminals := strings.Fields(c.terminals)
		var got []string
		for i, show := range forSecrets(terminals, c.screen) {
			if show {
				got = append(got, terminals[i])
			}
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s, screen %v: shown on %v, want %s", c.terminals, c.screen, got, c.want)
		}
	}
}

// On a machine with a screen the line is told where the key is, and not the key.
// FAULTS 103
func TestPrintSecret(t *testing.T) {
	for _, screen := range []bool{true, false} {
		dir := t.TempDir()
		var paths []string
		for _, name := range []string{"tty1", "ttyS0"} {
			paths = append(paths, filepath.Join(dir, name))
			if err := os.WriteFile(paths[len(paths)-1], nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		c, err := open(paths)
		if err != nil {
			t.Fatal(err)
		}
		c.printSecret("the key\n", "elsewhere\n", screen)
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"tty1", "ttyS0"} {
			text, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			shown := strings.Contains(string(text), "the key")
			if want := name == "tty1" || !screen; shown != want || len(text) == 0 {
				t.Errorf("screen %v: %s has %q", screen, name, text)
			}
		}
	}
}
