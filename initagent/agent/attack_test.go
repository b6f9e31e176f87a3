package agent

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"halogenos.internal/boot/bootflow"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/nextboot"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/initagent/firstboot"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/rootlock"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/setup"
	"halogenos.internal/initagent/tpm"
)

// rogue puts a volume of the attacker's own in place of the root partition,
// sealed to this TPM for this boot where token is set, and returns its recovery key.
func (m *machine) rogue(token bool) string {
	m.t.Helper()
	secret, err := policy.NewSecret(m.random)
	m.must(err)
	recovery, err := luks2.NewRecoveryKey(m.random)
	m.must(err)
	sets, err := keySets()
	m.must(err)
	s, err := m.partition(layout.RootNumber)
	m.must(err)
	o := rootlock.Options{UUID: m.agent.Lock.Header.UUID, Size: s.Size(),
		Memory: 64 << 10, CPUs: 1, Secret: secret, Recovery: &recovery, Owner: sets[(m.keysNo+1)%len(sets)].DB.Key}
	var boot policy.Boot
	if token {
		boot, o.Sealed = m.sealForAttacker(secret)
	}
	lock, volumeKey, err := rootlock.Make(m.random, s, o)
	m.must(err)
	m.must(lock.Finish(m.random, s))
	if token {
		key, err := secret.WriteKey()
		m.must(err)
		m.must(tpm.OpenTransport(m.emulator).WriteRecord(o.Sealed.NVIndex, key, &policy.Record{
			Volume: policy.VolumeFingerprint(volumeKey), Branches: []policy.Branch{{Policy: boot.Branch(), Version: 1, Epoch: 5}},
		}))
		m.chipChanged = true
	}
	m.volumes[policy.VolumeFingerprint(volumeKey)] = map[string][]byte{}
	m.ops = nil
	m.printed.Reset()
	return string(recovery.Passphrase())
}

// sealForAttacker seals to what this machine's boots look like, which is no
// secret. It takes a machine that stands at the beginning of one.
func (m *machine) sealForAttacker(secret *policy.Secret) (policy.Boot, *policy.Sealed) {
	m.t.Helper()
	m.must(m.emulator.powerOn(m.world(true, nil).chip))
	_, _, err := m.start()
	m.must(err)
	a := &Agent{Host: host.Host{Machine: m.agent.Machine, Root: m.root, Random: m.random, Contract: m.agent.Contract, Found: host.Found{Disk: m.agent.Disk}}}
	a.Chip.TPM, err = m.openTPM()
	m.must(err)
	m.must(a.EnterPhase())
	start, err := a.Expected()
	m.must(err)
	boot := start.Boot
	sealed, err := setup.SealProvisionally(&a.Host, secret, nil)
	m.must(err)
	return boot, sealed
}

