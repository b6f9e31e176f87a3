// Package reporttest makes boot reports for tests: event logs as a firmware writes them,
// and reports that a key in software has signed.
package reporttest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"testing"
	"unicode/utf16"

	"github.com/google/go-tpm/tpm2"

	"halogenos.internal/boot/bootreport"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/extension"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/uki"
	"halogenos.internal/boot/uki/ukitest"
	"halogenos.internal/boot/verity"
)

const (
	global   = "\x61\xdf\xe4\x8b\xca\x93\xd2\x11\xaa\x0d\x00\xe0\x98\x03\x2b\x8c"
	security = "\xcb\xb2\x19\xd7\x3a\x3d\x96\x45\xa3\xbc\xda\xd0\x0e\x67\x65\x6f"
)

// A Log is a firmware's event log under way.
type Log struct{ out []byte }

// NewLog begins a log with one bank, SHA-256.
func NewLog() *Log {
	le := binary.LittleEndian
	id := []byte("Spec ID Event03\x00\x00\x00\x00\x00\x00\x02\x00\x02")
	id = le.AppendUint32(id, 1)
	id = le.AppendUint16(id, uint16(pcr.SHA256))
	id = append(le.AppendUint16(id, sha256.Size), 0)
	l := new(Log)
	l.out = le.AppendUint32(le.AppendUint32(nil, 0), uint32(pcr.EventNoAction))
	l.out = append(l.out, make([]byte, 20)...)
	l.out = append(le.AppendUint32(l.out, uint32(len(id))), id...)
	return l
}

// Event appends an event that measured its own data.
func (l *Log) Event(register int, kind pcr.EventType, data []byte) *Log {
	return l.Measured(register, kind, data, sha256.Sum256(data))
}

// Measured appends an event that measured what its data only describes.
func (l *Log) Measured(register int, kind pcr.EventType, data []byte, digest pcr.Digest) *Log {
	le := binary.LittleEndian
	l.out = le.AppendUint32(le.AppendUint32(le.AppendUint32(l.out, uint32(register)), uint32(kind)), 1)
	l.out = append(le.AppendUint16(l.out, uint16(pcr.SHA256)), digest[:]...)
	l.out = append(le.AppendUint32(l.out, uint32(len(data))), data...)
	return l
}

// Program appends the start of an EFI program.
func (l *Log) Program(digest pcr.Digest) *Log {
	return l.Measured(pcr.BootPrograms, pcr.EventBootApplication, make([]byte, 32), digest)
}

// Keys appends what a firmware measures whose lists are of this owner, and the authority
// that has let the boot manager start.
func (l *Log) Keys(on bool, owner, authority gpt.GUID) *Log {
	state := []byte{0}
	if on {
		state[0] = 1
	}
	list := func(owner gpt.GUID) []byte {
		d, err := secureboot.Database{{Type: secureboot.TypeX509, Owner: owner, Data: []byte("a certificate")}}.Marshal()
		if err != nil {
			panic(err)
		}
		return d
	}
	for _, v := range []struct {
		space, name string
		data        []byte
	}{{global, "SecureBoot", state}, {global, "PK", list(owner)}, {global, "KEK", list(owner)}, {security, "db", list(authority)}, {security, "dbx", nil}} {
		l.Event(pcr.SecureBoot, pcr.EventVariableConfig, variable(v.space, v.name, v.data))
	}
	l.Event(pcr.SecureBoot, pcr.EventSeparator, make([]byte, 4))
	if on {
		l.Authority(authority)
	}
	return l.Event(pcr.BootPrograms, pcr.EventEFIAction, []byte("Calling EFI Application from Boot Option")).
		Event(pcr.BootPrograms, pcr.EventSeparator, make([]byte, 4))
}

// Authority appends the entry of db that has let something start.
func (l *Log) Authority(owner gpt.GUID) *Log {
	e := secureboot.Entry{Type: secureboot.TypeX509, Owner: owner, Data: []byte("a certificate")}
	return l.Event(pcr.SecureBoot, pcr.EventVariableAuthority, variable(security, "db", e.SignatureData()))
}

