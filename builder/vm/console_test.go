package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestStrip(t *testing.T) {
	tests := []struct{ raw, want string }{
		{"plain\r\ntext\n", "plain\ntext\n"},
		{"\x1b[2J\x1b[01;01H\x1b[=3hBoot\x1b[0m", "Boot"},
		{"a\x1b]0;title\x07b\x1b]0;title\x1b\\c", "abc"},
		{"a\x1bPdevice\x1bcontrol\x1b\\b", "ab"},
		{"a\x1b(Bb\x1b=c\x1bMd", "abcd"},
		{"nul\x00s", "nuls"},
		{"\x1b]" + strings.Repeat("x", maxSequence) + "after", "xafter"},
	}
	for _, tt := range tests {
		var s stripper
		if got := string(s.append(nil, []byte(tt.raw))); got != tt.want {
			t.Errorf("strip(%.40q) = %q, want %q", tt.raw, got, tt.want)
		}
	}
}

// FuzzStrip: what comes in pieces is stripped like what comes at once, and text
// without escapes is kept.
func FuzzStrip(f *testing.F) {
	f.Add([]byte("a\x1b[31mred\x1b]0;t\x07b\r\n"), uint8(3))
	f.Add([]byte("\x1b\x1b\x1b[\x1b\\"), uint8(1))
	f.Fuzz(func(t *testing.T, raw []byte, at uint8) {
		var whole, parts stripper
		want := whole.append(nil, raw)
		cut := min(int(at), len(raw))
		got := parts.append(parts.append(nil, raw[:cut]), raw[cut:])
		if !bytes.Equal(got, want) {
			t.Fatalf("in pieces %q, at once %q", got, want)
		}
		if len(want) > len(raw) || bytes.ContainsAny(want, "\x1b\r\x00") {
			t.Fatalf("%q was left of %q", want, raw)
		}
	})
}

// pipeConsole returns a console and the guest's end of it.
func pipeConsole(t *testing.T) (*Console, net.Conn, *bytes.Buffer) {
	t.Helper()
	ours, guest := net.Pipe()
	var log bytes.Buffer
	c := newConsole(ours, &log)
	t.Cleanup(func() { _ = guest.Close(); <-c.done })
	return c, guest, &log
}

func write(t *testing.T, w io.Writer, text string) {
	t.Helper()
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
}

func TestWaitForConsumes(t *testing.T) {
	c, guest, log := pipeConsole(t)
	write(t, guest, "one login: two \x1b[1mlogin:\x1b[0m three error")
	login := regexp.MustCompile(`(\w+) login:`)
	for _, want := range []string{"one", "two"} {
		match, err := c.WaitFor(t.Context(), login)
		if err != nil || match[1] != want {
			t.Fatalf("matched %q, %v; want %s", match, err, want)
		}
	}
	i, match, err := c.WaitForAny(t.Context(), regexp.MustCompile("never"), regexp.MustCompile("error"), regexp.MustCompile("(x)?three"))
	if err != nil || i != 2 || match[0] != "three" || match[1] != "" {
		t.Errorf("the first in the text is %d %q, %v; want 2 three", i, match, err)
	}
	if _, err := c.WaitFor(t.Context(), regexp.MustCompile("error")); err != nil {
		t.Errorf("what follows a match was consumed with it: %v", err)
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errors.New("nothing for 50ms"))
	defer cancel()
	_, err = c.WaitFor(ctx, login)
	if err == nil || !strings.Contains(err.Error(), "nothing for 50ms") || !strings.Contains(err.Error(), "two login: three error") {
		t.Errorf("error %q names neither cause nor console", err)
	}
	_ = guest.Close()
	if _, err := c.WaitFor(t.Context(), login); !errors.Is(err, ErrEnded) {
		t.Errorf("on a closed console: %v; want ErrEnded", err)
	}
	if !strings.Contains(log.String(), "\x1b[1mlogin:") {
		t.Errorf("the log is not raw: %q", log)
	}
}

// TestWaitForEndOfText: what the guest says last, with the end of the machine right
// behind, is still found.
func TestWaitForEndOfText(t *testing.T) {
	for range 50 {
		c, guest, _ := pipeConsole(t)
		go func() {
			_, _ = io.WriteString(guest, "reboot: Power down\n") // found below, or not
			_ = guest.Close()
		}()
		if _, err := c.WaitFor(t.Context(), regexp.MustCompile("Power down")); err != nil {
			t.Fatal(err)
		}
	}
}

func TestConsoleIsBounded(t *testing.T) {
	c, guest, _ := pipeConsole(t)
	line := strings.Repeat("x", 1023) + "\n"
	for range maxConsole/1024 + 1 {
		write(t, guest, line)
	}
	write(t, guest, "the end\n")
	if _, err := c.WaitFor(t.Context(), regexp.MustCompile("the end")); err != nil {
		t.Fatal(err)
	}
	if got := len(c.Text()); got > maxConsole {
		t.Errorf("%d bytes are kept, the bound is %d", got, maxConsole)
	}
	if tail := c.Tail(2); tail != line[:1023]+"\nthe end" {
		t.Errorf("tail %.40q...", tail)
	}
}

