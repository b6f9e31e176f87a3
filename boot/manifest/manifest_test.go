package manifest

import (
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/contract"
)

func full() *Manifest {
	return &Manifest{
		Stable: Entry{Version: 2025091101}, Beta: Entry{Version: 2026010100, Limited: true, Percent: 25}, Alpha: Entry{Version: contract.MaxVersion},
		PubKey: "release-key.pgp", Expires: time.Date(2031, 12, 31, 23, 59, 59, 0, time.UTC), Sequence: 17, Steps: []contract.Version{3, 2025091101},
		Withdrawn: []Withdrawal{{Stable, 2025101101}, {Beta, 3}, {Beta, 2025101101}},
		Unknown:   []Variable{{"MIRROR", "https://example.org/a?b"}, {"NOTE", "für alle; & | < > ( ) * ~ #"}, {"EMPTY", ""}},
	}
}

func TestRoundTrip(t *testing.T) {
	for _, m := range []*Manifest{full(), {Stable: Entry{Version: 1}}} {
		text, err := m.Encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := Parse(text)
		if err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("Parse(%s) = %+v, %v", text, got, err)
		}
	}
}

// A shell reads what we write as we mean it.
func TestShellAgrees(t *testing.T) {
	m := full()
	text, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), FileName)
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("sh", "-euc", `. "$1"; printf '%s\n' "$STABLE" "$BETA" "$ALPHA" "$ROLLOUT_BETA" "$PUBKEY" "$EXPIRES" "$SEQUENCE" "$MIRROR" "$NOTE" "$EMPTY"`, "sh", file).CombinedOutput()
	want := "2025091101\n2026010100\n9223372036854775807\n25\nrelease-key.pgp\n2031-12-31T23:59:59Z\n17\n" + m.Unknown[0].Value + "\n" + m.Unknown[1].Value + "\n\n"
	if err != nil || string(out) != want {
		t.Errorf("sh: %v\n%s\nwant\n%s", err, out, want)
	}
}

