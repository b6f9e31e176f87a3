package agent_test

import (
	"regexp"
	"strings"
	"syscall"
	"testing"

	"halogenos.internal/boot/bootoption"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/recovery"
	"halogenos.internal/initagent/tpm"
)

// A mishap is what an owner meets at a start, what a boot ends in, and what is to be
// said of it.
type mishap struct {
	testkit.Error
	ends string
	set  func(m *machinetest.Machine)
}

func met(what, thing, cure, ends string, set func(m *machinetest.Machine)) mishap {
	return mishap{testkit.Error{What: "start: " + what, Thing: thing, Cure: cure}, ends, set}
}

// happen starts a machine with each of them, and judges what stands on its screen last:
// what was asked, and why the boot stopped.
func happen(t *testing.T, start func(t *testing.T) *machinetest.Machine, all []mishap) {
	t.Helper()
	for _, c := range all {
		t.Run(c.What, func(t *testing.T) {
			m := start(t)
			c.set(m)
			m.Said.Reset()
			m.Printed.Reset()
			if end := m.Boot(); end != c.ends {
				t.Fatalf("ends in %s, want %s:\n%s", end, c.ends, m.Said.String())
			}
			said := strings.ReplaceAll(m.Said.String(), "\r", "")
			testkit.Tells(t, c.Error, m.Printed.String()+strings.ReplaceAll(said[stopped.FindStringIndex(said)[0]:], "halogen: ", ""))
		})
	}
}

// stopped is where the log begins to say why a boot does not go on.
var stopped = regexp.MustCompile(`(?m)^halogen: (?:[a-z-]+ FAILED|RECOVERY: |STOPPED: )`)

// FAULTS 112: the most likely errors of a first start
func TestTellsFirstStart(t *testing.T) {
	foreign := func(m *machinetest.Machine) {
		sets, err := machinetest.KeySets()
		m.Must(err)
		for _, v := range []secureboot.Variable{secureboot.PK, secureboot.KEK, secureboot.DB} {
			content, err := sets[0].Wanted(secureboot.Vendor{}).Of(v).Marshal()
			m.Must(err)
			m.Vars[v.Name] = machinetest.EFIVariable{Attributes: secureboot.KeyAttributes, Data: content}
		}
		machinetest.SetFlag(m.Vars, "SetupMode", 0)
		_, err = enroll.SignAll(machinetest.ESPDir{MemESP: m.ESP}, enroll.State{}, enroll.DBSigner{Pair: sets[0].DB, Time: machinetest.BuildDate}, func(string, []byte) error { return nil })
		m.Must(err)
	}
	happen(t, func(t *testing.T) *machinetest.Machine { return machinetest.New(t, nil) }, []mishap{
		met("no TPM", "TPM", "Switch the TPM on", "recovery", func(m *machinetest.Machine) { m.NoTPM = tpm.ErrAbsent }),
		met("the firmware still has its maker's keys", "Setup Mode", "Custom Secure Boot Options, PK Options, Delete Pk", "recovery", foreign),
		met("the firmware takes no keys", "Secure Boot keys", "firmware's setup", "reboot", func(m *machinetest.Machine) { m.Refuse = syscall.EACCES }),
		met("a disk that is too small", "disk", "install the system on it again", "recovery", func(m *machinetest.Machine) { m.PowerOn(m.Installed(700 * machinetest.MiB)) }),
		met("a second partition with the name of one of ours", `could both be "system-a"`, "install the system on it again", "recovery", func(m *machinetest.Machine) {
			table, _, err := m.Table()
			m.Must(err)
			table.Partitions = append(table.Partitions, gpt.Partition{Number: 7, Type: layout.TypeRoot, UUID: gpt.MustGUID("99999999-2222-4333-8444-555555555555"),
				First: table.Sectors - 10000, Last: table.Sectors - 9000, Label: "system-a"})
			m.Must(table.Write(m.Disk))
		}),
		met("the disk and a copy of it", "disk", "detach", "recovery", func(m *machinetest.Machine) {
			m.Second = m.Disk.Now.Overlay()
			m.StartsFrom = []bootoption.Function{{Device: 4}}
			m.PCI = [2][]bootoption.Function{{{Device: 3}}, {{Device: 3}}}
		}),
		met("an image that was written badly", "system image of test 1", "install", "recovery", func(m *machinetest.Machine) {
			table, _, err := m.Table()
			m.Must(err)
			system, _ := layout.Find(table, layout.SystemA)
			_, err = m.Disk.WriteAt([]byte("x"), int64(system.First)*machinetest.SectorSize+5000)
			m.Must(err)
		}),
	})
}

