package agent

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/bootflow"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/nextboot"
	"halogenos.internal/boot/policy"
	"halogenos.internal/initagent/bootjournal"
	"halogenos.internal/initagent/esp"
	"halogenos.internal/initagent/keephome"
	"halogenos.internal/initagent/staging"
)

// A node is a machine without power.
type node struct {
	w     *world
	is    *condition
	how   string // it came about
	after string // the condition that a start without a cut leaves; "" where none was made
	ends  string // how that start ends
	runs  contract.Version
}

// An explorer visits every condition that a machine can get into.
type explorer struct {
	mu       sync.Mutex
	nodes    map[string]*node
	next     []*node
	states   int             // that a cut has left
	byHands  map[string]bool // conditions in which each blessed system was started by hand
	problems []string
	more     []act // of the running system, beside those that each explorer has
}

// An act is what the running system may be asked to do.
type act func(x *explorer, m *machine, after *node, w *world)

func (x *explorer) problem(n *node, format string, args ...any) {
	x.problems = append(x.problems, n.how+fmt.Sprintf(format, args...))
}

// reach notes a state that something has led to, and checks what must never
// happen on the way.
func (x *explorer) reach(m *machine, from *node, w *world, how string) *node {
	n := &node{w: w, how: how + "\n"}
	if from != nil {
		n.how = from.how + n.how
	}
	var err error
	n.is, err = m.condition(w)
	x.mu.Lock()
	defer x.mu.Unlock()
	x.states++
	if err == nil && from != nil {
		err = allowed(from.is, n.is, strings.HasPrefix(how, "ota"))
	}
	if err != nil {
		x.problem(n, "%v\nit became: %s", err, n.is)
		return n
	}
	if have := x.nodes[n.is.key]; have != nil {
		return have
	}
	x.nodes[n.is.key] = n
	x.next = append(x.next, n)
	return n
}

// allowed says what may not become of a machine, however it was cut. What the
// running system does on somebody's behalf may give a system up.
func allowed(before, after *condition, asked bool) error {
	if after.record.Floor < before.record.Floor {
		return fmt.Errorf("the floor falls from %d to %d", before.record.Floor, after.record.Floor)
	}
	for _, e := range after.history {
		tooOften := e.Kind == journal.Refused && strings.Contains(e.Reason, "went down 3 times")
		if e.Kind == journal.Refused && !tooOften || e.Kind == journal.Recovery {
			return fmt.Errorf("%s: version %s: %s", e.Kind, e.Version, e.Reason)
		}
	}
	for _, n := range after.systems {
		was, there := before.tries(n.Version)
		rounds := after.count(journal.Retry, n.Version)
		again := rounds > before.count(journal.Retry, n.Version) || rounds == 1 && was == 0
		fresh := n.Left == staging.Tries && (there && again || !there && !slices.Contains(before.blessed(), n.Version))
		if n.Counted && n.Left > was && !fresh || rounds > 1 {
			return fmt.Errorf("%s, in its round %d, had %d tries", n, rounds+1, was)
		}
	}
	for _, v := range before.blessed() {
		// The TPM gives a system up first, and only for the floor.
		b, had := before.branch(v)
		_, has := after.branch(v)
		there := slices.Contains(after.blessed(), v)
		if had && !has && there && b.Epoch >= after.record.Floor || !there && has && !asked {
			return fmt.Errorf("version %s, which is blessed, is lost", v)
		}
	}
	return nil
}

