package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"halogenos.internal/boot/testkit"
	"halogenos.internal/uroot-cmds/otad/bus"
	"halogenos.internal/uroot-cmds/otad/otadtest"
)

func TestUse(t *testing.T) {
	for args, want := range map[string]struct {
		code     int
		out, err string
	}{
		"--help":                            {0, "usage: otad", ""},
		"--version":                         {0, "otad unknown\n", ""},
		"--colour":                          {2, "", "usage: otad"},
		"now":                               {2, "", "usage: otad"},
		"--bus none":                        {1, "", "no socket was handed over"},
		"--bus none --socket /nowhere/otad": {1, "", "no such file"},
	} {
		var out, errs bytes.Buffer
		code := run(strings.Fields(args), nil, &out, &errs)
		if code != want.code || !strings.Contains(out.String(), want.out) || !strings.Contains(errs.String(), want.err) {
			t.Errorf("otad %s: %d\n%s%s", args, code, out.String(), errs.String())
		}
	}
}

// It ends when nobody has asked for long enough, and not while a caller is there.
func TestIdle(t *testing.T) {
	w := otadtest.New(t, "exit 1")
	path := filepath.Join(t.TempDir(), "otad")
	var errs bytes.Buffer
	done := make(chan error, 1)
	go func() {
		done <- serve(context.Background(), options{socket: path, bus: "none", idle: 300 * time.Millisecond}, w.Open, &errs)
	}()
	var conn net.Conn
	for range 200 {
		var err error
		if conn, err = net.Dial("unix", path); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if conn == nil {
		t.Fatal("nobody listens")
	}
	select {
	case err := <-done:
		t.Fatalf("it has ended, with a caller: %v", err)
	case <-time.After(time.Second):
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if err != nil || errs.Len() > 0 {
			t.Errorf("%v\n%s", err, errs.String())
		}
	case <-time.After(10 * time.Second):
		t.Error("it does not end")
	}
}

// startBus starts a bus at a path, and returns what ends it.
func startBus(t *testing.T, path string) (stop func()) {
	t.Helper()
	program := testkit.Need(t, "dbus-daemon")
	c := exec.Command(program, "--session", "--nofork", "--nopidfile", "--address=unix:path="+path)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(func() { _ = c.Process.Kill(); _ = c.Wait() })
	t.Cleanup(stop)
	until(t, "the bus comes up", func() bool {
		conn, err := net.Dial("unix", path)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})
	return stop
}

func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for range 1000 {
		if is() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("not so: %s", what)
}

func dial(t *testing.T, path string) *dbus.Conn {
	t.Helper()
	c, err := dbus.Connect("unix:path=" + path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

const host = "/org/freedesktop/sysupdate1/target/host"

// owned reports whether otad is on the bus.
func owned(c *dbus.Conn) bool {
	var has bool
	return c.BusObject().Call("org.freedesktop.DBus.NameHasOwner", 0, bus.Name).Store(&has) == nil && has
}

// It does not end under a caller by D-Bus, and says so when it does, so that the next one
// is not lost.
func TestIdleOnBus(t *testing.T) {
	testkit.Root(t, "without polkit only root may ask for what takes long")
	path := filepath.Join(t.TempDir(), "bus")
	startBus(t, path)
	told, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer told.Close()
	t.Setenv("NOTIFY_SOCKET", told.LocalAddr().String())
	w := otadtest.New(t, "sleep 2; exit 1")
	var errs bytes.Buffer
	done := make(chan error, 1)
	go func() {
		done <- serve(context.Background(), options{socket: filepath.Join(t.TempDir(), "otad"), bus: path, idle: 300 * time.Millisecond}, w.Open, &errs)
	}()
	client := dial(t, path)
	object := client.Object(bus.Name, host)
	until(t, "otad is on the bus", func() bool { return owned(client) })
	if err := object.Call(bus.Name+".Target.CheckNew", 0).Err; err == nil || !strings.Contains(err.Error(), "worker ended") {
		t.Errorf("a check that takes two seconds: %v", err)
	}
	select {
	case err := <-done:
		if err != nil || errs.Len() > 0 {
			t.Errorf("%v\n%s", err, errs.String())
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it does not end")
	}
	state := make([]byte, 100)
	if err := told.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := told.Read(state); err != nil || string(state[:n]) != "STOPPING=1" {
		t.Errorf("systemd is told %q, %v", state[:n], err)
	}
	if owned(client) {
		t.Error("the name is still taken")
	}
}

// A bus that ends and comes back has it again.
func TestBusComesBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bus")
	stop := startBus(t, path)
	w := otadtest.New(t, "exit 1")
	ctx, cancel := context.WithCancel(context.Background())
	var errs bytes.Buffer
	done := make(chan error, 1)
	go func() {
		done <- serve(ctx, options{socket: filepath.Join(t.TempDir(), "otad"), bus: path}, w.Open, &errs)
	}()
	first := dial(t, path)
	until(t, "otad is on the bus", func() bool { return owned(first) })
	stop()
	startBus(t, path)
	again := dial(t, path)
	until(t, "otad is on the bus again", func() bool { return owned(again) })
	var version string
	if err := again.Object(bus.Name, host).Call(bus.Name+".Target.GetVersion", 0).Store(&version); os.Getuid() == 0 && version != "7" {
		t.Errorf("version %s, %v", version, err)
	}
	cancel()
	if err := <-done; err != nil || errs.Len() > 0 {
		t.Errorf("%v\n%s", err, errs.String())
	}
}
