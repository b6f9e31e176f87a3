package systembus

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"halogenos.internal/boot/testkit"
)

// message is one, with a body.
func message(t *testing.T, body ...any) []byte {
	t.Helper()
	m := &dbus.Message{Type: dbus.TypeMethodCall, Body: body, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldPath: dbus.MakeVariant(dbus.ObjectPath("/")), dbus.FieldMember: dbus.MakeVariant("Ask"), dbus.FieldInterface: dbus.MakeVariant("org.example"),
		dbus.FieldSignature: dbus.MakeVariant(dbus.SignatureOf(body...)),
	}}
	var out bytes.Buffer
	if err := m.EncodeTo(&out, binary.LittleEndian); err != nil {
		t.Fatal(err)
	}
	text := out.Bytes()
	binary.LittleEndian.PutUint32(text[8:], 1) // the serial
	return text
}

// What cannot be decoded is passed over, and what comes after it is read.
func TestFilter(t *testing.T) {
	good, bad := message(t, "hello"), message(t, true)
	bad[len(bad)-4] = 2 // neither true nor false
	if !decodable(good) || decodable(bad) {
		t.Fatalf("good is decodable: %v, bad: %v", decodable(good), decodable(bad))
	}
	mine, theirs := net.Pipe()
	f := &filter{Conn: mine}
	go func() {
		_, _ = theirs.Write([]byte("OK 1234\r\n"))
		_, _ = io.ReadFull(theirs, make([]byte, len("BEGIN\r\n")))
		_, _ = theirs.Write(append(append(bytes.Clone(bad), good...), bad...))
		long := []byte("l\x01\x00\x01\x00\x00\x50\x00\x01\x00\x00\x00\x00\x00\x00\x00") // with a body of 5 MiB
		_, _ = theirs.Write(append(long, make([]byte, 5<<20)...))
		_, _ = theirs.Write(good)
		_ = theirs.Close()
	}()
	line := make([]byte, len("OK 1234\r\n"))
	if _, err := io.ReadFull(f, line); err != nil || string(line) != "OK 1234\r\n" {
		t.Fatalf("%q, %v", line, err)
	}
	if _, err := f.Write([]byte("BEGIN\r\n")); err != nil {
		t.Fatal(err)
	}
	all, err := io.ReadAll(f)
	if err != nil || !bytes.Equal(all, append(bytes.Clone(good), good...)) {
		t.Errorf("%d bytes, %v, want %d", len(all), err, 2*len(good))
	}
}

func FuzzMessage(f *testing.F) {
	f.Add([]byte("l\x01\x00\x01\x04\x00\x00\x00\x01\x00\x00\x00\x08\x00\x00\x00\x08\x01g\x00\x01b\x00\x00\x02\x00\x00\x00"))
	f.Add([]byte("B\x01\x00\x01\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := readMessage(bytes.NewReader(text))
		if err != nil {
			return
		}
		if !bytes.HasPrefix(text, m) {
			t.Fatal("a message is not what was read")
		}
		_ = decodable(m) // and nothing ends the process
	})
}

func bus(t *testing.T) string {
	t.Helper()
	program := testkit.Need(t, "dbus-daemon")
	path := filepath.Join(t.TempDir(), "bus")
	c := exec.Command(program, "--session", "--nofork", "--nopidfile", "--address=unix:path="+path)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	for range 200 {
		if conn, err := net.Dial("unix", path); err == nil {
			_ = conn.Close()
			return path
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal("the bus does not come up")
	return ""
}

// The bus gives no descriptor to a connection that has not agreed to take any, and what a
// stranger sends does not end it.
func TestStrangers(t *testing.T) {
	path := bus(t)
	mine, err := Connect(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer mine.Close()
	stranger, err := dbus.Connect("unix:path=" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	object := stranger.Object(mine.Names()[0], "/")
	if err := object.Call("org.example.Ask", 0, dbus.UnixFD(0)).Err; err == nil || !strings.Contains(err.Error(), "file descriptors") {
		t.Errorf("a message with a descriptor: %v", err)
	}
	for _, body := range []any{dbus.UnixFDIndex(5), []dbus.UnixFDIndex{1, 2}, map[string]dbus.UnixFDIndex{"a": 7}, dbus.MakeVariant([]dbus.UnixFDIndex{3})} {
		_ = object.Call("org.example.Ask", 0, body).Err // nobody answers that
	}
	if err := mine.BusObject().Call("org.freedesktop.DBus.Peer.Ping", 0).Err; err != nil || mine.Context().Err() != nil {
		t.Errorf("the connection has ended: %v", err)
	}
}
