package rootpart_test

import (
	"strings"
	"testing"

	"halogenos.internal/boot/layout"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/rootpart"
)

// The TPM releases the secret, and the keyslot that its token names does not open: who
// accepts the machine, at the prompt or in the console, has one that opens by itself.
func TestAcceptDamagedKeyslot(t *testing.T) {
	for name, change := range map[string]func(*machinetest.Machine){"damaged": (*machinetest.Machine).DamageKeyslot, "another": (*machinetest.Machine).NameOtherKeyslot} {
		t.Run(name, func(t *testing.T) {
			m := machinetest.ProvisionedMachine(t, nil)
			change(m)
			m.Accepts()
			m.OpensByItself()
			m.Must(m.OneSecret())
		})
		t.Run(name+", in the console", func(t *testing.T) {
			m := machinetest.ProvisionedMachine(t, nil)
			change(m)
			r, c := m.Asked()
			m.Types("y")
			m.Works(r.Reseal(c), "Accepted.")
			m.Works(r.Lock())
			m.OpensByItself()
			m.Must(m.OneSecret())
		})
	}
}

// unwritable is a machine's disks when none of them takes a write.
type unwritable struct{ hw.Disks }

func (d unwritable) OpenPartition(disk hw.Disk, r layout.Role, _ bool) (hw.File, error) {
	return d.Disks.OpenPartition(disk, r, false)
}

// Once the record is written, the keyslot is repaired although the note cannot be written,
// and noted although the keyslot cannot be repaired; and nobody says that the TPM was left
// as it is.
func TestAcceptKeyslotOrNote(t *testing.T) {
	t.Run("the note fails", func(t *testing.T) {
		m := machinetest.ProvisionedMachine(t, nil)
		m.DamageKeyslot()
		delete(m.RootFiles(), rootpart.GuaranteesFile)
		m.FullFile = rootpart.GuaranteesFile
		m.Printed.Reset()
		m.Accepts()
		if said := m.Printed.String(); !strings.Contains(said, "the TPM has accepted this machine, but") || !strings.Contains(said, "no space left") || strings.Contains(said, "left as it is") {
			t.Errorf("it says %s", said)
		}
		m.FullFile = ""
		m.OpensByItself()
	})
	t.Run("the keyslot fails, in the console", func(t *testing.T) {
		m := machinetest.ProvisionedMachine(t, nil)
		m.DamageKeyslot()
		m.Unaccounted = true // PCR 4 is left out, which takes the word
		r, c := m.Asked()
		writable := r.Disks
		r.Disks = unwritable{writable}
		m.Types("y", "weaker")
		m.Refuses(r.Reseal(c), "the TPM has accepted this machine, but")
		r.Disks = writable
		m.Types("y") // the note knows of what was agreed to
		m.Works(r.Reseal(c), "Accepted.")
		m.Works(r.Lock())
		m.OpensByItself()
	})
}
