package console

import (
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// terminal makes a pseudoterminal: the side of who types, and the path of ours.
func terminal(t *testing.T) (typist *os.File, path string) {
	t.Helper()
	typist, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { typist.Close() })
	number, err := unix.IoctlGetInt(int(typist.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(typist.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	return typist, fmt.Sprintf("/dev/pts/%d", number)
}

// TestListen: only a key that a person pressed opens the recovery console.
// FAULTS 77
func TestListen(t *testing.T) {
	for _, tt := range []struct {
		name  string
		typed []string // each in one piece
		want  bool
	}{
		{"nothing", nil, false},
		{"the key", []string{"r"}, true},
		{"capital", []string{"R"}, true},
		{"among others", []string{"\r\r ", "xr"}, true},
		{"another key", []string{"q\x03\x04\x1a\r"}, false},
		{"where the cursor is", []string{"\x1b[24;80R"}, false},
		{"a colour", []string{"\x1b]11;rgb:0000/0000/0000\x1b\\\x1b]10;rgb:ffff/ffff/ffff\x07"}, false},
		{"a colour in pieces", []string{"\x1b", "]11;r", "gb:0000", "\x1b", "\\"}, false},
		{"function keys", []string{"\x1bOR\x1b[17~"}, false}, // F3 and F6
		{"after a colour", []string{"\x1b]11;rgb:0000/0000/0000\x1b\\r"}, true},
		{"after Esc and Enter", []string{"\x1b\r", "r"}, true},
		{"after what begins a string and Enter", []string{"\x1bP\r", "r"}, true},
		{"noise", []string{"\x00\xff\xfe\x80\n"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			typist, path := terminal(t)
			l := listen([]string{"/nowhere", path})
			defer l.Close()
			if l.Asked() || l.Touched() {
				t.Error("asked before anything was typed")
			}
			for _, piece := range tt.typed {
				if _, err := typist.WriteString(piece); err != nil {
					t.Fatal(err)
				}
				l.settle(t)
			}
			if got := l.Asked(); got != tt.want {
				t.Errorf("Asked() = %v, want %v", got, tt.want)
			}
			if l.Touched() != (len(tt.typed) > 0) {
				t.Errorf("Touched() = %v", l.Touched())
			}
		})
	}
}

// settle waits until what was typed has arrived.
func (l *Listener) settle(t *testing.T) {
	t.Helper()
	fds := []unix.PollFd{{Fd: int32(l.terminals[0].fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(fds, 2000); n != 1 || err != nil {
		t.Fatalf("what was typed did not arrive: %d, %v", n, err)
	}
	l.Asked()
}

// TestListenCosts: the boot waits for nothing, a line that never falls silent
// included, and the terminal is left as it was.
func TestListenCosts(t *testing.T) {
	typist, path := terminal(t)
	ours, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	before, err := unix.IoctlGetTermios(int(ours.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	l := listen([]string{path})
	stop := make(chan struct{})
	ended := make(chan struct{})
	noisy := int(typist.Fd()) // which has it block, each time
	if err := unix.SetNonblock(noisy, true); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(ended)
		for {
			select {
			case <-stop:
				return
			default:
				_, _ = unix.Write(noisy, []byte("noise noise noise\x00"))
			}
		}
	}()
	began := time.Now()
	asked := l.Asked()
	if took := time.Since(began); took > 30*time.Second || asked {
		t.Errorf("asked %v after %v", asked, took)
	}
	close(stop)
	<-ended
	l.Close()
	l.Close()
	after, err := unix.IoctlGetTermios(int(ours.Fd()), unix.TCGETS)
	if err != nil || *after != *before {
		t.Errorf("the terminal's mode is %+v, was %+v (%v)", after, before, err)
	}
}
