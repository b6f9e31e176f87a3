package tpm

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"halogenos.internal/boot/bootreport"
	"halogenos.internal/boot/bootreport/reporttest"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
)

// extend measures a digest in the SHA-256 bank, as a firmware does.
func (e *emulator) extend(n int, d pcr.Digest) {
	e.t.Helper()
	_, err := tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(n), Name: tpm2.HandleName(tpm2.TPMHandle(n)), Auth: tpm2.PasswordAuth(nil)},
		Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: d[:]}}},
	}.Execute(e.raw)
	if err != nil {
		e.t.Fatal(err)
	}
}

// startRelease measures a boot of a release: what the firmware and the stub measure, and what
// initagent does. It returns the firmware's log.
func (e *emulator) startRelease(version contract.Version) []byte {
	e.t.Helper()
	raw := reporttest.Boot(version).Bytes()
	log, err := pcr.ParseLog(raw)
	if err != nil {
		e.t.Fatal(err)
	}
	for _, event := range log.Events {
		sum, _ := event.Digest(pcr.SHA256)
		e.extend(event.PCR, pcr.Digest(sum))
	}
	e.extend(pcr.KernelImage, reporttest.Stub(version))
	t := e.open()
	for _, m := range []struct {
		pcr  int
		word string
	}{{pcr.KernelImage, pcr.EnterInitrd}, {pcr.SystemID, "the volume's"}, {pcr.KernelImage, pcr.LeaveInitrd}} {
		if err := t.ExtendText(m.pcr, m.word); err != nil {
			e.t.Fatal(err)
		}
	}
	return raw
}

// report asks the emulator for a report, and takes it through a file's form.
func (e *emulator) report(version contract.Version, log []byte, nonce string) *bootreport.Report {
	e.t.Helper()
	r := &bootreport.Report{Statement: reporttest.Statement(version, nonce), EventLog: log}
	t := e.open()
	defer closed(e.t, t)
	if err := t.Quote(r); err != nil {
		e.t.Fatal(err)
	}
	text, err := r.Encode()
	if err != nil {
		e.t.Fatal(err)
	}
	if r, err = bootreport.Parse(text); err != nil {
		e.t.Fatal(err)
	}
	return r
}

// A report of today is good; one that was replayed, one with a changed log, one of another
// machine and one of an older release are refused, each for what it is.
func TestReports(t *testing.T) {
	e, stranger := startTPM(t), startTPM(t)
	old := e.report(6, e.startRelease(6), "nonce of today")
	e.reboot()
	log := e.startRelease(7)
	good := e.report(7, log, "nonce of today")
	name, err := bootreport.KeyName(good.Key)
	if err != nil {
		t.Fatal(err)
	}
	want := reporttest.Want(7)
	want.Key, want.Nonce = &name, []byte("nonce of today")
	f, err := bootreport.Verify(good, want)
	if err != nil || f.Machine != name || f.Version != 7 || !f.OwnKeys || len(f.Phases) != 0 {
		t.Fatalf("%+v, %v", f, err)
	}
	changed := *good
	changed.EventLog = reporttest.Boot(8).Bytes()
	for what, c := range map[string]struct {
		r    *bootreport.Report
		want string
	}{
		"replayed":         {e.report(7, log, "nonce of before"), "made for another question, and may be an old one"},
		"a changed log":    {&changed, "the event log does not account for PCR 4"},
		"another machine":  {stranger.report(7, stranger.startRelease(7), "nonce of today"), "it is of another machine"},
		"an older release": {old, "runs release 6, which is older than 7"},
	} {
		if f, err := bootreport.Verify(c.r, want); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %+v, %v; want %q", what, f, err, c.want)
		}
	}
}

