// Package face is how otad looks to those who call it by Varlink: connections with their
// callers, and the methods that they call.
//
// It refuses a message of more than 64 KiB, more connections than it has room for, and a
// caller who does not read what it is told, or says nothing.
package face

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/varlink/go/varlink"
	"golang.org/x/sys/unix"

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
	// maxFar is for all users together from firstFar on: a user has thousands of them
	// (subuid(5)), and a directory's users are there, too.
	maxFar   = 64
	firstFar = 1 << 16
	// maxWait is how long a caller may take to read what it is told, and maxSilence to say
	// something.
	maxWait    = 20 * time.Second
	maxSilence = time.Minute
	// maxRefused bounds who is told that there is no room, and maxRefusal for how long.
	maxRefused = 16
	maxRefusal = time.Second
)

// A Guard says who may do what.
type Guard interface {
	Allowed(ctx context.Context, c polkit.Caller, a polkit.Action, asking bool) error
}

// A Server answers on a socket.
type Server struct {
	service *service.Service
	guard   Guard

	mu      sync.Mutex
	users   map[uint32]int
	all     int
	far     int
	refused int
	unknown sync.Once
}

// New returns a server that nobody has called yet.
func New(s *service.Service, guard Guard) *Server {
	return &Server{service: s, guard: guard, users: map[uint32]int{}}
}

// Serve answers until the listener is closed.
func (s *Server) Serve(ctx context.Context, l *net.UnixListener) error {
	for {
		conn, err := l.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if passes(err) {
			time.Sleep(100 * time.Millisecond)
			continue
		}
		if err != nil {
			return fmt.Errorf("wait for callers: %w", err)
		}
		caller, err := polkit.Peer(conn)
		if err != nil { // the caller gets no answer
			s.unknown.Do(func() { fmt.Fprintf(os.Stderr, "a caller is turned away: %v\n", err) })
			_ = conn.Close()
			continue
		}
		if !s.enter(caller.UID) {
			s.refuse(conn)
			continue
		}
		served := s.service.Enter()
		go func() {
			defer served()
			defer s.leave(caller.UID)
			s.converse(ctx, conn, caller)
		}()
	}
}

// passes reports whether an error is one of a moment: the machine has too little of
// something, or the caller has gone already.
func passes(err error) bool {
	for _, e := range []error{unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.ENOBUFS, unix.ECONNABORTED, unix.EINTR} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// enter reports whether there is room for one more connection.
func (s *Server) enter(user uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if user != 0 && (s.all >= maxAll || s.users[user] >= maxOfUser) || user >= firstFar && s.far >= maxFar {
		return false
	}
	s.add(user, 1)
	return true
}

func (s *Server) leave(user uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.add(user, -1)
}

func (s *Server) add(user uint32, n int) {
	s.all += n
	if user >= firstFar {
		s.far += n
	}
	if s.users[user] += n; s.users[user] == 0 {
		delete(s.users, user)
	}
}

// refuse answers the first call that there is no room, and closes.
func (s *Server) refuse(conn net.Conn) {
	s.mu.Lock()
	room := s.refused < maxRefused
	if room {
		s.refused++
	}
	s.mu.Unlock()
	if !room {
		_ = conn.Close()
		return
	}
	go func() {
		defer func() {
			_ = conn.Close()
			s.mu.Lock()
			s.refused--
			s.mu.Unlock()
		}()
		if conn.SetDeadline(time.Now().Add(maxRefusal)) != nil {
			return
		}
		// What was not read when it is closed would have the caller see that first.
		_, _ = bufio.NewReader(io.LimitReader(conn, maxMessage)).ReadBytes(0)
		_, _ = conn.Write([]byte(`{"error":"org.halogenos.Update.TooManyCalls","parameters":{}}` + "\x00"))
	}()
}

// converse answers one caller, whose methods know who it is.
func (s *Server) converse(ctx context.Context, conn net.Conn, caller polkit.Caller) {
	v, err := varlink.NewService("HalogenOS", "otad", version.String(), "https://varlink.org")
	if err != nil {
		_ = conn.Close()
		return
	}
	c := &call{Service: s.service, guard: s.guard, caller: caller}
	if err := errors.Join(v.RegisterInterface(lenient{orghalogenosupdate.VarlinkNew(c)}), v.RegisterInterface(iosystemdsysupdate.VarlinkNew(&sysupdate{c}))); err != nil {
		_ = conn.Close()
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	b := &bounded{Conn: conn, wait: maxWait, silence: maxSilence, reading: time.Now()}
	go b.watch(ctx, cancel, watchEvery)
	v.ServeConn(ctx, b)
}

// lenient takes a call without parameters for one with none: the protocol allows it, and
// here all of them may be left out but one.
type lenient struct {
	*orghalogenosupdate.VarlinkInterface
}

// VarlinkDispatch implements the library's dispatcher.
func (l lenient) VarlinkDispatch(ctx context.Context, c varlink.Call, method string) error {
	if c.In.Parameters == nil {
		none := json.RawMessage("{}")
		c.In.Parameters = &none
	}
	return l.VarlinkInterface.VarlinkDispatch(ctx, c, method)
}

// watchEvery is how often it is looked whether a caller is still there.
const watchEvery = time.Second

// bounded is a connection on which a message has an end and comes in time, and what is
// told is read.
type bounded struct {
	net.Conn
	wait    time.Duration // for it to be read
	silence time.Duration // until there is a message
	size    int           // of the message so far

	mu      sync.Mutex
	reading time.Time // a message is waited for since then; zero: a method is at work
}

// watch ends the connection where the caller says nothing for too long, and what is done
// for a caller who has gone. The library reads nothing while a method is at work.
func (b *bounded) watch(ctx context.Context, gone func(), every time.Duration) {
	defer b.Close()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		b.mu.Lock()
		silent := !b.reading.IsZero() && time.Since(b.reading) > b.silence
		b.mu.Unlock()
		if silent || hungUp(b.Conn) {
			gone()
			return
		}
	}
}

// hungUp reports whether the other end is closed, for both reading and writing.
func hungUp(conn net.Conn) bool {
	c, ok := conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return true
	}
	var up int16
	err = raw.Control(func(fd uintptr) {
		all := []unix.PollFd{{Fd: int32(fd)}}
		if n, err := unix.Poll(all, 0); err == nil && n > 0 {
			up = all[0].Revents & (unix.POLLHUP | unix.POLLERR)
		}
	})
	return err != nil || up != 0
}

// Read implements net.Conn.
func (b *bounded) Read(p []byte) (int, error) {
	b.mu.Lock()
	if b.reading.IsZero() {
		b.reading = time.Now()
	}
	b.mu.Unlock()
	n, err := b.Conn.Read(p)
	if end := bytes.LastIndexByte(p[:n], 0); end >= 0 {
		b.size = n - end - 1
		b.mu.Lock()
		b.reading = time.Time{}
		b.mu.Unlock()
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
