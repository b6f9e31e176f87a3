// Package bus is how otad looks on D-Bus: org.freedesktop.sysupdate1, as the desktops of
// today call it, with one target, the host (systemd 258, org.freedesktop.sysupdate1(5)).
package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/introspect"
	"github.com/godbus/dbus/v5/prop"

	"halogenos.internal/boot/contract"
	"halogenos.internal/uroot-cmds/ota/machine"
	"halogenos.internal/uroot-cmds/ota/offer"
	"halogenos.internal/uroot-cmds/otad/face"
	"halogenos.internal/uroot-cmds/otad/polkit"
	"halogenos.internal/uroot-cmds/otad/service"
)

// Name is the name on the bus.
const Name = "org.freedesktop.sysupdate1"

const (
	root        = dbus.ObjectPath("/org/freedesktop/sysupdate1")
	hostPath    = root + "/target/host"
	managerFace = Name + ".Manager"
	targetFace  = Name + ".Target"
	jobFace     = Name + ".Job"
	host        = "host"
)

// A Bus is the service on one bus.
type Bus struct {
	conn    *dbus.Conn
	service *service.Service
	guard   face.Guard
	forget  func() // no more jobs

	mu   sync.Mutex
	jobs map[uint64]job
	// running is the version that runs, once somebody has asked: anybody may, without end.
	running string
	// calls are how many are under way, by user.
	calls map[uint32]int
}

// Offer puts the service on a bus. It stays there until Close, or until the connection
// ends. All objects are made before anybody can call: the library reads its list of them
// for a caller while another is added to it.
func Offer(conn *dbus.Conn, s *service.Service, guard face.Guard) (*Bus, error) {
	b := &Bus{conn: conn, service: s, guard: guard, jobs: map[uint64]job{}, calls: map[uint32]int{}}
	if err := b.exportJobs(); err != nil {
		return nil, err
	}
	props := prop.Map{targetFace: {
		"Class": {Value: host, Emit: prop.EmitConst}, "Name": {Value: host, Emit: prop.EmitConst}, "Path": {Value: "/", Emit: prop.EmitConst},
	}}
	exported, err := prop.Export(conn, hostPath, props)
	if err != nil {
		return nil, err
	}
	// The manager has no properties, and says so to who asks for all of them.
	if _, err := prop.Export(conn, root, prop.Map{managerFace: {}}); err != nil {
		return nil, err
	}
	m, t := &manager{b}, &target{b}
	for _, e := range []struct {
		object any
		path   dbus.ObjectPath
		face   string
		props  []introspect.Property
	}{{m, root, managerFace, nil}, {t, hostPath, targetFace, exported.Introspection(targetFace)}} {
		described := introspect.Interface{Name: e.face, Methods: introspect.Methods(e.object), Properties: e.props}
		if e.face == managerFace {
			described.Signals = []introspect.Signal{{Name: "JobRemoved", Args: []introspect.Arg{{Name: "id", Type: "t"}, {Name: "path", Type: "o"}, {Name: "status", Type: "i"}}}}
		}
		if err := b.export(e.object, e.path, described); err != nil {
			return nil, err
		}
	}
	b.forget = s.OnJobs(b.follow)
	reply, err := conn.RequestName(Name, dbus.NameFlagDoNotQueue)
	if err == nil && reply != dbus.RequestNameReplyPrimaryOwner {
		err = fmt.Errorf("the name %s is another program's (systemd-sysupdated?)", Name)
	}
	if err != nil {
		b.forget()
		return nil, err
	}
	return b, nil
}

// Close takes the service off the bus, which starts it again for the next caller. Who has
// called is still answered, as long as the connection is there.
func (b *Bus) Close() error {
	b.forget()
	if b.conn.Context().Err() != nil {
		return nil
	}
	_, err := b.conn.ReleaseName(Name)
	return err
}

func (b *Bus) export(object any, path dbus.ObjectPath, described introspect.Interface) error {
	node := &introspect.Node{Name: string(path), Interfaces: []introspect.Interface{introspect.IntrospectData, prop.IntrospectData, described}}
	if path == root {
		node.Children = []introspect.Node{{Name: "target"}, {Name: "job"}}
	}
	return errors.Join(
		b.conn.Export(object, path, described.Name),
		b.conn.Export(introspect.NewIntrospectable(node), path, "org.freedesktop.DBus.Introspectable"))
}

// Bounds of the calls that are under way: each may wait for polkit, or for a server.
const (
	maxOfUser = 16  // of one user who is not root
	maxNew    = 128 // of which it is not known yet who calls
)

// nobody is a user of whom nothing is known.
const nobody = ^uint32(0)

const limitsExceeded = "org.freedesktop.DBus.Error.LimitsExceeded"

