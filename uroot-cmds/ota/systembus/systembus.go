// Package systembus connects to D-Bus.
//
// It refuses to take descriptors from others on the bus, and passes over messages that the
// library cannot decode: anyone who is on the bus may send them.
package systembus

import (
	"context"
	"errors"
	"io"
	"net"
	"time"

	"github.com/godbus/dbus/v5"
)

// systemBus is the socket of the system bus (D-Bus Specification 0.43, "Well-known message
// bus instances", and where every distribution has it since /var/run is /run).
const systemBus = "/run/dbus/system_bus_socket"

// patience bounds how long a bus may take to let somebody in.
const patience = 20 * time.Second

// Connect connects to the bus at a socket, empty for the system's, for as long as ctx
// lives. It does not agree to take descriptors, which it never needs, and the library's
// decoder ends the process over some messages that hold one.
func Connect(ctx context.Context, socket string) (*dbus.Conn, error) {
	return connect(ctx, socket, patience)
}

func connect(ctx context.Context, socket string, patience time.Duration) (*dbus.Conn, error) {
	if socket == "" {
		socket = systemBus
	}
	until := time.Now().Add(patience)
	c, err := (&net.Dialer{Deadline: until}).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	if err := c.SetDeadline(until); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	bus, err := dbus.NewConn(struct{ io.ReadWriteCloser }{&filter{Conn: c}}, dbus.WithContext(ctx))
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	if err = bus.Auth(nil); err == nil {
		err = bus.Hello()
	}
	if err == nil {
		err = c.SetDeadline(time.Time{})
	}
	if err != nil {
		return nil, errors.Join(err, bus.Close())
	}
	return bus, nil
}
