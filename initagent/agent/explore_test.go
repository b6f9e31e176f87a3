package agent_test

import (
	"maps"
	"slices"
	"testing"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/policy"
	"halogenos.internal/initagent/machinetest"
)

// Every sequence of a fetch, a trial, a bless, a rollback and a floor that rises,
// with the power cut before and after every write: the conditions that a machine
// can get into are found one after the other, and each is started. Whatever it is,
// a verified system comes up and unlocks, by itself; tries never rise but when a
// release is staged and when an interrupted trial gets its second round; the floor
// never falls; no system that was blessed is lost; and it ends. FAULTS 32, 42, 73, 74
func TestEverySequence(t *testing.T) {
	for name, epochs := range map[string][]uint64{"one epoch": {5, 5}, "the floor rises twice": {5, 6, 7}} {
		t.Run(name, func(t *testing.T) {
			x := machinetest.Explore(machinetest.Knowing(t, 2, epochs...))
			for _, p := range x.Problems[:min(3, len(x.Problems))] {
				t.Error(p)
			}
			last := contract.Version(len(epochs))
			for what, came := range map[string]func(n *machinetest.Node) bool{
				"the last release, blessed":  func(n *machinetest.Node) bool { return n.Runs == last && slices.Contains(n.Is.Blessed(), last) },
				"a trial without tries":      func(n *machinetest.Node) bool { left, there := n.Is.Tries(last); return there && left == 0 },
				"a second round":             func(n *machinetest.Node) bool { return n.Is.Count(journal.Retry, 2) == 1 },
				"a version that failed":      func(n *machinetest.Node) bool { return n.Is.Count(journal.Failed, 2) == 1 },
				"a release that is given up": func(n *machinetest.Node) bool { return n.Is.Count(journal.Refused, 2) == 1 },
				"a rollback":                 func(n *machinetest.Node) bool { return n.Is.Count(journal.Rollback, 2) > 0 },
				"the floor of the last":      func(n *machinetest.Node) bool { return n.Is.Record.Floor == epochs[last-1] },
			} {
				if !slices.ContainsFunc(slices.Collect(maps.Values(x.Nodes)), came) {
					t.Errorf("it never came to %s", what)
				}
			}
			t.Logf("%d states after a cut, %d different conditions, each of them started", x.States, len(x.Nodes))
		})
	}
}

// The same with a release that brings another boot manager: the old one is replaced, and
// revoked, whatever is done and cut in between. FAULTS 42, 94
func TestEverySequenceOfManagers(t *testing.T) {
	machines := machinetest.Knowing(t, 2, 5, 5)
	machines[0].Releases[2].Manager = machinetest.OtherManager
	for _, m := range machines {
		m.NextManager = machinetest.OtherManager
	}
	x := machinetest.Explore(machines)
	for _, p := range x.Problems[:min(3, len(x.Problems))] {
		t.Error(p)
	}
	ended, revoked := 0, 0
	for _, n := range x.Nodes {
		if n.Runs != 2 || n.After != n.Is.Key || !slices.Contains(n.Is.Blessed(), 2) {
			continue
		}
		ended++
		list := machines[0].ListOf(n.W)
		switch inDBX := len(machinetest.HashesIn(t, n.W.Vars["dbx"].Data)); {
		case inDBX == 1 && !n.Is.Record.Passing():
			revoked++
		case inDBX != 0 || n.Is.Record.Passing() || len(list.ToRevoke()) > 0:
			t.Errorf("it ends with %d revocations, and %d to come:\n%s", inDBX, len(list.ToRevoke()), n.How)
		}
	}
	if revoked == 0 {
		t.Error("it never came to the end of an exchange")
	}
	t.Logf("%d states after a cut, %d different conditions; in %d nothing more happens, in %d of them the old boot manager is revoked, in the others the attempts were cut", x.States, len(x.Nodes), ended, revoked)
}

// What must not happen is seen when it does.
func TestSequencesNeedFlushes(t *testing.T) {
	machines := machinetest.Knowing(t, 2, 5, 6)
	for _, m := range machines {
		m.LyingDisk = true
	}
	if x := machinetest.Explore(machines); len(x.Problems) == 0 {
		t.Errorf("all of %d states are well on a disk that does not flush", x.States)
	}
}

func TestAllowed(t *testing.T) {
	parse := func(floor uint64, epochs map[uint64]uint64, files ...string) *machinetest.Condition {
		c := &machinetest.Condition{Record: &policy.Record{Floor: floor}}
		for v, epoch := range epochs {
			c.Record.Branches = append(c.Record.Branches, policy.Branch{Version: v, Epoch: epoch})
		}
		for _, file := range files {
			n, err := bls.Parse(file)
			if err != nil {
				t.Fatal(err)
			}
			c.Systems = append(c.Systems, n)
		}
		return c
	}
	both, second := map[uint64]uint64{1: 5, 2: 6}, map[uint64]uint64{2: 6}
	retry := journal.Entry{Kind: journal.Retry, Version: 2}
	retried, again := parse(5, both, "os_1.efi", "os_2+3.efi"), parse(5, both, "os_1.efi", "os_2+3.efi")
	retried.History, again.History = []journal.Entry{retry}, []journal.Entry{retry, retry}
	used := parse(5, both, "os_1.efi", "os_2+0-3.efi")
	blessed := parse(5, both, "os_1.efi", "os_2.efi")
	for name, c := range map[string]struct {
		before, after *machinetest.Condition
		asked, good   bool
	}{
		"a try":                   {parse(5, both, "os_1.efi", "os_2+3.efi"), parse(5, both, "os_1.efi", "os_2+2-1.efi"), false, true},
		"a bless":                 {parse(5, both, "os_1.efi", "os_2+2-1.efi"), blessed, true, true},
		"more tries":              {parse(5, both, "os_1.efi", "os_2+1-2.efi"), parse(5, both, "os_1.efi", "os_2+2-2.efi"), false, false},
		"tries for a blessed one": {blessed, parse(5, both, "os_1.efi", "os_2+3.efi"), false, false},
		"staged":                  {parse(5, both, "os_1.efi"), parse(5, both, "os_1.efi", "os_2+3.efi"), false, true},
		"tries again":             {used, parse(5, both, "os_1.efi", "os_2+3.efi"), false, false},
		"a second round":          {used, retried, false, true},
		"a third round":           {used, again, false, false},
		"the floor falls":         {parse(6, both, "os_2.efi"), parse(5, both, "os_2.efi"), false, false},
		"a fallback is given up":  {blessed, parse(5, both, "os_1+0.efi", "os_2.efi"), false, false},
		"and by a person":         {blessed, parse(5, both, "os_1.efi", "os_2+0.efi"), true, true},
		"a fallback gets no key":  {blessed, parse(5, second, "os_1.efi", "os_2.efi"), false, false},
		"since the floor rose":    {blessed, parse(6, second, "os_1.efi", "os_2.efi"), false, true},
		"and is marked then":      {parse(6, second, "os_1.efi", "os_2.efi"), parse(6, second, "os_1+0.efi", "os_2.efi"), false, true},
		"a fallback disappears":   {blessed, parse(5, both, "os_2.efi"), false, false},
	} {
		if err := machinetest.Allowed(c.before, c.after, c.asked); (err == nil) != c.good {
			t.Errorf("%s: %v", name, err)
		}
	}
}
