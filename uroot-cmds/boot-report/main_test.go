package main

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"halogenos.internal/boot/bootreport"
	"halogenos.internal/boot/bootreport/reporttest"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/initagent/bootinfo"
	"halogenos.internal/initagent/command/commandtest"
	"halogenos.internal/initagent/tpm"
)

// chip is a software TPM with the event log of a boot of release 7.
type chip struct{ socket string }

func (c chip) Open() (*tpm.TPM, error) { return tpm.Open(c.socket) }

func (chip) EventLog() ([]byte, error) { return reporttest.Boot(7).Bytes(), nil }

// absent is a machine without a TPM.
type absent struct{ chip }

func (absent) Open() (*tpm.TPM, error) { return nil, tpm.ErrAbsent }

// unlogged has a firmware that keeps no log.
type unlogged struct{ chip }

func (unlogged) EventLog() ([]byte, error) { return nil, errors.New("there is no event log") }

// start starts a software TPM.
func start(t *testing.T) chip {
	t.Helper()
	swtpm := testkit.Need(t, "swtpm")
	dir, err := os.MkdirTemp("", "tpm") // t.TempDir is too long for a socket's name
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(swtpm, "socket", "--tpm2", "--tpmstate", "dir="+dir, "--server", "type=unixio,path="+dir+"/s",
		"--ctrl", "type=unixio,path="+dir+"/c", "--flags", "not-need-init,startup-clear")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
		_ = os.RemoveAll(dir)
	})
	for range 200 {
		if _, err := os.Stat(dir + "/s"); err == nil {
			return chip{dir + "/s"}
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("swtpm does not listen")
	return chip{}
}

// place has the report of a boot.
func place(t *testing.T, boot *bootinfo.Report) bootinfo.Place {
	t.Helper()
	dir := t.TempDir()
	p := bootinfo.Place{Report: filepath.Join(dir, bootinfo.ReportName), BootID: filepath.Join(dir, "boot_id")}
	text, err := json.Marshal(boot)
	if err != nil {
		t.Fatal(err)
	}
	for path, content := range map[string]string{p.Report: string(text), p.BootID: "0f3c9f6e-7d0e-4a55-9c1a-2f8a4c1f0b11\n"} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func sample() *bootinfo.Report {
	return &bootinfo.Report{ImageID: "desktop", Arch: "x86_64", Version: "7", Epoch: 3, Floor: 2, Slot: layout.SlotB, Reason: strings.Repeat("ä", 600), Root: "tpm"}
}

func TestBootReport(t *testing.T) {
	s := source{start(t), place(t, sample()), func() time.Time { return time.Unix(1_800_000_000, 0) }}
	code, out, errs := commandtest.Run(cmd(s), "--nonce", "00112233445566778899aabbccddeeff")
	if code != 0 || errs != "" {
		t.Fatalf("%d, %s", code, errs)
	}
	r, err := bootreport.Parse([]byte(out))
	if err != nil {
		t.Fatal(err)
	}
	got := r.Statement
	if got.Version != 7 || got.Floor != 2 || got.Slot != layout.SlotB || got.Time != 1_800_000_000 || len(got.Nonce) != 16 || len(got.Reason) != bootreport.MaxReason {
		t.Errorf("%+v", got)
	}
	// The registers of this TPM are those of no boot, and only that is wrong with it.
	if _, err := bootreport.Verify(r, reporttest.Want(7)); err == nil || !strings.Contains(err.Error(), "PCR 11") || strings.Contains(err.Error(), "changed what") {
		t.Errorf("%v", err)
	}
	again, err := s.TPM.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if caps, err := again.Capabilities(); err != nil || caps.Lockout.Active || len(caps.Banks) == 0 {
		t.Errorf("the TPM afterwards: %+v, %v", caps, err)
	}
}

func TestBootReportRefuses(t *testing.T) {
	good := place(t, sample())
	none := good
	none.Report += "x"
	live := sample()
	live.Slot = 0
	for _, c := range []struct {
		name string
		s    source
		args []string
		code int
		want string
	}{
		{"no TPM", source{absent{}, good, time.Now}, nil, 1, "no TPM 2.0 was found"},
		{"no log", source{unlogged{}, good, time.Now}, nil, 1, "there is no event log"},
		{"another system", source{absent{}, none, time.Now}, nil, 1, "not started by HalogenOS"},
		{"no digits", source{absent{}, good, time.Now}, []string{"--nonce", "xy"}, 2, "hexadecimal digits"},
		{"a short nonce", source{start(t), good, time.Now}, []string{"--nonce", "00"}, 1, "a nonce of 1 bytes, want 8 to 64"},
		{"no slot", source{start(t), place(t, live), time.Now}, nil, 1, "slot"},
	} {
		if code, out, errs := commandtest.Run(cmd(c.s), c.args...); code != c.code || out != "" || !strings.Contains(errs, c.want) {
			t.Errorf("%s: %d, %q, %q; want %d, %q", c.name, code, out, errs, c.code, c.want)
		}
	}
}

// A challenge for another TPM gets no answer; one for this TPM does in tpm.TestAnswer.
func TestChallenge(t *testing.T) {
	dir := t.TempDir()
	name, err := bootreport.KeyName(reporttest.NewSigner(t).Public())
	if err != nil {
		t.Fatal(err)
	}
	c := bootreport.Challenge{Format: bootreport.ChallengeFormat, Key: name, Endorsement: tpm2.Marshal(tpm2.ECCEKTemplate), Credential: []byte{0}, Secret: []byte{0}}
	text, err := c.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for file, data := range map[string]string{"other": string(text), "garbage": "{}"} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := source{start(t), place(t, sample()), time.Now}
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--challenge", filepath.Join(dir, "other")}, 1, "the challenge is for another TPM"},
		{[]string{"--challenge", filepath.Join(dir, "garbage")}, 1, "garbage: challenge: format 0, want 1"},
		{[]string{"--challenge", filepath.Join(dir, "none")}, 1, "no such file"},
		{[]string{"--challenge", "x", "--nonce", "00"}, 2, "--nonce is for a report"},
	} {
		if code, out, errs := commandtest.Run(cmd(s), c.args...); code != c.code || out != "" || !strings.Contains(errs, c.want) {
			t.Errorf("%q: %d, %q, %q; want %d, %q", c.args, code, out, errs, c.code, c.want)
		}
	}
}

func TestUse(t *testing.T) { commandtest.Use(t, cmd(source{})) }

func TestManual(t *testing.T) { testkit.Manual(t, "boot-report.8") }
