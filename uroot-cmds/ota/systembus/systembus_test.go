package systembus

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
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
	long := message(t, strings.Repeat("x", maxMessage))
	mine, theirs := net.Pipe()
	f := &filter{Conn: mine}
	go func() {
		_, _ = theirs.Write([]byte("OK 1234\r\n"))
		_, _ = io.ReadFull(theirs, make([]byte, len("BEGIN\r\n")))
		_, _ = theirs.Write(append(append(bytes.Clone(bad), good...), bad...))
		_, _ = theirs.Write(long)
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

// The bus gives no descriptor to a connection that has not agreed to take any, and what a
// stranger sends does not end it.
func TestStrangers(t *testing.T) {
	path := testkit.Bus(t)
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
	strange(t, path, mine.Names()[0])
	if err := mine.BusObject().Call("org.freedesktop.DBus.Peer.Ping", 0).Err; err != nil || mine.Context().Err() != nil {
		t.Errorf("the connection has ended: %v", err)
	}
}

// strange sends what the bus gives on, and the library closes its connection over: a
// dictionary with keys that it does not know, and a message that is very long.
func strange(t *testing.T, path, to string) {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(c)
	send := func(text []byte) {
		if _, err := c.Write(text); err != nil {
			t.Fatal(err)
		}
	}
	send(fmt.Appendf(nil, "\x00AUTH EXTERNAL %x\r\n", strconv.Itoa(os.Getuid())))
	if line, err := in.ReadString('\n'); err != nil || !strings.HasPrefix(line, "OK ") {
		t.Fatalf("%s, %v", line, err)
	}
	send([]byte("BEGIN\r\n"))
	call := func(member, to string, body ...any) []byte {
		m := &dbus.Message{Type: dbus.TypeMethodCall, Body: body, Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldPath: dbus.MakeVariant(dbus.ObjectPath("/")), dbus.FieldMember: dbus.MakeVariant(member), dbus.FieldDestination: dbus.MakeVariant(to),
		}}
		if len(body) > 0 {
			m.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(body...))
		}
		var out bytes.Buffer
		if err := m.EncodeTo(&out, binary.LittleEndian); err != nil {
			t.Fatal(err)
		}
		binary.LittleEndian.PutUint32(out.Bytes()[8:], 7)
		return out.Bytes()
	}
	send(call("Hello", "org.freedesktop.DBus"))
	keys := call("Ask", to, map[uint32]string{1: "x"})
	if !bytes.Contains(keys, []byte("a{us}")) {
		t.Fatal("the message has another signature")
	}
	keys = bytes.Replace(keys, []byte("a{us}"), []byte("a{bs}"), 1)
	if decodable(keys) {
		t.Error("the library can decode a dictionary with booleans as keys: it needs no filter")
	}
	send(keys)
	send(call("Ask", to, strings.Repeat("x", maxMessage+1)))
	// What comes after them has arrived only when they have.
	send(call("Ask", to, "hello"))
	for {
		head := make([]byte, 16)
		if _, err := io.ReadFull(in, head); err != nil {
			t.Fatalf("nobody answers the last message: %v", err)
		}
		fields := (binary.LittleEndian.Uint32(head[12:]) + 7) / 8 * 8
		if _, err := io.CopyN(io.Discard, in, int64(fields)+int64(binary.LittleEndian.Uint32(head[4:]))); err != nil {
			t.Fatal(err)
		}
		if head[1] == byte(dbus.TypeError) {
			return // there is no object that could be asked
		}
	}
}

// A bus that lets nobody in is not waited for without end.
func TestSilentBus(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bus")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := connect(t.Context(), path, 50*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a bus that says nothing: %v", err)
	}
}
