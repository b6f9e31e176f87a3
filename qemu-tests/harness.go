// Package qemutests boots images in emulated machines and watches them. It holds
// what the boot tests share: machines that start from an image or from a machine
// provisioned earlier, the test system's language, and logs that outlive a failure.
//
// It refuses to run more machines at once than there are cores, over all test
// processes; to let two tests share a machine's directory; and, in CI, to skip.
//
// Environment: HALOGEN_IMAGES is the directory with the images (testos-1/disk.img,
// ...); HALOGEN_OUT takes logs of failed tests and provisioned machines, default
// out/qemu in the module; HALOGEN_MACHINES is how many machines may run at once;
// CI=true turns skips into failures.
package qemutests

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/testkit"
	"halogenos.internal/builder/vm"
	"halogenos.internal/qemu-tests/testos/protocol"
)

// DefaultTimeout bounds one wait of a test, without the time in which others had the
// processor: a host that is busy must not fail a test. An emulated boot takes half a minute.
const DefaultTimeout = 5 * time.Minute

// Memory of a machine, in MiB. The kernel erases all of it at each start (init_on_free),
// which takes the emulator 5 s for a GiB.
const (
	memoryMiB          = 320
	installerMemoryMiB = 512
	debianMemoryMiB    = 1024
)

// withDefaults are the options with the memory of a machine of the test system where a
// test names none.
func withDefaults(o vm.Options) vm.Options {
	if o.Memory == 0 {
		o.Memory = memoryMiB
	}
	return o
}

// Options describe the machine of a test.
type Options struct {
	Image string   // directory under HALOGEN_IMAGES whose disk.img a new machine gets
	State vm.State // or: a machine to clone, such as one from Provisioned
	// Prepare changes the machine's directory before it is switched on for the first time.
	Prepare func(s vm.State) error
	VM      vm.Options    // State and Log are the harness's
	Timeout time.Duration // of one wait, default DefaultTimeout
}

// Guest is a machine under test. Its methods fail the test, so it belongs to the
// test's goroutine.
type Guest struct {
	*vm.Machine            // of the last PowerOn; nil before
	VM          vm.Options // for the next PowerOn

	t        testing.TB
	name     string // in what is said of its cost
	began    time.Time
	timeout  time.Duration
	state    vm.State
	logs     string // directory with one directory for each start
	starts   int
	spent    time.Duration // of the processor, by the machines of all starts but this one
	endsInit bool          // the test has process 1 of the initramfs end
}

// Machine clones or makes the machine and switches it on. It is switched off and
// removed when the test ends; when the test has failed, its logs are kept.
func Machine(t testing.TB, o Options) *Guest {
	t.Helper()
	g := newGuest(t, o)
	g.PowerOn()
	return g
}

// newGuest makes the machine's directory.
func newGuest(t testing.TB, o Options) *Guest {
	t.Helper()
	Need(t)
	takeSlot(t)
	g := &Guest{t: t, name: t.Name(), began: time.Now(), VM: withDefaults(o.VM), timeout: o.Timeout, logs: filepath.Join(t.TempDir(), "logs")}
	if g.timeout == 0 {
		g.timeout = DefaultTimeout
	}
	dir := filepath.Join(t.TempDir(), "machine")
	var err error
	if o.State.Dir != "" {
		g.state, err = o.State.Clone(dir)
	} else {
		g.state, err = vm.NewState(dir, Image(t, o.Image))
		if err == nil {
			var fw vm.Firmware
			if fw, err = firmware(o); err == nil {
				err = g.state.UseFirmware(fw)
			}
		}
		if quick(o.Image) && err == nil {
			oneBank(t, g.state)
		}
	}
	if err == nil && o.Prepare != nil {
		err = o.Prepare(g.state)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.finish)
	return g
}

// quick tells whether a new machine with the image has the firmware that starts soonest,
// and a TPM with one bank. Those of the test system have, and those of the Debian that is
// updated, which starts a dozen times. The other Debian's are what its users get.
func quick(image string) bool {
	return strings.HasPrefix(image, "testos") || strings.HasPrefix(image, "update")
}

// firmware is what a new machine has.
func firmware(o Options) (vm.Firmware, error) {
	switch {
	case o.VM.Firmware != vm.Firmware{}:
		return o.VM.Firmware, nil
	case quick(o.Image):
		return vm.FindSmallFirmware()
	}
	return vm.FindFirmware()
}

