package machine

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/pgp"
	"halogenos.internal/boot/release"
	"halogenos.internal/uroot-cmds/ota/offer"
	"halogenos.internal/uroot-cmds/ota/otatest"
)

const year = 365 * 24 * time.Hour

// asleep is a world whose running image has pinned a key that expires after a year,
// and whose clock has gone on.
func asleep(t *testing.T, life, later time.Duration) *world {
	t.Helper()
	w := newWorld(t)
	w.key = otatest.NewKeyFor(t, life)
	w.two = otatest.Make(t, otatest.Spec{Version: 2, Key: w.key, Image: otatest.Image(blocks, 1, 0, 0)})
	w.install(layout.SlotA, w.two, "test-os_2.efi")
	w.boot(layout.SlotA, w.two)
	w.m.Now = func() time.Time { return otatest.Date.Add(later) }
	return w
}

// offers publishes version 3, signed by a key, and shows a certificate.
func (w *world) offers(signer *otatest.Key, shown []byte, sign bool) {
	w.t.Helper()
	w.three = otatest.Make(w.t, otatest.Spec{Version: 3, Key: signer, Image: otatest.Image(blocks, 1, 12, 2)})
	w.site.Key = signer
	w.site.Put(otatest.Directory+"release-key.pgp", shown)
	w.site.Publish(w.three, nil)
	delete(w.site.Files, otatest.Directory+"manifest.env.pgp")
	if sign {
		w.site.SignManifest()
	}
}

