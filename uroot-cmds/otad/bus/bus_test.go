package bus

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"halogenos.internal/boot/testkit"
	"halogenos.internal/uroot-cmds/ota/fetch"
	"halogenos.internal/uroot-cmds/ota/machine"
	"halogenos.internal/uroot-cmds/otad/otadtest"
	"halogenos.internal/uroot-cmds/otad/polkit"
	"halogenos.internal/uroot-cmds/otad/service"
)

// offered is a bus with a world on it, and a client's connection.
func offered(t *testing.T, work string) (*otadtest.World, string, *dbus.Conn) {
	t.Helper()
	w, address, _, client := onBus(t, work)
	return w, address, client
}

// offeredOn is the same with the service's own connection.
func offeredOn(t *testing.T, work string) (w *otadtest.World, mine, client *dbus.Conn) {
	t.Helper()
	w, _, mine, client = onBus(t, work)
	return w, mine, client
}

func onBus(t *testing.T, work string) (*otadtest.World, string, *dbus.Conn, *dbus.Conn) {
	t.Helper()
	w := otadtest.New(t, work)
	address, mine, client := putOnBus(t, w)
	return w, address, mine, client
}

func putOnBus(t *testing.T, w *otadtest.World) (address string, mine, client *dbus.Conn) {
	t.Helper()
	program := testkit.Need(t, "dbus-daemon")
	address = "unix:path=" + filepath.Join(t.TempDir(), "bus")
	c := exec.Command(program, "--session", "--nofork", "--nopidfile", "--address="+address)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	var conns []*dbus.Conn
	for range 400 {
		conn, err := dbus.Connect(address)
		if err == nil {
			t.Cleanup(func() { _ = conn.Close() })
			conns = append(conns, conn)
		}
		if len(conns) == 2 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if len(conns) != 2 {
		t.Fatal("the bus does not come up")
	}
	if _, err := Offer(conns[0], w.Service, w); err != nil {
		t.Fatal(err)
	}
	return address, conns[0], conns[1]
}

const slow = "read request; cat >/dev/null"

func TestMethods(t *testing.T) {
	w, _, c := offered(t, "exit 1")
	manager, host := c.Object(Name, root), c.Object(Name, hostPath)
	var targets []listedTarget
	if err := manager.Call(managerFace+".ListTargets", 0).Store(&targets); err != nil || len(targets) != 1 || targets[0] != (listedTarget{"host", "host", hostPath}) {
		t.Errorf("%v, %v", targets, err)
	}
	var jobs []listedJob
	if err := manager.Call(managerFace+".ListJobs", 0).Store(&jobs); err != nil || len(jobs) > 0 {
		t.Errorf("%v, %v", jobs, err)
	}
	var version string
	if err := host.Call(targetFace+".GetVersion", 0).Store(&version); err != nil || version != "7" {
		t.Errorf("version %s, %v", version, err)
	}
	var versions []string
	if err := host.Call(targetFace+".List", 0, uint64(flagOffline)).Store(&versions); err != nil || len(versions) != 1 || versions[0] != "7" {
		t.Errorf("%v, %v", versions, err)
	}
	var text string
	var d described
	if err := host.Call(targetFace+".Describe", 0, "7", uint64(flagOffline)).Store(&text); err != nil || json.Unmarshal([]byte(text), &d) != nil || !d.Installed || !d.Protected || !d.Newest || d.Pending {
		t.Errorf("%s, %v", text, err)
	}
	if err := host.Call(targetFace+".Describe", 0, "8", uint64(flagOffline)).Store(&text); err == nil || !strings.Contains(err.Error(), "neither here nor offered") {
		t.Errorf("version 8: %v", err)
	}
	if err := host.Call(targetFace+".CheckNew", 0).Store(&text); err == nil || !strings.Contains(err.Error(), "worker ended") {
		t.Errorf("check: %v", err)
	}
	if v, err := host.GetProperty(targetFace + ".Class"); err != nil || v.Value() != "host" {
		t.Errorf("class %v, %v", v, err)
	}
	w.Deny(polkit.Actions()...)
	w.Asked()
	for method, args := range map[string][]any{"CheckNew": nil, "List": {uint64(0)}, "Describe": {"7", uint64(0)}, "Update": {"", uint64(0)}, "Vacuum": nil} {
		err := ask(c, method, args...)
		if err == nil || !strings.Contains(err.Error(), "polkit does not allow it") {
			t.Errorf("%s without rights: %v", method, err)
		}
		if asked := w.Asked(); len(asked) != 1 || !strings.HasSuffix(asked[0], ", asking") {
			t.Errorf("%s asked for %q", method, asked)
		}
	}
}

// ask calls a method of the target's, and says that somebody waits who can be asked.
func ask(c *dbus.Conn, method string, args ...any) error {
	msg := &dbus.Message{Type: dbus.TypeMethodCall, Flags: dbus.FlagAllowInteractiveAuthorization, Body: args, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldPath: dbus.MakeVariant(hostPath), dbus.FieldDestination: dbus.MakeVariant(Name), dbus.FieldMember: dbus.MakeVariant(method), dbus.FieldInterface: dbus.MakeVariant(targetFace),
	}}
	if len(args) > 0 {
		msg.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(args...))
	}
	return (<-c.Send(msg, make(chan *dbus.Call, 1)).Done).Err
}

