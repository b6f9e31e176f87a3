package setup_test

import (
	"bytes"
	mrand "math/rand/v2"
	"path"
	"strings"
	"testing"

	"halogenos.internal/boot/answers"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/firstboot"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
)

const goodAnswers = `{"version":1,"host_name":"box","account":{"name":"alice","password_hash":"$y$j9T$F5Jx5fExrKuPp53xLKQ..1$X3DX6M94c7o.9agCG9G317fhZg9SqC.5i5rd.RhAtQ7"}}` + "\n"

// answersIn are goodAnswers with a language.
func answersIn(locale string) string {
	return strings.Replace(goodAnswers, `"host_name"`, `"language":"`+locale+`","host_name"`, 1)
}

// answersAre says what the running system is handed, and wants nothing left on the ESP.
func answersAre(m *machinetest.Machine, want string) {
	m.T.Helper()
	if have := string(m.RootFiles()[path.Join(rootpart.Shared, answers.HandedOver)]); have != want {
		m.T.Errorf("the running system is handed %q, want %q", have, want)
	}
	if f, err := m.ESP.Get(answers.OnESP); err == nil {
		m.T.Errorf("%s is left on the ESP: %q", answers.OnESP, f.Now.Data)
	}
}

// The language that was chosen when the machine was installed is that of the screens from then on,
// where the catalogue has it; a firmware is written to for another one than the image's alone.
func TestAnswersLanguage(t *testing.T) {
	for locale, want := range map[string]string{"de_DE.UTF-8": "language 1 de", "en_GB.UTF-8": "", "fr_FR.UTF-8": ""} {
		t.Run(locale, func(t *testing.T) {
			l, _ := words.OfLocale(locale)
			m := machinetest.New(t, nil)
			m.SetFile(answers.OnESP, []byte(answersIn(locale)))
			m.Ends("system")
			if have := string(m.Vars[words.Variable].Data); have != want {
				t.Errorf("the firmware remembers %q, want %q", have, want)
			}
			if !strings.Contains(m.Printed.String(), l.Say(words.KeyTitle, l.Text(words.KeyName))) {
				t.Errorf("the recovery key is shown with:\n%s", m.Printed.String())
			}
			if !strings.Contains(m.Said.String(), "the first start takes what the installer left:") {
				t.Errorf("the log is not English:\n%s", m.Said.String())
			}
		})
	}
}

// What an installer has left is handed to the running system once, by the boot that makes
// the root partition, and is overwritten.
func TestAnswersHandedOver(t *testing.T) {
	optional := func(c *contract.Contract) { c.SecureBoot, c.TPM = contract.Optional, contract.Optional }
	for name, c := range map[string]struct {
		contract func(*contract.Contract)
		machine  func(m *machinetest.Machine)
	}{
		"Secure Boot and TPM":         {nil, func(*machinetest.Machine) {}},
		"neither Secure Boot nor TPM": {optional, func(m *machinetest.Machine) { m.NoSecureBoot, m.NoTPM = true, tpm.ErrAbsent }},
		"a TPM alone":                 {optional, func(m *machinetest.Machine) { m.NoSecureBoot = true }},
		"Secure Boot alone":           {optional, func(m *machinetest.Machine) { m.NoTPM = tpm.ErrAbsent }},
	} {
		t.Run(name, func(t *testing.T) {
			m := machinetest.New(t, c.contract)
			c.machine(m)
			m.Owner = true
			m.SetFile(answers.OnESP, []byte(goodAnswers))
			m.Ends("system")
			answersAre(m, goodAnswers)
			if m.NoTPM == nil && !m.NoSecureBoot && !strings.Contains(m.Said.String(), "alice, who may become root") {
				t.Error("it is not said who may become root")
			}
			if len(m.Written("write "+answers.OnESP)) == 0 {
				t.Errorf("the file was not overwritten: %q", m.Ops)
			}
		})
	}
}

// A file that no system could take is left out and said, and nothing else suffers.
func TestAnswersRefused(t *testing.T) {
	m := machinetest.New(t, nil)
	m.SetFile(answers.OnESP, []byte(`{"version":1,"account":{"name":"alice","password":"x"}}`))
	m.Ends("system", "is not taken: account: password: a password that can be read is not taken")
	answersAre(m, "")
}

// Anyone who can write to the ESP after the first boot adds nobody: what the second boot takes
// is what the first has found, and a machine with a root partition takes nothing.
func TestAnswersPlanted(t *testing.T) {
	const theirs = `{"version":1,"account":{"name":"mallory","password_hash":"$y$j9T$F5Jx5fExrKuPp53xLKQ..1$X3DX6M94c7o.9agCG9G317fhZg9SqC.5i5rd.RhAtQ7"}}` + "\n"
	for name, installer := range map[string]string{"none were left": "", "in the place of others": goodAnswers} {
		t.Run(name, func(t *testing.T) {
			m := machinetest.New(t, nil)
			if installer != "" {
				m.SetFile(answers.OnESP, []byte(installer))
			}
			if end := m.Boot(); end != "reboot" {
				t.Fatalf("the first boot ends in %s:\n%s", end, m.Said.String())
			}
			m.SetFile(answers.OnESP, []byte(theirs))
			m.Ends("system")
			answersAre(m, installer)
		})
	}
	t.Run("taken away", func(t *testing.T) {
		m := machinetest.New(t, nil)
		m.SetFile(answers.OnESP, []byte(goodAnswers))
		if end := m.Boot(); end != "reboot" {
			t.Fatalf("the first boot ends in %s:\n%s", end, m.Said.String())
		}
		f, err := m.ESP.Get(firstboot.Name(1))
		if err != nil {
			t.Fatal(err)
		}
		p, err := firstboot.Parse(f.Now.Data)
		if err != nil {
			t.Fatal(err)
		}
		p.Answers = nil
		text, err := p.Encode()
		if err != nil {
			t.Fatal(err)
		}
		m.SetFile(firstboot.Name(1), text)
		if end := m.Boot(); end == "system" || !strings.Contains(m.Said.String(), "changed or removed") {
			t.Errorf("ends in %s:\n%s", end, m.Said.String())
		}
	})
	t.Run("in use", func(t *testing.T) {
		m := machinetest.ProvisionedMachine(t, nil)
		m.SetFile(answers.OnESP, []byte(theirs))
		m.Ends("system")
		answersAre(m, "")
	})
}

// Cut anywhere, the next starts hand over all of it or, where the first boot had to begin
// again, all of it again; and the ESP has nothing of it in the end. The firmware
// remembers the language then. FAULTS 42
func TestCutAnswers(t *testing.T) {
	m, german := machinetest.New(t, nil), answersIn("de_DE.UTF-8")
	w := m.Installed(machinetest.DiskSize)
	m.PowerOn(w)
	m.SetFile(answers.OnESP, []byte(german))
	states, end := m.Record(m.World(true, nil), mrand.New(mrand.NewPCG(7, 8)), "")
	if end != "system" {
		t.Fatalf("ends in %s:\n%s", end, m.Said.String())
	}
	for i := 0; i < len(states); i += 7 {
		if err := m.Finishes(states[i]); err != nil {
			t.Error(err)
			continue
		}
		if have := m.RootFiles()[path.Join(rootpart.Shared, answers.HandedOver)]; !bytes.Equal(have, []byte(german)) {
			t.Errorf("%s: the running system is handed %q", states[i].How, have)
		}
		if have := string(m.Vars[words.Variable].Data); have != "language 1 de" {
			t.Errorf("%s: the firmware remembers %q", states[i].How, have)
		}
	}
}
