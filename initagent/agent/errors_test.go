package agent

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
	"halogenos.internal/initagent/recovery"
	"halogenos.internal/initagent/tpm"
)

// A mishap is what an owner meets at a start, what a boot ends in, and what is to be
// said of it.
type mishap struct {
	testkit.Error
	ends string
	set  func(m *machine)
}

func met(what, thing, cure, ends string, set func(m *machine)) mishap {
	return mishap{testkit.Error{What: "start: " + what, Thing: thing, Cure: cure}, ends, set}
}

// happen starts a machine with each of them, and judges what stands on its screen last:
// what was asked, and why the boot stopped.
func happen(t *testing.T, start func(t *testing.T) *machine, all []mishap) {
	t.Helper()
	for _, c := range all {
		t.Run(c.What, func(t *testing.T) {
			m := start(t)
			c.set(m)
			m.said.Reset()
			m.printed.Reset()
			if end := m.boot(); end != c.ends {
				t.Fatalf("ends in %s, want %s:\n%s", end, c.ends, m.said.String())
			}
			said := strings.ReplaceAll(m.said.String(), "\r", "")
			testkit.Tells(t, c.Error, m.printed.String()+strings.ReplaceAll(said[stopped.FindStringIndex(said)[0]:], "halogen: ", ""))
		})
	}
}

// stopped is where the log begins to say why a boot does not go on.
var stopped = regexp.MustCompile(`(?m)^halogen: (?:[a-z-]+ FAILED|RECOVERY: |STOPPED: )`)

// FAULTS 112: the most likely errors of a first start
func TestTellsFirstStart(t *testing.T) {
	foreign := func(m *machine) {
		sets, err := keySets()
		m.must(err)
		for _, v := range []secureboot.Variable{secureboot.PK, secureboot.KEK, secureboot.DB} {
			content, err := sets[0].Wanted(secureboot.Vendor{}).Of(v).Marshal()
			m.must(err)
			m.vars[v.Name] = efiVariable{secureboot.KeyAttributes, content}
		}
		setFlag(m.vars, "SetupMode", 0)
		_, err = enroll.SignAll(espDir{m.esp}, enroll.State{}, enroll.DBSigner{Pair: sets[0].DB, Time: buildDate}, func(string, []byte) error { return nil })
		m.must(err)
	}
	happen(t, func(t *testing.T) *machine { return newMachine(t, nil) }, []mishap{
		met("no TPM", "TPM", "Switch the TPM on", "recovery", func(m *machine) { m.noTPM = tpm.ErrAbsent }),
		met("the firmware still has its maker's keys", "Setup Mode", "Custom Secure Boot Options, PK Options, Delete Pk", "recovery", foreign),
		met("the firmware takes no keys", "Secure Boot keys", "firmware's setup", "reboot", func(m *machine) { m.refuse = syscall.EACCES }),
		met("a disk that is too small", "disk", "install the system on it again", "recovery", func(m *machine) { m.powerOn(m.installed(700 * mib)) }),
		met("a partition of somebody else's on the disk", `"photos"`, "install the system on it again", "recovery", func(m *machine) {
			table, _, err := m.table()
			m.must(err)
			table.Partitions = append(table.Partitions, gpt.Partition{Number: 7, Type: layout.TypeRoot, UUID: gpt.MustGUID("99999999-2222-4333-8444-555555555555"),
				First: table.Sectors - 10000, Last: table.Sectors - 9000, Label: "photos"})
			m.must(table.Write(m.disk))
		}),
		met("the disk and a copy of it", "disk", "detach", "recovery", func(m *machine) {
			m.second = m.disk.now.Overlay()
			m.bootedFrom = []bootoption.Function{{Device: 4}}
			m.pci = [2][]bootoption.Function{{{Device: 3}}, {{Device: 3}}}
		}),
		met("an image that was written badly", "system image of test 1", "install", "recovery", func(m *machine) {
			table, _, err := m.table()
			m.must(err)
			system, _ := table.ByNumber(2)
			_, err = m.disk.WriteAt([]byte("x"), int64(system.First)*sectorSize+5000)
			m.must(err)
		}),
	})
}

