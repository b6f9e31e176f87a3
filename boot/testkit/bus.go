package testkit

import (
	"net"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// Bus starts a D-Bus of the test's own, by Debian's dbus-daemon, and returns its socket.
func Bus(t testing.TB) (socket string) {
	t.Helper()
	program := Need(t, "dbus-daemon")
	socket = filepath.Join(t.TempDir(), "bus")
	c := exec.Command(program, "--session", "--nofork", "--nopidfile", "--address=unix:path="+socket)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	for range 1000 {
		if conn, err := net.Dial("unix", socket); err == nil {
			_ = conn.Close()
			return socket
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the bus does not come up")
	return ""
}
