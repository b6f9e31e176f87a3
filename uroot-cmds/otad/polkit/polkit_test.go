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
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"halogenos.internal/uroot-cmds/ota/systembus"
)

// authority is polkit on a bus: it allows what starts with org.halogenos.update.s.
type authority struct{ asked []string }

type answer struct {
	Authorized, Challenge bool
	Details               map[string]string
}

// CheckAuthorization implements org.freedesktop.PolicyKit1.Authority.
func (a *authority) CheckAuthorization(s subject, action string, _ map[string]string, flags uint32, _ string) (answer, *dbus.Error) {
	a.asked = append(a.asked, fmt.Sprintf("%s %v %s %d", s.Kind, s.Details["uid"].Value(), action, flags))
	return answer{strings.HasPrefix(action, "org.halogenos.update.s"), true, map[string]string{}}, nil
}

func bus(t *testing.T) string {
	t.Helper()
	program, err := exec.LookPath("dbus-daemon")
	if err != nil {
		t.Skip("no dbus-daemon is installed to ask by")
	}
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
	p := Polkit{Connect: func(ctx context.Context) (*dbus.Conn, error) {
		return systembus.Connect(ctx, strings.TrimPrefix(address, "unix:path="))
	}}
	somebody := Caller{UID: 1000, PID: 77, Start: 5}
	// Without polkit only root may do anything.
	if err := p.Allowed(t.Context(), somebody, Status, false); !errors.Is(err, ErrDenied) || !strings.Contains(err.Error(), "cannot be asked") {
		t.Errorf("without polkit: %v", err)
	}
	if err := p.Allowed(t.Context(), Caller{}, Rollback, false); err != nil {
		t.Errorf("root: %v", err)
	}
	conn, err := dbus.Connect(address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	a := new(authority)
	if err := conn.Export(a, authorityPath, "org.freedesktop.PolicyKit1.Authority"); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.RequestName(authorityName, 0); err != nil {
		t.Fatal(err)
	}
	if err := p.Allowed(t.Context(), somebody, Status, false); err != nil {
		t.Errorf("status: %v", err)
	}
	if err := p.Allowed(t.Context(), somebody, Rollback, true); !errors.Is(err, ErrDenied) {
		t.Errorf("rollback: %v", err)
	}
	if err := p.Allowed(t.Context(), Caller{UID: 1000, Bus: ":1.5"}, Status, false); err != nil {
		t.Errorf("by the bus: %v", err)
	}
	want := []string{"unix-process 1000 org.halogenos.update.status 0", "unix-process 1000 org.halogenos.update.rollback 1", "system-bus-name <nil> org.halogenos.update.status 0"}
	if !slices.Equal(a.asked, want) {
		t.Errorf("asked %q\nwant %q", a.asked, want)
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
