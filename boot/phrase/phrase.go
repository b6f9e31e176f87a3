// Package phrase has the words that a machine shows before it asks somebody for a secret:
// the TPM gives them to this machine's own systems alone, so that no words, or others, mean
// that something else asks.
//
// It refuses to prove that the right ones are the machine's: anyone who has seen them can
// show them.
package phrase

import (
	_ "embed"
	"strings"

	"halogenos.internal/boot/policy"
)

// Words is how many words a phrase has: 44 bits.
const Words = 4

// Wish is the name of the file by which the running system asks the next boot for another
// phrase, in the directory that both share. It says nothing but that it is there.
const Wish = "phrase-wanted"

// english is the English list of BIP 39, which is under the MIT licence
// (https://github.com/bitcoin/bips/blob/master/bip-0039/english.txt): 2048 words of three to
// eight letters, of which the first four tell one from all others. A changed list is another
// phrase on every machine.
//
//go:embed english.txt
var english string

// purpose tells the words from whatever else is derived from such a key.
const purpose = "phrase-words"

// bits is how many bits a word of the list stands for.
const bits = 11

// Of returns the phrase of a key, which was made for nothing else (policy.NewSecret), with
// spaces between the words.
func Of(key *policy.Secret) string {
	derived := key.Key(purpose)
	defer clear(derived[:])
	list := strings.Fields(english)
	words := make([]string, Words)
	for i := range words {
		index := 0
		for bit := i * bits; bit < (i+1)*bits; bit++ {
			index = index<<1 | int(derived[bit/8]>>(7-bit%8)&1)
		}
		words[i] = list[index]
	}
	return strings.Join(words, " ")
}
