package bootreport_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/bootreport"
	"halogenos.internal/boot/bootreport/reporttest"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/extension"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
)

const nonce = "a question of 1 o'clock"

// signed is a report with another log or other registers, which a TPM has signed.
func signed(t *testing.T, s reporttest.Signer, log *reporttest.Log, change func(*bootreport.Report), words ...string) *bootreport.Report {
	t.Helper()
	r := &bootreport.Report{Statement: reporttest.Statement(7, nonce), EventLog: log.Bytes()}
	if words == nil {
		words = []string{pcr.EnterInitrd, pcr.LeaveInitrd}
	}
	r.PCRs = reporttest.PCRs(t, r.EventLog, pcr.Digest(reporttest.Want(7).Release.PCR11), words...)
	if change != nil {
		change(r)
	}
	return s.Quote(t, r)
}

func set(n int, d pcr.Digest) func(*bootreport.Report) {
	return func(r *bootreport.Report) { r.PCRs[slices.Index(bootreport.Quoted(), n)].SHA256 = d }
}

func TestVerify(t *testing.T) {
	s := reporttest.NewSigner(t)
	name, err := bootreport.KeyName(s.Public())
	if err != nil {
		t.Fatal(err)
	}
	want := reporttest.Want(7)
	want.Key, want.Nonce = &name, []byte(nonce)
	text, err := s.Report(t, 7, nonce).Encode()
	if err != nil {
		t.Fatal(err)
	}
	r, err := bootreport.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	f, err := bootreport.Verify(r, want)
	if err != nil {
		t.Fatal(err)
	}
	if f.SameOwner {
		t.Error("an owner that nobody knew is the same")
	}
	want.Owner = f.Owner()
	if f, err := bootreport.Verify(r, want); err != nil || !f.SameOwner {
		t.Errorf("the same owner: %+v, %v", f, err)
	}
	want.Owner = "none"
	if f, err := bootreport.Verify(r, want); err == nil || !strings.Contains(err.Error(), "somebody has cleared the keys") {
		t.Errorf("another owner: %+v, %v", f, err)
	}
	if f.Machine != name || f.Version != 7 || f.Floor != 2 || !f.SecureBoot || !f.OwnKeys || !slices.Equal(f.Phases, []string{"sysinit", "ready"}) || len(f.PK) != 1 || len(f.DB) != 1 {
		t.Errorf("%+v", f)
	}
	sum := sha256.Sum256([]byte("a certificate"))
	if !bytes.Equal(f.PK[0].SHA256, sum[:]) {
		t.Errorf("PK is %x, want %x", f.PK[0].SHA256, sum)
	}
}

