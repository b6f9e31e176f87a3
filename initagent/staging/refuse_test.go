package staging_test

import (
	"bytes"
	"crypto/sha256"
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
	"halogenos.internal/boot/statefiles"
	"halogenos.internal/boot/uki"
	"halogenos.internal/boot/uki/ukitest"
	"halogenos.internal/initagent/bootjournal"
	"halogenos.internal/initagent/fetched"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/staging"
)

// half is what a torn file has.
func half(b []byte) []byte { return b[:len(b)/2] }

// A release that is not what it should be is refused, for good, and nothing of the
// machine changes. FAULTS 1, 2, 5, 6, 12, 38, 51
func TestStageRefuses(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	provisioned := m.World(true, nil)
	second, third := machinetest.NewRelease(t, 2, 5, machinetest.Pinned), machinetest.NewRelease(t, 3, 5, machinetest.Pinned)
	other := func(change func(c *contract.Contract)) func(p *machinetest.Parcel) {
		r := machinetest.NewRelease(t, 2, 5, machinetest.With(change))
		return func(p *machinetest.Parcel) { *p = *m.Parcel(r) }
	}
	spoil := func(name string, change func(b []byte) []byte) func(*machinetest.Parcel) {
		return func(p *machinetest.Parcel) { p.Files[name] = change(p.Files[name]) }
	}
	for name, c := range map[string]struct {
		spoil func(p *machinetest.Parcel)
		says  string
	}{
		"not signed":               {func(p *machinetest.Parcel) { p.Signer = nil }, "release.json.pgp"},
		"signed by another":        {func(p *machinetest.Parcel) { p.Signer, _ = machinetest.Stranger() }, "signature is by the OpenPGP key"},
		"description was changed":  {func(p *machinetest.Parcel) { p.Files[release.FileName] = []byte("{}") }, "does not fit"},
		"signature is torn":        {func(p *machinetest.Parcel) { p.Files[release.FileName+".pgp"] = make([]byte, 40) }, "read signature"},
		"description of nothing":   {func(p *machinetest.Parcel) { p.Text = []byte("{}") }, "format 0"},
		"no description":           {func(p *machinetest.Parcel) { p.Text = []byte("") }, "parse release.json"},
		"description is too large": {func(p *machinetest.Parcel) { p.Text = make([]byte, release.MaxSize+1) }, "more than"},
		"UKI of another":           {spoil(release.UKIFile, func([]byte) []byte { return third.UKI }), "uki.efi has SHA-256"},
		"UKI is torn":              {spoil(release.UKIFile, half), "uki.efi has SHA-256"},
		"UKI is missing":           {func(p *machinetest.Parcel) { delete(p.Files, release.UKIFile) }, "not exist"},
		"UKI is larger":            {spoil(release.UKIFile, func(b []byte) []byte { return append(slices.Clone(b), 0) }), "more than"},
		"boot manager is torn":     {spoil(release.BootManagerFile, half), "bootx64.efi has SHA-256"},
		"boot manager is missing":  {func(p *machinetest.Parcel) { delete(p.Files, release.BootManagerFile) }, "not exist"},
		"slot has another image":   {func(p *machinetest.Parcel) { p.Image, p.Params = third.Image, third.Contract.VerityParams() }, "slot b does not hold the release"},
		"tree of another salt":     {func(p *machinetest.Parcel) { p.Params.Salt = []byte("other") }, "slot b does not hold the release"},
		"signed mix": {func(p *machinetest.Parcel) {
			q := m.Parcel(third)
			p.Files, p.Release.Files, p.Release.PCR11 = q.Files, q.Release.Files, q.Release.PCR11
		}, "in release.json and 3 in the UKI's boot contract"},
		"another version in the directory": {func(p *machinetest.Parcel) { q := m.Parcel(third); p.Release, p.Files = q.Release, q.Files }, "is of version 3, want 2"},
		"another UKI hash":                 {func(p *machinetest.Parcel) { p.Release.Files[0].Authenticode[0] ^= 1 }, "uki.efi has the image hash"},
		"another PCR 11":                   {func(p *machinetest.Parcel) { p.Release.PCR11[0] ^= 1 }, "in PCR 11"},
		"another image ID":                 {other(func(c *contract.Contract) { c.ImageID = "other" }), "image other"},
		"another architecture":             {other(func(c *contract.Contract) { c.Arch = "arm64" }), "for arm64"},
		"another slot size":                {other(func(c *contract.Contract) { c.SlotSize *= 2 }), "wants slots of"},
		"another file system":              {other(func(c *contract.Contract) { c.RootFileSystem = "btrfs" }), "wants btrfs"},
		"a lower epoch":                    {other(func(c *contract.Contract) { c.Epoch = 4 }), "epoch is 4"},
		"another release key":              {other(func(c *contract.Contract) { s, _ := machinetest.Stranger(); c.ReleaseKey = s.Public }), "have not pinned the same release key"},
		"no release key":                   {other(func(c *contract.Contract) { c.ReleaseKey = nil }), "have not pinned the same release key"},
		"without Secure Boot":              {other(func(c *contract.Contract) { c.SecureBoot = contract.Optional }), "does without Secure Boot"},
		"without a TPM":                    {other(func(c *contract.Contract) { c.TPM = contract.Optional }), "does without a TPM"},
		"for the running slot":             {func(p *machinetest.Parcel) { p.Note = `{"format":1,"version":"2","slot":"a"}` }, "slot a is running"},
		"empty note":                       {func(p *machinetest.Parcel) { p.Note = " " }, "cannot be read"},
		"torn note":                        {func(p *machinetest.Parcel) { p.Note = `{"format":1,"vers` }, "cannot be read"},
		"note with more":                   {func(p *machinetest.Parcel) { p.Note = `{"format":1,"version":"2","slot":"b","x":1}` }, "cannot be read"},
		"note of another format":           {func(p *machinetest.Parcel) { p.Note = `{"format":2,"version":"2","slot":"b"}` }, "is malformed"},
		"note without a slot":              {func(p *machinetest.Parcel) { p.Note = `{"format":1,"version":"2","slot":"none"}` }, "is malformed"},
		"note out of the directory":        {func(p *machinetest.Parcel) { p.Note = `{"format":1,"version":"../2","slot":"b"}` }, "cannot be read"},
		"note that is too large":           {func(p *machinetest.Parcel) { p.Note = strings.Repeat(" ", statefiles.MaxStaged+1) }, "more than"},
	} {
		t.Run(name, func(t *testing.T) {
			m.T = t
			m.Again(provisioned, 1)
			p := m.Parcel(second)
			c.spoil(p)
			m.Deliver(p)
			m.Releases[2] = second
			m.RefusesRelease(c.says)
		})
	}
}