// start boots a machine, notes every state in which the power can be cut, and
// then what the running system may be asked to do.
func (x *explorer) start(m *machine, n *node) {
	m.powerOn(n.w)
	m.said.Reset()
	m.printed.Reset()
	m.byHand, m.ops = 0, nil
	asks := m.answers()
	m.snapshot = func() {
		m.remaining(func(w *world) {
			x.reach(m, n, w, fmt.Sprintf("start, cut after %d operations (%s)", len(m.ops), last(m.ops)))
		})
	}
	end := m.boot()
	m.snapshot()
	m.snapshot = nil
	w := m.world(true, nil)
	after := x.reach(m, n, w, "start that ends in "+end)
	x.mu.Lock()
	if after.is != nil {
		n.after, n.ends, n.runs = after.is.key, end, m.agent.Contract.Version
	}
	comesUp := end == "reboot" || end == "system" && m.openVolume != nil && m.openVerity
	condemns := strings.Contains(m.said.String(), bootflow.Condemn.String()+":") // and all of them are good
	if !comesUp || condemns || m.printed.Len() > 0 && !asks {
		x.problem(n, "a start ends in %s and asks %q:\n%s", end, m.printed.String(), m.said.String())
	}
	stop := len(x.problems) > 0
	x.mu.Unlock()
	if end != "system" || stop {
		return
	}
	for _, act := range append([]act{(*explorer).bless, (*explorer).rollback, (*explorer).fetch}, x.more...) {
		act(x, m, after, w)
	}
}

// answers has somebody in front of the machine where the running system has asked for
// something, and reports whether it has.
func (m *machine) answers() bool {
	_, asks := m.vars[nextboot.Variable]
	for _, files := range m.volumes {
		asks = asks || files[keephome.Requested] != nil
	}
	if m.typed = nil; asks {
		m.typed = []string{"test"}
	}
	return asks
}

func last(ops []string) string {
	if len(ops) == 0 {
		return "none"
	}
	return ops[len(ops)-1]
}

// name is that of the running system.
func (m *machine) runningName(c *condition) (bls.Name, bool) {
	for _, n := range c.systems {
		if n.Version == m.agent.Contract.Version {
			return n, true
		}
	}
	return bls.Name{}, false
}

// told has the running system put an entry into the journal.
func (m *machine) told(kind journal.Kind) {
	m.op("journal " + string(kind))
	files := m.rootFiles()
	text, err := journal.Append(files[bootjournal.File], journal.Entry{Kind: kind, Version: m.agent.Contract.Version})
	m.must(err)
	files[bootjournal.File] = text
}

// bless and rollback are the running system's: one rename, one entry.
func (x *explorer) bless(m *machine, from *node, w *world) {
	if n, ok := m.runningName(from.is); ok && n.Counted {
		x.rename(m, from, w, "ota bless", func() error { return esp.Bless(espDir{m.esp}, n) }, journal.Blessed)
	}
}

func (x *explorer) rollback(m *machine, from *node, w *world) {
	n, ok := m.runningName(from.is)
	other := slices.ContainsFunc(from.is.systems, func(o bls.Name) bool { return o.Version != n.Version && !o.Bad() })
	if ok && other && !n.Bad() {
		x.rename(m, from, w, "ota rollback", func() error { return esp.Condemn(espDir{m.esp}, n) }, journal.Rollback)
	}
}

func (x *explorer) rename(m *machine, from *node, w *world, how string, rename func() error, kind journal.Kind) {
	m.powerOn(w)
	m.must(rename())
	x.reach(m, from, m.world(true, nil), how+", cut before the journal is written")
	m.told(kind)
	x.reach(m, from, m.world(true, nil), how)
}

// fetch brings the next version, once: from a blessed system, into a slot whose own
// system goes first.
func (x *explorer) fetch(m *machine, from *node, w *world) {
	n, ok := m.runningName(from.is)
	v := m.agent.Contract.Version + 1
	_, failed := journal.Failures(from.is.history)[v]
	there := slices.ContainsFunc(from.is.systems, func(o bls.Name) bool { return o.Version >= v })
	if !ok || n.Counted || m.releases[v] == nil || failed || there || m.rootFiles()[staging.NoteFile] != nil {
		return
	}
	m.powerOn(w)
	m.watchDelivery = func(done string) { x.reach(m, from, m.world(true, nil), "ota fetch, cut after "+done) }
	m.deliver(m.parcel(m.releases[v]))
	m.watchDelivery = nil
	x.reach(m, from, m.world(true, nil), "ota fetch")
}

