package agent

import (
	"bytes"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/uki"
	"halogenos.internal/boot/uki/ukitest"
	"halogenos.internal/initagent/bootjournal"
	"halogenos.internal/initagent/fetched"
	"halogenos.internal/initagent/staging"
)

// with is pinned and one more change.
func with(change func(c *contract.Contract)) func(*contract.Contract) {
	return func(c *contract.Contract) {
		pinned(c)
		change(c)
	}
}

// half is what a torn file has.
func half(b []byte) []byte { return b[:len(b)/2] }

// A release that is not what it should be is refused, for good, and nothing of the
// machine changes. FAULTS 1, 2, 5, 6, 12, 38, 51
func TestStageRefuses(t *testing.T) {
	m := provisionedMachine(t, pinned)
	provisioned := m.world(true, nil)
	second, third := newRelease(t, 2, 5, pinned), newRelease(t, 3, 5, pinned)
	other := func(change func(c *contract.Contract)) func(p *parcel) {
		r := newRelease(t, 2, 5, with(change))
		return func(p *parcel) { *p = *m.parcel(r) }
	}
	spoil := func(name string, change func(b []byte) []byte) func(*parcel) {
		return func(p *parcel) { p.files[name] = change(p.files[name]) }
	}
	for name, c := range map[string]struct {
		spoil func(p *parcel)
		says  string
	}{
		"not signed":               {func(p *parcel) { p.signer = nil }, "release.json.pgp"},
		"signed by another":        {func(p *parcel) { p.signer, _ = stranger() }, "signature is by the OpenPGP key"},
		"description was changed":  {func(p *parcel) { p.files[release.FileName] = []byte("{}") }, "does not fit"},
		"signature is torn":        {func(p *parcel) { p.files[release.FileName+".pgp"] = make([]byte, 40) }, "read signature"},
		"description of nothing":   {func(p *parcel) { p.text = []byte("{}") }, "format 0"},
		"no description":           {func(p *parcel) { p.text = []byte("") }, "parse release.json"},
		"description is too large": {func(p *parcel) { p.text = make([]byte, release.MaxSize+1) }, "more than"},
		"UKI of another":           {spoil(release.UKIFile, func([]byte) []byte { return third.uki }), "uki.efi has SHA-256"},
		"UKI is torn":              {spoil(release.UKIFile, half), "uki.efi has SHA-256"},
		"UKI is missing":           {func(p *parcel) { delete(p.files, release.UKIFile) }, "not exist"},
		"UKI is larger":            {spoil(release.UKIFile, func(b []byte) []byte { return append(slices.Clone(b), 0) }), "more than"},
		"boot manager is torn":     {spoil(release.BootManagerFile, half), "bootx64.efi has SHA-256"},
		"boot manager is missing":  {func(p *parcel) { delete(p.files, release.BootManagerFile) }, "not exist"},
		"slot has another image":   {func(p *parcel) { p.image, p.params = third.image, third.contract.VerityParams() }, "slot b does not hold the release"},
		"tree of another salt":     {func(p *parcel) { p.params.Salt = []byte("other") }, "slot b does not hold the release"},
		"signed mix": {func(p *parcel) {
			q := m.parcel(third)
			p.files, p.release.Files, p.release.PCR11 = q.files, q.release.Files, q.release.PCR11
		}, "in release.json and 3 in the UKI's boot contract"},
		"another version in the directory": {func(p *parcel) { q := m.parcel(third); p.release, p.files = q.release, q.files }, "is of version 3, want 2"},
		"another UKI hash":                 {func(p *parcel) { p.release.Files[0].Authenticode[0] ^= 1 }, "uki.efi has the image hash"},
		"another PCR 11":                   {func(p *parcel) { p.release.PCR11[0] ^= 1 }, "in PCR 11"},
		"another image ID":                 {other(func(c *contract.Contract) { c.ImageID = "other" }), "image other"},
		"another architecture":             {other(func(c *contract.Contract) { c.Arch = "arm64" }), "for arm64"},
		"another slot size":                {other(func(c *contract.Contract) { c.SlotSize *= 2 }), "wants slots of"},
		"another file system":              {other(func(c *contract.Contract) { c.RootFileSystem = "btrfs" }), "wants btrfs"},
		"a lower epoch":                    {other(func(c *contract.Contract) { c.Epoch = 4 }), "epoch is 4"},
		"another release key":              {other(func(c *contract.Contract) { s, _ := stranger(); c.ReleaseKey = s.public }), "have not pinned the same release key"},
		"no release key":                   {other(func(c *contract.Contract) { c.ReleaseKey = nil }), "have not pinned the same release key"},
		"without Secure Boot":              {other(func(c *contract.Contract) { c.SecureBoot = contract.Optional }), "does without Secure Boot"},
		"without a TPM":                    {other(func(c *contract.Contract) { c.TPM = contract.Optional }), "does without a TPM"},
		"for the running slot":             {func(p *parcel) { p.note = `{"format":1,"version":"2","slot":"a"}` }, "slot a is running"},
		"empty note":                       {func(p *parcel) { p.note = " " }, "cannot be read"},
		"torn note":                        {func(p *parcel) { p.note = `{"format":1,"vers` }, "cannot be read"},
		"note with more":                   {func(p *parcel) { p.note = `{"format":1,"version":"2","slot":"b","x":1}` }, "cannot be read"},
		"note of another format":           {func(p *parcel) { p.note = `{"format":2,"version":"2","slot":"b"}` }, "is malformed"},
		"note without a slot":              {func(p *parcel) { p.note = `{"format":1,"version":"2","slot":"none"}` }, "is malformed"},
		"note out of the directory":        {func(p *parcel) { p.note = `{"format":1,"version":"../2","slot":"b"}` }, "cannot be read"},
		"note that is too large":           {func(p *parcel) { p.note = strings.Repeat(" ", staging.MaxNote+1) }, "more than"},
	} {
		t.Run(name, func(t *testing.T) {
			m.t = t
			m.again(provisioned, 1)
			p := m.parcel(second)
			c.spoil(p)
			m.deliver(p)
			m.releases[2] = second
			m.refusesRelease(c.says)
		})
	}
}