// What only the machine's state speaks against. FAULTS 2, 24, 51
func TestStageRefusesHere(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	m.Fetch(machinetest.NewRelease(t, 2, 6, machinetest.Pinned))
	m.Runs(2)
	m.Bless()
	m.Runs(2)
	provisioned := m.World(true, nil)
	for name, c := range map[string]struct {
		release *machinetest.Edition
		before  func(m *machinetest.Machine)
		after   func(m *machinetest.Machine)
		says    string
	}{
		"an older version": {release: machinetest.NewRelease(t, 1, 6, machinetest.Pinned), says: "version 1 is not newer than 2"},
		"under the floor":  {release: machinetest.NewRelease(t, 3, 5, machinetest.Pinned), says: "epoch is 5, the lowest that may run is 6"},
		"a version that failed": {release: machinetest.NewRelease(t, 3, 6, machinetest.Pinned), before: func(m *machinetest.Machine) {
			text, err := journal.Append(m.RootFiles()[bootjournal.File], journal.Entry{Kind: journal.Failed, Version: 3, Reason: "it was no good"})
			m.Must(err)
			m.RootFiles()[bootjournal.File] = text
		}, says: "version 3 has failed before: it was no good"},
		"a newer one is there": {release: machinetest.NewRelease(t, 3, 6, machinetest.Pinned), after: func(m *machinetest.Machine) {
			m.ByHand = 2
			m.ESP.Files["EFI/Linux/test_4.efi"] = m.ESP.Files["EFI/Linux/test_2.efi"]
		}, says: "not newer than test_4.efi"},
		"revoked by the firmware": {release: machinetest.NewRelease(t, 3, 6, machinetest.Pinned), before: func(m *machinetest.Machine) {
			digest, err := authenticode.Digest(m.Releases[3].UKI)
			m.Must(err)
			dbx, err := secureboot.Database{secureboot.Hash(gpt.MustGUID("11111111-2222-4333-8444-555555555555"), digest)}.Marshal()
			m.Must(err)
			m.Vars["dbx"] = machinetest.EFIVariable{Attributes: secureboot.KeyAttributes, Data: dbx}
			m.Typed = []string{m.RecoveryKey(), "y"} // it changes PCR 7
			m.Ends("system")
			m.Runs(2)
		}, says: "is in the firmware's dbx"},
		"partition is smaller": {release: machinetest.NewRelease(t, 3, 6, machinetest.Pinned), after: func(m *machinetest.Machine) {
			table, _, err := m.Table()
			m.Must(err)
			for i, p := range table.Partitions {
				if layout.RoleOf(p) == m.RunningSlot().Other().System() {
					table.Partitions[i].Last = p.First + 7
					table.Partitions = append(table.Partitions, gpt.Partition{Number: 7, Type: layout.TypeRoot,
						UUID: gpt.MustGUID("99999999-2222-4333-8444-555555555555"), First: p.First + 8, Last: p.Last, Label: "photos"})
					break
				}
			}
			m.Must(table.Write(m.Disk))
		}, says: "has 4096 bytes, the release needs"},
	} {
		t.Run(name, func(t *testing.T) {
			m.T = t
			m.Again(provisioned, 2)
			first := m.Releases[1]
			defer func() { m.Releases[1] = first }()
			m.Releases[c.release.Contract.Version] = c.release
			if c.before != nil {
				c.before(m)
			}
			p := m.Parcel(c.release)
			m.Deliver(p)
			if c.after != nil {
				c.after(m)
			}
			m.RefusesRelease(c.says)
		})
	}
}

