package agent

import (
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/bootflow"
)

// A kind of step that bootflow.Next knows and the table does not would end a boot in which
// it is called for.
func TestEveryStepHasARow(t *testing.T) {
	count := 0
	for k := bootflow.Kind(0); !strings.HasPrefix(k.String(), "step-"); k++ {
		row, there := steps[k]
		switch {
		case k == bootflow.Recovery || k == bootflow.RecoverNext:
			if there {
				t.Errorf("%s ends a boot, and has a row", k)
			}
			continue
		case !there || row.do == nil:
			t.Errorf("%s has no row, or one that does nothing", k)
		case row.ends && !k.HasOutcome():
			t.Errorf("%s may end a boot, and no fact says that it has failed", k)
		case row.last && !row.deaf:
			t.Errorf("%s is the last step of a boot, and somebody listens in it", k)
		}
		count++
	}
	if len(steps) != count {
		t.Errorf("the table has %d rows, and there are %d steps", len(steps), count)
	}
}

// The step that a boot stopped in is the last one that failed.
func TestEndings(t *testing.T) {
	want := []bootflow.Kind{bootflow.MountState, bootflow.AddExtensions, bootflow.CarryState, bootflow.GrowSlots, bootflow.RestoreState, bootflow.KeepHome, bootflow.AskKey, bootflow.Unlock, bootflow.Enroll, bootflow.OpenVerity}
	if got := endings(); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
