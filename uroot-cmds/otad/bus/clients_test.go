package bus

import (
	"context"
	"encoding/json"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/statefiles"
	"halogenos.internal/initagent/inventory"
	"halogenos.internal/uroot-cmds/ota/machine"
	"halogenos.internal/uroot-cmds/ota/offer"
	"halogenos.internal/uroot-cmds/ota/when"
	"halogenos.internal/uroot-cmds/otad/otadtest"
	"halogenos.internal/uroot-cmds/otad/polkit"
)

// A desktop makes the calls of a program that shows updates, with its flags.
type desktop struct {
	t       *testing.T
	c       *dbus.Conn
	flags   dbus.Flags
	signals chan *dbus.Signal
}

func newDesktop(t *testing.T, c *dbus.Conn, flags dbus.Flags) *desktop {
	t.Helper()
	d := &desktop{t, c, flags, make(chan *dbus.Signal, 100)}
	// A proxy of GLib's or Qt's listens to the manager, and to the properties of a job.
	for _, m := range [][]dbus.MatchOption{
		{dbus.WithMatchSender(Name), dbus.WithMatchInterface(managerFace), dbus.WithMatchObjectPath(root)},
		{dbus.WithMatchSender(Name), dbus.WithMatchInterface(propertiesFace)},
	} {
		if err := c.AddMatchSignal(m...); err != nil {
			t.Fatal(err)
		}
	}
	c.Signal(d.signals)
	return d
}

// answersIn bounds how long a call may take on a busy machine.
const answersIn = 30 * time.Second

// call makes a call, and returns the error's name.
func (d *desktop) call(path dbus.ObjectPath, method string, args, results []any) string {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), answersIn)
	defer cancel()
	at := strings.LastIndexByte(method, '.')
	// The library's own Call leaves the flag out that lets somebody be asked.
	msg := &dbus.Message{Type: dbus.TypeMethodCall, Flags: d.flags, Body: args, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldPath: dbus.MakeVariant(path), dbus.FieldDestination: dbus.MakeVariant(Name), dbus.FieldInterface: dbus.MakeVariant(method[:at]), dbus.FieldMember: dbus.MakeVariant(method[at+1:]),
	}}
	if len(args) > 0 {
		msg.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(args...))
	}
	call := <-d.c.SendWithContext(ctx, msg, make(chan *dbus.Call, 1)).Done
	if e, is := call.Err.(dbus.Error); is {
		return e.Name
	}
	if call.Err != nil {
		d.t.Fatalf("%s: %v", method, call.Err)
	}
	if err := call.Store(results...); err != nil {
		d.t.Fatalf("%s answers %v: %v", method, call.Body, err)
	}
	return ""
}

// ok is call for one that must not fail.
func (d *desktop) ok(path dbus.ObjectPath, method string, args, results []any) {
	d.t.Helper()
	if name := d.call(path, method, args, results); name != "" {
		d.t.Fatalf("%s: %s", method, name)
	}
}

// properties is what a proxy loads first.
func (d *desktop) properties(path dbus.ObjectPath, of string) map[string]dbus.Variant {
	d.t.Helper()
	var all map[string]dbus.Variant
	d.ok(path, propertiesFace+".GetAll", []any{of}, []any{&all})
	return all
}

// types are those of the properties: GLib drops a property of another type.
func types(all map[string]dbus.Variant) map[string]string {
	out := map[string]string{}
	for name, v := range all {
		out[name] = v.Signature().String()
	}
	return out
}

// refresh is what GNOME Software 48 to 51 does for its list of updates
// (plugins/systemd-sysupdate/gs-plugin-systemd-sysupdate.c, refresh_metadata), and what
// Discover 6.4 to 6.7 does (SystemdSysupdateBackend.cpp, checkForUpdatesAsync).
func (d *desktop) refresh() (metainfo, running, offered string) {
	d.t.Helper()
	d.ok(root, "org.freedesktop.DBus.Peer.Ping", nil, nil) // Discover's isValid
	if got := d.properties(root, managerFace); len(got) > 0 {
		d.t.Errorf("the manager has properties: %v", got)
	}
	var targets []listedTarget
	d.ok(root, managerFace+".ListTargets", nil, []any{&targets})
	if len(targets) != 1 || targets[0].Class != "host" {
		d.t.Fatalf("targets %v", targets)
	}
	path := targets[0].Path
	if got := types(d.properties(path, targetFace)); len(got) != 3 || got["Class"] != "s" || got["Name"] != "s" || got["Path"] != "s" {
		d.t.Errorf("a target's properties are %v", got)
	}
	var urls []string
	d.ok(path, targetFace+".GetAppStream", nil, []any{&urls})
	if len(urls) != 1 {
		d.t.Fatalf("metadata at %q: Discover shows no system without", urls)
	}
	u, err := url.Parse(urls[0])
	if err != nil || !strings.HasPrefix(urls[0], "file:///") { // what both take for a file
		d.t.Fatalf("metadata at %s, %v", urls[0], err)
	}
	text, err := os.ReadFile(u.Path)
	if err != nil {
		d.t.Fatal(err)
	}
	d.ok(path, targetFace+".GetVersion", nil, []any{&running})
	d.ok(path, targetFace+".CheckNew", nil, []any{&offered})
	return string(text), running, offered
}

