package wifi

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/godbus/dbus/v5"

	"halogenos.internal/uroot-cmds/ota/systembus"
)

// ErrNotAsked says that there is nothing to set up: the machine has a connection, or nothing
// that makes one.
var ErrNotAsked = errors.New("no wireless network is asked for")

// Waits bound how long NetworkManager may take.
type Waits struct {
	Call    time.Duration // for an answer
	Start   time.Duration // until it is on the bus, and has tried what is plugged in
	Device  time.Duration // until a wireless device can be used
	Scan    time.Duration // until the device has looked for networks
	Connect time.Duration // until there is an address
	Look    time.Duration // between one look and the next
}

// Usual are the waits on a machine. NetworkManager itself gives a password 25 seconds, and DHCP 45.
func Usual() Waits {
	return Waits{Call: 10 * time.Second, Start: 15 * time.Second, Device: 10 * time.Second, Scan: 12 * time.Second, Connect: 100 * time.Second, Look: 250 * time.Millisecond}
}

// A Radio is a machine's wireless device, as NetworkManager has it.
type Radio struct {
	bus   *dbus.Conn
	owner string // NetworkManager's name of its connection: another one is not asked, nor believed
	waits Waits
}

// Names of NetworkManager's D-Bus interface.
const (
	manager    = "org.freedesktop.NetworkManager"
	device     = manager + ".Device"
	wireless   = device + ".Wireless"
	access     = manager + ".AccessPoint"
	active     = manager + ".Connection.Active"
	connection = manager + ".Settings.Connection"

	managerPath = "/org/freedesktop/NetworkManager"
)

// What it says of itself and of devices (NMState, NMDeviceType, NMDeviceState,
// NMActiveConnectionState).
const (
	stateConnecting, stateSite = 40, 60

	typeWifi = 2

	deviceUnmanaged, deviceDisconnected = 10, 30
	deviceConfig, deviceIP              = 50, 70
	deviceFailed                        = 120

	activeActivated, activeDeactivated = 2, 4
)

// Connect finds NetworkManager on the bus at a socket, empty for the system's. It returns
// ErrNotAsked where the machine has a connection already, or no NetworkManager.
func Connect(ctx context.Context, socket string, w Waits) (*Radio, error) {
	// The connection outlives ctx: it is needed to delete what an attempt has added.
	bus, err := systembus.Connect(context.WithoutCancel(ctx), socket)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotAsked, err)
	}
	r := &Radio{bus: bus, waits: w}
	if err := r.begin(ctx); err != nil {
		return nil, errors.Join(err, bus.Close())
	}
	return r, nil
}

// Close ends the connection to the bus.
func (r *Radio) Close() error { return r.bus.Close() }

// begin waits until NetworkManager has started.
func (r *Radio) begin(ctx context.Context) error {
	r.until(ctx, r.waits.Start, func() bool {
		ctx, stop := context.WithTimeout(ctx, r.waits.Call)
		defer stop()
		return r.bus.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.GetNameOwner", 0, manager).Store(&r.owner) == nil
	})
	if r.owner == "" {
		return fmt.Errorf("%w: NetworkManager is not on the bus", ErrNotAsked)
	}
	var state uint32
	var err error
	r.until(ctx, r.waits.Start, func() bool {
		var startup bool
		if state, err = get[uint32](ctx, r, managerPath, manager, "State"); err == nil {
			startup, err = get[bool](ctx, r, managerPath, manager, "Startup")
		}
		return err != nil || state >= stateSite || !startup && state != stateConnecting
	})
	if err == nil && state >= stateSite {
		err = fmt.Errorf("%w: there is a connection", ErrNotAsked)
	}
	return err
}

// until polls a condition until it holds, or the time is over.
func (r *Radio) until(ctx context.Context, limit time.Duration, is func() bool) bool {
	end := time.Now().Add(limit)
	for !is() {
		if time.Now().After(end) || ctx.Err() != nil {
			return false
		}
		select {
		case <-ctx.Done():
		case <-time.After(r.waits.Look):
		}
	}
	return true
}

// call calls a method, and stores what it returns.
func (r *Radio) call(ctx context.Context, at dbus.ObjectPath, method string, args []any, into ...any) error {
	ctx, stop := context.WithTimeout(ctx, r.waits.Call)
	defer stop()
	err := r.bus.Object(r.owner, at).CallWithContext(ctx, method, dbus.FlagNoAutoStart, args...).Store(into...)
	if err != nil {
		// Its text may name a network.
		err = fmt.Errorf("ask NetworkManager for %s: %s", method, Name([]byte(err.Error())))
	}
	return err
}

