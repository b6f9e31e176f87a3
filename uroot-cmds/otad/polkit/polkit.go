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
	"slices"
	"strconv"
	"strings"
	"sync"
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

// Those of systemd-logind's that it asks about anyone who restarts a machine, and not about
// root, who does so here for somebody else (org.freedesktop.login1(5)).
const (
	Reboot          Action = "org.freedesktop.login1.reboot"
	RebootOthers    Action = "org.freedesktop.login1.reboot-multiple-sessions"
	RebootInhibited Action = "org.freedesktop.login1.reboot-ignore-inhibit"
)

// Actions returns all of ours.
func Actions() []Action { return []Action{Status, Check, Fetch, Rollback, Configure, Restart} }

// A Caller is who wants something. UID alone says who is root.
type Caller struct {
	UID uint32
	// PID and Start are those of a process that is connected to a socket.
	PID   int32
	Start uint64 // clock ticks from boot on, so that another process with its number is none
	// Bus is the unique name of one that calls by D-Bus; then there is no PID.
	Bus string
}

var (
	// ErrDenied says that the caller may not do it.
	ErrDenied = errors.New("polkit does not allow it")
	// ErrPassword is an ErrDenied of one who may do it with a password.
	ErrPassword = errors.New("it needs a password, and the call does not say that somebody can be asked for one")
	// ErrTooMany is an ErrDenied of one about whom polkit is asked too much already.
	ErrTooMany = errors.New("too many questions to polkit are open")
)

// Peer is the caller at the other end of a socket, as the kernel says. The process is
// held by a descriptor while it is looked when it was started, so that it is the one that
// has connected, and none that has its number since.
func Peer(conn *net.UnixConn) (Caller, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return Caller{}, err
	}
	var cred *unix.Ucred
	process, credErr := -1, error(nil)
	err = raw.Control(func(fd uintptr) {
		if cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); credErr == nil {
			process, credErr = peerProcess(int(fd), cred)
		}
	})
	if process >= 0 {
		defer unix.Close(process)
	}
	if err == nil && cred == nil {
		err = credErr
	}
	if err != nil {
		return Caller{}, fmt.Errorf("who is at the other end of the socket: %w", err)
	}
	c := Caller{UID: cred.Uid, PID: cred.Pid}
	if err = credErr; err == nil {
		c.Start, err = startedBy("/proc", process, cred)
	}
	if err != nil && c.UID != 0 {
		return Caller{}, fmt.Errorf("process %d, which has connected: %w", cred.Pid, err)
	}
	return c, nil
}

// peerProcess is a descriptor of the process at the other end: the kernel's own (Linux 6.5),
// or else of the one that has its number now.
func peerProcess(fd int, cred *unix.Ucred) (int, error) {
	process, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	if errors.Is(err, unix.ENOPROTOOPT) {
		process, err = unix.PidfdOpen(int(cred.Pid), 0)
	}
	if err != nil {
		return -1, err
	}
	return process, nil
}

// startedBy is when the process of a descriptor was started, which is still there, and is
// the user's who has connected.
func startedBy(proc string, process int, cred *unix.Ucred) (uint64, error) {
	start, err := started(proc, cred.Pid)
	if err != nil {
		return 0, err
	}
	text, err := os.ReadFile(fmt.Sprintf("%s/%d/status", proc, cred.Pid))
	if err != nil {
		return 0, err
	}
	if !hasUser(text, cred.Uid) {
		return 0, fmt.Errorf("it is not user %d's any more", cred.Uid)
	}
	// It has had its number all the time, since it has it still.
	if err := unix.PidfdSendSignal(process, 0, nil, 0); err != nil && !errors.Is(err, unix.EPERM) {
		return 0, fmt.Errorf("it has ended: %w", err)
	}
	return start, nil
}

