package release

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"time"
)

// signByGPG has gpg sign with the pinned key, whose secret part its agent or a
// smart card holds. What gpg made counts only if machines take it: another key
// of the same user does not get through.
func (s *Signer) signByGPG(message io.ReadSeeker, at time.Time) ([]byte, error) {
	var out, said bytes.Buffer
	c := exec.Command("gpg", "--batch", "--no-tty", "--yes", "--quiet", "--personal-digest-preferences", "SHA256", "--no-armor",
		"--local-user", s.public.Fingerprint().String(), "--output", "-", "--detach-sign")
	c.Stdin, c.Stdout, c.Stderr = message, &out, &said
	if err := c.Run(); err != nil {
		return nil, fmt.Errorf("sign with gpg: %w: %s", err, bytes.TrimSpace(said.Bytes()))
	}
	if out.Len() == 0 {
		return nil, errors.New("sign with gpg: it made no signature")
	}
	if _, err := message.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("read again what was signed: %w", err)
	}
	// gpg signs at its own time, which may be later than the one asked for.
	if now := time.Now(); now.After(at) {
		at = now
	}
	if err := s.public.Verify(message, out.Bytes(), at); err != nil {
		return nil, fmt.Errorf("signature of gpg: %w", err)
	}
	return out.Bytes(), nil
}