func variable(space, name string, data []byte) []byte {
	units := utf16.Encode([]rune(name))
	out := binary.LittleEndian.AppendUint64([]byte(space), uint64(len(units)))
	out = binary.LittleEndian.AppendUint64(out, uint64(len(data)))
	for _, unit := range units {
		out = binary.LittleEndian.AppendUint16(out, unit)
	}
	return append(out, data...)
}

// Bytes returns the log.
func (l *Log) Bytes() []byte { return l.out }

// Owner is whose keys a machine of Boot has.
var Owner = gpt.MustGUID("1b4e28ba-2fa1-11d2-883f-0016d3cca427")

// Stub is what the UKI of a version measures into PCR 11, as one event.
func Stub(version contract.Version) pcr.Digest {
	return sha256.Sum256([]byte("uki " + version.String()))
}

func program(name string, version contract.Version) pcr.Digest {
	return sha256.Sum256([]byte(name + version.String()))
}

// Want is a release of a version, as a report is compared with it.
func Want(version contract.Version) bootreport.Want {
	sum := sha256.Sum256([]byte(version.String()))
	pcr11 := pcr.Digest{}.Extend(Stub(version))
	file := func(name string) release.File {
		d := program(name, version)
		return release.File{Name: name, Size: 100, SHA256: sum[:], Authenticode: d[:]}
	}
	return bootreport.Want{
		Release: &release.Release{
			Format: release.Format, ImageID: "desktop", Arch: "x86_64", Version: version, Epoch: 3, PCR11: pcr11[:],
			Files: []release.File{file(release.UKIFile), file(release.BootManagerFile), {Name: release.ImageFile}},
		},
		Contract: &contract.Contract{SecureBoot: contract.Required},
		UKI:      image(),
	}
}

// Kernel is that in the UKI of Want.
func Kernel() []byte { return ukitest.Stub("kernel") }

// Extensions are those that the UKI of Want lists.
func Extensions() (list []extension.Measured) {
	for _, name := range []string{"nvidia", "vpn"} {
		sum := sha256.Sum256([]byte(name))
		list = append(list, extension.Measured{Name: name, RootHash: sum[:]})
	}
	return list
}

// initrd begins with a contract, the abilities and the list.
func initrd() ([]byte, error) {
	var list []contract.Extension
	for _, m := range Extensions() {
		list = append(list, contract.Extension{Name: m.Name, RootHash: m.RootHash, Salt: []byte{1}, ImageSize: verity.BlockSize})
	}
	c := &contract.Contract{
		Format: contract.Format, ImageID: "desktop", Arch: "x86_64", Version: 7, Epoch: 3, SourceDate: 1, RootHash: list[0].RootHash, Salt: []byte{1},
		ImageSize: verity.BlockSize, SlotSize: 1 << 20, SecureBoot: contract.Required, TPM: contract.Required, VendorKeys: contract.VendorAuto, RootFileSystem: "ext4",
	}
	first, err := contract.Archive(c)
	if err != nil {
		return nil, err
	}
	third, err := contract.ExtensionsArchive(list)
	return append(first, third...), err
}

func image() *uki.Image {
	begin, err := initrd()
	if err != nil {
		panic(err)
	}
	img, err := uki.Parse(ukitest.Image(ukitest.Section{Name: ".linux", Data: Kernel()}, ukitest.Section{Name: ".initrd", Data: begin}))
	if err != nil {
		panic(err)
	}
	return img
}

// Boot is the log of a machine that has started a release under its own keys.
func Boot(version contract.Version) *Log { return bootOf(Want(version).Release) }

func bootOf(r *release.Release) *Log {
	manager, _ := r.File(release.BootManagerFile)
	started, _ := r.File(release.UKIFile)
	return NewLog().Keys(true, Owner, Owner).Program(pcr.Digest(manager.Authenticode)).Program(pcr.Digest(started.Authenticode))
}

// Statement is what such a machine says.
func Statement(version contract.Version, nonce string) bootreport.Statement {
	return statementOf(Want(version).Release, nonce)
}