// hasUser reports whether a user is one of those of a process (proc_pid_status(5), Uid).
func hasUser(status []byte, user uint32) bool {
	for line := range bytes.Lines(status) {
		if rest, ok := bytes.CutPrefix(line, []byte("Uid:")); ok {
			return slices.Contains(strings.Fields(string(rest)), strconv.FormatUint(uint64(user), 10))
		}
	}
	return false
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

// Polkit is polkit on a bus. There is one connection for all questions: the bus gives root
// as a whole a few hundred.
type Polkit struct {
	ctx     context.Context // ends the connection
	connect func(ctx context.Context) (*dbus.Conn, error)
	// connecting holds one while conn is looked at.
	connecting chan struct{}
	conn       *dbus.Conn

	mu    sync.Mutex
	all   int
	users map[uint32]int
	asked map[uint32]bool // a person is asked for this user
	ids   uint64
}

// New returns polkit on a bus that connect connects to, for as long as ctx lives.
func New(ctx context.Context, connect func(ctx context.Context) (*dbus.Conn, error)) *Polkit {
	return &Polkit{ctx: ctx, connect: connect, connecting: make(chan struct{}, 1), users: map[uint32]int{}, asked: map[uint32]bool{}}
}

// Bounds of the questions that are open.
const (
	maxQuestions = 64
	maxOfUser    = 16
)

// begin reports whether there is room for one more question about a user: one at a time
// that a person is to answer.
func (p *Polkit) begin(user uint32, asking bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.all >= maxQuestions || p.users[user] >= maxOfUser || asking && p.asked[user] {
		return false
	}
	p.all++
	p.users[user]++
	if asking {
		p.asked[user] = true
	}
	return true
}

func (p *Polkit) end(user uint32, asking bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all--
	if p.users[user]--; p.users[user] == 0 {
		delete(p.users, user)
	}
	if asking {
		delete(p.asked, user)
	}
}

// bus is the connection, a new one where the last has ended.
func (p *Polkit) bus(ctx context.Context) (*dbus.Conn, error) {
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case p.connecting <- struct{}{}:
	}
	defer func() { <-p.connecting }()
	if p.conn != nil && p.conn.Connected() {
		return p.conn, nil
	}
	conn, err := p.connect(p.ctx)
	if err == nil {
		p.conn = conn
	}
	return conn, err
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
	cancelMethod    = "org.freedesktop.PolicyKit1.Authority.CancelCheckAuthorization"
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
func (p *Polkit) Allowed(ctx context.Context, c Caller, a Action, asking bool) error {
	if c.UID == 0 {
		return nil
	}
	if !p.begin(c.UID, asking) {
		return fmt.Errorf("%w: %s: %w", ErrDenied, a, ErrTooMany)
	}
	defer p.end(c.UID, asking)
	limit, flags := patience, uint32(0)
	if asking {
		limit, flags = patiencePerson, allowAsking
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	answer, err := p.ask(ctx, c, a, flags)
	switch {
	case err != nil:
		return fmt.Errorf("%w: it cannot be asked: %w", ErrDenied, err)
	case answer.Authorized:
		return nil
	case answer.Challenge && !asking:
		return fmt.Errorf("%w: %s: %w", ErrDenied, a, ErrPassword)
	}
	return fmt.Errorf("%w: %s", ErrDenied, a)
}

type authorization struct {
	Authorized, Challenge bool
	Details               map[string]string
}

// ask asks polkit. Where nobody waits any more, neither does a window for a password.
func (p *Polkit) ask(ctx context.Context, c Caller, a Action, flags uint32) (answer authorization, _ error) {
	bus, err := p.bus(ctx)
	if err != nil {
		return answer, err
	}
	p.mu.Lock()
	p.ids++
	id := strconv.FormatUint(p.ids, 10)
	p.mu.Unlock()
	authority := bus.Object(authorityName, authorityPath)
	err = authority.CallWithContext(ctx, authorityMethod, 0, c.subject(), string(a), map[string]string{}, flags, id).Store(&answer)
	if ctx.Err() != nil {
		authority.Go(cancelMethod, dbus.FlagNoReplyExpected, nil, id)
	}
	return answer, err
}
