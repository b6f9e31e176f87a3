package polkit

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"halogenos.internal/boot/testkit"
	"halogenos.internal/uroot-cmds/ota/systembus"
)

// authority is polkit on a bus: it allows what starts with org.halogenos.update.s.
type authority struct {
	mu        sync.Mutex
	asked     []string
	cancelled []string
	senders   map[dbus.Sender]bool
	silent    chan struct{} // until it is closed, rollback has no answer
}

// CancelCheckAuthorization implements org.freedesktop.PolicyKit1.Authority.
func (a *authority) CancelCheckAuthorization(id string) *dbus.Error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.cancelled = append(a.cancelled, id)
	return nil
}

type answer struct {
	Authorized, Challenge bool
	Details               map[string]string
}

// CheckAuthorization implements org.freedesktop.PolicyKit1.Authority.
func (a *authority) CheckAuthorization(from dbus.Sender, s subject, action string, _ map[string]string, flags uint32, _ string) (answer, *dbus.Error) {
	a.mu.Lock()
	silent := a.silent
	if a.senders == nil {
		a.senders = map[dbus.Sender]bool{}
	}
	a.senders[from] = true
	a.mu.Unlock()
	if silent != nil && action == string(Rollback) {
		<-silent
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked = append(a.asked, fmt.Sprintf("%s %v %s %d", s.Kind, s.Details["uid"].Value(), action, flags))
	return answer{strings.HasPrefix(action, "org.halogenos.update.s"), true, map[string]string{}}, nil
}

func bus(t *testing.T) string {
	t.Helper()
	program := testkit.Need(t, "dbus-daemon")
	address := "unix:path=" + filepath.Join(t.TempDir(), "bus")
	c := exec.Command(program, "--session", "--nofork", "--nopidfile", "--address="+address)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	for range 200 {
		if conn, err := dbus.Connect(address); err == nil {
			_ = conn.Close()
			return address
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal("the bus does not come up")
	return ""
}

func TestAllowed(t *testing.T) {
	address := bus(t)
	p := New(t.Context(), func(ctx context.Context) (*dbus.Conn, error) {
		return systembus.Connect(ctx, strings.TrimPrefix(address, "unix:path="))
	})
	somebody := Caller{UID: 1000, PID: 77, Start: 5}
	// Without polkit only root may do anything.
	if err := p.Allowed(t.Context(), somebody, Status, false); !errors.Is(err, ErrDenied) || !strings.Contains(err.Error(), "cannot be asked") {
		t.Errorf("without polkit: %v", err)
	}
	if err := p.Allowed(t.Context(), Caller{}, Rollback, false); err != nil {
		t.Errorf("root: %v", err)
	}
	a := offer(t, address)
	if err := p.Allowed(t.Context(), somebody, Status, false); err != nil {
		t.Errorf("status: %v", err)
	}
	if err := p.Allowed(t.Context(), somebody, Rollback, true); !errors.Is(err, ErrDenied) || errors.Is(err, ErrPassword) {
		t.Errorf("rollback: %v", err)
	}
	if err := p.Allowed(t.Context(), somebody, Rollback, false); !errors.Is(err, ErrPassword) {
		t.Errorf("rollback, and nobody can be asked: %v", err)
	}
	if err := p.Allowed(t.Context(), Caller{UID: 1000, Bus: ":1.5"}, Status, false); err != nil {
		t.Errorf("by the bus: %v", err)
	}
	want := []string{"unix-process 1000 org.halogenos.update.status 0", "unix-process 1000 org.halogenos.update.rollback 1", "unix-process 1000 org.halogenos.update.rollback 0", "system-bus-name <nil> org.halogenos.update.status 0"}
	if !slices.Equal(a.asked, want) {
		t.Errorf("asked %q\nwant %q", a.asked, want)
	}
}

func offer(t *testing.T, address string) *authority {
	t.Helper()
	conn, err := dbus.Connect(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	a := new(authority)
	if err := conn.Export(a, authorityPath, "org.freedesktop.PolicyKit1.Authority"); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.RequestName(authorityName, 0); err != nil {
		t.Fatal(err)
	}
	return a
}

// Whatever one user asks for takes one connection to the bus, shows one window for a
// password, and leaves room for others. FAULTS 114
func TestFloodOfQuestions(t *testing.T) {
	address := bus(t)
	connections := 0
	p := New(t.Context(), func(ctx context.Context) (*dbus.Conn, error) {
		connections++
		return systembus.Connect(ctx, strings.TrimPrefix(address, "unix:path="))
	})
	a := offer(t, address)
	a.silent = make(chan struct{})
	one, other := Caller{UID: 1000, Bus: ":1.7"}, Caller{UID: 1001, Bus: ":1.8"}
	ctx, leave := context.WithCancel(t.Context())
	var waiting sync.WaitGroup
	for i := range maxOfUser {
		waiting.Go(func() {
			if err := p.Allowed(ctx, one, Rollback, i == 0); !errors.Is(err, context.Canceled) {
				t.Errorf("one who has gone: %v", err)
			}
		})
	}
	for open := 0; open < maxOfUser; time.Sleep(5 * time.Millisecond) {
		p.mu.Lock()
		open = p.users[1000]
		p.mu.Unlock()
	}
	if err := p.Allowed(ctx, one, Status, false); !errors.Is(err, ErrTooMany) || !errors.Is(err, ErrDenied) {
		t.Errorf("one more of the user: %v", err)
	}
	if err := p.Allowed(ctx, other, Status, false); err != nil {
		t.Errorf("another user: %v", err)
	}
	p.mu.Lock()
	asked := p.asked[1000]
	p.mu.Unlock()
	if !asked || !p.begin(1001, true) || p.begin(1001, true) {
		t.Error("a user has two windows for a password, or none")
	}
	p.end(1001, true)
	leave()
	waiting.Wait()
	for told := 0; told < maxOfUser; time.Sleep(5 * time.Millisecond) { // polkit
		a.mu.Lock()
		told = len(a.cancelled)
		a.mu.Unlock()
	}
	close(a.silent)
	if connections != 1 || p.all != 0 || len(p.users) > 0 || len(a.senders) != 1 {
		t.Errorf("%d connections, %d questions open of %v, from %v", connections, p.all, p.users, a.senders)
	}
}

func TestPeer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c, err := Peer(conn)
	if err != nil || int(c.UID) != os.Getuid() || int(c.PID) != os.Getpid() || c.Start == 0 {
		t.Errorf("%+v, %v", c, err)
	}
	proc := t.TempDir()
	for name, text := range map[string]string{"1": "1 (a) b) S " + strings.Repeat("0 ", 18) + "4711 0", "2": "2 (x", "3": "3 (x) S 1"} {
		if err := os.MkdirAll(filepath.Join(proc, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(proc, name, "stat"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := started(proc, 1); n != 4711 || err != nil {
		t.Errorf("a name with parentheses: %d, %v", n, err)
	}
	for pid := int32(2); pid < 5; pid++ {
		if _, err := started(proc, pid); err == nil {
			t.Errorf("process %d: no error", pid)
		}
	}
}

// A process that has ended is not the caller, no matter who has its number then.
func TestPeerHasGone(t *testing.T) {
	ended := exec.Command("true")
	if err := ended.Start(); err != nil {
		t.Fatal(err)
	}
	process, err := unix.PidfdOpen(ended.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(process)
	cred := &unix.Ucred{Pid: int32(os.Getpid()), Uid: uint32(os.Getuid())} // its number is ours now
	if err := ended.Wait(); err != nil {
		t.Fatal(err)
	}
	if _, err := startedBy("/proc", process, cred); err == nil || !strings.Contains(err.Error(), "it has ended") {
		t.Errorf("a process that has ended: %v", err)
	}
	mine, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(mine)
	if start, err := startedBy("/proc", mine, cred); err != nil || start == 0 {
		t.Errorf("%d, %v", start, err)
	}
	cred.Uid += 4711
	if _, err := startedBy("/proc", mine, cred); err == nil || !strings.Contains(err.Error(), "any more") {
		t.Errorf("a process of another user: %v", err)
	}
}

// polkit's file has each action, with texts.
func TestPolicy(t *testing.T) {
	text, err := os.ReadFile("../../../builder/osfiles/files/otad/org.halogenos.update.policy")
	if err != nil {
		t.Fatal(err)
	}
	var have []string
	for _, id := range regexp.MustCompile(`<action id="([^"]+)">\s*<description>[^<]+</description>\s*<message>[^<]+</message>`).FindAllSubmatch(text, -1) {
		have = append(have, string(id[1]))
	}
	var want []string
	for _, a := range Actions() {
		want = append(want, string(a))
	}
	if !slices.Equal(have, want) {
		t.Errorf("the file has %q, want %q", have, want)
	}
}
