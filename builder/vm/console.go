package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"sync"
	"time"
)

const (
	// maxConsole bounds what is kept of a console in memory, in bytes; the log file
	// keeps everything.
	maxConsole = 16 << 20
	// settle is how long new output gathers before it is searched again: a guest
	// writes byte by byte. A search that takes long waits for more: the machine wants the
	// processor, too.
	settle      = 20 * time.Millisecond
	longest     = 200 * time.Millisecond
	searchShare = 20 // one part of the time in so many
	// errorLines is how many lines of the console an error quotes.
	errorLines = 20
)

// ErrEnded says that the machine's console was closed: the machine is off.
var ErrEnded = errors.New("the machine has ended")

// Console is the serial port of a machine. What the guest writes is logged, kept,
// and can be waited for; what has been waited for is consumed. Text is searched
// without terminal escape sequences and carriage returns.
type Console struct {
	log  io.Writer
	conn io.ReadWriteCloser

	mu      sync.Mutex
	raw     []byte // as it came, for Attach
	text    []byte // stripped
	next    int    // position in text up to which it was consumed
	strip   stripper
	changed chan struct{} // closed and replaced when anything below or above changes
	ended   bool
	logErr  error
	done    chan struct{} // closed when reading ended
}

// newConsole starts to read; it ends when conn does.
func newConsole(conn io.ReadWriteCloser, log io.Writer) *Console {
	c := &Console{conn: conn, log: log, changed: make(chan struct{}), done: make(chan struct{})}
	go c.read()
	return c
}

func (c *Console) read() {
	defer close(c.done)
	buf := make([]byte, 32<<10)
	for {
		n, err := c.conn.Read(buf)
		c.mu.Lock()
		if n > 0 {
			if _, err := c.log.Write(buf[:n]); err != nil && c.logErr == nil {
				c.logErr = fmt.Errorf("console log: %w", err)
			}
			c.raw = append(c.raw, buf[:n]...)
			c.text = c.strip.append(c.text, buf[:n])
			c.forget()
		}
		c.ended = err != nil
		close(c.changed)
		c.changed = make(chan struct{})
		c.mu.Unlock()
		if err != nil {
			return // the socket of a process that ended; how it ended is the machine's to say
		}
	}
}

// forget drops the older half of what has grown too long.
func (c *Console) forget() {
	if len(c.text) > maxConsole {
		cut := len(c.text) / 2
		c.text = append([]byte(nil), c.text[cut:]...)
		c.next = max(0, c.next-cut)
	}
	if len(c.raw) > maxConsole {
		c.raw = append([]byte(nil), c.raw[len(c.raw)/2:]...)
	}
}

// WaitFor waits until the expression matches what the guest wrote since the last
// match, consumes that, and returns the match and its groups. It fails with
// [ErrEnded] when the machine ends first, and with the context's error; the error
// quotes the end of the console. One goroutine may wait at a time.
func (c *Console) WaitFor(ctx context.Context, re *regexp.Regexp) ([]string, error) {
	_, match, err := c.WaitForAny(ctx, re)
	return match, err
}

// WaitForAny waits for several expressions and returns the index of the one that
// matches first in the text, of those at the same place the first given.
func (c *Console) WaitForAny(ctx context.Context, res ...*regexp.Regexp) (int, []string, error) {
	for {
		c.mu.Lock()
		began := time.Now()
		index, match := c.find(res)
		pause := min(max(settle, searchShare*time.Since(began)), longest)
		changed, ended := c.changed, c.ended
		c.mu.Unlock()
		if match != nil {
			return index, match, nil
		}
		if ended {
			return 0, nil, c.waitError(ErrEnded, res)
		}
		select {
		case <-ctx.Done():
			return 0, nil, c.waitError(context.Cause(ctx), res)
		case <-changed:
		}
		select {
		case <-ctx.Done(): // looked at once more above
		case <-c.done:
		case <-time.After(pause):
		}
	}
}

// find searches the unconsumed text and consumes it up to the end of the match.
func (c *Console) find(res []*regexp.Regexp) (int, []string) {
	best, index := []int(nil), 0
	for i, re := range res {
		loc := re.FindSubmatchIndex(c.text[c.next:])
		if loc != nil && (best == nil || loc[0] < best[0]) {
			best, index = loc, i
		}
	}
	if best == nil {
		return 0, nil
	}
	match := make([]string, len(best)/2)
	for i := range match {
		if best[2*i] >= 0 {
			match[i] = string(c.text[c.next+best[2*i] : c.next+best[2*i+1]])
		}
	}
	c.next += best[1]
	return index, match
}

func (c *Console) waitError(cause error, res []*regexp.Regexp) error {
	patterns := make([]string, len(res))
	for i, re := range res {
		patterns[i] = fmt.Sprintf("%q", re)
	}
	return fmt.Errorf("console: waiting for %s: %w; its last lines:\n%s",
		strings.Join(patterns, " or "), cause, c.Tail(errorLines))
}

// Send types bytes on the console.
func (c *Console) Send(b []byte) error {
	if _, err := c.conn.Write(b); err != nil {
		return fmt.Errorf("console: %w", err)
	}
	return nil
}

// SendLine types a line and the return key.
func (c *Console) SendLine(line string) error { return c.Send([]byte(line + "\r")) }

// Text returns everything the guest wrote so far, stripped, whether consumed or not.
func (c *Console) Text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.text)
}

// Tail returns the last lines of the console, stripped.
func (c *Console) Tail(lines int) string {
	all := strings.Split(strings.TrimRight(c.Text(), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// follow copies the raw console to w, from the first byte kept, until the machine
// or the context ends.
func (c *Console) follow(ctx context.Context, w io.Writer) error {
	for pos := 0; ; {
		c.mu.Lock()
		pos = min(pos, len(c.raw)) // forget may have cut
		out := c.raw[pos:]
		pos = len(c.raw)
		changed, ended := c.changed, c.ended
		c.mu.Unlock()
		if _, err := w.Write(out); err != nil {
			return fmt.Errorf("console output: %w", err)
		}
		if ended {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// stripper removes terminal escape sequences (ECMA-48: ESC with its intermediate
// and final bytes, CSI, and the OSC, DCS, APC, PM, SOS strings) and carriage returns
// from a stream that arrives in pieces.
type stripper struct {
	state stripState
	n     int // bytes of the current sequence
}

type stripState uint8

const (
	stripText stripState = iota
	stripEscape
	stripCSI
	stripString
	stripStringEscape
)

// maxSequence ends a sequence that never ends, which would swallow the log.
const maxSequence = 4096

func (s *stripper) append(dst, src []byte) []byte {
	for _, b := range src {
		if s.n++; s.n > maxSequence {
			s.state = stripText
		}
		switch s.state {
		case stripText:
			switch {
			case b == 0x1b:
				s.state, s.n = stripEscape, 0
			case b == '\r' || b == 0:
			default:
				dst = append(dst, b)
			}
		case stripEscape:
			switch {
			case b == '[':
				s.state = stripCSI
			case b == ']' || b == 'P' || b == '_' || b == '^' || b == 'X':
				s.state = stripString
			case b >= 0x30:
				s.state = stripText
			}
		case stripCSI:
			if b >= 0x40 && b <= 0x7e {
				s.state = stripText
			}
		case stripString:
			if b == 0x07 {
				s.state = stripText
			} else if b == 0x1b {
				s.state = stripStringEscape
			}
		case stripStringEscape:
			s.state = stripString
			if b == '\\' {
				s.state = stripText
			}
		}
	}
	return dst
}
