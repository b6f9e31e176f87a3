package snapshot_test

import (
	"errors"
	"maps"
	"strings"
	"syscall"
	"testing"
	"time"

	"halogenos.internal/initagent/snapshot"
	"halogenos.internal/initagent/snapshot/snapshottest"
)

// A disk that takes no more is not a reason to start the system that went back on what it was
// to be spared: it is asked for still, and done once there is room.
func TestRestoreWithoutRoom(t *testing.T) {
	for _, step := range []string{"snapshot snapshots/before/root", "keep snapshots/plan.json", "rename bind/var"} {
		for _, errno := range []error{syscall.ENOSPC, syscall.EDQUOT, syscall.EIO} {
			d, r := used(t)
			ask(t, d, snapshot.Note{System: one, Of: r.Taken, From: 2})
			was := at(d, "bind")
			d.Fails = failing(step, errno)
			for range 2 {
				if got, err := snapshot.Restore(d, note, firstSystem, later); !errors.Is(err, errno) || !strings.Contains(err.Error(), "nothing has changed yet") {
					t.Errorf("%s: %+v, %v", step, got, err)
				}
				wants(t, d, "bind", was)
			}
			if d.Files[note] == nil || d.Files["snapshots/plan.json"] != nil {
				t.Errorf("%s: there is %q", step, at(d, "snapshots"))
			}
			d.Fails = nil
			if got, err := snapshot.Restore(d, note, firstSystem, later); err != nil || got.Declined != "" {
				t.Errorf("%s, then with room: %+v, %v", step, got, err)
			}
			wants(t, d, "bind", before)
		}
	}
}

// What is made when somebody asks needs no room when it is done.
func TestPrepare(t *testing.T) {
	d, r := used(t)
	n := snapshot.Note{System: one, Of: r.Taken, From: 2}
	d.Fails = failing("snapshot snapshots/before/root", syscall.ENOSPC)
	if err := snapshot.Prepare(d, n); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("without room: %v", err)
	}
	d.Fails = nil
	must(t, snapshot.Prepare(d, n))
	ask(t, d, n)
	_, err := snapshot.Tidy(d, note, running) // by a boot in between
	must(t, err)
	d.Fails = failing("snapshot ", syscall.ENOSPC)
	_, err = snapshot.Restore(d, note, firstSystem, later)
	must(t, err)
	wants(t, d, "bind", before)
	// What nobody asks for any more goes.
	d, r = used(t)
	n.Of = r.Taken
	must(t, snapshot.Prepare(d, n))
	_, err = snapshot.Tidy(d, note, running)
	must(t, err)
	wants(t, d, "snapshots/next", map[string]string{})
	n.Of = later
	if err := snapshot.Prepare(d, n); err == nil {
		t.Error("it is prepared for another snapshot")
	}
}

// A plan whose end could not be written down takes nothing that is made for another request,
// which may be given up: the directories stay as the first has left them.
func TestPrepareBesideAPlan(t *testing.T) {
	d, r := used(t)
	n := snapshot.Note{System: one, Of: r.Taken, From: 2}
	ask(t, d, n)
	done := false
	d.Fails = func(op string) error {
		if done && strings.HasPrefix(op, "keep ") {
			return syscall.ENOSPC
		}
		done = done || strings.HasPrefix(op, "rename snapshots/next/")
		return nil
	}
	got, err := snapshot.Restore(d, note, firstSystem, later)
	if must(t, err); !strings.Contains(got.Warning, "no space") {
		t.Fatalf("%+v", got)
	}
	d.Fails = nil
	d.Files["bind/var/lib/db"] = []byte("since")
	if err := snapshot.Prepare(d, n); err == nil {
		t.Error("it is prepared beside a plan that is there")
	}
	_, err = snapshot.Restore(d, note, firstSystem, later)
	must(t, err)
	if text := string(d.Files["bind/var/lib/db"]); text != "since" || snapshot.Asked(d, note) {
		t.Errorf("the machine has %q", text)
	}
	must(t, snapshot.Prepare(d, snapshot.Note{System: one, Of: r.Taken, From: 2}))
}

