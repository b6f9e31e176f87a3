package main

import (
	"bytes"
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

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
