package testkit

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// childEnv tells the test binary that it is the child of [Paused].
const childEnv = "HALOGEN_TEST_CHILD"

// Child is for the first line of a test that [Paused] starts in a process of
// its own. In the child it runs f, says that it is done, and waits to be looked at.
func Child(t testing.TB, f func(how string)) {
	t.Helper()
	how, ok := os.LookupEnv(childEnv)
	if !ok {
		return
	}
	f(how)
	if t.Failed() {
		os.Exit(1)
	}
	fmt.Println("paused")
	_, _ = io.Copy(io.Discard, os.Stdin) // until the parent has looked
	os.Exit(0)
}

// Paused runs the calling test again in a process of its own, which does what
// how says, and returns its id when it pauses. It ends with the test.
func Paused(t testing.TB, how string) int {
	t.Helper()
	name, _, _ := strings.Cut(t.Name(), "/")
	c := exec.Command(os.Args[0], "-test.run=^"+name+"$", "-test.v")
	c.Env = append(os.Environ(), childEnv+"="+how)
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.Stderr = os.Stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		_ = c.Wait()
	})
	var said strings.Builder
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if lines.Text() == "paused" {
			return c.Process.Pid
		}
		said.WriteString(lines.Text() + "\n")
	}
	t.Fatalf("the child ended before it paused:\n%s", said.String())
	return 0
}

// CountInMemory returns how often a text occurs in the memory of a process that
// is not the caller.
func CountInMemory(t testing.TB, pid int, text []byte) int {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	var mem *os.File
	if err == nil {
		mem, err = os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	}
	if errors.Is(err, os.ErrPermission) {
		Skip(t, "only root can read the memory of another process here: "+err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	count := 0
	for line := range strings.Lines(string(maps)) {
		var from, to uint64
		var mode string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); err != nil {
			t.Fatalf("line %q of maps: %v", line, err)
		}
		if mode[0] == 'r' && from < 1<<63 { // vsyscall lies above, and cannot be read
			count += countBetween(mem, int64(from), int64(to), text)
		}
	}
	return count
}

// countBetween leaves out the pages that cannot be read: [vvar] and the like.
func countBetween(mem io.ReaderAt, from, to int64, text []byte) int {
	const chunk = 1 << 20
	count := 0
	buf := make([]byte, chunk+len(text)-1)
	for ; from < to; from += chunk {
		n, _ := mem.ReadAt(buf[:min(int64(len(buf)), to-from)], from)
		count += bytes.Count(buf[:n], text)
	}
	return count
}