// What keeps the machine from staging today is tried again at the next boot, and
// until it works nothing has changed. FAULTS 44, 82
func TestStageLater(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	provisioned := m.World(true, nil)
	second := machinetest.NewRelease(t, 2, 5, machinetest.Pinned)
	for name, c := range map[string]struct {
		set, mend func()
		says      string
	}{
		"the ESP is full":             {func() { m.ESP.Taken = 1<<30 - 4096 }, func() { m.ESP.Taken = 0 }, "the ESP is too full"},
		"the ESP is read-only":        {func() { m.ESP.Fails = syscall.EROFS }, func() { m.ESP.Fails = nil }, "read-only file system"},
		"the ESP is full all at once": {func() { m.ESP.Full = true }, func() { m.ESP.Full = false }, "no space left on device"},
		"the slot cannot be read":     {func() { m.Unreadable = layout.SlotB.Verity() }, func() { m.Unreadable = 0 }, "input/output error"},
		"a file cannot be read": {func() { m.UnreadableFile = path.Join(fetched.Directory, "2", release.UKIFile) },
			func() { m.UnreadableFile = "" }, "input/output error"},
		"the note cannot be read":    {func() { m.UnreadableFile = staging.NoteFile }, func() { m.UnreadableFile = "" }, "input/output error"},
		"the TPM refuses the record": {func() { m.RefuseRecord = true }, func() { m.RefuseRecord = false }, "let version 2 unlock the root partition"},
	} {
		t.Run(name, func(t *testing.T) {
			m.T = t
			m.Again(provisioned, 1)
			m.Fetch(second)
			c.set()
			m.Runs(1, c.says)
			m.Wants("test_1.efi")
			m.Runs(1, c.says)
			c.mend()
			m.Runs(2)
			m.Wants("test_1.efi", "test_2+2-1.efi")
			m.Holds(5, 1, 2)
		})
	}
}

// A dead clock keeps no machine from its updates, and neither does it bring an
// expired key back to life. FAULTS 17, 81
func TestStageClock(t *testing.T) {
	old, err := machinetest.Expired()
	if err != nil {
		t.Fatal(err)
	}
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	provisioned := m.World(true, nil)
	second := machinetest.NewRelease(t, 2, 5, machinetest.Pinned)
	for name, clock := range map[string]time.Time{
		"1970": time.Unix(0, 0), "2100": time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC), "before the signature": machinetest.BuildDate, "right": machinetest.BuildDate.AddDate(1, 0, 0),
	} {
		t.Run(name, func(t *testing.T) {
			m.T = t
			m.Again(provisioned, 1)
			m.Clock = clock
			m.Fetch(second)
			m.Runs(2)
		})
	}
	expiring := func(c *contract.Contract) { c.ReleaseKey = old.Public }
	m = machinetest.ProvisionedMachine(t, expiring)
	provisioned = m.World(true, nil)
	second = machinetest.NewRelease(t, 2, 5, expiring)
	for name, c := range map[string]struct {
		clock, signed time.Time
		good          bool
	}{
		"while the key was good":          {machinetest.BuildDate.AddDate(0, 0, 2), machinetest.BuildDate.AddDate(0, 0, 1), true},
		"after the key has expired":       {machinetest.BuildDate.AddDate(0, 1, 0), machinetest.BuildDate.AddDate(0, 0, 1), false},
		"by the expired key, clock 1970":  {time.Unix(0, 0), machinetest.BuildDate.AddDate(0, 1, 0), false},
		"by the key of then, clock 1970":  {time.Unix(0, 0), machinetest.BuildDate.AddDate(0, 0, 1), true},
		"by the key of then, clock 2100":  {time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC), machinetest.BuildDate.AddDate(0, 0, 1), true},
		"made when the clock cannot know": {machinetest.BuildDate, machinetest.BuildDate.AddDate(60, 0, 0), false},
	} {
		t.Run(name, func(t *testing.T) {
			m.T = t
			m.Again(provisioned, 1)
			m.Clock = c.clock
			m.Releases[2] = second
			p := m.Parcel(second)
			p.Signer, p.SignedAt = old, c.signed
			m.Deliver(p)
			if c.good {
				m.Runs(2)
			} else {
				m.RefusesRelease("judged as of")
			}
		})
	}
}

