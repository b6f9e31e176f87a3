package measure

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// Command returns a Run that measures a program from its start to its end. The
// program inherits the environment.
func Command(name string, args ...string) func(context.Context) (Sample, error) {
	return func(ctx context.Context) (Sample, error) {
		var said bytes.Buffer
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Stdout, cmd.Stderr = &said, &said
		start := time.Now()
		err := cmd.Run()
		took := time.Since(start)
		if err != nil {
			return nil, fmt.Errorf("%s: %w: %s", name, err, tail(said.String()))
		}
		sample := Sample{Wall: took.Seconds(), CPU: (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()}
		if usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
			sample[Memory] = float64(usage.Maxrss << 10) // KiB, getrusage(2)
		}
		return sample, nil
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
