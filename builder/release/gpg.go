package release

import (
	"bytes"
	"cmp"
	"crypto"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os/exec"
	"slices"
	"strings"
	"time"

	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"

	"halogenos.internal/boot/pgp"
	"halogenos.internal/builder/keys"
)

// signByGPG has gpg sign with the pinned key, whose secret part its agent or a
// smart card holds. What gpg made counts only if machines take it: another key
// of the same user does not get through, nor a subkey that they do not know. So each
// key that could sign is tried, the one that lasts longest first.
func (s *Signer) signByGPG(message io.ReadSeeker, at time.Time) ([]byte, error) {
	// gpg signs at its own time, which may be later than the one asked for.
	if now := time.Now(); now.After(at) {
		at = now
	}
	usable, err := s.public.SigningKeys(at)
	if err != nil {
		return nil, err
	}
	last := func(f pgp.Fingerprint) int64 {
		if end := usable[f]; !end.IsZero() {
			return end.Unix()
		}
		return math.MaxInt64
	}
	candidates := slices.SortedFunc(maps.Keys(usable), func(a, b pgp.Fingerprint) int {
		return cmp.Or(cmp.Compare(last(b), last(a)), bytes.Compare(a[:], b[:]))
	})
	var refusals []error
	for _, f := range candidates {
		signature, err := gpg(message, f, s.digestFor(f))
		if err == nil {
			err = s.accepted(message, signature, at)
		}
		if err == nil {
			return signature, nil
		}
		refusals = append(refusals, fmt.Errorf("%s: %w", f, err))
		if _, err := message.Seek(0, io.SeekStart); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("sign with gpg: %w%s", errors.Join(refusals...), wanted(s.must, at))
}

// digestFor is gpg's name of the digest that a key signs.
func (s *Signer) digestFor(f pgp.Fingerprint) string {
	hash := crypto.SHA256
	entities, err := openpgp.ReadKeyRing(bytes.NewReader(s.public.Bytes()))
	if err == nil && len(entities) == 1 {
		public := entities[0].PrimaryKey
		for _, sub := range entities[0].Subkeys {
			if bytes.Equal(sub.PublicKey.Fingerprint, f[:]) {
				public = sub.PublicKey
			}
		}
		hash = hashFor(public)
	}
	return strings.ReplaceAll(hash.String(), "-", "")
}

// gpg has one key sign, and no other. What the distributor's gpg.conf says about
// signatures is set aside: one that ends, or is over text, no machine would take.
func gpg(message io.Reader, key pgp.Fingerprint, digest string) ([]byte, error) {
	var out, said bytes.Buffer
	c := exec.Command("gpg", "--batch", "--no-tty", "--yes", "--quiet", "--digest-algo", digest, "--no-armor", "--no-textmode", "--default-sig-expire", "0",
		"--local-user", key.String()+"!", "--output", "-", "--detach-sign")
	c.Env = keys.AgentEnviron()
	c.Stdin, c.Stdout, c.Stderr = message, &out, &said
	if err := c.Run(); err != nil {
		return nil, fmt.Errorf("sign with gpg: %w: %s", err, bytes.TrimSpace(said.Bytes()))
	}
	if out.Len() == 0 {
		return nil, errors.New("sign with gpg: it made no signature")
	}
	return out.Bytes(), nil
}
