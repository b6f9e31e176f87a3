package tpm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"golang.org/x/sys/unix"
)

const (
	headerSize  = 10   // tag, size, code (Part 3, 5.1)
	maxResponse = 4096 // the largest buffer of any TPM and of the kernel's driver

	// answerTimeout covers the slowest command that is sent, the making of an
	// ECC key on a slow discrete chip, with a wide margin. The kernel's driver
	// gives up by itself long before in most cases.
	answerTimeout = 2 * time.Minute

	// A TPM that asks to be asked again is given this long: some need ten
	// seconds after power-on, and NV may be rate limited.
	retryLimit = 30 * time.Second
	retryFirst = 5 * time.Millisecond
	retryMost  = time.Second
)

// errTransport marks failures to talk to the device at all.
var errTransport = errors.New("talking to the TPM")

// sleeper waits; tests do not.
type sleeper func(time.Duration)

// Open opens a TPM: the device of the kernel's resource manager (/dev/tpmrm0),
// which cleans up whatever a dying process leaves in the TPM, or a Unix socket
// that speaks raw commands. A device that somebody else holds is waited for,
// for up to 30 seconds; without a device the error is [ErrAbsent].
func Open(path string) (*TPM, error) {
	fd, stream, err := openFD(path, time.Sleep)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
	conn := &conn{fd: fd, stream: stream, timeout: answerTimeout}
	t := OpenTransport(conn)
	t.closeTransport = conn.Close
	return t, nil
}

func openFD(path string, sleep sleeper) (fd int, stream bool, err error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return -1, false, ErrAbsent
	} else if err != nil {
		return -1, false, fmt.Errorf("%w: %w", errTransport, err)
	}
	switch {
	case info.Mode()&fs.ModeSocket != 0:
		stream = true
	case info.Mode()&fs.ModeCharDevice == 0:
		return -1, false, fmt.Errorf("%w: neither a character device nor a socket", ErrAbsent)
	}
	wait := newBackoff(sleep)
	for {
		if stream {
			fd, err = dial(path)
		} else {
			fd, err = unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		}
		switch {
		case err == nil:
			return fd, stream, nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
			return -1, false, fmt.Errorf("%w (%w)", ErrAbsent, err)
		case errors.Is(err, unix.EBUSY):
			if !wait.again() {
				return -1, false, fmt.Errorf("%w (%w)", ErrBusy, err)
			}
		default:
			return -1, false, fmt.Errorf("%w: %w", errTransport, err)
		}
	}
}

func dial(path string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// conn is a file descriptor that takes a command and gives an answer. It is
// used directly, since the runtime's poller takes the empty read of a TPM that
// has not finished for the end of the file.
type conn struct {
	fd      int
	stream  bool // an answer may come in pieces; a device gives it whole
	timeout time.Duration
}

// Send implements transport.TPM. After a failure the connection is closed: an
// answer that comes late must not be taken for that of the next command.
func (c *conn) Send(command []byte) ([]byte, error) {
	if c.fd < 0 {
		return nil, fmt.Errorf("%w: it is closed", errTransport)
	}
	answer, err := c.exchange(command, time.Now().Add(c.timeout))
	if err != nil {
		_ = c.Close()
	}
	return answer, err
}

func (c *conn) exchange(command []byte, deadline time.Time) ([]byte, error) {
	for len(command) > 0 {
		n, err := unix.Write(c.fd, command)
		switch {
		case err == nil:
			command = command[n:]
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EBUSY):
			if err := c.poll(unix.POLLOUT, deadline); err != nil {
				return nil, err
			}
		default:
			return nil, fmt.Errorf("%w: sending a command: %w", errTransport, err)
		}
	}
	return c.receive(deadline)
}