// oneBank leaves a new TPM the bank of SHA-256 alone, as many machines have it: firmware,
// stub and kernel hash all that they start once for each bank. Other machines, and those
// that get another TPM, have all four.
func oneBank(t testing.TB, s vm.State) {
	t.Helper()
	dir, err := os.MkdirTemp("", "tpm") // the program takes no path with a comma
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	testkit.Run(t, "swtpm_setup", "--tpm2", "--tpmstate", dir, "--pcr-banks", "sha256")
	if err := os.CopyFS(s.TPM(), os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
}

// finish runs when the test has ended.
func (g *Guest) finish() {
	if g.Machine == nil {
		return
	}
	g.Close()
	g.account()
	g.sayCost()
	g.checkInit()
	if g.t.Failed() {
		g.keepLogs()
	}
}

// crash is what the kernel says where process 1 of an initramfs ends, or reads what is not its own.
// The machine starts once more then, and a test that only waits for what it wants to see would pass.
var crash = regexp.MustCompile(`(?m)^.*(init\[1\]: segfault|Attempted to kill init!).*$`)

// checkInit fails the test where process 1 of the initramfs has crashed in one of its starts.
func (g *Guest) checkInit() {
	consoles, err := filepath.Glob(filepath.Join(g.logs, "*", "console.log"))
	if err != nil || len(consoles) == 0 {
		g.t.Errorf("there is no console below %s: %v", g.logs, err)
	}
	for _, console := range consoles {
		text, err := os.ReadFile(console)
		if err != nil {
			g.t.Error(err)
		}
		if said := crash.Find(text); said != nil && !g.endsInit {
			g.t.Errorf("process 1 has crashed at start %s: %s", filepath.Base(filepath.Dir(console)), said)
		}
	}
}

// sayCost says what the machine, which has ended, has cost. CI shows these lines.
func (g *Guest) sayCost() {
	g.t.Logf("%s: %d starts in %.0f s took %.0f s of processor time", g.name, g.starts, time.Since(g.began).Seconds(), g.spent.Seconds())
}

// account adds up what the machine of the last start, which has ended, has cost.
func (g *Guest) account() {
	spent, err := g.ProcessorTime()
	if err != nil {
		g.t.Errorf("what the machine has cost: %v", err)
	}
	g.spent += spent
}

// Need skips the test, or fails it in CI, when a machine cannot be run here.
func Need(t testing.TB) {
	t.Helper()
	if err := vm.Check(); err != nil {
		skip(t, err.Error())
	}
}

// Image returns the path of an image's disk; without it the test is skipped, or
// fails in CI.
func Image(t testing.TB, name string) string {
	t.Helper()
	dir := os.Getenv("HALOGEN_IMAGES")
	if dir == "" {
		skip(t, "HALOGEN_IMAGES is not set: `make test` builds the images and sets it")
	}
	path := filepath.Join(dir, name, "disk.img")
	if _, err := os.Stat(path); err != nil {
		skip(t, fmt.Sprintf("image %s: %v", name, err))
	}
	return path
}

// skip is a failure where everything must be there.
func skip(t testing.TB, reason string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(reason)
	}
	t.Skip(reason)
}

// State is the machine's directory; it may be changed while the machine is off.
func (g *Guest) State() vm.State { return g.state }

// PowerOn switches the machine on, with the options in g.VM.
func (g *Guest) PowerOn() {
	g.t.Helper()
	g.starts++
	o := g.VM
	o.State, o.Log, o.Volatile = g.state, filepath.Join(g.logs, fmt.Sprint(g.starts)), true
	if o.Progress == nil {
		o.Progress = g.t.Output()
	}
	m, err := vm.Start(g.t.Context(), o)
	if err != nil {
		g.t.Fatal(err)
	}
	if g.Machine != nil {
		g.account()
	}
	g.Machine = m
}

// PowerCut pulls the plug.
func (g *Guest) PowerCut() { g.Kill() }

// suspend ends the machine so that the next start goes on.
func (g *Guest) suspend() {
	g.t.Helper()
	ctx, cancel := g.wait()
	defer cancel()
	if err := g.Suspend(ctx); err != nil {
		g.t.Fatal(err)
	}
}

// wait returns a context for one wait: the clock stands still while the machine waits for
// a processor.
func (g *Guest) wait() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(g.t.Context())
	go patience(ctx, cancel, g.timeout, g.Starved)
	return ctx, func() { cancel(context.Canceled) }
}

// patience cancels a wait when it has taken longer than the timeout, and besides what the
// machine was starved in that time.
func patience(ctx context.Context, cancel context.CancelCauseFunc, timeout time.Duration, starved func() time.Duration) {
	began, before := time.Now(), starved()
	for {
		lost := max(starved()-before, 0)
		left := timeout + lost - time.Since(began)
		if left <= 0 {
			cancel(fmt.Errorf("nothing for %v, and for %v in which others had the processor", timeout, lost.Round(time.Second)))
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(max(left, 100*time.Millisecond)): // what was lost meanwhile comes on top
		}
	}
}

// Expect waits until the console shows what the expression matches, and returns the
// match and its groups.
func (g *Guest) Expect(pattern string) []string {
	g.t.Helper()
	_, match := g.ExpectAny(pattern)
	return match
}

// ExpectAny waits for several expressions and tells which came first.
func (g *Guest) ExpectAny(patterns ...string) (int, []string) {
	g.t.Helper()
	res := make([]*regexp.Regexp, len(patterns))
	for i, p := range patterns {
		res[i] = regexp.MustCompile(p)
	}
	ctx, cancel := g.wait()
	defer cancel()
	i, match, err := g.Console().WaitForAny(ctx, res...)
	if err != nil {
		g.t.Fatal(err)
	}
	return i, match
}