// refusesRelease boots into the system that runs, which must refuse the staged release
// for this reason and leave everything as it is.
func (m *machine) refusesRelease(says string) {
	m.t.Helper()
	table, _, err := m.table()
	m.must(err)
	running := m.agent.Contract.Version
	m.ops = nil
	m.runs(running, says)
	if got, _, err := m.table(); err != nil || !slices.Equal(got.Partitions, table.Partitions) {
		m.t.Errorf("the partition table has changed (%v)", err)
	}
	for _, op := range m.ops {
		if !strings.HasPrefix(op, "root ") {
			m.t.Errorf("it did: %s", op)
		}
	}
	entries := journal.Parse(m.rootFiles()[bootjournal.File])
	if !slices.ContainsFunc(entries, func(e journal.Entry) bool { return e.Kind == journal.Refused && strings.Contains(e.Reason, says) }) {
		m.t.Errorf("the journal says nothing of %q:\n%s", says, m.rootFiles()[bootjournal.File])
	}
	if _, there := m.rootFiles()[staging.NoteFile]; there {
		m.t.Error("the note is still there")
	}
	m.runs(running)
	if strings.Contains(m.said.String(), "stage") {
		m.t.Errorf("it is looked at again:\n%s", m.said.String())
	}
}

// What only the machine's state speaks against. FAULTS 2, 24, 51
func TestStageRefusesHere(t *testing.T) {
	m := provisionedMachine(t, pinned)
	m.fetch(newRelease(t, 2, 6, pinned))
	m.runs(2)
	m.bless()
	m.runs(2)
	provisioned := m.world(true, nil)
	for name, c := range map[string]struct {
		release *edition
		before  func(m *machine)
		after   func(m *machine)
		says    string
	}{
		"an older version": {release: newRelease(t, 1, 6, pinned), says: "version 1 is not newer than 2"},
		"under the floor":  {release: newRelease(t, 3, 5, pinned), says: "epoch is 5, the lowest that may run is 6"},
		"a version that failed": {release: newRelease(t, 3, 6, pinned), before: func(m *machine) {
			text, err := journal.Append(m.rootFiles()[bootjournal.File], journal.Entry{Kind: journal.Failed, Version: 3, Reason: "it was no good"})
			m.must(err)
			m.rootFiles()[bootjournal.File] = text
		}, says: "version 3 has failed before: it was no good"},
		"a newer one is there": {release: newRelease(t, 3, 6, pinned), after: func(m *machine) {
			m.byHand = 2
			m.esp.files["EFI/Linux/test_4.efi"] = m.esp.files["EFI/Linux/test_2.efi"]
		}, says: "not newer than test_4.efi"},
		"revoked by the firmware": {release: newRelease(t, 3, 6, pinned), before: func(m *machine) {
			digest, err := authenticode.Digest(m.releases[3].uki)
			m.must(err)
			dbx, err := secureboot.Database{secureboot.Hash(gpt.MustGUID("11111111-2222-4333-8444-555555555555"), digest)}.Marshal()
			m.must(err)
			m.vars["dbx"] = efiVariable{secureboot.KeyAttributes, dbx}
			m.typed = []string{m.recoveryKey(), "y"} // it changes PCR 7
			m.ends("system")
			m.runs(2)
		}, says: "is in the firmware's dbx"},
		"partition is smaller": {release: newRelease(t, 3, 6, pinned), after: func(m *machine) {
			table, _, err := m.table()
			m.must(err)
			for i, p := range table.Partitions {
				if p.Number == m.runningSlot().Other().SystemNumber() {
					table.Partitions[i].Last = p.First + 7
					table.Partitions = append(table.Partitions, gpt.Partition{Number: 7, Type: layout.TypeRoot,
						UUID: gpt.MustGUID("99999999-2222-4333-8444-555555555555"), First: p.First + 8, Last: p.Last, Label: "photos"})
					break
				}
			}
			m.must(table.Write(m.disk))
		}, says: "has 4096 bytes, the release needs"},
	} {
		t.Run(name, func(t *testing.T) {
			m.t = t
			m.again(provisioned, 2)
			first := m.releases[1]
			defer func() { m.releases[1] = first }()
			m.releases[c.release.contract.Version] = c.release
			if c.before != nil {
				c.before(m)
			}
			p := m.parcel(c.release)
			m.deliver(p)
			if c.after != nil {
				c.after(m)
			}
			m.refusesRelease(c.says)
		})
	}
}