func (c *conn) receive(deadline time.Time) ([]byte, error) {
	buf := make([]byte, maxResponse)
	have := 0
	for {
		if err := c.poll(unix.POLLIN, deadline); err != nil {
			return nil, err
		}
		n, err := unix.Read(c.fd, buf[have:])
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue
		case err != nil:
			return nil, fmt.Errorf("%w: reading the answer: %w", errTransport, err)
		}
		have += n
		whole := have >= headerSize && uint64(binary.BigEndian.Uint32(buf[2:6])) <= uint64(have)
		if whole || n == 0 || !c.stream || have == len(buf) {
			return buf[:have], nil
		}
	}
}

// poll waits until the descriptor is ready. Signals, of which the Go runtime
// sends itself many, start it again.
func (c *conn) poll(events int16, deadline time.Time) error {
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("%w within %v", ErrTimeout, c.timeout)
		}
		fds := []unix.PollFd{{Fd: int32(c.fd), Events: events}}
		n, err := unix.Poll(fds, int(left.Milliseconds())+1)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("%w: waiting: %w", errTransport, err)
		case n > 0 && fds[0].Revents&events != 0:
			return nil
		case n > 0:
			return fmt.Errorf("%w: the connection broke", errTransport)
		}
	}
}

// Close closes the descriptor.
func (c *conn) Close() error {
	if c.fd < 0 {
		return nil
	}
	err := unix.Close(c.fd)
	c.fd = -1
	return err
}

// patient checks the frame of every answer and sends a command again when the
// TPM asks for that. It may: these codes mean that nothing was done and no
// nonce of a session was used up (Part 3, 5.2 and Part 2, 6.6.3).
type patient struct {
	inner transport.TPM
	sleep sleeper
}

// Send implements transport.TPM.
func (p *patient) Send(command []byte) ([]byte, error) {
	wait := newBackoff(p.sleep)
	for {
		answer, err := p.inner.Send(command)
		if err != nil {
			return nil, transportError(err)
		}
		if err := checkFrame(answer); err != nil {
			return nil, err
		}
		switch rc := tpm2.TPMRC(binary.BigEndian.Uint32(answer[6:])); rc {
		case tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting, tpm2.TPMRCNVRate, tpm2.TPMRCNVUnavailable:
			if !wait.again() {
				return nil, fmt.Errorf("%w: for %v it answered %w", ErrBusy, retryLimit, rc)
			}
		default:
			return answer, nil
		}
	}
}

// checkFrame refuses an answer that is shorter or longer than it says.
func checkFrame(answer []byte) error {
	if len(answer) < headerSize {
		return fmt.Errorf("%w: %d bytes, a header has %d", ErrMalformed, len(answer), headerSize)
	}
	if size := binary.BigEndian.Uint32(answer[2:]); uint64(size) != uint64(len(answer)) || len(answer) > maxResponse {
		return fmt.Errorf("%w: %d bytes came, its header says %d, at most %d are taken", ErrMalformed, len(answer), size, maxResponse)
	}
	if tag := tpm2.TPMST(binary.BigEndian.Uint16(answer)); tag != tpm2.TPMSTNoSessions && tag != tpm2.TPMSTSessions && tag != tagTPM12 {
		return fmt.Errorf("%w: tag %#04x", ErrMalformed, uint16(tag))
	}
	return nil
}

// tagTPM12 is how a TPM 2.0 answers a command with a bad tag, and how a TPM 1.2
// answers everything.
const tagTPM12 = tpm2.TPMST(0x00C4)

func transportError(err error) error {
	if errors.Is(err, ErrTimeout) || errors.Is(err, errTransport) {
		return err
	}
	return fmt.Errorf("%w: %w", errTransport, err)
}

// backoff doubles its waits up to a second, until the limit is used up.
type backoff struct {
	sleep sleeper
	next  time.Duration
	spent time.Duration
}

func newBackoff(s sleeper) *backoff { return &backoff{sleep: s, next: retryFirst} }

// again waits, and reports false when the limit has been reached.
func (b *backoff) again() bool {
	if b.spent >= retryLimit {
		return false
	}
	b.sleep(b.next)
	b.spent += b.next
	b.next = min(2*b.next, retryMost)
	return true
}
