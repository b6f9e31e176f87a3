package machinetest

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/bootflow"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/nextboot"
	"halogenos.internal/initagent/bootjournal"
	"halogenos.internal/initagent/esp"
	"halogenos.internal/initagent/keephome"
	"halogenos.internal/initagent/staging"
)

// A node is a machine without power.
type Node struct {
	W     *World
	Is    *Condition
	How   string // it came about
	After string // the condition that a start without a cut leaves; "" where none was made
	Ends  string // how that start ends
	Runs  contract.Version
}

// An explorer visits every condition that a machine can get into.
type Explorer struct {
	mu       sync.Mutex
	Nodes    map[string]*Node
	next     []*Node
	States   int             // that a cut has left
	byHands  map[string]bool // conditions in which each blessed system was started by hand
	Problems []string
	more     []act // of the running system, beside those that each explorer has
}

// An act is what the running system may be asked to do.
type act func(x *Explorer, m *Machine, after *Node, w *World)

func (x *Explorer) problem(n *Node, format string, args ...any) {
	x.Problems = append(x.Problems, n.How+fmt.Sprintf(format, args...))
}

// Reach notes a state that something has led to, and checks what must never
// happen on the way.
func (x *Explorer) Reach(m *Machine, from *Node, w *World, how string) *Node {
	n := &Node{W: w, How: how + "\n"}
	if from != nil {
		n.How = from.How + n.How
	}
	var err error
	n.Is, err = m.condition(w)
	x.mu.Lock()
	defer x.mu.Unlock()
	x.States++
	if err == nil && from != nil {
		err = Allowed(from.Is, n.Is, strings.HasPrefix(how, "ota"))
	}
	if err != nil {
		x.problem(n, "%v\nit became: %s", err, n.Is)
		return n
	}
	if have := x.Nodes[n.Is.Key]; have != nil {
		return have
	}
	x.Nodes[n.Is.Key] = n
	x.next = append(x.next, n)
	return n
}

// Allowed says what may not become of a machine, however it was cut. What the
// running system does on somebody's behalf may give a system up.
func Allowed(before, after *Condition, asked bool) error {
	if after.Record.Floor < before.Record.Floor {
		return fmt.Errorf("the floor falls from %d to %d", before.Record.Floor, after.Record.Floor)
	}
	for _, e := range after.History {
		tooOften := e.Kind == journal.Refused && strings.Contains(e.Reason, "went down 3 times")
		if e.Kind == journal.Refused && !tooOften || e.Kind == journal.Recovery {
			return fmt.Errorf("%s: version %s: %s", e.Kind, e.Version, e.Reason)
		}
	}
	for _, n := range after.Systems {
		was, there := before.Tries(n.Version)
		rounds := after.Count(journal.Retry, n.Version)
		again := rounds > before.Count(journal.Retry, n.Version) || rounds == 1 && was == 0
		fresh := n.Left == staging.Tries && (there && again || !there && !slices.Contains(before.Blessed(), n.Version))
		if n.Counted && n.Left > was && !fresh || rounds > 1 {
			return fmt.Errorf("%s, in its round %d, had %d tries", n, rounds+1, was)
		}
	}
	for _, v := range before.Blessed() {
		// The TPM gives a system up first, and only for the floor.
		b, had := before.branch(v)
		_, has := after.branch(v)
		there := slices.Contains(after.Blessed(), v)
		if had && !has && there && b.Epoch >= after.Record.Floor || !there && has && !asked {
			return fmt.Errorf("version %s, which is blessed, is lost", v)
		}
	}
	return nil
}

// start boots a machine, notes every state in which the power can be cut, and
// then what the running system may be asked to do.
func (x *Explorer) start(m *Machine, n *Node) {
	m.PowerOn(n.W)
	m.Said.Reset()
	m.Printed.Reset()
	m.ByHand, m.Ops = 0, nil
	asks := m.Answers()
	m.Snapshot = func() {
		m.Remaining(func(w *World) {
			x.Reach(m, n, w, fmt.Sprintf("start, cut after %d operations (%s)", len(m.Ops), Last(m.Ops)))
		})
	}
	end := m.Boot()
	m.Snapshot()
	m.Snapshot = nil
	w := m.World(true, nil)
	after := x.Reach(m, n, w, "start that ends in "+end)
	x.mu.Lock()
	if after.Is != nil {
		n.After, n.Ends, n.Runs = after.Is.Key, end, m.Agent.Contract.Version
	}
	comesUp := end == "reboot" || end == "system" && m.OpenVolume != nil && m.openVerity
	condemns := strings.Contains(m.Said.String(), bootflow.Condemn.String()+":") // and all of them are good
	if !comesUp || condemns || m.Printed.Len() > 0 && !asks {
		x.problem(n, "a start ends in %s and asks %q:\n%s", end, m.Printed.String(), m.Said.String())
	}
	stop := len(x.Problems) > 0
	x.mu.Unlock()
	if end != "system" || stop {
		return
	}
	for _, act := range append([]act{(*Explorer).bless, (*Explorer).rollback, (*Explorer).fetch}, x.more...) {
		act(x, m, after, w)
	}
}

// Answers has somebody in front of the machine where the running system has asked for
// something, and reports whether it has.
func (m *Machine) Answers() bool {
	_, asks := m.Vars[nextboot.Variable]
	for _, files := range m.Volumes {
		asks = asks || files[keephome.Requested] != nil
	}
	if m.Typed = nil; asks {
		m.Typed = []string{"test"}
	}
	return asks
}