func statementOf(r *release.Release, nonce string) bootreport.Statement {
	return bootreport.Statement{
		Nonce: []byte(nonce), Time: 1_800_000_000, BootID: "0f3c9f6e-7d0e-4a55-9c1a-2f8a4c1f0b11", ImageID: r.ImageID, Arch: r.Arch,
		Version: r.Version, Epoch: r.Epoch, Floor: 2, Slot: layout.SlotB, Reason: "it is the newest", Root: "tpm",
	}
}

// PCRs are the registers after a boot by this log: stub is what PCR 11 held when the
// kernel started, and words what was measured into it since.
func PCRs(t testing.TB, log []byte, stub pcr.Digest, words ...string) []bootreport.PCR {
	t.Helper()
	parsed, err := pcr.ParseLog(log)
	if err != nil {
		t.Fatal(err)
	}
	values, err := parsed.PCRs()
	if err != nil {
		t.Fatal(err)
	}
	values[pcr.KernelImage] = pcr.Phases(stub, words...)
	values[pcr.SystemID] = values[pcr.SystemID].Extend(sha256.Sum256([]byte("volume")))
	var all []bootreport.PCR
	for _, n := range bootreport.Quoted() {
		all = append(all, bootreport.PCR{PCR: n, SHA256: values[n]})
	}
	return all
}

// A Signer quotes with a key in software: what it signs is a TPM's quote to anyone who does
// not know its key.
type Signer struct{ key *ecdsa.PrivateKey }

// NewSigner makes a key.
func NewSigner(t testing.TB) Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return Signer{key}
}

// Public is the key's TPMT_PUBLIC.
func (s Signer) Public() []byte {
	template := bootreport.KeyTemplate()
	template.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: s.key.X.FillBytes(make([]byte, 32))}, Y: tpm2.TPM2BECCParameter{Buffer: s.key.Y.FillBytes(make([]byte, 32))},
	})
	return tpm2.Marshal(template)
}

// Quote fills in what a TPM gives.
func (s Signer) Quote(t testing.TB, r *bootreport.Report) *bootreport.Report {
	t.Helper()
	qualifier, err := r.Statement.Qualifier()
	if err != nil {
		t.Fatal(err)
	}
	h := sha256.New()
	for _, p := range r.PCRs {
		h.Write(p.SHA256[:])
	}
	return s.Sign(t, r, tpm2.Marshal(tpm2.TPMSAttest{
		Magic: tpm2.TPMGeneratedValue, Type: tpm2.TPMSTAttestQuote, ExtraData: tpm2.TPM2BData{Buffer: qualifier[:]},
		Attested: tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, &tpm2.TPMSQuoteInfo{
			PCRSelect: bootreport.Selection(), PCRDigest: tpm2.TPM2BDigest{Buffer: h.Sum(nil)},
		}),
	}))
}

// Sign signs whatever stands for a quote.
func (s Signer) Sign(t testing.TB, r *bootreport.Report, quote []byte) *bootreport.Report {
	t.Helper()
	sum := sha256.Sum256(quote)
	a, b, err := ecdsa.Sign(rand.Reader, s.key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	r.Format, r.Key, r.Quote = bootreport.Format, s.Public(), quote
	r.Signature = tpm2.Marshal(tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgECDSA, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{
		Hash:       tpm2.TPMAlgSHA256,
		SignatureR: tpm2.TPM2BECCParameter{Buffer: a.FillBytes(make([]byte, 32))},
		SignatureS: tpm2.TPM2BECCParameter{Buffer: b.FillBytes(make([]byte, 32))},
	})})
	return r
}

// Report is a good report of a boot of a release, signed by s.
func (s Signer) Report(t testing.TB, version contract.Version, nonce string) *bootreport.Report {
	t.Helper()
	return s.Of(t, Want(version).Release, nonce)
}

// Of is Report for a release that was built.
func (s Signer) Of(t testing.TB, r *release.Release, nonce string) *bootreport.Report {
	t.Helper()
	log := bootOf(r).Bytes()
	return s.Quote(t, &bootreport.Report{
		Statement: statementOf(r, nonce), EventLog: log,
		PCRs: PCRs(t, log, pcr.Digest(r.PCR11), pcr.EnterInitrd, pcr.LeaveInitrd, "sysinit", "ready"),
	})
}
