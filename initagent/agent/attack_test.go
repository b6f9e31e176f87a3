package agent_test

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/bootflow"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/nextboot"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/initagent/firstboot"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/rootlock"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
)

// A volume that this machine did not make is not opened: not by a TPM that an
// attacker has sealed it to, not with a pending file that says the firmware
// holds other keys, and not by a recovery key that the attacker knows.
func TestRogueVolume(t *testing.T) { // FAULTS 62, 63
	for _, c := range []struct {
		name           string
		token, pending bool
	}{{"sealed to this TPM", true, false}, {"with a pending file", true, true}, {"without a token", false, false}} {
		t.Run(c.name, func(t *testing.T) {
			m := machinetest.ProvisionedMachine(t, nil)
			known := m.Rogue(c.token)
			if c.pending {
				m.PlantPending(m.ForgedPending())
			}
			m.Typed = []string{known}
			m.Ends("recovery", "was not made by this machine")
			if m.OpenVolume != nil || m.Agent.State.Root == bootflow.RootOpen {
				t.Error("it is open")
			}
			if len(m.Written("index")) > 0 {
				t.Errorf("the TPM was written to: %q", m.Ops)
			}
			if c.token && !strings.Contains(m.Said.String(), "unlock FAILED") {
				t.Errorf("the TPM was not asked:\n%s", m.Said.String())
			}
		})
	}
}

// The same where the image can do without a TPM, and whatever has become of that: an owner signature
// counts where there is one, and else the volume must hold the key that the firmware
// enforces. FAULTS 62, 63
func TestRogueVolumeWithoutTPM(t *testing.T) {
	for _, c := range []struct {
		name  string
		token bool
		noTPM error
		made  error // the TPM when the machine was made
		says  string
	}{
		{"sealed to this TPM", true, nil, nil, "was not made by this machine"},
		{"sealed to this TPM, which is off", true, tpm.ErrAbsent, nil, "was not made by this machine"},
		{"without a token", false, nil, nil, "nothing shows that this machine made its root partition"},
		{"without a token, the TPM is off", false, tpm.ErrAbsent, nil, "nothing shows"},
		{"without a token, the TPM is dead", false, machinetest.ErrDead, nil, "nothing shows"},
		{"a machine that never had one", false, tpm.ErrAbsent, tpm.ErrAbsent, "nothing shows"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := machinetest.New(t, machinetest.OptionalTPM)
			m.NoTPM, m.Owner = c.made, true
			m.Ends("system")
			m.Ends("system")
			m.Owner = false
			known := m.Rogue(c.token)
			m.NoTPM = c.noTPM
			refused := func() {
				t.Helper()
				m.Said.Reset()
				m.Typed = []string{known, "weaker", "y", "weaker"}
				end := m.Boot()
				if end != "reboot" || m.OpenVolume != nil || m.Agent.State.Root == bootflow.RootOpen || len(m.Typed) != 3 || !strings.Contains(m.Said.String(), c.says) {
					t.Fatalf("ends in %s; open: %t; it asks %s and says:\n%s", end, m.OpenVolume != nil, m.Printed.String(), m.Said.String())
				}
			}
			refused()
			if c.noTPM != machinetest.ErrDead { // beside which no console opens
				m.Ends("recovery", c.says)
			}
			if c.token {
				return
			}
			// With keys of their own in it, too.
			sets, err := machinetest.KeySets()
			m.Must(err)
			foreign := sets[(m.KeysNo+1)%len(sets)]
			_, volumeKey, secret := m.UnlockedBy(known)
			wrapped, err := firstboot.WrapKeys(m.Random, secret, foreign, secureboot.NewList(foreign, secureboot.Vendor{}))
			m.Must(err)
			m.Volumes[policy.VolumeFingerprint(volumeKey)][rootpart.ListFile] = wrapped
			delete(m.Vars, nextboot.Variable)
			refused()
			if c.noTPM == machinetest.ErrDead {
				return
			}
			// Its data can be reached, by anyone who knows that it is theirs.
			m.Ends("recovery", c.says)
			r, console := m.Console()
			m.Typed = []string{known}
			m.Works(r.Unlock(console))
		})
	}
}

// A machine without a TPM that has lost its keys does not start with Secure Boot on, says
// why, and starts again, and gets others, when its owner has cleared the firmware's.
func TestKeysLostWithoutTPM(t *testing.T) {
	m := machinetest.New(t, machinetest.OptionalTPM)
	m.NoTPM, m.Owner = tpm.ErrAbsent, true
	m.Ends("system")
	m.Ends("system")
	m.RootFiles()[machinetest.Marker] = []byte("the only copy")
	delete(m.RootFiles(), rootpart.ListFile)
	m.Ends("recovery", "cleared the Secure Boot keys in the firmware's setup")
	m.Must(m.Kept())
	w := m.World(true, nil)
	w.Vars = machinetest.NewVariables()
	m.PowerOn(w)
	m.Ends("system")
	if m.OpenVolume == nil || m.Vars["SecureBoot"].Data[0] != 1 {
		t.Errorf("open: %t, Secure Boot %v", m.OpenVolume != nil, m.Vars["SecureBoot"].Data)
	}
	m.KeysAreKept()
	m.Must(m.Kept())
}

