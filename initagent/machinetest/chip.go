package machinetest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/tpm"
)

// emulator is a software TPM that runs for a whole test; its state is swapped
// while it is switched off.
type emulator struct {
	Directory     string
	conn, control net.Conn
}

func startEmulator(t testing.TB) *emulator {
	t.Helper()
	swtpm := testkit.Need(t, "swtpm")
	directory, err := os.MkdirTemp("", "tpm") // t.TempDir is too long for a socket's name
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(directory, "s")
	cmd := exec.Command(swtpm, "socket", "--tpm2", "--tpmstate", "dir="+directory,
		"--server", "type=unixio,path="+socket, "--ctrl", "type=unixio,path="+socket+".ctrl", "--flags", "not-need-init")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	e := &emulator{Directory: directory}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = os.RemoveAll(directory)
	})
	if e.conn, err = dial(socket); err != nil {
		t.Fatal(err)
	}
	if e.control, err = dial(socket + ".ctrl"); err != nil {
		t.Fatal(err)
	}
	return e
}

func dial(socket string) (conn net.Conn, err error) {
	for range 300 {
		if conn, err = net.Dial("unix", socket); err == nil {
			return conn, nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil, fmt.Errorf("swtpm does not listen: %w", err)
}

// Commands of swtpm's control channel (swtpm_ioctls(3)).
const (
	controlInit = 0x02
	controlStop = 0x0e
)

func (e *emulator) command(code uint32, arguments ...uint32) error {
	msg := binary.BigEndian.AppendUint32(nil, code)
	for _, a := range arguments {
		msg = binary.BigEndian.AppendUint32(msg, a)
	}
	if _, err := e.control.Write(msg); err != nil {
		return err
	}
	answer := make([]byte, 64)
	n, err := e.control.Read(answer)
	if err != nil {
		return err
	}
	if n < 4 || binary.BigEndian.Uint32(answer) != 0 {
		return fmt.Errorf("swtpm control command %#x: %x", code, answer[:n])
	}
	return nil
}

// StateFile is what swtpm keeps over a restart.
const StateFile = "tpm2-00.permall"

// PowerOn starts the TPM with this state; nil is a TPM that was never used.
func (e *emulator) PowerOn(state []byte) error {
	if err := e.command(controlStop); err != nil {
		return err
	}
	path := filepath.Join(e.Directory, StateFile)
	if state == nil {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	} else if err := os.WriteFile(path, state, 0o600); err != nil {
		return err
	}
	if err := e.command(controlInit, 0); err != nil {
		return err
	}
	_, err := tpm2.Startup{StartupType: tpm2.TPMSUClear}.Execute(e)
	return err
}

func (e *emulator) state() ([]byte, error) { return os.ReadFile(filepath.Join(e.Directory, StateFile)) }

// Send implements transport.TPM.
func (e *emulator) Send(command []byte) ([]byte, error) {
	if _, err := e.conn.Write(command); err != nil {
		return nil, err
	}
	buf := make([]byte, 4096)
	have := 0
	for have < 10 || have < int(binary.BigEndian.Uint32(buf[2:])) {
		n, err := e.conn.Read(buf[have:])
		if err != nil {
			return nil, err
		}
		have += n
	}
	return buf[:have], nil
}

// Extend extends a PCR.
func (e *emulator) Extend(register int, digest pcr.Digest) error {
	_, err := tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(register), Auth: tpm2.PasswordAuth(nil)},
		Digests: tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{
			HashAlg: tpm2.TPMAlgSHA256, Digest: digest[:],
		}}},
	}.Execute(e)
	return err
}

// lasting are the commands that change what a TPM keeps over a restart.
var lasting = map[tpm2.TPMCC]string{
	tpm2.TPMCCEvictControl: "tpm persist key", tpm2.TPMCCNVDefineSpace: "tpm define index",
	tpm2.TPMCCNVUndefineSpace: "tpm delete index", tpm2.TPMCCNVWrite: "tpm write index",
	tpm2.TPMCCHierarchyChanegAuth: "tpm set lockout authorisation", tpm2.TPMCCDictionaryAttackParameters: "tpm set lockout parameters",
}

// wire is the way to the TPM of a running machine.
type wire struct{ m *Machine }

func (w wire) Send(command []byte) ([]byte, error) {
	if w.m.RefuseRecord && tpm2.TPMCC(binary.BigEndian.Uint32(command[6:])) == tpm2.TPMCCNVWrite {
		return nil, syscall.EIO
	}
	if w.m.Deaf && tpm2.TPMCC(binary.BigEndian.Uint32(command[6:])) == tpm2.TPMCCPCREvent {
		return nil, syscall.EIO
	}
	if w.m.NoPhrases && asksFor(command, tpm2.TPMCCPolicyCommandCode) {
		binary.BigEndian.PutUint32(command[14:], uint32(tpm2.TPMCCPolicyCommandCode)+1) // the answer has the next one
	}
	if name, ok := lasting[tpm2.TPMCC(binary.BigEndian.Uint32(command[6:]))]; ok {
		w.m.op(name)
		w.m.ChipChanged = true
		w.m.durable++
	}
	answer, err := w.m.Emulator.Send(command)
	released := tpm2.TPMCC(binary.BigEndian.Uint32(command[6:])) == tpm2.TPMCCUnseal && err == nil && binary.BigEndian.Uint32(answer[6:]) == 0
	if released && w.m.booting && !w.m.secret {
		w.m.T.Error("the TPM releases a secret where what is left of it cannot be erased")
	}
	if at := bytes.Index(command, []byte("HALR")) - policyDigestSize; err == nil && at >= 0 && tpm2.TPMCC(binary.BigEndian.Uint32(command[6:])) == tpm2.TPMCCNVWrite {
		w.m.recordNow = bytes.Clone(command[at:][:policy.RecordSize])
	}
	return answer, err
}

// asksFor reports whether a TPM2_GetCapability asks for a command.
func asksFor(command []byte, cc tpm2.TPMCC) bool {
	return len(command) >= 18 && tpm2.TPMCC(binary.BigEndian.Uint32(command[6:])) == tpm2.TPMCCGetCapability &&
		tpm2.TPMCap(binary.BigEndian.Uint32(command[10:])) == tpm2.TPMCapCommands && tpm2.TPMCC(binary.BigEndian.Uint32(command[14:])) == cc
}

// policyDigestSize is what a record begins with, before its mark.
const policyDigestSize = 34

// Open implements hw.TPM.
func (m *Machine) OpenTPM() (*tpm.TPM, error) {
	if m.NoTPM != nil {
		return nil, m.NoTPM
	}
	if m.Clock.Before(m.TpmFrom) {
		return nil, fmt.Errorf("the firmware has a TPM 2.0 (TPM2), and %w", hw.ErrNoDevice)
	}
	if m.TpmBusy--; m.TpmBusy >= 0 {
		return nil, tpm.ErrBusy
	}
	if m.TpmOpens--; m.TpmPlugs > 0 || m.TpmOpens >= 0 {
		return nil, tpm.ErrAbsent
	}
	return tpm.OpenTransport(wire{m}), nil
}