// Last is the last operation, or "none".
func Last(ops []string) string {
	if len(ops) == 0 {
		return "none"
	}
	return ops[len(ops)-1]
}

// name is that of the running system.
func (m *Machine) RunningName(c *Condition) (bls.Name, bool) {
	for _, n := range c.Systems {
		if n.Version == m.Agent.Contract.Version {
			return n, true
		}
	}
	return bls.Name{}, false
}

// told has the running system put an entry into the journal.
func (m *Machine) told(kind journal.Kind) {
	m.op("journal " + string(kind))
	files := m.RootFiles()
	text, err := journal.Append(files[bootjournal.File], journal.Entry{Kind: kind, Version: m.Agent.Contract.Version})
	m.Must(err)
	files[bootjournal.File] = text
}

// bless and rollback are the running system's: one rename, one entry.
func (x *Explorer) bless(m *Machine, from *Node, w *World) {
	if n, ok := m.RunningName(from.Is); ok && n.Counted {
		x.rename(m, from, w, "ota bless", func() error { return esp.Bless(ESPDir{m.ESP}, n) }, journal.Blessed)
	}
}

func (x *Explorer) rollback(m *Machine, from *Node, w *World) {
	n, ok := m.RunningName(from.Is)
	other := slices.ContainsFunc(from.Is.Systems, func(o bls.Name) bool { return o.Version != n.Version && !o.Bad() })
	if ok && other && !n.Bad() {
		x.rename(m, from, w, "ota rollback", func() error { return esp.Condemn(ESPDir{m.ESP}, n) }, journal.Rollback)
	}
}

func (x *Explorer) rename(m *Machine, from *Node, w *World, how string, rename func() error, kind journal.Kind) {
	m.PowerOn(w)
	m.Must(rename())
	x.Reach(m, from, m.World(true, nil), how+", cut before the journal is written")
	m.told(kind)
	x.Reach(m, from, m.World(true, nil), how)
}

// fetch brings the next version, once: from a blessed system, into a slot whose own
// system goes first.
func (x *Explorer) fetch(m *Machine, from *Node, w *World) {
	n, ok := m.RunningName(from.Is)
	v := m.Agent.Contract.Version + 1
	_, failed := journal.Failures(from.Is.History)[v]
	there := slices.ContainsFunc(from.Is.Systems, func(o bls.Name) bool { return o.Version >= v })
	if !ok || n.Counted || m.Releases[v] == nil || failed || there || m.RootFiles()[staging.NoteFile] != nil {
		return
	}
	m.PowerOn(w)
	m.watchDelivery = func(done string) { x.Reach(m, from, m.World(true, nil), "ota fetch, cut after "+done) }
	m.Deliver(m.Parcel(m.Releases[v]))
	m.watchDelivery = nil
	x.Reach(m, from, m.World(true, nil), "ota fetch")
}

// byHand starts each blessed system by hand: it must unlock, or have been replaced
// for good.
func (x *Explorer) byHand(m *Machine, n *Node) {
	x.mu.Lock()
	key := n.Is.String() + n.Is.slots
	done := x.byHands[key]
	x.byHands[key] = true
	x.mu.Unlock()
	if done {
		return
	}
	for _, v := range n.Is.Blessed() {
		m.PowerOn(n.W)
		m.Said.Reset()
		m.Printed.Reset()
		m.ByHand = v
		asks := m.Answers()
		end := m.Boot()
		unlocks := end == "system" && m.OpenVolume != nil || end == "reboot" && strings.Contains(m.Said.String(), "the trial of the other slot begins")
		if _, may := n.Is.branch(v); m.Printed.Len() > 0 && !asks || unlocks != may {
			x.mu.Lock()
			x.problem(n, "version %s, started by hand, ends in %s and asks %q:\n%s", v, end, m.Printed.String(), m.Said.String())
			x.mu.Unlock()
		}
	}
}

// ending follows starts without a cut: they come to a system that starts again and
// again without a change.
func (x *Explorer) ending(n *Node) {
	const most = 16
	first := n
	for range most {
		next := x.Nodes[n.After]
		if next == nil {
			break
		}
		if next == n && n.Ends == "system" && slices.Contains(n.Is.Blessed(), n.Runs) {
			return
		}
		n = next
	}
	x.problem(first, "%d starts come to no end", most)
}

// Explore starts a machine in every condition that it can get into, until there are
// no more, or one is wrong.
func Explore(machines []*Machine, more ...act) *Explorer {
	x := &Explorer{Nodes: map[string]*Node{}, byHands: map[string]bool{}, more: more}
	x.Reach(machines[0], nil, machines[0].World(true, nil), "a machine in use")
	for len(x.next) > 0 && len(x.Problems) == 0 {
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
	for _, n := range x.Nodes {
		if len(x.Problems) == 0 {
			x.ending(n)
		}
	}
	return x
}

// Knowing are machines in use that know releases of these epochs.
func Knowing(t testing.TB, workers int, epochs ...uint64) (machines []*Machine) {
	releases := map[contract.Version]*Edition{}
	for i, epoch := range epochs {
		releases[contract.Version(i+1)] = NewRelease(t, uint64(i+1), epoch, Pinned)
	}
	for range workers {
		m := New(t, Pinned)
		m.Releases = releases
		machines = append(machines, m)
	}
	for range 3 {
		machines[0].Ends("system")
	}
	return machines
}
