package release

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/pgp"
)

// at is a time some years on.
func at(years int) time.Time { return now.AddDate(years, 0, 0) }

// gpgAt executes gpg at another time.
func (w *world) gpgAt(when time.Time, args ...string) string {
	w.t.Helper()
	return w.gpg(append([]string{"--faked-system-time", when.Format("20060102T150405!"), "--passphrase", password}, args...)...)
}

// exportAt writes a key's parts again.
func (w *world) exportAt(when time.Time, name string) {
	w.t.Helper()
	w.write(name+".pub", w.gpgAt(when, "--export", name+"@example.org"))
	w.write(name+".sec", w.gpgAt(when, "--armor", "--export-secret-keys", name+"@example.org"))
}

// subkeysOf lists a key's subkeys, the oldest first.
func (w *world) subkeysOf(name string) (all []string) {
	w.t.Helper()
	sub := false
	for line := range strings.Lines(w.gpg("--with-colons", "--list-keys", name+"@example.org")) {
		f := strings.Split(line, ":")
		if f[0] == "sub" {
			sub = true
		}
		if sub && f[0] == "fpr" {
			all = append(all, f[9])
		}
	}
	return all
}

// says collects notes.
func says(o *Options) *[]string {
	var all []string
	o.Note = func(format string, args ...any) { all = append(all, fmt.Sprintf(format, args...)) }
	return &all
}

func directory(o Options) string { return filepath.Join(o.Server, "x86_64", "test-os") }

func (w *world) put(o Options, name, text string) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(directory(o), name), []byte(text), 0o644); err != nil {
		w.t.Fatal(err)
	}
}

// FAULTS 112 (R1, R8): a manifest that somebody has edited, one whose signature is gone
func TestManifestIsCheckedBeforeItIsSigned(t *testing.T) {
	w := newWorld(t)
	fpr := w.key("release", "ed25519", password)
	first := w.options(w.build(1, "release", fpr), "release")
	first.SignManifest = true
	w.publish(first)
	second := w.options(w.build(2, "release", fpr), "release")
	signed := string(mustRead(t, filepath.Join(directory(first), "manifest.env")))
	signature := mustRead(t, filepath.Join(directory(first), "manifest.env.pgp"))
	for name, text := range map[string]string{
		"a great number":      strings.Replace(signed, "SEQUENCE=20270115080000", "SEQUENCE=9223372036854775800", 1),
		"a foreign variable":  signed + "MIRROR=https://evil.example.org/\n",
		"another channel":     signed + "ALPHA=1\n",
		"a later end":         signed + "EXPIRES=2099-01-01T00:00:00Z\n",
		"a comment":           signed + "# x\n",
		"no number, in truth": strings.Replace(signed, "SEQUENCE=20270115080000\n", "", 1),
	} {
		w.put(first, "manifest.env", text)
		w.refused(name, second, "is not as it was signed")
		if err := Promote(t.Context(), w.manage(second), 1, manifest.Beta, Rollout{}); err == nil || !strings.Contains(err.Error(), "is not as it was signed") {
			t.Errorf("promote, %s: %v", name, err)
		}
	}
	w.put(first, "manifest.env", signed)
	if err := os.Remove(filepath.Join(directory(first), "manifest.env.pgp")); err != nil {
		t.Fatal(err)
	}
	w.refused("signature gone", second, "--detach-sign")
	if err := w.verify(first); err == nil || !strings.Contains(err.Error(), "manifest.env.pgp is missing") {
		t.Errorf("verify: %v", err)
	}
	w.put(first, "manifest.env.pgp", string(signature))
	w.publish(second) // and stays signed
	w.gpg("--verify", filepath.Join(directory(first), "manifest.env.pgp"), filepath.Join(directory(first), "manifest.env"))
	if text := string(mustRead(t, filepath.Join(directory(first), "manifest.env"))); !strings.Contains(text, "SEQUENCE=20270115080001") {
		t.Errorf("manifest %q", text)
	}
	// Before the first signature nobody can tell who wrote a variable.
	third := w.options(w.build(1, "release", fpr), "release")
	third.Server = filepath.Join(w.dir, "unsigned")
	w.publish(third)
	fourth := w.with(second, func(o *Options) { o.Server, o.SignManifest = third.Server, true })
	w.put(third, "manifest.env", "STABLE=1\nPUBKEY=release-key.pgp\nMIRROR=https://evil.example.org/\n")
	w.refused("signing what others wrote", fourth, "MIRROR")
	w.put(third, "manifest.env", "STABLE=1\nPUBKEY=release-key.pgp\nSEQUENCE=9223372036854775800\n")
	w.refused("signing a number of others", fourth, "has a SEQUENCE")
	if err := w.verify(third); err == nil || !strings.Contains(err.Error(), "takes no more than") {
		t.Errorf("verify of a number that new machines refuse: %v", err)
	}
	w.put(third, "manifest.env", "STABLE=1\nBETA=9\nPUBKEY=release-key.pgp\n")
	w.refused("signing a channel of others", fourth, "release 9, which is in beta")
}