// Each report that is not of this machine, this question or this release is refused in
// words of its own.
func TestVerifyRefuses(t *testing.T) {
	s, other := reporttest.NewSigner(t), reporttest.NewSigner(t)
	name, err := bootreport.KeyName(s.Public())
	if err != nil {
		t.Fatal(err)
	}
	stub := pcr.Digest(reporttest.Want(7).Release.PCR11)
	changed := func(change func(*bootreport.Report)) *bootreport.Report {
		r := s.Report(t, 7, nonce)
		change(r)
		return r
	}
	shell := pcr.Digest(sha256.Sum256([]byte("shell")))
	nvidia, vpn := reporttest.Extensions()[0], reporttest.Extensions()[1]
	stray := extension.Measured{Name: "vpnx", RootHash: vpn.RootHash}
	extended := func(names []extension.Measured, measured ...extension.Measured) *bootreport.Report {
		return signed(t, s, reporttest.Boot(7), func(r *bootreport.Report) {
			r.Statement.Extensions = names
			set(pcr.SystemExts, extension.Register(measured))(r)
		})
	}
	stranger := gpt.MustGUID("77fa9abd-0359-4d32-bd60-28f4e78f784b")
	for _, test := range []struct {
		name   string
		report *bootreport.Report
		want   string
	}{
		{"another machine", other.Report(t, 7, nonce), "it is of another machine"},
		{"replayed", s.Report(t, 7, "yesterday"), "made for another question, and may be an old one"},
		{"nobody asked", s.Report(t, 7, ""), "answers no nonce"},
		{"an older release", s.Report(t, 6, nonce), "runs release 6, which is older than 7"},
		{"a newer release", s.Report(t, 8, nonce), "runs release 8, which is newer than 7"},
		{"an older release that says it is new", changed(func(r *bootreport.Report) {
			*r = *s.Report(t, 6, nonce)
			r.Statement = reporttest.Statement(7, nonce)
			s.Quote(t, r)
		}), "which the UKI of release 7 does not leave"},
		{"another key under the same signature", changed(func(r *bootreport.Report) { r.Quote = other.Report(t, 7, nonce).Quote; r.Signature[10] ^= 1 }), "not signed by the report's key"},
		{"a changed statement", changed(func(r *bootreport.Report) { r.Statement.Floor = 9 }), "changed what the report says"},
		{"changed registers", changed(set(pcr.SystemID, stub)), "other values than the report's PCRs"},
		{"a changed log", changed(func(r *bootreport.Report) { r.EventLog = reporttest.Boot(8).Bytes() }), "does not account for PCR 4: somebody has changed the log"},
		{"a changed log of keys", changed(func(r *bootreport.Report) {
			r.EventLog = reporttest.NewLog().Keys(true, stranger, stranger).Bytes()
		}), "does not account for PCR 4, 7"},
		{"half a log", changed(func(r *bootreport.Report) { r.EventLog = r.EventLog[:len(r.EventLog)-1] }), "parse event log"},
		{"a shim's keys", signed(t, s, reporttest.Boot(7), set(14, stub)), "does not account for PCR 14"},
		{"another image", signed(t, s, reporttest.Boot(7), func(r *bootreport.Report) { r.Statement.ImageID = "server" }), "server for x86_64, want desktop for x86_64"},
		{"another epoch", signed(t, s, reporttest.Boot(7), func(r *bootreport.Report) { r.Statement.Epoch = 4 }), "epoch 4, want 3"},
		{"in the initramfs", signed(t, s, reporttest.Boot(7), nil, pcr.EnterInitrd), "had not handed over"},
		{"after the recovery console", signed(t, s, reporttest.Boot(7), nil, pcr.EnterInitrd, pcr.Recovery, "sysinit"), "recovery console was open"},
		{"extended since", signed(t, s, reporttest.Boot(7), nil, pcr.EnterInitrd, pcr.LeaveInitrd, "x"), "something has extended it since"},
		{"a command line", signed(t, s, reporttest.Boot(7), set(pcr.KernelConfig, stub)), "PCR 12: a command line"},
		{"an extension", signed(t, s, reporttest.Boot(7), set(pcr.SystemExts, stub)), "PCR 13: a system extension"},
		{"an extension that the report does not name", extended(nil, vpn), "another one than the report names"},
		{"another extension than it names", extended([]extension.Measured{vpn}, nvidia), "another one than the report names"},
		{"an extension that the release has not", extended([]extension.Measured{vpn, stray}, vpn, stray), "extension vpnx is part of the system"},
		{"no end", signed(t, s, reporttest.Boot(7), set(pcr.SystemID, pcr.Digest{})), "PCR 15: neither"},
		{"Secure Boot off", signed(t, s, keys(false, reporttest.Owner, reporttest.Owner), nil), "Secure Boot was off"},
		{"a driver", signed(t, s, reporttest.Boot(7).Measured(pcr.Drivers, pcr.EventBootDriver, make([]byte, 32), shell), nil), "PCR 2: EFI drivers or option ROMs have run, which could change all that started after them: " + shell.String()},
		{"a driver under another's name", signed(t, s, reporttest.Boot(7).Measured(pcr.Drivers, pcr.EventEFIAction, []byte("nothing"), shell), nil), "PCR 2: EFI drivers"},
		{"a driver that the log lacks", signed(t, s, reporttest.Boot(7), set(pcr.Drivers, shell)), "does not account for PCR 2"},
		{"changed firmware", changed(set(0, shell)), "other values than the report's PCRs"},
		{"debug mode", signed(t, s, reporttest.Boot(7).Event(pcr.SecureBoot, pcr.EventEFIAction, []byte("UEFI Debug Mode")), nil), `the firmware says "UEFI Debug Mode"`},
		{"no DMA protection", signed(t, s, reporttest.Boot(7).Event(pcr.SecureBoot, pcr.EventAction, []byte("DMA Protection Disabled")), nil), `"DMA Protection Disabled"`},
		{"others' keys", signed(t, s, keys(true, reporttest.Owner, stranger), nil), "not the firmware's owner's"},
		{"an authority more, of the owner's", signed(t, s, keys(true, reporttest.Owner, stranger).Authority(reporttest.Owner), nil), "not an entry of the db that was measured"},
		{"an authority twice", signed(t, s, reporttest.Boot(7).Authority(reporttest.Owner), nil), "measured twice"},
		{"an authority before the lists", signed(t, s, reporttest.NewLog().Authority(reporttest.Owner).Keys(true, reporttest.Owner, reporttest.Owner).Program(manager).Program(image), nil), "before SecureBoot was measured"},
		{"a program before", signed(t, s, reporttest.NewLog().Keys(true, reporttest.Owner, reporttest.Owner).Program(shell).Program(manager).Program(image), nil), "before the UKI ran what release 7 does not have: " + shell.String()},
		{"another boot manager", signed(t, s, reporttest.NewLog().Keys(true, reporttest.Owner, reporttest.Owner).Program(shell).Program(image), nil), "boot manager of another of your releases?"},
		{"another UKI", signed(t, s, reporttest.NewLog().Keys(true, reporttest.Owner, reporttest.Owner).Program(manager).Program(shell), nil), "the UKI of release 7 has not run"},
		{"another boot option after", signed(t, s, reporttest.Boot(7).Event(pcr.BootPrograms, pcr.EventEFIAction, []byte("Returning from EFI Application from Boot Option")).Program(shell), nil), "came back to the firmware"},
		{"another kernel", signed(t, s, reporttest.Boot(7).Program(shell), nil), "which is not its kernel"},
		{"programs after", signed(t, s, reporttest.Boot(7).Program(shell).Program(shell), nil), "more than a kernel"},
		{"nothing but a lie", signed(t, s, reporttest.Boot(7).Measured(pcr.BootPrograms, pcr.EventIPL, nil, shell), nil), "may stand for a program"},
	} {
		want := reporttest.Want(7)
		want.Key, want.Nonce = &name, []byte(nonce)
		if f, err := bootreport.Verify(test.report, want); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %+v, %v; want %q", test.name, f, err, test.want)
		}
	}
}

