// Command otad is ota for desktops and other programs: it does what ota does, for those
// whom polkit lets, by Varlink and D-Bus.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"halogenos.internal/boot/version"
	"halogenos.internal/uroot-cmds/ota/machine"
	"halogenos.internal/uroot-cmds/ota/systembus"
	"halogenos.internal/uroot-cmds/ota/worker"
	"halogenos.internal/uroot-cmds/otad/bus"
	"halogenos.internal/uroot-cmds/otad/face"
	"halogenos.internal/uroot-cmds/otad/polkit"
	"halogenos.internal/uroot-cmds/otad/service"
)

const usage = `usage: otad [--socket PATH] [--bus PATH] [--idle DURATION]
       otad --version

Does what ota(8) does for programs, by Varlink on a socket and as
org.freedesktop.sysupdate1 on D-Bus. systemd starts it when somebody asks.

  --socket PATH    listens there, where no socket was handed to it
  --bus PATH       the socket of a bus other than the system's; none is no bus at all
  --idle DURATION  ends after so long without a caller (by default 1m; 0 is never)
`

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

type options struct {
	socket, bus string
	idle        time.Duration
}

func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	if len(args) > 0 && args[0] == worker.Argument {
		return worker.Main(stdin, stdout)
	}
	var o options
	f := flag.NewFlagSet("otad", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.StringVar(&o.socket, "socket", "", "")
	f.StringVar(&o.bus, "bus", "", "")
	f.DurationVar(&o.idle, "idle", time.Minute, "")
	say := f.Bool("version", false, "")
	switch err := f.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, usage)
		return 0
	case err != nil || f.NArg() > 0:
		fmt.Fprint(stderr, usage)
		return 2
	case *say:
		fmt.Fprint(stdout, version.Line("otad"))
		return 0
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := serve(ctx, o, machine.Linux, stderr); err != nil {
		fmt.Fprintf(stderr, "otad: %v\n", err)
		return 1
	}
	return 0
}

// connect connects to the bus that polkit and the callers are on.
func (o options) connect(ctx context.Context) (*dbus.Conn, error) {
	if o.bus == "none" {
		return nil, errors.New("there is no bus")
	}
	return systembus.Connect(ctx, o.bus)
}

// serve answers until ctx ends, or nobody has asked for long enough.
func serve(ctx context.Context, o options, open func() *machine.Machine, stderr io.Writer) error {
	l, err := listener(o.socket)
	if err != nil {
		return err
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := service.New(open)
	guard := polkit.New(ctx, o.connect)
	onBus := make(chan error, 1)
	ends, end := context.WithCancel(ctx)
	defer end()
	go func() { onBus <- o.offer(ctx, ends, s, guard, stderr) }()
	go func() {
		o.wait(ctx, s)
		end()
		if err := <-onBus; err != nil {
			fmt.Fprintf(stderr, "otad: %v\n", err)
		}
		_ = l.Close()
	}()
	err = face.New(s, guard).Serve(ctx, l)
	// Who came in meanwhile is still answered.
	for until := time.Now().Add(drain); ctx.Err() == nil && s.Idle() == 0 && time.Now().Before(until); time.Sleep(10 * time.Millisecond) {
	}
	if j := s.Job(); j != nil { // what has arrived is flushed
		j.Cancel()
		<-j.Done
	}
	return err
}

// drain bounds how long a service that ends waits for those who came in meanwhile.
const drain = 5 * time.Second

// wait returns when nobody has asked for long enough, and the service has begun to end.
func (o options) wait(ctx context.Context, s *service.Service) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(min(max(o.idle/4, 10*time.Millisecond), time.Second)):
		}
		if o.idle > 0 && s.Idle() > o.idle && s.End() {
			// systemd starts it again for anyone who asks from now on.
			notify("STOPPING=1")
			return
		}
	}
}

// notify tells systemd (sd_notify(3)). Without it nobody is told.
func notify(state string) {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return
	}
	if conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"}); err == nil {
		_, _ = conn.Write([]byte(state))
		_ = conn.Close()
	}
}

// offerEvery is how often a bus that has ended is tried again.
const offerEvery = 2 * time.Second

// offer puts the service on the bus until ends ends, again and again where the bus ends.
// The connection is there until ctx ends. A machine that has no bus does without: there is
// Varlink.
func (o options) offer(ctx, ends context.Context, s *service.Service, guard *polkit.Polkit, stderr io.Writer) error {
	if o.bus == "none" {
		return nil
	}
	for was := false; ; {
		conn, err := o.connect(ctx)
		var b *bus.Bus
		if err == nil {
			b, err = bus.Offer(conn, s, guard)
			if err != nil {
				err = errors.Join(err, conn.Close())
			}
		}
		if err != nil && !was {
			fmt.Fprintf(stderr, "otad: not on D-Bus: %v\n", err)
			return nil
		}
		if err == nil {
			was = true
			select {
			case <-ends.Done():
				if err := b.Close(); ctx.Err() == nil {
					return err
				}
				return nil // the connection has ended with it
			case <-conn.Context().Done():
				_ = b.Close() // it has ended already
			}
		}
		select {
		case <-ends.Done():
			return nil
		case <-time.After(offerEvery):
		}
	}
}

// firstSocket is the descriptor of the first socket that systemd hands over
// (sd_listen_fds(3)).
const firstSocket = 3

// listener is the socket that was handed over, or a new one.
func listener(path string) (*net.UnixListener, error) {
	if pid, err := strconv.Atoi(os.Getenv("LISTEN_PID")); err == nil && pid == os.Getpid() && os.Getenv("LISTEN_FDS") == "1" {
		unix.CloseOnExec(firstSocket)
		f := os.NewFile(firstSocket, "socket")
		l, err := net.FileListener(f)
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, fmt.Errorf("the socket that was handed over: %w", err)
		}
		u, ok := l.(*net.UnixListener)
		if !ok {
			return nil, errors.New("the socket that was handed over is not one of the file system")
		}
		u.SetUnlinkOnClose(false) // it is systemd's
		return u, nil
	}
	if path == "" {
		return nil, errors.New("no socket was handed over: start otad.socket, or give --socket PATH")
	}
	if info, err := os.Lstat(path); err == nil && info.Mode()&os.ModeSocket != 0 {
		_ = os.Remove(path) // of one that was killed; else listening says what is there
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	return l, os.Chmod(path, 0o666)
}
