package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// handshake bounds how long QEMU may take to answer after it was started.
	handshake = time.Minute
	// patience is how long a child may take to end by itself before it is told to.
	patience = 2 * time.Second
)

// Names of the logs that a start writes.
const (
	consoleLog = "console.log"
	qemuLog    = "qemu.log"
)

// ReasonKilled is what ended a machine that [Machine.Kill], [Machine.Close] or its
// context ended; the other reasons are QEMU's, such as guest-shutdown, guest-reset,
// host-qmp-quit.
const ReasonKilled = "killed"

// Machine is a machine that was switched on.
type Machine struct {
	options    Options
	identity   string // see identity
	console    *Console
	qmp        *QMP
	qemu       *process
	swtpm      *process // nil without a TPM
	log        *os.File // qemu.log
	consoleLog *os.File // console.log
	ours       []*os.File
	unlock     func()
	stop       context.CancelFunc // kills
	done       chan struct{}      // closed when everything has ended and is cleaned up
	reason     string
	err        error
}

// Start switches a machine on, or lets a suspended one go on (see [Machine.Suspend]). The machine lives until its guest ends it, Kill,
// Stop or Close is called, or ctx ends.
func Start(ctx context.Context, o Options) (*Machine, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	if o.Firmware == (Firmware{}) {
		if o.Firmware, err = o.State.firmware(); err != nil {
			return nil, err
		}
	}
	if err := o.Firmware.check(); err != nil {
		return nil, err
	}
	qemu, err := findQEMU()
	if err != nil {
		return nil, err
	}
	var can Abilities
	if o.Screen != NoScreen {
		if can, err = FindAbilities(ctx); err != nil {
			return nil, err
		}
	}
	args, err := arguments(o, o.Firmware, can)
	if err != nil {
		return nil, err
	}
	if err := o.checkFiles(); err != nil {
		return nil, err
	}
	unlock, err := o.State.lock(unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	m := &Machine{options: o, unlock: unlock, done: make(chan struct{})}
	var resumption []string
	if m.identity, err = identity(qemu, args, o.State); err == nil {
		resumption, err = m.resumption()
	}
	if err == nil {
		err = m.launch(ctx, qemu, append(args, resumption...))
	}
	if err != nil {
		m.release()
		return nil, err
	}
	m.say("waiting for QEMU")
	hello, cancel := context.WithTimeout(ctx, handshake)
	defer cancel()
	err = m.qmp.negotiate(hello)
	if err == nil && resumption != nil {
		err = m.resume(hello)
	}
	if err != nil {
		if errors.Is(err, ErrEnded) {
			m.qemu.end(patience) // by itself: how it ended is the reason
		}
		m.Close()
		return nil, fmt.Errorf("start machine: %w", errors.Join(err, m.err))
	}
	return m, nil
}

// checkFiles looks for what QEMU would complain about less clearly, and makes the
// write logs, which QEMU wants to find.
func (o Options) checkFiles() error {
	disks, err := o.disks()
	if err != nil {
		return err
	}
	if _, err := os.Stat(o.State.Vars()); err != nil {
		return fmt.Errorf("%s is not a machine's directory: %w", o.State.Dir, err)
	}
	for _, d := range disks {
		info, err := os.Stat(d.Path)
		if err != nil {
			return fmt.Errorf("disk: %w", err)
		}
		if info.Size()%int64(d.SectorSize) != 0 {
			return fmt.Errorf("disk %s: %d bytes are not a multiple of its sectors of %d", d.Path, info.Size(), d.SectorSize)
		}
		if d.WriteLog == "" {
			continue
		}
		if err := os.WriteFile(d.WriteLog, nil, 0o644); err != nil {
			return fmt.Errorf("write log: %w", err)
		}
	}
	return nil
}

// launch starts both processes and what listens to them.
func (m *Machine) launch(ctx context.Context, qemu string, args []string) (err error) {
	if err := os.MkdirAll(m.options.Log, 0o755); err != nil {
		return fmt.Errorf("log directory: %w", err)
	}
	if m.log, err = os.Create(filepath.Join(m.options.Log, qemuLog)); err != nil {
		return fmt.Errorf("qemu log: %w", err)
	}
	if m.consoleLog, err = os.Create(filepath.Join(m.options.Log, consoleLog)); err != nil {
		return fmt.Errorf("console log: %w", err)
	}
	theirs := make([]*os.File, 2, 3)
	defer func() {
		for _, f := range theirs {
			if f != nil {
				_ = f.Close() // the child has its own
			}
		}
	}()
	for i, name := range []string{"serial console", "qmp"} {
		ours, their, err := socketPair(name)
		if err != nil {
			return err
		}
		m.ours, theirs[i] = append(m.ours, ours), their
	}
	if m.options.TPM != NoTPM {
		socket, err := m.launchTPM()
		if err != nil {
			return err
		}
		theirs = append(theirs, socket)
	}
	m.say("starting QEMU: %d MiB, accelerator %s, console in %s", m.options.Memory, m.options.Accel, m.consoleLog.Name())
	fmt.Fprintf(m.log, "%s '%s'\n", qemu, strings.Join(args, "' '"))
	if m.qemu, err = spawn(exec.Command(qemu, args...), m.log, unix.SIGKILL, theirs...); err != nil {
		return err
	}
	m.console, m.qmp = newConsole(m.ours[0], m.consoleLog), newQMP(m.ours[1])
	life, stop := context.WithCancel(ctx)
	m.stop = stop
	go m.supervise(life)
	return nil
}

// launchTPM starts swtpm and returns QEMU's end of its control channel. swtpm ends
// with the connection, having written everything permanent when it happened; so it
// is started again for each start of the machine, which also is the reset that its
// PCRs need.
func (m *Machine) launchTPM() (*os.File, error) {
	path, err := findSwtpm()
	if err != nil {
		return nil, err
	}
	qemuEnd, swtpmEnd, err := socketPair("tpm")
	if err != nil {
		return nil, err
	}
	defer swtpmEnd.Close()
	m.say("starting swtpm")
	args := []string{"socket", "--tpm2", "--ctrl", "type=unixio,clientfd=3", "--terminate"}
	// By the environment, since a path may hold a comma, which --tpmstate cannot.
	where := "TPM_PATH=" + m.options.State.TPM()
	fmt.Fprintf(m.log, "%s %s '%s'\n", where, path, strings.Join(args, "' '"))
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), where)
	if m.swtpm, err = spawn(cmd, m.log, unix.SIGTERM, swtpmEnd); err != nil {
		_ = qemuEnd.Close() // nobody has it
		return nil, err
	}
	return qemuEnd, nil
}

