package etcmerge

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// A plan has one budget: what goes beyond it is kept whole and listed, and the machine
// starts. FAULTS 107
func TestBudget(t *testing.T) {
	base, theirs, upper := memory{}, memory{}, memory{}
	half := strings.Repeat(strings.Repeat("x", 255)+"\n", MaxText/512)
	for i := range 3 * maxContent / MaxText {
		p := fmt.Sprint("f", i)
		base[p], theirs[p], upper[p] = text("a\n"+half+"b\n"), text("a\n"+half+"c\n"), text("0\na\n"+half+"b\n")
	}
	before := used(t)
	r, _ := plan(t, base, theirs, upper)
	merged := int64(0)
	for _, c := range r.Changes {
		merged += int64(len(c.Content))
	}
	if merged > maxContent+MaxList || merged < maxContent/2 {
		t.Errorf("%d bytes in memory", merged)
	}
	if len(r.Conflicts) == 0 || !strings.Contains(r.Conflicts[0].Reason, "too much to merge") {
		t.Errorf("%d conflicts", len(r.Conflicts))
	}
	base, theirs, upper = memory{}, memory{}, memory{}
	shuffled := func(by int) string {
		var out strings.Builder
		for i := range 40_000 {
			fmt.Fprintln(&out, i*by%40_009)
		}
		return out.String()
	}
	for i := range 30 {
		p := fmt.Sprint("f", i)
		base[p], theirs[p], upper[p] = text(shuffled(7)), text(shuffled(11)), text(shuffled(13))
	}
	plan(t, base, theirs, upper)
	if took := used(t) - before; took > 20*time.Second {
		t.Errorf("it took %v of processor time", took)
	}
}

// The account files cost no more than what they are long. FAULTS 107
func TestLongAccountFiles(t *testing.T) {
	var ranges, mine, members, conflicts, others strings.Builder
	for i := range 20_000 {
		fmt.Fprintf(&ranges, "u%d:%d:70000\n", i, 100_000+i)
		fmt.Fprintf(&mine, "m%d:%d:1\n", i, 100_000+i*2)
	}
	for i := range 100_000 {
		fmt.Fprintf(&members, "m%d,", i)
	}
	for i := range 10_000 {
		fmt.Fprintf(&conflicts, "u%d:x:%d:0:here:/:/x\n", i, 1000+i)
		fmt.Fprintf(&others, "u%d:x:%d:0:there:/:/x\n", i, 1000+i)
	}
	before := used(t)
	base := accountsOf("subuid", "", "group", "audio:x:29:a\n", "passwd", strings.ReplaceAll(others.String(), "there", "before"))
	theirs := accountsOf("subuid", ranges.String(), "group", "audio:x:29:"+members.String()+"\n", "passwd", others.String())
	upper := accountsOf("subuid", mine.String(), "group", "audio:x:29:a,"+strings.ReplaceAll(members.String(), "m", "n")+"\n", "passwd", conflicts.String())
	r, made := plan(t, base, theirs, upper)
	plan(t, theirs, theirs, made)
	if took := used(t) - before; took > 10*time.Second {
		t.Errorf("it took %v of processor time", took)
	}
	if len(r.Conflicts) < 10_000 {
		t.Errorf("%d conflicts", len(r.Conflicts))
	}
}

// A machine with more users than most merges them as others do: what the image brings comes
// in, its files belong to their users, and what clashes is listed until it is decided.
// FAULTS 106
func TestManyUsers(t *testing.T) {
	var many strings.Builder
	for i := range 20_000 {
		fmt.Fprintf(&many, "student%05d:x:%d:1000:Some Student Name:/home/student%05d:/bin/bash\n", i, 1000+i, i)
	}
	base := accountsOf("passwd", rootUser, "group", rootGroup)
	theirs := accountsOf("passwd", "root:x:0:0:root:/root:/bin/fish\nsvc:x:990:990::/:/x\n", "group", rootGroup+"svc:x:990:\n")
	theirs["svc.key"] = text("secret").owner(990, 990).mode(0o600)
	mine := "root:x:0:0:root:/root:/bin/zsh\n" + many.String() + "bob:x:990:990::/:/x\n"
	if len(mine) < MaxText {
		t.Fatal("too few users")
	}
	r, made := planWith(t, Options{}, base, theirs, accountsOf("passwd", mine, "group", rootGroup+"bob:x:990:\n"))
	svc, ok := parseRecords([]byte(made["passwd"].content), 7).own("svc")
	if !ok || !strings.HasPrefix(made["passwd"].content, mine) {
		t.Errorf("passwd has %d bytes, svc %v", len(made["passwd"].content), ok)
	}
	if n := made["svc.key"]; n.UID != svc || n.GID != svc || r.Users[990] != svc {
		t.Errorf("svc.key belongs to %d:%d, svc is %d, users %v", n.UID, n.GID, svc, r.Users)
	}
	r, _ = planWith(t, Options{}, theirs, theirs, made)
	conflicts, _ := said(r)
	wantSaid(t, "conflicts of the next", conflicts, "passwd root: user root: shell")
}

// Account files that are too large to merge end the merge: without it, whose number is
// whose would not be known.
func TestTooManyUsers(t *testing.T) {
	large := text(strings.Repeat(strings.Repeat("x", 255)+"\n", MaxAccounts/256) + "y\n")
	image := accountsOf("passwd", rootUser, "group", rootGroup)
	for _, path := range []string{"passwd", "group"} {
		_, err := Plan(t.Context(), image, image, memory{path: large}, Options{})
		if want := "the upper directory: " + path + ": it is larger than 16 MiB"; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
	before := used(t)
	var most strings.Builder
	for i := 0; most.Len() < MaxAccounts-256; i++ {
		fmt.Fprintf(&most, "user%d:x:%d:1000:Some Student Name:/home/user%d:/bin/bash\n", i, 100_000+i, i)
	}
	r, err := Plan(t.Context(), image, image, accountsOf("passwd", most.String()), Options{})
	if err != nil || len(r.Conflicts) > 0 {
		t.Errorf("error %v", err)
	}
	if took := used(t) - before; took > 30*time.Second {
		t.Errorf("it took %v of processor time", took)
	}
}

// A comparison ends with its context.
func TestComparisonEnds(t *testing.T) {
	ctx, end := context.WithCancel(context.Background())
	end()
	a, b := make([]int32, 30_000), make([]int32, 30_000)
	for i := range a {
		a[i], b[i] = int32(i), int32(len(b)-1-i)
	}
	if _, _, err := (&budget{ctx: ctx, steps: maxSteps}).match(a, b); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}
