package contract

import (
	"errors"
	"io"
)

// ChoicesPath is where a UKI has what somebody who installs it can choose from
// (questions.Choices). It is the only file of the third, uncompressed archive of the initramfs,
// after the contract and the abilities: an installer has the UKI before it reads the system
// image, which may come over the network. Releases before, and those that do not ask at a first
// start, have none.
const ChoicesPath = "halogen/choices.json"

// WithChoices adds them to what Archive or ArchiveWith has made.
func WithChoices(archives, choices []byte) ([]byte, error) {
	third, err := archive(ChoicesPath, choices)
	return append(archives, third...), err
}

// ChoicesFromInitrd returns them from a UKI's .initrd section, at most limit bytes; nil where it
// has none. As the contract they are true only once the UKI's signature is.
func ChoicesFromInitrd(initrd []byte, limit int64) []byte {
	for range 2 { // the contract and the abilities
		end, err := endOfFirst(initrd)
		if err != nil {
			return nil
		}
		initrd = initrd[end:]
	}
	rec, err := firstFile(initrd)
	if err != nil || rec.Name != ChoicesPath || int64(rec.FileSize) > limit {
		return nil
	}
	text := make([]byte, rec.FileSize)
	if _, err := rec.ReadAt(text, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil
	}
	return text
}