// brokenLog fails like a full disk.
type brokenLog struct{}

func (brokenLog) Write([]byte) (int, error) { return 0, errors.New("no space left") }

func TestBrokenLogIsReported(t *testing.T) {
	ours, guest := net.Pipe()
	c := newConsole(ours, brokenLog{})
	write(t, guest, "text")
	_ = guest.Close()
	<-c.done
	if c.logErr == nil || c.Text() != "text" {
		t.Errorf("log error %v, text %q", c.logErr, c.Text())
	}
}

// qmpServer plays QEMU: it answers each command by the script.
func qmpServer(t *testing.T, answers ...string) *QMP {
	t.Helper()
	ours, theirs := net.Pipe()
	go func() {
		defer theirs.Close()
		buf := make([]byte, 4096)
		for _, a := range answers {
			if n, err := theirs.Read(buf); err != nil || n == 0 {
				return
			}
			if _, err := fmt.Fprintln(theirs, a); err != nil {
				return
			}
		}
	}()
	q := newQMP(ours)
	t.Cleanup(func() { _ = ours.Close(); <-q.done })
	return q
}

func TestQMPReplies(t *testing.T) {
	event := `{"event":"SHUTDOWN","data":{"guest":true,"reason":"guest-panic"},"timestamp":{"seconds":1,"microseconds":2}}`
	q := qmpServer(t, `{"QMP":{}}`+"\n"+event+"\n"+`{"return":{},"id":1}`,
		`{"return":{"status":"stale"},"id":1}`+"\n"+`{"return":{"status":"running"},"id":2}`,
		`{"error":{"class":"GenericError","desc":"no medium"},"id":3}`,
		`{"return":"text","id":4}`,
		`no JSON`)
	if err := q.negotiate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if status, err := q.Status(t.Context()); err != nil || status != "running" {
		t.Errorf("status %q, %v", status, err)
	}
	var refused *QMPError
	if err := q.Do(t.Context(), "eject", nil, nil); !errors.As(err, &refused) || refused.Desc != "no medium" {
		t.Errorf("a refusal: %v", err)
	}
	if _, err := q.Status(t.Context()); err == nil || !strings.Contains(err.Error(), "reply") {
		t.Errorf("a reply of another type: %v", err)
	}
	if _, err := q.Status(t.Context()); !errors.Is(err, ErrEnded) {
		t.Errorf("a peer that speaks no QMP: %v; want ErrEnded", err)
	}
	if e, err := q.WaitEvent(t.Context(), "RESET", "SHUTDOWN"); err != nil || e.Name != "SHUTDOWN" || e.Time.Unix() != 1 {
		t.Errorf("event %+v, %v", e, err)
	}
	if _, err := q.WaitEvent(t.Context(), "SHUTDOWN"); !errors.Is(err, ErrEnded) {
		t.Errorf("the event came twice: %v", err)
	}
	if q.shutdownReason() != "guest-panic" {
		t.Errorf("reason %q", q.shutdownReason())
	}
}

// TestAttachTerminal attaches a terminal: it is raw meanwhile, so that Ctrl-C
// reaches the guest, and as before afterwards.
func TestAttachTerminal(t *testing.T) {
	master, terminal := openPTY(t)
	c, guest, _ := pipeConsole(t)
	m := &Machine{console: c}
	before := lineMode(t, terminal)
	type outcome struct {
		detached bool
		err      error
	}
	done := make(chan outcome, 1)
	go func() {
		detached, err := m.Attach(t.Context(), terminal, io.Discard)
		done <- outcome{detached, err}
	}()
	for lineMode(t, terminal)&(unix.ICANON|unix.ISIG|unix.ECHO) != 0 {
		time.Sleep(time.Millisecond)
	}
	write(t, master, "a\x03")
	got := make([]byte, 2)
	if _, err := io.ReadFull(guest, got); err != nil || string(got) != "a\x03" {
		t.Errorf("the guest got %q, %v", got, err)
	}
	write(t, master, string(rune(EscapeKey)))
	if o := <-done; !o.detached || o.err != nil {
		t.Errorf("%+v; want detached", o)
	}
	if after := lineMode(t, terminal); after != before {
		t.Errorf("the terminal's mode was %#x and is %#x", before, after)
	}
}

// openPTY returns both ends of a pseudo terminal (pty(7)).
func openPTY(t *testing.T) (master, terminal *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = terminal.Close() })
	return master, terminal
}

func lineMode(t *testing.T, f *os.File) uint32 {
	t.Helper()
	mode, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return mode.Lflag
}
