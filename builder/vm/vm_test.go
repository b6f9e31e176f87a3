package vm

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/testkit"
)

// need skips (or fails, in CI) when a machine cannot be started here.
func need(t *testing.T) {
	t.Helper()
	testkit.Need(t, "qemu-system-x86_64")
	testkit.Need(t, "swtpm")
	if _, err := FindFirmware(); err != nil {
		testkit.Skip(t, err.Error())
	}
}

// deadline is generous: the machine is emulated, and shares its host.
func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func start(t *testing.T, o Options) *Machine {
	t.Helper()
	o.Progress = t.Output()
	m, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return m
}

func newState(t *testing.T, diskBytes int64) State {
	t.Helper()
	image := ""
	if diskBytes > 0 {
		image = filepath.Join(t.TempDir(), "image")
		if err := os.WriteFile(image, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(image, diskBytes); err != nil {
			t.Fatal(err)
		}
	}
	s, err := NewState(filepath.Join(t.TempDir(), "machine"), image)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// firmwareUp matches what OVMF prints when it has found nothing to boot and starts
// its shell or boot manager, or names the device it tries.
var firmwareUp = regexp.MustCompile(`BdsDxe: |UEFI Interactive Shell|Start PXE`)

// TestFirmware starts a machine of each bus and TPM model: OVMF must come to the
// point of looking for something to boot.
func TestFirmware(t *testing.T) {
	need(t)
	tests := []struct {
		name string
		o    Options
	}{
		{"virtio, crb", Options{}},
		{"nvme 4096, tis, i6300esb", Options{Bus: NVMe, SectorSize: 4096, TPM: TPMTIS, Watchdog: I6300ESB, Volatile: true}},
		{"sata, no TPM, iTCO", Options{Bus: SATA, TPM: NoTPM, Watchdog: ITCO, PVPanic: true, Display: true,
			Clock: time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC)}},
		{"usb 4096, network, OEM strings", Options{Bus: USB, SectorSize: 4096, Network: true, SMBIOS: []string{"one,two", "three=4"},
			Extra: []string{"-name", "extra"}}},
		{"no disk", Options{NoDisk: true}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.o.State = newState(t, 64<<20)
			m := start(t, tt.o)
			ctx := deadline(t)
			if _, err := m.WaitFor(ctx, firmwareUp); err != nil {
				t.Fatal(err)
			}
			if status, err := m.QMP().Status(ctx); err != nil || status != "running" {
				t.Errorf("status %q, %v; want running", status, err)
			}
			if tt.o.Display {
				checkDisplay(ctx, t, m)
			}
			if err := m.Stop(ctx); err != nil {
				t.Fatal(err)
			}
			if reason, err := m.Wait(ctx); reason != "host-qmp-quit" || err != nil {
				t.Errorf("ended by %q, %v; want host-qmp-quit", reason, err)
			}
			if _, err := m.WaitFor(ctx, regexp.MustCompile("never printed")); !errors.Is(err, ErrEnded) {
				t.Errorf("waiting on a machine that is off: %v; want ErrEnded", err)
			}
			log, err := os.ReadFile(filepath.Join(tt.o.State.Dir, "console.log"))
			if err != nil || !firmwareUp.Match(log) {
				t.Errorf("console.log (%v) does not hold what was waited for:\n%s", err, log)
			}
		})
	}
}

func checkDisplay(ctx context.Context, t *testing.T, m *Machine) {
	t.Helper()
	png := filepath.Join(t.TempDir(), "screen.png")
	if err := m.Screendump(ctx, png); err != nil {
		t.Error(err)
	}
	b, err := os.ReadFile(png)
	if err != nil || !bytes.HasPrefix(b, []byte("\x89PNG")) {
		t.Errorf("screendump: %v, %d bytes that are not a PNG", err, len(b))
	}
	if err := m.SendKeys(ctx, "esc", "ret"); err != nil {
		t.Error(err)
	}
	if err := m.SendKeys(ctx, "no such key"); err == nil {
		t.Error("an unknown key was pressed")
	}
}

