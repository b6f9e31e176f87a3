package blocktest

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

// Options bounds the enumeration of power cuts. The zero value is for tests
// that take a second.
type Options struct {
	// Exhaustive is the number of states up to which all states of an epoch
	// are visited; 4096 when zero.
	Exhaustive int
	// Random is the number of random states visited of a larger epoch; 64
	// when zero.
	Random int
	// Seed chooses the random states.
	Seed uint64
}

func (o Options) withDefaults() Options {
	if o.Exhaustive == 0 {
		o.Exhaustive = 4096
	}
	if o.Random == 0 {
		o.Random = 64
	}
	return o
}

// span is the part of a write that reached the disk, in bytes from its start.
type span struct{ from, to int }

// epoch is the writes between two syncs, of which a power cut leaves any part.
type epoch struct {
	number int // counts from 1
	first  int // index in the log of the first write
	writes []Op
	// landed is what reached the disk of each write in the current state.
	landed []span
	// byPage lists the writes that touch a page, in their order.
	byPage map[int64][]int
}

// Cut is one state that a power cut can leave. It is valid until the visitor
// that got it returns.
type Cut struct {
	// Disk is the state. What the visitor writes to it is gone afterwards.
	Disk *Disk

	epoch *epoch // nil: nothing had been written
	after string // the cut before this one, in a nested run
}

// String describes the state, for a failed test to be understood by.
func (c Cut) String() string {
	var b strings.Builder
	b.WriteString(c.after)
	if c.epoch == nil {
		b.WriteString("cut before the first write")
		return b.String()
	}
	e := c.epoch
	fmt.Fprintf(&b, "cut in epoch %d:", e.number)
	const most = 12
	for i, w := range e.writes {
		if i == most {
			fmt.Fprintf(&b, " and %d more writes,", len(e.writes)-most)
			break
		}
		fmt.Fprintf(&b, " op %d (%d bytes at byte %d) %s,", e.first+i, len(w.Data), w.Off, describe(e.landed[i], len(w.Data)))
	}
	return strings.TrimSuffix(b.String(), ",")
}

func describe(s span, n int) string {
	switch {
	case s.from == s.to:
		return "absent"
	case s.to-s.from == n:
		return "whole"
	}
	return fmt.Sprintf("torn to bytes %d to %d", s.from, s.to)
}

// Cuts calls visit with each state that a power cut during the recorded
// operations can leave, and returns how many there were. Successful syncs cut
// the log into epochs. What was written before the epoch in which the power
// fails is whole. Of the epoch itself
//
//   - every combination of absent, whole and torn writes is visited where
//     there are at most Options.Exhaustive of them;
//   - otherwise every prefix, whole and with a torn end; each write missing,
//     torn, or alone; the last of each prefix landed with one before it
//     missing; and random combinations.
//
// An error of visit ends the enumeration and is returned with the state's
// description.
func (r *Recorder) Cuts(o Options, visit func(Cut) error) (states int, err error) {
	return r.cuts(o.withDefaults(), "", visit)
}

// Nested is Cuts to a depth of two: visit sees each state after a cut, and
// each state after a cut of the recovery from it. An error of recovery on a
// disk that does not fail is an error.
func (r *Recorder) Nested(o Options, recovery func(*Recorder) error, visit func(Cut) error) (states int, err error) {
	o = o.withDefaults()
	inner := 0
	outer, err := r.cuts(o, "", func(c Cut) error {
		// Visit an overlay: recovery must start from what the cut left.
		if err := visit(Cut{Disk: c.Disk.Overlay(), epoch: c.epoch}); err != nil {
			return err
		}
		again := Record(c.Disk)
		if err := recovery(again); err != nil {
			return fmt.Errorf("recovery: %w", err)
		}
		n, err := again.cuts(o, "during recovery, ", visit)
		inner += n
		return err
	})
	return outer + inner, err
}

func (r *Recorder) cuts(o Options, after string, visit func(Cut) error) (states int, err error) {
	durable := r.base.Overlay()
	// show visits the state that e.landed describes now.
	show := func(e *epoch) error {
		states++
		c := Cut{Disk: durable.Overlay(), epoch: e, after: after}
		if e != nil {
			c.Disk.lower, c.Disk.below = nil, e.below(durable)
		}
		err := visit(c)
		// Anyone who keeps the disk would see it turn into another state.
		c.Disk.lower, c.Disk.below = nil, func(int64, *page) { panic("blocktest: Cut.Disk used after visit returned") }
		if err != nil {
			return fmt.Errorf("%v: %w", c, err)
		}
		return nil
	}
	if err := show(nil); err != nil {
		return states, err
	}
	for _, e := range split(r.Log()) {
		if err := e.enumerate(o, show); err != nil {
			return states, err
		}
		for _, w := range e.writes {
			if _, err := durable.WriteAt(w.Data, w.Off); err != nil {
				return states, err
			}
		}
	}
	return states, nil
}

// split cuts a log into its epochs. A sync that failed ends none.
func split(log []Op) []*epoch {
	var epochs []*epoch
	var e *epoch
	for i, op := range log {
		switch {
		case op.IsSync() && op.Err == nil:
			e = nil
		case op.IsSync() || len(op.Data) == 0:
		default:
			if e == nil {
				e = &epoch{number: len(epochs) + 1, first: i, byPage: map[int64][]int{}}
				epochs = append(epochs, e)
			}
			for p := op.Off / pageSize; p <= (op.Off+int64(len(op.Data))-1)/pageSize; p++ {
				e.byPage[p] = append(e.byPage[p], len(e.writes))
			}
			e.writes = append(e.writes, op)
			e.landed = append(e.landed, span{})
		}
	}
	return epochs
}

