package questions

import (
	"errors"
	"slices"

	"halogenos.internal/boot/answers"
)

// An Interview is the questions one after the other, and the answers so far.
//
//	for q := i.Question(); q != nil; q = i.Question() {
//		... i.Answer, i.Password, i.Leave or i.Back
//	}
type Interview struct {
	choices *Choices
	given   answers.Answers // before the first question
	answers answers.Answers
	keys    []string // that are asked for; nil for all
	at      int      // in topics; len(topics) at the end
	asked   []int    // those before, that somebody was asked
	left    []string // keys
}

// NewInterview begins. Where given has a list of what is still to be asked, nothing else is,
// and its answers stay; otherwise all is asked. The account of given is nobody's else to clear.
func NewInterview(c *Choices, given *answers.Answers) *Interview {
	i := &Interview{choices: c, given: answers.Answers{Version: answers.Version}}
	if given != nil {
		i.given, i.keys = *given, given.Ask
		i.given.Ask = nil
	}
	i.Begin()
	return i
}

// Begin starts at the first question again. A password that was typed is erased.
func (i *Interview) Begin() {
	Clear(&i.answers)
	i.answers, i.at, i.asked, i.left = i.given, 0, nil, nil
	i.settle()
}

// settle goes on to the next topic that is asked about.
func (i *Interview) settle() {
	for ; i.at < len(topics); i.at++ {
		key := topics[i.at].key
		if (i.keys == nil || slices.Contains(i.keys, key)) && !slices.Contains(i.left, key) && topics[i.at].ask(i.choices, &i.answers) != nil {
			return
		}
	}
}

// Question is what is asked now, and nil at the end. Enter takes what was answered before, where
// somebody has gone back.
func (i *Interview) Question() *Question {
	if i.at == len(topics) {
		return nil
	}
	q := topics[i.at].ask(i.choices, &i.answers)
	q.Key = topics[i.at].key
	if had := i.had(q.Key); had != "" {
		q.ByEnter = had
	}
	return q
}

// had is what was answered of a key; "" for nothing, and of an account.
func (i *Interview) had(key string) string {
	a := &i.answers
	switch key {
	case answers.KeyLanguage:
		return a.Language
	case answers.KeyKeyboard:
		return a.Keyboard
	case answers.KeyTimeZone:
		return a.TimeZone
	case answers.KeyHostName:
		return a.HostName
	case answers.KeyUpdates:
		if a.AutomaticUpdates != nil {
			return map[bool]string{true: "yes", false: "no"}[*a.AutomaticUpdates]
		}
	}
	return ""
}

// errNotAsked is a fault of the caller's.
var errNotAsked = errors.New("this is not what was asked")

// Answer takes a line for the question that is asked now, and returns what it was taken for.
func (i *Interview) Answer(line string) (string, error) {
	q := i.Question()
	if q == nil || q.Secret() {
		return "", errNotAsked
	}
	answer, err := q.Take(line)
	if err != nil {
		return "", err
	}
	topics[i.at].set(&i.answers, answer)
	i.next()
	return answer, nil
}

// Password takes the password that is asked for now. It is the interview's from then on.
func (i *Interview) Password(typed []byte) error {
	q := i.Question()
	if q == nil || !q.Secret() {
		return errNotAsked
	}
	if err := answers.Password(typed); err != nil {
		return err
	}
	i.answers.Account.Typed = typed
	i.next()
	return nil
}

func (i *Interview) next() {
	i.asked = append(i.asked, i.at)
	i.at++
	i.settle()
}

// Leave leaves the question for the first start, and with it those of the same key.
func (i *Interview) Leave() {
	if i.at == len(topics) {
		return
	}
	key := topics[i.at].key
	i.left = append(i.left, key)
	i.forget(key)
	i.next()
}

// forget takes an answer back.
func (i *Interview) forget(key string) {
	a := &i.answers
	switch key {
	case answers.KeyLanguage:
		a.Language = ""
	case answers.KeyKeyboard:
		a.Keyboard = ""
	case answers.KeyTimeZone:
		a.TimeZone = ""
	case answers.KeyHostName:
		a.HostName = ""
	case answers.KeyUpdates:
		a.AutomaticUpdates = nil
	case answers.KeyAccount:
		Clear(a)
		a.Account = nil
	}
}

// Back goes to the question before. It reports false where there is none.
func (i *Interview) Back() bool {
	if len(i.asked) == 0 {
		return false
	}
	last := len(i.asked) - 1
	i.at, i.asked = i.asked[last], i.asked[:last]
	key := topics[i.at].key
	i.left = slices.DeleteFunc(i.left, func(k string) bool { return k == key })
	if key == answers.KeyAccount {
		// Its questions build on each other: what was typed of it before goes.
		i.forget(key)
		i.at = slices.IndexFunc(topics, func(t topic) bool { return t.key == key })
		for len(i.asked) > 0 && topics[i.asked[len(i.asked)-1]].key == key {
			i.asked = i.asked[:len(i.asked)-1]
		}
	}
	return true
}

// Answers are those that were given, and the keys of those that were left for the first
// start. Of an account they have the password, which the caller clears.
func (i *Interview) Answers() *answers.Answers {
	a := i.answers
	a.Ask = slices.Clone(i.left)
	return &a
}

// Clear erases a password that was typed.
func Clear(a *answers.Answers) {
	if a.Account != nil {
		clear(a.Account.Typed)
	}
}
