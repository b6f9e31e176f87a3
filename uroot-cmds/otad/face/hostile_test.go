package face

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/varlink/go/varlink"

	update "halogenos.internal/uroot-cmds/otad/orghalogenosupdate"
	"halogenos.internal/uroot-cmds/otad/otadtest"
)

// Who is told something and does not read it is left. FAULTS 114
func TestDoesNotRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	b := &bounded{Conn: conn, wait: 50 * time.Millisecond}
	if _, err := b.Write(make([]byte, 16<<20)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("told for ever: %v", err)
	}
}

// Who is connected and says nothing is left, and nothing is done on for who has gone, though
// it may be silent while something is done. FAULTS 114
func TestSilent(t *testing.T) {
	for name, c := range map[string]struct {
		silence time.Duration
		then    func(b *bounded, client *net.UnixConn)
		ends    bool
	}{
		"nothing is said":                          {50 * time.Millisecond, func(*bounded, *net.UnixConn) {}, true},
		"one byte at a time":                       {50 * time.Millisecond, drip, true},
		"a method is at work":                      {50 * time.Millisecond, said, false},
		"the caller has gone":                      {time.Hour, func(b *bounded, c *net.UnixConn) { said(b, c); _ = c.Close() }, true},
		"the caller has said all that it will say": {time.Hour, func(b *bounded, c *net.UnixConn) { said(b, c); _ = c.CloseWrite() }, false},
	} {
		client, conn := pair(t)
		b := &bounded{Conn: conn, wait: time.Second, silence: c.silence, reading: time.Now()}
		ctx, gone := context.WithCancel(t.Context())
		go b.watch(ctx, gone, 10*time.Millisecond)
		c.then(b, client)
		limit := 5 * time.Second
		if !c.ends {
			limit = 300 * time.Millisecond
		}
		select {
		case <-ctx.Done():
			if !c.ends {
				t.Errorf("%s: it is ended", name)
			}
		case <-time.After(limit):
			if c.ends {
				t.Errorf("%s: it is not ended", name)
			}
		}
		gone()
	}
}

func said(b *bounded, client *net.UnixConn) {
	_, _ = client.Write([]byte("{}\x00"))
	_, _ = b.Read(make([]byte, 10))
}

func drip(b *bounded, client *net.UnixConn) {
	go func() {
		for {
			if _, err := b.Read(make([]byte, 10)); err != nil {
				return
			}
		}
	}()
	go func() {
		for {
			if _, err := client.Write([]byte("{")); err != nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
}

// pair is the two ends of a connection.
func pair(t *testing.T) (client, conn *net.UnixConn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if client, err = net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	if conn, err = l.AcceptUnix(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return client, conn
}

// Who finds no room is told so. The users that one may make up share their places.
func TestNoRoom(t *testing.T) {
	w := otadtest.New(t, failing)
	s := New(w.Service, w)
	for i := range uint32(maxFar) {
		if !s.enter(firstFar + i) {
			t.Fatalf("user %d of those is refused", i)
		}
	}
	if s.enter(firstFar+5000) || !s.enter(1000) {
		t.Error("one more of those comes in, or another user does not")
	}
	s.leave(firstFar)
	if !s.enter(firstFar + 5000) {
		t.Error("there is room, and one does not come in")
	}
	client, conn := pair(t)
	s.refuse(conn)
	if _, err := client.Write([]byte(`{"method":"org.halogenos.Update.State","parameters":{}}` + "\x00")); err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(client); err != nil || string(text) != `{"error":"org.halogenos.Update.TooManyCalls","parameters":{}}`+"\x00" {
		t.Errorf("%q, %v", text, err)
	}
	for _, e := range []error{&net.OpError{Err: os.NewSyscallError("accept4", syscall.EMFILE)}, syscall.ENOMEM} {
		if !passes(e) {
			t.Errorf("%v ends the service", e)
		}
	}
	if passes(nil) || passes(syscall.EBADF) {
		t.Error("an error that stays does not end the service")
	}
}

// A flood of connections, a message without an end, and what is not a message. FAULTS 114
func TestHostile(t *testing.T) {
	w := otadtest.New(t, failing)
	s := New(w.Service, w)
	for i := range maxOfUser {
		if !s.enter(1000) {
			t.Fatalf("connection %d of a user is refused", i)
		}
	}
	if s.enter(1000) {
		t.Error("a user has more connections than there is room for")
	}
	if !s.enter(1001) || !s.enter(0) {
		t.Error("another user, or root, is kept out")
	}
	for user := range uint32(maxAll) {
		_ = s.enter(2000 + user)
	}
	if s.enter(5000) || !s.enter(0) {
		t.Error("all connections are taken: a user comes in, or root does not")
	}
	s.leave(1000)

	path := filepath.Join(t.TempDir(), "otad")
	listen(t, w, path)
	for name, text := range map[string]string{
		"no end":        strings.Repeat("x", 4*maxMessage),
		"no message":    "hello\x00",
		"not an object": "[1,2]\x00",
		"deep":          strings.Repeat("[", 10_000) + "\x00",
	} {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		_, _ = conn.Write([]byte(text)) // it may be cut
		if n, err := conn.Read(make([]byte, 100)); err == nil {
			t.Errorf("%s: answered with %d bytes", name, n)
		} else if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: not cut off", name)
		}
		_ = conn.Close()
	}
	// And the next caller is answered, many at a time.
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			c, err := varlink.NewConnection(t.Context(), "unix:"+path)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			if _, err := update.Settings().Call(t.Context(), c, nil); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}
