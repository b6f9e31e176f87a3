package vm

import (
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestStarved: of two programs that never rest on one processor each waits for the other.
func TestStarved(t *testing.T) {
	t.Parallel()
	var may, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &may); err != nil {
		t.Fatal(err)
	}
	for cpu := range len(may) * 64 {
		if may.IsSet(cpu) && one.Count() == 0 {
			one.Set(cpu)
		}
	}
	var both []*process
	for range 2 {
		p, err := spawn(exec.Command("sh", "-c", "while :; do :; done"), nil, syscall.SIGKILL)
		if err != nil {
			t.Fatal(err)
		}
		defer p.end(0)
		if err := unix.SchedSetaffinity(p.cmd.Process.Pid, &one); err != nil {
			t.Fatal(err)
		}
		both = append(both, p)
	}
	began := time.Now()
	for both[0].starved() < 100*time.Millisecond {
		if time.Since(began) > time.Minute {
			t.Fatalf("starved for %v", both[0].starved())
		}
		time.Sleep(10 * time.Millisecond)
	}
	if starved, most := both[0].starved(), time.Since(began); starved > most+time.Second {
		t.Errorf("starved for %v in %v", starved, most)
	}
}

func TestRunDelay(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{"209609749 30605851 473\n": 30605851, "0 0 0": 0, "": 0, "1 2": 0, "1 -2 3": 0, "1 x 3": 0} {
		if got := runDelay(text); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}
