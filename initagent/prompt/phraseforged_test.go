package prompt_test

import (
	"encoding/json"
	mrand "math/rand/v2"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/phrase"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/rootheader"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
)

const (
	noneYet  = "This machine has no phrase yet."
	hasOne   = "This machine has a phrase now."
	hadOther = "THIS DISK'S HEADER HAD ANOTHER PHRASE."
	lostOne  = "THE PHRASE OF BEFORE IS LOST"
	newWords = "This machine's NEW PHRASE:"
	notOurs  = "WARNING: the phrase that was shown in this start is not this machine's"
	altered  = "WARNING: what the disk's header had of the phrase is not what this machine has put there last"

	typedAltered = "THE DISK'S HEADER HAD A PHRASE THAT IS NOT THIS MACHINE'S, OR NOT ITS LAST ONE"
)

// neverHad makes a machine one of an earlier release, which has nothing of a phrase.
func neverHad(m *machinetest.Machine) {
	m.T.Helper()
	dropsPhrase(m)
	delete(m.RootFiles(), rootpart.PhraseFile)
}

// shows starts a machine with a PIN, and returns what it prints and which words it shows.
func shows(m *machinetest.Machine) (text string, words []string) {
	m.T.Helper()
	m.StartsBy("1234")
	text = m.Printed.String()
	return text, phrases(m)
}

// A machine with a PIN of an earlier release says that it has no phrase yet, and shows the first
// one in the start that has made it, which is the first of a system that is not on trial. FAULTS 109
func TestFirstPhraseIsShown(t *testing.T) {
	m := machinetest.WithPIN(t, "1234")
	neverHad(m)
	text, words := shows(m)
	if before, after, found := strings.Cut(text, hasOne); !found || !strings.Contains(before, noneYet) || !strings.Contains(after, newWords) || len(words) != 1 {
		t.Errorf("the first start says:\n%s", text)
	}
	if text, again := shows(m); !all(again, words[0]) || strings.Contains(text, newWords) {
		t.Errorf("the next start says:\n%s", text)
	}

	m = machinetest.WithPIN(t, "1234")
	m.Fetch(machinetest.NewRelease(t, 2, 5, machinetest.Pinned))
	m.StartsBy("1234", "1234") // it is staged, and on trial
	neverHad(m)
	for range 2 {
		if text, words := shows(m); !strings.Contains(text, noneYet) || len(words) > 0 {
			t.Errorf("the trial says:\n%s", text)
		}
	}
	m.Bless()
	text, words = shows(m)
	if !strings.Contains(text, hasOne) || len(words) != 1 {
		t.Errorf("after the bless it says:\n%s", text)
	}
	if _, again := shows(m); !all(again, words[0]) {
		t.Errorf("it shows %q, want %q", again, words)
	}
}

// Cut anywhere, the start that makes the first phrase of a machine with a PIN leaves one that is
// shown as a new one before it is shown at a prompt, and stays the same.
func TestFirstPhraseIsShownCut(t *testing.T) {
	m := machinetest.WithPIN(t, "1234")
	neverHad(m)
	m.Printed.Reset()
	m.Typed = []string{"1234"}
	states, end := m.RecordOnce(mrand.New(mrand.NewPCG(49, 50)))
	seen := phrases(m)
	if end != "system" || len(seen) != 1 {
		t.Fatalf("ends in %s, shows %q:\n%s", end, seen, m.Said.String())
	}
	pages := 0
	for _, s := range states {
		m.PowerOn(s.World)
		text, words := shows(m)
		if len(words) == 0 {
			t.Fatalf("%s: it shows none:\n%s", s.How, text)
		}
		page := strings.Contains(text, newWords)
		if page {
			pages++
		}
		if last := words[len(words)-1]; !page && last != seen[0] {
			t.Errorf("%s: it shows %q, which nobody has seen, and not %q", s.How, words, seen)
		} else if _, again := shows(m); !all(again, last) {
			t.Errorf("%s: it shows %q, and then %q", s.How, words, again)
		}
	}
	if pages == 0 || pages == len(states) {
		t.Errorf("a page after %d of %d cuts", pages, len(states))
	}
}

