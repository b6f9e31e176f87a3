package tpm

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/sys/unix"

	"halogenos.internal/boot/policy"
)

func sleepCounter(n *int) sleeper { return func(time.Duration) { *n++ } }

// answers is a TPM that gives these answers, and the last one for ever.
type answers struct {
	list [][]byte
	err  error
	sent int
}

func (a *answers) Send([]byte) ([]byte, error) {
	a.sent++
	if a.err != nil {
		return nil, a.err
	}
	b := a.list[0]
	if len(a.list) > 1 {
		a.list = a.list[1:]
	}
	return b, nil
}

// Whatever a TPM answers to anything, it is one clear error.
func TestSickTPM(t *testing.T) { // FAULTS 71
	long := make([]byte, 5000)
	copy(long, []byte{0x80, 0x01, 0, 0, 0x13, 0x88})
	for name, c := range map[string]struct {
		answer []byte
		err    error
		want   error
	}{
		"nothing":           {[]byte{}, nil, ErrMalformed},
		"short":             {failure(0)[:9], nil, ErrMalformed},
		"header only":       {failure(0), nil, ErrMalformed},
		"claims more":       {append(failure(0)[:5:5], 200, 0, 0, 0, 0), nil, ErrMalformed},
		"claims less":       {append(failure(0), 1, 2), nil, ErrMalformed},
		"too long":          {long, nil, ErrMalformed},
		"bad tag":           {append([]byte{0x12, 0x34}, failure(0)[2:]...), nil, ErrMalformed},
		"RETRY":             {failure(tpm2.TPMRCRetry), nil, ErrBusy},
		"testing itself":    {failure(tpm2.TPMRCTesting), nil, ErrBusy},
		"NV rate":           {failure(tpm2.TPMRCNVRate), nil, ErrBusy},
		"failure mode":      {failure(tpm2.TPMRCFailure), nil, ErrFailed},
		"not started":       {failure(tpm2.TPMRCInitialize), nil, ErrNotStarted},
		"lockout":           {failure(tpm2.TPMRCLockout), nil, ErrLockout},
		"unknown command":   {failure(tpm2.TPMRCCommandCode), nil, ErrUnsupported},
		"TPM 1.2":           {[]byte{0x00, 0xC4, 0, 0, 0, 10, 0, 0, 0, 30}, nil, nil},
		"silence":           {nil, ErrTimeout, ErrTimeout},
		"a broken transfer": {nil, unix.EIO, errTransport},
	} {
		s := sealedForTest(t)
		for op, call := range map[string]func(*TPM) error{
			"capabilities": func(c *TPM) error { _, err := c.Capabilities(); return err },
			"PCRs":         func(c *TPM) error { _, err := c.Now(); return err },
			"storage key":  func(c *TPM) error { _, err := c.StorageKey(); return err },
			"define":       func(c *TPM) error { _, err := c.Define(&newKey(t).PublicKey); return err },
			"indexes":      func(c *TPM) error { _, err := c.Indexes(); return err },
			"extend":       func(c *TPM) error { return c.ExtendText(11, "x") },
			"record":       func(c *TPM) error { _, err := c.ReadRecord(s); return err },
			"unseal":       func(c *TPM) error { _, _, err := c.Unseal(s); return err },
		} {
			sleeps := 0
			fake := &answers{list: [][]byte{c.answer}, err: c.err}
			err := call(newTPM(fake, sleepCounter(&sleeps)))
			if name == "header only" && op == "extend" {
				continue // an extend without a session has an answer that says no more
			}
			if name == "header only" && op == "PCRs" && errors.Is(err, ErrBankInactive) {
				continue // no PCR at all was answered
			}
			if err == nil || !errors.Is(err, c.want) && c.want != nil {
				t.Errorf("%s, %s: %v, want %v", name, op, err, c.want)
			}
			if fake.sent > 200 || sleeps > 200 {
				t.Errorf("%s, %s: %d commands, %d pauses", name, op, fake.sent, sleeps)
			}
		}
	}
}

func sealedForTest(t testing.TB) *policy.Sealed {
	t.Helper()
	name := policy.NameOf([]byte("index"))
	public := tpm2.Marshal(policy.SealedTemplate(policy.AuthorizeNV(name)))
	public[len(public)-1] = 32
	s := policy.NewSealed(policy.KindNV, policy.NameOf([]byte("srk")), append(public, make([]byte, 32)...), []byte("private"))
	s.NVIndex, s.NVName = firstIndex, &name
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	return s
}

