package release

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/pgp"
	"halogenos.internal/uroot-cmds/ota/fetch"
	"halogenos.internal/uroot-cmds/ota/offer"
	"halogenos.internal/uroot-cmds/ota/worker"
)

// years is a distributor's life with one key.
type years struct {
	*world
	fpr    string
	builds map[contract.Version]string
	known  map[contract.Version][]byte // what a machine with a release has learned
}

// edit has gpg change the key, as a person who answers its questions.
func (y *years) edit(when time.Time, answers ...string) {
	y.t.Helper()
	cmd := exec.Command("gpg", "--homedir", y.home, "--batch", "--no-tty", "--quiet", "--no-auto-check-trustdb", "--trust-model", "always", "--pinentry-mode", "loopback",
		"--passphrase", password, "--faked-system-time", when.Format("20060102T150405!"), "--command-fd", "0", "--edit-key", y.fpr)
	cmd.Stdin = strings.NewReader(strings.Join(answers, "\n") + "\n")
	if said, err := cmd.CombinedOutput(); err != nil {
		y.t.Fatalf("gpg --edit-key %q: %v\n%s", answers, err, said)
	}
	y.exportAt(when, "release")
}

// renew makes the key, or some of its subkeys, last for five years more.
func (y *years) renew(when time.Time, which ...string) {
	y.t.Helper()
	y.gpgAt(when, append([]string{"--quick-set-expire", y.fpr, "5y"}, which...)...)
	y.exportAt(when, "release")
}

// subkey adds one that signs.
func (y *years) subkey(when time.Time, life string) {
	y.t.Helper()
	y.gpgAt(when, "--quick-add-key", y.fpr, "ed25519", "sign", life)
	y.exportAt(when, "release")
}

// public is the key as the distributor has it.
func (y *years) public() *pgp.Key {
	y.t.Helper()
	k, err := pgp.ParseKey(mustRead(y.t, filepath.Join(y.dir, "release.pub")))
	if err != nil {
		y.t.Fatal(err)
	}
	return k
}

// newYears makes the key.
func newYears(t *testing.T, how ...string) *years {
	y := &years{newWorld(t), "", map[contract.Version]string{}, map[contract.Version][]byte{}}
	y.gpgAt(now, append([]string{"--quick-generate-key", "release@example.org"}, how...)...)
	y.exportAt(now, "release")
	y.fpr = y.public().Fingerprint().String()
	return y
}

// release builds and publishes, and says who signed it.
func (y *years) release(v contract.Version, when time.Time, change func(o *Options)) (said string, signer string) {
	y.t.Helper()
	y.builds[v] = y.build(v, "release", y.fpr)
	o := y.options(y.builds[v], "release")
	notes := says(&o)
	o.Now = when
	if change != nil {
		change(&o)
	}
	y.publish(o)
	p, err := readPublished(y.t.Context(), y.directory(), v, y.shown(), when)
	if err != nil {
		y.t.Fatal(err)
	}
	return strings.Join(*notes, "\n"), p.signer()
}

func (y *years) directory() Directory {
	return Directory(filepath.Join(y.dir, "server/x86_64/test-os"))
}

// shown is the key that the server shows.
func (y *years) shown() *pgp.Key {
	y.t.Helper()
	k, err := pgp.ParseKey(mustRead(y.t, filepath.Join(string(y.directory()), "release-key.pgp")))
	if err != nil {
		y.t.Fatal(err)
	}
	return k
}

func (y *years) manage(when time.Time) Manage {
	return Manage{Directory: y.directory(), Now: when, Note: y.t.Logf}
}

