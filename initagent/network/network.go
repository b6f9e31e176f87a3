// Package network brings the recovery console into a wired network.
//
// It refuses drivers that are not in the initramfs or in the system image that the
// console's own UKI names, and to do anything in a running system. Wireless networks
// are not for it: their keys are the system's.
package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A Machine is what it works on.
type Machine struct {
	// Root is where the initramfs is; "/" but in tests.
	Root string
	// OpenSystem mounts the system image and returns where.
	OpenSystem func() (string, error)
	// LoadDrivers loads the drivers of this machine's network devices from a
	// directory with kernel modules.
	LoadDrivers func(modules string) error
	Interfaces  func() ([]net.Interface, error)
	Addresses   func(name string) ([]net.Addr, error)
	// Lease asks for an address by DHCP and takes it. It may return without one,
	// and says what it did.
	Lease func(ctx context.Context, name string) (said string)
	// Say tells the person.
	Say   func(format string, args ...any)
	Sleep func(time.Duration)
}

const (
	// appear is how long an interface may take to show itself.
	appear = 5 * time.Second
	step   = 250 * time.Millisecond
	// others is how long is waited for more addresses once there is one.
	others = 3 * time.Second
)

// Up loads the drivers, lets programs find the system image's certificates, and
// asks for an address on the interfaces that are named, or on all wired ones.
func (m *Machine) Up(ctx context.Context, names []string) error {
	if err := m.useSystem(); err != nil {
		m.Say("%v; what it has, drivers and root certificates, is missing here", err)
	}
	names, err := m.wired(names)
	if err != nil {
		return err
	}
	m.Say("asking for an address on %s", strings.Join(names, ", "))
	said := m.leases(ctx, names)
	up := false
	for _, name := range names {
		addresses, err := m.reachable(name)
		if err != nil {
			return fmt.Errorf("addresses of %s: %w", name, err)
		}
		if len(addresses) > 0 {
			up = true
			m.Say("%s: %s", name, strings.Join(addresses, ", "))
		}
	}
	if up {
		return nil
	}
	return fmt.Errorf("no address on %s: is the cable in, and does something answer DHCP there? By hand: `ip addr add ADDRESS/BITS dev %s`, `ip link set %[2]s up`, `ip route add default via ROUTER`, `echo nameserver ADDRESS >/etc/resolv.conf`\n%s",
		strings.Join(names, ", "), names[0], said)
}

// leases asks on all interfaces at once, and returns what was said of them. Most of
// them may have no cable.
func (m *Machine) leases(ctx context.Context, names []string) string {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	said := make(chan string, len(names))
	for _, name := range names {
		go func() {
			text := m.Lease(ctx, name)
			if have, err := m.reachable(name); err == nil && len(have) > 0 {
				time.AfterFunc(others, cancel)
			}
			said <- text
		}()
	}
	var all []string
	for range names {
		all = append(all, <-said)
	}
	slices.Sort(all)
	return strings.Join(all, "")
}

// useSystem takes the drivers and certificates of the system image.
func (m *Machine) useSystem() error {
	system, err := m.OpenSystem()
	if err != nil {
		return err
	}
	for _, directory := range certificates() {
		if err := link(filepath.Join(system, directory), filepath.Join(m.Root, directory)); err != nil {
			return err
		}
	}
	modules, err := first(filepath.Join(system, "usr/lib/modules"), filepath.Join(system, "lib/modules"))
	if err != nil {
		return fmt.Errorf("kernel modules of the system image: %w", err)
	}
	return m.LoadDrivers(modules)
}

// certificates are the directories in which distributions have root certificates, and
// what those of others lead to.
func certificates() []string { return []string{"etc/ssl", "etc/pki", "etc/ca-certificates"} }

// link makes a link to a directory that is there, unless something has its name.
func link(to, name string) error {
	if _, err := os.Stat(to); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	if err := os.Symlink(to, name); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// first returns the first of these places that is there.
func first(places ...string) (string, error) {
	var err error
	for _, place := range places {
		if _, err = os.Stat(place); err == nil {
			return place, nil
		}
	}
	return "", err
}

// isDriver reports whether a kernel module, whose file is named as in modules.dep, is
// a driver of wired network devices.
func isDriver(file string) bool {
	const drivers = "kernel/drivers/net/"
	return strings.HasPrefix(file, drivers) && !strings.HasPrefix(file, drivers+"wireless/")
}

// wired waits for interfaces and returns those to use.
func (m *Machine) wired(wanted []string) ([]string, error) {
	for waited := time.Duration(0); ; waited += step {
		all, err := m.Interfaces()
		if err != nil {
			return nil, fmt.Errorf("list the network interfaces: %w", err)
		}
		var have []string
		for _, i := range all {
			if m.isWired(i) {
				have = append(have, i.Name)
			}
		}
		missing := slices.DeleteFunc(slices.Clone(wanted), func(name string) bool { return slices.Contains(have, name) })
		switch {
		case len(wanted) > 0 && len(missing) == 0:
			return wanted, nil
		case len(wanted) == 0 && len(have) > 0:
			return have, nil
		case waited < appear:
			m.Sleep(step)
		case len(have) > 0:
			return nil, fmt.Errorf("there is no wired network interface %s: there are %s", strings.Join(missing, ", "), strings.Join(have, ", "))
		default:
			return nil, errors.New("this machine has no wired network interface, or the system image has no driver for it (`dmesg` may say which). Releases can be brought on a stick: `ota fetch --from DEVICE`, and `blkid` lists those")
		}
	}
}

// isWired: it has a hardware address, and the kernel knows of no radio behind it.
func (m *Machine) isWired(i net.Interface) bool {
	if i.Flags&(net.FlagLoopback|net.FlagPointToPoint) != 0 || len(i.HardwareAddr) != 6 {
		return false
	}
	for _, radio := range []string{"phy80211", "wireless"} {
		if _, err := os.Stat(filepath.Join(m.Root, "sys/class/net", i.Name, radio)); err == nil {
			return false
		}
	}
	return true
}

// reachable are the addresses of an interface by which others reach it.
func (m *Machine) reachable(name string) (out []string, err error) {
	all, err := m.Addresses(name)
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			out = append(out, n.String())
		}
	}
	return out, err
}