// plants seals words of somebody's own to this machine's boots, as anyone can who has it in hand,
// puts them into the header, and returns them.
func plants(m *machinetest.Machine, kept func(genuine json.RawMessage) json.RawMessage) string {
	m.T.Helper()
	key, err := policy.NewSecret(m.Random)
	m.Must(err)
	lock, volumeKey, secret := m.Unlocked()
	luks2.Wipe(volumeKey)
	secret.Wipe()
	sealed, err := tpm.OpenTransport(m.Emulator).SealPhrase(key, lock.Sealed)
	m.Must(err)
	text, err := sealed.Encode()
	m.Must(err)
	changesPhrase(m, func(c *luks2.Change, n int, token luks2.Token) error {
		token.Fields["sealed"], token.Fields["kept"] = text, kept(token.Fields["kept"])
		return c.SetToken(n, token)
	})
	return phrase.Of(key)
}

func genuine(kept json.RawMessage) json.RawMessage { return kept }
func junk(json.RawMessage) json.RawMessage         { return json.RawMessage(`"AAAA"`) }

// Words that somebody has sealed to this machine are shown by it once, are said not to be its own
// as soon as it has opened, and are never its own. FAULTS 109
func TestPhrasePlanted(t *testing.T) {
	m := machinetest.WithPIN(t, "1234")
	_, words := shows(m)
	for name, kept := range map[string]func(json.RawMessage) json.RawMessage{"beside the genuine box": genuine, "beside junk": junk} {
		theirs := plants(m, kept)
		text, shown := shows(m)
		if !slices.Equal(shown, []string{theirs, words[0]}) || !strings.Contains(text, hadOther) || !strings.Contains(m.Said.String(), notOurs) || !strings.Contains(m.Said.String(), altered) {
			t.Errorf("%s: it shows %q, theirs are %q:\n%s\n%s", name, shown, theirs, text, m.Said.String())
		}
		if text, again := shows(m); !all(again, words[0]) || strings.Contains(text, hadOther) || strings.Contains(m.Said.String(), "WARNING: what") {
			t.Errorf("%s: it shows %q, want %q:\n%s\n%s", name, again, words, text, m.Said.String())
		}
	}

	// With root's help nothing is left of the phrase but the words that somebody has planted.
	theirs := plants(m, junk)
	delete(m.RootFiles(), rootpart.PhraseFile)
	text, shown := shows(m)
	if !strings.Contains(text, lostOne) || len(shown) != 2 || shown[0] != theirs || shown[1] == theirs || shown[1] == words[0] {
		t.Errorf("with nothing left it shows %q:\n%s", shown, text)
	}
	if _, again := shows(m); !all(again, shown[1]) {
		t.Errorf("it shows %q, want %q", again, shown[1])
	}
}

// The phrase of before a new one, put back into the header, is shown once and does not come back
// into force. FAULTS 109
func TestOldPhrasePutBack(t *testing.T) {
	m := machinetest.WithPIN(t, "1234")
	m.StartsBy("1234")
	old := phrases(m)[0]
	var fields map[string]json.RawMessage
	changesPhrase(m, func(_ *luks2.Change, _ int, token luks2.Token) error { fields = token.Fields; return nil })
	wishesPhrase(m)
	m.StartsBy("1234", "y", "y")
	words := phrases(m)
	changesPhrase(m, func(c *luks2.Change, n int, token luks2.Token) error {
		token.Fields = fields
		return c.SetToken(n, token)
	})
	m.Absent = true
	if text, shown := shows(m); !slices.Equal(shown, []string{old, words[len(words)-1]}) || !strings.Contains(text, hadOther) || !strings.Contains(m.Said.String(), altered) {
		t.Errorf("the old one in place, it shows %q:\n%s\n%s", shown, text, m.Said.String())
	}
	m.Absent = false
	if text, again := shows(m); !all(again, words[len(words)-1]) || !strings.Contains(text, hadOther) {
		t.Errorf("nobody has seen that, and it says:\n%s", text)
	}
	if _, again := shows(m); !all(again, words[len(words)-1]) {
		t.Errorf("it shows %q, want %q", again, words)
	}
	// Where the PIN is forgotten the recovery key opens, and a new PIN comes with a new machine
	// secret: what was put back is not the machine's own under that one either.
	changesPhrase(m, func(c *luks2.Change, n int, token luks2.Token) error {
		token.Fields = fields
		return c.SetToken(n, token)
	})
	m.StartsBy("k", m.RecoveryKey(), "y", "1234", "1234", "1234")
	if text := m.Printed.String(); !strings.Contains(text, typedAltered) || !strings.Contains(text, "The PIN is set") || !strings.Contains(text, hadOther) {
		t.Errorf("the old one in place, the recovery key typed, it says:\n%s", text)
	}
	for range 2 {
		if _, again := shows(m); !all(again, words[len(words)-1]) {
			t.Errorf("after a new PIN it shows %q, want %q", again, words)
		}
	}
	theirs := plants(m, genuine)
	m.StartsBy("k", m.RecoveryKey(), "y", "1234", "1234", "1234")
	if text, shown := m.Printed.String(), phrases(m); shown[0] != theirs || !strings.Contains(text, typedAltered) {
		t.Errorf("another one in place, the recovery key typed, it shows %q:\n%s", shown, text)
	}
	if _, again := shows(m); !all(again, words[len(words)-1]) {
		t.Errorf("after a new PIN it shows %q, want %q", again, words)
	}
	copied := slices.Clone(m.RootFiles()[rootpart.PhraseFile])
	wishesPhrase(m)
	m.StartsBy("1234", "y", "y")
	words = phrases(m)
	m.RootFiles()[rootpart.PhraseFile] = copied // by root: the header has the newer one
	for range 2 {
		if _, again := shows(m); !all(again, words[len(words)-1]) {
			t.Errorf("beside an old copy it shows %q, want %q", again, words)
		}
	}
}

