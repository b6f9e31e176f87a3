package qemutests

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"halogenos.internal/builder/vm"
)

// firmwareUp is what OVMF prints when it looks for something to boot.
const firmwareUp = `BdsDxe: `

// images makes a directory of images with one empty disk in it.
func images(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "empty", "disk.img")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 64<<20); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HALOGEN_IMAGES", dir)
	t.Setenv("HALOGEN_OUT", t.TempDir())
}

// TestProvision brings a machine into a state once: the second test to ask gets a
// clone of it, another kind or another image does not.
func TestProvision(t *testing.T) {
	Need(t)
	images(t)
	runs := 0
	bring := func(g *Guest) map[string]string {
		if runs++; runs == 1 {
			g.Expect(firmwareUp)
		}
		if err := os.WriteFile(g.State().TPM()+"/note", []byte("provisioned"), 0o644); err != nil {
			t.Fatal(err)
		}
		return map[string]string{"recovery key": "shown once"}
	}
	o := Options{Image: "empty"}
	first := Provision(t, o, "one", bring)
	again := Provision(t, o, "one", bring)
	if runs != 1 || again.State != first.State || again.Notes["recovery key"] != "shown once" {
		t.Errorf("%d runs, %v and %v", runs, first, again)
	}
	g := Machine(t, Options{State: again.State})
	if b, err := os.ReadFile(g.State().TPM() + "/note"); err != nil || string(b) != "provisioned" {
		t.Errorf("the clone holds %q, %v", b, err)
	}
	if g.State() == again.State {
		t.Error("the provisioned machine itself was switched on")
	}
	Provision(t, o, "two", bring)
	if err := os.WriteFile(filepath.Join(os.Getenv("HALOGEN_IMAGES"), "empty", "disk.img"), []byte("other bytes"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(os.Getenv("HALOGEN_IMAGES"), "empty", "disk.img"), 64<<20); err != nil {
		t.Fatal(err)
	}
	Provision(t, o, "one", bring)
	if runs != 3 {
		t.Errorf("%d runs; want one each for two kinds and two images", runs)
	}
}

// TestProvisionTooLate: a machine that was stopped too late is not kept, and the next is a
// new one.
func TestProvisionTooLate(t *testing.T) {
	Need(t)
	images(t)
	tries := 0
	p := provisionOf(t, Options{Image: "empty"}, "late", func(g *Guest) (map[string]string, error) {
		note := g.State().TPM() + "/note"
		if _, err := os.Stat(note); err == nil {
			t.Error("the next machine is the one before")
		}
		if err := os.WriteFile(note, []byte("late"), 0o644); err != nil {
			t.Fatal(err)
		}
		if tries++; tries < 3 {
			return nil, errTooLate
		}
		return map[string]string{"tries": fmt.Sprint(tries)}, nil
	})
	if tries != 3 || p.Notes["tries"] != "3" {
		t.Errorf("%d tries, notes %v", tries, p.Notes)
	}
}

// TestRemoveStale keeps what is in use.
func TestRemoveStale(t *testing.T) {
	base := t.TempDir()
	now := time.Now()
	for name, age := range map[string]time.Duration{"old": staleAfter + time.Hour, "new": time.Hour} {
		dir := filepath.Join(base, name)
		if err := errors.Join(os.Mkdir(dir, 0o755), os.Chtimes(dir, now.Add(-age), now.Add(-age))); err != nil {
			t.Fatal(err)
		}
	}
	removeStale(base, now)
	if entries, err := os.ReadDir(base); err != nil || len(entries) != 1 || entries[0].Name() != "new" {
		t.Errorf("left: %v, %v", entries, err)
	}
}

// TestHashSparse: holes and zeros are the same, places and sizes are not.
func TestHashSparse(t *testing.T) {
	write := func(size int64, at map[int64]byte) string {
		path := filepath.Join(t.TempDir(), "file")
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for off, value := range at {
			if _, err := f.WriteAt([]byte{value}, off); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		h := sha256.New()
		if err := hashSparse(h, path); err != nil {
			t.Fatal(err)
		}
		return hex.EncodeToString(h.Sum(nil))
	}
	const size = 5<<20 + 700
	base := write(size, map[int64]byte{4096: 1, 3 << 20: 2, size - 1: 3})
	if got := write(size, map[int64]byte{4096: 1, 8192: 0, 2 << 20: 0, 3 << 20: 2, size - 1: 3}); got != base {
		t.Error("written zeros change the hash")
	}
	for name, at := range map[string]map[int64]byte{
		"another value": {4096: 9, 3 << 20: 2, size - 1: 3}, "another place": {4097: 1, 3 << 20: 2, size - 1: 3},
		"another block": {8192: 1, 3 << 20: 2, size - 1: 3}, "the last byte": {4096: 1, 3 << 20: 2},
	} {
		if write(size, at) == base {
			t.Errorf("%s does not change the hash", name)
		}
	}
	if write(size+1, map[int64]byte{4096: 1, 3 << 20: 2, size - 1: 3}) == base {
		t.Error("the size does not change the hash")
	}
}

// TestSlots: of two slots a third waits for the first that is given back.
func TestSlots(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "slots")
	var release [2]func()
	for i := range release {
		var err error
		if release[i], err = acquire(t.Context(), dir, 2, 1); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := acquire(ctx, dir, 2, 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("a third of two slots: %v", err)
	}
	got := make(chan error)
	go func() {
		again, err := acquire(t.Context(), dir, 2, 1)
		if err == nil {
			again()
		}
		got <- err
	}()
	release[1]()
	if err := <-got; err != nil {
		t.Error(err)
	}
	release[0]()
}

// TestTurns: of those that wait for a slot the costliest is first, no matter who came first.
func TestTurns(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "slots")
	release, err := acquire(t.Context(), dir, 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	tests := []int{20, 300, 10, firstOfAll, 40}
	got := make(chan int, len(tests))
	var waiting sync.WaitGroup
	for _, cost := range tests {
		before := waitingTurns()
		waiting.Go(func() {
			free, err := acquire(t.Context(), dir, 1, cost)
			if err != nil {
				t.Error(err)
				return
			}
			got <- cost
			free()
		})
		for waitingTurns() == before {
			time.Sleep(time.Millisecond)
		}
	}
	release()
	waiting.Wait()
	close(got)
	var order []int
	for cost := range got {
		order = append(order, cost)
	}
	if want := []int{firstOfAll, 300, 40, 20, 10}; !slices.Equal(order, want) {
		t.Errorf("they came in the order %d, want %d", order, want)
	}
}

func waitingTurns() int {
	turnsMutex.Lock()
	defer turnsMutex.Unlock()
	return len(turns)
}

// TestExpected: a subtest without a cost of its own has its test's, and each name with a
// cost is that of a test.
func TestExpected(t *testing.T) {
	for name, want := range map[string]int{"TestUpdate": costs["TestUpdate"], "TestUpdate/it": costs["TestUpdate"], "TestNobodyKnows/it": usualCost} {
		if got := expected(name); got != want {
			t.Errorf("%s is expected to take %d s, want %d", name, got, want)
		}
	}
	var source []byte
	files, err := filepath.Glob("*_test.go")
	must(t, err)
	for _, file := range files {
		b, err := os.ReadFile(file)
		must(t, err)
		source = append(source, b...)
	}
	for name := range costs {
		if top, _, _ := strings.Cut(name, "/"); !strings.Contains(string(source), "\nfunc "+top+"(t *testing.T) {") {
			t.Errorf("there is no test %s", top)
		}
	}
}

// TestPatience: a wait ends at its timeout, but for the time that the machine was starved.
func TestPatience(t *testing.T) {
	for _, tt := range []struct {
		name  string
		share float64 // of the time in which others have the processor
		want  time.Duration
	}{{"idle host", 0, time.Minute}, {"busy host", 0.75, 4 * time.Minute}} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				starved := func() time.Duration { return time.Hour + time.Duration(tt.share*float64(time.Since(began))) }
				ctx, cancel := context.WithCancelCause(t.Context())
				patience(ctx, cancel, time.Minute, starved)
				if took := time.Since(began); took < tt.want || took > tt.want+time.Second || !strings.Contains(context.Cause(ctx).Error(), "nothing for 1m0s") {
					t.Errorf("it took %v, want %v; %v", took, tt.want, context.Cause(ctx))
				}
			})
		})
	}
}

