package prompt_test

import (
	"encoding/json"
	"errors"
	mrand "math/rand/v2"
	"regexp"
	"strings"
	"testing"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/phrase"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/rootheader"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
)

var phrasePattern = regexp.MustCompile(`This machine's (?:NEW PHRASE:\n\n    |phrase:  )([a-z]+ [a-z]+ [a-z]+ [a-z]+)\n`)

// phrases are those that were shown since the console was last looked at.
func phrases(m *machinetest.Machine) (shown []string) {
	for _, match := range phrasePattern.FindAllStringSubmatch(m.Printed.String(), -1) {
		shown = append(shown, match[1])
	}
	m.Printed.Reset()
	return shown
}

// wishesPhrase is root of the running system.
func wishesPhrase(m *machinetest.Machine) { m.RootFiles()[rootpart.Shared+"/"+phrase.Wish] = nil }

// asksForPhrase starts the machine with the wish, and returns what it shows.
func asksForPhrase(m *machinetest.Machine, typed ...string) []string {
	m.T.Helper()
	wishesPhrase(m)
	m.Typed = typed
	m.Printed.Reset()
	m.Ends("system")
	if _, left := m.RootFiles()[rootpart.Shared+"/"+phrase.Wish]; left || len(m.Typed) > 0 {
		m.T.Errorf("the wish stays (%t), or %q was not asked for:\n%s", left, m.Typed, m.Printed.String())
	}
	return phrases(m)
}

// changesPhrase changes what the header says of the phrase.
func changesPhrase(m *machinetest.Machine, change func(c *luks2.Change, n int, token luks2.Token) error) {
	m.T.Helper()
	header, err := m.Header()
	m.Must(err)
	s, err := m.Partition(layout.Root)
	m.Must(err)
	m.Must(header.Change(m.Random, s, func(c *luks2.Change) error {
		for n, token := range header.Tokens() {
			if token.Type == rootheader.PhraseToken {
				return change(c, n, token)
			}
		}
		return errors.New("it has no phrase: this proves nothing")
	}))
	m.Must(s.Sync())
}

// dropsPhrase takes the phrase out of the header, as the header of an earlier release has none.
func dropsPhrase(m *machinetest.Machine) {
	m.T.Helper()
	changesPhrase(m, func(c *luks2.Change, n int, _ luks2.Token) error { return c.RemoveToken(n) })
}

// all reports whether the phrase was shown, and no other.
func all(shown []string, want string) bool {
	for _, s := range shown {
		if s != want {
			return false
		}
	}
	return len(shown) > 0
}

// The phrase is shown with the recovery key, and before each prompt of a boot that the TPM
// knows. Another firmware does not get it, nor is there one where the header has lost it; an older
// header shows it, as that header does on any disk. Accepted, and with another secret, the machine
// has the phrase that it had. FAULTS 109
func TestPhrase(t *testing.T) {
	m := machinetest.New(t, machinetest.Pinned)
	m.Ends("system")
	for _, shown := range strings.Split(m.Printed.String(), "\033[3J") {
		if n := strings.Count(shown, "\n"); n >= 25 { // the recovery key, and its question with the phrase
			t.Errorf("a page of %d lines:\n%s", n+1, shown)
		}
	}
	first := phrases(m)
	if len(first) != 1 {
		t.Fatalf("the first boot shows %q", first)
	}
	words := first[0]
	m.SetsPIN("1234")
	if !all(phrases(m), words) {
		t.Fatal("setting a PIN shows other words, or none")
	}
	before := m.HeaderArea()
	m.StartsBy("1234")
	if !all(phrases(m), words) {
		t.Error("not shown before the PIN")
	}
	m.StartsBy("k", m.RecoveryKey(), "n") // forgotten
	if !all(phrases(m), words) {
		t.Error("not shown before the recovery key")
	}
	m.Extra = "new firmware"
	m.StartsBy(m.RecoveryKey(), "y")
	text := m.Printed.String()
	if shown := phrases(m); len(shown) > 0 || !strings.Contains(text, "cannot show its phrase: the TPM does not give it to what was started") {
		t.Errorf("another firmware shows %q:\n%s", shown, text)
	}
	m.StartsBy("1234")
	if !all(phrases(m), words) {
		t.Error("not shown once the machine was accepted")
	}

	dropsPhrase(m)
	m.StartsBy("1234")
	if text := m.Printed.String(); !strings.Contains(text, "This machine has no phrase yet.") || !strings.Contains(text, "If it has shown you one before: type nothing.") || len(phrases(m)) > 0 {
		t.Errorf("a header without one:\n%s", text)
	}
	m.StartsBy("1234")
	if !all(phrases(m), words) {
		t.Error("other words once the header has lost it")
	}
	part, err := m.Partition(layout.Root) // an older header, with the phrase of its time
	m.Must(err)
	_, err = part.WriteAt(before, 0)
	m.Must(err)
	m.Must(part.Sync())
	m.StartsBy("1234")
	if !all(phrases(m), words) {
		t.Error("an older header shows other words than it had")
	}
}