// TestResetAndEvents presses the reset button and sees the firmware start again.
func TestResetAndEvents(t *testing.T) {
	need(t)
	m := start(t, Options{State: newState(t, 0), NoDisk: true, TPM: NoTPM})
	ctx := deadline(t)
	if _, err := m.WaitFor(ctx, firmwareUp); err != nil {
		t.Fatal(err)
	}
	if err := m.Reset(ctx); err != nil {
		t.Fatal(err)
	}
	if e, err := m.QMP().WaitEvent(ctx, "RESET"); err != nil || !strings.Contains(string(e.Data), "host-qmp-system-reset") {
		t.Fatalf("event %s %s, %v", e.Name, e.Data, err)
	}
	if _, err := m.WaitFor(ctx, firmwareUp); err != nil {
		t.Fatal(err)
	}
	var refused *QMPError
	if err := m.QMP().Do(ctx, "no-such-command", nil, nil); !errors.As(err, &refused) || refused.Class != "CommandNotFound" {
		t.Errorf("unknown command: %v", err)
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := m.QMP().WaitEvent(short, "NEVER"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting for an event that never comes: %v", err)
	}
}

// TestNoReboot ends a machine by its first reset.
func TestNoReboot(t *testing.T) {
	need(t)
	m := start(t, Options{State: newState(t, 0), NoDisk: true, TPM: NoTPM, NoReboot: true})
	ctx := deadline(t)
	if err := m.Reset(ctx); err != nil {
		t.Fatal(err)
	}
	if reason, err := m.Wait(ctx); reason != "host-qmp-system-reset" || err != nil {
		t.Errorf("ended by %q, %v", reason, err)
	}
}

// TestKillSnapshotRestore kills a machine whose firmware wrote variables and TPM
// state, and puts it back byte for byte.
func TestKillSnapshotRestore(t *testing.T) {
	need(t)
	s := newState(t, 64<<20)
	ctx := deadline(t)
	m := start(t, Options{State: s})
	if _, err := m.WaitFor(ctx, firmwareUp); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Clone(filepath.Join(t.TempDir(), "copy")); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a running machine was cloned: %v", err)
	}
	if _, err := Start(ctx, Options{State: s}); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a running machine was started: %v", err)
	}
	live, err := m.Snapshot(ctx, filepath.Join(t.TempDir(), "live"))
	if err != nil {
		t.Fatal(err)
	}
	if status, err := m.QMP().Status(ctx); err != nil || status != "running" {
		t.Errorf("after the snapshot: status %q, %v; want running", status, err)
	}
	ran, err := m.ProcessorTime()
	if err != nil || ran == 0 {
		t.Errorf("%v of processor time while it runs, %v", ran, err)
	}
	m.Kill()
	if reason, err := m.Wait(ctx); reason != ReasonKilled || err != nil {
		t.Errorf("ended by %q, %v; want %s", reason, err, ReasonKilled)
	}
	if all, err := m.ProcessorTime(); err != nil || all < ran {
		t.Errorf("%v of processor time after its end, %v; it was %v before", all, err, ran)
	}
	before, err := s.Clone(filepath.Join(t.TempDir(), "before"))
	if err != nil {
		t.Fatal(err)
	}
	for _, copied := range []State{before, live} {
		sameState(t, s, copied)
	}
	if fresh := newState(t, 0); sameBytes(t, fresh.Vars(), s.Vars()) {
		t.Error("the firmware wrote no variable")
	}
	if err := unix.Truncate(s.Vars(), 4096); err != nil {
		t.Fatal(err)
	}
	if err := s.ResetTPM(); err != nil {
		t.Fatal(err)
	}
	if err := s.Replace(before); err != nil {
		t.Fatal(err)
	}
	sameState(t, s, before)
	m = start(t, Options{State: s})
	if _, err := m.WaitFor(ctx, firmwareUp); err != nil {
		t.Fatalf("the restored machine: %v", err)
	}
}

func sameState(t *testing.T, a, b State) {
	t.Helper()
	for _, name := range []string{"disk.img", "vars.fd", "tpm/tpm2-00.permall"} {
		if !sameBytes(t, filepath.Join(a.Dir, name), filepath.Join(b.Dir, name)) {
			t.Errorf("%s differs between %s and %s", name, a.Dir, b.Dir)
		}
	}
}

func sameBytes(t *testing.T, a, b string) bool {
	t.Helper()
	x, err := os.ReadFile(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := os.ReadFile(b)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Equal(x, y)
}

// TestContextEndsEverything cancels the context: both processes are gone.
func TestContextEndsEverything(t *testing.T) {
	need(t)
	ctx, cancel := context.WithCancel(t.Context())
	m, err := Start(ctx, Options{State: newState(t, 0), NoDisk: true})
	if err != nil {
		t.Fatal(err)
	}
	qemu, swtpm := m.qemu.cmd.Process.Pid, m.swtpm.cmd.Process.Pid
	cancel()
	if reason, err := m.Wait(deadline(t)); reason != ReasonKilled || err != nil {
		t.Errorf("ended by %q, %v", reason, err)
	}
	for _, pid := range []int{qemu, swtpm} {
		if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
			t.Errorf("process %d is still there: %v", pid, err)
		}
	}
	m.Close()
}