// supervise waits for the end of QEMU, brings it about when life ends, and cleans
// up.
func (m *Machine) supervise(life context.Context) {
	killed := false
	select {
	case <-m.qemu.done:
	case <-life.Done():
		select {
		case <-m.qemu.done:
		default:
			killed = true
			m.qemu.signal(unix.SIGKILL)
			<-m.qemu.done
		}
	}
	<-m.console.done // what QEMU wrote last is in the sockets
	<-m.qmp.done
	m.reason = m.qmp.shutdownReason()
	switch {
	case killed:
		m.reason = ReasonKilled
	case m.qemu.err != nil:
		m.err = fmt.Errorf("QEMU ended by itself: %w; %s", m.qemu.err, m.logTail())
	}
	m.err = errors.Join(m.err, m.console.logErr)
	m.release()
	m.say("the machine has ended: %s", m.reason)
	close(m.done)
}

// release ends swtpm and gives everything back. It also cleans up after a launch
// that failed half way.
func (m *Machine) release() {
	if m.stop != nil {
		m.stop()
	}
	for _, f := range m.ours {
		_ = f.Close() // sockets of a process that is gone
	}
	if m.swtpm != nil {
		m.swtpm.end(patience)
	}
	for _, f := range []*os.File{m.log, m.consoleLog} {
		if f != nil {
			_ = f.Close() // written through, and only a log
		}
	}
	m.unlock()
}

// logTail returns the end of qemu.log, which holds QEMU's own messages.
func (m *Machine) logTail() string {
	b, err := os.ReadFile(m.log.Name())
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return "its last messages:\n" + strings.Join(lines[max(0, len(lines)-8):], "\n")
}

func (m *Machine) say(format string, args ...any) {
	fmt.Fprintf(m.options.Progress, "vm: "+format+"\n", args...)
}

// Console is the machine's serial port.
func (m *Machine) Console() *Console { return m.console }

// QMP is the connection to QEMU's monitor.
func (m *Machine) QMP() *QMP { return m.qmp }

// State is the machine's directory.
func (m *Machine) State() State { return m.options.State }

// WaitFor is [Console.WaitFor].
func (m *Machine) WaitFor(ctx context.Context, re *regexp.Regexp) ([]string, error) {
	return m.console.WaitFor(ctx, re)
}

// SendLine is [Console.SendLine].
func (m *Machine) SendLine(line string) error { return m.console.SendLine(line) }

// Done is closed when the machine is off and its directory may be copied or started
// again.
func (m *Machine) Done() <-chan struct{} { return m.done }