// A publisher that is cut between signature and manifest is not a reason to refuse.
func TestCutBetweenSignatureAndManifest(t *testing.T) {
	w := newWorld(t)
	fpr := w.key("release", "ed25519", password)
	first := w.options(w.build(1, "release", fpr), "release")
	first.SignManifest = true
	w.publish(first)
	dir := directory(first)
	before := mustRead(t, filepath.Join(dir, "manifest.env"))
	second := w.options(w.build(2, "release", fpr), "release")
	w.publish(second)
	after := mustRead(t, filepath.Join(dir, "manifest.env"))
	// Cut after the signature.
	w.put(first, "manifest.env", string(before))
	w.put(first, next, string(after))
	third := w.options(w.build(3, "release", fpr), "release")
	third.Channel = manifest.Beta
	w.publish(third)
	if text := string(mustRead(t, filepath.Join(dir, "manifest.env"))); text != "STABLE=2\nBETA=3\nPUBKEY=release-key.pgp\nIMAGE=x86_64/test-os\nSEQUENCE=20270115080002\n" {
		t.Errorf("manifest %q", text)
	}
	// Cut before it, or somebody's file in its place.
	w.put(first, next, strings.Replace(string(after), "SEQUENCE=20270115080001", "SEQUENCE=77", 1))
	w.publish(w.with(third, func(o *Options) { o.Rollout = Rollout{true, 10} }))
	if text := string(mustRead(t, filepath.Join(dir, "manifest.env"))); !strings.Contains(text, "SEQUENCE=20270115080003") {
		t.Errorf("manifest %q", text)
	}
	if _, err := os.Stat(filepath.Join(dir, next)); err == nil {
		t.Error("what was left over is there still")
	}
	if err := w.verify(third); err != nil {
		t.Error(err)
	}
}

