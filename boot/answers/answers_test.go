package answers

import (
	"encoding/json"
	"os"
	"reflect"
	"strings"
	"testing"

	"halogenos.internal/boot/testkit"
)

const hash = "$y$j9T$F5Jx5fExrKuPp53xLKQ..1$X3DX6M94c7o.9agCG9G317fhZg9SqC.5i5rd.RhAtQ7"

const whole = `{
  "version": 1,
  "language": "de_DE.UTF-8",
  "keyboard": "de(nodeadkeys)",
  "time_zone": "America/Argentina/Buenos_Aires",
  "host_name": "kitchen.example.org",
  "account": {"name": "alice", "full_name": "Alice Ä. O'Neill", "password_hash": "` + hash + `", "administrator": false},
  "automatic_updates": true
}
`

func TestParse(t *testing.T) {
	no, yes := false, true
	want := &Answers{
		Version: 1, Language: "de_DE.UTF-8", Keyboard: "de(nodeadkeys)", TimeZone: "America/Argentina/Buenos_Aires", HostName: "kitchen.example.org",
		Account:          &Account{Name: "alice", FullName: "Alice Ä. O'Neill", PasswordHash: hash, Administrator: &no},
		AutomaticUpdates: &yes,
	}
	a, err := Parse([]byte(whole))
	if err != nil || !reflect.DeepEqual(a, want) {
		t.Errorf("%+v, %v", a, err)
	}
	if a.Account.Administers() || !new(Account).Administers() {
		t.Error("who administers the machine")
	}
	if layout, variant := SplitKeyboard(a.Keyboard); layout != "de" || variant != "nodeadkeys" {
		t.Errorf("layout %q, variant %q", layout, variant)
	}
	if layout, variant := SplitKeyboard("us"); layout != "us" || variant != "" {
		t.Errorf("layout %q, variant %q", layout, variant)
	}
	if a, err := Parse([]byte(`{"version":1}`)); err != nil || !reflect.DeepEqual(a, &Answers{Version: 1}) {
		t.Errorf("nothing but a version: %+v, %v", a, err)
	}
}

// Each of these is refused, with words that lead to the fault.
func TestParseRefuses(t *testing.T) {
	account := func(fields string) string { return `{"version":1,"account":{"name":"alice",` + fields + `}}` }
	hashed := func(h string) string { return account(`"password_hash":"` + h + `"`) }
	for _, c := range []struct{ text, want string }{
		{"", "no JSON value"},
		{"{", "EOF"},
		{"{}", "has no version"},
		{`{"version":2,"colour":"red"}`, "has version 2"},
		{`{"version":1}x`, "after"},
		{`{"version":1,"Language":"C.UTF-8"}`, `spelt "language"`},
		{`{"version":1,"version":1}`, "comes twice"},
		{`{"version":1,"colour":"red"}`, "colour"},
		{"{\"version\":1,\"host_name\":\"\xff\"}", "UTF-8"},
		{`{"version":1}` + strings.Repeat(" ", MaxSize), "bytes"},
		{`{"version":1,"language":"de_DE"}`, "language"},
		{`{"version":1,"language":"../x.UTF-8"}`, "language"},
		{`{"version":1,"keyboard":"de,us"}`, "keyboard"},
		{`{"version":1,"keyboard":"de($(x))"}`, "keyboard"},
		{`{"version":1,"time_zone":"../../etc/passwd"}`, "time_zone"},
		{`{"version":1,"time_zone":"/etc/passwd"}`, "time_zone"},
		{`{"version":1,"time_zone":"a/b/c/d"}`, "time_zone"},
		{`{"version":1,"host_name":"-x"}`, "host_name"},
		{`{"version":1,"host_name":"x..y"}`, "host_name"},
		{`{"version":1,"host_name":"x\n"}`, "host_name"},
		{`{"version":1,"host_name":"localhost"}`, "localhost"},
		{`{"version":1,"host_name":"` + strings.Repeat("a", 60) + ".bcdef" + `"}`, "66 characters"},
		{`{"version":1,"account":{}}`, "account: name"},
		{`{"version":1,"account":{"name":"root:0"}}`, "account: name"},
		{`{"version":1,"account":{"name":"alice\n"}}`, "account: name"},
		{`{"version":1,"account":{"name":"alice"}}`, "has no password_hash"},
		{`{"version":1,"ask":["colour"]}`, `ask: "colour" is nothing that a first start asks for`},
		{`{"version":1,"ask":["account","account"]}`, "ask: account comes twice"},
		{`{"version":1,"host_name":"box","ask":["host_name"]}`, "ask: host_name has its answer"},
		{`{"version":1,"ask":"account"}`, "ask"},
		{account(`"password":"secret"`), "a password that can be read is not taken"},
		{account(`"password":"secret","password_hash":"` + hash + `"`), "a password that can be read is not taken"},
		{account(`"full_name":"a:b","password_hash":"` + hash + `"`), "full_name"},
		{account(`"full_name":"a\u0007","password_hash":"` + hash + `"`), "full_name"},
		{account(`"full_name":"` + strings.Repeat("a", 129) + `","password_hash":"` + hash + `"`), "full_name"},
		{hashed("secret"), "password_hash: is not a yescrypt hash"},
		{hashed("$6$abc$def"), "password_hash: is not a yescrypt hash"},
		{hashed(hash + `\n`), "password_hash: is not a yescrypt hash"},
		{hashed(strings.Replace(hash, "j9T", "jKT", 1)), "password_hash: is not a yescrypt hash"}, // 32 GiB
		{hashed("!" + hash), "password_hash: is not a yescrypt hash"},
	} {
		a, err := Parse([]byte(c.text))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.100s: %+v, %v; want %q", c.text, a, err, c.want)
		}
		if err != nil && (strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "$y$j")) {
			t.Errorf("the error shows a password: %v", err)
		}
	}
}