var manager, image = func() (m, u pcr.Digest) {
	f := reporttest.Want(7).Release.Files
	return pcr.Digest(f[1].Authenticode), pcr.Digest(f[0].Authenticode)
}()

func keys(on bool, owner, authority gpt.GUID) *reporttest.Log {
	return reporttest.NewLog().Keys(on, owner, authority).Program(manager).Program(image)
}

// The extensions that a machine has measured are the report's, if the release lists them.
func TestVerifyExtensions(t *testing.T) {
	s := reporttest.NewSigner(t)
	for _, names := range [][]extension.Measured{nil, reporttest.Extensions()[1:], reporttest.Extensions()} {
		r := signed(t, s, reporttest.Boot(7), func(r *bootreport.Report) {
			r.Statement.Extensions = names
			set(pcr.SystemExts, extension.Register(names))(r)
		})
		if f, err := bootreport.Verify(r, reporttest.Want(7)); err != nil || !reflect.DeepEqual(f.Extensions, names) {
			t.Errorf("%v: %+v, %v", names, f, err)
		}
	}
	first := reporttest.Extensions()[0]
	for what, names := range map[string][]extension.Measured{
		"want them sorted": {first, first}, "want 1 to 64 of": {{Name: "A", RootHash: first.RootHash}}, "root hash of 1 bytes": {{Name: "a", RootHash: first.RootHash[:1]}},
	} {
		statement := reporttest.Statement(7, nonce)
		statement.Extensions = names
		if _, err := statement.Qualifier(); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%v, want %q", err, what)
		}
	}
}