// Where a phrase is lost for good the machine says so until somebody has seen the new one, with a
// PIN or without.
func TestLostPhrase(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	words := asksForPhrase(m, "")[0]
	changesPhrase(m, func(c *luks2.Change, n int, token luks2.Token) error { return c.RemoveToken(n) })
	m.OpensByItself()
	if again := asksForPhrase(m, ""); !all(again, words) {
		t.Errorf("the header had none: it shows %q, want %q", again, words)
	}
	// As after a new machine secret of a release that knows no phrases.
	changesPhrase(m, func(c *luks2.Change, n int, token luks2.Token) error {
		token.Fields["kept"] = json.RawMessage(`"AAAA"`)
		return c.SetToken(n, token)
	})
	m.RootFiles()[rootpart.PhraseFile] = []byte("of another secret")
	m.Absent = true
	var shown []string
	for range 2 {
		m.Printed.Reset()
		m.Ends("system")
		if text := m.Printed.String(); !strings.Contains(text, lostOne) {
			t.Errorf("it says:\n%s", text)
		}
		shown = append(shown, phrases(m)...)
	}
	m.Absent = false
	m.Ends("system")
	shown = append(shown, phrases(m)...)
	if len(shown) != 3 || shown[0] == words || !all(shown, shown[0]) {
		t.Errorf("it shows %q", shown)
	}
	m.Printed.Reset()
	m.OpensByItself()
	if again := phrases(m); len(again) > 0 {
		t.Errorf("somebody has seen it, and it shows %q", again)
	}
	if again := asksForPhrase(m, ""); !all(again, shown[0]) {
		t.Errorf("it shows %q, want %q", again, shown[0])
	}
	m.RootFiles()[rootpart.UnseenFile] = []byte("anything") // root gains a page
	if m.Ends("system"); !all(phrases(m), shown[0]) {
		t.Error("a forged note shows other words, or none")
	}
	// A machine that nobody is at does not wait for somebody at every start.
	m.RootFiles()[rootpart.UnseenFile] = []byte(rootpart.LostPhrase)
	m.Absent = true
	for n := range 3 {
		if m.Ends("system"); !all(phrases(m), shown[0]) {
			t.Errorf("start %d shows other words, or none", n+1)
		}
	}
	m.OpensByItself()
	if _, left := m.RootFiles()[rootpart.UnseenFile]; left {
		t.Error("the note stays, although the phrase was shown often enough")
	}
	m.RootFiles()[rootpart.UnseenFile] = make([]byte, 1<<12) // as a directory is
	m.OpensByItself()
}

// The sealed machine secret, put in the phrase's place, is not unsealed there: where the TPM is not
// asked for the secret itself, since the header has two of it, a shell opens beside no secret.
// FAULTS 109
func TestSecretInPlaceOfPhrase(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	header, err := m.Header()
	m.Must(err)
	changesPhrase(m, func(c *luks2.Change, n int, token luks2.Token) error {
		for _, secret := range header.Tokens() {
			if secret.Type == rootheader.TPMToken {
				token.Fields["sealed"] = secret.Fields["sealed"]
				if _, err := c.AddToken(secret); err != nil {
					return err
				}
			}
		}
		return c.SetToken(n, token)
	})
	m.Printed.Reset()
	m.Typed = []string{""}
	m.Ends("recovery")
	if text := m.Printed.String(); !strings.Contains(text, "cannot show its phrase: what the disk has of it is damaged") || len(phrases(m)) > 0 {
		t.Errorf("it says:\n%s", text)
	}
}