// Neither chattr +i nor a read-only subvolume keeps a directory in its place, and each has
// what held it afterwards. Cut anywhere, it comes to the same, but for that.
func TestRestoreHeld(t *testing.T) {
	for _, c := range []struct{ then, now string }{
		{snapshottest.Writable, snapshottest.Immutable}, {snapshottest.Immutable, snapshottest.Writable}, {snapshottest.Immutable, snapshottest.Immutable},
		{snapshottest.Writable, snapshottest.ReadOnly}, {snapshottest.ReadOnly, snapshottest.Writable},
	} {
		for n := 1; ; n++ {
			d := disk()
			d.Files["bind/root"] = []byte(c.then)
			r, _, err := snapshot.Take(d, record, entries, always)
			must(t, err)
			d.Files["bind/root"], d.Files["bind/root/x"] = []byte(c.now), []byte("two")
			ask(t, d, snapshot.Note{System: one, Of: r.Taken, From: 2})
			restore := func() {
				got, err := snapshot.Restore(d, note, firstSystem, later)
				if must(t, err); got.Declined != "" {
					t.Fatalf("%q: %+v", c, got)
				}
			}
			done, where := cutAt(&d, n, restore)
			if !done && snapshot.Asked(d, note) {
				restore()
			}
			if text, aside := string(d.Files["bind/root/x"]), string(d.Files["snapshots/aside-a/root/x"]); text != "one" || aside != "two" {
				t.Fatalf("%q, cut before %s: /root has %q, and set aside is %q", c, where, text, aside)
			}
			if !done {
				continue
			}
			then := c.then
			if then == snapshottest.ReadOnly {
				then = snapshottest.Writable // as is every copy
			}
			if got, aside := string(d.Files["bind/root"]), string(d.Files["snapshots/aside-a/root"]); got != then || aside != c.now {
				t.Errorf("%q: /root is %q, and what was set aside %q", c, got, aside)
			}
			// None of it stays in the way.
			r, _, err = snapshot.Take(d, record, entries, always)
			if must(t, err); r.Missing != "" {
				t.Errorf("%q: %s", c, r.Missing)
			}
			r, _, err = snapshot.Take(d, record, entries, always)
			if must(t, err); r.Missing != "" {
				t.Errorf("%q: %s", c, r.Missing)
			}
			must(t, snapshot.Forget(d, note))
			break
		}
	}
}

// A person at the console has taken the plan away: what was set aside by then is the only
// copy, and stays.
func TestTidyKeepsAside(t *testing.T) {
	d, r := used(t)
	ask(t, d, snapshot.Note{System: one, Of: r.Taken, From: 2})
	d.Fails = failing("rename bind/root", syscall.ENOSPC)
	if _, err := snapshot.Restore(d, note, firstSystem, later); err == nil || !strings.Contains(err.Error(), "the next start goes on with it") {
		t.Errorf("half-way: %v", err)
	}
	d.Fails = nil
	delete(d.Files, "snapshots/plan.json")
	delete(d.Files, note)
	said, err := snapshot.Tidy(d, note, running)
	must(t, err)
	if got := at(d, snapshot.Left); got["var/lib/db"] != "two" || !strings.Contains(strings.Join(said.Gone, "\n"), "/run/state/snapshots/left/var") {
		t.Errorf("left is %q, and it says %q", got, said)
	}
}