// describe is what GNOME Software reads of a version (describe_cb).
func (d *desktop) describe(version string) (out struct{ Installed, Pending, Partial, Incomplete *bool }) {
	d.t.Helper()
	var text string
	d.ok(hostPath, targetFace+".Describe", []any{version, uint64(0)}, []any{&text})
	if err := json.Unmarshal([]byte(text), &out); err != nil || out.Installed == nil || out.Pending == nil || out.Partial == nil || out.Incomplete == nil {
		d.t.Fatalf("%s, %v", text, err)
	}
	return out
}

// next is the next signal of a name.
func (d *desktop) next(name string) *dbus.Signal {
	d.t.Helper()
	for end := time.After(answersIn); ; {
		select {
		case s := <-d.signals:
			if s.Name == name {
				return s
			}
		case <-end:
			d.t.Fatalf("no %s", name)
		}
	}
}

// stays is a worker that has fetched half of what it will, until it is ended.
const stays = halfwayThere + `; cat >/dev/null`

// TestGNOMESoftware makes the calls of GNOME Software's plugin: those of 48 and 49, which
// Debian 13's and Fedora's releases have, fetch by Update, and those of 51 by Acquire and Install.
func TestGNOMESoftware(t *testing.T) {
	for _, method := range []string{"Update", "Acquire"} {
		w := otadtest.Offering(t, stays)
		_, _, c := putOnBus(t, w)
		d := newDesktop(t, c, dbus.FlagAllowInteractiveAuthorization)
		_, running, offered := d.refresh()
		if running != "7" || offered != "8" {
			t.Fatalf("version %s runs, %s is offered", running, offered)
		}
		if got := d.describe(offered); *got.Installed || *got.Pending || *got.Partial || *got.Incomplete {
			t.Errorf("it is there before it was fetched: %+v", got)
		}
		d.fetches(w, method)
		if method == "Acquire" {
			if name := d.call(hostPath, targetFace+".Install", []any{"", uint64(0)}, []any{new(string), new(uint64), new(dbus.ObjectPath)}); name != "org.freedesktop.sysupdate1.NoCandidate" {
				t.Errorf("Install of what was not fetched: %s", name)
			}
		}
	}
}

// fetches begins a fetch, sees it go on, and cancels it.
func (d *desktop) fetches(w *otadtest.World, method string) {
	d.t.Helper()
	w.Begin(d.t)
	w.Asked()
	var version string
	var id uint64
	var path dbus.ObjectPath
	d.ok(hostPath, targetFace+"."+method, []any{"", uint64(0)}, []any{&version, &id, &path})
	if asked := w.Asked(); len(asked) != 1 || asked[0] != string(polkit.Fetch)+", asking" {
		d.t.Errorf("polkit is asked for %q", asked)
	}
	if got := types(d.properties(path, jobFace)); version != "8" || len(got) != 4 || got["Id"] != "t" || got["Type"] != "s" || got["Offline"] != "b" || got["Progress"] != "u" {
		d.t.Errorf("version %s, a job's properties are %v", version, got)
	}
	s := d.next(propertiesFace + ".PropertiesChanged")
	changed, _ := s.Body[1].(map[string]dbus.Variant)
	if s.Path != path || s.Body[0] != jobFace || changed["Progress"].Value() != uint32(45) {
		d.t.Errorf("%s says %v", s.Path, s.Body)
	}
	var progress dbus.Variant
	d.ok(path, propertiesFace+".Get", []any{jobFace, "Progress"}, []any{&progress}) // Discover's
	if progress.Value() != uint32(45) {
		d.t.Errorf("progress is %v", progress)
	}
	d.ok(path, jobFace+".Cancel", nil, nil)
	if s := d.next(managerFace + ".JobRemoved"); s.Body[0] != id || s.Body[1] != path || s.Body[2] != int32(cancelled) {
		d.t.Errorf("the end of job %d is %v", id, s.Body)
	}
}