func TestParse(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want Manifest
	}{
		"the least":       {"STABLE=1", Manifest{Stable: Entry{Version: 1}}},
		"empty channels":  {"ALPHA=\nBETA=\nSTABLE=3\nPUBKEY=\n", Manifest{Stable: Entry{Version: 3}}},
		"quotes":          {"STABLE=\"3\"\nPUBKEY='a.pgp'\n", Manifest{Stable: Entry{Version: 3}, PubKey: "a.pgp"}},
		"comments":        {"# über\n\n  STABLE=3 \n\t# x\n", Manifest{Stable: Entry{Version: 3}}},
		"withdrawn":       {"WITHDRAWN_ALPHA=\nWITHDRAWN_BETA=7,5,7\nSTABLE=3\nWITHDRAWN_STABLE=5\n", Manifest{Stable: Entry{Version: 3}, Withdrawn: []Withdrawal{{Stable, 5}, {Beta, 5}, {Beta, 7}}}},
		"not withdrawn":   {"STABLE=3\nWITHDRAWN_ROLLOUT_BETA=5\n", Manifest{Stable: Entry{Version: 3}, Unknown: []Variable{{"WITHDRAWN_ROLLOUT_BETA", "5"}}}},
		"rollout of none": {"STABLE=3\nROLLOUT_STABLE=0\n", Manifest{Stable: Entry{Version: 3, Limited: true}}},
		"one step":        {"STABLE=3\nSTEPS=2\n", Manifest{Stable: Entry{Version: 3}, Steps: []contract.Version{2}}},
		"no step":         {"STABLE=3\nSTEPS=\n", Manifest{Stable: Entry{Version: 3}}},
		"others":          {"STABLE=3\nX_1=a\n", Manifest{Stable: Entry{Version: 3}, Unknown: []Variable{{"X_1", "a"}}}},
	} {
		got, err := Parse([]byte(c.text))
		if err != nil || !reflect.DeepEqual(*got, c.want) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

// FAULTS 3
func TestParseRefused(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"", "does not define STABLE"},
		{"BETA=1\n", "does not define STABLE"},
		{"STABLE=\n", "does not define STABLE"},
		{"STABLE=0\n", "version"},
		{"STABLE=-1\n", "version"},
		{"STABLE=01\n", "version"},
		{"STABLE=1a\n", "version"},
		{"STABLE=1 # the first\n", `has the note "the first" after it: write that in a line of its own, which starts with '#', and leave "1" here`},
		{"STABLE=9223372036854775808\n", "version"},
		{"STABLE=1\nSTABLE=1\n", "line 2: STABLE is set twice"},
		{"STABLE=1\nSTABLE=\n", "set twice"},
		{"STABLE=1\nX=1\nX=2\n", "set twice"},
		{"STABLE=1\r\n", "save the file with Unix line ends"},
		{"STABLE=1\x00\n", "control character"},
		{"STABLE=1\nPUBKEY=a\vb", "control character"},
		{"export STABLE=1\n", "write STABLE=1"},
		{"STABLE =1\n", "write STABLE=1"},
		{"STABLE\n", "not an assignment like"},
		{"stable=12\n", "write STABLE=12"}, // FAULTS 112: words
		{"\ufeffSTABLE=1\n", "byte order mark"},
		{" <!DOCTYPE html><title>Login</title>", "a network that wants a login"},
		{"Stable = 1\n", "write STABLE=1"},
		{"1A=1\n", "not an assignment like"},
		{"STABLE= 1\n", "needs quotes"},
		{"STABLE=1 2\n", "needs quotes"},
		{"STABLE=1 # one\n", "in a line of its own"},
		{"STABLE=1;BETA=2\n", "needs quotes"},
		{"STABLE=$(id)\n", "needs quotes"},
		{"STABLE=1\nX=$HOME\n", "needs quotes"},
		{"STABLE=1\nX=\"$HOME\"\n", "might expand"},
		{"STABLE=1\nX=\"`id`\"\n", "might expand"},
		{"STABLE=1\nX='a'b'c'\n", "might expand"},
		{"STABLE=1\nX=\"a\n", "needs quotes"},
		{"STABLE=1\nX=a\\\n", "needs quotes"},
		{"STABLE=1\nX=~\n", "needs quotes"},
		{"STABLE=1\nPUBKEY=../key\n", "PUBKEY"},
		{"STABLE=1\nPUBKEY=/etc/key\n", "PUBKEY"},
		{"STABLE=1\nPUBKEY=.key\n", "PUBKEY"},
		{"STABLE=1\nPUBKEY=..\n", "PUBKEY"},
		{"STABLE=1\nPUBKEY=-k\n", "PUBKEY"},
		{"STABLE=1\nPUBKEY=manifest.env\n", "PUBKEY"},
		{"STABLE=1\nPUBKEY=stable\n", "PUBKEY"},
		{"STABLE=1\nPUBKEY=17\n", "PUBKEY"},
		{"STABLE=1\nPUBKEY=" + strings.Repeat("k", 129) + "\n", "PUBKEY"},
		{"STABLE=1\nEXPIRES=2031-12-31\n", "EXPIRES"},
		{"STABLE=1\nEXPIRES=2031-12-31T23:59:59+01:00\n", "EXPIRES"},
		{"STABLE=1\nEXPIRES=2031-02-30T23:59:59Z\n", "EXPIRES"},
		{"STABLE=1\nEXPIRES=1969-12-31T23:59:59Z\n", "EXPIRES"},
		{"STABLE=1\nSTEPS=2,2\n", "STEPS wants versions in ascending order"},
		{"STABLE=1\nSTEPS=3,2\n", "STEPS wants versions in ascending order"},
		{"STABLE=1\nSTEPS=2,\n", "not a row of versions"},
		{"STABLE=1\nSTEPS=0\n", "not a row of versions"},
		{"STABLE=1\nSTEPS=2 3\n", "needs quotes"},
		{"STABLE=1\nSTEPS=" + strings.Repeat("1,", 64) + "1\n", "STEPS names 65 releases"},
		{"STABLE=1\nSEQUENCE=0\n", "SEQUENCE"},
		{"STABLE=1\nSEQUENCE=007\n", "SEQUENCE"},
		{"STABLE=1\nROLLOUT_STABLE=101\n", "percentage"},
		{"STABLE=1\nROLLOUT_STABLE=050\n", "percentage"},
		{"STABLE=1\nROLLOUT_STABLE=-1\n", "percentage"},
		{"STABLE=1\nROLLOUT_BETA=256\n", "percentage"},
		{"STABLE=1\nX=\xff\n", "UTF-8"},
		{"STABLE=1\nWITHDRAWN_BETA=2;3\n", "needs quotes"},
		{"STABLE=1\nWITHDRAWN_BETA=2,,3\n", "list of versions"},
		{"STABLE=1\nWITHDRAWN_BETA=0\n", "list of versions"},
		{strings.Repeat("#", MaxSize) + "\nSTABLE=1", "more than"},
	} {
		if m, err := Parse([]byte(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Parse(%.80q) = %+v, %v, want %q", c.text, m, err, c.want)
		}
	}
	var many strings.Builder
	many.WriteString("STABLE=1\n")
	for i := range maxUnknown + 1 {
		many.WriteString("X" + strings.Repeat("Y", i%60) + string(rune('A'+i/60)) + "=\n")
	}
	if _, err := Parse([]byte(many.String())); err == nil || !strings.Contains(err.Error(), "more than 64") {
		t.Errorf("many variables: %v", err)
	}
}

