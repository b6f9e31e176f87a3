package release

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/manifest"
)

// What was withdrawn is neither offered again by itself nor overtaken by something
// older. FAULTS 112
func TestWithdrawn(t *testing.T) {
	w := newWorld(t)
	var o Options
	for v := contract.Version(1); v <= 4; v++ {
		o = w.options(w.build(v, "", ""), "")
		w.publish(o)
	}
	m := w.manage(o)
	ctx := t.Context()
	is := func(name string, err error, want, then string) {
		t.Helper()
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
		if text := string(mustRead(t, filepath.Join(directory(o), "manifest.env"))); text != then {
			t.Errorf("%s: manifest %q, want %q", name, text, then)
		}
	}
	is("the newest", Withdraw(ctx, m, 4, 0), "", "STABLE=3\nIMAGE=x86_64/test-os\nWITHDRAWN_STABLE=4\n")
	is("the next", Withdraw(ctx, m, 3, 0), "", "STABLE=2\nIMAGE=x86_64/test-os\nWITHDRAWN_STABLE=3,4\n")

	// Machines have 4: 4 again or something between is not for them.
	w.refused("the same again", w.options(w.build(4, "", ""), ""), "published and withdrawn")
	if err := os.Rename(filepath.Join(directory(o), "4"), filepath.Join(w.dir, "4")); err != nil {
		t.Fatal(err)
	}
	w.refused("another one of that version", w.options(w.build(4, "", "", "Cmdline=quiet", "Cmdline=loud"), ""), "published and withdrawn")
	w.refused("an older one", w.with(w.options(w.build(3, "", "", "Cmdline=quiet", "Cmdline=loud"), ""), func(o *Options) { o.Channel = manifest.Beta }), "published and withdrawn")
	if err := os.Rename(filepath.Join(w.dir, "4"), filepath.Join(directory(o), "4")); err != nil {
		t.Fatal(err)
	}

	five := w.options(w.build(5, "", ""), "")
	w.publish(five)
	is("to what was withdrawn", Withdraw(ctx, m, 5, 0), "", "STABLE=2\nIMAGE=x86_64/test-os\nWITHDRAWN_STABLE=3,4,5\n")
	is("unless it is asked for", Promote(ctx, m, 5, manifest.Stable, Rollout{}), "", "STABLE=5\nIMAGE=x86_64/test-os\nWITHDRAWN_STABLE=3,4\n")
	is("by its version", Withdraw(ctx, m, 5, 3), "", "STABLE=3\nIMAGE=x86_64/test-os\nWITHDRAWN_STABLE=4,5\n")

	// One that less tried channels try is not for everybody.
	is("a promotion", Promote(ctx, m, 5, manifest.Stable, Rollout{}), "", "STABLE=5\nIMAGE=x86_64/test-os\nWITHDRAWN_STABLE=4\n")
	w.put(o, "manifest.env", "STABLE=5\nBETA=4\n")
	is("what is on trial", Withdraw(ctx, m, 5, 0), "", "STABLE=3\nBETA=4\nIMAGE=x86_64/test-os\nWITHDRAWN_STABLE=5\n")

	// What was withdrawn from beta says nothing about stable's machines.
	w.put(o, "manifest.env", "STABLE=2\nBETA=8\nWITHDRAWN_BETA=7\n")
	w.put(o, "manifest.env", "STABLE=2\nWITHDRAWN_BETA=7\n")
	six := w.options(w.build(6, "", ""), "")
	w.refused("to beta", w.with(six, func(o *Options) { o.Channel = manifest.Beta }), "version 6 is not newer than 7, which was withdrawn from beta")
	w.publish(six)
}

// A release has to suit the machines that took a withdrawn one, too.
func TestFollowsWithdrawn(t *testing.T) {
	w := newWorld(t)
	first := w.options(w.build(1, "", ""), "")
	w.publish(first)
	second := w.options(w.build(2, "", "", "SlotSize=16M", "SlotSize=16M\nEpoch=2"), "")
	w.publish(second)
	if err := Withdraw(t.Context(), w.manage(first), 2, 0); err != nil {
		t.Fatal(err)
	}
	third := w.options(w.build(3, "", ""), "")
	w.refused("a lower epoch than the withdrawn one's", third, "machines with release 2 would refuse this one: epoch")
	w.publish(w.options(w.build(4, "", "", "SlotSize=16M", "SlotSize=16M\nEpoch=2"), ""))
}

// FAULTS 112 (R8): the signature or the number of a signed manifest is gone
func TestLostSequence(t *testing.T) {
	w := newWorld(t)
	fpr := w.key("release", "ed25519", password)
	first := w.options(w.build(1, "release", fpr), "release")
	first.SignManifest = true
	w.publish(first)
	dir := directory(first)
	signed := mustRead(t, filepath.Join(dir, "manifest.env"))
	was, err := manifest.Parse(signed)
	if err != nil {
		t.Fatal(err)
	}

	// The manifest alone is gone.
	if err := os.Remove(filepath.Join(dir, "manifest.env")); err != nil {
		t.Fatal(err)
	}
	second := w.options(w.build(2, "release", fpr), "release")
	w.refused("a signature without its manifest", second, "put it back from a copy")

	// All that says that it was signed, but SEQUENCE.
	w.put(first, "manifest.env", strings.Replace(string(signed), "PUBKEY=release-key.pgp\n", "", 1))
	if err := os.Remove(filepath.Join(dir, "manifest.env.pgp")); err != nil {
		t.Fatal(err)
	}
	if err := RefreshManifest(t.Context(), w.manage(first), Refresh{}); err == nil || !strings.Contains(err.Error(), "has a SEQUENCE") {
		t.Errorf("taken for unsigned: %v", err)
	}

	// Signature and number: what is signed next has a greater one than machines saw.
	w.put(first, "manifest.env", strings.Split(string(signed), "SEQUENCE=")[0])
	later := w.with(second, func(o *Options) { o.Now, o.SignManifest = now.AddDate(0, 1, 0), true })
	unsigned := w.with(later, func(o *Options) { o.SignManifest = false })
	said := says(&unsigned)
	w.publish(unsigned)
	if !strings.Contains(strings.Join(*said, "\n"), "machines that have seen it signed refuse it") {
		t.Errorf("says %q", *said)
	}
	m := w.manage(later)
	if err := RefreshManifest(t.Context(), m, Refresh{Sign: true}); err != nil {
		t.Fatal(err)
	}
	is, err := manifest.Parse(mustRead(t, filepath.Join(dir, "manifest.env")))
	if err != nil || is.Sequence <= was.Sequence || is.Sequence-was.Sequence > manifest.MaxJump {
		t.Errorf("SEQUENCE %d after %d, %v", is.Sequence, was.Sequence, err)
	}
}