// FAULTS 112: the most likely errors of a machine in use
func TestTellsStart(t *testing.T) {
	m := provisionedMachine(t, nil)
	good := m.world(true, nil)
	happen(t, func(t *testing.T) *machine {
		m.t = t
		m.powerOn(good)
		m.extra, m.extra12, m.noSecureBoot, m.noTPM, m.typed, m.esp.fails = "", "", false, nil, nil, nil
		return m
	}, []mishap{
		met("new firmware", "PCR 7", "recovery key", "recovery", func(m *machine) { m.extra, m.typed = "new firmware", []string{""} }),
		met("the wrong recovery key", "recovery key", "try again", "reboot", func(m *machine) {
			m.extra, m.typed = "new firmware", []string{strings.Repeat("cbdefghi-", 8), "cbdef", "nonsense", ""}
		}),
		met("Secure Boot is off", "Secure Boot", "Switch Secure Boot on", "recovery", func(m *machine) { m.noSecureBoot, m.typed = true, []string{""} }),
		met("the firmware was reset", "Secure Boot keys", "`exit`, and type the recovery key", "recovery", func(m *machine) { m.vars, m.typed = newVariables(), []string{""} }),
		met("the TPM is switched off", "TPM", "Switch the TPM on", "recovery", func(m *machine) { m.noTPM = tpm.ErrAbsent }),
		met("the TPM is broken", "TPM", "recovery key", "reboot", func(m *machine) { m.noTPM = errDead }),
		met("a command line from outside", "command line", "Take it away", "recovery", func(m *machine) { m.extra12 = "systemd.debug_shell=1" }),
		met("a system that was replaced", "epoch", "`rollback`", "recovery", func(m *machine) {
			lock, volumeKey, secret := m.unlocked()
			key, err := secret.WriteKey()
			m.must(err)
			m.must(m.emulator.powerOn(good.chip))
			m.must(tpm.OpenTransport(m.emulator).WriteRecord(lock.Sealed.NVIndex, key, &policy.Record{
				Floor: 9, Volume: policy.VolumeFingerprint(volumeKey), Branches: []policy.Branch{{Policy: policy.Digest{1}, Version: 9, Epoch: 9}},
			}))
			m.chipChanged = true
		}),
		met("a system image with damaged blocks", "system", "`repair`", "recovery", func(m *machine) {
			table, _, err := m.table()
			m.must(err)
			system, _ := table.ByNumber(layout.SlotA.SystemNumber())
			_, err = m.disk.WriteAt([]byte("x"), int64(system.First)*sectorSize+5000)
			m.must(err)
		}),
		met("a root partition that was overwritten", "root partition", "`reset`", "recovery", func(m *machine) {
			s, err := m.partition(layout.RootNumber)
			m.must(err)
			_, err = s.WriteAt(chance(16<<20), 0)
			m.must(err)
		}),
	})
	m.t = t
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
	m := inConsole(t, newFirmware)
	r, c := m.console()
	for _, f := range []struct {
		what, thing, cure string
		do                func(r *recovery.Machine, c hw.Console) error
	}{
		{"reseal before unlock", "root partition", "`unlock`", func(r *recovery.Machine, c hw.Console) error { return r.Reseal(c) }},
		{"enroll before unlock", "root partition", "`unlock`", func(r *recovery.Machine, c hw.Console) error { return r.Enroll(c) }},
		{"recovery-key before unlock", "root partition", "`unlock`", func(r *recovery.Machine, c hw.Console) error { return r.RecoveryKey(c) }},
		{"unlock without a key", "recovery key", "asks again", func(r *recovery.Machine, c hw.Console) error { m.types(""); return r.Unlock(c) }},
		{"unlock with the wrong key", "recovery key", "try again", func(r *recovery.Machine, c hw.Console) error {
			m.types("cbdefghi-cbdefghi", "")
			return r.Unlock(c)
		}},
		{"unlock twice", "root partition", "`lock`", func(r *recovery.Machine, c hw.Console) error {
			m.types(m.shown[0])
			m.works(r.Unlock(c))
			m.printed.Reset()
			return r.Unlock(c)
		}},
	} {
		m.printed.Reset()
		err := f.do(r, c)
		if err == nil {
			t.Errorf("%s: no error", f.what)
			continue
		}
		testkit.Tells(t, testkit.Error{What: "console: " + f.what, Thing: f.thing, Cure: f.cure}, m.printed.String()+"\n"+err.Error())
	}
	m.works(r.Lock())
}
