package snapshot_test

import (
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"halogenos.internal/boot/stateconf"
	"halogenos.internal/initagent/snapshot"
	"halogenos.internal/initagent/snapshot/snapshottest"
)

const (
	mib  = 1 << 20
	note = "shared/" + snapshot.NoteName
)

var (
	entries, _  = stateconf.Parse([]byte(stateconf.Default))
	one, two    = strings.Repeat("1", 64), strings.Repeat("2", 64)
	taken       = time.Date(2026, 11, 29, 12, 0, 0, 5, time.FixedZone("", 3600))
	later       = taken.Add(72 * time.Hour)
	firstSystem = snapshot.System{Version: 1, Root: one}
	running     = snapshot.Boot{System: two}
	record      = snapshot.Record{Taken: taken, System: snapshot.System{Version: 1, Slot: 1, Root: one}, For: 2}
)

// always is that each release was started that a snapshot was taken for, and never that none was.
func always(snapshot.Record) bool { return true }
func never(snapshot.Record) bool  { return false }

// disk is a machine whose /var, /root and /usr/local are subvolumes, and whose /srv is not.
func disk() snapshottest.Disk {
	return snapshottest.Disk{Space: snapshot.Room{Size: 10000 * mib, Free: 5000 * mib}, Files: map[string][]byte{
		"bind/var": []byte(snapshottest.Writable), "bind/var/lib/db": []byte("one"), "bind/root": []byte(snapshottest.Writable), "bind/root/x": []byte("one"),
		"bind/usr-local": []byte(snapshottest.Writable), "bind/srv/x": []byte("one"), "bind/home/me": []byte("one"), "halogen/shared/journal.jsonl": []byte("j"),
	}}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// at is what a directory holds.
func at(d snapshottest.Disk, directory string) map[string]string {
	out := map[string]string{}
	for name, content := range d.Files {
		if own, ok := strings.CutPrefix(name, directory+"/"); ok {
			out[own] = string(content)
		}
	}
	return out
}

func wants(t *testing.T, d snapshottest.Disk, directory string, want map[string]string) {
	t.Helper()
	if got := at(d, directory); !maps.Equal(got, want) {
		t.Errorf("%s has %q, want %q", directory, got, want)
	}
}

// taken is a disk with a snapshot, on which version 2 has run since.
func used(t *testing.T) (snapshottest.Disk, snapshot.Record) {
	t.Helper()
	d := disk()
	r, _, err := snapshot.Take(d, record, entries, always)
	must(t, err)
	d.Files["bind/var/lib/db"] = []byte("two")
	d.Files["bind/var/lib/new"] = []byte("two")
	d.Files["bind/home/me"] = []byte("two")
	d.Files["bind/srv/x"] = []byte("two")
	delete(d.Files, "bind/root/x")
	return d, r
}

func ask(t *testing.T, d snapshottest.Disk, n snapshot.Note) {
	t.Helper()
	if n.From == 0 {
		n.From = 1
	}
	if n.Version == 0 {
		n.Version = 1
	}
	text, err := n.Encode()
	must(t, err)
	d.Files[note] = text
}

var (
	before = map[string]string{"var": snapshottest.Writable, "var/lib/db": "one", "root": snapshottest.Writable, "root/x": "one", "usr-local": snapshottest.Writable, "srv/x": "two", "home/me": "two"}
	after  = map[string]string{"var": snapshottest.Writable, "var/lib/db": "two", "var/lib/new": "two", "root": snapshottest.Writable, "usr-local": snapshottest.Writable}
)

func TestTake(t *testing.T) {
	d, r := used(t)
	if want := []string{"/var", "/root", "/usr/local"}; !slices.Equal(r.Directories, want) || !slices.Equal(r.Plain, []string{"/srv"}) || r.Missing != "" {
		t.Errorf("record %+v", r)
	}
	stored, err := snapshot.ReadRecord(d)
	if must(t, err); !reflect.DeepEqual(*stored, r) {
		t.Errorf("stored is %+v, and %+v was made", *stored, r)
	}
	ro := map[string]string{"var": snapshottest.ReadOnly, "var/lib/db": "one", "root": snapshottest.ReadOnly, "root/x": "one", "usr-local": snapshottest.ReadOnly}
	wants(t, d, snapshot.Before, ro)
	// The next staging replaces it.
	r2, _, err := snapshot.Take(d, snapshot.Record{Taken: later, System: snapshot.System{Version: 2, Root: two}, For: 3}, entries, always)
	if must(t, err); r2.Missing != "" {
		t.Errorf("record %+v", r2)
	}
	if got := at(d, snapshot.Before)["var/lib/db"]; got != "two" {
		t.Errorf("the snapshot has %q", got)
	}
}

// Where there can be no snapshot the record says why, and nothing is left.
func TestTakeNot(t *testing.T) {
	for say, change := range map[string]func(d *snapshottest.Disk){
		"900 MiB of the root partition's 10000 MiB are free, fewer than 1000 MiB, and a snapshot keeps what is deleted": func(d *snapshottest.Disk) { d.Space.Free = 900 * mib },
		"the directories are not subvolumes": func(d *snapshottest.Disk) {
			for _, name := range []string{"bind/var", "bind/root", "bind/usr-local"} {
				d.Files[name] = []byte{}
			}
		},
		"no space left on device": func(d *snapshottest.Disk) {
			d.Fails = func(what string) error {
				if strings.HasPrefix(what, "snapshot bind/root") {
					return syscall.ENOSPC
				}
				return nil
			}
		},
	} {
		d := disk()
		change(&d)
		r, _, err := snapshot.Take(d, record, entries, always)
		must(t, err)
		if stored, err := snapshot.ReadRecord(d); err != nil || !strings.Contains(r.Missing, say) || !reflect.DeepEqual(*stored, r) {
			t.Errorf("%s: record %+v, %+v, %v", say, r, stored, err)
		}
		wants(t, d, snapshot.Before, map[string]string{})
	}
	d := disk()
	d.Fails = func(what string) error { return syscall.EIO }
	if _, _, err := snapshot.Take(d, record, entries, always); !errors.Is(err, syscall.EIO) {
		t.Errorf("a record that cannot be written: %v", err)
	}
}

func TestRoom(t *testing.T) {
	for _, c := range []struct {
		size, free    int64
		refuse, tight bool
	}{
		{100000, 10000, false, false}, {100000, 9999, true, false}, {100000, 5000, true, false}, {100000, 4999, true, true},
		{1000, 256, false, false}, {1000, 255, true, false}, {1000, 128, true, false}, {1000, 127, true, true}, {0, 0, true, true},
	} {
		r := snapshot.Room{Size: c.size * mib, Free: c.free * mib}
		if (r.Refuses() != "") != c.refuse || (r.Tight() != "") != c.tight {
			t.Errorf("%d MiB of %d: %q, %q", c.free, c.size, r.Refuses(), r.Tight())
		}
	}
}

// There and back.
func TestRestore(t *testing.T) {
	d, r := used(t)
	ask(t, d, snapshot.Note{System: one, Of: r.Taken, From: 2})
	if !snapshot.Asked(d, note) {
		t.Error("nothing is asked for")
	}
	got, err := snapshot.Restore(d, note, firstSystem, later)
	must(t, err)
	if !slices.Equal(got.Directories, r.Directories) || got.Undo || got.Declined != "" || got.Warning != "" {
		t.Errorf("%+v", got)
	}
	wants(t, d, "bind", before)
	wants(t, d, got.Where, after)
	aside, err := snapshot.ReadAside(d)
	must(t, err)
	if want := (snapshot.Aside{Format: 1, Time: later.UTC().Truncate(time.Second), Version: 2, Directories: r.Directories, Where: got.Where}); !reflect.DeepEqual(*aside, want) {
		t.Errorf("set aside is %+v, want %+v", *aside, want)
	}
	if snapshot.Asked(d, note) {
		t.Error("it is asked for still")
	}
	// The snapshot stays as it was.
	d.Files["bind/var/lib/db"] = []byte("three")
	if got := at(d, snapshot.Before)["var/lib/db"]; got != "one" {
		t.Errorf("the snapshot has %q", got)
	}
	// Back again, twice.
	for i, want := range []string{"two", "three", "two"} {
		ask(t, d, snapshot.Note{System: one, Of: aside.Time, Undo: true, From: 1})
		again, err := snapshot.Restore(d, note, firstSystem, later.Add(time.Duration(i+1)*time.Hour))
		must(t, err)
		if text := string(d.Files["bind/var/lib/db"]); !again.Undo || again.Where == aside.Where || text != want {
			t.Errorf("undone: %+v, /var has %q", again, text)
		}
		aside, err = snapshot.ReadAside(d)
		must(t, err)
	}
	if stored, _, err := snapshot.Take(d, record, entries, always); err != nil || stored.Missing != "" {
		t.Errorf("the next staging: %+v, %v", stored, err)
	}
	if aside, err = snapshot.ReadAside(d); err != nil || aside != nil || len(at(d, "snapshots/aside-a"))+len(at(d, "snapshots/aside-b")) > 0 {
		t.Errorf("set aside is %+v, %v after the next staging", aside, err)
	}
	// What was set aside is not lost.
	if got := at(d, snapshot.Left); got["2026-12-02-var/lib/db"] != "three" || got["2026-12-02-root"] == "" {
		t.Errorf("left is %q", got)
	}
}

// What a note asks for that is not about this system, or not about what there is, is
// declined once, and nothing has changed.
func TestRestoreDeclines(t *testing.T) {
	for say, c := range map[string]struct {
		note   snapshot.Note
		change func(d *snapshottest.Disk)
	}{
		"asked for under system 2222":        {note: snapshot.Note{System: two, Of: taken.Truncate(time.Second)}},
		"of version 2, and this is":          {note: snapshot.Note{System: one, Version: 2, Of: taken.Truncate(time.Second)}},
		"the snapshot that it was asked for": {note: snapshot.Note{System: one, Of: later}},
		"what was set aside is not there":    {note: snapshot.Note{System: one, Of: later, Undo: true}},
		"malformed": {change: func(d *snapshottest.Disk) {
			d.Files[note] = []byte(`{"format":1,"system":"../etc","of":"2026-11-29T11:00:00Z","from":"2"}`)
		}},
		"no JSON value": {change: func(d *snapshottest.Disk) { d.Files[note] = nil }},
		"is not a directory of state.conf": {change: func(d *snapshottest.Disk) {
			d.Files["snapshots/record.json"] = []byte(strings.ReplaceAll(string(d.Files["snapshots/record.json"]), "/root", "/.."))
		}},
		"invalid argument":        {change: func(d *snapshottest.Disk) { d.Files["snapshots/before/root"] = []byte{} }},
		"operation not permitted": {change: func(d *snapshottest.Disk) { d.Fails = failing("rename bind/var", syscall.EPERM) }},
		"something is set aside already": {change: func(d *snapshottest.Disk) {
			d.Files["snapshots/aside.json"] = []byte(`{"format":1,"time":"2026-11-29T11:00:00Z","directories":[],"where":"snapshots/aside-b"}`)
		}},
	} {
		t.Run(say, func(t *testing.T) {
			d, r := used(t)
			if c.note.System == "" {
				c.note = snapshot.Note{System: one, Of: r.Taken}
			}
			ask(t, d, c.note)
			if c.change != nil {
				c.change(&d)
			}
			was := at(d, "bind")
			got, err := snapshot.Restore(d, note, firstSystem, later)
			if must(t, err); !strings.Contains(got.Declined, say) || got.Directories != nil {
				t.Errorf("%+v", got)
			}
			wants(t, d, "bind", was)
			if snapshot.Asked(d, note) {
				t.Error("it is asked for still")
			}
		})
	}
}

func failing(step string, with error) func(string) error {
	return func(what string) error {
		if strings.HasPrefix(what, step) {
			return with
		}
		return nil
	}
}

// errCut is a power cut.
var errCut = errors.New("cut")

// cutAt runs something with the power cut before its n-th change, and reports whether it
// has come to its end, and before what it was cut.
func cutAt(d *snapshottest.Disk, n int, run func()) (done bool, before string) {
	at := 0
	d.Step = func(what string) {
		if at++; at == n {
			before = what
			panic(errCut)
		}
	}
	defer func() {
		d.Step = nil
		if p := recover(); p != nil && p != errCut {
			panic(p)
		}
	}()
	run()
	return true, ""
}

// The power is cut before every change of an exchange, and of the boot after that: in the
// end all directories are back, what was there is set aside whole, and nothing else is left;
// and while the plan is there, it is asked for, so that no boot goes on without it. FAULTS 105
func TestRestoreCut(t *testing.T) {
	for name, undo := range map[string]bool{"back": false, "undone": true} {
		t.Run(name, func(t *testing.T) {
			for first := 1; ; first++ {
				finished := false
				for second := 1; !finished; second++ {
					d, r := used(t)
					want, set := before, after
					n := snapshot.Note{System: one, Of: r.Taken, From: 2}
					if undo {
						ask(t, d, n)
						_, err := snapshot.Restore(d, note, firstSystem, later)
						must(t, err)
						n = snapshot.Note{System: one, Of: later.UTC().Truncate(time.Second), Undo: true}
						want, set = maps.Clone(after), maps.Clone(before)
						for _, own := range []string{"srv/x", "home/me"} {
							want[own] = before[own]
							delete(set, own)
						}
					}
					ask(t, d, n)
					run := func() {
						_, err := snapshot.Restore(d, note, firstSystem, later.Add(time.Hour))
						must(t, err)
					}
					done, where := cutAt(&d, first, run)
					if done {
						if first < 10 {
							t.Errorf("there are only %d changes", first)
						}
						return
					}
					if _, err := snapshot.Tidy(d, note, running); err != nil { // of a boot that does not exchange anything
						t.Fatal(err)
					}
					finished, _ = cutAt(&d, second, func() {
						if snapshot.Asked(d, note) {
							run()
						}
					})
					if !finished && snapshot.Asked(d, note) {
						run()
					}
					aside, err := snapshot.ReadAside(d)
					if err != nil || aside == nil {
						t.Fatalf("cut before %s and %d: set aside is %+v, %v", where, second, aside, err)
					}
					if got := at(d, "bind"); !maps.Equal(got, want) {
						t.Fatalf("cut before %s and %d: it has %q, want %q", where, second, got, want)
					}
					if got := at(d, aside.Where); !maps.Equal(got, set) {
						t.Fatalf("cut before %s and %d: set aside is %q, want %q", where, second, got, set)
					}
					_, err = snapshot.Tidy(d, note, running)
					must(t, err)
					if left := at(d, "snapshots/next"); len(left) > 0 || snapshot.Asked(d, note) {
						t.Fatalf("cut before %s and %d: there is %q", where, second, left)
					}
				}
			}
		})
	}
}

// The same for the taking: there is the whole of a snapshot with its record, or no record,
// and the next boot removes what is left. FAULTS 105
func TestTakeCut(t *testing.T) {
	for first := 1; ; first++ {
		d, _ := used(t)
		was := at(d, "bind")
		run := func() {
			_, _, err := snapshot.Take(d, snapshot.Record{Taken: later, System: snapshot.System{Version: 2, Root: two}, For: 3}, entries, always)
			must(t, err)
		}
		done, where := cutAt(&d, first, run)
		wants(t, d, "bind", was)
		r, err := snapshot.ReadRecord(d)
		must(t, err)
		if r != nil && (done != r.Taken.Equal(later.Truncate(time.Second)) || at(d, snapshot.Before)["var/lib/db"] == "") {
			t.Fatalf("cut before %s: %+v", where, r)
		}
		if _, err := snapshot.Tidy(d, note, running); err != nil || (len(at(d, snapshot.Before)) == 0) != (r == nil) {
			t.Fatalf("cut before %s: tidied to %q, %v", where, at(d, snapshot.Before), err)
		}
		if done {
			return
		}
		run()
		if got := at(d, snapshot.Before)["var/lib/db"]; got != "two" {
			t.Fatalf("cut before %s: the second attempt's snapshot has %q", where, got)
		}
	}
}

// Where room gets short the snapshot goes, and what is set aside stays.
func TestTidy(t *testing.T) {
	d, r := used(t)
	said, err := snapshot.Tidy(d, note, running)
	if must(t, err); len(said.Gone)+len(said.Tight) > 0 || len(at(d, snapshot.Before)) == 0 {
		t.Errorf("with room it says %q", said)
	}
	ask(t, d, snapshot.Note{System: one, Of: r.Taken, From: 2})
	got, err := snapshot.Restore(d, note, firstSystem, later)
	must(t, err)
	d.Space.Free = 499 * mib
	// Not while somebody may want it: in a trial, and under the system that it is of.
	for _, b := range []snapshot.Boot{{System: two, Trial: true}, {System: one}} {
		said, err := snapshot.Tidy(d, note, b)
		must(t, err)
		if text := strings.Join(said.Tight, "\n"); len(said.Gone) > 0 || len(at(d, snapshot.Before)) == 0 || !strings.Contains(text, "499 MiB of") || !strings.Contains(text, "`ota rollback --state --forget`") {
			t.Errorf("%+v: it says %q", b, said)
		}
	}
	for first := 1; ; first++ {
		cut := d
		cut.Files = maps.Clone(d.Files)
		done, where := cutAt(&cut, first, func() { said, err = snapshot.Tidy(cut, note, running) })
		if r, rerr := snapshot.ReadRecord(cut); rerr != nil || r.Missing == "" && len(at(cut, snapshot.Before)) != 5 {
			t.Fatalf("cut before %s: %+v, %v with %q", where, r, rerr, at(cut, snapshot.Before))
		}
		if done {
			d = cut
			break
		}
		_, err := snapshot.Tidy(cut, note, running)
		must(t, err)
		wants(t, cut, snapshot.Before, map[string]string{})
	}
	must(t, err)
	if text := strings.Join(said.Gone, "\n"); !strings.Contains(text, "before version 2 was tried goes: 499 MiB of the root partition's 10000 MiB are free, fewer than 500 MiB") || !strings.Contains(strings.Join(said.Tight, "\n"), "going back has set aside takes room") {
		t.Errorf("it says %q", said)
	}
	wants(t, d, snapshot.Before, map[string]string{})
	wants(t, d, got.Where, after)
	if stored, err := snapshot.ReadRecord(d); err != nil || !strings.HasPrefix(stored.Missing, "it was removed: 499 MiB") {
		t.Errorf("record %+v, %v", stored, err)
	}
}

// On a disk so full that no record can be written the snapshot goes all the same: that is
// what it goes for.
func TestTidyFull(t *testing.T) {
	d, _ := used(t)
	d.Space.Free = 0
	d.Fails = failing("keep ", syscall.ENOSPC)
	said, err := snapshot.Tidy(d, note, running)
	must(t, err)
	if r, err := snapshot.ReadRecord(d); err != nil || r != nil || len(said.Gone) != 1 {
		t.Errorf("record %+v, %v; it says %q", r, err, said)
	}
	wants(t, d, snapshot.Before, map[string]string{})
}

// Subvolumes of others that lie in a directory go aside with it, are not in what comes
// back, and are not removed.
func TestNested(t *testing.T) {
	d := disk()
	d.Files["bind/var/lib/docker/s"] = []byte(snapshottest.Writable)
	d.Files["bind/var/lib/docker/s/layer"] = []byte("theirs")
	for i := range 2 {
		r, _, err := snapshot.Take(d, record, entries, always)
		if must(t, err); r.Missing != "" {
			t.Fatalf("record %+v", r)
		}
		ask(t, d, snapshot.Note{System: one, Of: r.Taken})
		got, err := snapshot.Restore(d, note, firstSystem, later)
		must(t, err)
		if s, there := d.Files["bind/var/lib/docker/s"]; !there || len(s) > 0 || d.Files["bind/var/lib/docker/s/layer"] != nil {
			t.Errorf("back is %q", at(d, "bind"))
		}
		if i == 0 && string(d.Files[got.Where+"/var/lib/docker/s/layer"]) != "theirs" {
			t.Errorf("set aside is %q", at(d, got.Where))
		}
		d.Files["bind/var/lib/docker/s"] = []byte(snapshottest.Writable)
		d.Files["bind/var/lib/docker/s/layer"] = []byte("theirs")
	}
	_, _, err := snapshot.Take(d, record, entries, always)
	must(t, err)
	left := at(d, snapshot.Left)
	if left["2026-12-02-var/lib/docker/s/layer"] != "theirs" || left["2026-12-02-var-2/lib/docker/s/layer"] != "theirs" {
		t.Errorf("left is %q", left)
	}
}
