package agent

import (
	"bytes"
	"strings"
	"testing"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootpart"
)

// damageKeyslot makes the area of the TPM's keyslot one that does not open.
func (m *machine) damageKeyslot() {
	m.t.Helper()
	lock, volumeKey, secret := m.unlocked()
	luks2.Wipe(volumeKey)
	secret.Wipe()
	part, err := m.partition(layout.RootNumber)
	m.must(err)
	for _, k := range lock.Header.Keyslots() {
		if k.Number == lock.TPMSlot {
			_, err := part.WriteAt(bytes.Repeat([]byte{0xaa}, 4096), k.Offset)
			m.must(err)
		}
	}
	m.must(part.Sync())
}

// nameOtherKeyslot has the TPM's token name the recovery key's keyslot.
func (m *machine) nameOtherKeyslot() {
	m.t.Helper()
	lock, volumeKey, secret := m.unlocked()
	luks2.Wipe(volumeKey)
	secret.Wipe()
	m.changeToken(func(c *luks2.Change, n int, token luks2.Token) error {
		token.Keyslots = []int{lock.Recoveries[0].Keyslot}
		return c.SetToken(n, token)
	})
}

// The TPM releases the secret, and the keyslot that its token names does not open: who
// accepts the machine, at the prompt or in the console, has one that opens by itself.
func TestAcceptDamagedKeyslot(t *testing.T) {
	for name, change := range map[string]func(*machine){"damaged": (*machine).damageKeyslot, "another": (*machine).nameOtherKeyslot} {
		t.Run(name, func(t *testing.T) {
			m := provisionedMachine(t, nil)
			change(m)
			m.accepts()
			m.opensByItself()
			m.must(m.oneSecret())
		})
		t.Run(name+", in the console", func(t *testing.T) {
			m := provisionedMachine(t, nil)
			change(m)
			r, c := m.asked()
			m.types("y")
			m.works(r.Reseal(c), "Accepted.")
			m.works(r.Lock())
			m.opensByItself()
			m.must(m.oneSecret())
		})
	}
}

// unwritable is a machine's disks when none of them takes a write.
type unwritable struct{ hw.Disks }

func (d unwritable) OpenPartition(disk hw.Disk, number int, _ bool) (hw.File, error) {
	return d.Disks.OpenPartition(disk, number, false)
}

// Once the record is written, the keyslot is repaired although the note cannot be written,
// and noted although the keyslot cannot be repaired; and nobody says that the TPM was left
// as it is.
func TestAcceptKeyslotOrNote(t *testing.T) {
	t.Run("the note fails", func(t *testing.T) {
		m := provisionedMachine(t, nil)
		m.damageKeyslot()
		delete(m.rootFiles(), rootpart.GuaranteesFile)
		m.fullFile = rootpart.GuaranteesFile
		m.printed.Reset()
		m.accepts()
		if said := m.printed.String(); !strings.Contains(said, "the TPM has accepted this machine, but") || !strings.Contains(said, "no space left") || strings.Contains(said, "left as it is") {
			t.Errorf("it says %s", said)
		}
		m.fullFile = ""
		m.opensByItself()
	})
	t.Run("the keyslot fails, in the console", func(t *testing.T) {
		m := provisionedMachine(t, nil)
		m.damageKeyslot()
		m.unaccounted = true // PCR 4 is left out, which takes the word
		r, c := m.asked()
		writable := r.Disks
		r.Disks = unwritable{writable}
		m.types("y", "weaker")
		m.refuses(r.Reseal(c), "the TPM has accepted this machine, but")
		r.Disks = writable
		m.types("y") // the note knows of what was agreed to
		m.works(r.Reseal(c), "Accepted.")
		m.works(r.Lock())
		m.opensByItself()
	})
}