// TestDiscover makes the calls of KDE's Discover, which shows a system by its metadata: those of
// the release that is offered are its notes.
func TestDiscover(t *testing.T) {
	w := otadtest.Offering(t, stays)
	_, _, c := putOnBus(t, w)
	d := newDesktop(t, c, dbus.FlagAllowInteractiveAuthorization)
	text, running, offered := d.refresh()
	for end := time.Now().Add(answersIn); !strings.Contains(text, "<release ") && time.Now().Before(end); {
		text, _, _ = d.refresh() // the first check has taken longer than it may
	}
	for _, want := range []string{`<component type="operating-system">`, "<id>os</id>", "<name>An OS &amp; more</name>", `<release version="8" urgency="high">`, " MB", "<p>It is faster.</p>"} {
		if !strings.Contains(text, want) || running != "7" || offered != "8" {
			t.Errorf("%s runs, %s is offered, and %q is not said:\n%s", running, offered, want, text)
		}
	}
	d.fetches(w, "Acquire")
}

// A release that was fetched waits, for one that installs it (GNOME Software's and Discover's
// second step), and is not offered again.
func TestInstall(t *testing.T) {
	w := otadtest.Offering(t, stays)
	_, _, c := putOnBus(t, w)
	d := newDesktop(t, c, dbus.FlagAllowInteractiveAuthorization)
	w.Stage(t, when.Obstacles{})
	text, _, offered := d.refresh()
	if got := d.describe("8"); offered != "" || !*got.Installed || !*got.Pending || *got.Partial {
		t.Errorf("%s is offered, and version 8 is %+v", offered, got)
	}
	if strings.Contains(text, "<release") && !strings.Contains(text, "fetched already") {
		t.Errorf("it is said:\n%s", text)
	}
	var version string
	var id uint64
	var path dbus.ObjectPath
	// The password that Acquire wanted is not wanted once more.
	w.Deny(polkit.Fetch)
	d.ok(hostPath, targetFace+".Install", []any{"", uint64(0)}, []any{&version, &id, &path})
	if got := d.properties(path, jobFace); version != "8" || got["Progress"].Value() != uint32(100) || got["Type"].Value() != "install" {
		t.Errorf("version %s, the job is %v", version, got)
	}
	if w.Idle() != 0 {
		t.Error("the service may end under the job")
	}
	if s := d.next(managerFace + ".JobRemoved"); s.Body[0] != id || s.Body[1] != path || s.Body[2] != int32(0) {
		t.Errorf("the end of job %d is %v", id, s.Body)
	}
	for _, args := range [][]any{{"9", uint64(0)}, {"8", uint64(1)}} {
		if name := d.call(hostPath, targetFace+".Install", args, []any{&version, &id, &path}); name == "" {
			t.Errorf("Install of %v is answered", args)
		}
	}
	w.Deny(polkit.Status)
	if name := d.call(hostPath, targetFace+".Install", []any{"", uint64(0)}, []any{&version, &id, &path}); name == "" {
		t.Error("Install is answered to one who may not see what is fetched")
	}
}

// A caller who may not have the server asked gets what there is, and no more.
func TestMetainfoOfOthers(t *testing.T) {
	w := otadtest.Offering(t, stays)
	_, _, c := putOnBus(t, w)
	w.Deny(polkit.Check)
	var urls []string
	newDesktop(t, c, 0).ok(hostPath, targetFace+".GetAppStream", nil, []any{&urls})
	text, err := os.ReadFile(w.Open().MetainfoFile())
	if err != nil || len(urls) != 1 || !strings.HasSuffix(urls[0], "/run/halogen/update.metainfo.xml") || strings.Contains(string(text), "<release ") {
		t.Errorf("%v, %s, %v", urls, text, err)
	}
}

// A server that does not answer keeps nobody: GNOME Software waits for a second.
func TestMetainfoOfSlowServer(t *testing.T) {
	_, _, c := offered(t, slow)
	var urls []string
	newDesktop(t, c, 0).ok(hostPath, targetFace+".GetAppStream", nil, []any{&urls})
	if len(urls) != 1 {
		t.Errorf("metadata at %q", urls)
	}
}

// Each version is there once, however many places have it.
func TestVersions(t *testing.T) {
	s := &machine.Status{Version: 7, Staged: &statefiles.Staged{Version: 8}, Systems: []inventory.System{
		{Version: "8", Slot: layout.SlotB}, {Version: "7", Slot: layout.SlotA}, {Version: "6"},
	}}
	if got := versions(s, nil); len(got) != 2 || !got[0].Pending || !got[0].Newest || !got[1].Protected || got[1].Newest || got[1].Pending {
		t.Errorf("%+v", got)
	}
	if got := versions(s, &machine.Outcome{Decision: offer.Decision{Verdict: offer.Take, Version: 9}}); len(got) != 3 || got[0].Version != "9" || got[0].Installed || got[1].Newest {
		t.Errorf("%+v", got)
	}
}