// Whatever somebody does to the three at the console, nothing is lost and no boot stops.
func TestExchangeByHand(t *testing.T) {
	for name, change := range map[string]func(d snapshottest.Disk){
		"the copy is gone":          func(d snapshottest.Disk) { rename(d, "snapshots/next/root", "elsewhere") },
		"its place is filled again": func(d snapshottest.Disk) { d.Files["bind/root"], d.Files["bind/root/x"] = []byte{}, []byte("theirs") },
	} {
		d, r := used(t)
		d.Files["bind/root/x"] = []byte("two")
		ask(t, d, snapshot.Note{System: one, Of: r.Taken, From: 2})
		steps := 0
		d.Fails = func(what string) error { // between the two renames of /root
			if steps > 0 || what == "rename snapshots/next/root to bind/root" {
				steps++
				return syscall.ENOSPC
			}
			return nil
		}
		if _, err := snapshot.Restore(d, note, firstSystem, later); err == nil {
			t.Errorf("%s: no error", name)
		}
		d.Fails = nil
		change(d)
		got, err := snapshot.Restore(d, note, firstSystem, later)
		must(t, err)
		switch {
		case name == "the copy is gone":
			if text := string(d.Files["bind/root/x"]); text != "two" || got.Declined != "" {
				t.Errorf("%s: /root has %q; %+v", name, text, got)
			}
		case string(d.Files["bind/root/x"]) != "one" || string(d.Files[got.Where+"/root/x"]) != "two" || string(d.Files["snapshots/left/root/x"]) != "theirs":
			t.Errorf("%s: there is %q", name, d.Files)
		}
	}
}

func rename(d snapshottest.Disk, from, to string) {
	for name, content := range maps.Clone(d.Files) {
		if name == from || strings.HasPrefix(name, from+"/") {
			d.Files[to+strings.TrimPrefix(name, from)] = content
			delete(d.Files, name)
		}
	}
}

// A plan that could not be flushed is not left: it would say later that it had put
// something back.
func TestPlanNotKept(t *testing.T) {
	d, r := used(t)
	ask(t, d, snapshot.Note{System: two, Of: r.Taken})
	d.Files["snapshots/plan.json"] = nil
	delete(d.Files, "snapshots/plan.json")
	s := unflushed{d}
	n := snapshot.Note{System: one, Of: r.Taken, From: 2}
	ask(t, d, n)
	if got, err := snapshot.Restore(s, note, firstSystem, later); err != nil || got.Declined == "" {
		t.Errorf("%+v, %v", got, err)
	}
	if d.Files["snapshots/plan.json"] != nil || snapshot.Asked(d, note) {
		t.Errorf("there is %q", at(d, "snapshots"))
	}
}

// unflushed writes a plan whose directory cannot be flushed.
type unflushed struct{ snapshottest.Disk }

func (u unflushed) Keep(name string, content []byte) error {
	err := u.Disk.Keep(name, content)
	if strings.HasSuffix(name, "plan.json") {
		return syscall.EINTR
	}
	return err
}

// Something else in the place of the directory stops no boot, and nothing is written
// through it.
func TestDirectoryIsNone(t *testing.T) {
	d := disk()
	d.Files["snapshots"] = []byte("-> /mnt/more")
	was := maps.Clone(d.Files)
	if snapshot.Asked(d, note) {
		t.Error("it is asked for")
	}
	if _, _, err := snapshot.Take(d, record, entries, always); err == nil || !strings.Contains(err.Error(), "snapshots is to be a directory of the root partition") {
		t.Errorf("Take: %v", err)
	}
	if _, err := snapshot.Tidy(d, note, running); err == nil {
		t.Error("Tidy: no error")
	}
	if err := snapshot.Forget(d, note); err == nil {
		t.Error("Forget: no error")
	}
	ask(t, d, snapshot.Note{System: one, Of: taken})
	if got, err := snapshot.Restore(d, note, firstSystem, later); err != nil || got.Declined == "" {
		t.Errorf("Restore: %+v, %v", got, err)
	}
	if !maps.EqualFunc(d.Files, was, func(a, b []byte) bool { return string(a) == string(b) }) {
		t.Errorf("there is %q", d.Files)
	}
}

// The first staging of a machine says why it has no snapshot: the directory for the record
// is made before.
func TestTakeNotFirst(t *testing.T) {
	d := disk()
	d.Space.Free = 900 * mib
	_, _, err := snapshot.Take(d, record, entries, always)
	must(t, err)
	if r, err := snapshot.ReadRecord(d); err != nil || r == nil || !strings.HasPrefix(r.Missing, "900 MiB") {
		t.Errorf("record %+v, %v", r, err)
	}
}

