package worker

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

// Argument is what the program is started with as a worker.
const Argument = "worker"

// A Starter starts workers.
type Starter struct {
	// Program is what is executed: it must call Main when Argument is its
	// first argument.
	Program string
	// User is whose rights the worker has; nil: those of this process, which
	// must not be root's.
	User *syscall.Credential
}

// environment is what a worker learns of the environment: proxies and
// certificates.
func environment() []string {
	out := []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR"} {
		if value, ok := os.LookupEnv(name); ok {
			out = append(out, name+"="+value)
		}
	}
	return out
}

// Run has a worker do what a request asks for, and tells of its events as they
// come. Its errors are the worker's. When it has returned, nothing is left that the
// worker has started: what the files hold then stays as it is.
func (s Starter) Run(ctx context.Context, r Request, files Files, tell func(Event)) error {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	cmd := exec.CommandContext(ctx, s.Program)
	cmd.Args = []string{"ota", Argument}
	cmd.Env, cmd.Dir = environment(), "/"
	cmd.SysProcAttr = s.confine()
	cmd.WaitDelay = patience
	for i, f := range files {
		r.Has[i] = f != nil
		if f == nil {
			f = null
		}
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	request, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode the worker's request: %w", err)
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	// Cancelled, the worker sees its input end, and flushes what it has.
	cmd.Cancel = stdin.Close
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	var complaint tail
	cmd.Stderr = &complaint
	if err := startWithout(cmd); errors.Is(err, syscall.EINVAL) {
		return fmt.Errorf("start the worker: %w (the kernel must have CONFIG_PID_NS)", err)
	} else if err != nil {
		return fmt.Errorf("start the worker: %w", err)
	}
	_, sendErr := stdin.Write(append(request, '\n'))
	said, listenErr := listen(stdout, tell)
	if listenErr != nil {
		kill(cmd) // it says what no worker says
	}
	closeErr := stdin.Close()
	waitErr := s.end(cmd)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case listenErr != nil:
		return listenErr
	case said != nil:
		return said
	case waitErr != nil:
		return fmt.Errorf("worker ended: %w%s", waitErr, complaint.String())
	case errors.Is(sendErr, syscall.EPIPE):
		return nil // it ended without asking; what it lacks to say is missed elsewhere
	case errors.Is(closeErr, os.ErrClosed):
		closeErr = nil
	}
	return errors.Join(sendErr, closeErr)
}

// listen passes events on, until the worker ends, and returns the error that it
// tells.
func listen(r io.Reader, tell func(Event)) (said, err error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 64<<10), maxLine)
	for lines.Scan() {
		var e Event
		d := json.NewDecoder(bytes.NewReader(lines.Bytes()))
		if err := d.Decode(&e); err != nil {
			return said, fmt.Errorf("worker says what is malformed: %w", err)
		}
		if e.Error != "" {
			said = told{e.Error, e.Full}
			continue
		}
		tell(e)
	}
	if err := lines.Err(); err != nil {
		return said, fmt.Errorf("listen to the worker: %w", err)
	}
	return said, nil
}

// told is an error that a worker tells, of which it says whether it is for want of room.
type told struct {
	text string
	full bool
}

// Error implements error.
func (t told) Error() string { return t.text }

// Is has errors.Is find the want of room, for the one who says what to do.
func (t told) Is(target error) bool { return t.full && target == syscall.ENOSPC }

// tail keeps the end of what is written to it.
type tail struct{ b []byte }

const maxTail = 2 << 10

// Write implements io.Writer.
func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	t.b = t.b[max(0, len(t.b)-maxTail):]
	return len(p), nil
}

func (t *tail) String() string {
	if len(t.b) == 0 {
		return ""
	}
	return ": " + strings.TrimSpace(string(t.b))
}
