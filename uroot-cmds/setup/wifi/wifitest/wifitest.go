// Package wifitest is a NetworkManager on a bus of its own, for tests. It is imported by tests
// only.
//
// It keeps what it is told and says what the test has it say; it decides nothing.
package wifitest

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"halogenos.internal/boot/testkit"
)

const (
	name = "org.freedesktop.NetworkManager"
	root = dbus.ObjectPath("/org/freedesktop/NetworkManager")
	// Radio is the wireless device's path, Cable that of one that is none.
	Radio = root + "/Devices/2"
	Cable = root + "/Devices/1"
)

// A Point is an access point as NetworkManager describes it. Values of other types than its own
// are what a test gives.
type Point = map[string]any

// Properties are those of an object's interface.
type Properties = map[string]any

// A Profile is a connection that was made.
type Profile struct {
	Settings map[string]map[string]dbus.Variant
	Options  map[string]dbus.Variant
	OnDisk   bool
	Deleted  bool
}

// SSID is the network's name, and Secret its password.
func (p Profile) SSID() string {
	ssid, _ := p.Settings["802-11-wireless"]["ssid"].Value().([]byte)
	return string(ssid)
}

// Secret is the password; "" where it has none.
func (p Profile) Secret() string {
	secret, _ := p.Settings["802-11-wireless-security"]["psk"].Value().(string)
	return secret
}

// What an attempt comes to, besides the reasons of a device's failure (NMDeviceStateReason).
const (
	Connects = uint32(0)
	Hangs    = ^uint32(0)
	Refused  = ^uint32(0) - 1 // the call itself fails
)

// A Manager is a NetworkManager.
type Manager struct {
	Path string // socket of its bus
	// Outcome says what becomes of an attempt. Failure is the text of Refused.
	Outcome func(p Profile) uint32
	Failure string

	conn     *dbus.Conn
	mu       sync.Mutex
	objects  map[dbus.ObjectPath]map[string]Properties
	points   []dbus.ObjectPath
	profiles []*Profile
	scans    int
	noScan   bool
	slow     time.Duration
	more     int
}

// New starts one that has a wireless device, and no connection.
func New(t testing.TB) *Manager {
	t.Helper()
	m := &Manager{Path: testkit.Bus(t), Outcome: func(Profile) uint32 { return Connects }, objects: map[dbus.ObjectPath]map[string]Properties{}}
	m.Set(root, name, Properties{"State": uint32(20), "Startup": false, "WirelessEnabled": true, "WirelessHardwareEnabled": true})
	m.Set(Cable, name+".Device", Properties{"DeviceType": uint32(1), "State": uint32(20)})
	m.Set(Radio, name+".Device", Properties{"DeviceType": uint32(2), "State": uint32(30)})
	m.Set(Radio, name+".Device.Wireless", Properties{"LastScan": int64(-1)})
	var err error
	if m.conn, err = dbus.Connect("unix:path=" + m.Path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.conn.Close() })
	all := map[string]any{"Get": m.get, "GetAll": m.getAll, "Set": m.set}
	err = m.conn.ExportSubtreeMethodTable(all, root, "org.freedesktop.DBus.Properties")
	for of, methods := range map[string]map[string]any{
		name:                          {"GetDevices": m.devices, "AddAndActivateConnection2": m.add},
		name + ".Device.Wireless":     {"RequestScan": m.scan, "GetAllAccessPoints": m.list},
		name + ".Settings.Connection": {"Delete": m.remove, "Update2": m.update},
	} {
		err = errors.Join(err, m.conn.ExportSubtreeMethodTable(methods, root, of))
	}
	if err == nil {
		_, err = m.conn.RequestName(name, dbus.NameFlagDoNotQueue)
	}
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// Set sets properties of an object.
func (m *Manager) Set(at dbus.ObjectPath, of string, to Properties) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.objects[at] == nil {
		m.objects[at] = map[string]Properties{}
	}
	if m.objects[at][of] == nil {
		m.objects[at][of] = Properties{}
	}
	for k, v := range to {
		m.objects[at][of][k] = v
	}
}

// SetState sets properties of NetworkManager itself.
func (m *Manager) SetState(to Properties) { m.Set(root, name, to) }

// SetRadio sets properties of the wireless device.
func (m *Manager) SetRadio(to Properties) { m.Set(Radio, name+".Device", to) }

// Remove takes an object away.
func (m *Manager) Remove(at dbus.ObjectPath) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, at)
}

// See has these access points be seen.
func (m *Manager) See(all ...Point) {
	m.mu.Lock()
	m.points = nil
	m.mu.Unlock()
	for i, p := range all {
		at := root + dbus.ObjectPath(fmt.Sprintf("/AccessPoint/%d", i))
		if p != nil { // one that has gone has a path and no properties
			m.Set(at, name+".AccessPoint", p)
		}
		m.mu.Lock()
		m.points = append(m.points, at)
		m.mu.Unlock()
	}
}

// NoScan has it refuse to scan, as it does within seconds after a scan.
func (m *Manager) NoScan() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.noScan = true
}

// Slow has it take its time for each property, and have more devices that are not wireless ones.
func (m *Manager) Slow(each time.Duration, more int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.slow, m.more = each, more
}