// Wait waits for the end of the machine and returns what ended it: [ReasonKilled] or
// QEMU's reason (guest-shutdown, guest-reset, ...). The error is QEMU's failure, or
// the context's; the machine goes on in the latter case.
func (m *Machine) Wait(ctx context.Context) (reason string, err error) {
	select {
	case <-m.done:
		return m.reason, m.err
	case <-ctx.Done():
		return "", fmt.Errorf("waiting for the machine's end: %w", context.Cause(ctx))
	}
}

// ProcessorTime is what the machine's processes have used so far, or until they ended:
// unlike the time by a clock it does not depend on what else the host does.
func (m *Machine) ProcessorTime() (time.Duration, error) {
	var sum time.Duration
	for _, p := range []*process{m.qemu, m.swtpm} {
		if p == nil {
			continue
		}
		spent, err := p.processorTime()
		if err != nil {
			return 0, fmt.Errorf("processor time of the machine: %w", err)
		}
		sum += spent
	}
	return sum, nil
}

// Starved is how long the machine's processes, while they run, have waited for a processor
// that others had: on a busy host so much of a clock's time was none for the guest. It is
// 0 where the kernel does not count that, and never more than a clock's time.
func (m *Machine) Starved() time.Duration {
	var most time.Duration
	for _, p := range []*process{m.qemu, m.swtpm} {
		if p != nil {
			most = max(most, p.starved())
		}
	}
	return most
}

// Kill cuts the power: QEMU gets SIGKILL, the TPM keeps what it had stored. It
// returns when the directory is free again.
func (m *Machine) Kill() {
	m.stop()
	<-m.done
}

// Close ends the machine if it still runs. It can be called at any time, more than
// once.
func (m *Machine) Close() { m.Kill() }

// Stop switches the machine off from outside, the guest not being asked, and waits.
// Writes that the guest has been told are done are in the disk image.
func (m *Machine) Stop(ctx context.Context) error {
	if err := m.qmp.Do(ctx, "quit", nil, nil); err != nil && !errors.Is(err, ErrEnded) {
		return err
	}
	_, err := m.Wait(ctx)
	return err
}

// Reset presses the reset button.
func (m *Machine) Reset(ctx context.Context) error {
	return m.qmp.Do(ctx, "system_reset", nil, nil)
}

// Unplug takes a disk out of the running machine, which must be at USB. Disks are
// numbered from the machine's own, 0, on; without it Options.Disks begin at 0.
func (m *Machine) Unplug(ctx context.Context, disk int) error {
	return m.qmp.Do(ctx, "device_del", map[string]any{"id": deviceID(disk)}, nil)
}

// Screendump writes what the display shows to a PNG file; the machine needs
// Options.Display or Options.Screen.
func (m *Machine) Screendump(ctx context.Context, path string) error {
	abs, err := filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("screendump: %w", err)
	}
	return m.qmp.Do(ctx, "screendump", map[string]any{"filename": abs, "format": "png"}, nil)
}

// SendKeys presses keys one after the other on the machine's PS/2 keyboard, or on
// the last one in Options.Extra, named as in QEMU's QKeyCode ("a", "ret", "esc", "f1", ...).
// "ctrl-alt-t" presses three at once.
func (m *Machine) SendKeys(ctx context.Context, keys ...string) error {
	for _, key := range keys {
		var together []any
		for code := range strings.SplitSeq(key, "-") {
			together = append(together, map[string]any{"type": "qcode", "data": code})
		}
		arguments := map[string]any{"keys": together}
		if err := m.qmp.Do(ctx, "send-key", arguments, nil); err != nil {
			return err
		}
	}
	return nil
}

// DumpMemory writes the guest's physical memory to an ELF core file, to search it.
func (m *Machine) DumpMemory(ctx context.Context, path string) error {
	abs, err := filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("memory dump: %w", err)
	}
	return m.qmp.Do(ctx, "dump-guest-memory", map[string]any{"paging": false, "protocol": "file:" + abs}, nil)
}

// Snapshot copies the running machine as a power cut at this moment would leave it,
// into a directory that must be absent or empty; the guest stands still meanwhile.
func (m *Machine) Snapshot(ctx context.Context, dir string) (State, error) {
	if err := m.qmp.Do(ctx, "stop", nil, nil); err != nil {
		return State{}, fmt.Errorf("snapshot: %w", err)
	}
	s, err := m.options.State.copyTo(dir)
	return s, errors.Join(err, m.qmp.Do(ctx, "cont", nil, nil))
}
