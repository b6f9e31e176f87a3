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
	conn, err := o.connect(ctx)
	if err == nil {
		defer conn.Close()
	}
	s := service.New(open)
	guard := polkit.Polkit{Connect: o.connect}
	if err == nil {
		_, err = bus.Offer(conn, s, guard)
	}
	if err != nil && o.bus != "none" {
		fmt.Fprintf(stderr, "otad: not on D-Bus: %v\n", err) // Varlink does without
	}
	server := face.New(s, guard)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		for ctx.Err() == nil {
			if o.idle > 0 && server.Idle() > o.idle && s.Job() == nil {
				cancel()
			}
			select {
			case <-ctx.Done():
			case <-time.After(min(max(o.idle/4, 10*time.Millisecond), time.Second)):
			}
		}
		_ = l.Close()
	}()
	err = server.Serve(ctx, l)
	if j := s.Job(); j != nil { // what has arrived is flushed
		j.Cancel()
		<-j.Done
	}
	return err
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