// FAULTS 112 (R2, R3, R5): the key over ten years, as a distributor works with gpg: a new subkey,
// an expiry that is renewed before and after it passed, a subkey that has expired
// since
func TestReleasesOverTenYears(t *testing.T) {
	w := newWorld(t)
	const id = "release@example.org"
	w.gpgAt(now, "--quick-generate-key", id, "ed25519", "cert", "2y")
	key := func() *pgp.Key {
		t.Helper()
		k, err := pgp.ParseKey(mustRead(t, filepath.Join(w.dir, "release.pub")))
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	w.exportAt(now, "release")
	fpr := key().Fingerprint().String()
	w.gpgAt(now, "--quick-add-key", fpr, "ed25519", "sign", "2y")
	w.exportAt(now, "release")
	step := func(v contract.Version, when time.Time) (Options, *[]string) {
		o := w.options(w.build(v, "release", fpr), "release")
		o.Now = when
		return o, says(&o)
	}
	// machine is what a machine that runs a release makes of another one.
	machine := func(runs, offered string, when time.Time, learned *pgp.Key, want string) {
		t.Helper()
		k := learned
		if k == nil {
			k, _ = pgp.ParseKey(mustRead(t, filepath.Join(w.dir, "pinned."+runs)))
		}
		archive := filepath.Join(w.dir, "server/x86_64/test-os", offered, offered+".tar.gz")
		err := k.Verify(bytes.NewReader(mustRead(t, archive)), mustRead(t, archive+".pgp"), when)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("a machine with release %s, of %s: %v, want %q", runs, offered, err, want)
		}
	}
	pin := func(v string) { w.write("pinned."+v, string(mustRead(t, filepath.Join(w.dir, "release.pub")))) }

	o, said := step(1, now)
	w.publish(o)
	pin("1")
	if all := strings.Join(*said, "\n"); strings.Contains(all, "the release key ends") {
		t.Errorf("two years before: %s", all)
	}
	// A year later it is said. The key is renewed, and gets a subkey.
	o, said = step(2, at(1).AddDate(0, 0, 1))
	w.publish(o)
	pin("2")
	if all := strings.Join(*said, "\n"); !strings.Contains(all, "the release key ends") || !strings.Contains(all, "--quick-set-expire "+fpr) {
		t.Errorf("a year before: %s", all)
	}
	if text := KeyWarning(filepath.Join(w.dir, "release.sec"), o.Now); !strings.Contains(text, "the release key ends") {
		t.Errorf("the key's check says %q", text)
	}
	if text := KeyWarning(filepath.Join(w.dir, "release.sec"), now); text != "" {
		t.Errorf("the key's check says %q two years before", text)
	}
	w.gpgAt(at(1).AddDate(0, 0, 2), "--quick-set-expire", fpr, "5y")
	w.gpgAt(at(1).AddDate(0, 0, 2), "--quick-set-expire", fpr, "5y", "*")
	w.gpgAt(at(1).AddDate(0, 0, 2), "--quick-add-key", fpr, "ed25519", "sign", "5y")
	when := at(1).AddDate(0, 0, 3)
	w.exportAt(when, "release")
	subkeys := w.subkeysOf("release")
	// The next release is signed by the old subkey, since machines know that one.
	o, _ = step(3, when)
	w.publish(o)
	pin("3")
	if p, err := readPublished(t.Context(), Directory(directory(o)), 3, key(), when); err != nil || p.signer() != subkeys[0] {
		t.Errorf("release 3 is signed by %v, want %s (%v)", p, subkeys[0], err)
	}
	machine("2", "3", when, nil, "")
	// The one after by the newest, which release 3 has pinned.
	o, _ = step(4, when)
	w.publish(o)
	if p, err := readPublished(t.Context(), Directory(directory(o)), 4, key(), when); err != nil || p.signer() != subkeys[1] {
		t.Errorf("release 4 is signed by %v, want %s (%v)", p, subkeys[1], err)
	}
	machine("3", "4", when, nil, "")
	machine("2", "4", when, nil, "signature is by") // and learns it from the server
	shown, err := pgp.ParseKey(mustRead(t, filepath.Join(directory(o), "release-key.pgp")))
	if err != nil {
		t.Fatal(err)
	}
	old, _ := pgp.ParseKey(mustRead(t, filepath.Join(w.dir, "pinned.1")))
	wiser, err := old.Merge(shown)
	if err != nil {
		t.Fatal(err)
	}
	machine("1, after it has slept", "4", at(4), wiser, "")

	// A machine that runs release 2 takes release 4 from the server all the same.
	// Those of a time when machines did not learn would not: so it is not promoted
	// over release 3.
	skip := w.with(o, func(o *Options) { o.Server = filepath.Join(w.dir, "skip") })
	if err := os.CopyFS(skip.Server, os.DirFS(o.Server)); err != nil {
		t.Fatal(err)
	}
	w.put(skip, "manifest.env", "STABLE=2\nALPHA=4\nPUBKEY=release-key.pgp\n")
	if err := Promote(t.Context(), w.manage(skip), 4, manifest.Stable, Rollout{}); err == nil || !strings.Contains(err.Error(), "do not know yet") {
		t.Errorf("promoted past release 3: %v", err)
	}
	if err := Promote(t.Context(), w.manage(skip), 3, manifest.Stable, Rollout{}); err != nil {
		t.Error(err)
	}

	// Without the old subkey's secret nothing goes to machines that know no other.
	third := w.with(o, func(o *Options) {
		o.Build, o.Server = w.build(3, "release", fpr), filepath.Join(w.dir, "third")
	})
	if err := os.CopyFS(filepath.Join(third.Server), os.DirFS(o.Server)); err != nil {
		t.Fatal(err)
	}
	for _, gone := range []string{"3", "4", "stable"} {
		if err := os.RemoveAll(filepath.Join(directory(third), gone)); err != nil {
			t.Fatal(err)
		}
	}
	w.put(third, "manifest.env", "STABLE=2\nPUBKEY=release-key.pgp\n")
	third.Key.Path = w.write("newest.sec", w.gpgAt(when, "--armor", "--export-secret-subkeys", subkeys[1]+"!"))
	w.refused("a subkey that machines do not know", third, "sign this release with that one")

	// All of it expires, and is renewed years after. Then nothing that machines have
	// pinned counts; they learn from the server, and it is said.
	late := at(8)
	o, _ = step(5, late)
	w.refused("expired", o, "has expired")
	w.gpgAt(late, "--quick-set-expire", fpr, "5y")
	w.gpgAt(late, append([]string{"--quick-set-expire", fpr, "5y"}, subkeys...)...)
	w.exportAt(late, "release")
	o, said = step(5, late)
	w.publish(o)
	if all := strings.Join(*said, "\n"); !strings.Contains(all, "no key that machines with release 4 have pinned") {
		t.Errorf("said %s", all)
	}
	var notes []string
	v := VerifyOptions{Now: late, Note: func(format string, args ...any) { notes = append(notes, fmt.Sprintf(format, args...)) }}
	if err := Verify(t.Context(), Directory(directory(o)), v); err != nil {
		t.Error(err)
	}
}