// TestParentDies kills a program that runs a machine: both processes go with it.
func TestParentDies(t *testing.T) {
	need(t)
	if dir := os.Getenv("VM_TEST_PARENT"); dir != "" {
		m, err := Start(context.Background(), Options{State: State{dir}, NoDisk: true})
		if err != nil {
			t.Fatal(err)
		}
		os.Stdout.WriteString("pids " + strconv.Itoa(m.qemu.cmd.Process.Pid) + " " + strconv.Itoa(m.swtpm.cmd.Process.Pid) + "\n")
		select {}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(deadline(t), self, "-test.run=^TestParentDies$", "-test.v")
	cmd.Env = append(os.Environ(), "VM_TEST_PARENT="+newState(t, 0).Dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var seen bytes.Buffer
	re := regexp.MustCompile(`pids (\d+) (\d+)\n`)
	for buf := make([]byte, 4096); re.FindSubmatch(seen.Bytes()) == nil; {
		n, err := out.Read(buf)
		seen.Write(buf[:n])
		if err != nil {
			t.Fatalf("the program ended: %v\n%s", err, seen.Bytes())
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	for _, field := range re.FindStringSubmatch(seen.String())[1:] {
		gone(t, field)
	}
}

// gone waits until a process has ended; a zombie has.
func gone(t *testing.T, pid string) {
	t.Helper()
	for range 100 {
		stat, err := os.ReadFile("/proc/" + pid + "/stat")
		if err != nil || regexp.MustCompile(`\) [ZX] `).Match(stat) {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("process %s outlived the program that started it", pid)
}

// TestStartErrors is about machines that cannot be: each names what is wrong, and
// leaves the directory free.
func TestStartErrors(t *testing.T) {
	need(t)
	s := newState(t, 1<<20)
	odd := filepath.Join(t.TempDir(), "odd.img")
	if err := os.WriteFile(odd, make([]byte, 1000), 0o644); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		o    Options
		want string
	}{
		{"no directory", Options{}, "without a directory"},
		{"not a machine", Options{State: State{t.TempDir()}, NoDisk: true}, "is not a machine's directory"},
		{"unknown bus", Options{State: s, Bus: "scsi"}, `unknown bus "scsi"`},
		{"unknown TPM", Options{State: s, TPM: "1.2"}, `unknown TPM model "1.2"`},
		{"unknown watchdog", Options{State: s, Watchdog: "cat"}, `unknown watchdog "cat"`},
		{"sector size", Options{State: s, SectorSize: 520}, "sectors of 520 bytes"},
		{"4k sata", Options{State: s, Bus: SATA, SectorSize: 4096}, "512 bytes, not 4096"},
		{"partial sector", Options{State: s, Disks: []Disk{{Path: odd}}}, "1000 bytes are not a multiple"},
		{"absent disk", Options{State: s, Disks: []Disk{{Path: odd + "x"}}}, "no such file"},
		{"read-only log", Options{State: s, Disks: []Disk{{Path: odd, ReadOnly: true, WriteLog: "x"}}}, "write log of a read-only disk"},
		{"forward without network", Options{State: s, Forwards: []Forward{{1, 2}}}, "without a network"},
		{"no memory", Options{State: s, Memory: 1}, "1 MiB"},
		{"no firmware", Options{State: s, Firmware: Firmware{"/absent/code.fd", "/absent/vars.fd"}}, "apt-get install ovmf"},
		{"QEMU refuses", Options{State: s, Extra: []string{"-no-such-option"}}, "invalid option"},
		{"unknown accelerator", Options{State: s, Accel: "steam"}, "steam"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.o.Log = t.TempDir()
			m, err := Start(deadline(t), tt.o)
			if err == nil {
				m.Close()
				t.Fatal("the machine started")
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q does not say %q", err, tt.want)
			}
		})
	}
	if _, err := s.Clone(filepath.Join(t.TempDir(), "free")); err != nil {
		t.Errorf("the directory is still taken: %v", err)
	}
}

// TestMissingTool names the package that brings a program.
func TestMissingTool(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	err := Check()
	for _, want := range []string{"qemu-system-x86_64 is missing", "apt-get install qemu-system-x86", "apt-get install swtpm"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not say %q", err, want)
		}
	}
	var missing *MissingError
	if !errors.As(err, &missing) {
		t.Errorf("%T is not a MissingError", err)
	}
}

// TestAttach plays a user on a pipe: sees the console from its start, leaves with
// the escape key, and the machine goes on.
func TestAttach(t *testing.T) {
	need(t)
	m := start(t, Options{State: newState(t, 0), NoDisk: true, TPM: NoTPM})
	ctx := deadline(t)
	if _, err := m.WaitFor(ctx, firmwareUp); err != nil {
		t.Fatal(err)
	}
	keys, typing := io.Pipe()
	seen, screen := io.Pipe()
	result := make(chan error, 1)
	go func() {
		detached, err := m.Attach(ctx, keys, screen)
		if !detached {
			err = errors.Join(err, errors.New("not detached"))
		}
		result <- errors.Join(err, screen.Close())
	}()
	go func() {
		buf, text := make([]byte, 4096), []byte(nil)
		for !firmwareUp.Match(text) {
			n, err := seen.Read(buf)
			text = append(text, buf[:n]...)
			if err != nil {
				_ = typing.CloseWithError(err)
				return
			}
		}
		go io.Copy(io.Discard, seen)
		_, _ = typing.Write([]byte{'x', EscapeKey, 'y'}) // seen by result
	}()
	select {
	case err := <-result:
		if err != nil {
			t.Error(err)
		}
	case <-ctx.Done():
		t.Fatal("the escape key did not detach")
	}
	if status, err := m.QMP().Status(ctx); err != nil || status != "running" {
		t.Errorf("status %q, %v; want running", status, err)
	}
}