// below returns the reader of pages in the state that e.landed describes.
func (e *epoch) below(durable *Disk) func(int64, *page) {
	return func(index int64, p *page) {
		durable.copyPage(index, 0, p[:])
		start := index * pageSize
		for _, i := range e.byPage[index] {
			w, s := e.writes[i], e.landed[i]
			from := max(w.Off+int64(s.from), start)
			to := min(w.Off+int64(s.to), start+pageSize)
			if from < to {
				copy(p[from-start:], w.Data[from-w.Off:to-w.Off])
			}
		}
	}
}

// ways returns how write i can have landed: absent, whole, and torn. Of the
// tears of a long write some are chosen, fewer when lean.
func (e *epoch) ways(i int, lean bool) []span {
	n := len(e.writes[i].Data)
	ways := []span{{}, {0, n}}
	at := tears(e.writes[i].Off, n)
	if len(at) == 0 {
		return ways
	}
	last := len(at) - 1
	if lean {
		mid := at[len(at)/2]
		return append(ways, span{0, mid}, span{mid, n})
	}
	prefixes := at
	if len(at) > 7 {
		prefixes = []int{at[0], at[len(at)/2], at[last]}
	}
	for _, cut := range prefixes {
		ways = append(ways, span{0, cut})
	}
	ways = append(ways, span{at[0], n})
	if last > 0 {
		ways = append(ways, span{at[last], n})
	}
	return ways
}

// enumerate shows the states of one epoch. The one in which nothing landed is
// left out: it was the last of the epoch before.
func (e *epoch) enumerate(o Options, show func(*epoch) error) error {
	for _, lean := range []bool{false, true} {
		ways := make([][]span, len(e.writes))
		product := 1
		for i := range e.writes {
			ways[i] = e.ways(i, lean)
			if product *= len(ways[i]); product > o.Exhaustive {
				break
			}
		}
		if product <= o.Exhaustive {
			return e.everything(ways, show)
		}
	}
	for _, some := range []func(Options, func(*epoch) error) error{e.prefixes, e.missing, e.alone, e.random} {
		if err := some(o, show); err != nil {
			return err
		}
	}
	return nil
}

// everything shows each combination of ways but the empty one.
func (e *epoch) everything(ways [][]span, show func(*epoch) error) error {
	digits := make([]int, len(ways))
	for {
		i := 0
		for ; i < len(digits); i++ {
			digits[i] = (digits[i] + 1) % len(ways[i])
			e.landed[i] = ways[i][digits[i]]
			if digits[i] != 0 {
				break
			}
		}
		if i == len(digits) {
			return nil
		}
		if err := show(e); err != nil {
			return err
		}
	}
}

// each shows write i in the given ways, in turn, and leaves it as it was.
func (e *epoch) each(i int, ways []span, show func(*epoch) error) error {
	was := e.landed[i]
	defer func() { e.landed[i] = was }()
	for _, way := range ways {
		e.landed[i] = way
		if err := show(e); err != nil {
			return err
		}
	}
	return nil
}

func (e *epoch) set(whole bool) {
	for i, w := range e.writes {
		e.landed[i] = span{}
		if whole {
			e.landed[i] = span{0, len(w.Data)}
		}
	}
}

// prefixes shows the first writes landed, the last of them whole or torn, and
// the same with one of those before it missing.
func (e *epoch) prefixes(o Options, show func(*epoch) error) error {
	random := rand.New(rand.NewPCG(o.Seed, uint64(e.first)))
	e.set(false)
	for i, w := range e.writes {
		if err := e.each(i, e.ways(i, true)[1:], show); err != nil {
			return err
		}
		e.landed[i] = span{0, len(w.Data)}
		if i == 0 {
			continue
		}
		absent := []span{{}}
		if err := e.each(i-1, absent, show); err != nil {
			return err
		}
		if i > 1 {
			if err := e.each(random.IntN(i-1), absent, show); err != nil {
				return err
			}
		}
	}
	return nil
}

// missing shows everything landed but one write, absent or torn.
func (e *epoch) missing(_ Options, show func(*epoch) error) error {
	e.set(true)
	for i := range e.writes[:len(e.writes)-1] { // without the last it is a prefix
		ways := e.ways(i, true)
		ways[1] = ways[0] // not whole
		if err := e.each(i, ways[1:], show); err != nil {
			return err
		}
	}
	return nil
}

// alone shows one write landed, whole or torn, and nothing else.
func (e *epoch) alone(_ Options, show func(*epoch) error) error {
	e.set(false)
	for i := 1; i < len(e.writes); i++ { // the first alone is a prefix
		if err := e.each(i, e.ways(i, true)[1:], show); err != nil {
			return err
		}
	}
	return nil
}

// random shows random combinations: a fifth of the writes torn, and of the
// others as many absent as whole.
func (e *epoch) random(o Options, show func(*epoch) error) error {
	random := rand.New(rand.NewPCG(o.Seed, ^uint64(e.first)))
	for range o.Random {
		for i := range e.writes {
			ways := e.ways(i, false)
			pick := random.IntN(2)
			if len(ways) > 2 && random.IntN(5) == 0 {
				pick = 2 + random.IntN(len(ways)-2)
			}
			e.landed[i] = ways[pick]
		}
		if err := show(e); err != nil {
			return err
		}
	}
	return nil
}
