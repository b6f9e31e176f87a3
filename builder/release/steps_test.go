package release

import (
	"strings"
	"testing"

	"halogenos.internal/boot/contract"
)

// What was withdrawn comes back to machines by no step, and what somebody else has put
// into a manifest that was not signed so far is not signed. FAULTS 112
func TestStepsOfOthers(t *testing.T) {
	w := newWorld(t)
	fingerprint := w.key("release", "ed25519", password)
	var o Options
	for v := contract.Version(1); v <= 3; v++ {
		o = w.options(w.build(v, "release", fingerprint), "release")
		w.publish(o)
	}
	m := w.manage(o)
	if err := Withdraw(t.Context(), m, 3, 0); err != nil {
		t.Fatal(err)
	}
	if err := SetStep(t.Context(), m, 3, true); err == nil || !strings.Contains(err.Error(), "was withdrawn") {
		t.Errorf("a step that was withdrawn: %v", err)
	}
	for _, line := range []string{"STEPS=2,77", "WITHDRAWN_STABLE=900"} {
		w.put(o, "manifest.env", "STABLE=2\nPUBKEY=release-key.pgp\n"+line+"\n")
		o.Now = now
		if err := RefreshManifest(t.Context(), w.manage(o), Refresh{Sign: true}); err == nil || !strings.Contains(err.Error(), "was not signed so far") {
			t.Errorf("%s is signed: %v", line, err)
		}
	}
}
