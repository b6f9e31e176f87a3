package worker

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long a worker may take to end.
const patience = 10 * time.Second

// adopt makes this process the parent of what a worker leaves behind, so that it
// can be found and ended. Without rights of its own a worker has nothing to be
// kept from.
func (s Starter) adopt() error {
	if s.User == nil {
		return nil
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become the parent of what a worker leaves behind: %w", err)
	}
	return nil
}

// killGroup ends the worker, and what it has started that did not leave its
// process group.
func killGroup(cmd *exec.Cmd) {
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // all have ended: that is what is wanted
}

// ended is closed when the worker has ended. It is not reaped then, and so keeps its
// number, and its group's, from others. Whoever it has left may keep its output
// open: a moment later nobody listens any more.
func ended(cmd *exec.Cmd, output io.Closer) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			err := unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
			if !errors.Is(err, unix.EINTR) {
				break
			}
		}
		time.AfterFunc(patience, func() { _ = output.Close() })
	}()
	return done
}

// end waits for the worker and ends everything that it leaves behind: somebody
// who has taken it over may hold its files in a process that is still there, and
// write to them when they have been checked.
func (s Starter) end(cmd *exec.Cmd, done <-chan struct{}) (waitErr, err error) {
	select {
	case <-done:
	case <-time.After(patience):
	}
	killGroup(cmd)
	<-done
	waitErr = cmd.Wait()
	if s.User == nil {
		return waitErr, nil
	}
	return waitErr, s.endAdopted(time.Now().Add(patience))
}

// endAdopted ends the children of this process that have the worker's user: what
// it has started and nobody else is the parent of. Their own children come next.
func (s Starter) endAdopted(until time.Time) error {
	for quiet := 0; quiet < 2; { // one may have moved past a single look
		left, err := childrenOf(os.Getpid(), int(s.User.Uid))
		if err != nil {
			return fmt.Errorf("look for what the worker has left: %w", err)
		}
		for _, pid := range left {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			if _, err := syscall.Wait4(pid, nil, syscall.WALL, nil); err != nil && !errors.Is(err, syscall.EINTR) {
				return fmt.Errorf("end what the worker has left: %w", err)
			}
		}
		if quiet++; len(left) > 0 {
			quiet = 0
		}
		if time.Now().After(until) {
			return errors.New("the worker leaves processes behind faster than they can be ended: what it brought is not used; restart the machine")
		}
	}
	return nil
}

// childrenOf returns the processes that have this parent and this user.
func childrenOf(parent, user int) ([]int, error) {
	all, err := filepath.Glob("/proc/[0-9]*/status")
	if err != nil || len(all) == 0 {
		return nil, errors.Join(err, errNoProc(all))
	}
	var out []int
	for _, name := range all {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended meanwhile
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if err == nil && number(text, "PPid:") == parent && number(text, "Uid:") == user {
			out = append(out, pid)
		}
	}
	return out, nil
}

func errNoProc(found []string) error {
	if len(found) == 0 {
		return errors.New("/proc shows no processes")
	}
	return nil
}

// number is the first one behind a name in a process's status (proc(5)); -1
// where there is none.
func number(status []byte, name string) int {
	for line := range bytes.Lines(status) {
		if words := strings.Fields(string(line)); len(words) > 1 && words[0] == name {
			if n, err := strconv.Atoi(words[1]); err == nil {
				return n
			}
		}
	}
	return -1
}