func TestEncodeRefused(t *testing.T) {
	for want, change := range map[string]func(m *Manifest){
		"does not define STABLE": func(m *Manifest) { m.Stable = Entry{} },
		"more than 256": func(m *Manifest) {
			for v := range contract.Version(300) {
				m.Withdrawn = append(m.Withdrawn, Withdrawal{Alpha, v + 1})
			}
		},
		"out of order":        func(m *Manifest) { m.Withdrawn = append(m.Withdrawn, Withdrawal{Beta, 1}) },
		"out of range":        func(m *Manifest) { m.Beta.Version = contract.MaxVersion + 1 },
		"ROLLOUT_BETA is 101": func(m *Manifest) { m.Beta.Percent = 101 },
		"ROLLOUT_STABLE is 5": func(m *Manifest) { m.Stable.Percent = 5 },
		"PUBKEY":              func(m *Manifest) { m.PubKey = "a/b" },
		"EXPIRES":             func(m *Manifest) { m.Expires = m.Expires.Add(1) },
		"SEQUENCE":            func(m *Manifest) { m.Sequence = 1 << 63 },
		"cannot be one":       func(m *Manifest) { m.Unknown[0].Name = "BETA" },
		"variable \"a\"":      func(m *Manifest) { m.Unknown[0].Name = "a" },
		"set twice":           func(m *Manifest) { m.Unknown[0].Name = "NOTE" },
		"has a value":         func(m *Manifest) { m.Unknown[0].Value = "a\nSTABLE=9" },
		"more than 64":        func(m *Manifest) { m.Unknown = make([]Variable, 65) },
		"would have":          func(m *Manifest) { m.Unknown[0].Value = strings.Repeat("x", MaxSize) },
	} {
		m := full()
		change(m)
		if text, err := m.Encode(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Encode = %q, %v, want %q", text, err, want)
		}
	}
}

func TestResolve(t *testing.T) {
	m := &Manifest{Stable: Entry{Version: 3}, Alpha: Entry{Version: 5}}
	for c, want := range map[Channel]struct {
		version contract.Version
		from    Channel
	}{Stable: {3, Stable}, Beta: {3, Stable}, Alpha: {5, Alpha}} {
		if e, from, err := m.Resolve(c); err != nil || e.Version != want.version || from != want.from {
			t.Errorf("Resolve(%s) = %v of %s, %v", c, e, from, err)
		}
	}
	if err := m.Set(Beta, Entry{Version: 4}); err != nil {
		t.Fatal(err)
	}
	if e, from, err := m.Resolve(Beta); err != nil || e.Version != 4 || from != Beta {
		t.Errorf("Resolve(beta) = %v of %s, %v", e, from, err)
	}
	m.Alpha = Entry{}
	if e, from, err := m.Resolve(Alpha); err != nil || e.Version != 4 || from != Beta {
		t.Errorf("Resolve(alpha) = %v of %s, %v", e, from, err)
	}
	for _, c := range []Channel{"", "Stable", "nightly"} {
		if _, err := ParseChannel(string(c)); err == nil {
			t.Errorf("ParseChannel(%q) succeeded", c)
		}
		if _, _, err := m.Resolve(c); err == nil {
			t.Errorf("Resolve(%q) succeeded", c)
		}
		if err := m.Set(c, Entry{}); err == nil {
			t.Errorf("Set(%q) succeeded", c)
		}
	}
	if _, _, err := new(Manifest).Resolve(Alpha); err == nil {
		t.Error("a manifest without a release resolved")
	}
}

