package when

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"

	"halogenos.internal/boot/bounded"
	"halogenos.internal/uroot-cmds/ota/systembus"
)

// Places says where to look.
type Places struct {
	Root string // "/" on a machine
	// Bus is the socket of the system bus; empty is the usual one.
	Bus string
	Now func() time.Time
}

// patience bounds how long NetworkManager is waited for.
const patience = 5 * time.Second

// Look says how things are now.
func (p Places) Look(ctx context.Context) Conditions {
	return Conditions{Now: p.Now(), Metered: p.metered(ctx), Battery: battery(os.DirFS(filepath.Join(p.Root, "sys/class/power_supply"))), Load: p.load()}
}

// What NetworkManager says of its connections together: NMMetered of its D-Bus interface,
// version 1.2 and later.
const (
	meteredYes      = 1
	meteredGuessYes = 3
)

// metered asks NetworkManager. Where it is not there or does not answer, nothing is known.
func (p Places) metered(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	bus, err := systembus.Connect(ctx, p.Bus)
	if err != nil {
		return false
	}
	defer bus.Close()
	const name = "org.freedesktop.NetworkManager"
	var v dbus.Variant
	// It is asked and not started: a machine that does without it stays so.
	call := bus.Object(name, "/org/freedesktop/NetworkManager").CallWithContext(ctx, "org.freedesktop.DBus.Properties.Get", dbus.FlagNoAutoStart, name, "Metered")
	if err := call.Store(&v); err != nil {
		return false
	}
	n, ok := v.Value().(uint32)
	return ok && (n == meteredYes || n == meteredGuessYes)
}

// battery is how much in percent the batteries have that the machine runs on, or -1
// (Linux, Documentation/ABI/testing/sysfs-class-power). Those of a mouse do not count.
func battery(supplies fs.FS) int {
	entries, err := fs.ReadDir(supplies, ".")
	if err != nil {
		return -1
	}
	sum, batteries, discharging := 0, 0, false
	for _, e := range entries {
		read := func(name string) string { return small(supplies, e.Name()+"/"+name) }
		if read("scope") == "Device" {
			continue
		}
		if kind := read("type"); kind != "Battery" {
			if kind != "" && kind != "Wireless" && read("online") == "1" {
				return -1 // mains
			}
			continue
		}
		percent, err := strconv.Atoi(read("capacity"))
		if err != nil || percent < 0 || percent > 100 || read("present") == "0" {
			continue
		}
		sum, batteries = sum+percent, batteries+1
		discharging = discharging || read("status") == "Discharging"
	}
	if batteries == 0 || !discharging {
		return -1
	}
	return sum / batteries
}

// small reads a file of one line; "" where it cannot be read.
func small(f fs.FS, name string) string {
	file, err := f.Open(name)
	if err != nil {
		return ""
	}
	defer file.Close()
	text, err := bounded.Read(file, 256)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// load is the load of the last minute for each processor.
func (p Places) load() float64 {
	first, _, _ := strings.Cut(small(os.DirFS(filepath.Join(p.Root, "proc")), "loadavg"), " ")
	n, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return 0
	}
	return n / float64(runtime.NumCPU())
}
