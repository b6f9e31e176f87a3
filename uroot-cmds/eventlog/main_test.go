package main

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"testing/fstest"

	"halogenos.internal/initagent/command/commandtest"
	"halogenos.internal/initagent/firstboot"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/inventory/inventorytest"
	"halogenos.internal/initagent/tpm"
)

// chip has an event log and nothing else.
type chip struct{ log []byte }

func (chip) Open() (*tpm.TPM, error) { return nil, tpm.ErrAbsent }

func (c chip) EventLog() ([]byte, error) {
	if c.log == nil {
		return nil, errors.New("there is no event log")
	}
	return c.log, nil
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("../../boot/pcr/testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestEventlog(t *testing.T) {
	esp := inventorytest.New(t)
	m := esp.Hardware()
	m.TPM = chip{read(t, "ovmf-enforced.eventlog")}
	run := func(code int, args ...string) string {
		t.Helper()
		got, out, errs := commandtest.Run(cmd(m), args...)
		if got != code {
			t.Errorf("eventlog %q: exit code %d, want %d: %s", args, got, code, errs)
		}
		return out + errs
	}
	has := func(out string, wants ...string) {
		t.Helper()
		for _, want := range wants {
			if !strings.Contains(out, want) {
				t.Errorf("lacks %q:\n%s", want, out)
			}
		}
	}
	out := run(0)
	has(out, "There is no event log of an earlier boot", "PCR 7 ", "PCR 11", "SecureBoot")
	if strings.Contains(out, "PCR 0 ") {
		t.Errorf("shows a register that nothing is bound to:\n%s", out)
	}
	has(run(0, "--all"), "PCR 0 ")
	if out := run(0, "11"); strings.Contains(out, "PCR 7 ") || !strings.Contains(out, "section .linux") {
		t.Errorf("PCR 11 alone:\n%s", out)
	}
	for _, wrong := range [][]string{{"24"}, {"-1"}, {"x"}, {"--all", "7"}} {
		has(run(2, wrong...), "usage: eventlog")
	}

	kept := firstboot.Directory + "/eventlog-1.bin"
	esp.Files[kept] = &fstest.MapFile{Data: read(t, "ovmf-enforced.eventlog")}
	has(run(0), "Nothing differs")
	esp.Files[kept] = &fstest.MapFile{Data: read(t, "ovmf-setup.eventlog")}
	has(run(0), "PCR 7 differs from the last boot that the TPM opened:\n  ")
	var got output
	if err := json.Unmarshal([]byte(run(0, "--json", "7")), &got); err != nil || !got.Compared || len(got.Differences) != 1 || len(got.Events) == 0 || len(got.Events[0].SHA256) != 64 {
		t.Errorf("%+v, %v", got, err)
	}
	esp.Files[kept] = &fstest.MapFile{Data: []byte("damage")}
	has(run(0), "the log of the last good boot: ", "There is no event log of an earlier boot")
	m.TPM = chip{}
	has(run(1), "there is no event log")
	m.TPM = chip{[]byte("not a log")}
	has(run(1), "parse event log")
}

func TestUse(t *testing.T) { commandtest.Use(t, cmd(hw.Machine{TPM: chip{}})) }
