package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"halogenos.internal/boot/bootreport"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/strictjson"
	"halogenos.internal/builder/files"
)

const certifySummary = `usage: halogen certify REPORT --ek-certificate FILE --ca FILE... --challenge FILE
       halogen certify --challenge FILE --answer HEX

Finds out that a machine's attestation key is in the TPM that a certificate is of, and
that the TPM's maker has given it, so that verify-report --key can believe the key. --ca
has the maker's certificates. Which machine the TPM is in, only the certificate's origin
says: the papers that came with the machine, or 'tpm2_getekcertificate' on a machine that
you have in hand. One that came by the same way as the report may be of another machine,
whose owner answers. Compare the SHA-256 that is printed with what you have noted.

The first form reads the key from what 'halogenctl boot-report' printed and writes a
challenge, and beside it FILE.answer, which stays here. On the machine,
'halogenctl boot-report --challenge FILE' answers it. The second form compares that
answer, and prints the key's name for verify-report --key. A challenge is for one answer:
both files are removed when it was right.

It does not ask whether the maker has revoked the certificate. The name holds until the
TPM is cleared.
`

// pendingAnswer is what is kept of a challenge until it is answered.
type pendingAnswer struct {
	Format int         `json:"format"`
	Key    policy.Name `json:"key"`
	Answer string      `json:"answer"` // hexadecimal
	TPM    string      `json:"tpm"`    // the certificate's issuer and number
}

// maxCertificates bounds a file of certificates in bytes.
const maxCertificates = 1 << 20

type texts []string

func (s *texts) String() string { return strings.Join(*s, " ") }

// Set implements flag.Value.
func (s *texts) Set(text string) error {
	*s = append(*s, text)
	return nil
}

func (c command) certify(_ context.Context, args []string) error {
	f := flag.NewFlagSet("certify", flag.ContinueOnError)
	ek := f.String("ek-certificate", "", "certificate `FILE` of the TPM's endorsement key, in PEM or DER")
	challenge := f.String("challenge", "", "challenge `FILE` for the machine: written, or with --answer what was asked")
	answer := f.String("answer", "", "`HEX` that the machine has answered")
	var authorities texts
	f.Var(&authorities, "ca", "`FILE` with certificates of the TPM's maker, in PEM or DER; may be given again")
	rest, err := c.parse(f, args, certifySummary)
	if err != nil {
		return err
	}
	switch {
	case *challenge == "":
		return c.misused(f, "want --challenge")
	case *answer != "" && (len(rest) > 0 || *ek != "" || len(authorities) > 0):
		return c.misused(f, "--answer goes with --challenge alone")
	case *answer != "":
		return c.checkAnswer(*challenge, *answer)
	case len(rest) != 1:
		return c.misused(f, "want one report, have %d", len(rest))
	case *ek == "" || len(authorities) == 0:
		return c.misused(f, "want --ek-certificate and --ca: without them anybody's key could be the TPM's")
	}
	return c.challenge(rest[0], *ek, authorities, *challenge)
}

// challenge writes a challenge, and what its answer must be. The answer comes first: a
// challenge without one would be of no use.
func (c command) challenge(report, ek string, authorities []string, path string) error {
	text, err := files.Read(report, bootreport.MaxSize)
	if err != nil {
		return err
	}
	r, err := bootreport.Parse(text)
	if err != nil {
		return fmt.Errorf("%s: %w", report, err)
	}
	certificates, err := readCertificates(ek)
	if err != nil {
		return err
	}
	if len(certificates) != 1 {
		return fmt.Errorf("%s: %d certificates, want the TPM's alone; --ca takes the others", ek, len(certificates))
	}
	var known []*x509.Certificate
	for _, name := range authorities {
		more, err := readCertificates(name)
		if err != nil {
			return err
		}
		known = append(known, more...)
	}
	if err := bootreport.CheckEndorsement(certificates[0], known, time.Now()); err != nil {
		return fmt.Errorf("%s: %w", ek, err)
	}
	asked, answer, err := bootreport.NewChallenge(rand.Reader, certificates[0], r.Key)
	if err != nil {
		return fmt.Errorf("%s and %s: %w", report, ek, err)
	}
	encoded, err := asked.Encode()
	if err != nil {
		return err
	}
	tpm := fmt.Sprintf("number %x of %s, SHA-256 %x", certificates[0].SerialNumber, certificates[0].Issuer, sha256.Sum256(certificates[0].Raw))
	kept, err := json.Marshal(pendingAnswer{bootreport.ChallengeFormat, asked.Key, hex.EncodeToString(answer), tpm})
	if err != nil {
		return err
	}
	if err := createFile(path+".answer", append(kept, '\n'), 0o600); err != nil {
		return err
	}
	if err := createFile(path, encoded, 0o644); err != nil {
		return errors.Join(err, os.Remove(path+".answer"))
	}
	_, err = fmt.Fprintf(c.stdout, "%s is for the TPM with certificate %s\nnext, on the machine: halogenctl boot-report --challenge FILE\n", path, tpm)
	return err
}

// createFile makes a file that is not there yet: an earlier challenge may be on its way.
func createFile(path string, data []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s is there already: remove it if that challenge is given up", path)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

func readCertificates(path string) ([]*x509.Certificate, error) {
	data, err := files.Read(path, maxCertificates)
	if err != nil {
		return nil, err
	}
	all, err := bootreport.Certificates(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return all, nil
}

// checkAnswer compares what a machine says with what was asked. A wrong answer leaves the
// challenge as it is: chance finds none of its 256 bits.
func (c command) checkAnswer(path, answer string) error {
	text, err := files.Read(path+".answer", bootreport.MaxChallenge)
	if err != nil {
		return err
	}
	var want pendingAnswer
	if err := strictjson.Decode(text, &want); err != nil {
		return fmt.Errorf("%s.answer: %w", path, err)
	}
	if want.Format != bootreport.ChallengeFormat || len(want.Answer) != 64 {
		return fmt.Errorf("%s.answer: it is not what this command has written", path)
	}
	if subtle.ConstantTimeCompare([]byte(strings.ToLower(strings.TrimSpace(answer))), []byte(want.Answer)) != 1 {
		return fmt.Errorf("the answer is wrong: the machine has no TPM with certificate %s, or the answer is that to another challenge", want.TPM)
	}
	if _, err := fmt.Fprintf(c.stdout, "%s\n", want.Key); err != nil {
		return err
	}
	fmt.Fprintf(c.stderr, "that is the attestation key of the TPM with certificate %s: halogen verify-report --key takes it\n", want.TPM)
	return errors.Join(os.Remove(path+".answer"), removeIfThere(path))
}

func removeIfThere(path string) error {
	if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
