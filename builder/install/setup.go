package install

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"halogenos.internal/boot/answers"
	"halogenos.internal/boot/questions"
	"halogenos.internal/builder/install/yescrypt"
)

// Asks reports whether somebody who installs a source is asked what its machine's first start
// would ask: where that asks, nobody has answered by a file, and no root partition is kept, which
// has its accounts and settings.
func (s *Source) Asks(c Choice) bool {
	return s.Choices != nil && s.ESP.Setup == nil && !c.KeepRoot
}

// follows refuses answers that the source's machines could not take. Where the source does not
// say what it has, the first start finds out.
func (s *Source) follows() error {
	a, err := answers.Parse(s.ESP.Setup)
	if err != nil || s.Choices == nil {
		return err
	}
	return s.Choices.Follow(a)
}

// SetupFile is the file with the answers that somebody gave, for the EFI system partition, and with
// what was left for the first start. A password that was typed is hashed, with a salt from random,
// and erased.
//
// It is written with the rest of the EFI system partition, before the partition table: cut until
// then, the disk starts nothing and is installed again; see Install.
func SetupFile(given *answers.Answers, random io.Reader) ([]byte, error) {
	defer questions.Clear(given)
	a := *given
	if a.Account != nil {
		hash, err := yescrypt.Hash(a.Account.Typed, random)
		if err != nil {
			return nil, err
		}
		account := *a.Account
		account.Typed, account.PasswordHash = nil, hash
		a.Account = &account
	}
	// A wireless network's password is never on the EFI system partition.
	a.Ask = append(slices.Clone(a.Ask), answers.KeyWireless)
	text, err := json.MarshalIndent(a, "", "  ")
	if err != nil {
		return nil, err
	}
	// The first start reads it with the same program.
	if _, err := answers.Parse(text); err != nil {
		return nil, fmt.Errorf("the answers cannot be written: %w", err)
	}
	return append(text, '\n'), nil
}

// takeChoices keeps what a UKI lets one choose from. Where that cannot be read, nothing is asked,
// and the plan says so.
func (s *Source) takeChoices(text []byte) {
	if text == nil {
		return
	}
	s.Choices, s.unread = questions.Parse(text)
}