// FAULTS 112: the most likely errors of a machine in use
func TestTellsStart(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	good := m.World(true, nil)
	happen(t, func(t *testing.T) *machinetest.Machine {
		m.T = t
		m.PowerOn(good)
		m.Extra, m.Extra12, m.NoSecureBoot, m.NoTPM, m.Typed, m.ESP.Fails = "", "", false, nil, nil, nil
		return m
	}, []mishap{
		met("new firmware", "PCR 7", "recovery key", "recovery", func(m *machinetest.Machine) { m.Extra, m.Typed = "new firmware", []string{""} }),
		met("the wrong recovery key", "recovery key", "try again", "reboot", func(m *machinetest.Machine) {
			m.Extra, m.Typed = "new firmware", []string{strings.Repeat("cbdefghi-", 8), "cbdef", "nonsense", ""}
		}),
		met("Secure Boot is off", "Secure Boot", "Switch Secure Boot on", "recovery", func(m *machinetest.Machine) { m.NoSecureBoot, m.Typed = true, []string{""} }),
		met("the firmware was reset", "Secure Boot keys", "`exit`, and type the recovery key", "recovery", func(m *machinetest.Machine) { m.Vars, m.Typed = machinetest.NewVariables(), []string{""} }),
		met("the TPM is switched off", "TPM", "Switch the TPM on", "recovery", func(m *machinetest.Machine) { m.NoTPM = tpm.ErrAbsent }),
		met("the TPM is broken", "TPM", "recovery key", "reboot", func(m *machinetest.Machine) { m.NoTPM = machinetest.ErrDead }),
		met("a command line from outside", "command line", "Take it away", "recovery", func(m *machinetest.Machine) { m.Extra12 = "systemd.debug_shell=1" }),
		met("a system that was replaced", "epoch", "`rollback`", "recovery", func(m *machinetest.Machine) {
			lock, volumeKey, secret := m.Unlocked()
			key, err := secret.WriteKey()
			m.Must(err)
			m.Must(m.Emulator.PowerOn(good.Chip))
			m.Must(tpm.OpenTransport(m.Emulator).WriteRecord(lock.Sealed.NVIndex, key, &policy.Record{
				Floor: 9, Volume: policy.VolumeFingerprint(volumeKey), Branches: []policy.Branch{{Policy: policy.Digest{1}, Version: 9, Epoch: 9}},
			}))
			m.ChipChanged = true
		}),
		met("a system image with damaged blocks", "system", "`repair`", "recovery", func(m *machinetest.Machine) {
			table, _, err := m.Table()
			m.Must(err)
			system, _ := layout.Find(table, layout.SystemA)
			_, err = m.Disk.WriteAt([]byte("x"), int64(system.First)*machinetest.SectorSize+5000)
			m.Must(err)
		}),
		met("a root partition that was overwritten", "root partition", "`reset`", "recovery", func(m *machinetest.Machine) {
			s, err := m.Partition(layout.Root)
			m.Must(err)
			_, err = s.WriteAt(chance(16<<20), 0)
			m.Must(err)
		}),
	})
	m.T = t
}

func chance(n int) []byte {
	out, x := make([]byte, n), uint64(88172645463325252)
	for i := range out {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		out[i] = byte(x)
	}
	return out
}

// FAULTS 112: the most likely errors at the recovery console
func TestTellsConsole(t *testing.T) {
	m := machinetest.InConsole(t, machinetest.NewFirmware)
	r, c := m.Console()
	for _, f := range []struct {
		what, thing, cure string
		do                func(r *recovery.Machine, c hw.Console) error
	}{
		{"reseal before unlock", "root partition", "`unlock`", func(r *recovery.Machine, c hw.Console) error { return r.Reseal(c) }},
		{"enroll before unlock", "root partition", "`unlock`", func(r *recovery.Machine, c hw.Console) error { return r.Enroll(c) }},
		{"recovery-key before unlock", "root partition", "`unlock`", func(r *recovery.Machine, c hw.Console) error { return r.RecoveryKey(c) }},
		{"unlock without a key", "recovery key", "asks again", func(r *recovery.Machine, c hw.Console) error { m.Types(""); return r.Unlock(c) }},
		{"unlock with the wrong key", "recovery key", "try again", func(r *recovery.Machine, c hw.Console) error {
			m.Types("cbdefghi-cbdefghi", "")
			return r.Unlock(c)
		}},
		{"unlock twice", "root partition", "`lock`", func(r *recovery.Machine, c hw.Console) error {
			m.Types(m.Shown[0])
			m.Works(r.Unlock(c))
			m.Printed.Reset()
			return r.Unlock(c)
		}},
	} {
		m.Printed.Reset()
		err := f.do(r, c)
		if err == nil {
			t.Errorf("%s: no error", f.what)
			continue
		}
		testkit.Tells(t, testkit.Error{What: "console: " + f.what, Thing: f.thing, Cure: f.cure}, m.Printed.String()+"\n"+err.Error())
	}
	m.Works(r.Lock())
}