// FAULTS 112 (R2): --verify judges with what machines have pinned
func TestVerifyWithAnOldPin(t *testing.T) {
	w := newWorld(t)
	fpr := w.key("release", "ed25519", password)
	w.gpg("--passphrase", password, "--quick-add-key", fpr, "ed25519", "sign", "never")
	w.export("release", password)
	old, err := pgp.ParseKey(mustRead(t, filepath.Join(w.dir, "release.pub")))
	if err != nil {
		t.Fatal(err)
	}
	w.gpgAt(now.Add(time.Hour), "--quick-add-key", fpr, "ed25519", "sign", "never")
	w.exportAt(now.Add(time.Hour), "release")
	o := w.options(w.build(1, "release", fpr), "release")
	o.Now = now.Add(2 * time.Hour)
	w.publish(o) // the first on its server, by the newest subkey
	verify := func(k *pgp.Key) error {
		return Verify(t.Context(), Directory(directory(o)), VerifyOptions{Key: k, Now: o.Now, Note: t.Logf})
	}
	if err := verify(old); err == nil || !strings.Contains(err.Error(), "signature is by") {
		t.Errorf("as old machines have it: %v", err)
	}
	if err := verify(nil); err != nil {
		t.Error(err)
	}
	// The same where the releases before say what machines have.
	w.write("release.pub", string(old.Bytes()))
	before := w.with(w.options(w.build(2, "release", fpr), "release"), func(p *Options) { p.Server, p.Now = filepath.Join(w.dir, "two"), o.Now })
	before.Key = o.Key
	w.publish(before)
	w.exportAt(now.Add(time.Hour), "release")
	ahead := w.with(w.options(w.build(3, "release", fpr), "release"), func(p *Options) { p.Server, p.Now = filepath.Join(w.dir, "three"), o.Now })
	w.publish(ahead)
	if err := os.CopyFS(filepath.Join(directory(ahead), "2"), os.DirFS(filepath.Join(directory(before), "2"))); err != nil {
		t.Fatal(err)
	}
	if err := Verify(t.Context(), Directory(directory(ahead)), VerifyOptions{Now: o.Now, Note: t.Logf}); err == nil || !strings.Contains(err.Error(), "release 3") {
		t.Errorf("release 3, which no machine with release 2 takes: %v", err)
	}
}

