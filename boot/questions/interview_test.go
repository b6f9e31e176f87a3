package questions

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/answers"
)

func raw(t *testing.T, c *Choices) []byte {
	t.Helper()
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// through answers an interview: "<" goes back, "." leaves, what begins with "*" is a password.
func through(t *testing.T, i *Interview, lines ...string) (asked []string) {
	t.Helper()
	for _, line := range lines {
		q := i.Question()
		if line == "<" {
			i.Back()
			continue
		}
		if q == nil {
			t.Fatalf("nothing is asked for %q", line)
		}
		asked = append(asked, q.Key)
		var err error
		switch secret, password := strings.CutPrefix(line, "*"); {
		case line == ".":
			i.Leave()
		case password:
			err = i.Password([]byte(secret))
		case line == "":
			_, err = i.Answer(q.ByEnter)
		default:
			_, err = i.Answer(line)
		}
		if err != nil {
			t.Fatalf("%s, %q: %v", q.Key, line, err)
		}
	}
	return asked
}

// Questions are left one by one, and answers taken back.
func TestInterview(t *testing.T) {
	i := NewInterview(debian(), nil)
	through(t, i, "de_DE", "", "<", ".", "Etc/UTC", "<", "", ".", "no", "<", "", "Alice Example", "", "*one", "<", "Bob", ".")
	// After going back from the end there is no account, and a password was erased.
	a := i.Answers()
	no := false
	want := &answers.Answers{Version: 1, Language: "de_DE.UTF-8", TimeZone: "Etc/UTC", AutomaticUpdates: &no, Ask: []string{"keyboard", "host_name", "account"}}
	if i.Question() != nil || !reflect.DeepEqual(a, want) {
		t.Errorf("%+v, asks %+v", a, i.Question())
	}
	text, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := answers.Parse(text); err != nil || !reflect.DeepEqual(a, b) {
		t.Errorf("%s: %+v, %v", text, b, err)
	}
	if said := a.Summary(); !strings.Contains(said, "asked for  keyboard, name, account (at the first start)\n") || strings.Contains(said, "none") {
		t.Error(said)
	}
	// The first start asks for these, and for nothing else.
	rest := NewInterview(debian(), a)
	if asked := through(t, rest, "us", "box", "Alice", "", "*secret"); rest.Question() != nil || !slices.Equal(asked, []string{"keyboard", "host_name", "account", "account", "account"}) {
		t.Errorf("%q", asked)
	}
	b := rest.Answers()
	if b.Language != "de_DE.UTF-8" || b.Keyboard != "us" || b.HostName != "box" || string(b.Account.Typed) != "secret" || b.Ask != nil || *b.AutomaticUpdates {
		t.Errorf("%+v", b)
	}
}

// What is taken back is erased, and what an interview was given stays.
func TestInterviewErases(t *testing.T) {
	i := NewInterview(debian(), nil)
	typed := []byte("secret")
	through(t, i, "", "", "", "", "", "Alice", "")
	if err := i.Password(typed); err != nil {
		t.Fatal(err)
	}
	i.Back()
	if string(typed) != "\x00\x00\x00\x00\x00\x00" || i.Answers().Account != nil {
		t.Errorf("%q", typed)
	}
	if q := i.Question(); q.Key != answers.KeyAccount || q.Secret() {
		t.Errorf("%+v", q)
	}
	given := &answers.Answers{Version: 1, Account: &answers.Account{Name: "alice", PasswordHash: "x"}, Ask: []string{"language", "wireless"}}
	rest := NewInterview(debian(), given)
	through(t, rest, "en_US")
	rest.Begin()
	if given.Account.Name != "alice" || rest.Answers().Account != given.Account || rest.Answers().Language != "" {
		t.Errorf("%+v", rest.Answers())
	}
	if none := NewInterview(debian(), &answers.Answers{Ask: []string{"wireless"}}); none.Question() != nil {
		t.Errorf("%+v", none.Question())
	}
	if first := NewInterview(debian(), nil); first.Back() || first.Password(nil) == nil {
		t.Error("there is something before the first question, or a password is taken there")
	}
}

// In an installer each question can be left, and the password by Enter.
func TestLeaves(t *testing.T) {
	who := &typist{t: t, lines: []string{"de_de", ".", "", "box", ".", "Alice", "", "", "yes"}}
	p := &Person{Terminal: who, Choices: debian(), Leaves: true}
	a, err := p.Ask(nil)
	want := &answers.Answers{Version: 1, Language: "de_DE.UTF-8", TimeZone: "Europe/Berlin", HostName: "box", Ask: []string{"keyboard", "automatic_updates", "account"}}
	if err != nil || !reflect.DeepEqual(a, want) || !strings.Contains(who.said.String(), "Type . to be asked") {
		t.Errorf("%+v, %v\n%s", a, err, &who.said)
	}
	if _, who, _, err := ask(t, debian(), ".", "later"); err == nil || !strings.Contains(who.said.String(), `"." is not a language`) {
		t.Errorf("at the first start nothing can be left: %v\n%s", err, &who.said)
	}
}
