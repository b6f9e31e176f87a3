package main

import (
	"encoding/json"
	"errors"
	"path"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/command/commandtest"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/inventory/inventorytest"
	"halogenos.internal/initagent/recovery"
	"halogenos.internal/initagent/tpm"
)

// typist answers every question alike.
type typist struct {
	hw.Console
	answer string
	asked  *string
}

func (t typist) Ask(prompt string, _ bool, _ time.Duration) ([]byte, error) {
	*t.asked += prompt
	return []byte(t.answer), nil
}

// Language implements hw.Console.
func (typist) Language() words.Language { return words.English }

func (typist) Close() error { return nil }

// none is a machine without a TPM.
type none struct{}

func (none) Open() (*tpm.TPM, error)   { return nil, tpm.ErrAbsent }
func (none) EventLog() ([]byte, error) { return nil, tpm.ErrAbsent }

func TestRollback(t *testing.T) {
	esp := inventorytest.New(t)
	esp.RootFileSystem = "btrfs"
	esp.Install(layout.SlotA, "os_7.efi")
	esp.Install(layout.SlotB, "os_8.efi")
	var asked string
	var noted []journal.Entry
	m := machine{
		take: func() (*recovery.Machine, error) {
			m := esp.Hardware()
			m.TPM = none{}
			return &recovery.Machine{Host: host.Host{Given: host.Given{Machine: m}}}, nil
		},
		terminal: func() (hw.Console, error) { return typist{answer: "n", asked: &asked}, nil },
		note:     func(e journal.Entry) error { noted = append(noted, e); return nil },
	}
	run := func(code int, args []string, want string) string {
		t.Helper()
		got, out, errs := commandtest.Run(cmd(m), args...)
		if got != code || !strings.Contains(out+errs, want) {
			t.Errorf("rollback %q: exit code %d, want %d and %q:\n%s%s", args, got, code, want, out, errs)
		}
		return out
	}
	has := func(name string, want bool) {
		t.Helper()
		if _, there := esp.Files[path.Join(bls.Directory, name)]; there != want {
			t.Errorf("%s is there: %v", name, there)
		}
	}
	run(1, nil, "nothing was changed")
	if !strings.Contains(asked, "Give up os_8.efi (slot b, blessed) and start version 7 (slot a, blessed)") {
		t.Errorf("asked %q", asked)
	}
	has("os_8.efi", true)

	// A system that would not start is nowhere to go.
	data := esp.Partition(layout.SlotA.System())
	good := make([]byte, 4096)
	if _, err := data.ReadAt(good, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := data.WriteAt([]byte{0xff, 0xfe}, 0); err != nil {
		t.Fatal(err)
	}
	run(1, []string{"--yes"}, "os_7.efi would not start")
	if _, err := data.WriteAt(good, 0); err != nil {
		t.Fatal(err)
	}
	has("os_8.efi", true)

	image := esp.Files[path.Join(bls.Directory, "os_8.efi")]
	run(0, []string{"--yes"}, "`ota rollback --state --cancel` has them stay")
	delete(esp.Files, path.Join(bls.Directory, "os_8+0.efi"))
	esp.Files[path.Join(bls.Directory, "os_8.efi")], noted = image, nil

	out := run(0, []string{"--yes", "--json"}, "")
	var change recovery.Change
	if err := json.Unmarshal([]byte(out), &change); err != nil || change.From.File != "os_8.efi" || change.To.Version != "7" {
		t.Errorf("%+v, %v", change, err)
	}
	has("os_8.efi", false)
	has("os_8+0.efi", true)
	if len(noted) != 1 || noted[0].Kind != journal.Rollback || noted[0].Version != 8 || noted[0].Slot != layout.SlotB {
		t.Errorf("noted %+v", noted)
	}
	run(1, []string{"--yes"}, "os_8+0.efi has no tries left")
	has("os_7.efi", true)
}

func TestUse(t *testing.T) {
	m := machine{take: func() (*recovery.Machine, error) { return nil, errors.New("no disk") }}
	commandtest.Use(t, cmd(m))
	if code, _, errs := commandtest.Run(cmd(m)); code != 1 || errs != "rollback: no disk\n" {
		t.Errorf("%d, %q", code, errs)
	}
}
