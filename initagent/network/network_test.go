package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// A box is a machine with some interfaces.
type box struct {
	*Machine
	said    []string
	loaded  string
	have    []net.Interface
	gives   map[string]string // address by DHCP, of an interface
	got     sync.Map          // interfaces that were given theirs
	waited  time.Duration
	noImage error
}

func eth(name string) net.Interface {
	return net.Interface{Name: name, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1}, Flags: net.FlagBroadcast}
}

func newBox(t *testing.T) *box {
	t.Helper()
	b := &box{have: []net.Interface{{Name: "lo", Flags: net.FlagLoopback}}, gives: map[string]string{}}
	root := t.TempDir()
	for _, directory := range []string{"sysroot/usr/lib/modules", "sysroot/etc/ssl/certs", "etc", "sys/class/net/wlan0/phy80211"} {
		if err := os.MkdirAll(filepath.Join(root, directory), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b.Machine = &Machine{
		Root:        root,
		OpenSystem:  func() (string, error) { return filepath.Join(root, "sysroot"), b.noImage },
		LoadDrivers: func(modules string) error { b.loaded = strings.TrimPrefix(modules, root); return nil },
		Interfaces:  func() ([]net.Interface, error) { return b.have, nil },
		Addresses: func(name string) ([]net.Addr, error) {
			link := &net.IPNet{IP: net.ParseIP("fe80::1"), Mask: net.CIDRMask(64, 128)}
			if _, ok := b.got.Load(name); !ok {
				return []net.Addr{link}, nil
			}
			return []net.Addr{link, &net.IPNet{IP: net.ParseIP(b.gives[name]), Mask: net.CIDRMask(24, 32)}}, nil
		},
		Lease: func(_ context.Context, name string) string {
			if b.gives[name] != "" {
				b.got.Store(name, true)
			}
			return "asked on " + name + "\n"
		},
		Say:   func(format string, args ...any) { b.said = append(b.said, fmt.Sprintf(format, args...)) },
		Sleep: func(d time.Duration) { b.waited += d },
	}
	return b
}

func TestUp(t *testing.T) {
	b := newBox(t)
	b.have = append(b.have, eth("wlan0"), eth("eth0"))
	b.gives["eth0"], b.gives["wlan0"] = "192.0.2.7", "192.0.2.8"
	if err := b.Up(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(b.said, "; "); got != "asking for an address on eth0; eth0: 192.0.2.7/24" {
		t.Errorf("said %s", got)
	}
	if b.loaded != "/sysroot/usr/lib/modules" {
		t.Errorf("drivers of %s were loaded", b.loaded)
	}
	// Programs find the image's certificates, and no others are put aside.
	if _, err := os.Stat(filepath.Join(b.Root, "etc/ssl/certs")); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(filepath.Join(b.Root, "etc/pki")); err == nil {
		t.Error("there is a link to what the image does not have")
	}
	if err := b.Up(t.Context(), []string{"eth0"}); err != nil {
		t.Errorf("a second time: %v", err)
	}
}

func TestFails(t *testing.T) {
	for name, c := range map[string]struct {
		change func(b *box)
		names  []string
		want   string
		waits  bool
	}{
		"no interface":             {func(*box) {}, nil, "no wired network interface, or the system image has no driver", true},
		"no such interface":        {func(b *box) { b.have = append(b.have, eth("eth0")) }, []string{"eth1"}, "no wired network interface eth1: there are eth0", true},
		"radio alone":              {func(b *box) { b.have = append(b.have, eth("wlan0")) }, nil, "no wired network interface", true},
		"no answer":                {func(b *box) { b.have = append(b.have, eth("eth0"), eth("eth1")) }, nil, "no address on eth0, eth1: is the cable in, and does something answer DHCP there? By hand: `ip addr add ADDRESS/BITS dev eth0`, `ip link set eth0 up`", false},
		"no answer, what was said": {func(b *box) { b.have = append(b.have, eth("eth0")) }, nil, "asked on eth0", false},
		"interfaces cannot be listed": {func(b *box) {
			b.Interfaces = func() ([]net.Interface, error) { return nil, errors.ErrUnsupported }
		}, nil, "list the network interfaces", false},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBox(t)
			c.change(b)
			err := b.Up(t.Context(), c.names)
			if err == nil || !strings.Contains(err.Error(), c.want) || (b.waited > 0) != c.waits {
				t.Errorf("%v after %v, want %q", err, b.waited, c.want)
			}
		})
	}
}

// Without the system image, what the initramfs has may be enough.
func TestWithoutImage(t *testing.T) {
	b := newBox(t)
	b.noImage = errors.New("its first block is corrupt")
	b.have = append(b.have, eth("eth0"))
	b.gives["eth0"] = "192.0.2.7"
	if err := b.Up(t.Context(), nil); err != nil || !strings.Contains(b.said[0], "first block is corrupt; what it has, drivers and root certificates, is missing here") {
		t.Errorf("%v, %q", err, b.said)
	}
}

func TestIsDriver(t *testing.T) {
	for file, want := range map[string]bool{
		"kernel/drivers/net/virtio_net.ko.xz": true, "kernel/drivers/net/ethernet/intel/e1000e/e1000e.ko": true, "kernel/drivers/net/usb/r8152.ko.zst": true,
		"kernel/drivers/net/wireless/intel/iwlwifi/iwlwifi.ko": false, "kernel/drivers/gpu/drm/i915/i915.ko": false, "kernel/net/netfilter/nf_tables.ko": false,
	} {
		if isDriver(file) != want {
			t.Errorf("%s: %v", file, !want)
		}
	}
}