// get reads a property of a type.
func get[T any](ctx context.Context, r *Radio, at dbus.ObjectPath, of, name string) (value T, err error) {
	var v dbus.Variant
	if err := r.call(ctx, at, "org.freedesktop.DBus.Properties.Get", []any{of, name}, &v); err != nil {
		return value, err
	}
	value, ok := v.Value().(T)
	if !ok {
		return value, fmt.Errorf("NetworkManager's property %s is not what its interface says", name)
	}
	return value, nil
}

// IsOff reports whether Wi-Fi is switched off, and whether that is done by a switch or a key
// of the machine, which no program turns.
func (r *Radio) IsOff(ctx context.Context) (off, bySwitch bool, err error) {
	on, err := get[bool](ctx, r, managerPath, manager, "WirelessHardwareEnabled")
	if err != nil || !on {
		return true, true, err
	}
	on, err = get[bool](ctx, r, managerPath, manager, "WirelessEnabled")
	return !on, false, err
}

// SwitchOn switches Wi-Fi on, also for the starts to come.
func (r *Radio) SwitchOn(ctx context.Context) error {
	return r.call(ctx, managerPath, "org.freedesktop.DBus.Properties.Set", []any{manager, "WirelessEnabled", dbus.MakeVariant(true)})
}

// Bounds of what is looked at.
const (
	maxDevices = 256
	maxPoints  = 2000
)

// device finds a wireless device that can be used, and waits for one whose driver and
// supplicant are still starting.
func (r *Radio) device(ctx context.Context) (found dbus.ObjectPath, err error) {
	seen := false
	// A round asks twice for each device.
	limited, stop := context.WithTimeout(ctx, r.waits.Device+r.waits.Call)
	defer stop()
	r.until(limited, r.waits.Device, func() bool {
		var all []dbus.ObjectPath
		if err = r.call(limited, managerPath, manager+".GetDevices", nil, &all); err != nil {
			return true
		}
		for _, at := range all[:min(len(all), maxDevices)] {
			kind, err := get[uint32](limited, r, at, device, "DeviceType")
			if err != nil || kind != typeWifi {
				continue
			}
			state, err := get[uint32](limited, r, at, device, "State")
			seen = seen || err == nil && state != deviceUnmanaged
			if err == nil && state >= deviceDisconnected {
				found = at
				return true
			}
		}
		return false
	})
	switch {
	case err != nil:
		return "", err
	case found != "":
		return found, nil
	case seen:
		return "", errors.New("NetworkManager cannot use the wireless device: its firmware or wpa_supplicant may be missing (`journalctl -b -u NetworkManager` and `journalctl -b -k` say more)")
	case limited.Err() != nil && ctx.Err() == nil:
		return "", errors.New("NetworkManager takes too long to say which devices there are")
	}
	return "", fmt.Errorf("%w: NetworkManager has no wireless device", ErrNotAsked)
}

// Networks looks for networks, the strongest first.
func (r *Radio) Networks(ctx context.Context) ([]Network, error) {
	at, err := r.device(ctx)
	if err != nil {
		return nil, err
	}
	const never = -1
	last, err := get[int64](ctx, r, at, wireless, "LastScan")
	if err != nil {
		return nil, err
	}
	// It refuses to look again within seconds: then what it has found is new enough.
	err = r.call(ctx, at, wireless+".RequestScan", []any{map[string]dbus.Variant{}})
	if err == nil || last == never {
		r.until(ctx, r.waits.Scan, func() bool {
			now, err := get[int64](ctx, r, at, wireless, "LastScan")
			return err != nil || now != last
		})
	}
	var all []dbus.ObjectPath
	if err := r.call(ctx, at, wireless+".GetAllAccessPoints", nil, &all); err != nil {
		return nil, err
	}
	end := time.Now().Add(r.waits.Scan)
	var points []point
	for _, at := range all[:min(len(all), maxPoints)] {
		if time.Now().After(end) {
			break
		}
		var v map[string]dbus.Variant
		// One that has gone meanwhile has no properties.
		if r.call(ctx, at, "org.freedesktop.DBus.Properties.GetAll", []any{access}, &v) != nil {
			continue
		}
		if p, ok := parsePoint(v); ok {
			points = append(points, p)
		}
	}
	return networks(points), ctx.Err()
}

// parsePoint reads the properties of an access point; ok says that they are of their types.
func parsePoint(v map[string]dbus.Variant) (p point, ok bool) {
	ok = property(v, "Ssid", &p.ssid) && property(v, "Flags", &p.flags) && property(v, "WpaFlags", &p.wpa) &&
		property(v, "RsnFlags", &p.rsn) && property(v, "Strength", &p.strength)
	return p, ok
}