// A fetch is a job, which tells its end.
func TestJob(t *testing.T) {
	w, _, c := offered(t, slow)
	if err := c.AddMatchSignal(dbus.WithMatchInterface(managerFace)); err != nil {
		t.Fatal(err)
	}
	signals := make(chan *dbus.Signal, 10)
	c.Signal(signals)
	j, err := w.Fetch(service.Wish{Now: true})
	if err != nil {
		t.Fatal(err)
	}
	var jobs []listedJob
	if err := c.Object(Name, root).Call(managerFace+".ListJobs", 0).Store(&jobs); err != nil || len(jobs) != 1 || jobs[0].Path != jobPath(j.ID) {
		t.Fatalf("%v, %v", jobs, err)
	}
	object := c.Object(Name, jobs[0].Path)
	if v, err := object.GetProperty(jobFace + ".Progress"); err != nil || v.Value() != uint32(0) {
		t.Errorf("progress %v, %v", v, err)
	}
	var text string
	if err := object.Call("org.freedesktop.DBus.Introspectable.Introspect", 0).Store(&text); err != nil || !strings.Contains(text, "Cancel") {
		t.Errorf("%s, %v", text, err)
	}
	if err := object.SetProperty(jobFace+".Progress", uint32(7)); err == nil {
		t.Error("anybody sets the progress")
	}
	if err := object.Call(jobFace+".Cancel", 0).Err; err != nil {
		t.Fatal(err)
	}
	select {
	case s := <-signals:
		if s.Name != managerFace+".JobRemoved" || s.Body[0] != j.ID || s.Body[2] != int32(cancelled) {
			t.Errorf("%s %v", s.Name, s.Body)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("nobody says that the job has ended")
	}
	if err := object.Call(jobFace+".Cancel", 0).Err; err == nil {
		t.Error("the job is still there")
	}
}

// halfwayThere says that half of what is to be fetched is there.
const halfwayThere = `echo '{"measured":{"bytes":100}}'; echo '{"progress":{"phase":"fetching","done":1,"total":2,"fetched":50}}'`

// halfway is a worker that has fetched half of what it will, and fails.
const halfway = halfwayThere + `; [ ! -e "$(dirname "$0")/slowly" ] || sleep 1; exit 1`

// A fetch goes on when the bus ends, and one that begins then is none the worse; and
// anyone who looks at the objects while jobs come and go ends nothing.
func TestBusEnds(t *testing.T) {
	w, mine, c := offeredOn(t, halfway)
	looking := make(chan bool)
	go func() {
		defer close(looking)
		for _, path := range []dbus.ObjectPath{"/", root, jobsPath, hostPath} {
			for range 50 {
				if err := c.Object(Name, path).Call("org.freedesktop.DBus.Introspectable.Introspect", 0).Err; err != nil {
					t.Errorf("%s: %v", path, err)
					return
				}
			}
		}
	}()
	for range 50 {
		j, err := w.Fetch(service.Wish{Now: true})
		if err != nil {
			t.Fatal(err)
		}
		<-j.Done
	}
	<-looking
	if err := mine.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(w.Dir, "slowly"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	j, err := w.Fetch(service.Wish{Now: true})
	if err != nil {
		t.Fatal(err)
	}
	<-j.Done
	if p := percent(j.Progress()); p != 45 {
		t.Errorf("%d %%, and so nothing was told of it: %+v", p, j.Progress())
	}
}

// One user's calls are bounded, and keep nobody else out. FAULTS 114
func TestFloodOfCalls(t *testing.T) {
	b := &Bus{calls: map[uint32]int{}}
	for i := range maxOfUser {
		if !b.count(1000, 1) {
			t.Fatalf("call %d is refused", i)
		}
	}
	if b.count(1000, 1) || !b.count(1001, 1) || !b.count(0, 1) {
		t.Error("one more of the user comes in, or another user or root does not")
	}
	if b.count(1000, -1); !b.count(1000, 1) {
		t.Error("one has ended, and another does not come in")
	}
	for i := range maxNew {
		if !b.count(nobody, 1) {
			t.Fatalf("call %d of somebody who is not known yet is refused", i)
		}
	}
	if b.count(nobody, 1) {
		t.Error("calls of those who are not known have no end")
	}
}

// A desktop that fetches by itself minds the owner's rules of when; both fetch what was
// asked for.
func TestWish(t *testing.T) {
	for flags, now := range map[dbus.Flags]bool{0: false, dbus.FlagAllowInteractiveAuthorization: true} {
		if got := wish(dbus.Message{Flags: flags}, 8); got != (service.Wish{Version: 8, Now: now, Once: true}) {
			t.Errorf("flags %d: %+v", flags, got)
		}
	}
}

func TestPercent(t *testing.T) {
	total := int64(1000)
	of := func(phase fetch.Phase, done, all, fetched int64, sum *int64) machine.Progress {
		return machine.Progress{Progress: fetch.Progress{Phase: phase, Done: done, Total: all, Fetched: fetched}, FetchTotal: sum}
	}
	for _, c := range []struct {
		p    machine.Progress
		want uint32
	}{
		{machine.Progress{}, 0}, {of(fetch.Fetching, 1, 2, 500, &total), 45}, {of(fetch.Fetching, 1, 2, 5000, &total), 90},
		{of(fetch.Fetching, 1, 2, 500, nil), 0}, {of(fetch.Verifying, 5, 10, 0, nil), 95}, {of(fetch.Verifying, 10, 10, 1000, &total), 100}, {of(fetch.Verifying, 0, 0, 0, nil), 90},
	} {
		if got := percent(c.p); got != c.want {
			t.Errorf("%+v is %d %%, want %d", c.p, got, c.want)
		}
	}
}

// systemd's own client calls it.
func TestBusctl(t *testing.T) {
	testkit.Need(t, "busctl")
	_, address, _ := offered(t, "exit 1")
	busctl := func(args ...string) string {
		cmd := exec.Command("busctl", append([]string{"--address=" + address}, args...)...)
		cmd.Env = append(os.Environ(), "SYSTEMD_COLORS=0")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("busctl %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	for want, args := range map[string][]string{
		`a(sso) 1 "host" "host" "/org/freedesktop/sysupdate1/target/host"`: {"call", Name, string(root), managerFace, "ListTargets"},
		`s "7"`:       {"call", Name, string(hostPath), targetFace, "GetVersion"},
		`s "host"`:    {"get-property", Name, string(hostPath), targetFace, "Class"},
		".CheckNew":   {"introspect", Name, string(hostPath)},
		".JobRemoved": {"introspect", Name, string(root)},
	} {
		if out := busctl(args...); !strings.Contains(out, want) {
			t.Errorf("busctl %v says %s nowhere:\n%s", args, want, out)
		}
	}
}

// The bus itself, with the file that an image has, lets everybody call the service, and
// root alone be it.
func TestBusPolicy(t *testing.T) {
	testkit.Root(t, "only root can be another user")
	send, daemon := testkit.Need(t, "dbus-send"), testkit.Need(t, "dbus-daemon")
	policy, err := filepath.Abs("../../../builder/osfiles/files/otad/dbus.conf")
	if err != nil {
		t.Fatal(err)
	}
	// Another user gets to it.
	directory, err := os.MkdirTemp("/tmp", "bus")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(directory) })
	if err := os.Chmod(directory, 0o755); err != nil {
		t.Fatal(err)
	}
	address := "unix:path=" + filepath.Join(directory, "bus")
	config := filepath.Join(directory, "bus.conf")
	text := `<busconfig><type>system</type><listen>` + address + `</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><deny own="*"/><deny send_type="method_call"/><allow send_type="signal"/>
<allow send_requested_reply="true" send_type="method_return"/><allow send_requested_reply="true" send_type="error"/>
<allow receive_type="method_call"/><allow receive_type="method_return"/><allow receive_type="error"/><allow receive_type="signal"/>
<allow send_destination="org.freedesktop.DBus"/></policy><include>` + policy + `</include></busconfig>`
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	c := exec.Command(daemon, "--config-file="+config, "--nofork", "--nopidfile")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	var mine *dbus.Conn
	for range 400 {
		if mine, err = dbus.Connect(address); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer mine.Close()
	w := otadtest.New(t, "exit 1")
	if _, err := Offer(mine, w.Service, w); err != nil {
		t.Fatal(err)
	}
	other := func(to string, args ...string) string {
		c := exec.Command(send, append([]string{"--bus=" + address, "--print-reply", "--dest=" + to}, args...)...)
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, _ := c.CombinedOutput()
		return string(out)
	}
	for _, call := range []struct{ to, path, method, arg, want string }{
		{Name, string(root), managerFace + ".ListTargets", "", "/org/freedesktop/sysupdate1/target/host"},
		{Name, string(hostPath), targetFace + ".GetVersion", "", `"7"`},
		{Name, string(hostPath), "org.freedesktop.DBus.Introspectable.Introspect", "", "CheckNew"},
		{Name, string(hostPath), "org.example.Ask", "", "AccessDenied"},
		{"org.freedesktop.DBus", "/", "org.freedesktop.DBus.RequestName", "string:" + Name, "AccessDenied"},
	} {
		args := []string{call.path, call.method}
		if call.arg != "" {
			args = append(args, call.arg, "uint32:3")
		}
		if out := other(call.to, args...); !strings.Contains(out, call.want) {
			t.Errorf("%s says %s nowhere:\n%s", call.method, call.want, out)
		}
	}
}
