// Package theft tries to take what is sealed for the initramfs out of a TPM, as
// somebody would who is root on the running system. The test operating system does
// it with the machine's TPM.
//
// It refuses to be clever: every refusal of the TPM is reported as it came, so that
// a test can tell the right one from a mistake of the thief's.
package theft

import (
	"errors"
	"fmt"
	"io"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/policy"
)

const (
	tokenType     = "halogen-tpm2"
	sealedField   = "sealed"
	storageHandle = tpm2.TPMHandle(0x81000001)
)

// A Result tells how far each attempt came.
type Result struct {
	// Loaded: the sealed object was loaded, so this is the TPM it belongs to, and
	// what is refused later is for its policy.
	Loaded bool `json:"loaded"`
	// Policy is the refusal of PCRs as they are; "" when they were taken.
	Policy string `json:"policy"`
	// Unseal is the refusal to unseal in a session that was brought as far as
	// possible, Straight in one with no assertion.
	Unseal   string `json:"unseal"`
	Straight string `json:"straight"`
	// OwnerWrite and IndexWrite are the refusals of another policy record, by the
	// owner's authorisation and by the index's own.
	OwnerWrite string `json:"owner_write"`
	IndexWrite string `json:"index_write"`
	// Secret is how many bytes were unsealed.
	Secret int `json:"secret"`
}

// Sealed finds the sealed object in the header of a volume of size bytes.
func Sealed(volume io.ReaderAt, size int64) (*policy.Sealed, error) {
	header, _, err := luks2.Open(volume, size)
	if err != nil {
		return nil, err
	}
	for _, t := range header.Tokens() {
		if t.Type == tokenType {
			return policy.ParseSealed(t.Fields[sealedField])
		}
	}
	return nil, fmt.Errorf("no %s token", tokenType)
}

// A thief is at one TPM with one sealed object.
type thief struct {
	t      transport.TPM
	sealed *policy.Sealed
	object tpm2.TPMHandle
}

// Try makes every attempt. An error means that they could not be made.
func Try(t transport.TPM, sealed *policy.Sealed) (r Result, err error) {
	if sealed.Kind != policy.KindNV {
		return r, fmt.Errorf("a sealed object of kind %q, want %q", sealed.Kind, policy.KindNV)
	}
	parent, err := (tpm2.ReadPublic{ObjectHandle: storageHandle}).Execute(t)
	if err != nil {
		return r, fmt.Errorf("storage root key: %w", err)
	}
	loaded, err := tpm2.Load{
		ParentHandle: tpm2.AuthHandle{Handle: storageHandle, Name: parent.Name, Auth: tpm2.PasswordAuth(nil)},
		InPrivate:    tpm2.TPM2BPrivate{Buffer: sealed.Private},
		InPublic:     tpm2.BytesAs2B[tpm2.TPMTPublic](sealed.Public),
	}.Execute(t)
	if err != nil {
		return r, fmt.Errorf("load the sealed object: %w", err)
	}
	defer func() {
		_, ferr := tpm2.FlushContext{FlushHandle: loaded.ObjectHandle}.Execute(t)
		err = errors.Join(err, ferr)
	}()
	th := &thief{t: t, sealed: sealed, object: loaded.ObjectHandle}
	r.Loaded = true
	record, err := th.record()
	if err != nil {
		return r, fmt.Errorf("read the policy record: %w", err)
	}
	if err := th.byPolicy(record, &r); err != nil {
		return r, err
	}
	if err := th.straight(&r); err != nil {
		return r, err
	}
	r.OwnerWrite = text(th.write(tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}))
	r.IndexWrite = text(th.write(th.index()))
	return r, nil
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func (th *thief) index() tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: tpm2.TPMHandle(th.sealed.NVIndex), Name: th.indexName(), Auth: tpm2.PasswordAuth(nil)}
}

func (th *thief) indexName() tpm2.TPM2BName { return tpm2.TPM2BName{Buffer: th.sealed.NVName[:]} }

func (th *thief) namedIndex() tpm2.NamedHandle {
	return tpm2.NamedHandle{Handle: tpm2.TPMHandle(th.sealed.NVIndex), Name: th.indexName()}
}

// record reads which boots may unseal.
func (th *thief) record() (*policy.Record, error) {
	rsp, err := tpm2.NVRead{AuthHandle: th.index(), NVIndex: th.namedIndex(), Size: policy.RecordSize}.Execute(th.t)
	if err != nil {
		return nil, err
	}
	return policy.DecodeRecord(rsp.Data.Buffer)
}

// byPolicy does what initagent does, and goes on after a refusal.
func (th *thief) byPolicy(record *policy.Record, r *Result) error {
	session, end, err := tpm2.PolicySession(th.t, tpm2.TPMAlgSHA256, 16)
	if err != nil {
		return fmt.Errorf("start a session: %w", err)
	}
	defer func() { _ = end() }() // a session that took part in an unseal has ended already
	r.Policy = text(th.assert(session, record))
	var secret []byte
	secret, err = th.unseal(session)
	r.Unseal, r.Secret = text(err), len(secret)
	return nil
}

func (th *thief) assert(session tpm2.Session, record *policy.Record) error {
	var selected [3]byte
	for _, n := range record.PCRs() {
		selected[n/8] |= 1 << (n % 8)
	}
	_, err := tpm2.PolicyPCR{PolicySession: session.Handle(), Pcrs: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{
		{Hash: tpm2.TPMAlgSHA256, PCRSelect: selected[:]}}}}.Execute(th.t)
	if err != nil {
		return fmt.Errorf("PolicyPCR: %w", err)
	}
	branches, err := policy.ORList(record.Digests())
	if err != nil {
		return err
	}
	or := tpm2.PolicyOr{PolicySession: session.Handle()}
	for _, d := range branches {
		or.PHashList.Digests = append(or.PHashList.Digests, tpm2.TPM2BDigest{Buffer: d[:]})
	}
	if _, err := or.Execute(th.t); err != nil {
		return fmt.Errorf("PolicyOR: %w", err)
	}
	_, err = tpm2.PolicyAuthorizeNV{AuthHandle: th.index(), NVIndex: th.namedIndex(), PolicySession: session.Handle()}.Execute(th.t)
	if err != nil {
		return fmt.Errorf("PolicyAuthorizeNV: %w", err)
	}
	return nil
}

func (th *thief) unseal(session tpm2.Session) ([]byte, error) {
	name := th.sealed.Name()
	rsp, err := tpm2.Unseal{ItemHandle: tpm2.AuthHandle{Handle: th.object, Name: tpm2.TPM2BName{Buffer: name[:]}, Auth: session}}.Execute(th.t)
	if err != nil {
		return nil, fmt.Errorf("unsealing: %w", err)
	}
	return rsp.OutData.Buffer, nil
}

// straight unseals as if there were no policy.
func (th *thief) straight(r *Result) error {
	session, end, err := tpm2.PolicySession(th.t, tpm2.TPMAlgSHA256, 16)
	if err != nil {
		return fmt.Errorf("start a session: %w", err)
	}
	defer func() { _ = end() }() // as above
	secret, err := th.unseal(session)
	r.Straight, r.Secret = text(err), r.Secret+len(secret)
	return nil
}

// write puts a record that allows anything in the place of the real one; the TPM
// looks at nothing but the digest at its start.
func (th *thief) write(auth tpm2.AuthHandle) error {
	_, err := tpm2.NVWrite{AuthHandle: auth, NVIndex: th.namedIndex(), Data: tpm2.TPM2BMaxNVBuffer{Buffer: make([]byte, policy.RecordSize)}}.Execute(th.t)
	return err
}
