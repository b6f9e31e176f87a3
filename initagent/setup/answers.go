package setup

import (
	"fmt"
	"io/fs"
	"path"
	"strings"

	"halogenos.internal/boot/answers"
	"halogenos.internal/boot/bootflow"
	"halogenos.internal/boot/bounded"
	"halogenos.internal/boot/nextboot"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/words"
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
	taken, err := answers.Parse(h.Left.Answers)
	if err != nil {
		h.Log.Say("%s on the ESP is not taken: %v", answers.OnESP, err)
		return nil
	}
	sayTaken(h, taken)
	return h.Left.Answers
}

// takeLanguage has this boot and those to come ask and tell in the language that was chosen when
// the machine was installed, where the catalogue has it. It is one write of a variable: cut before
// it, the next start, which takes the same answers, writes it; a machine whose firmware does not
// take it speaks the image's language later, which is worth no boot.
func takeLanguage(h *host.Host, taken *answers.Answers) {
	l, known := words.OfLocale(taken.Language)
	if !known || l == h.Language {
		return
	}
	h.Language = l
	if err := h.Variables.WriteAuthenticated(words.Variable, nextboot.Vendor, nextboot.Attributes, l.Remember()); err != nil {
		h.Log.Say("the starts to come will not know the language: %v", err)
	}
}

// sayTaken says what the first start will take: it names who may become root.
func sayTaken(h *host.Host, taken *answers.Answers) {
	takeLanguage(h, taken)
	h.Log.Say("the first start takes what the installer left:\n%s", strings.TrimRight(taken.Summary(), "\n"))
}

// boxAnswers puts them under a machine secret: that there are none, too, so that nobody can
// take them away.
func boxAnswers(h *host.Host, secret *policy.Secret, text []byte) ([]byte, error) {
	return secret.Box(h.Random, firstboot.AnswersPurpose, text)
}

// pendingAnswers returns those that the first boot took, nil for none.
func pendingAnswers(h *host.Host, secret *policy.Secret) ([]byte, error) {
	text, err := secret.Unbox(firstboot.AnswersPurpose, h.Left.Pending.Answers)
	if err != nil {
		return nil, fmt.Errorf("the answers for the first start were changed or removed after the first boot had taken them: %w. Install the machine again", err)
	}
	if len(text) == 0 {
		return nil, nil
	}
	taken, err := answers.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("the answers for the first start: %w", err)
	}
	sayTaken(h, taken)
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