// The key is the same in each boot, is made without a trace, and another after the TPM
// was cleared.
func TestAttestationKeyIsTheSame(t *testing.T) {
	e := startTPM(t)
	first := e.report(7, e.startRelease(7), "")
	e.reboot()
	second := e.report(7, e.startRelease(7), "")
	if !bytes.Equal(first.Key, second.Key) {
		t.Error("the key is another after a restart")
	}
	for _, kind := range []string{"persistent", "transient", "loaded-session", "nv-index"} {
		if out := e.mustTool("tpm2_getcap handles-" + kind); strings.TrimSpace(out) != "" {
			t.Errorf("%s: %s", kind, out)
		}
	}
	e.mustTool("tpm2_clear -c p")
	if third := e.report(7, reporttest.Boot(7).Bytes(), ""); bytes.Equal(first.Key, third.Key) {
		t.Error("the key is the same after the TPM was cleared")
	}
}

// tpm2-tools accept the quote, with the key as they show it, and refuse another question.
func TestToolsCheckQuote(t *testing.T) {
	e := startTPM(t)
	r := e.report(7, e.startRelease(7), "nonce of today")
	e.put("key.pub", append(binary.BigEndian.AppendUint16(nil, uint16(len(r.Key))), r.Key...))
	e.put("quote", r.Quote)
	e.put("signature", r.Signature)
	qualifier, err := r.Statement.Qualifier()
	if err != nil {
		t.Fatal(err)
	}
	check := "tpm2_checkquote -u key.pub -m quote -s signature -g sha256 -q "
	out := e.mustTool(check + fmt.Sprintf("%x", qualifier))
	digest := sha256.New()
	for _, p := range r.PCRs {
		digest.Write(p.SHA256[:])
	}
	t.Logf("%s", out)
	if out, err := e.tool(check + fmt.Sprintf("%x", sha256.Sum256(qualifier[:]))); err == nil {
		t.Errorf("another question was accepted: %s", out)
	}
	if out := e.mustTool("tpm2_print -t TPMS_ATTEST quote"); !strings.Contains(out, fmt.Sprintf("%x", digest.Sum(nil))) || !strings.Contains(out, fmt.Sprintf("%x", qualifier)) {
		t.Errorf("tpm2_print lacks the registers' digest or the question:\n%s", out)
	}
	out = e.mustTool("tpm2_loadexternal -C n -u key.pub -c key.ctx")
	if name := policy.NameOf(r.Key); !strings.Contains(out, name.String()) {
		t.Errorf("tpm2_loadexternal has no name %s:\n%s", name, out)
	}
}

// Registers that change under the quote are read again, and not without an end.
func TestQuoteOfMovingPCRs(t *testing.T) {
	e := startTPM(t)
	log := e.startRelease(7)
	for _, times := range []int{1, quoteTries} {
		moves := times
		s := &spy{inner: e.raw}
		s.before = func(cc tpm2.TPMCC, _ []byte) []byte {
			if cc == tpm2.TPMCCQuote && moves > 0 {
				moves--
				e.extend(pcr.KernelImage, reporttest.Stub(7))
			}
			return nil
		}
		c := OpenTransport(s)
		r := &bootreport.Report{Statement: reporttest.Statement(7, ""), EventLog: log}
		err := c.Quote(r)
		closed(t, c)
		if (err == nil) != (times < quoteTries) {
			t.Errorf("%d moves: %v", times, err)
		}
	}
}

func TestQuoteRefuses(t *testing.T) {
	e := startTPM(t)
	log := e.startRelease(7)
	r := &bootreport.Report{Statement: reporttest.Statement(7, "short"), EventLog: log}
	if err := e.open().Quote(r); err == nil || !strings.Contains(err.Error(), "nonce of 5 bytes") {
		t.Errorf("a short nonce: %v", err)
	}
	e.mustTool("tpm2_changeauth -c owner secret")
	r.Statement = reporttest.Statement(7, "")
	if err := e.open().Quote(r); !errors.Is(err, ErrOwnerAuth) {
		t.Errorf("an owner's password: %v", err)
	}
}