// A machine of an earlier release gets its phrase at its next start, without a question, and
// keeps it over updates and new secrets. FAULTS 109
func TestPhraseOfEarlierRelease(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	dropsPhrase(m)
	m.OpensByItself()
	shown := asksForPhrase(m, "")
	if len(shown) != 1 {
		t.Fatalf("it shows %q", shown)
	}
	m.Renewed(false)
	if again := asksForPhrase(m, ""); !all(again, shown[0]) {
		t.Errorf("after a new secret it shows %q, want %q", again, shown)
	}
	m.Fetch(machinetest.NewRelease(t, 2, 5, machinetest.Pinned))
	m.OpensByItself()
	m.Bless()
	m.OpensByItself()
	if again := asksForPhrase(m, ""); !all(again, shown[0]) {
		t.Errorf("after an update it shows %q, want %q", again, shown)
	}
}

// The running system can ask for another phrase, which counts once somebody has confirmed it;
// declined in any way it stays. FAULTS 109
func TestNewPhrase(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	words := asksForPhrase(m, "")[0]
	for name, typed := range map[string][]string{"nobody": nil, "no": {"n"}, "shown and declined": {"y", ""}, "shown to nobody": {"y"}} {
		if shown := asksForPhrase(m, typed...); shown[0] != words || len(shown) > 1 != (len(typed) > 0 && typed[0] == "y") {
			t.Errorf("%s: it shows %q, want %q first", name, shown, words)
		}
	}
	shown := asksForPhrase(m, "y", "y")
	if len(shown) != 2 || shown[0] != words || shown[1] == words {
		t.Fatalf("it shows %q", shown)
	}
	if again := asksForPhrase(m, ""); !all(again, shown[1]) {
		t.Errorf("afterwards it shows %q, want %q", again, shown[1])
	}
	m.OpensByItself() // asked once
}

// Cut anywhere, a machine that makes another phrase has the one before or the new one.
func TestNewPhraseCut(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	words := asksForPhrase(m, "")[0]
	wishesPhrase(m)
	m.Printed.Reset()
	m.Typed = []string{"y", "y"}
	states, end := m.RecordOnce(mrand.New(mrand.NewPCG(45, 46)))
	shown := phrases(m)
	if end != "system" || len(shown) != 2 {
		t.Fatalf("ends in %s, shows %q:\n%s", end, shown, m.Said.String())
	}
	news := 0
	for _, s := range states {
		m.PowerOn(s.World)
		switch again := asksForPhrase(m, ""); {
		case all(again, shown[1]):
			news++
		case !all(again, words):
			t.Errorf("%s: it shows %q, want %q or %q", s.How, again, words, shown[1])
		}
	}
	if news == 0 || news == len(states) {
		t.Errorf("the new phrase after %d of %d cuts", news, len(states))
	}
}

// laterForm has a later release keep the phrase on the root partition, and returns what its header
// keeps.
func laterForm(m *machinetest.Machine) json.RawMessage {
	m.T.Helper()
	_, volumeKey, secret := m.Unlocked()
	luks2.Wipe(volumeKey)
	defer secret.Wipe()
	box, err := secret.Box(m.Random, "phrase", []byte{2})
	m.Must(err)
	m.RootFiles()[rootpart.PhraseFile] = box
	kept, err := json.Marshal(box)
	m.Must(err)
	return kept
}

// What a later release has written of the phrase is left as it is, costs no start, and gives way to
// a phrase that somebody asks for. What is damaged, or calls itself a later release's where anybody
// can write, is written again, with the words that it had.
func TestPhraseNotUnderstood(t *testing.T) {
	for name, c := range map[string]struct {
		sealed, why string
		stays, told bool
	}{
		"of a later release":            {`{"version":9}`, "it is of a later release", true, false},
		"called one of a later release": {`{"version":9}`, "it is of a later release", false, true},
		"damaged":                       {`[]`, "what the disk has of it is damaged", false, false},
		"of an unknown kind":            {`{"version":1,"kind":"other"}`, "what the disk has of it is damaged", false, false},
	} {
		m := machinetest.WithPIN(t, "1234")
		m.StartsBy("1234")
		words := phrases(m)[0]
		var kept json.RawMessage
		if c.stays {
			kept = laterForm(m)
		}
		changesPhrase(m, func(ch *luks2.Change, n int, token luks2.Token) error {
			token.Fields["sealed"] = []byte(c.sealed)
			if kept != nil {
				token.Fields["kept"] = kept
			}
			return ch.SetToken(n, token)
		})
		m.StartsBy("1234")
		if text := m.Printed.String(); !strings.Contains(text, "cannot show its phrase: "+c.why) || strings.Contains(text, hadOther) != c.told || len(phrases(m)) > 0 != c.told {
			t.Errorf("%s: it says:\n%s", name, text)
		}
		if left := strings.Contains(m.Said.String(), "the phrase was left as it is"); left != c.stays {
			t.Errorf("%s: it is left as it is: %t:\n%s", name, left, m.Said.String())
		}
		if told := strings.Contains(m.Said.String(), altered); told != c.told {
			t.Errorf("%s: it warns: %t:\n%s", name, told, m.Said.String())
		}
		m.StartsBy("1234")
		if shown := phrases(m); all(shown, words) == c.stays {
			t.Errorf("%s: it shows %q, and has shown %q", name, shown, words)
		}
		wishesPhrase(m)
		m.StartsBy("1234", "y", "y")
		shown := phrases(m)
		m.StartsBy("1234")
		if again := phrases(m); len(shown) == 0 || shown[len(shown)-1] == words || !all(again, shown[len(shown)-1]) {
			t.Errorf("%s: it shows %q, and then %q", name, shown, again)
		}
	}
}

