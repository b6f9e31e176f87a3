// Command boot-report prints a report of this boot that the TPM signs.
package main

import (
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"halogenos.internal/boot/bootreport"
	"halogenos.internal/boot/bounded"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/extension"
	"halogenos.internal/initagent/bootinfo"
	"halogenos.internal/initagent/command"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/tpm"
)

const help = `usage: boot-report [--nonce HEX]
       boot-report --challenge FILE

Prints a report of this boot that the TPM signs: which boot manager and which
release were started, in which state of Secure Boot and under whose keys, with
the firmware's event log; and, as this system's own word, the slot and why it
was chosen, and the floor. 'halogen verify-report' judges it, on any machine.

Who will judge gives the nonce, 8 to 64 random bytes as hexadecimal digits: a
report without one may be an old one. Nothing is written, and nothing is stored
in the TPM. The report has no serial number, but the public part of a key that
is this machine's until its TPM is cleared.

With --challenge it answers what 'halogen certify' has written, which finds out
that the key is one of a TPM that its maker has certified: prints 64 hexadecimal
digits. That alone uses the TPM's endorsement key.

Exit codes: 0 printed, 1 failed, 2 wrong usage.
`

func main() { cmd(source{TPM: hw.OwnTPM(), Place: bootinfo.Linux(), Now: time.Now}).Main() }

// source is where the facts come from.
type source struct {
	TPM interface {
		Open() (*tpm.TPM, error)
		EventLog() ([]byte, error)
	}
	Place bootinfo.Place
	Now   func() time.Time
}

func cmd(s source) command.Command {
	var nonce, challenge string
	return command.Command{
		Name: "boot-report", Help: help,
		Flags: func(f *flag.FlagSet) {
			f.StringVar(&nonce, "nonce", "", "")
			f.StringVar(&challenge, "challenge", "", "")
		},
		Run: func(_ context.Context, c *command.Call) error {
			if nonce != "" && challenge != "" {
				return fmt.Errorf("%w: --nonce is for a report, and --challenge asks for none", command.ErrUsage)
			}
			if challenge != "" {
				answer, err := s.answer(challenge)
				if err == nil {
					_, err = fmt.Fprintf(c.Stdout, "%x\n", answer)
				}
				return err
			}
			raw, err := hex.DecodeString(nonce)
			if err != nil {
				return fmt.Errorf("%w: --nonce: want hexadecimal digits", command.ErrUsage)
			}
			statement, err := s.statement(raw)
			if err != nil {
				return err
			}
			text, err := s.report(statement)
			if err != nil {
				return err
			}
			_, err = c.Stdout.Write(text)
			return err
		},
	}
}

// statement is what this system says of its boot.
func (s source) statement(nonce []byte) (bootreport.Statement, error) {
	boot, err := s.Place.Boot()
	if err == nil && boot == nil {
		err = errors.New("this system was not started by HalogenOS: " + s.Place.Report + " is not there")
	}
	if err != nil {
		return bootreport.Statement{}, err
	}
	version, err := contract.ParseVersion(boot.Version)
	if err != nil {
		return bootreport.Statement{}, fmt.Errorf("report of this boot: %w", err)
	}
	id, err := os.ReadFile(s.Place.BootID)
	if err != nil {
		return bootreport.Statement{}, err
	}
	reason := strings.ToValidUTF8(boot.Reason[:min(len(boot.Reason), bootreport.MaxReason)], "")
	return bootreport.Statement{
		Nonce: nonce, Time: s.Now().Unix(), BootID: strings.TrimSpace(string(id)),
		ImageID: boot.ImageID, Arch: boot.Arch, Version: version, Epoch: boot.Epoch, Floor: boot.Floor,
		Slot: boot.Slot, Trial: boot.Trial, Reason: reason, Root: boot.Root, Extensions: (&extension.Boot{States: boot.Extensions}).Measured(),
	}, nil
}

// report has the TPM sign it.
func (s source) report(statement bootreport.Statement) (text []byte, err error) {
	r := &bootreport.Report{Statement: statement}
	if r.EventLog, err = s.TPM.EventLog(); err != nil {
		return nil, err
	}
	t, err := s.TPM.Open()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	if err := t.Quote(r); err != nil {
		return nil, err
	}
	return r.Encode()
}

// answer has the TPM answer a challenge.
func (s source) answer(path string) (answer []byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := bounded.Named(f, path, bootreport.MaxChallenge)
	if err != nil {
		return nil, err
	}
	asked, err := bootreport.ParseChallenge(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	t, err := s.TPM.Open()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	return t.Answer(asked)
}
