package luks2

import (
	"bytes"
	"crypto/subtle"
	"fmt"
	"io"
	"slices"
	"unicode"
	"unicode/utf8"

	"halogenos.internal/boot/keyboard"
	"halogenos.internal/boot/words"
)

// maxReadings bounds how many keys one text is tried as: each costs a key derivation.
const maxReadings = 4

// A Reading is what a text is as a recovery key, complete or not, typed on a keyboard of
// one layout. Its letters are secret: its holder wipes it.
type Reading struct {
	Layout string // for people; empty where the letters are what arrived
	// Letters are those of the key in lower case, and foreignLetter for each character
	// that no key has.
	Letters []byte
	foreign int
}

// foreignLetter stands for a character that no recovery key has.
const foreignLetter = '?'

// ReadTyped reads what somebody typed of a recovery key: in either case, with dashes of
// any kind and white space wherever they are. It is read by the letters that arrived, or,
// where several of these or one of a whole key are none that a key has, by the layout that
// makes most of them.
func ReadTyped(text []byte) Reading {
	best := read(text, nil)
	if best.foreign == 0 || best.foreign == 1 && len(best.Letters) < RecoveryLetters {
		return best // and not by another layout for a slip
	}
	layouts := keyboard.Layouts()
	for i := range layouts {
		r := read(text, &layouts[i])
		if r.foreign < best.foreign {
			best, r = r, best
		}
		r.Wipe()
	}
	return best
}

// read reads a text as typed on a layout; nil is what arrived.
func read(text []byte, layout *keyboard.Layout) Reading {
	var r Reading
	if layout != nil {
		r.Layout = layout.Name
	}
	r.Letters = make([]byte, 0, len(text)) // never grows, so that no copy stays behind
	for len(text) > 0 {
		arrived, size := utf8.DecodeRune(text)
		text = text[size:]
		meant := keyboard.Plain(arrived)
		if layout != nil {
			meant = layout.Meant(arrived)
		}
		switch {
		case unicode.IsSpace(arrived):
		case meant < utf8.RuneSelf && bytes.IndexByte([]byte(modhex), byte(meant)) >= 0:
			r.Letters = append(r.Letters, byte(meant))
		case layout == nil && keyboard.Dash(arrived), layout != nil && (keyboard.Dash(meant) || keyboard.Dash(arrived)):
		default:
			r.Letters = append(r.Letters, foreignLetter)
			r.foreign++
		}
	}
	return r
}

// Groups are the letters in groups as the key is written, the last of them perhaps not
// complete. Letters beyond a key are in groups as well.
func (r *Reading) Groups() [][]byte {
	return slices.Collect(slices.Chunk(r.Letters, recoveryGroup))
}

// Wrong lists the groups, counted from 1, that are complete and not as a key has them:
// one of their characters is none that a key has, or, where the key has checks, their
// check is another.
func (r *Reading) Wrong(checked bool) (groups []int) {
	for i, letters := range r.Groups() {
		foreign := bytes.IndexByte(letters, foreignLetter) >= 0
		complete := len(letters) == recoveryGroup && i < recoveryGroups
		if foreign || checked && complete && !holds(i, letters) {
			groups = append(groups, i+1)
		}
	}
	return groups
}

// holds reports whether a group's check is right.
func holds(group int, letters []byte) bool {
	var digits [recoveryGroup]byte
	defer Wipe(digits[:])
	for i, c := range letters {
		digits[i] = byte(bytes.IndexByte([]byte(modhex), c))
	}
	return check(group, digits[:recoveryGroup-1]) == digits[recoveryGroup-1]
}

// Wipe overwrites the letters.
func (r *Reading) Wipe() { Wipe(r.Letters) }