// FAULTS 112 (R9): what machines would refuse after the release that they have
func TestRefusedByMachines(t *testing.T) {
	w := newWorld(t)
	o := w.options(w.build(1, "", ""), "")
	w.publish(o)
	for say, change := range map[string][]string{
		"slots of 15 MiB":     {"SlotSize=16M", "SlotSize=15M"},
		"without Secure Boot": {"ReleaseKey=none", "ReleaseKey=none\nSecureBoot=optional"},
		"without a TPM":       {"ReleaseKey=none", "ReleaseKey=none\nTPM=optional"},
	} {
		next := w.options(w.build(2, "", "", change...), "")
		w.refused(say, next, say)
		previous := w.with(next, func(n *Options) { n.Server, n.Previous = filepath.Join(w.dir, "fresh"), o.Build })
		w.refused(say, previous, say)
		// Published elsewhere and copied here, it is found.
		elsewhere := w.with(next, func(n *Options) { n.Server = filepath.Join(t.TempDir(), "elsewhere") })
		w.publish(elsewhere)
		if err := os.CopyFS(filepath.Join(directory(elsewhere), "1"), os.DirFS(filepath.Join(directory(o), "1"))); err != nil {
			t.Fatal(err)
		}
		if err := w.verify(elsewhere); err == nil || !strings.Contains(err.Error(), say) {
			t.Errorf("verify, %s: %v", say, err)
		}
	}
}

// FAULTS 112 (R6, R7): channels that are empty, and channels that are overtaken
func TestChannels(t *testing.T) {
	w := newWorld(t)
	o := w.options(w.build(1, "", ""), "")
	w.publish(o)
	third := w.options(w.build(3, "", ""), "")
	third.Channel = manifest.Alpha
	w.publish(third)
	third.Channel = manifest.Beta // which is empty
	if r := w.publish(third); r.New {
		t.Error("the release was written again")
	}
	fourth := w.options(w.build(4, "", ""), "")
	said := says(&fourth)
	w.publish(fourth)
	if text := string(mustRead(t, filepath.Join(directory(o), "manifest.env"))); text != "STABLE=4\nBETA=3\nALPHA=3\nIMAGE=x86_64/test-os\n" {
		t.Errorf("manifest %q", text)
	}
	if all := strings.Join(*said, "\n"); !strings.Contains(all, "beta names 3, which is older than 4 in stable") || !strings.Contains(all, "alpha names 3") {
		t.Errorf("said %s", all)
	}
}

// FAULTS 112 (R11): a server without symbolic links, and links that became directories
func TestWithoutLinks(t *testing.T) {
	w := newWorld(t)
	o := w.options(w.build(1, "", ""), "")
	w.publish(o)
	link := filepath.Join(directory(o), "stable")
	if err := os.Remove(link); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(link, os.DirFS(filepath.Join(directory(o), "1"))); err != nil {
		t.Fatal(err)
	}
	next := w.options(w.build(2, "", ""), "")
	said := says(&next)
	w.publish(next)
	if all := strings.Join(*said, "\n"); !strings.Contains(all, "no link stable") {
		t.Errorf("said %s", all)
	}
	if err := w.verify(next); err != nil {
		t.Error(err)
	}
	if info, err := os.Lstat(link); err != nil || !info.IsDir() {
		t.Errorf("the copy is gone: %v", err)
	}
}
