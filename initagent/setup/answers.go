package setup

import (
	"fmt"
	"io/fs"
	"path"
	"strings"

	"halogenos.internal/boot/answers"
	"halogenos.internal/boot/bootflow"
	"halogenos.internal/boot/bounded"
	"halogenos.internal/boot/policy"
	"halogenos.internal/initagent/firstboot"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/rootpart"
)

// An installer may leave answers for the first start on the ESP, where anybody can write.
// The first boot, whose firmware is in Setup Mode and starts whatever lies there, takes them
// under the machine secret, together with the Secure Boot keys. The second boot, which makes the
// root partition, has them from there alone: between the two nobody can add an account
// to a system that the firmware verifies. A machine with a root partition never reads them.
//
// The file stays until the root partition is finished, so that a first boot that has to begin
// again finds it; then it is overwritten and removed (TidyUp).

// readAnswers reads the file, without judging it.
func readAnswers(h *host.Host, files fs.FS, name string) {
	h.Left.Handed = true
	text, err := bounded.File(files, path.Join(firstboot.Directory, name), answers.MaxSize)
	if err != nil {
		h.Log.Say("the answers for the first start: %v", err)
		return
	}
	h.Left.Answers = text
}

func isAnswers(name string) bool { return strings.EqualFold(name, path.Base(answers.OnESP)) }

// handedOver returns the answers on the ESP, or nil where there are none. Those that no
// system could take are left out, and said: somebody is asked then.
func handedOver(h *host.Host) []byte {
	if h.Left.Answers == nil {
		return nil
	}
	if _, err := answers.Parse(h.Left.Answers); err != nil {
		h.Log.Say("%s on the ESP is not taken: %v", answers.OnESP, err)
		return nil
	}
	return h.Left.Answers
}

// boxAnswers puts them under a machine secret; nil stays nil.
func boxAnswers(h *host.Host, secret *policy.Secret, text []byte) ([]byte, error) {
	if text == nil {
		return nil, nil
	}
	return secret.Box(h.Random, firstboot.AnswersPurpose, text)
}

// pendingAnswers returns those that the first boot took.
func pendingAnswers(h *host.Host, secret *policy.Secret) ([]byte, error) {
	if h.Left.Pending.Answers == nil {
		return nil, nil
	}
	text, err := secret.Unbox(firstboot.AnswersPurpose, h.Left.Pending.Answers)
	if err != nil {
		return nil, fmt.Errorf("the answers for the first start: %w", err)
	}
	return text, nil
}

// unboundAnswers are those of a machine that makes its root partition without a first boot
// that has enrolled keys: nothing verifies its system either.
func unboundAnswers(h *host.Host) []byte {
	if h.State.Keys == bootflow.KeysEnrolled {
		return nil
	}
	return handedOver(h)
}

// keepAnswers puts them where the running system finds them.
func keepAnswers(h *host.Host, text []byte) error {
	if text == nil {
		return nil
	}
	return h.Store.Keep(path.Join(rootpart.Shared, answers.HandedOver), text)
}