// A hotfix that overtakes a less tried channel reaches its machines too.
// FAULTS 112 (R7): stable 3 overtakes beta 2
func TestOffers(t *testing.T) {
	tenth := Entry{Version: 3, Limited: true, Percent: 10}
	for name, c := range map[string]struct {
		m    Manifest
		c    Channel
		want []Offer
	}{
		"a hotfix":                 {Manifest{Stable: Entry{Version: 3}, Beta: Entry{Version: 2}}, Beta, []Offer{{Entry{Version: 3}, Stable}, {Entry{Version: 2}, Beta}}},
		"a hotfix for alpha":       {Manifest{Stable: Entry{Version: 1}, Beta: Entry{Version: 9}, Alpha: Entry{Version: 5}}, Alpha, []Offer{{Entry{Version: 9}, Beta}, {Entry{Version: 5}, Alpha}, {Entry{Version: 1}, Stable}}},
		"the usual order":          {Manifest{Stable: Entry{Version: 1}, Beta: Entry{Version: 2}}, Beta, []Offer{{Entry{Version: 2}, Beta}, {Entry{Version: 1}, Stable}}},
		"nothing of its own":       {Manifest{Stable: Entry{Version: 1}, Alpha: Entry{Version: 2}}, Beta, []Offer{{Entry{Version: 1}, Stable}}},
		"stable is never ahead":    {Manifest{Stable: Entry{Version: 1}, Beta: Entry{Version: 2}}, Stable, []Offer{{Entry{Version: 1}, Stable}}},
		"the same, for more there": {Manifest{Stable: Entry{Version: 3}, Beta: tenth}, Beta, []Offer{{Entry{Version: 3}, Beta}}},
		"the same, for less there": {Manifest{Stable: tenth, Beta: Entry{Version: 3}}, Beta, []Offer{{Entry{Version: 3}, Beta}}},
	} {
		if got, err := c.m.Offers(c.c); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, %v, want %v", name, got, err, c.want)
		}
	}
}

func TestRollout(t *testing.T) {
	const machines = 20000
	id := func(i int) []byte { return binary.BigEndian.AppendUint32([]byte("machine"), uint32(i)) }
	quarter := Entry{Version: 7, Limited: true, Percent: 25}
	half, next := quarter, quarter
	half.Percent, next.Version = 50, 8
	count, both := 0, 0
	for i := range machines {
		if quarter.Includes(id(i)) {
			count++
			if !half.Includes(id(i)) {
				t.Fatal("a machine of the first quarter is not in the first half")
			}
			if next.Includes(id(i)) {
				both++
			}
		}
		if (Entry{Version: 7, Limited: true}).Includes(id(i)) || !(Entry{Version: 7, Limited: true, Percent: 100}).Includes(id(i)) || !(Entry{Version: 7}).Includes(id(i)) {
			t.Fatal("none, all or no limit is not what it says")
		}
	}
	if count < machines*24/100 || count > machines*26/100 {
		t.Errorf("25 %% of %d machines are %d", machines, count)
	}
	if both > count/3 {
		t.Errorf("%d of %d machines come first with the next release too", both, count)
	}
}

func TestNames(t *testing.T) {
	if got := ArchiveSignatureName(12); got != "12/12.tar.gz.pgp" {
		t.Error(got)
	}
}

func FuzzParse(f *testing.F) {
	text, err := full().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte("ALPHA=\nBETA='1'\nSTABLE=\"3\"\n# x\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := Parse(text)
		if err != nil {
			return
		}
		again, err := m.Encode()
		if err != nil {
			t.Fatalf("parsed and not encodable: %v", err)
		}
		if back, err := Parse(again); err != nil || !reflect.DeepEqual(back, m) {
			t.Fatalf("%+v became %+v, %v", m, back, err)
		}
	})
}