// enter asks whether the sender of a message may do something. When that is done, the
// caller calls done.
func (b *Bus) enter(msg dbus.Message, a polkit.Action) (done func(), _ *dbus.Error) {
	sender, _ := msg.Headers[dbus.FieldSender].Value().(string)
	caller, leave, denied := b.caller(sender)
	if denied != nil {
		return nil, denied
	}
	served := b.service.Enter()
	done = func() { served(); leave() }
	asking := msg.Flags&dbus.FlagAllowInteractiveAuthorization != 0
	if err := b.guard.Allowed(b.conn.Context(), caller, a, asking); err != nil {
		done()
		name := "org.freedesktop.DBus.Error.AccessDenied"
		switch {
		case errors.Is(err, polkit.ErrTooMany):
			name = limitsExceeded
		case errors.Is(err, polkit.ErrPassword) && !asking:
			name = "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired"
		}
		return nil, dbus.NewError(name, []any{machine.Plain(err.Error())})
	}
	return done, nil
}

// caller says who a sender is, and counts the call as theirs until leave.
func (b *Bus) caller(sender string) (_ polkit.Caller, leave func(), _ *dbus.Error) {
	many := func(n int, of string) *dbus.Error {
		return dbus.NewError(limitsExceeded, []any{fmt.Sprintf("%d calls of %s are under way", n, of)})
	}
	if !b.count(nobody, 1) {
		return polkit.Caller{}, nil, many(maxNew, "others")
	}
	caller := polkit.Caller{UID: nobody, Bus: sender}
	// polkit knows who has the name; root is allowed where there is no polkit, too.
	ctx, cancel := context.WithTimeout(b.conn.Context(), busPatience)
	defer cancel()
	_ = b.conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.GetConnectionUnixUser", 0, sender).Store(&caller.UID)
	if caller.UID == nobody {
		return caller, func() { b.count(nobody, -1) }, nil
	}
	b.count(nobody, -1)
	if !b.count(caller.UID, 1) {
		return polkit.Caller{}, nil, many(maxOfUser, "this user")
	}
	return caller, func() { b.count(caller.UID, -1) }, nil
}

// busPatience bounds how long the bus may take to say who somebody is.
const busPatience = 10 * time.Second

// count counts a user's calls, and reports whether one more may be made.
func (b *Bus) count(user uint32, n int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	limit := maxOfUser
	if user == nobody {
		limit = maxNew
	}
	if n > 0 && user != 0 && b.calls[user] >= limit {
		return false
	}
	if b.calls[user] += n; b.calls[user] == 0 {
		delete(b.calls, user)
	}
	return true
}

// failed is an error on the bus.
func failed(err error) *dbus.Error {
	if err == nil {
		return nil
	}
	name := "org.freedesktop.DBus.Error.Failed"
	if errors.Is(err, machine.ErrBusy) {
		name = Name + ".TargetBusy"
	}
	return dbus.NewError(name, []any{machine.Plain(err.Error())})
}

// A manager has the targets and the jobs.
type manager struct{ b *Bus }

type listedTarget struct {
	Class, Name string
	Path        dbus.ObjectPath
}

// ListTargets implements org.freedesktop.sysupdate1.Manager.
func (*manager) ListTargets() ([]listedTarget, *dbus.Error) {
	return []listedTarget{{host, host, hostPath}}, nil
}

type listedJob struct {
	ID       uint64
	Kind     string
	Progress uint32
	Path     dbus.ObjectPath
}

// ListJobs implements org.freedesktop.sysupdate1.Manager.
func (m *manager) ListJobs() ([]listedJob, *dbus.Error) {
	m.b.mu.Lock()
	defer m.b.mu.Unlock()
	out := []listedJob{}
	for id, j := range m.b.jobs {
		out = append(out, listedJob{id, j.kind, j.progress(), jobPath(id)})
	}
	return out, nil
}

// A target is the host.
type target struct{ b *Bus }

// flagOffline is SD_SYSUPDATE_OFFLINE: what is here already, without a server.
const flagOffline = 1

// List implements org.freedesktop.sysupdate1.Target: the newest version first.
func (t *target) List(msg dbus.Message, flags uint64) ([]string, *dbus.Error) {
	done, denied := t.b.enter(msg, polkit.Check)
	if denied != nil {
		return nil, denied
	}
	defer done()
	all, err := t.versions(flags)
	if err != nil {
		return nil, failed(err)
	}
	out := []string{}
	for _, v := range all {
		out = append(out, v.Version)
	}
	return out, nil
}

