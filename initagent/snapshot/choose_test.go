package snapshot_test

import (
	"strings"
	"testing"

	"halogenos.internal/initagent/snapshot"
)

func TestChoose(t *testing.T) {
	v1, v2, v3 := snapshot.System{Version: 1, Root: one}, snapshot.System{Version: 2, Root: two}, snapshot.System{Version: 3, Root: strings.Repeat("3", 64)}
	of := &snapshot.Record{Taken: taken, System: v1, For: 2, Directories: []string{"/var"}}
	missing := func(why string) *snapshot.Record {
		return &snapshot.Record{Taken: taken, System: v1, For: 2, Missing: why}
	}
	aside := &snapshot.Aside{Time: later, Directories: []string{"/var"}, Where: "snapshots/aside-a"}
	for name, c := range map[string]struct {
		in   snapshot.Case
		undo bool
		err  string
	}{
		"version 2 is given up":             {in: snapshot.Case{FileSystem: "btrfs", Record: of, Runs: v2, Next: v1}},
		"version 1 is back by itself":       {in: snapshot.Case{FileSystem: "btrfs", Record: of, Runs: v1, Next: v1}},
		"somebody went back before":         {in: snapshot.Case{FileSystem: "btrfs", Record: of, Aside: aside, Runs: v1, Next: v1}, undo: true},
		"and the snapshot has gone":         {in: snapshot.Case{FileSystem: "btrfs", Record: missing("it was removed"), Aside: aside, Runs: v1, Next: v1}, undo: true},
		"and version 2 was started by hand": {in: snapshot.Case{FileSystem: "btrfs", Record: of, Aside: aside, Runs: v2, Next: v1}, err: "remove /run/state/snapshots/aside.json"},
		"another file system":               {in: snapshot.Case{FileSystem: "ext4", Record: of, Runs: v2, Next: v1}, err: "the root partition is ext4, which has no snapshots: `ota rollback` goes back"},
		"no update yet":                     {in: snapshot.Case{FileSystem: "btrfs", Runs: v2, Next: v1}, err: "one is taken when a release is staged"},
		"plain directories":                 {in: snapshot.Case{FileSystem: "btrfs", Record: missing("the directories are not subvolumes: a release that did not make them so has set this machine up"), Runs: v2, Next: v1}, err: "until the machine is set up again"},
		"no room":                           {in: snapshot.Case{FileSystem: "btrfs", Record: missing("it was removed: 3 MiB"), Runs: v2, Next: v1}, err: "no snapshot from before version 2 was tried: it was removed: 3 MiB"},
		"of a system that is gone":          {in: snapshot.Case{FileSystem: "btrfs", Record: of, Runs: v3, Next: v2}, err: "the snapshot is of version 1, and version 2 would run on it"},
		"of another release of that image":  {in: snapshot.Case{FileSystem: "btrfs", Record: of, Runs: v2, Next: snapshot.System{Version: 2, Root: one}}, err: "the snapshot is of version 1, and version 2 would run on it"},
	} {
		got, err := snapshot.Choose(c.in)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %+v, %v", name, got, err)
			}
			continue
		}
		want, from := of.Taken, snapshot.Before
		if c.undo {
			want, from = aside.Time, aside.Where
		}
		if err != nil || got.Note.Undo != c.undo || !got.Note.Of.Equal(want) || got.Note.System != one || got.Note.From != c.in.Runs.Version || got.From != from {
			t.Errorf("%s: %+v, %v", name, got, err)
			continue
		}
		if now, then := got.Place("/usr/local"); now != "bind/usr-local" || then != from+"/usr-local" {
			t.Errorf("%s: %s, %s", name, now, then)
		}
	}
}
