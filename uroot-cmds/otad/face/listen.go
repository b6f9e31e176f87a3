// Package face is how otad looks to those who call it by Varlink: connections with their
// callers, and the methods that they call.
//
// It refuses a message of more than 64 KiB, more connections than it has room for, and a
// caller who does not read what it is told.
package face

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/varlink/go/varlink"

	"halogenos.internal/boot/version"
	"halogenos.internal/uroot-cmds/otad/iosystemdsysupdate"
	"halogenos.internal/uroot-cmds/otad/orghalogenosupdate"
	"halogenos.internal/uroot-cmds/otad/polkit"
	"halogenos.internal/uroot-cmds/otad/service"
)

// Bounds.
const (
	maxMessage = 64 << 10 // bytes
	maxAll     = 128      // connections
	maxOfUser  = 32       // of one user who is not root
	// maxWait is how long a caller may take to read what it is told.
	maxWait = 20 * time.Second
)

// A Guard says who may do what.
type Guard interface {
	Allowed(ctx context.Context, c polkit.Caller, a polkit.Action, asking bool) error
}

// A Server answers on a socket.
type Server struct {
	service *service.Service
	guard   Guard

	mu     sync.Mutex
	users  map[uint32]int
	all    int
	active time.Time // when the last connection ended
}

// New returns a server that nobody has called yet.
func New(s *service.Service, guard Guard) *Server {
	return &Server{service: s, guard: guard, users: map[uint32]int{}, active: time.Now()}
}

// Serve answers until the listener is closed.
func (s *Server) Serve(ctx context.Context, l *net.UnixListener) error {
	for {
		conn, err := l.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("wait for callers: %w", err)
		}
		caller, err := polkit.Peer(conn)
		if err != nil || !s.enter(caller.UID) {
			_ = conn.Close() // whoever it is gets no answer
			continue
		}
		go func() {
			defer s.leave(caller.UID)
			s.converse(ctx, conn, caller)
		}()
	}
}

// enter reports whether there is room for one more connection.
func (s *Server) enter(user uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if user != 0 && (s.all >= maxAll || s.users[user] >= maxOfUser) {
		return false
	}
	s.all++
	s.users[user]++
	return true
}

func (s *Server) leave(user uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all--
	s.active = time.Now()
	if s.users[user]--; s.users[user] == 0 {
		delete(s.users, user)
	}
}

// Idle says for how long nobody has been connected.
func (s *Server) Idle() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all > 0 {
		return 0
	}
	return time.Since(s.active)
}

// converse answers one caller, whose methods know who it is.
func (s *Server) converse(ctx context.Context, conn net.Conn, caller polkit.Caller) {
	v, err := varlink.NewService("HalogenOS", "otad", version.String(), "https://varlink.org")
	if err != nil {
		_ = conn.Close()
		return
	}
	c := &call{Service: s.service, guard: s.guard, caller: caller}
	if err := errors.Join(v.RegisterInterface(orghalogenosupdate.VarlinkNew(c)), v.RegisterInterface(iosystemdsysupdate.VarlinkNew(&sysupdate{c}))); err != nil {
		_ = conn.Close()
		return
	}
	v.ServeConn(ctx, &bounded{Conn: conn, wait: maxWait})
}

// bounded is a connection on which a message has an end, and what is told is read.
type bounded struct {
	net.Conn
	wait time.Duration // for it to be read
	size int           // of the message so far
}

// Read implements net.Conn.
func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.Conn.Read(p)
	if end := bytes.LastIndexByte(p[:n], 0); end >= 0 {
		b.size = n - end - 1
	} else {
		b.size += n
	}
	if b.size > maxMessage {
		return 0, fmt.Errorf("message has more than %d bytes", maxMessage)
	}
	return n, err
}

// Write implements net.Conn.
func (b *bounded) Write(p []byte) (int, error) {
	if err := b.SetWriteDeadline(time.Now().Add(b.wait)); err != nil {
		return 0, err
	}
	return b.Conn.Write(p)
}
