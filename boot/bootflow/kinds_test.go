package bootflow

import "testing"

// What came of one step is not taken for what came of another: Next would repeat the one and
// leave out the other. Only the two verdicts about a trial share an outcome, and the two ways
// of asking the TPM.
func TestEveryStepHasItsOutcome(t *testing.T) {
	alike := map[Kind]Kind{Retry: Remember, Remember: Retry, AskPIN: Unlock, Unlock: AskPIN}
	for one := Kind(0); one.known(); one++ {
		var f Facts
		if f.Note(one, Done) != one.HasOutcome() || one.HasOutcome() && f.Came(one) != Done {
			t.Errorf("what came of %s is not kept", one)
		}
		for other := Kind(0); other.known(); other++ {
			if partner, there := alike[one]; other != one && f.Came(other) != NotTried && !(there && partner == other) {
				t.Errorf("%s says what came of %s", one, other)
			}
		}
	}
	var f Facts
	if unknown := Kind(len(kinds)); f.Note(unknown, Done) || f.Came(unknown) != NotTried || f.Note(none, Done) {
		t.Error("the outcome of a step that nobody knows is kept")
	}
}