// A machine learns what has become of the release key since its image was made.
// FAULTS 112 (R3): renewed expiry, a new subkey, a machine that slept for years
func TestLearnsTheKey(t *testing.T) {
	for name, c := range map[string]struct {
		life, later time.Duration
		change      func(k *otatest.Key) (signer *otatest.Key, shown []byte)
		want        string // "" is taken
	}{
		"nothing new":              {0, time.Hour, func(k *otatest.Key) (*otatest.Key, []byte) { return k, k.Public }, ""},
		"expired, and not renewed": {year, 3 * year, func(k *otatest.Key) (*otatest.Key, []byte) { return k, k.Public }, "must renew it"},
		"renewed before it passed": {year, 3 * year, func(k *otatest.Key) (*otatest.Key, []byte) {
			r := k.Renewed(otatest.Date.Add(year/2), 10*year)
			return r, r.Public
		}, ""},
		"renewed after it had passed": {year, 3 * year, func(k *otatest.Key) (*otatest.Key, []byte) {
			r := k.Renewed(otatest.Date.Add(2*year), 10*year)
			return r, r.Public
		}, ""},
		"renewed, and not shown": {year, 3 * year, func(k *otatest.Key) (*otatest.Key, []byte) {
			return k.Renewed(otatest.Date.Add(2*year), 10*year), k.Public
		}, "must renew it"},
		"a new subkey": {0, 3 * year, func(k *otatest.Key) (*otatest.Key, []byte) {
			r := k.WithSubkey(otatest.Date.Add(2 * year))
			return r, r.Public
		}, ""},
		"a new subkey, and not shown":  {0, 3 * year, func(k *otatest.Key) (*otatest.Key, []byte) { return k.WithSubkey(otatest.Date.Add(2 * year)), k.Public }, "signature is by the OpenPGP key"},
		"another distributor's":        {0, time.Hour, func(*otatest.Key) (*otatest.Key, []byte) { k := otatest.NewKey(t); return k, k.Public }, "another distributor's"},
		"their release, our key shown": {0, time.Hour, func(k *otatest.Key) (*otatest.Key, []byte) { return otatest.NewKey(t), k.Public }, "signature is by the OpenPGP key"},
	} {
		for _, signed := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				t.Parallel() // some wait until a publisher may have ended
				w := asleep(t, c.life, c.later)
				signer, shown := c.change(w.key)
				w.offers(signer, shown, signed)
				out, err := w.fetch()
				if c.want != "" {
					if err == nil || !strings.Contains(err.Error(), c.want) && !(signed && strings.Contains(err.Error(), "do not belong together")) {
						t.Errorf("%+v, %v, want %q", out, err, c.want)
					}
					return
				}
				if err != nil || out.Verdict != offer.Take || !out.Staged {
					t.Fatalf("%+v, %v", out, err)
				}
				// The boot checks the signature again, by what was learned.
				learned, key := !bytes.Equal(shown, w.key.Public), w.key.Public
				if file, err := os.ReadFile(w.path(filepath.Join(stateDirectory, "fetch/3", release.KeyFile))); learned != (err == nil) {
					t.Errorf("%d bytes of key beside the release: %v", len(file), err)
				} else if learned {
					key = file
				}
				k, err := pgp.ParseKey(key)
				must(t, err)
				if err := k.Verify(bytes.NewReader(w.three.Text), w.three.Head.Signature, w.m.Now()); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// What the server shows of the key is learned also where the release is refused, since it
// may be refused for that. FAULTS 112 (R3)
func TestLearnsFromWhatIsRefused(t *testing.T) {
	for _, signed := range []bool{false, true} {
		w := asleep(t, year, year/2)
		wiser := w.key.WithSubkey(otatest.Date.Add(year / 4))
		w.offers(otatest.NewKey(t), wiser.Public, signed)
		if out, err := w.fetch(); err == nil {
			t.Fatalf("%+v", out)
		}
		known, err := os.ReadFile(w.path(filepath.Join(stateDirectory, keyFile)))
		must(t, err)
		k, err := pgp.ParseKey(known)
		must(t, err)
		if good, err := k.SigningKeys(w.m.Now()); err != nil || len(good) != 2 {
			t.Errorf("signed manifest %v: keys that sign are %v (%v)", signed, good, err)
		}
		stranger := otatest.NewKey(t)
		w.offers(stranger, stranger.Public, signed)
		if out, err := w.fetch(); err == nil || !strings.Contains(err.Error(), "another distributor's") {
			t.Fatalf("%+v, %v", out, err)
		}
		if again, err := os.ReadFile(w.path(filepath.Join(stateDirectory, keyFile))); err != nil || !bytes.Equal(again, known) {
			t.Errorf("another's key changed what is known: %v", err)
		}
	}
}

// What was learned is kept: a server that shows an old copy later changes nothing.
func TestKeepsWhatItLearned(t *testing.T) {
	w := asleep(t, year, 3*year)
	renewed := w.key.Renewed(otatest.Date.Add(year/2), 10*year)
	w.offers(renewed, renewed.Public, false)
	if _, err := w.m.Check(t.Context(), Options{}); err != nil {
		t.Fatal(err)
	}
	w.offers(renewed, w.key.Public, false)
	if out, err := w.fetch(); err != nil || out.Verdict != offer.Take {
		t.Errorf("%+v, %v", out, err)
	}
	// A copy that is damaged is not taken for none.
	for _, text := range [][]byte{[]byte("x"), otatest.NewKey(t).Public, nil} {
		w.write(filepath.Join(stateDirectory, keyFile), text)
		if _, err := w.m.Check(t.Context(), Options{}); err == nil || !strings.Contains(err.Error(), "rm "+w.path(filepath.Join(stateDirectory, keyFile))) {
			t.Errorf("%q: %v", text, err)
		}
	}
	// One of another key is not called damaged: the root partition was kept.
	w.write(filepath.Join(stateDirectory, keyFile), otatest.NewKey(t).Public)
	if _, err := w.m.Check(t.Context(), Options{}); err == nil || !strings.Contains(err.Error(), "an installation with another release key has left it") || strings.Contains(err.Error(), "damaged") || strings.Contains(err.Error(), "server") {
		t.Error(err)
	}
	// An image that says as much needs no copy.
	must(t, os.Remove(w.path(filepath.Join(stateDirectory, keyFile))))
	w.two = otatest.Make(t, otatest.Spec{Version: 2, Key: renewed, Image: otatest.Image(blocks, 1, 0, 0)})
	w.boot(layout.SlotA, w.two)
	w.offers(renewed, renewed.Public, false)
	if _, err := w.m.Check(t.Context(), Options{}); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(w.path(filepath.Join(stateDirectory, keyFile))); err == nil {
		t.Error("a copy was kept")
	}
}

// FAULTS 112 (R17): the status after a fetched release was given up, and the way back
func TestRetry(t *testing.T) {
	w := newWorld(t)
	if _, err := w.fetch(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.m.GiveUp("too loud"); err != nil {
		t.Fatal(err)
	}
	s, err := w.m.Status(t.Context())
	if err != nil || s.Fetching != 0 || s.Staged != nil || s.Failed[3] == "" {
		t.Errorf("fetching %s, staged %v, failed %v, %v", s.Fetching, s.Staged, s.Failed, err)
	}
	if _, err := os.Stat(w.path(filepath.Join(stateDirectory, "fetch/3"))); err == nil {
		t.Error("what was fetched takes its room still")
	}
	if _, err := w.fetch(); err == nil || !strings.Contains(err.Error(), "ota retry 3") {
		t.Errorf("fetched again: %v", err)
	}
	if err := w.m.Retry(4, ""); err == nil || !strings.Contains(err.Error(), "it has 3") {
		t.Errorf("a version that is not on the list: %v", err)
	}
	must(t, w.m.Retry(3, "quieter now"))
	if out, err := w.fetch(); err != nil || !out.Staged {
		t.Errorf("%+v, %v", out, err)
	}
	w.complete()
	// What has failed by itself is taken off likewise, for the boot too.
	w.journal(journal.Entry{Kind: journal.Failed, Version: 5, Reason: "it hung"})
	must(t, w.m.Retry(5, ""))
	if got := journal.Failures(journal.Parse([]byte(w.read(filepath.Join(stateDirectory, journal.Name))))); len(got) != 0 {
		t.Errorf("failed: %v", got)
	}
	w.journal(journal.Entry{Kind: journal.Failed, Version: 5, Reason: "it hung again"})
	if s, err := w.m.Status(t.Context()); err != nil || s.Failed[5] == "" {
		t.Errorf("failed again: %v, %v", s.Failed, err)
	}
	// An interrupted fetch of one that has been given up since is none.
	must(t, os.MkdirAll(w.path(filepath.Join(stateDirectory, "fetch/9.work")), 0o700))
	w.journal(journal.Entry{Kind: journal.Rollback, Version: 9}, journal.Entry{Kind: journal.Rollback, Version: 3})
	must(t, os.Remove(w.path(filepath.Join(stateDirectory, stagedFile))))
	if s, err := w.m.Status(t.Context()); err != nil || s.Fetching != 0 {
		t.Errorf("fetching %s, %v", s.Fetching, err)
	}
}

// FAULTS 112 (R1): somebody has had a number signed that would keep out every later one
func TestSequenceBound(t *testing.T) {
	key := otatest.NewKey(t)
	r := otatest.Make(t, otatest.Spec{Version: 1, Key: key, Image: otatest.Image(4, 1, 0, 0)})
	for text, want := range map[string]string{
		"SEQUENCE=9223372036854775800": "lower number",
		"SEQUENCE=70368744177672":      "lower number",
		"SEQUENCE=70368744177671":      "",
		"SEQUENCE=202611281830":        "",
		"SEQUENCE=20261128183000":      "",
	} {
		s := &offer.Self{Running: r.Contract, Seen: offer.Seen{Sequence: 7, Signed: true}, Signed: "auto", Now: otatest.Date.Add(time.Hour)}
		whole := []byte("STABLE=2\nPUBKEY=k\n" + text + "\n")
		_, _, err := s.Manifest(whole, key.Sign(whole))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