// Scans is how often it has looked for networks.
func (m *Manager) Scans() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.scans
}

// Profiles are the connections that were made.
func (m *Manager) Profiles() (all []Profile) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.profiles {
		all = append(all, *p)
	}
	return all
}

func failed(text string) *dbus.Error { return dbus.NewError(name+".Failed", []any{text}) }

func path(msg dbus.Message) dbus.ObjectPath {
	at, _ := msg.Headers[dbus.FieldPath].Value().(dbus.ObjectPath)
	return at
}

func (m *Manager) get(msg dbus.Message, of, property string) (dbus.Variant, *dbus.Error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	time.Sleep(m.slow)
	v, has := m.objects[path(msg)][of][property]
	if !has {
		return dbus.Variant{}, dbus.NewError("org.freedesktop.DBus.Error.UnknownMethod", []any{"Object does not exist"})
	}
	return dbus.MakeVariant(v), nil
}

func (m *Manager) getAll(msg dbus.Message, of string) (map[string]dbus.Variant, *dbus.Error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := map[string]dbus.Variant{}
	has := m.objects[path(msg)][of]
	if has == nil {
		return nil, dbus.NewError("org.freedesktop.DBus.Error.UnknownMethod", []any{"Object does not exist"})
	}
	for k, v := range has {
		all[k] = dbus.MakeVariant(v)
	}
	return all, nil
}

func (m *Manager) set(msg dbus.Message, of, property string, v dbus.Variant) *dbus.Error {
	m.Set(path(msg), of, Properties{property: v.Value()})
	return nil
}

func (m *Manager) devices() ([]dbus.ObjectPath, *dbus.Error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := slices.Repeat([]dbus.ObjectPath{Cable}, m.more)
	for _, at := range []dbus.ObjectPath{Cable, Radio} {
		if m.objects[at] != nil {
			all = append(all, at)
		}
	}
	return all, nil
}

func (m *Manager) scan(map[string]dbus.Variant) *dbus.Error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.noScan {
		return dbus.NewError(name+".Device.NotAllowed", []any{"Scanning not allowed immediately following previous scan"})
	}
	m.scans++
	m.objects[Radio][name+".Device.Wireless"]["LastScan"] = int64(m.scans)
	return nil
}

func (m *Manager) list() ([]dbus.ObjectPath, *dbus.Error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]dbus.ObjectPath{}, m.points...), nil
}

func (m *Manager) add(settings map[string]map[string]dbus.Variant, at, _ dbus.ObjectPath, options map[string]dbus.Variant) (made, active dbus.ObjectPath, more map[string]dbus.Variant, _ *dbus.Error) {
	p := &Profile{Settings: settings, Options: options}
	outcome := m.Outcome(*p)
	if outcome == Refused {
		return "/", "/", nil, failed(m.Failure)
	}
	m.mu.Lock()
	m.profiles = append(m.profiles, p)
	i := len(m.profiles)
	m.mu.Unlock()
	made, active = root+dbus.ObjectPath(fmt.Sprintf("/Settings/%d", i)), root+dbus.ObjectPath(fmt.Sprintf("/ActiveConnection/%d", i))
	m.Set(active, name+".Connection.Active", Properties{"State": uint32(1)})
	go m.activate(at, active, outcome)
	return made, active, map[string]dbus.Variant{}, nil
}

// activate goes through a device's states, as the real one does, whose failed attempt is
// soon gone from the bus.
func (m *Manager) activate(at, active dbus.ObjectPath, outcome uint32) {
	old := uint32(30)
	to := func(state, reason uint32) {
		_ = m.conn.Emit(at, name+".Device.StateChanged", state, old, reason)
		old = state
	}
	to(40, 0)
	to(50, 0)
	const noSecrets = 7
	switch outcome {
	case Hangs:
		return
	case noSecrets:
		to(60, 8)
	case Connects, 5, 17:
		to(70, 0)
	}
	if outcome == Connects {
		to(100, 0)
		m.Set(active, name+".Connection.Active", Properties{"State": uint32(2)})
		return
	}
	to(120, outcome)
	to(30, 0)
	m.Remove(active)
}

func (m *Manager) profile(msg dbus.Message) *Profile {
	var i int
	if n, err := fmt.Sscanf(string(path(msg)), string(root)+"/Settings/%d", &i); n != 1 || err != nil || i < 1 || i > len(m.profiles) {
		return &Profile{}
	}
	return m.profiles[i-1]
}

func (m *Manager) remove(msg dbus.Message) *dbus.Error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.profile(msg).Deleted = true
	return nil
}

func (m *Manager) update(msg dbus.Message, settings map[string]map[string]dbus.Variant, flags uint32, _ map[string]dbus.Variant) (map[string]dbus.Variant, *dbus.Error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(settings) > 0 || flags != 1 {
		return nil, failed("the test expects settings that stay, and the flag to-disk")
	}
	m.profile(msg).OnDisk = true
	return map[string]dbus.Variant{}, nil
}

// Stop ends it.
func (m *Manager) Stop() { _ = m.conn.Close() }