// Staging reads the head of the slot and its end, and nothing else of it: under a
// second, whatever the image's size.
func TestStageReadsNoImage(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	m.Fetch(machinetest.NewRelease(t, 2, 5, machinetest.Pinned))
	part, err := m.Partition(layout.SlotB.System())
	m.Must(err)
	_, err = part.WriteAt(bytes.Repeat([]byte{0xff}, 4096), machinetest.ImageSize/2)
	m.Must(err)
	m.Must(m.Disk.Sync())
	// It is staged, and its trial, which reads the image, finds it out.
	m.Runs(1, "slot b: verity: data block")
	m.Wants("test_1.efi", "test_2+0-1.efi")
	var failed bool
	for _, e := range journal.Parse(m.RootFiles()[bootjournal.File]) {
		failed = failed || e.Kind == journal.Failed && e.Version == 2
	}
	if !failed {
		t.Errorf("the journal forgets that version 2 failed:\n%s", m.RootFiles()[bootjournal.File])
	}
}

// Two versions with the same content run from the same slot. FAULTS 40
func TestStageSameContent(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	r := machinetest.NewRelease(t, 2, 5, machinetest.With(func(c *contract.Contract) { c.RootHash = m.Releases[1].Contract.RootHash }))
	r.Image = m.Releases[1].Image
	m.Fetch(r)
	m.Runs(2)
	if s := m.RunningSlot(); s != layout.SlotA {
		t.Errorf("slot %s runs", s)
	}
	m.Bless()
	m.Runs(2)
	m.Holds(5, 1, 2)
	m.Fetch(machinetest.NewRelease(t, 3, 5, machinetest.Pinned))
	m.Runs(3)
	if s := m.RunningSlot(); s != layout.SlotB {
		t.Errorf("slot %s runs", s)
	}
	// The very same version in the other slot is not newer.
	m.Bless()
	m.Runs(3)
	m.Fetch(m.Releases[3])
	m.Runs(3)
	m.Wants("test_3.efi")
}

// Staging costs what hashing the UKI costs, a few times over. The slot's image may
// have any size: it is not read.
func TestStageTakesNoSecond(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	r := machinetest.NewRelease(t, 2, 5, machinetest.Pinned)
	initrd, err := contract.Archive(r.Contract)
	m.Must(err)
	kernel := make([]byte, 32<<20)
	_, err = rand.NewChaCha8([32]byte{2}).Read(kernel)
	m.Must(err)
	r.UKI, err = uki.Build(ukitest.Stub("257.13-1"), uki.Payload{
		OSRelease: []byte("ID=test\n"), Cmdline: []byte("quiet"), Linux: append(ukitest.Stub("kernel"), kernel...), Initrd: initrd,
	}.Sections())
	m.Must(err)
	m.Fetch(r)
	// Time of the processor, since others may be at work on this machine; and as a
	// multiple of hashing, since that time grows too where they share a core's units.
	worked := func(f func()) time.Duration {
		var before, after syscall.Rusage
		m.Must(syscall.Getrusage(syscall.RUSAGE_SELF, &before))
		f()
		m.Must(syscall.Getrusage(syscall.RUSAGE_SELF, &after))
		return time.Duration(after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano())
	}
	hash := worked(func() { sha256.Sum256(r.UKI) })
	took := worked(func() {
		if end := m.Boot(); end != "reboot" {
			t.Fatalf("ends in %s:\n%s", end, m.Said.String())
		}
	})
	hash = max(hash, worked(func() { sha256.Sum256(r.UKI) }))
	t.Logf("the boot that stages a UKI of %d MiB works for %v, hashing it takes %v", len(r.UKI)>>20, took, hash)
	if took > 60*hash {
		t.Errorf("it works for %v, want no more than hashing it 60 times, %v", took, 60*hash)
	}
	m.Runs(2)
}
