package vm

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Registers as QEMU's debugger interface lists them for x86-64 (its file
// i386-64bit.xml): sixteen of 8 bytes, RIP, and EFLAGS and CS in 4 each.
const (
	ripAt          = 16 * 8
	flagsAt        = ripAt + 8
	segmentAt      = flagsAt + 4
	userMode       = 3      // of CS
	interruptFlag  = 1 << 9 // of EFLAGS
	debuggerWait   = 10 * time.Second
	maxDebugAnswer = 64 << 10 // bytes
)

// Freeze hangs the guest as a kernel hangs that has disabled interrupts and waits for
// what never comes: its processor halts, deaf, which costs the host nothing. Devices go
// on, a hardware watchdog among them, and a reset ends it. The machine must have one CPU.
func (m *Machine) Freeze(ctx context.Context) error {
	if m.options.CPUs != 1 {
		return fmt.Errorf("freeze a machine of %d CPUs: only one can be", m.options.CPUs)
	}
	dir, err := os.MkdirTemp("", "halogen-freeze-") // the path of a socket must be short
	if err != nil {
		return fmt.Errorf("freeze: %w", err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "gdb")
	if err := m.monitor(ctx, "gdbserver unix:"+path+",server=on,wait=off"); err != nil {
		return fmt.Errorf("freeze: %w", err)
	}
	return errors.Join(freezeKernel(ctx, path), m.monitor(ctx, "gdbserver none"))
}

// maxFreezes bounds the moments that are tried. The pause before each is a millisecond
// longer than the one before.
const maxFreezes = 200

// freezeKernel tries one moment after the other until the guest's kernel is at work.
func freezeKernel(ctx context.Context, path string) error {
	for try := range maxFreezes {
		time.Sleep(time.Duration(try) * time.Millisecond)
		if done, err := freeze(ctx, path); done || err != nil {
			return err
		}
	}
	return fmt.Errorf("freeze: the kernel was at work at none of %d moments", maxFreezes)
}

// monitor executes a command of QEMU's monitor that has no other form. What it says
// is not JSON, and empty where nothing is wrong but for a few commands.
func (m *Machine) monitor(ctx context.Context, command string) error {
	return m.qmp.Do(ctx, "human-monitor-command", map[string]any{"command-line": command}, nil)
}

// haltForEver is HLT, and a jump back to it for what wakes the processor all the same: a
// non-maskable or a system management interrupt (Intel SDM volume 2, HLT).
const haltForEver = "f4ebfd"

// freeze has QEMU's debugger write that in the place of the next instruction, and clear
// the interrupt flag. The guest stands still while the debugger is there. A program may
// not halt the processor: where one is at work, nothing is done.
func freeze(ctx context.Context, path string) (done bool, err error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return false, fmt.Errorf("freeze: debugger: %w", err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(debuggerWait)); err != nil {
		return false, fmt.Errorf("freeze: debugger: %w", err)
	}
	d := &debugger{conn: conn, in: bufio.NewReader(conn)}
	answer, err := d.do("g")
	if err != nil {
		return false, err
	}
	registers, err := hex.DecodeString(answer)
	if err != nil || len(registers) < segmentAt+4 {
		return false, fmt.Errorf("freeze: the debugger's registers are %.80q", answer)
	}
	if registers[segmentAt]&userMode != 0 {
		return false, d.commands("D")
	}
	rip := binary.LittleEndian.Uint64(registers[ripAt:])
	registers[flagsAt+1] &^= interruptFlag >> 8
	return true, d.commands(fmt.Sprintf("M%x,%x:%s", rip, len(haltForEver)/2, haltForEver), "G"+hex.EncodeToString(registers), "D")
}

// commands sends commands that are answered by OK.
func (d *debugger) commands(commands ...string) error {
	for _, command := range commands {
		if answer, err := d.do(command); err != nil || answer != "OK" {
			return errors.Join(fmt.Errorf("freeze: the debugger's answer to %.20s is %q", command, answer), err)
		}
	}
	return nil
}

// debugger speaks GDB's remote serial protocol: a command and an answer, each
// `$data#sum` and acknowledged by a plus.
type debugger struct {
	conn net.Conn
	in   *bufio.Reader
}

func (d *debugger) do(command string) (answer string, err error) {
	sum := byte(0)
	for _, c := range []byte(command) {
		sum += c
	}
	if _, err := fmt.Fprintf(d.conn, "$%s#%02x", command, sum); err != nil {
		return "", fmt.Errorf("debugger: %w", err)
	}
	var out strings.Builder
	for {
		b, err := d.in.ReadByte()
		if err != nil {
			return "", fmt.Errorf("debugger: %w", err)
		}
		switch {
		case b == '$':
			out.Reset()
		case b == '#':
			if _, err := d.in.Discard(2); err != nil { // a local socket loses nothing
				return "", fmt.Errorf("debugger: %w", err)
			}
			if _, err := d.conn.Write([]byte("+")); err != nil {
				return "", fmt.Errorf("debugger: %w", err)
			}
			// That the guest has stopped is told unasked, when the debugger comes.
			if !strings.HasPrefix(out.String(), "T") {
				return out.String(), nil
			}
			out.Reset()
		case out.Len() > maxDebugAnswer:
			return "", errors.New("debugger: an answer without an end")
		case b != '+' || out.Len() > 0:
			out.WriteByte(b)
		}
	}
}