// What may differ between good machines does not matter.
func TestVerifyTakes(t *testing.T) {
	s := reporttest.NewSigner(t)
	shell := pcr.Digest(sha256.Sum256([]byte("shell")))
	kernel, err := authenticode.Measured(reporttest.Kernel())
	if err != nil {
		t.Fatal(err)
	}
	for name, r := range map[string]*bootreport.Report{
		"the kernel measured":     signed(t, s, reporttest.Boot(7).Program(kernel), nil),
		"a program that is named": signed(t, s, reporttest.NewLog().Keys(true, reporttest.Owner, reporttest.Owner).Program(shell).Program(image), nil),
		"a driver that is named":  signed(t, s, reporttest.Boot(7).Measured(pcr.Drivers, pcr.EventRuntimeDriver, make([]byte, 32), shell), set(0, shell)),
		"an action":               signed(t, s, reporttest.Boot(7).Event(pcr.SecureBoot, pcr.EventEFIAction, []byte("Booting")), nil),
		"without pcrphase":        signed(t, s, reporttest.Boot(7), nil),
	} {
		want := reporttest.Want(7)
		want.Programs, want.Drivers = []pcr.Digest{shell}, []pcr.Digest{shell}
		if _, err := bootreport.Verify(r, want); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	want := reporttest.Want(7)
	want.Contract.SecureBoot = contract.Optional
	if f, err := bootreport.Verify(signed(t, s, keys(false, reporttest.Owner, reporttest.Owner), nil), want); err != nil || f.SecureBoot || f.OwnKeys {
		t.Errorf("Secure Boot that may be off: %+v, %v", f, err)
	}
}

// A key that could sign anything, and what such a key could sign, prove nothing.
func TestForeignKeys(t *testing.T) {
	s := reporttest.NewSigner(t)
	free, err := tpm2.Unmarshal[tpm2.TPMTPublic](s.Public())
	if err != nil {
		t.Fatal(err)
	}
	free.ObjectAttributes.Restricted = false
	for name, public := range map[string][]byte{
		"not restricted": tpm2.Marshal(*free), "a storage key": tpm2.Marshal(tpm2.ECCSRKTemplate), "an RSA key": tpm2.Marshal(tpm2.RSASRKTemplate),
		"no point": tpm2.Marshal(bootreport.KeyTemplate()), "cut": s.Public()[:40], "longer": append(s.Public(), 0), "nothing": nil,
	} {
		if n, err := bootreport.KeyName(public); err == nil {
			t.Errorf("%s: taken as %s", name, n)
		}
	}
	name, err := bootreport.KeyName(s.Public())
	if err != nil || name != policy.NameOf(s.Public()) {
		t.Errorf("%s, %v", name, err)
	}
	for what, quote := range map[string]tpm2.TPMSAttest{
		"of the time": {Magic: tpm2.TPMGeneratedValue, Type: tpm2.TPMSTAttestTime, Attested: tpm2.NewTPMUAttest(tpm2.TPMSTAttestTime, &tpm2.TPMSTimeAttestInfo{})},
		"of other PCRs": {Magic: tpm2.TPMGeneratedValue, Type: tpm2.TPMSTAttestQuote, Attested: tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, &tpm2.TPMSQuoteInfo{
			PCRSelect: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA1, PCRSelect: []byte{1, 2, 3}}}},
		})},
	} {
		r := s.Sign(t, s.Report(t, 7, nonce), tpm2.Marshal(quote))
		if _, err := bootreport.Verify(r, reporttest.Want(7)); err == nil || !strings.Contains(err.Error(), "the quote: it is") {
			t.Errorf("a quote %s: %v", what, err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	good, err := reporttest.NewSigner(t).Report(t, 7, nonce).Encode()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ old, new, want string }{
		{`"format": 1`, `"format": 2`, "format 2, want 1"},
		{`"floor": 2`, `"floor": 2, "Floor": 3`, "comes twice"},
		{`"floor": 2`, `"flour": 2`, "unknown field"},
		{`"pcr": 14`, `"pcr": 13`, "PCR 13 in the place of PCR 14"},
		{`"nonce": "`, `"nonce": "00`, ""},
		{`"root": "tpm"`, `"root": "somehow"`, "want tpm, key, new or none"},
		{`"boot_id": "`, `"boot_id": "\u001b[2J`, "boot_id"},
		{`"slot": "b"`, `"slot": "none"`, "slot"},
		{`"version": "7"`, `"version": "07"`, "without leading zeros"},
		{`"key": "`, `"key": "` + strings.Repeat("00", 200), "key of"},
		{`"event_log": "`, `"event_log": "*`, "illegal base64"},
	} {
		text := strings.Replace(string(good), c.old, c.new, 1)
		if text == string(good) {
			t.Errorf("%q is not in the report", c.old)
		}
		r, err := bootreport.Parse([]byte(text))
		if c.want == "" {
			if _, err := bootreport.Verify(r, reporttest.Want(7)); err == nil {
				t.Errorf("%q: a changed report is good", c.new)
			}
		} else if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.new, err, c.want)
		}
	}
	if _, err := bootreport.Parse(make([]byte, bootreport.MaxSize+1)); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("too long: %v", err)
	}
}