// machine looks as a machine does that runs a release, and remembers what it learns. want
// is the version that it takes, or what its refusal says.
func (y *years) machine(runs contract.Version, when time.Time, want string) {
	y.t.Helper()
	b, err := loadBuild(y.builds[runs])
	if err != nil {
		y.t.Fatal(err)
	}
	self := &offer.Self{Running: b.contract, Channel: manifest.Stable, Signed: "auto", Now: when, Machine: []byte("m"), Known: y.known[runs]}
	var found *fetch.Found
	request := worker.Request{Do: worker.Look, Address: filepath.Join(y.dir, "server"), Self: self}
	err = worker.Do(y.t.Context(), request, worker.Files{}, y.t.TempDir(), func(e worker.Event) {
		if e.Found != nil {
			found = e.Found
		}
	})
	got := ""
	if err == nil {
		var d offer.Decision
		if d, _, _, err = found.Judge(self); err == nil {
			got = fmt.Sprintf("%s %s", d.Verdict, d.Version)
		}
	}
	if found != nil {
		if wiser, err := found.Learned(self); err == nil {
			y.known[runs] = wiser.Known
		}
	}
	if err != nil {
		got = err.Error()
	}
	if !strings.Contains(got, want) {
		y.t.Errorf("a machine with release %s on %s: %s, want %s", runs, when.Format(time.DateOnly), got, want)
	}
}

// The life of a key that gpg made as it does when nobody says how: it signs itself,
// has a subkey to encrypt, and ends after two years or so. FAULTS 112 (R3, R5): keys over ten
// years
func TestLifeOfAKey(t *testing.T) {
	t.Parallel()
	y := newYears(t)
	pinned := y.public()
	end, err := pinned.Ends(now)
	if err != nil {
		t.Fatal(err)
	}
	if end.IsZero() { // the default of gpg before 2.2.42
		y.gpgAt(now.Add(time.Minute), "--quick-set-expire", y.fpr, "2y")
		y.exportAt(now.Add(time.Minute), "release")
		pinned = y.public()
		if end, err = pinned.Ends(now.Add(time.Hour)); err != nil || end.IsZero() {
			t.Fatalf("the key ends on %s, %v", end, err)
		}
	}
	said, signer := y.release(1, now.Add(time.Hour), nil)
	if signer != y.fpr {
		t.Errorf("release 1 is signed by %s", signer)
	}
	if early := end.Sub(now) > 366*24*time.Hour; early && strings.Contains(said, "the release key ends") {
		t.Errorf("said %s", said)
	}

	// Months before the end it is said, wherever a distributor looks.
	warned := end.AddDate(0, -6, 0)
	for what, text := range map[string]string{
		"halogen keys check": KeyWarning(filepath.Join(y.dir, "release.sec"), warned),
		"the key alone":      pinned.Warning(warned),
		"--verify":           y.verifyAt(warned, nil),
	} {
		if !strings.Contains(text, "the release key ends on "+end.Format(time.DateOnly)) || !strings.Contains(text, "gpg --quick-set-expire "+y.fpr) {
			t.Errorf("%s, half a year before the end: %s", what, text)
		}
	}
	if said, _ = y.release(2, warned, nil); !strings.Contains(said, "the release key ends") {
		t.Errorf("publishing half a year before the end: %s", said)
	}

	// Renewed before it ends, as the warning says, and shown without a release: machines
	// that knew an end take what is signed after it.
	y.renew(warned)
	if err := RefreshManifest(t.Context(), y.manage(warned), Refresh{Public: y.public()}); err != nil {
		t.Fatal(err)
	}
	y.machine(1, end.AddDate(0, 1, 0), "take 2")
	later := end.AddDate(0, 6, 0)
	if _, signer = y.release(3, later, nil); signer != y.fpr {
		t.Errorf("release 3 is signed by %s", signer)
	}
	y.machine(1, later, "take 3")

	// A subkey: the release that brings it is signed by the old key, the next by the subkey.
	y.subkey(later, "4y")
	before := y.subkeysOf("release")
	if _, signer = y.release(4, later, nil); signer != y.fpr {
		t.Errorf("release 4, which brings the subkey, is signed by %s", signer)
	}
	if _, signer = y.release(5, later, nil); signer != before[len(before)-1] {
		t.Errorf("release 5 is signed by %s, and the subkeys are %s", signer, before)
	}
	y.machine(1, later, "take 5")
	y.machine(4, later, "take 5")

	y.revoked(later.AddDate(0, 2, 0), before)
	y.expired(later.AddDate(6, 0, 0))
}