// What keeps the machine from staging today is tried again at the next boot, and
// until it works nothing has changed. FAULTS 44, 82
func TestStageLater(t *testing.T) {
	m := provisionedMachine(t, pinned)
	provisioned := m.world(true, nil)
	second := newRelease(t, 2, 5, pinned)
	for name, c := range map[string]struct {
		set, mend func()
		says      string
	}{
		"the ESP is full":             {func() { m.esp.taken = 1<<30 - 4096 }, func() { m.esp.taken = 0 }, "the ESP is too full"},
		"the ESP is read-only":        {func() { m.esp.fails = syscall.EROFS }, func() { m.esp.fails = nil }, "read-only file system"},
		"the ESP is full all at once": {func() { m.esp.full = true }, func() { m.esp.full = false }, "no space left on device"},
		"the slot cannot be read":     {func() { m.unreadable = layout.SlotB.VerityNumber() }, func() { m.unreadable = 0 }, "input/output error"},
		"a file cannot be read": {func() { m.unreadableFile = path.Join(fetched.Directory, "2", release.UKIFile) },
			func() { m.unreadableFile = "" }, "input/output error"},
		"the note cannot be read":    {func() { m.unreadableFile = staging.NoteFile }, func() { m.unreadableFile = "" }, "input/output error"},
		"the TPM refuses the record": {func() { m.refuseRecord = true }, func() { m.refuseRecord = false }, "let version 2 unlock the root partition"},
	} {
		t.Run(name, func(t *testing.T) {
			m.t = t
			m.again(provisioned, 1)
			m.fetch(second)
			c.set()
			m.runs(1, c.says)
			m.wants("test_1.efi")
			m.runs(1, c.says)
			c.mend()
			m.runs(2)
			m.wants("test_1.efi", "test_2+2-1.efi")
			m.holds(5, 1, 2)
		})
	}
}

// A dead clock keeps no machine from its updates, and neither does it bring an
// expired key back to life. FAULTS 17, 81
func TestStageClock(t *testing.T) {
	old, err := expired()
	if err != nil {
		t.Fatal(err)
	}
	m := provisionedMachine(t, pinned)
	provisioned := m.world(true, nil)
	second := newRelease(t, 2, 5, pinned)
	for name, clock := range map[string]time.Time{
		"1970": time.Unix(0, 0), "2100": time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC), "before the signature": buildDate, "right": buildDate.AddDate(1, 0, 0),
	} {
		t.Run(name, func(t *testing.T) {
			m.t = t
			m.again(provisioned, 1)
			m.clock = clock
			m.fetch(second)
			m.runs(2)
		})
	}
	expiring := func(c *contract.Contract) { c.ReleaseKey = old.public }
	m = provisionedMachine(t, expiring)
	provisioned = m.world(true, nil)
	second = newRelease(t, 2, 5, expiring)
	for name, c := range map[string]struct {
		clock, signed time.Time
		good          bool
	}{
		"while the key was good":          {buildDate.AddDate(0, 0, 2), buildDate.AddDate(0, 0, 1), true},
		"after the key has expired":       {buildDate.AddDate(0, 1, 0), buildDate.AddDate(0, 0, 1), false},
		"by the expired key, clock 1970":  {time.Unix(0, 0), buildDate.AddDate(0, 1, 0), false},
		"by the key of then, clock 1970":  {time.Unix(0, 0), buildDate.AddDate(0, 0, 1), true},
		"by the key of then, clock 2100":  {time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC), buildDate.AddDate(0, 0, 1), true},
		"made when the clock cannot know": {buildDate, buildDate.AddDate(60, 0, 0), false},
	} {
		t.Run(name, func(t *testing.T) {
			m.t = t
			m.again(provisioned, 1)
			m.clock = c.clock
			m.releases[2] = second
			p := m.parcel(second)
			p.signer, p.signedAt = old, c.signed
			m.deliver(p)
			if c.good {
				m.runs(2)
			} else {
				m.refusesRelease("judged as of")
			}
		})
	}
}