// Room that the kernel has not freed yet counts.
func TestTakeAwaitsRoom(t *testing.T) {
	d, _ := used(t)
	d.Space.Free, d.Freeing = 800*mib, 3000*mib
	if r, _, err := snapshot.Take(d, record, entries, always); err != nil || r.Missing != "" {
		t.Errorf("record %+v, %v", r, err)
	}
}

// What does not go ends nothing: the rest goes, and the record says why there is none.
func TestTakeStuck(t *testing.T) {
	d, _ := used(t)
	d.Fails = failing("remove subvolume snapshots/before/root", syscall.EIO)
	r, _, err := snapshot.Take(d, record, entries, never)
	must(t, err)
	if stored, err := snapshot.ReadRecord(d); err != nil || stored == nil || !strings.Contains(stored.Missing, "input/output error") || r.Missing != stored.Missing {
		t.Errorf("record %+v, %v", stored, err)
	}
	if got := at(d, snapshot.Before); got["var"] != "" || got["usr-local"] != "" {
		t.Errorf("there is %q", got)
	}
}

// All that is kept goes, in an order that has no boot put anything back.
func TestForget(t *testing.T) {
	for _, undo := range []bool{false, true} {
		for n := 1; ; n++ {
			d, r := used(t)
			d.Files["bind/var/lib/docker/s"] = []byte(snapshottest.Writable)
			d.Files["bind/var/lib/docker/s/layer"] = []byte("theirs")
			ask(t, d, snapshot.Note{System: one, Of: r.Taken, From: 2})
			if undo {
				_, err := snapshot.Restore(d, note, firstSystem, later)
				must(t, err)
				d.Files["bind/var"] = []byte(snapshottest.Immutable)
				_, _, err = snapshot.Take(d, record, entries, always)
				must(t, err)
				ask(t, d, snapshot.Note{System: one, Of: later.Truncate(time.Second), Undo: true})
			} else {
				must(t, snapshot.Prepare(d, snapshot.Note{Of: r.Taken}))
				d.Fails = failing("rename bind/root", syscall.ENOSPC)
				_, err := snapshot.Restore(d, note, firstSystem, later) // which leaves a plan
				if err == nil {
					t.Fatal("no plan is left")
				}
				d.Fails = nil
			}
			was := at(d, "bind")
			done, where := cutAt(&d, n, func() { must(t, snapshot.Forget(d, note)) })
			if !done && where != "remove "+note && where != "remove snapshots/plan.json" && snapshot.Asked(d, note) {
				t.Fatalf("cut before %s: it is asked for still", where)
			}
			if !done {
				must(t, snapshot.Forget(d, note))
			}
			wants(t, d, "bind", was)
			for name, content := range at(d, snapshot.Directory) {
				if !strings.HasPrefix(content, "\x00directory") {
					t.Fatalf("cut before %s: %s stays", where, name)
				}
			}
			if done {
				break
			}
		}
	}
	d, _ := used(t)
	d.Fails = failing("remove subvolume snapshots/before/root", syscall.EIO)
	if err := snapshot.Forget(d, note); !errors.Is(err, syscall.EIO) || !strings.Contains(err.Error(), "something is left of it: root") {
		t.Errorf("what stays: %v", err)
	}
}

// afterFailed is what the system of before version 2 has of the snapshot from then.
func afterFailed(d snapshottest.Disk, where, name string) string {
	return string(d.Files[where+"/"+name+"/lib/db"])
}

