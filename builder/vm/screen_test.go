package vm

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// What QEMU 7.2 of Debian 12 prints, without and with its package for windows; the
// standard error, which names what is missing, is not part of it.
const displays = "Available display backend types:\nnone\negl-headless\ncurses\nspice-app\ndbus\n"

func TestListed(t *testing.T) {
	for text, want := range map[string][]string{
		displays: {"none", "egl-headless", "curses", "spice-app", "dbus"},
		"Available display backend types:\nnone\ngtk\nsdl\n\nSome display backends support suboptions, which can be set with\n   -display backend,option=value,option=value...\n": {"none", "gtk", "sdl"},
		"Available chardev backend types: \n  stdio\n  qemu-vdagent\n": {"stdio", "qemu-vdagent"},
		"": nil,
	} {
		if got := listed(text); !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

// The machine is the same wherever its screen is shown, and what this QEMU cannot do is
// left out or refused by name.
func TestScreenArguments(t *testing.T) {
	all := Abilities{Displays: []string{"none", "sdl", "gtk"}, Sounds: []string{"none", "alsa", "pa"}, Chardevs: []string{"socket", "qemu-vdagent"}}
	plan := func(o Options, can Abilities) (string, []string) {
		t.Helper()
		o.State = State{"/m"}
		o, err := o.withDefaults()
		if err != nil {
			t.Fatal(err)
		}
		args, err := arguments(o, Firmware{"/code", "/vars"}, can)
		if err != nil {
			return err.Error(), nil
		}
		var devices []string
		for i, a := range args {
			if a == "-device" {
				devices = append(devices, args[i+1])
			}
		}
		return strings.Join(args, " "), devices
	}
	_, hidden := plan(Options{Screen: HiddenScreen}, all)
	for _, c := range []struct {
		name string
		o    Options
		can  Abilities
		want []string
		not  string
	}{
		{"none", Options{}, all, []string{"-display none"}, "virtio-vga"},
		{"plain", Options{Display: true}, all, []string{"-display none", "-device VGA"}, "usb-tablet"},
		{"hidden", Options{Screen: HiddenScreen}, all, []string{"-display none", "-audiodev none,id=sound", "virtio-vga"}, "-vnc"},
		{"window", Options{Screen: WindowScreen}, all, []string{"-display gtk", "-audiodev none,id=sound"}, "-display none"},
		{"heard", Options{Screen: WindowScreen, Sound: true}, all, []string{"-audiodev pa,id=sound"}, "-audiodev none"},
		{"VNC", Options{Screen: VNCScreen}, all, []string{"-display none", "-vnc 127.0.0.1:0,to=99,audiodev=sound"}, "gtk"},
		{"no window", Options{Screen: WindowScreen}, Abilities{Displays: []string{"curses"}}, []string{"shows no window (it knows curses)", "qemu-system-gui"}, ""},
		{"no sound", Options{Screen: VNCScreen, Sound: true}, Abilities{Sounds: []string{"wav"}}, []string{"plays no sound on the host (it knows wav)"}, ""},
		{"no such screen", Options{Screen: "wall"}, all, []string{`unknown screen "wall"`}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			text, devices := plan(c.o, c.can)
			for _, want := range c.want {
				if !strings.Contains(text, want) {
					t.Errorf("%s lacks %q", text, want)
				}
			}
			if c.not != "" && strings.Contains(text, c.not) {
				t.Errorf("%s has %q", text, c.not)
			}
			if c.o.Screen != NoScreen && devices != nil && !slices.Equal(devices, hidden) {
				t.Errorf("the devices are %q, and %q where nobody sees the screen", devices, hidden)
			}
		})
	}
	if text, _ := plan(Options{Screen: HiddenScreen}, Abilities{}); strings.Contains(text, "clipboard") {
		t.Errorf("a clipboard that QEMU does not have: %s", text)
	}
	for _, o := range []Options{{Screen: VNCScreen, Display: true}, {Sound: true}} {
		o.State = State{"/m"}
		if _, err := o.withDefaults(); err == nil {
			t.Errorf("%+v is taken", o)
		}
	}
}

// Two machines at once have a VNC server each, at the loopback address alone, and QEMU
// takes all that a screen is made of.
func TestVNC(t *testing.T) {
	need(t)
	ctx := deadline(t)
	addresses := map[string]bool{}
	for range 2 {
		m := start(t, Options{State: newState(t, 0), NoDisk: true, TPM: NoTPM, Screen: VNCScreen})
		address, err := m.VNC(ctx)
		if err != nil {
			t.Fatal(err)
		}
		host, _, err := net.SplitHostPort(address)
		if err != nil || host != "127.0.0.1" || addresses[address] {
			t.Errorf("the server is at %s (%v), others at %v", address, err, addresses)
		}
		addresses[address] = true
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		hello := make([]byte, 4)
		if _, err := io.ReadFull(conn, hello); err != nil || string(hello) != "RFB " {
			t.Errorf("it says %q, %v; want the start of RFB's greeting", hello, err)
		}
		picture := filepath.Join(t.TempDir(), "screen.png")
		if err := m.Screendump(ctx, picture); err != nil {
			t.Error(err)
		}
		if info, err := os.Stat(picture); err != nil || info.Size() == 0 {
			t.Errorf("no picture: %v", err)
		}
	}
	m := start(t, Options{State: newState(t, 0), NoDisk: true, TPM: NoTPM, Screen: HiddenScreen})
	if address, err := m.VNC(ctx); err == nil {
		t.Errorf("a machine that is not shown has a server at %s", address)
	}
}
