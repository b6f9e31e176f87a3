package measure

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// Command returns a Run that measures a program from its start to its end. The
// program inherits the environment. Memory is that of the process which is
// started, without its children.
func Command(name string, args ...string) func(context.Context) (Sample, error) {
	return func(ctx context.Context) (Sample, error) {
		var said bytes.Buffer
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Stdout, cmd.Stderr = &said, &said
		start := time.Now()
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		ended, memory := make(chan struct{}), make(chan float64)
		go func() { memory <- watch(cmd.Process.Pid, ended) }()
		err := cmd.Wait()
		took := time.Since(start)
		close(ended)
		most := <-memory
		if err != nil {
			return nil, fmt.Errorf("%s: %w: %s", name, err, tail(said.String()))
		}
		sample := Sample{Wall: took.Seconds(), CPU: (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()}
		if most > 0 {
			sample[Memory] = most
		}
		return sample, nil
	}
}

// watch returns the most memory that a process has had resident, in bytes, as
// seen up to 20 ms before its end. What the kernel says when it has ended
// (ru_maxrss) counts the memory of the process that started it, too.
func watch(pid int, ended <-chan struct{}) float64 {
	var most float64
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ended:
			return most
		case <-tick.C:
		}
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			continue // it has just ended
		}
		for line := range strings.Lines(string(text)) {
			var kib float64
			if n, _ := fmt.Sscanf(line, "VmHWM: %f kB", &kib); n == 1 { // proc_pid_status(5)
				most = max(most, kib*1024)
			}
		}
	}
}

// Script returns a Run that measures a shell script; it stops at the first
// command that fails. args are $1 and on.
func Script(script string, args ...string) func(context.Context) (Sample, error) {
	return Command("bash", append([]string{"-euo", "pipefail", "-c", script, "script"}, args...)...)
}

// tail is the end of what a program said.
func tail(said string) string {
	said = strings.TrimSpace(said)
	return said[max(0, len(said)-2000):]
}