// key returns the key of a complete reading.
func (r *Reading) key() (RecoveryKey, error) {
	var k RecoveryKey
	switch {
	case r.foreign > 0:
		return k, words.Errorf(words.ForeignLetter, 1+bytes.IndexByte(r.Letters, foreignLetter), modhex)
	case len(r.Letters) != RecoveryLetters:
		return k, words.Errorf(words.LetterCount, RecoveryLetters, len(r.Letters))
	}
	for i, c := range r.Letters {
		k.key[i/2] = k.key[i/2]<<4 | byte(bytes.IndexByte([]byte(modhex), c))
	}
	return k, nil
}

// ParseRecoveryKeys reads what somebody typed, as ReadTyped does, and returns the key as
// it arrived and as each layout has it, where that is a key; those whose checks hold come
// first. There is at least one. The error does not repeat the text. The caller wipes them.
func ParseRecoveryKeys(text []byte) ([]RecoveryKey, error) {
	r := read(text, nil)
	k, err := r.key()
	r.Wipe()
	layouts := keyboard.Layouts()
	keys := make([]RecoveryKey, 0, len(layouts)+1) // never grows, as above
	if err == nil {
		keys = append(keys, k)
	}
	for i := range layouts {
		r := read(text, &layouts[i])
		k, err := r.key()
		r.Wipe()
		if err == nil && !slices.Contains(keys, k) {
			keys = append(keys, k)
		}
	}
	if len(keys) == 0 {
		best := ReadTyped(text)
		defer best.Wipe()
		if _, bestErr := best.key(); bestErr != nil {
			err = bestErr
		}
		return nil, err
	}
	slices.SortStableFunc(keys, func(a, b RecoveryKey) int { return rank(&a) - rank(&b) })
	for i := maxReadings; i < len(keys); i++ {
		keys[i].Wipe()
	}
	return keys[:min(len(keys), maxReadings)], nil
}

func rank(k *RecoveryKey) int {
	if k.Checked() {
		return 0
	}
	return 1
}

// ParseRecoveryKey reads what somebody typed, as ParseRecoveryKeys does, and returns the
// likeliest key.
func ParseRecoveryKey(text []byte) (RecoveryKey, error) {
	keys, err := ParseRecoveryKeys(text)
	if err != nil {
		return RecoveryKey{}, err
	}
	for i := range keys[1:] {
		keys[i+1].Wipe()
	}
	return keys[0], nil
}

// ConfirmingGroups picks two groups of a key, counted from 1, that somebody types back to
// show that the key was written down.
func ConfirmingGroups(rand io.Reader) (groups [2]int, err error) {
	var b [2]byte
	if _, err := io.ReadFull(rand, b[:]); err != nil {
		return groups, fmt.Errorf("luks2: pick groups of the recovery key: %w", err)
	}
	// 8 groups and then 7: the second byte's bias is of no use to anybody.
	first, second := int(b[0])%recoveryGroups, int(b[1])%(recoveryGroups-1)
	if second >= first {
		second++
	}
	return [2]int{min(first, second) + 1, max(first, second) + 1}, nil
}

// Confirms reports whether a text is these groups of the key, one after the other, or the
// whole key, typed as ReadTyped and ParseRecoveryKeys allow.
func (k *RecoveryKey) Confirms(text []byte, groups [2]int) bool {
	whole := k.Passphrase()
	defer Wipe(whole)
	whole = bytes.ReplaceAll(whole, []byte("-"), nil)
	defer Wipe(whole)
	want := make([]byte, 0, len(groups)*recoveryGroup)
	for _, n := range groups {
		want = append(want, whole[(n-1)*recoveryGroup:n*recoveryGroup]...)
	}
	defer Wipe(want)
	layouts := keyboard.Layouts()
	for i := -1; i < len(layouts); i++ {
		var layout *keyboard.Layout
		if i >= 0 {
			layout = &layouts[i]
		}
		r := read(text, layout)
		same := subtle.ConstantTimeCompare(r.Letters, want)|subtle.ConstantTimeCompare(r.Letters, whole) == 1
		r.Wipe()
		if same {
			return true
		}
	}
	return false
}
