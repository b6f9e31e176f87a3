package contract

// ChoicesPath is where a UKI has what somebody who installs it can choose from
// (questions.Choices), in an archive of its own behind the abilities': an installer has the
// UKI before it reads the system image, which may come over the network. Releases before,
// and those that do not ask at a first start, have none.
const ChoicesPath = "halogen/choices.json"

// WithChoices adds them to the archives that come before.
func WithChoices(archives, choices []byte) ([]byte, error) {
	own, err := archive(ChoicesPath, choices)
	return append(archives, own...), err
}

// ChoicesFromInitrd returns them from a UKI's .initrd section, at most limit bytes; nil where it
// has none. As the contract they are true only once the UKI's signature is.
func ChoicesFromInitrd(initrd []byte, limit int64) []byte {
	text, err := factFromInitrd(initrd, ChoicesPath, limit)
	if err != nil {
		return nil
	}
	return text
}