// A described is what systemd-sysupdate says of a version.
type described struct {
	Version    string           `json:"version"`
	Newest     bool             `json:"newest"`
	Available  bool             `json:"available"`
	Installed  bool             `json:"installed"`
	Partial    bool             `json:"partial"`
	Pending    bool             `json:"pending"`
	Obsolete   bool             `json:"obsolete"`
	Protected  bool             `json:"protected"`
	Incomplete bool             `json:"incomplete"`
	Changes    []string         `json:"changelogUrls"`
	Contents   []map[string]any `json:"contents"`
	// Offer is what is offered, as `ota check --json` says it: size and notes too.
	Offer *machine.Outcome `json:"halogenOffer,omitempty"`
}

// versions are those that are here, and the one that is offered.
func (t *target) versions(flags uint64) ([]described, error) {
	s, err := t.b.service.Status(t.b.conn.Context())
	if err != nil {
		return nil, err
	}
	var o *machine.Outcome
	if flags&flagOffline == 0 {
		if o, err = t.b.service.Check(t.b.conn.Context()); err != nil {
			return nil, err
		}
	}
	return versions(s, o), nil
}

// versions are each once: what is offered, what waits for a restart, what is in the slots.
// o is nil where no server was asked.
func versions(s *machine.Status, o *machine.Outcome) []described {
	var out []described
	if o != nil && o.Verdict == offer.Take {
		d := described{Version: o.Version.String(), Newest: true, Available: true, Partial: s.Fetching == o.Version, Changes: []string{}, Contents: []map[string]any{}, Offer: o}
		for _, n := range o.Notes {
			if n.URL != "" {
				d.Changes = append(d.Changes, n.URL)
			}
		}
		out = append(out, d)
	}
	add := func(v contract.Version, pending bool) {
		if slices.ContainsFunc(out, func(d described) bool { return d.Version == v.String() }) {
			return
		}
		d := installed(v, len(out) == 0)
		d.Pending, d.Protected = pending, v == s.Version
		out = append(out, d)
	}
	if s.Staged != nil {
		add(s.Staged.Version, true)
	}
	for _, have := range s.Systems {
		if v, err := contract.ParseVersion(have.Version); err == nil && have.Slot.Valid() {
			add(v, v > s.Version)
		}
	}
	return out
}

func installed(v contract.Version, newest bool) described {
	return described{Version: v.String(), Newest: newest, Installed: true, Available: true, Changes: []string{}, Contents: []map[string]any{}}
}

// Describe implements org.freedesktop.sysupdate1.Target.
func (t *target) Describe(msg dbus.Message, version string, flags uint64) (string, *dbus.Error) {
	done, denied := t.b.enter(msg, polkit.Check)
	if denied != nil {
		return "", denied
	}
	defer done()
	all, err := t.versions(flags)
	if err != nil {
		return "", failed(err)
	}
	for _, v := range all {
		if v.Version == version {
			text, err := json.Marshal(v)
			return string(text), failed(err)
		}
	}
	return "", dbus.NewError(Name+".NoCandidate", []any{"version " + strconv.Quote(version) + " is neither here nor offered"})
}

// CheckNew implements org.freedesktop.sysupdate1.Target.
func (t *target) CheckNew(msg dbus.Message) (string, *dbus.Error) {
	done, denied := t.b.enter(msg, polkit.Check)
	if denied != nil {
		return "", denied
	}
	defer done()
	o, err := t.b.service.Check(t.b.conn.Context())
	if err != nil {
		return "", failed(err)
	}
	if o.Verdict != offer.Take {
		return "", nil
	}
	return o.Version.String(), nil
}

// Vacuum implements org.freedesktop.sysupdate1.Target. There are two slots, and both are
// needed.
func (t *target) Vacuum(msg dbus.Message) (instances, disabled uint32, _ *dbus.Error) {
	done, denied := t.b.enter(msg, polkit.Configure)
	if denied == nil {
		done()
	}
	return 0, 0, denied
}

// GetVersion implements org.freedesktop.sysupdate1.Target: the one that runs.
func (t *target) GetVersion() (string, *dbus.Error) {
	t.b.mu.Lock()
	defer t.b.mu.Unlock()
	if t.b.running == "" {
		r, err := t.b.service.Open().Running()
		if err != nil {
			return "", failed(err)
		}
		t.b.running = r.Contract.Version.String()
	}
	return t.b.running, nil
}

// ListFeatures implements org.freedesktop.sysupdate1.Target.
func (*target) ListFeatures(uint64) ([]string, *dbus.Error) { return []string{}, nil }

// DescribeFeature implements org.freedesktop.sysupdate1.Target.
func (*target) DescribeFeature(name string, _ uint64) (string, *dbus.Error) {
	return "", noFeature(name)
}

// SetFeatureEnabled implements org.freedesktop.sysupdate1.Target.
func (*target) SetFeatureEnabled(name string, _ int32, _ uint64) *dbus.Error { return noFeature(name) }

func noFeature(name string) *dbus.Error {
	return dbus.NewError(Name+".NoSuchFeature", []any{fmt.Sprintf("there is no feature %.40q", name)})
}