func TestPassword(t *testing.T) {
	for text, ok := range map[string]bool{"": false, "x": true, "pass:word äöü": true, "a\tb": false, "\x1b[A": false, strings.Repeat("a", 511): true, strings.Repeat("a", 512): false} {
		if err := Password([]byte(text)); (err == nil) != ok || err != nil && text != "" && strings.Contains(err.Error(), text) {
			t.Errorf("%.20q: %v", text, err)
		}
	}
}

// What libxcrypt itself makes is taken, at each cost.
func TestHashByLibxcrypt(t *testing.T) {
	perl := testkit.Need(t, "perl")
	for _, parameters := range []string{"j75", "j85", "j7T", "j8T", "j9T"} {
		made := testkit.Run(t, perl, "-e", `print crypt("secret", "\$y\$`+parameters+`\$F5Jx5fExrKuPp53xLKQ..1")`)
		if made == "" || !strings.HasPrefix(made, "$y$") {
			testkit.Skip(t, "this machine's crypt(3) knows no yescrypt")
		}
		if err := Hash(made); err != nil {
			t.Errorf("%s: %v", made, err)
		}
	}
	for _, cost := range []string{"9", "A", "F"} {
		if err := Hash(strings.Replace(hash, "j9T", "j"+cost+"T", 1)); err != nil {
			t.Errorf("%s: %v", cost, err)
		}
	}
}

// setup.json(5) explains each key, and its example is taken.
func TestManual(t *testing.T) {
	var want []string
	for _, of := range []reflect.Type{reflect.TypeFor[Answers](), reflect.TypeFor[Account]()} {
		for i := range of.NumField() {
			if name, _, _ := strings.Cut(of.Field(i).Tag.Get("json"), ","); name != "-" && name != "password" {
				want = append(want, name)
			}
		}
	}
	testkit.Explains(t, "setup.json.5", want)
	page, err := os.ReadFile("setup.json.5")
	if err != nil {
		t.Fatal(err)
	}
	_, example, _ := strings.Cut(string(page), ".Bd -literal -offset indent\n")
	example, _, _ = strings.Cut(example, ".Ed\n")
	// An example's own hash would be a password in every image, to anyone who looks for some.
	example = strings.Replace(example, "HASH", hash, 1)
	if a, err := Parse([]byte(example)); err != nil || a.Account == nil || a.AutomaticUpdates == nil {
		t.Errorf("%v\n%s", err, example)
	}
}

// What is taken stays the same when it is written again, and nothing in it could be more
// than a word of a line, or leave a directory.
func FuzzParse(f *testing.F) {
	f.Add([]byte(whole))
	f.Add([]byte(`{"version":1,"account":{"name":"a","password":"b"}}`))
	f.Add([]byte(`{"version":1,"host_name":"a","ask":["account","wireless"]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		a, err := Parse(text)
		if err != nil {
			return
		}
		again, err := json.Marshal(a)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := Parse(again); err != nil || !reflect.DeepEqual(a, b) {
			t.Fatalf("%s: %+v, %v", again, b, err)
		}
		all := a.Language + a.Keyboard + a.TimeZone + a.HostName
		if a.Account != nil {
			all += a.Account.Name + a.Account.PasswordHash
			if strings.ContainsAny(a.Account.FullName, ":,\n\r\x00") || a.Account.Plain != nil {
				t.Fatalf("account %+v", a.Account)
			}
		}
		if strings.ContainsAny(all, " \n\r\x00:'\"\\`;&|<>") || strings.Contains(all, "..") && a.Account == nil {
			t.Fatalf("%+v", a)
		}
	})
}
