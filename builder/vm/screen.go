package vm

import (
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"
)

// Screen says whether a machine has a screen, and where it is shown.
type Screen string

// The screens that a machine can have. All but NoScreen come with a keyboard, a
// pointer and a sound card at USB and PCI, and a clipboard where QEMU can share one.
const (
	NoScreen     Screen = ""       // a serial console alone, or the plain display of Options.Display
	HiddenScreen Screen = "hidden" // only Machine.Screendump sees it
	WindowScreen Screen = "window" // a window of GTK's or SDL's on the host's display
	VNCScreen    Screen = "vnc"    // a VNC server on the loopback address, see Machine.VNC
)

// Abilities are what a build of QEMU can do: distributions leave parts of it to other packages.
type Abilities struct {
	Displays, Sounds, Chardevs []string
}

// FindAbilities asks the installed QEMU.
func FindAbilities(ctx context.Context) (Abilities, error) {
	qemu, err := findQEMU()
	if err != nil {
		return Abilities{}, err
	}
	var a Abilities
	for _, q := range []struct {
		option string
		names  *[]string
	}{{"-display", &a.Displays}, {"-audiodev", &a.Sounds}, {"-chardev", &a.Chardevs}} {
		out, err := exec.CommandContext(ctx, qemu, q.option, "help").Output()
		if err != nil {
			return Abilities{}, fmt.Errorf("%s %s help: %w", qemu, q.option, err)
		}
		*q.names = listed(string(out))
	}
	return a, nil
}

// listed reads one of QEMU's lists: a name a line, after a heading that ends in a colon.
func listed(text string) (names []string) {
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) == 1 && !strings.HasSuffix(f[0], ":") {
			names = append(names, f[0])
		}
	}
	return names
}

// Window is what shows a window, best first; empty where this QEMU cannot.
func (a Abilities) Window() string { return a.first(a.Displays, "gtk", "sdl") }

// Sound is what plays a machine's sound on the host, best first; empty where nothing does.
func (a Abilities) Sound() string { return a.first(a.Sounds, "pipewire", "pa", "alsa") }

func (Abilities) first(have []string, wanted ...string) string {
	for _, name := range wanted {
		if slices.Contains(have, name) {
			return name
		}
	}
	return ""
}

// vncPorts is how many ports from 5900 on are tried.
const vncPorts = 100

// screenArguments are those of a machine with a screen. What is there does not depend on
// where it is shown, so that a guest finds the same machine again.
func screenArguments(o Options, can Abilities) ([]string, error) {
	if o.Screen == NoScreen {
		return []string{"-display", "none"}, nil
	}
	sound := "none"
	if o.Sound {
		if sound = can.Sound(); sound == "" {
			return nil, fmt.Errorf("this QEMU plays no sound on the host (it knows %s): install its package for windows and sound (Debian: qemu-system-gui), or do without", strings.Join(can.Sounds, ", "))
		}
	}
	var a []string
	switch o.Screen {
	case WindowScreen:
		window := can.Window()
		if window == "" {
			return nil, fmt.Errorf("this QEMU shows no window (it knows %s): install its package for windows (Debian: qemu-system-gui), or use VNC", strings.Join(can.Displays, ", "))
		}
		a = append(a, "-display", window)
	case VNCScreen:
		// The port is looked for from 5900 on.
		a = append(a, "-display", "none", "-vnc", fmt.Sprintf("127.0.0.1:0,to=%d,audiodev=sound", vncPorts-1))
	case HiddenScreen:
		a = append(a, "-display", "none")
	default:
		return nil, fmt.Errorf("unknown screen %q: window, vnc and hidden are known", o.Screen)
	}
	a = append(a,
		"-device", "virtio-vga",
		// A pointer that is where the host's is, and the keyboard that PCs have today.
		"-device", "qemu-xhci,id=input", "-device", "usb-kbd,bus=input.0", "-device", "usb-tablet,bus=input.0",
		// No microphone: what is said beside the host is not the guest's business.
		"-audiodev", sound+",id=sound", "-device", "ich9-intel-hda", "-device", "hda-output,audiodev=sound",
	)
	if slices.Contains(can.Chardevs, "qemu-vdagent") {
		a = append(a, "-device", "virtio-serial-pci",
			"-chardev", "qemu-vdagent,id=clipboard,name=vdagent,clipboard=on,mouse=off",
			"-device", "virtserialport,chardev=clipboard,name=com.redhat.spice.0")
	}
	return a, nil
}

// VNC returns the address of the machine's VNC server, which VNCScreen has: a host and a port.
func (m *Machine) VNC(ctx context.Context) (string, error) {
	var server struct {
		Host    string `json:"host"`
		Service string `json:"service"`
	}
	if err := m.qmp.Do(ctx, "query-vnc", nil, &server); err != nil {
		return "", err
	}
	if server.Service == "" {
		return "", fmt.Errorf("the machine has no VNC server")
	}
	return server.Host + ":" + server.Service, nil
}