// A statement has one encoding, however it was written: what was signed is what is read.
func TestStatementIsStable(t *testing.T) {
	s := reporttest.Statement(7, nonce)
	s.Reason = "<a> & b \u2028 \ufffd 'c' \"d\"\n"
	want, err := s.Qualifier()
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var again bootreport.Statement
	if err := json.Unmarshal(text, &again); err != nil {
		t.Fatal(err)
	}
	if got, err := again.Qualifier(); err != nil || got != want {
		t.Errorf("%x, %v; want %x", got, err, want)
	}
	s.Reason = "\xff"
	if _, err := s.Qualifier(); err == nil {
		t.Error("a reason that is not UTF-8 was taken")
	}
}

func FuzzParse(f *testing.F) {
	s := reporttest.NewSigner(f)
	good, err := s.Report(f, 7, nonce).Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(bytes.Replace(good, []byte(`"nonce": "`+hex.EncodeToString([]byte(nonce))+`"`), []byte(`"nonce": ""`), 1))
	f.Add([]byte(`{"format":1}`))
	want := reporttest.Want(7)
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := bootreport.Parse(text)
		if err != nil {
			return
		}
		out, err := r.Encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := bootreport.Parse(out)
		if err != nil {
			t.Fatal(err)
		}
		// What was quoted for is the same, no matter who has written it down again.
		was, werr := r.Statement.Qualifier()
		is, ierr := again.Statement.Qualifier()
		if werr != nil || ierr != nil || was != is {
			t.Fatalf("%x, %v; want %x, %v", is, ierr, was, werr)
		}
		if text, err := again.Encode(); err != nil || !bytes.Equal(text, out) {
			t.Fatalf("%s, %v; want %s", text, err, out)
		}
		_, _ = bootreport.Verify(r, want)
	})
}

// FuzzQuote changes what a key has signed: the parsers of the TPM's structures meet bytes
// of an attacker who has a key of their own.
func FuzzQuote(f *testing.F) {
	s := reporttest.NewSigner(f)
	good := s.Report(f, 7, nonce)
	f.Add([]byte(good.Key), []byte(good.Quote), []byte(good.Signature))
	f.Fuzz(func(t *testing.T, key, quote, signature []byte) {
		r := *good
		r.Key, r.Signature = key, signature
		_, _ = bootreport.Verify(&r, reporttest.Want(7))
		r = *good
		if f, err := bootreport.Verify(s.Sign(t, &r, quote), reporttest.Want(7)); err == nil && f.Version != 7 {
			t.Fatalf("%+v", f)
		}
	})
}