// A TPM that is slow to start gets the same command again until it answers.
func TestRetrySucceeds(t *testing.T) { // FAULTS 71
	e := startTPM(t)
	busy := 3
	s := &spy{inner: e.raw}
	s.before = func(tpm2.TPMCC, []byte) []byte {
		if busy > 0 {
			busy--
			return failure(tpm2.TPMRCRetry)
		}
		return nil
	}
	sleeps := 0
	if _, err := newTPM(s, sleepCounter(&sleeps)).Now(); err != nil || sleeps != 3 {
		t.Errorf("%v after %d pauses, want 3", err, sleeps)
	}
}

func TestBackoffIsBounded(t *testing.T) {
	var total, longest time.Duration
	b := newBackoff(func(d time.Duration) { total += d; longest = max(longest, d) })
	for b.again() {
	}
	if total < retryLimit || total > retryLimit+retryMost || longest != retryMost {
		t.Errorf("%v in all, %v at most", total, longest)
	}
}

func TestOpen(t *testing.T) { // FAULTS 71
	dir := t.TempDir()
	if _, err := Open(filepath.Join(dir, "tpmrm0")); !errors.Is(err, ErrAbsent) {
		t.Errorf("no device: %v", err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(file); !errors.Is(err, ErrAbsent) {
		t.Errorf("a file: %v", err)
	}
	e := startTPM(t)
	e.release(func() {
		c, err := Open(e.socket)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Now(); err != nil {
			t.Error(err)
		}
		closed(t, c)
		if _, err := c.Now(); !errors.Is(err, errTransport) {
			t.Errorf("after closing: %v", err)
		}
	})
}

// pipe returns a connection and the descriptor of its other end.
func pipe(t *testing.T, kind int, stream bool) (*conn, int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		t.Fatal(err)
	}
	c := &conn{fd: fds[0], stream: stream, timeout: 5 * time.Second}
	t.Cleanup(func() { _ = c.Close(); _ = unix.Close(fds[1]) })
	return c, fds[1]
}

func TestConnWaitsForAnswer(t *testing.T) {
	for name, c := range map[string]struct {
		kind   int
		stream bool
		pieces [][]byte
		want   int
	}{
		"device, late":         {unix.SOCK_SEQPACKET, false, [][]byte{failure(0)}, 10},
		"device, short":        {unix.SOCK_SEQPACKET, false, [][]byte{failure(0)[:7], failure(0)[7:]}, 7},
		"socket, byte by byte": {unix.SOCK_STREAM, true, [][]byte{failure(0)[:1], failure(0)[1:5], failure(0)[5:9], failure(0)[9:]}, 10},
	} {
		conn, other := pipe(t, c.kind, c.stream)
		go func() {
			buf := make([]byte, 64)
			_, _ = unix.Read(other, buf)
			for _, p := range c.pieces {
				time.Sleep(10 * time.Millisecond)
				_, _ = unix.Write(other, p)
			}
		}()
		answer, err := conn.Send([]byte("command"))
		if err != nil || len(answer) != c.want {
			t.Errorf("%s: %x, %v", name, answer, err)
		}
	}
}

func TestConnTimesOut(t *testing.T) { // FAULTS 71
	c, _ := pipe(t, unix.SOCK_SEQPACKET, false)
	c.timeout = 30 * time.Millisecond
	if _, err := c.Send([]byte("command")); !errors.Is(err, ErrTimeout) {
		t.Errorf("silence: %v", err)
	}
	if _, err := c.Send([]byte("command")); !errors.Is(err, errTransport) {
		t.Errorf("after silence: %v", err)
	}
	c, other := pipe(t, unix.SOCK_STREAM, true)
	c.timeout = 30 * time.Millisecond
	half := failure(0)
	binary.BigEndian.PutUint32(half[2:], 100)
	if _, err := unix.Write(other, half); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Send([]byte("command")); !errors.Is(err, ErrTimeout) {
		t.Errorf("half an answer: %v", err)
	}
	c, other = pipe(t, unix.SOCK_STREAM, true)
	go func() {
		buf := make([]byte, 64)
		_, _ = unix.Read(other, buf)
		_ = unix.Shutdown(other, unix.SHUT_RDWR)
	}()
	if answer, err := c.Send([]byte("command")); err == nil && len(answer) > 0 {
		t.Errorf("hung up: %x", answer)
	}
}
