// Package polkit asks polkit whether a caller may do something.
//
// It refuses where polkit cannot be asked: only root is above it.
package polkit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// An Action is one that the file org.halogenos.update.policy describes.
type Action string

// The actions.
const (
	Status    Action = "org.halogenos.update.status"
	Check     Action = "org.halogenos.update.check"
	Fetch     Action = "org.halogenos.update.fetch"
	Rollback  Action = "org.halogenos.update.rollback"
	Configure Action = "org.halogenos.update.configure"
	Restart   Action = "org.halogenos.update.restart"
)

// Actions returns all of them.
func Actions() []Action { return []Action{Status, Check, Fetch, Rollback, Configure, Restart} }

// A Caller is whoever wants something. UID alone says who is root.
type Caller struct {
	UID uint32
	// PID and Start are those of a process that is connected to a socket.
	PID   int32
	Start uint64 // clock ticks from boot on, so that another process with its number is none
	// Bus is the unique name of one that calls by D-Bus; then there is no PID.
	Bus string
}

// ErrDenied says that the caller may not do it.
var ErrDenied = errors.New("polkit does not allow it")

// Peer is the caller at the other end of a socket, as the kernel says.
func Peer(conn *net.UnixConn) (Caller, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return Caller{}, err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(err, credErr); err != nil {
		return Caller{}, fmt.Errorf("who is at the other end of the socket: %w", err)
	}
	c := Caller{UID: cred.Uid, PID: cred.Pid}
	c.Start, err = started("/proc", cred.Pid)
	if err != nil && c.UID != 0 {
		return Caller{}, fmt.Errorf("process %d: %w", cred.Pid, err)
	}
	return c, nil
}

// started reads when a process was (proc_pid_stat(5), field 22). Its name, which may hold
// anything, ends at the last parenthesis.
func started(proc string, pid int32) (uint64, error) {
	text, err := os.ReadFile(fmt.Sprintf("%s/%d/stat", proc, pid))
	if err != nil {
		return 0, err
	}
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	const startTime = 22 - 3 // the state, field 3, is the first
	if len(fields) <= startTime {
		return 0, errors.New("its stat cannot be read")
	}
	return strconv.ParseUint(string(fields[startTime]), 10, 64)
}

// Polkit is polkit on a bus.
type Polkit struct {
	// Connect gives a connection that the caller closes.
	Connect func(ctx context.Context) (*dbus.Conn, error)
}

// patience bounds how long an answer is waited for, and how long somebody who is asked
// for a password may take.
const (
	patience        = 25 * time.Second
	patiencePerson  = 3 * time.Minute
	allowAsking     = 1 // CheckAuthorizationFlags: AllowUserInteraction
	authorityName   = "org.freedesktop.PolicyKit1"
	authorityPath   = "/org/freedesktop/PolicyKit1/Authority"
	authorityMethod = "org.freedesktop.PolicyKit1.Authority.CheckAuthorization"
)

type subject struct {
	Kind    string
	Details map[string]dbus.Variant
}

func (c Caller) subject() subject {
	if c.Bus != "" {
		return subject{"system-bus-name", map[string]dbus.Variant{"name": dbus.MakeVariant(c.Bus)}}
	}
	return subject{"unix-process", map[string]dbus.Variant{
		"pid": dbus.MakeVariant(uint32(c.PID)), "start-time": dbus.MakeVariant(c.Start), "uid": dbus.MakeVariant(int32(c.UID)),
	}}
}

// Allowed returns an error unless the caller may do it. asking: somebody waits who can be
// asked for a password.
func (p Polkit) Allowed(ctx context.Context, c Caller, a Action, asking bool) error {
	if c.UID == 0 {
		return nil
	}
	limit, flags := patience, uint32(0)
	if asking {
		limit, flags = patiencePerson, allowAsking
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	bus, err := p.Connect(ctx)
	if err != nil {
		return fmt.Errorf("%w: it cannot be asked: %w", ErrDenied, err)
	}
	defer bus.Close()
	var answer struct {
		Authorized, Challenge bool
		Details               map[string]string
	}
	call := bus.Object(authorityName, authorityPath).CallWithContext(ctx, authorityMethod, 0, c.subject(), string(a), map[string]string{}, flags, "")
	if err := call.Store(&answer); err != nil {
		return fmt.Errorf("%w: it cannot be asked: %w", ErrDenied, err)
	}
	if !answer.Authorized {
		return fmt.Errorf("%w: %s", ErrDenied, a)
	}
	return nil
}