// TestFailureIsKept runs a test that fails, in a process of its own, and looks for
// the console in its output and in the directory for logs.
func TestFailureIsKept(t *testing.T) {
	Need(t)
	if os.Getenv("HARNESS_TEST_FAIL") == "1" {
		g := Machine(t, Options{Image: "empty", VM: vm.Options{TPM: vm.NoTPM}})
		g.Expect(firmwareUp)
		g.PowerCut()
		g.PowerOn()
		g.Expect(firmwareUp)
		g.timeout = time.Second
		g.Expect(`what no firmware says`)
		return
	}
	images(t)
	takeSlot(t) // here, where no clock runs; the other process finds one more
	out, err := rerun(t, "TestFailureIsKept", "HARNESS_TEST_FAIL=1", "HALOGEN_MACHINES=64")
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		t.Fatalf("the failing test: %v\n%s", err, out)
	}
	for _, want := range []string{"logs of 2 starts are in", firmwareUp, "nothing for 1s", "what no firmware says"} {
		if !strings.Contains(out, want) {
			t.Errorf("the output lacks %q:\n%s", want, out)
		}
	}
	kept, err := filepath.Glob(filepath.Join(os.Getenv("HALOGEN_OUT"), "failed", "TestFailureIsKept", "*", "*", "console.log"))
	if err != nil || len(kept) != 2 {
		t.Fatalf("kept %q, %v; want two consoles", kept, err)
	}
	if b, err := os.ReadFile(kept[1]); err != nil || !strings.Contains(string(b), firmwareUp) {
		t.Errorf("%s: %v, %q", kept[1], err, b)
	}
}

// TestSkips: what is missing skips a test with its reason, and fails it in CI.
func TestSkips(t *testing.T) {
	Need(t)
	if os.Getenv("HARNESS_TEST_SKIP") == "1" {
		Image(t, "absent")
		return
	}
	for _, tt := range []struct {
		env  []string
		want []string
	}{
		{[]string{"CI=", "HALOGEN_IMAGES="}, []string{"--- SKIP", "HALOGEN_IMAGES is not set"}},
		{[]string{"CI=", "HALOGEN_IMAGES=/nowhere"}, []string{"--- SKIP", "image absent", "/nowhere/absent/disk.img"}},
		{[]string{"CI=true", "HALOGEN_IMAGES="}, []string{"--- FAIL", "HALOGEN_IMAGES is not set"}},
	} {
		out, _ := rerun(t, "TestSkips", append(tt.env, "HARNESS_TEST_SKIP=1")...) // the output says it
		for _, want := range tt.want {
			if !strings.Contains(out, want) {
				t.Errorf("%q: the output lacks %q:\n%s", tt.env, want, out)
			}
		}
	}
}

// rerun runs one test of this program in another process.
func rerun(t *testing.T, name string, env ...string) (string, error) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, self, "-test.run=^"+name+"$", "-test.v")
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}