// revoked loses the newest subkey to somebody, who has its secret.
func (y *years) revoked(when time.Time, subkeys []string) {
	t := y.t
	t.Helper()
	y.edit(when, fmt.Sprintf("key %d", len(subkeys)), "revkey", "y", "1", "stolen", "", "y", "save")
	public := y.public()
	if good, err := public.SigningKeys(when); err != nil || len(good) != 1 {
		t.Fatalf("after the revocation %d keys sign (%v)", len(good), err)
	}
	// The server shows it at once: from then on nobody takes what the subkey signed, and
	// --verify says so.
	if err := RefreshManifest(t.Context(), y.manage(when), Refresh{Public: public}); err != nil {
		t.Fatal(err)
	}
	y.machine(1, when, "revoked")
	y.machine(4, when, "revoked")
	if text := y.verifyAt(when, nil); !strings.Contains(text, "release 5") || !strings.Contains(text, "revoked") {
		t.Errorf("--verify after the revocation: %s", text)
	}
	// An old copy of the key on a mirror takes nothing back.
	old := mustRead(t, filepath.Join(string(y.directory()), "release-key.pgp"))
	b, err := loadBuild(y.builds[4])
	if err != nil {
		t.Fatal(err)
	}
	y.put(Options{Server: filepath.Join(y.dir, "server")}, "release-key.pgp", string(b.contract.ReleaseKey))
	y.machine(1, when, "revoked")
	y.put(Options{Server: filepath.Join(y.dir, "server")}, "release-key.pgp", string(old))
	// The way out is a newer release, by a key that they know.
	if _, signer := y.release(6, when, nil); signer != y.fpr {
		t.Errorf("release 6 is signed by %s", signer)
	}
	for _, runs := range []contract.Version{1, 4, 5} {
		y.machine(runs, when, "take 6")
	}
	if text := y.verifyAt(when, nil); !strings.Contains(text, "release 6, in stable, is good") {
		t.Errorf("--verify of the way out: %s", text)
	}
}

// expired forgets to renew the key until it has ended.
func (y *years) expired(when time.Time) {
	t := y.t
	t.Helper()
	y.machine(1, when, "its distributor must renew it")
	if text := y.verifyAt(when, nil); !strings.Contains(text, "expired") {
		t.Errorf("--verify after the end: %s", text)
	}
	o := y.options(y.builds[6], "release")
	o.Now = when
	o.Build = y.build(7, "release", y.fpr)
	y.refused("expired", o, "has expired")
	y.renew(when)
	public := y.public()
	if public.Fingerprint().String() != y.fpr {
		t.Fatal("another primary key")
	}
	if err := RefreshManifest(t.Context(), y.manage(when), Refresh{Public: public}); err != nil {
		t.Fatal(err)
	}
	y.machine(1, when, "take 6") // what was signed then is good again
	said, _ := y.release(7, when, nil)
	if !strings.Contains(said, "no key that machines with release 6 have pinned can sign any more") {
		t.Errorf("said %s", said)
	}
	for _, runs := range []contract.Version{1, 6} { // one has slept since the beginning
		y.machine(runs, when, "take 7")
	}
}

// verifyAt is what --verify says at a time: its notes, and what is wrong.
func (y *years) verifyAt(when time.Time, key *pgp.Key) string {
	y.t.Helper()
	var out strings.Builder
	err := Verify(y.t.Context(), y.directory(), VerifyOptions{Key: key, Now: when, Note: func(format string, args ...any) { fmt.Fprintf(&out, format+"\n", args...) }})
	if err != nil {
		fmt.Fprintln(&out, err)
	}
	return out.String()
}

