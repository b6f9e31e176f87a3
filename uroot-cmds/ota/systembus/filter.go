package systembus

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"

	"github.com/godbus/dbus/v5"
)

// Bounds of a message in bytes.
const (
	maxMessage = 4 << 20   // more is passed over
	maxOfBus   = 128 << 20 // what a bus gives on at most (D-Bus Specification 0.43, "Message Format")
)

// A filter is a connection to a bus that gives on only what the library can decode, and
// nothing that is very long. The library closes a connection, and with some messages ends
// the process, over what it cannot, and anybody on the bus may send any message.
type filter struct {
	net.Conn
	begun atomic.Bool // what is read are messages, and no lines of the authentication
	rest  []byte      // of a message
}

// Write implements io.Writer. Nothing is sent to a client between the answer to its
// authentication and BEGIN (D-Bus Specification 0.43, "Authentication Protocol").
func (f *filter) Write(p []byte) (int, error) {
	if bytes.Equal(p, []byte("BEGIN\r\n")) {
		f.begun.Store(true)
	}
	return f.Conn.Write(p)
}

// Read implements io.Reader.
func (f *filter) Read(p []byte) (int, error) {
	if !f.begun.Load() {
		return f.Conn.Read(p)
	}
	for len(f.rest) == 0 {
		message, err := readMessage(f.Conn)
		if err != nil {
			return 0, err
		}
		if message != nil && decodable(message) {
			f.rest = message
		}
	}
	n := copy(p, f.rest)
	f.rest = f.rest[n:]
	return n, nil
}

// readMessage reads one whole message (D-Bus Specification 0.43, "Message Format"): a
// header of 16 bytes, with the length of the body and of the header's fields, which are
// padded to 8 bytes. One that is too long is nil: the bus lets anybody send it.
func readMessage(r io.Reader) ([]byte, error) {
	head := make([]byte, 16)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	var order binary.ByteOrder = binary.LittleEndian
	switch head[0] {
	case 'l':
	case 'B':
		order = binary.BigEndian
	default:
		return nil, errors.New("message from the bus has no byte order")
	}
	body, fields := int64(order.Uint32(head[4:])), int64(order.Uint32(head[12:]))
	switch rest := (fields+7)/8*8 + body; {
	case rest > maxOfBus:
		return nil, fmt.Errorf("message from the bus has %d bytes, more than %d", rest, int64(maxOfBus))
	case rest > maxMessage:
		_, err := io.CopyN(io.Discard, r, rest)
		return nil, err
	default:
		message := append(head, make([]byte, rest)...)
		_, err := io.ReadFull(r, message[len(head):])
		return message, err
	}
}

// decodable reports whether the library can read a message.
func decodable(message []byte) (ok bool) {
	defer func() {
		if recover() != nil {
			ok = false
		}
	}()
	_, err := dbus.DecodeMessage(bytes.NewReader(message))
	return err == nil
}