// Whatever makes the disk of a machine in use look new, its root partition is
// not made again.
func TestNeverMadeAgain(t *testing.T) { // FAULTS 43, 66
	zero := func(n int64) func(m *machinetest.Machine) {
		return func(m *machinetest.Machine) {
			s, err := m.Partition(layout.Root)
			m.Must(err)
			_, err = s.WriteAt(make([]byte, n), 0)
			m.Must(err)
		}
	}
	unfinished := func(m *machinetest.Machine) {
		s, err := m.Partition(layout.Root)
		m.Must(err)
		header, _, err := luks2.Open(s, s.Size())
		m.Must(err)
		m.Must(header.Change(m.Random, s, func(c *luks2.Change) error {
			_, err := c.AddToken(luks2.Token{Type: "halogen-unfinished", Keyslots: []int{}})
			return err
		}))
	}
	for _, c := range []struct {
		name   string
		damage func(m *machinetest.Machine)
	}{{"headers zeroed", zero(32 << 10)}, {"all of the header zeroed", zero(rootlock.HeaderArea)}, {"marked as unfinished", unfinished},
		{"another file system", func(m *machinetest.Machine) {
			s, err := m.Partition(layout.Root)
			m.Must(err)
			_, err = s.WriteAt(append(make([]byte, 1080), 0x53, 0xef), 0)
			m.Must(err)
			_, err = s.WriteAt(make([]byte, 16<<10), 16<<10)
			m.Must(err)
		}}} {
		for _, restored := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, pending file restored %v", c.name, restored), func(t *testing.T) {
				m := machinetest.New(t, nil)
				var pending []byte
				for end := "reboot"; end == "reboot"; end = m.Boot() {
					if f := m.ESP.Files[firstboot.Name(1)]; f != nil && !f.Now.Absent {
						pending = bytes.Clone(f.Now.Data)
					}
				}
				m.Ends("system")
				c.damage(m)
				if restored {
					if pending == nil {
						t.Fatal("there was no pending file")
					}
					m.PlantPending(pending)
				}
				m.Ops = nil
				m.Ends("recovery", "the root partition was made on this machine")
				if len(m.Shown) != 1 || len(m.Ops) > 0 {
					t.Errorf("%d recovery keys were shown, written: %q", len(m.Shown), m.Ops)
				}
			})
		}
	}
}

// A machine in use that has lost entries of its partition table, and the place of its root
// partition is free: the data is as it was, nothing is written, no keys are asked for or
// made, and with the table of before the machine goes on. So it is where the owner has
// cleared the Secure Boot keys, and where none are required. FAULTS 43
func TestLostEntries(t *testing.T) {
	optional := func(c *contract.Contract) { c.SecureBoot, c.TPM = contract.Optional, contract.Optional }
	for _, lost := range [][]layout.Role{{layout.Root}, {layout.VerityB, layout.Root}, {layout.SystemB, layout.VerityB, layout.Root}} {
		for _, c := range []struct {
			name    string
			change  func(*contract.Contract)
			cleared bool
			end     string
		}{{"keys enforced", nil, false, "recovery"}, {"keys cleared", nil, true, "recovery"}, {"optional", optional, false, "system"}, {"optional, keys cleared", optional, true, "system"}} {
			t.Run(fmt.Sprintf("%v, %s", lost, c.name), func(t *testing.T) {
				m := machinetest.ProvisionedMachine(t, c.change)
				whole, _, err := m.Table()
				m.Must(err)
				lacks := *whole
				lacks.Partitions = slices.DeleteFunc(slices.Clone(whole.Partitions), func(p gpt.Partition) bool { return slices.Contains(lost, layout.RoleOf(p)) })
				m.Must(lacks.Write(m.Disk))
				keys := maps.Clone(m.Vars)
				if c.cleared {
					m.SetupMode()
				}
				m.Ops = nil
				for range 2 {
					says := []string{"this disk has no root partition"}
					if c.end == "system" {
						says = []string{"there is no root partition"}
					}
					m.Ends(c.end, says...)
				}
				for _, op := range m.Ops {
					if strings.HasPrefix(op, "disk") || strings.Contains(op, "PK") {
						t.Errorf("written: %q", m.Ops)
						break
					}
				}
				m.Vars = keys
				m.Must(whole.Write(m.Disk))
				m.Ends("system")
				if m.OpenVolume == nil {
					t.Error("the root partition does not open any more")
				}
			})
		}
	}
}