// A volume that this machine did not make is not opened: not by a TPM that an
// attacker has sealed it to, not with a pending file that says the firmware
// holds other keys, and not by a recovery key that the attacker knows.
func TestRogueVolume(t *testing.T) { // FAULTS 62, 63
	for _, c := range []struct {
		name           string
		token, pending bool
	}{{"sealed to this TPM", true, false}, {"with a pending file", true, true}, {"without a token", false, false}} {
		t.Run(c.name, func(t *testing.T) {
			m := provisionedMachine(t, nil)
			known := m.rogue(c.token)
			if c.pending {
				m.plantPending(m.forgedPending())
			}
			m.typed = []string{known}
			m.ends("recovery", "was not made by this machine")
			if m.openVolume != nil || m.agent.State.Root == bootflow.RootOpen {
				t.Error("it is open")
			}
			if len(m.written("index")) > 0 {
				t.Errorf("the TPM was written to: %q", m.ops)
			}
			if c.token && !strings.Contains(m.said.String(), "unlock FAILED") {
				t.Errorf("the TPM was not asked:\n%s", m.said.String())
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
		{"without a token, the TPM is dead", false, errDead, nil, "nothing shows"},
		{"a machine that never had one", false, tpm.ErrAbsent, tpm.ErrAbsent, "nothing shows"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMachine(t, optionalTPM)
			m.noTPM, m.owner = c.made, true
			m.ends("system")
			m.ends("system")
			m.owner = false
			known := m.rogue(c.token)
			m.noTPM = c.noTPM
			refused := func() {
				t.Helper()
				m.said.Reset()
				m.typed = []string{known, "weaker", "y", "weaker"}
				end := m.boot()
				if end != "reboot" || m.openVolume != nil || m.agent.State.Root == bootflow.RootOpen || len(m.typed) != 3 || !strings.Contains(m.said.String(), c.says) {
					t.Fatalf("ends in %s; open: %t; it asks %s and says:\n%s", end, m.openVolume != nil, m.printed.String(), m.said.String())
				}
			}
			refused()
			if c.noTPM != errDead { // beside which no console opens
				m.ends("recovery", c.says)
			}
			if c.token {
				return
			}
			// With keys of their own in it, too.
			sets, err := keySets()
			m.must(err)
			foreign := sets[(m.keysNo+1)%len(sets)]
			_, volumeKey, secret := m.unlockedBy(known)
			wrapped, err := firstboot.WrapKeys(m.random, secret, foreign, secureboot.NewList(foreign, secureboot.Vendor{}))
			m.must(err)
			m.volumes[policy.VolumeFingerprint(volumeKey)][rootpart.ListFile] = wrapped
			delete(m.vars, nextboot.Variable)
			refused()
			if c.noTPM == errDead {
				return
			}
			// Its data can be reached, by whoever knows that it is theirs.
			m.ends("recovery", c.says)
			r, console := m.console()
			m.typed = []string{known}
			m.works(r.Unlock(console))
		})
	}
}

// A machine without a TPM that has lost its keys does not start with Secure Boot on, says
// why, and starts again, and gets others, when its owner has cleared the firmware's.
func TestKeysLostWithoutTPM(t *testing.T) {
	m := newMachine(t, optionalTPM)
	m.noTPM, m.owner = tpm.ErrAbsent, true
	m.ends("system")
	m.ends("system")
	m.rootFiles()[marker] = []byte("the only copy")
	delete(m.rootFiles(), rootpart.ListFile)
	m.ends("recovery", "cleared the Secure Boot keys in the firmware's setup")
	m.must(m.kept())
	w := m.world(true, nil)
	w.vars = newVariables()
	m.powerOn(w)
	m.ends("system")
	if m.openVolume == nil || m.vars["SecureBoot"].data[0] != 1 {
		t.Errorf("open: %t, Secure Boot %v", m.openVolume != nil, m.vars["SecureBoot"].data)
	}
	m.keysAreKept()
	m.must(m.kept())
}

// forgedPending is a file that claims other Secure Boot keys.
func (m *machine) forgedPending() []byte {
	m.t.Helper()
	sets, err := keySets()
	m.must(err)
	wanted, err := sets[(m.keysNo+1)%3].Wanted(secureboot.Vendor{}).Marshal()
	m.must(err)
	sealed, err := m.agent.Lock.Sealed.Encode()
	m.must(err)
	text, err := (&firstboot.Pending{Sealed: sealed, Keys: []byte("x"), Wanted: wanted}).Encode()
	m.must(err)
	return text
}

func (m *machine) plantPending(text []byte) {
	r := remains{data: text}
	m.esp.files[firstboot.Name(0)] = &espFile{r, []remains{r}}
}

// Whatever makes the disk of a machine in use look new, its root partition is
// not made again.
func TestNeverMadeAgain(t *testing.T) { // FAULTS 43, 66
	zero := func(n int64) func(m *machine) {
		return func(m *machine) {
			s, err := m.partition(layout.RootNumber)
			m.must(err)
			_, err = s.WriteAt(make([]byte, n), 0)
			m.must(err)
		}
	}
	unfinished := func(m *machine) {
		s, err := m.partition(layout.RootNumber)
		m.must(err)
		header, _, err := luks2.Open(s, s.Size())
		m.must(err)
		m.must(header.Change(m.random, s, func(c *luks2.Change) error {
			_, err := c.AddToken(luks2.Token{Type: "halogen-unfinished", Keyslots: []int{}})
			return err
		}))
	}
	for _, c := range []struct {
		name   string
		damage func(m *machine)
	}{{"headers zeroed", zero(32 << 10)}, {"all of the header zeroed", zero(rootlock.HeaderArea)}, {"marked as unfinished", unfinished},
		{"another file system", func(m *machine) {
			s, err := m.partition(layout.RootNumber)
			m.must(err)
			_, err = s.WriteAt(append(make([]byte, 1080), 0x53, 0xef), 0)
			m.must(err)
			_, err = s.WriteAt(make([]byte, 16<<10), 16<<10)
			m.must(err)
		}}} {
		for _, restored := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, pending file restored %v", c.name, restored), func(t *testing.T) {
				m := newMachine(t, nil)
				var pending []byte
				for end := "reboot"; end == "reboot"; end = m.boot() {
					if f := m.esp.files[firstboot.Name(1)]; f != nil && !f.now.absent {
						pending = bytes.Clone(f.now.data)
					}
				}
				m.ends("system")
				c.damage(m)
				if restored {
					if pending == nil {
						t.Fatal("there was no pending file")
					}
					m.plantPending(pending)
				}
				m.ops = nil
				m.ends("recovery", "the root partition was made on this machine")
				if len(m.shown) != 1 || len(m.ops) > 0 {
					t.Errorf("%d recovery keys were shown, written: %q", len(m.shown), m.ops)
				}
			})
		}
	}
}