// byHand starts each blessed system by hand: it must unlock, or have been replaced
// for good.
func (x *explorer) byHand(m *machine, n *node) {
	x.mu.Lock()
	key := n.is.String() + n.is.slots
	done := x.byHands[key]
	x.byHands[key] = true
	x.mu.Unlock()
	if done {
		return
	}
	for _, v := range n.is.blessed() {
		m.powerOn(n.w)
		m.said.Reset()
		m.printed.Reset()
		m.byHand = v
		asks := m.answers()
		end := m.boot()
		unlocks := end == "system" && m.openVolume != nil || end == "reboot" && strings.Contains(m.said.String(), "the trial of the other slot begins")
		if _, may := n.is.branch(v); m.printed.Len() > 0 && !asks || unlocks != may {
			x.mu.Lock()
			x.problem(n, "version %s, started by hand, ends in %s and asks %q:\n%s", v, end, m.printed.String(), m.said.String())
			x.mu.Unlock()
		}
	}
}

// ending follows starts without a cut: they come to a system that starts again and
// again without a change.
func (x *explorer) ending(n *node) {
	const most = 16
	first := n
	for range most {
		next := x.nodes[n.after]
		if next == nil {
			break
		}
		if next == n && n.ends == "system" && slices.Contains(n.is.blessed(), n.runs) {
			return
		}
		n = next
	}
	x.problem(first, "%d starts come to no end", most)
}

// explore starts a machine in every condition that it can get into, until there are
// no more, or one is wrong.
func explore(machines []*machine, more ...act) *explorer {
	x := &explorer{nodes: map[string]*node{}, byHands: map[string]bool{}, more: more}
	x.reach(machines[0], nil, machines[0].world(true, nil), "a machine in use")
	for len(x.next) > 0 && len(x.problems) == 0 {
		level := x.next
		x.next = nil
		var group sync.WaitGroup
		for i, m := range machines {
			group.Go(func() {
				for at := i; at < len(level); at += len(machines) {
					x.start(m, level[at])
					x.byHand(m, level[at])
				}
			})
		}
		group.Wait()
	}
	for _, n := range x.nodes {
		if len(x.problems) == 0 {
			x.ending(n)
		}
	}
	return x
}

// knowing are machines in use that know releases of these epochs.
func knowing(t testing.TB, workers int, epochs ...uint64) (machines []*machine) {
	releases := map[contract.Version]*edition{}
	for i, epoch := range epochs {
		releases[contract.Version(i+1)] = newRelease(t, uint64(i+1), epoch, pinned)
	}
	for range workers {
		m := newMachine(t, pinned)
		m.releases = releases
		machines = append(machines, m)
	}
	for range 3 {
		machines[0].ends("system")
	}
	return machines
}

// Every sequence of a fetch, a trial, a bless, a rollback and a floor that rises,
// with the power cut before and after every write: the conditions that a machine
// can get into are found one after the other, and each is started. Whatever it is,
// a verified system comes up and unlocks, by itself; tries never rise but when a
// release is staged and when an interrupted trial gets its second round; the floor
// never falls; no system that was blessed is lost; and it ends. FAULTS 32, 42, 73, 74
func TestEverySequence(t *testing.T) {
	for name, epochs := range map[string][]uint64{"one epoch": {5, 5}, "the floor rises twice": {5, 6, 7}} {
		t.Run(name, func(t *testing.T) {
			x := explore(knowing(t, 2, epochs...))
			for _, p := range x.problems[:min(3, len(x.problems))] {
				t.Error(p)
			}
			last := contract.Version(len(epochs))
			for what, came := range map[string]func(n *node) bool{
				"the last release, blessed":  func(n *node) bool { return n.runs == last && slices.Contains(n.is.blessed(), last) },
				"a trial without tries":      func(n *node) bool { left, there := n.is.tries(last); return there && left == 0 },
				"a second round":             func(n *node) bool { return n.is.count(journal.Retry, 2) == 1 },
				"a version that failed":      func(n *node) bool { return n.is.count(journal.Failed, 2) == 1 },
				"a release that is given up": func(n *node) bool { return n.is.count(journal.Refused, 2) == 1 },
				"a rollback":                 func(n *node) bool { return n.is.count(journal.Rollback, 2) > 0 },
				"the floor of the last":      func(n *node) bool { return n.is.record.Floor == epochs[last-1] },
			} {
				if !slices.ContainsFunc(slices.Collect(maps.Values(x.nodes)), came) {
					t.Errorf("it never came to %s", what)
				}
			}
			t.Logf("%d states after a cut, %d different conditions, each of them started", x.states, len(x.nodes))
		})
	}
}