// The snapshot from before a release that has failed is the only one of what its trial has
// changed: the next staging moves it out of its way. Cut anywhere, it is somewhere. FAULTS 105
func TestTakeAfterFailed(t *testing.T) {
	third := snapshot.Record{Taken: later, System: firstSystem, For: 3}
	for n := 1; ; n++ {
		d, _ := used(t)
		var said []string
		take := func() {
			r, more, err := snapshot.Take(d, third, entries, never)
			if said = append(said, more...); err != nil || r.Missing != "" {
				t.Fatalf("record %+v, %v", r, err)
			}
		}
		done, where := cutAt(&d, n, take)
		if !done {
			_, err := snapshot.Tidy(d, note, snapshot.Boot{System: one})
			must(t, err)
			if afterFailed(d, snapshot.Left, "2026-11-29-before-2-var") != "one" && afterFailed(d, snapshot.Before, "var") != "one" {
				t.Fatalf("cut before %s: it is lost", where)
			}
			take()
		}
		left := at(d, snapshot.Left)
		if left["2026-11-29-before-2-var/lib/db"] != "one" || left["2026-11-29-before-2-root/x"] != "one" || done && left["2026-11-29-before-2-var"] != snapshottest.ReadOnly || afterFailed(d, snapshot.Before, "var") != "two" {
			t.Fatalf("cut before %s: left is %q, and the snapshot %q", where, left, at(d, snapshot.Before))
		}
		if done {
			if text := strings.Join(said, "\n"); !strings.Contains(text, "snapshots/left/2026-11-29-before-2-var is the snapshot from before version 2 was tried, which has not lasted") {
				t.Errorf("it says %q", text)
			}
			return
		}
	}
}

// One that was staged once more is not another, unless it was started in between; and one
// that has lasted takes the snapshot from before it with it.
func TestTakeAgain(t *testing.T) {
	for how, c := range map[string]struct {
		system snapshot.System
		tried  func(snapshot.Record) bool
		left   int
	}{"cut": {firstSystem, never, 0}, "retried": {firstSystem, always, 5}, "lasts": {snapshot.System{Version: 2, Root: two}, always, 0}} {
		d, _ := used(t)
		_, _, err := snapshot.Take(d, snapshot.Record{Taken: later, System: c.system, For: 2}, entries, c.tried)
		must(t, err)
		if got := at(d, snapshot.Left); len(got) != c.left {
			t.Errorf("%s: left is %q", how, got)
		}
	}
}

// What cannot be moved stays, with its record; and what no record tells of is moved.
func TestTakeNotMoved(t *testing.T) {
	d, r := used(t)
	d.Fails = failing("rename snapshots/before/var", syscall.ENOSPC)
	third := snapshot.Record{Taken: later, System: firstSystem, For: 3}
	if _, _, err := snapshot.Take(d, third, entries, never); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("it says %v", err)
	}
	if stored, err := snapshot.ReadRecord(d); err != nil || !stored.Taken.Equal(r.Taken) || afterFailed(d, snapshot.Before, "var") != "one" {
		t.Errorf("record %+v, %v with %q", stored, err, at(d, snapshot.Before))
	}
	d, _ = used(t)
	d.Files["snapshots/record.json"] = []byte("{}")
	if r, _, err := snapshot.Take(d, third, entries, never); err != nil || r.Missing != "" || afterFailed(d, snapshot.Left, "var") != "one" {
		t.Errorf("record %+v, %v; left is %q", r, err, at(d, snapshot.Left))
	}
}

// Where somebody has removed all that there was of a directory, it is said.
func TestExchangeOfNothing(t *testing.T) {
	d, r := used(t)
	ask(t, d, snapshot.Note{System: one, Of: r.Taken, From: 2})
	d.Fails = failing("rename snapshots/next/root", syscall.EIO)
	if _, err := snapshot.Restore(d, note, firstSystem, later); err == nil {
		t.Fatal("no plan is left")
	}
	d.Fails = nil
	for _, where := range []string{"bind", "snapshots/next", "snapshots/aside-a"} {
		rename(d, where+"/root", "elsewhere/"+where)
	}
	got, err := snapshot.Restore(d, note, firstSystem, later)
	if must(t, err); !strings.Contains(got.Warning, "nothing was to be found of /root") || snapshot.Asked(d, note) {
		t.Errorf("%+v", got)
	}
}
