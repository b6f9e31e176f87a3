package tpm

import (
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/testkit"
)

// emulator is a software TPM of its own for one test.
type emulator struct {
	t      *testing.T
	dir    string
	socket string
	cmd    *exec.Cmd
	raw    transport.TPM
	conn   *conn
}

// startTPM starts a software TPM that has never been used.
func startTPM(t *testing.T) *emulator {
	t.Helper()
	swtpm := testkit.Need(t, "swtpm")
	dir, err := os.MkdirTemp("", "tpm") // t.TempDir is too long for a socket's name
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	e := &emulator{t: t, dir: dir, socket: filepath.Join(dir, "s")}
	e.start(swtpm)
	t.Cleanup(e.stop)
	return e
}

func (e *emulator) start(swtpm string) {
	e.t.Helper()
	e.cmd = exec.Command(swtpm, "socket", "--tpm2", "--tpmstate", "dir="+e.dir,
		"--server", "type=unixio,path="+e.socket, "--ctrl", "type=unixio,path="+e.socket+".ctrl", "--flags", "not-need-init")
	if err := e.cmd.Start(); err != nil {
		e.t.Fatal(err)
	}
	for range 200 {
		if fd, err := dial(e.socket); err == nil {
			e.conn = &conn{fd: fd, stream: true, timeout: 20 * time.Second}
			e.raw = e.conn
			if _, err := (tpm2.Startup{StartupType: tpm2.TPMSUClear}).Execute(e.raw); err != nil {
				e.t.Fatalf("startup: %v", err)
			}
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	e.t.Fatal("swtpm does not listen")
}

func (e *emulator) stop() {
	if e.cmd == nil {
		return
	}
	_ = e.conn.Close()
	_ = e.cmd.Process.Kill()
	_ = e.cmd.Wait()
	_ = os.Remove(e.socket)
	e.cmd = nil
}

// reboot is a TPM reset: PCRs, sessions and transient objects are gone.
func (e *emulator) reboot() {
	e.t.Helper()
	_, _ = tpm2.Shutdown{ShutdownType: tpm2.TPMSUClear}.Execute(e.raw)
	e.stop()
	e.start(testkit.Need(e.t, "swtpm"))
}

// open returns a fresh connection of the package under test.
func (e *emulator) open() *TPM { return newTPM(e.raw, func(time.Duration) {}) }

// release gives the emulator's only connection to a tool, for as long as f runs.
func (e *emulator) release(f func()) {
	e.t.Helper()
	_ = e.conn.Close()
	f()
	fd, err := dial(e.socket)
	if err != nil {
		e.t.Fatal(err)
	}
	e.conn.fd = fd
}

// boot measures what a boot of a UKI would, and returns the PCRs.
func (e *emulator) boot(uki string) policy.Boot {
	e.t.Helper()
	t := e.open()
	for n, text := range map[int]string{7: "secure boot on", 11: uki} {
		if err := t.ExtendText(n, text); err != nil {
			e.t.Fatal(err)
		}
	}
	b, err := t.Now()
	if err != nil {
		e.t.Fatal(err)
	}
	return b
}

// predict computes what boot leaves.
func predict(uki string) policy.Boot {
	return policy.Boot{
		PCR7:  pcr.Digest{}.Extend(sum("secure boot on")),
		PCR11: pcr.Digest{}.Extend(sum(uki)),
	}
}

// spy is a transport that records what passes and may meddle.
type spy struct {
	inner  transport.TPM
	mu     sync.Mutex
	codes  []tpm2.TPMCC
	bytes  []byte
	before func(cc tpm2.TPMCC, command []byte) []byte // nil answer: pass on
	after  func(cc tpm2.TPMCC, answer []byte) []byte
}

func (s *spy) Send(command []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	cc := tpm2.TPMCC(binary.BigEndian.Uint32(command[6:]))
	s.codes = append(s.codes, cc)
	s.bytes = append(s.bytes, command...)
	if s.before != nil {
		if answer := s.before(cc, command); answer != nil {
			return answer, nil
		}
	}
	answer, err := s.inner.Send(command)
	if err == nil && s.after != nil {
		answer = s.after(cc, answer)
	}
	s.bytes = append(s.bytes, answer...)
	return answer, err
}

// failure is an answer with a response code.
func failure(rc tpm2.TPMRC) []byte {
	return binary.BigEndian.AppendUint32([]byte{0x80, 0x01, 0, 0, 0, 10}, uint32(rc))
}