// A machine that has slept for three years takes the newest release by way of those
// that it needs; what they are the server says. FAULTS 112
func TestMachineThatSlept(t *testing.T) {
	t.Parallel()
	y := newYears(t, "ed25519", "cert", "never")
	y.subkey(now, "never")
	y.release(1, now, nil)
	y.release(2, at(1), nil)
	y.subkey(at(1), "never")
	y.release(3, at(1).Add(time.Hour), nil) // brings the new subkey
	y.release(4, at(2), func(o *Options) { o.Channel = manifest.Alpha })
	y.release(5, at(3), func(o *Options) { o.Channel = manifest.Alpha })
	y.put(Options{Server: filepath.Join(y.dir, "server")}, "manifest.env", "STABLE=2\nALPHA=5\nPUBKEY=release-key.pgp\n")
	when := at(3).Add(time.Hour)

	// What machines with release 2 could not check is kept from them, until a step is
	// named that they take first.
	if err := Promote(t.Context(), y.manage(when), 5, manifest.Stable, Rollout{}); err == nil || !strings.Contains(err.Error(), "do not know yet") {
		t.Errorf("promoted past the release with the new subkey: %v", err)
	}
	if err := SetStep(t.Context(), y.manage(when), 9, true); err == nil {
		t.Error("a step that is not there")
	}
	for _, v := range []contract.Version{4, 3} {
		if err := SetStep(t.Context(), y.manage(when), v, true); err != nil {
			t.Fatal(err)
		}
	}
	if err := SetStep(t.Context(), y.manage(when), 3, true); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("a step twice: %v", err)
	}
	if err := Promote(t.Context(), y.manage(when), 5, manifest.Stable, Rollout{}); err != nil {
		t.Fatal(err)
	}
	if text := mustRead(t, filepath.Join(string(y.directory()), "manifest.env")); !bytes.Contains(text, []byte("\nSTEPS=3,4\n")) {
		t.Errorf("manifest %s", text)
	}
	for runs, next := range map[contract.Version]string{1: "take 3", 2: "take 3", 3: "take 4", 4: "take 5"} {
		y.machine(runs, when, next)
	}
	// The steps stay, and are checked.
	gone, err := Prune(t.Context(), y.manage(when), 1, false)
	if err != nil || !slices.Equal(gone, []contract.Version{1, 2}) {
		t.Errorf("pruned %v, %v", gone, err)
	}
	if text := y.verifyAt(when, nil); !strings.Contains(text, "release 5, in stable, is good") || !strings.Contains(text, "release 3, a step, is good") || !strings.Contains(text, "release 4, a step, is good") {
		t.Errorf("--verify: %s", text)
	}
	if text := y.verifyAt(when, k1(t, y)); strings.Contains(text, "signature is by") {
		t.Errorf("--verify with the key of release 1: %s", text)
	}
	// Publishing goes on behind them.
	y.release(6, when, nil)
	y.machine(3, when, "take 4")
	y.machine(5, when, "take 6")

	// One that is gone is missed by anyone who needs it, and by nobody else.
	aside := filepath.Join(t.TempDir(), "4")
	if err := os.Rename(filepath.Join(string(y.directory()), "4"), aside); err != nil {
		t.Fatal(err)
	}
	if text := y.verifyAt(when, nil); !strings.Contains(text, "release 4, a step that machines with older ones need") {
		t.Errorf("--verify without a step: %s", text)
	}
	y.machine(3, when, "the server does not have version 4 (x86_64/test-os/4/4.tar.gz), which this machine needs before anything newer")
	y.machine(5, when, "take 6")
	if err := SetStep(t.Context(), y.manage(when), 4, false); err != nil {
		t.Fatal(err)
	}
	if err := SetStep(t.Context(), y.manage(when), 4, false); err == nil || !strings.Contains(err.Error(), "not a step") {
		t.Errorf("a step that is none: %v", err)
	}
	y.machine(3, when, "take 6")
	if text := y.verifyAt(when, nil); strings.Contains(text, "a step that machines") {
		t.Errorf("--verify: %s", text)
	}

	// A step that is withdrawn is brought to nobody by what follows.
	if err := SetStep(t.Context(), y.manage(when), 6, true); err != nil {
		t.Fatal(err)
	}
	if err := Withdraw(t.Context(), y.manage(when), 6, 5); err != nil {
		t.Fatal(err)
	}
	if text := mustRead(t, filepath.Join(string(y.directory()), "manifest.env")); !bytes.Contains(text, []byte("STABLE=5\n")) || !bytes.Contains(text, []byte("STEPS=3\n")) {
		t.Errorf("manifest %s", text)
	}
}

// k1 is the key as release 1 has pinned it.
func k1(t *testing.T, y *years) *pgp.Key {
	t.Helper()
	b, err := loadBuild(y.builds[1])
	if err != nil {
		t.Fatal(err)
	}
	k, err := pgp.ParseKey(b.contract.ReleaseKey)
	if err != nil {
		t.Fatal(err)
	}
	return k
}