// Staging reads the head of the slot and its end, and nothing else of it: under a
// second, whatever the image's size.
func TestStageReadsNoImage(t *testing.T) {
	m := provisionedMachine(t, pinned)
	m.fetch(newRelease(t, 2, 5, pinned))
	part, err := m.partition(layout.SlotB.SystemNumber())
	m.must(err)
	_, err = part.WriteAt(bytes.Repeat([]byte{0xff}, 4096), imageSize/2)
	m.must(err)
	m.must(m.disk.Sync())
	// It is staged, and its trial, which reads the image, finds it out.
	m.runs(1, "slot b: verity: data block")
	m.wants("test_1.efi", "test_2+0-1.efi")
	var failed bool
	for _, e := range journal.Parse(m.rootFiles()[bootjournal.File]) {
		failed = failed || e.Kind == journal.Failed && e.Version == 2
	}
	if !failed {
		t.Errorf("the journal forgets that version 2 failed:\n%s", m.rootFiles()[bootjournal.File])
	}
}

// Two versions with the same content run from the same slot. FAULTS 40
func TestStageSameContent(t *testing.T) {
	m := provisionedMachine(t, pinned)
	r := newRelease(t, 2, 5, with(func(c *contract.Contract) { c.RootHash = m.releases[1].contract.RootHash }))
	r.image = m.releases[1].image
	m.fetch(r)
	m.runs(2)
	if s := m.runningSlot(); s != layout.SlotA {
		t.Errorf("slot %s runs", s)
	}
	m.bless()
	m.runs(2)
	m.holds(5, 1, 2)
	m.fetch(newRelease(t, 3, 5, pinned))
	m.runs(3)
	if s := m.runningSlot(); s != layout.SlotB {
		t.Errorf("slot %s runs", s)
	}
	// The very same version in the other slot is not newer.
	m.bless()
	m.runs(3)
	m.fetch(m.releases[3])
	m.runs(3)
	m.wants("test_3.efi")
}

// again gives the machine this world, in which that version runs.
func (m *machine) again(w *world, version contract.Version) {
	m.t.Helper()
	m.powerOn(w)
	m.clock, m.byHand = buildDate.AddDate(0, 1, 0), 0
	m.runs(version)
}

// Staging costs what hashing the UKI costs, a few times over. The slot's image may
// have any size: it is not read.
func TestStageTakesNoSecond(t *testing.T) {
	m := provisionedMachine(t, pinned)
	r := newRelease(t, 2, 5, pinned)
	initrd, err := contract.Archive(r.contract)
	m.must(err)
	kernel := make([]byte, 32<<20)
	_, err = rand.NewChaCha8([32]byte{2}).Read(kernel)
	m.must(err)
	r.uki, err = uki.Build(ukitest.Stub("257.13-1"), uki.Payload{
		OSRelease: []byte("ID=test\n"), Cmdline: []byte("quiet"), Linux: append(ukitest.Stub("kernel"), kernel...), Initrd: initrd,
	}.Sections())
	m.must(err)
	m.fetch(r)
	// Time of the processor, since others may be at work on this machine.
	worked := func() time.Duration {
		var u syscall.Rusage
		m.must(syscall.Getrusage(syscall.RUSAGE_SELF, &u))
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	before := worked()
	if end := m.boot(); end != "reboot" {
		t.Fatalf("ends in %s:\n%s", end, m.said.String())
	}
	took := worked() - before
	t.Logf("the boot that stages a UKI of %d MiB works for %v", len(r.uki)>>20, took)
	if took > time.Second {
		t.Errorf("it works for %v, want less than a second", took)
	}
	m.runs(2)
}
