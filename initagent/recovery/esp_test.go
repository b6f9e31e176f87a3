package recovery

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/esp"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/inventory/inventorytest"
)

// open keeps what is needed for a root partition to be open.
type open struct{ Keeper }

func (open) Kept() (*Opened, error) { return &Opened{Secret: new(policy.Secret)}, nil }

// unset is a firmware without Secure Boot.
type unset struct{}

func (unset) Read(string, gpt.GUID) (uint32, []byte, error) { return 0, nil, fs.ErrNotExist }
func (unset) WriteAuthenticated(string, gpt.GUID, uint32, []byte) error {
	return errors.ErrUnsupported
}

func (unset) Room() (int64, bool) { return 0, false }

// typist types the answers in turn, and keeps what is shown.
type typist struct {
	answers []string
	shown   strings.Builder
}

func (t *typist) Print(text string) { t.shown.WriteString(text) }
func (t *typist) Close() error      { return nil }

// PrintSecret implements hw.Console.
func (t *typist) PrintSecret(text, _ string) { t.Print(text) }

// Language implements hw.Console.
func (*typist) Language() words.Language { return words.English }

// Positions implements hw.Console.
func (t *typist) Positions() (restore func()) { return func() {} }
func (*typist) Room() (columns, lines int)    { return 0, 0 }

// AskKey implements hw.Console.
func (t *typist) AskKey(prompt string, _ bool, timeout time.Duration) ([]byte, error) {
	return t.Ask(prompt, false, timeout)
}

func (t *typist) Ask(prompt string, _ bool, _ time.Duration) ([]byte, error) {
	t.shown.WriteString(prompt)
	if len(t.answers) == 0 {
		return nil, hw.ErrNobody
	}
	answer := t.answers[0]
	t.answers = t.answers[1:]
	return []byte(answer), nil
}

// espMachine is a machine whose root partition keeps copies of these files.
func espMachine(t *testing.T, files map[string]string) (*Machine, *inventorytest.Machine) {
	t.Helper()
	root := t.TempDir()
	disk := inventorytest.New(t)
	c := disk.Install(layout.SlotA, "os_7.efi")
	text, err := c.Encode()
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, data []byte) {
		t.Helper()
		at := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, data, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	write(contract.Path, text)
	index := esp.Index{Format: 1}
	for name, content := range files {
		sum := sha256.Sum256([]byte(content))
		index.Copies = append(index.Copies, esp.Copy{Name: name, Size: int64(len(content)), SHA256: sum[:]})
		write("state/halogen/esp/"+strings.ToLower(filepath.Base(name)), []byte(content))
	}
	if text, err = json.Marshal(index); err != nil {
		t.Fatal(err)
	}
	write("state/halogen/esp/index.json", text)
	m := &Machine{Host: host.Host{Given: host.Given{Machine: disk.Hardware(), Variables: unset{}, Random: rand.NewChaCha8([32]byte{5}), Root: root}}, Keeper: open{}}
	m.ESP = hw.LinuxESP{Disks: m.Disks}
	m.Store = hw.LinuxStore{Root: filepath.Join(root, "state")}
	m.Now = func() time.Time { return time.Unix(1800000000, 0) }
	return m, disk
}

// FAULTS 48
func TestRebuildESP(t *testing.T) {
	files := map[string]string{
		"EFI/BOOT/BOOTX64.EFI": "boot manager", "EFI/systemd/systemd-bootx64.efi": "boot manager", "EFI/Linux/os_7.efi": strings.Repeat("uki ", 50_000),
	}
	m, disk := espMachine(t, files)
	part := disk.Partition(layout.ESP)
	if _, err := part.WriteAt(bytes.Repeat([]byte{0xaa}, 1<<20), 0); err != nil {
		t.Fatal(err)
	}
	c := &typist{answers: []string{"n"}}
	if err := m.RebuildESP(c); !errors.Is(err, errRefused) {
		t.Fatalf("after a no: %v", err)
	}
	if shown := c.shown.String(); !strings.Contains(shown, `in partition 1 of `) || !strings.Contains(shown, `("esp", `) {
		t.Errorf("which partition goes is not said: %s", shown)
	}
	before := make([]byte, 1<<20)
	if _, err := part.ReadAt(before, 0); err != nil || before[0] != 0xaa {
		t.Errorf("after a no it was written: %v", err)
	}
	c.answers = []string{"y"}
	if err := m.RebuildESP(c); err != nil {
		t.Fatalf("%v\n%s", err, c.shown.String())
	}
	err := m.find()
	if err != nil {
		t.Fatal(err)
	}
	files[layout.LoaderConf] = espSettings // there was no copy of it
	err = m.ReadESP(func(have fs.FS) error {
		for name, content := range files {
			if got, err := fs.ReadFile(have, name); err != nil || string(got) != content {
				t.Errorf("%s: %d bytes, %v", name, len(got), err)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	c.answers = []string{"n"}
	c.shown.Reset()
	if err := m.RebuildESP(c); !errors.Is(err, errRefused) || !strings.Contains(c.shown.String(), "THE EFI SYSTEM PARTITION CAN BE READ") {
		t.Errorf("%v: %s", err, c.shown.String())
	}
}

func TestRebuildESPRefuses(t *testing.T) {
	whole := map[string]string{"EFI/BOOT/BOOTX64.EFI": "boot manager", "EFI/Linux/os_7.efi": "uki"}
	for _, tt := range []struct {
		name   string
		files  map[string]string
		damage func(m *Machine) error
		want   string
	}{
		{"no boot manager", map[string]string{"EFI/Linux/os_7.efi": "uki"}, nil, "hold no boot manager, or no UKI"},
		{"no UKI", map[string]string{"EFI/BOOT/BOOTX64.EFI": "boot manager"}, nil, "hold no boot manager, or no UKI"},
		{"a changed copy", whole, func(m *Machine) error {
			return os.WriteFile(filepath.Join(m.Root, "state/halogen/esp/os_7.efi"), []byte("uko"), 0o600)
		},
			"copy of EFI/Linux/os_7.efi: there is no good copy of it"},
		{"no copies", whole, func(m *Machine) error { return os.Remove(filepath.Join(m.Root, "state/halogen/esp/index.json")) },
			"keeps no copies of the EFI system partition yet"},
	} {
		m, disk := espMachine(t, tt.files)
		if tt.damage != nil {
			if err := tt.damage(m); err != nil {
				t.Fatal(err)
			}
		}
		if err := m.RebuildESP(&typist{answers: []string{"y"}}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
		first := make([]byte, 4096)
		if _, err := disk.Partition(layout.ESP).ReadAt(first, 0); err != nil || !bytes.Equal(first, make([]byte, 4096)) {
			t.Errorf("%s: the ESP was written", tt.name)
		}
	}
}