// A sealed object that the TPM cannot load costs the owner of a machine with a PIN nothing but
// a line before the prompt, and the next start has it again, the words as they were: they lie
// under the machine secret, too. FAULTS 109
func TestPhraseTorn(t *testing.T) {
	m := machinetest.WithPIN(t, "1234")
	m.StartsBy("1234")
	words := phrases(m)
	changesPhrase(m, func(c *luks2.Change, n int, token luks2.Token) error {
		sealed, err := policy.ParseSealedPhrase(token.Fields["sealed"])
		if err != nil {
			return err
		}
		sealed.Private[len(sealed.Private)/2] ^= 1
		if token.Fields["sealed"], err = sealed.Encode(); err != nil {
			return err
		}
		return c.SetToken(n, token)
	})
	m.StartsBy("1234")
	if text := m.Printed.String(); !strings.Contains(text, "cannot show its phrase: the TPM does not give it.") || len(phrases(m)) > 0 {
		t.Errorf("it says:\n%s", text)
	}
	if !strings.Contains(m.Said.String(), "the phrase is sealed again") {
		t.Errorf("it says nothing of the phrase:\n%s", m.Said.String())
	}
	m.StartsBy("1234")
	if again := phrases(m); len(words) != 1 || !all(again, words[0]) {
		t.Errorf("it shows %q, want %q", again, words)
	}
}

// A machine that never had a TPM has no phrase, and says so in a line that alarms nobody; one
// whose TPM is gone says that.
func TestPhraseWithoutTPM(t *testing.T) {
	for name, c := range map[string]struct {
		later bool
		want  string
	}{"never": {false, "This machine has no TPM, and so no phrase to show."}, "gone": {true, "cannot show its phrase: its TPM is gone."}} {
		m := machinetest.New(t, machinetest.OptionalTPM)
		if !c.later {
			m.NoTPM = tpm.ErrAbsent
		}
		m.Owner = true
		m.Ends("system")
		m.Owner = false
		if shown := phrases(m); len(shown) == 1 != c.later {
			t.Errorf("%s: the first boot shows %q", name, shown)
		}
		m.NoTPM = tpm.ErrAbsent
		if end := m.StartsTyped(); end != "system" || !strings.Contains(m.Printed.String(), c.want) {
			t.Errorf("%s: it ends in %s:\n%s", name, end, m.Printed.String())
		}
	}
}

// Cut anywhere, the start that gives a machine of an earlier release its phrase leaves none or
// a whole one, and the next one opens by itself.
func TestFirstPhraseCut(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	dropsPhrase(m)
	states, end := m.RecordOnce(mrand.New(mrand.NewPCG(47, 48)))
	if end != "system" || len(m.Written("")) < 2 {
		t.Fatalf("ends in %s, having written %q", end, m.Ops)
	}
	for _, s := range states {
		m.PowerOn(s.World)
		m.OpensByItself()
		if shown := asksForPhrase(m, ""); len(shown) != 1 {
			t.Errorf("%s: it shows %q", s.How, shown)
		}
	}
}

// A TPM that cannot keep a phrase costs no start, says so at the prompt, and leaves no note.
func TestPhraseOfSmallTPM(t *testing.T) {
	m := machinetest.WithPIN(t, "1234")
	neverHad(m)
	m.NoPhrases = true
	m.Ops = nil
	for range 2 {
		text, words := shows(m)
		if !strings.Contains(text, "This machine's TPM cannot keep a phrase") || strings.Contains(text, noneYet) || len(words) > 0 {
			t.Errorf("it says:\n%s", text)
		}
		if !strings.Contains(m.Said.String(), "the phrase was not kept: sealing the phrase: the TPM lacks what is needed: TPM2_PolicyCommandCode") {
			t.Errorf("the log has:\n%s", m.Said.String())
		}
	}
	if written := m.Written(rootpart.UnseenFile); len(written) > 0 {
		t.Errorf("it writes %q", written)
	}
	m.NoPhrases = false // as after an update of its firmware
	if text, words := shows(m); !strings.Contains(text, noneYet) || !strings.Contains(text, hasOne) || len(words) != 1 {
		t.Errorf("it shows %q:\n%s", words, text)
	}
}