// ExpectOff waits until the guest has ended the machine and returns the reason, such
// as guest-shutdown.
func (g *Guest) ExpectOff() string {
	g.t.Helper()
	ctx, cancel := g.wait()
	defer cancel()
	reason, err := g.Wait(ctx)
	if err != nil {
		g.t.Fatal(err)
	}
	return reason
}

// answer matches the only line that answers a command of the test system. The
// prompt may stand before it, when the command was typed ahead.
var answer = regexp.MustCompile(`(?m)^(?:` + regexp.QuoteMeta(protocol.Prompt) + `)?(` + protocol.OK + `|` + protocol.Failed + `) (.*)\n`)

// greeting matches the test system's report and its prompt. It begins with what it
// looks for, and so is found fast, as often as the console is searched.
const greeting = protocol.Greeting + ` (\{.*\})\n(?s:.*?)` + protocol.Prompt

// Boot waits until the test system is up and returns its report.
func (g *Guest) Boot() protocol.Report {
	g.t.Helper()
	match := g.Expect(greeting)
	var r protocol.Report
	if err := json.Unmarshal([]byte(match[1]), &r); err != nil {
		g.t.Fatalf("report of the test system: %v: %.200s", err, match[1])
	}
	return r
}

// ErrRefused is a command that the test system answered with ERR.
var ErrRefused = errors.New("the test system refused")

// Try sends a command to the test system and decodes its answer into result (nil:
// dropped). An answer of ERR is an error that wraps ErrRefused.
func (g *Guest) Try(result any, words ...string) error {
	g.t.Helper()
	line, err := protocol.Line(words...)
	if err == nil {
		err = g.SendLine(line)
	}
	if err != nil {
		g.t.Fatal(err)
	}
	ctx, cancel := g.wait()
	defer cancel()
	match, err := g.WaitFor(ctx, answer)
	if err != nil {
		g.t.Fatalf("command %.80q: %v", words, err)
	}
	if match[1] == protocol.Failed {
		return fmt.Errorf("%w %.80q: %s", ErrRefused, words, match[2])
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal([]byte(match[2]), result); err != nil {
		g.t.Fatalf("answer to %.80q: %v: %.200s", words, err, match[2])
	}
	return nil
}

// Do is Try for a command that has to succeed.
func (g *Guest) Do(result any, words ...string) {
	g.t.Helper()
	if err := g.Try(result, words...); err != nil {
		g.t.Fatal(err)
	}
}

// Report asks the test system for a new report.
func (g *Guest) Report() protocol.Report {
	g.t.Helper()
	var r protocol.Report
	g.Do(&r, "report")
	return r
}

// RunResult is how a program ended in the test system.
type RunResult struct {
	Exit           int
	State          string // as in os.ProcessState
	Stdout, Stderr string // the last 64 KiB of each
}

// Run executes a program in the test system.
func (g *Guest) Run(program string, args ...string) RunResult {
	g.t.Helper()
	var r RunResult
	g.Do(&r, append([]string{"run", program}, args...)...)
	return r
}

// Reboot has the test system restart the machine and returns the report of the next
// boot.
func (g *Guest) Reboot() protocol.Report {
	g.t.Helper()
	g.Do(nil, "reboot")
	return g.Boot()
}

// PowerOff has the test system switch the machine off.
func (g *Guest) PowerOff() {
	g.t.Helper()
	g.Do(nil, "poweroff")
	if reason := g.ExpectOff(); reason != "guest-shutdown" {
		g.t.Fatalf("the machine went off by %s", reason)
	}
}

// logLines is how much of the console of a failed test is printed.
const logLines = 60

// keepLogs saves the consoles of a failed test and prints the end of the last.
func (g *Guest) keepLogs() {
	to := filepath.Join(OutDir(g.t), "failed", fileName(g.t.Name()), time.Now().UTC().Format("20060102-150405.000"))
	if err := os.CopyFS(to, os.DirFS(g.logs)); err != nil {
		g.t.Logf("keep logs: %v", err)
	}
	g.t.Logf("logs of %d starts are in %s; the last %d lines of the console:\n%s", g.starts, to, logLines, g.Console().Tail(logLines))
}

// fileName makes a test's name fit for a directory.
func fileName(name string) string {
	return strings.Trim(regexp.MustCompile(`[^A-Za-z0-9._-]+`).ReplaceAllString(name, "_"), "_.")
}

// OutDir is where results that outlive a test go.
func OutDir(t testing.TB) string {
	t.Helper()
	if dir := os.Getenv("HALOGEN_OUT"); dir != "" {
		abs, err := filepath.Abs(dir)
		if err != nil {
			t.Fatal(err)
		}
		return abs
	}
	dir, err := os.Getwd()
	for err == nil && dir != "/" {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return filepath.Join(dir, "out", "qemu")
		}
		dir = filepath.Dir(dir)
	}
	t.Fatalf("HALOGEN_OUT is not set, and no go.mod above (%v)", err)
	return ""
}