func property[T any](v map[string]dbus.Variant, name string, into *T) (ok bool) {
	*into, ok = v[name].Value().(T)
	return ok
}

// Connect connects to a network, and tells how far it is. The password stays the caller's to
// clear; copies of it are in this process until it ends, as the D-Bus library makes some.
//
// The connection is in NetworkManager's memory until it is up, and is written to the disk then.
// Interrupted before that it leaves nothing, and neither does one that fails.
func (r *Radio) Connect(ctx context.Context, n Network, password []byte, tell func(string)) error {
	if err := n.Security.Refused(); err != nil {
		return err
	}
	at, err := r.device(ctx)
	if err != nil {
		return err
	}
	signals := make(chan *dbus.Signal, 64)
	r.bus.Signal(signals)
	defer r.bus.RemoveSignal(signals)
	match := []dbus.MatchOption{dbus.WithMatchSender(r.owner), dbus.WithMatchObjectPath(at), dbus.WithMatchInterface(device), dbus.WithMatchMember("StateChanged")}
	if err := r.listen(ctx, match); err != nil {
		return fmt.Errorf("listen to NetworkManager: %w", err)
	}
	var made, activated dbus.ObjectPath
	var more map[string]dbus.Variant
	options := map[string]dbus.Variant{"persist": dbus.MakeVariant("memory")}
	// Interrupted in between, nobody would know what there is to delete.
	if err := r.call(context.WithoutCancel(ctx), managerPath, manager+".AddAndActivateConnection2", []any{n.settings(password), at, dbus.ObjectPath("/"), options}, &made, &activated, &more); err != nil {
		return err
	}
	attempt := &attempt{at: at, owner: r.owner, signals: signals, tell: tell, network: n}
	if err := r.follow(ctx, attempt, activated); err != nil {
		// It is deleted even where nobody waits for that.
		_ = r.call(context.WithoutCancel(ctx), made, connection+".Delete", nil)
		return err
	}
	const toDisk = uint32(1) // NMSettingsUpdate2Flags; no settings are those that it has
	if err := r.call(ctx, made, connection+".Update2", []any{map[string]map[string]dbus.Variant{}, toDisk, map[string]dbus.Variant{}}, &more); err != nil {
		return fmt.Errorf("the connection stands until the next start, and was not kept: %w", err)
	}
	return nil
}

// listen has the bus pass signals on, until the connection to it ends.
func (r *Radio) listen(ctx context.Context, match []dbus.MatchOption) error {
	ctx, stop := context.WithTimeout(ctx, r.waits.Call)
	defer stop()
	return r.bus.AddMatchSignalContext(ctx, match...)
}

// attempt is one to connect.
type attempt struct {
	at      dbus.ObjectPath
	owner   string
	network Network
	signals <-chan *dbus.Signal
	tell    func(string)
	reason  uint32 // why the device failed
	told    uint32
}

// follow waits until a connection is up, which its own state says. The device's signals say how far
// it is, and why it failed: that state has passed by the time that it could be asked for.
func (r *Radio) follow(ctx context.Context, a *attempt, activated dbus.ObjectPath) (err error) {
	over := r.until(ctx, r.waits.Connect, func() bool {
		state, getErr := get[uint32](ctx, r, activated, active, "State")
		a.hear()
		switch {
		case ctx.Err() != nil:
			return false
		case getErr != nil || state == activeDeactivated: // an attempt that is over may be gone
			err = failure(a.network, a.reason)
			return true
		}
		return state == activeActivated
	})
	switch {
	case ctx.Err() != nil:
		return errors.New("interrupted")
	case !over:
		return ErrSlow
	}
	return err
}

// hear takes what the device has said since the last time.
func (a *attempt) hear() {
	for {
		select {
		case s, open := <-a.signals:
			if !open {
				return
			}
			a.one(s)
		default:
			return
		}
	}
}

// one takes a signal: StateChanged with the new state, the old one, and a reason.
func (a *attempt) one(s *dbus.Signal) {
	// Anybody on the bus may send a signal.
	if s.Sender != a.owner || s.Path != a.at || s.Name != device+".StateChanged" || len(s.Body) != 3 {
		return
	}
	state, ok := s.Body[0].(uint32)
	reason, fine := s.Body[2].(uint32)
	switch {
	case !ok || !fine:
	case state == deviceFailed:
		a.reason = reason
	case state == deviceConfig && a.told < state:
		a.told = state
		a.tell("the access point is asked to let this machine in ...")
	case state == deviceIP && a.told < state:
		a.told = state
		a.tell("it does; an address is asked for ...")
	}
}
