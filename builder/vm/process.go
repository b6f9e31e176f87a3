package vm

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is a child that cannot outlive this program.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended and was waited for
	err  error         // how it ended; valid once done is closed
}

// spawn starts a program in its own process group, with further descriptors 3, 4,
// ... and its messages in log. The child gets lastWord when this program dies.
func spawn(cmd *exec.Cmd, log *os.File, lastWord syscall.Signal, files ...*os.File) (*process, error) {
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = log, log, files
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: lastWord}
	p := &process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		// The parent-death signal is tied to the thread that forked, so that thread
		// has to live as long as the child (prctl(2), PR_SET_PDEATHSIG).
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			started <- fmt.Errorf("start %s: %w", cmd.Path, err)
			return
		}
		started <- nil
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, <-started
}

// processorTime reads the clock of the child's processor time
// (clock_getcpuclockid(3): the process's number, inverted, above three bits), or what it
// was when the child ended.
func (p *process) processorTime() (time.Duration, error) {
	select {
	case <-p.done:
		return p.cmd.ProcessState.UserTime() + p.cmd.ProcessState.SystemTime(), nil
	default:
	}
	const scheduler = 2
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^p.cmd.Process.Pid<<3|scheduler), &t); err != nil {
		return 0, err
	}
	return time.Duration(t.Nano()), nil
}

// starved is how long that thread of the child has waited for a processor which has waited
// longest: the one that emulates the guest's. It is 0 when the child has ended.
func (p *process) starved() (most time.Duration) {
	select {
	case <-p.done: // its number may be somebody else's by now
		return 0
	default:
	}
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", p.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	for _, path := range threads {
		if text, err := os.ReadFile(path); err == nil { // or the thread has ended
			most = max(most, runDelay(string(text)))
		}
	}
	return most
}

// runDelay reads a schedstat file (Linux, Documentation/scheduler/sched-stats.rst): the
// second number is the time on the run queue, in nanoseconds.
func runDelay(text string) time.Duration {
	fields := strings.Fields(text)
	if len(fields) != 3 {
		return 0
	}
	ns, err := strconv.ParseInt(fields[1], 10, 64)
	if err != nil || ns < 0 {
		return 0
	}
	return time.Duration(ns)
}

// signal reaches the child's whole process group.
func (p *process) signal(s syscall.Signal) {
	select {
	case <-p.done: // its number may be somebody else's by now
	default:
		_ = unix.Kill(-p.cmd.Process.Pid, s) // it may end at this very moment
	}
}

// end waits for a child that is about to end, and insists step by step.
func (p *process) end(patience time.Duration) {
	for _, s := range []syscall.Signal{0, unix.SIGTERM, unix.SIGKILL} {
		p.signal(s)
		select {
		case <-p.done:
			return
		case <-time.After(patience):
		}
	}
	<-p.done
}

// socketPair returns two connected Unix stream sockets: ours and the child's.
func socketPair(name string) (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socket pair for %s: %w", name, err)
	}
	// Non-blocking, so that a Close wakes a Read.
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, nil, fmt.Errorf("socket pair for %s: %w", name, err)
	}
	return os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name), nil
}