// The same with a release that brings another boot manager: the old one is replaced, and
// revoked, whatever is done and cut in between. FAULTS 42, 94
func TestEverySequenceOfManagers(t *testing.T) {
	machines := knowing(t, 2, 5, 5)
	machines[0].releases[2].manager = otherManager
	for _, m := range machines {
		m.nextManager = otherManager
	}
	x := explore(machines)
	for _, p := range x.problems[:min(3, len(x.problems))] {
		t.Error(p)
	}
	ended, revoked := 0, 0
	for _, n := range x.nodes {
		if n.runs != 2 || n.after != n.is.key || !slices.Contains(n.is.blessed(), 2) {
			continue
		}
		ended++
		list := machines[0].listOf(n.w)
		switch inDBX := len(hashesIn(t, n.w.vars["dbx"].data)); {
		case inDBX == 1 && !n.is.record.Passing():
			revoked++
		case inDBX != 0 || n.is.record.Passing() || len(list.ToRevoke()) > 0:
			t.Errorf("it ends with %d revocations, and %d to come:\n%s", inDBX, len(list.ToRevoke()), n.how)
		}
	}
	if revoked == 0 {
		t.Error("it never came to the end of an exchange")
	}
	t.Logf("%d states after a cut, %d different conditions; in %d nothing more happens, in %d of them the old boot manager is revoked, in the others the attempts were cut", x.states, len(x.nodes), ended, revoked)
}

// What must not happen is seen when it does.
func TestSequencesNeedFlushes(t *testing.T) {
	machines := knowing(t, 2, 5, 6)
	for _, m := range machines {
		m.lyingDisk = true
	}
	if x := explore(machines); len(x.problems) == 0 {
		t.Errorf("all of %d states are well on a disk that does not flush", x.states)
	}
}

func TestAllowed(t *testing.T) {
	parse := func(floor uint64, epochs map[uint64]uint64, files ...string) *condition {
		c := &condition{record: &policy.Record{Floor: floor}}
		for v, epoch := range epochs {
			c.record.Branches = append(c.record.Branches, policy.Branch{Version: v, Epoch: epoch})
		}
		for _, file := range files {
			n, err := bls.Parse(file)
			if err != nil {
				t.Fatal(err)
			}
			c.systems = append(c.systems, n)
		}
		return c
	}
	both, second := map[uint64]uint64{1: 5, 2: 6}, map[uint64]uint64{2: 6}
	retry := journal.Entry{Kind: journal.Retry, Version: 2}
	retried, again := parse(5, both, "os_1.efi", "os_2+3.efi"), parse(5, both, "os_1.efi", "os_2+3.efi")
	retried.history, again.history = []journal.Entry{retry}, []journal.Entry{retry, retry}
	used := parse(5, both, "os_1.efi", "os_2+0-3.efi")
	blessed := parse(5, both, "os_1.efi", "os_2.efi")
	for name, c := range map[string]struct {
		before, after *condition
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
		if err := allowed(c.before, c.after, c.asked); (err == nil) != c.good {
			t.Errorf("%s: %v", name, err)
		}
	}
}
