package tpm

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"halogenos.internal/boot/policy"
)

// The handles that an index is looked for at and defined at, in this order. They
// lie in the range that the Registry of Reserved TPM 2.0 Handles leaves to the
// owner, 0x01800000 to 0x01BFFFFF, away from its low end, where people and
// other software define theirs by hand.
const (
	firstIndex = 0x01A48600
	indexCount = 16
)

// IndexInfo is an NV index that looks like one of ours.
type IndexInfo struct {
	Handle  uint32
	Name    policy.Name
	Written bool
}

// Define makes the NV index for the policy record, writable by this key alone,
// at the first handle that is free. An index that is there already is left
// alone, no matter who made it. It is unwritten, so nothing can be unlocked with it
// until WriteRecord. A power cut right after leaves an index that nobody uses;
// see Indexes and Undefine.
func (t *TPM) Define(key *ecdsa.PublicKey) (index policy.Index, err error) {
	const op = "defining the NV index"
	defer fence(op, &err)
	if _, err := t.StorageKey(); err != nil {
		return index, err
	}
	taken, err := t.nvIndexes()
	if err != nil {
		return index, wrap(op, err)
	}
	for h := uint32(firstIndex); h < firstIndex+indexCount; h++ {
		if slices.Contains(taken, h) {
			continue
		}
		index = policy.Index{Handle: h, Key: key}
		err := t.define(index)
		if isCode(err, tpm2.TPMRCNVDefined) {
			continue
		}
		return index, wrap(op, err)
	}
	return index, fmt.Errorf("%s: %w: handles %#x to %#x are taken", op, ErrNoSpace, uint32(firstIndex), uint32(firstIndex+indexCount-1))
}

func (t *TPM) define(index policy.Index) error {
	public, err := index.Public(false)
	if err != nil {
		return err
	}
	_, err = tpm2.NVDefineSpace{
		AuthHandle: owner(tpm2.HMAC(tpm2.TPMAlgSHA256, nonceSize, t.key.salted(), tpm2.AESEncryption(128, tpm2.EncryptIn))),
		PublicInfo: tpm2.New2B(public),
	}.Execute(t.t)
	return ownerError(err)
}

// Indexes lists the NV indexes within the handles that Define uses which have
// exactly the shape that Define gives them: this installation's, one left by a
// provisioning that was cut, or another installation's on the same machine.
func (t *TPM) Indexes() (list []IndexInfo, err error) {
	const op = "listing NV indexes"
	defer fence(op, &err)
	all, err := t.nvIndexes()
	if err != nil {
		return nil, wrap(op, err)
	}
	for _, h := range all {
		if h < firstIndex || h >= firstIndex+indexCount {
			continue
		}
		info, err := t.indexInfo(h)
		if errors.Is(err, ErrIndexForeign) || errors.Is(err, ErrIndexMissing) {
			continue
		}
		if err != nil {
			return nil, wrap(op, err)
		}
		list = append(list, info)
	}
	return list, nil
}

// Abandoned lists those of Indexes that hold no record of a volume: never
// written, provisional, or with a record that is malformed. They are of a
// provisioning that was cut, unless one is going on right now.
func (t *TPM) Abandoned() ([]IndexInfo, error) {
	return t.indexesWith(func(r *policy.Record) bool { return r == nil || r.Provisional() })
}

// OfVolume lists those of Indexes whose record is for the volume with this
// fingerprint: the one that its header names, and those that earlier secrets had.
func (t *TPM) OfVolume(fingerprint [32]byte) ([]IndexInfo, error) {
	return t.indexesWith(func(r *policy.Record) bool { return r != nil && !r.Provisional() && r.Volume == fingerprint })
}

// indexesWith lists the indexes whose record is such a one; nil where there is none
// that makes sense. One with a password is not ours, though its public area cannot tell:
// anybody who may define indexes can make it. One that cannot be read keeps none of the
// others from being listed: the list is of use beside the error.
func (t *TPM) indexesWith(such func(*policy.Record) bool) (list []IndexInfo, err error) {
	const op = "looking for NV indexes of ours"
	defer fence(op, &err)
	if _, err := t.StorageKey(); err != nil {
		return nil, err
	}
	all, err := t.Indexes()
	if err != nil {
		return nil, err
	}
	var failed error
	for _, index := range all {
		var record *policy.Record
		if index.Written {
			data, err := t.readIndex(index.Handle, index.Name)
			if isCode(err, tpm2.TPMRCBadAuth, tpm2.TPMRCAuthFail) {
				continue
			}
			if err != nil {
				failed = errors.Join(failed, wrap(op, err))
				continue
			}
			if r, err := policy.DecodeRecord(data); err == nil {
				record = r
			}
		}
		if such(record) {
			list = append(list, index)
		}
	}
	return list, failed
}

// Undefine deletes an index that has the shape of ours, and no other. Whatever
// is sealed to it can never be unsealed again: for an index that Indexes lists
// and that is known to be left over.
func (t *TPM) Undefine(handle uint32) (err error) {
	op := fmt.Sprintf("deleting NV index %#x", handle)
	defer fence(op, &err)
	if _, err := t.StorageKey(); err != nil {
		return err
	}
	info, err := t.indexInfo(handle)
	if err != nil {
		return wrap(op, err)
	}
	_, err = tpm2.NVUndefineSpace{
		AuthHandle: owner(tpm2.HMAC(tpm2.TPMAlgSHA256, nonceSize, t.key.salted())),
		NVIndex:    named(handle, info.Name),
	}.Execute(t.t)
	return wrap(op, ownerError(err))
}

func named(handle uint32, name policy.Name) tpm2.NamedHandle {
	return tpm2.NamedHandle{Handle: tpm2.TPMHandle(handle), Name: tpmName(name)}
}

// indexInfo reads the public area of an index. It fails with ErrIndexForeign
// when it is none of ours; the key that may write it is not looked at.
func (t *TPM) indexInfo(handle uint32) (IndexInfo, error) {
	rsp, err := tpm2.NVReadPublic{NVIndex: tpm2.TPMHandle(handle)}.Execute(t.t)
	if isCode(err, tpm2.TPMRCHandle, tpm2.TPMRCValue) {
		return IndexInfo{}, fmt.Errorf("%w (%w)", ErrIndexMissing, err)
	}
	if err != nil {
		return IndexInfo{}, err
	}
	public := rsp.NVPublic.Bytes()
	p, err := rsp.NVPublic.Contents()
	if err != nil {
		return IndexInfo{}, err
	}
	info := IndexInfo{Handle: handle, Name: policy.NameOf(public), Written: p.Attributes.Written}
	want := tpm2.TPMSNVPublic{
		NVIndex:    tpm2.TPMHandle(handle),
		NameAlg:    tpm2.TPMAlgSHA256,
		Attributes: policy.IndexAttributes(p.Attributes.Written),
		AuthPolicy: p.AuthPolicy,
		DataSize:   policy.RecordSize,
	}
	if len(p.AuthPolicy.Buffer) != sha256.Size || !bytes.Equal(tpm2.Marshal(want), public) {
		return info, fmt.Errorf("%#x: %w", handle, ErrIndexForeign)
	}
	return info, nil
}

// signatureLife is how long after the session's start its signature is good,
// in seconds. It bounds for how long something in between can hold a write back
// and let it happen after a later one.
const signatureLife = 120

// WriteRecord replaces the record: from the end of this one TPM2_NV_Write on,
// other boots may unlock than before. The whole index is written by one
// command (its attributes allow nothing else), which a TPM applies as a whole: a
// power cut before it has answered leaves the old record or the new one, and
// both name a boot that works as long as the caller adds a boot before it
// switches to it and drops one only after. Should a TPM tear the write all the
// same, the record's checksum tells; nothing unlocks then but the recovery key,
// whose escrow holds the key to write again. The record is read back.
//
// The key signs the command's parameter hash and the session's nonce, so that
// the signature is good for this content, this index and this session. Without
// the hash, something on the bus could lend us its own session's nonce and
// spend the signature on a record of its own. It is why this one command does
// not encrypt its parameter, which is not a secret: the TPM hashes what comes over
// the bus.
func (t *TPM) WriteRecord(handle uint32, key *ecdsa.PrivateKey, r *policy.Record) (err error) {
	op := fmt.Sprintf("writing the policy to NV index %#x", handle)
	defer fence(op, &err)
	data, err := r.Encode()
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if _, err := t.StorageKey(); err != nil {
		return err
	}
	index := policy.Index{Handle: handle, Key: &key.PublicKey}
	before, err := t.ownIndex(index)
	if err != nil {
		return wrap(op, err)
	}
	if err := t.write(index, before, key, data); err != nil {
		return wrap(op, err)
	}
	after, err := index.Name()
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	back, err := t.readIndex(handle, after)
	if err != nil {
		return wrap(op+": reading it back", err)
	}
	if !bytes.Equal(back, data) {
		return fmt.Errorf("%s: it reads back otherwise", op)
	}
	return nil
}

// ownIndex returns the Name that the index has now, written or not yet.
func (t *TPM) ownIndex(index policy.Index) (policy.Name, error) {
	info, err := t.indexInfo(index.Handle)
	if err != nil {
		return policy.Name{}, err
	}
	public, err := index.Public(info.Written)
	if err != nil {
		return policy.Name{}, err
	}
	if policy.NameOf(tpm2.Marshal(public)) != info.Name {
		return policy.Name{}, fmt.Errorf("%#x: %w", index.Handle, ErrIndexForeign)
	}
	return info.Name, nil
}

func (t *TPM) write(index policy.Index, name policy.Name, key *ecdsa.PrivateKey, data []byte) error {
	public, err := policy.KeyPublic(&key.PublicKey)
	if err != nil {
		return err
	}
	loaded, err := tpm2.LoadExternal{InPublic: tpm2.New2B(public), Hierarchy: tpm2.TPMRHNull}.Execute(t.t)
	if err != nil {
		return fmt.Errorf("loading the write key: %w", err)
	}
	defer func() { _ = t.flush(loaded.ObjectHandle) }()
	session, end, err := tpm2.PolicySession(t.t, tpm2.TPMAlgSHA256, nonceSize, t.key.salted())
	if err != nil {
		return fmt.Errorf("starting a session: %w", err)
	}
	defer func() { _ = end() }()
	write := tpm2.NVWrite{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(index.Handle), Name: tpmName(name), Auth: session},
		NVIndex:    named(index.Handle, name),
		Data:       tpm2.TPM2BMaxNVBuffer{Buffer: data},
	}
	parameters, err := tpm2.CPHash(tpm2.TPMAlgSHA256, write)
	if err != nil {
		return err
	}
	signed, err := sign(key, session.NonceTPM().Buffer, parameters.Buffer)
	if err != nil {
		return err
	}
	keyName := policy.NameOf(tpm2.Marshal(public))
	_, err = tpm2.PolicySigned{
		AuthObject:    tpm2.NamedHandle{Handle: loaded.ObjectHandle, Name: tpmName(keyName)},
		PolicySession: session.Handle(),
		NonceTPM:      session.NonceTPM(),
		CPHashA:       *parameters,
		Expiration:    signatureLife,
		Auth:          *signed,
	}.Execute(t.t)
	if err != nil {
		return fmt.Errorf("authorising with the write key: %w", err)
	}
	_, err = write.Execute(t.t)
	return err
}

// sign makes the signature of TPM2_PolicySigned over aHash (Part 3, 23.3):
// nonceTPM, expiration, cpHashA and an empty policyRef.
func sign(key *ecdsa.PrivateKey, nonce, parameters []byte) (*tpm2.TPMTSignature, error) {
	h := sha256.New()
	h.Write(nonce)
	h.Write(binary.BigEndian.AppendUint32(nil, signatureLife))
	h.Write(parameters)
	r, s, err := ecdsa.Sign(rand.Reader, key, h.Sum(nil))
	if err != nil {
		return nil, fmt.Errorf("signing with the write key: %w", err)
	}
	return &tpm2.TPMTSignature{
		SigAlg: tpm2.TPMAlgECDSA,
		Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{
			Hash:       tpm2.TPMAlgSHA256,
			SignatureR: tpm2.TPM2BECCParameter{Buffer: r.FillBytes(make([]byte, 32))},
			SignatureS: tpm2.TPM2BECCParameter{Buffer: s.FillBytes(make([]byte, 32))},
		}),
	}, nil
}

// ReadRecord reads the record that a sealed object is bound to. The answer is
// authenticated by the storage root key that sealed.
func (t *TPM) ReadRecord(s *policy.Sealed) (r *policy.Record, err error) {
	const op = "reading the policy record"
	defer fence(op, &err)
	if err := s.Validate(); err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	if s.Kind != policy.KindNV {
		return nil, fmt.Errorf("%s: %w: it is bound to no NV index", op, policy.ErrSealed)
	}
	if err := t.UseStorageKey(s.SRKName); err != nil {
		return nil, err
	}
	data, err := t.readIndex(s.NVIndex, *s.NVName)
	if err != nil {
		return nil, wrap(op, err)
	}
	return policy.DecodeRecord(data)
}

func (t *TPM) readIndex(handle uint32, name policy.Name) ([]byte, error) {
	return t.readIndexWith(handle, name, tpm2.HMAC(tpm2.TPMAlgSHA256, nonceSize, t.key.salted(), tpm2.AESEncryption(128, tpm2.EncryptOut)))
}

// readIndexWith reads the whole index. Reading takes an empty password; the
// session beside it authenticates the answer, and the Name in the command's
// hash makes a redefined index fail.
func (t *TPM) readIndexWith(handle uint32, name policy.Name, session tpm2.Session) ([]byte, error) {
	rsp, err := tpm2.NVRead{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(handle), Name: tpmName(name), Auth: tpm2.PasswordAuth(nil)},
		NVIndex:    named(handle, name),
		Size:       policy.RecordSize,
	}.Execute(t.t, session)
	if err != nil {
		return nil, t.indexError(handle, name, err)
	}
	return rsp.Data.Buffer, nil
}

// indexError finds out why the index of this Name cannot be read.
func (t *TPM) indexError(handle uint32, name policy.Name, cause error) error {
	if _, ok := errors.AsType[tpm2.TPMRC](cause); !ok || isCode(cause, tpm2.TPMRCPCRChanged) {
		return cause
	}
	info, err := t.indexInfo(handle)
	switch {
	case errors.Is(err, ErrIndexMissing), errors.Is(err, ErrIndexForeign):
		return err
	case err != nil:
		return fmt.Errorf("%w (asking why: %w)", cause, err)
	case !info.Written:
		return fmt.Errorf("%#x: %w", handle, ErrIndexUnwritten)
	case info.Name != name:
		return fmt.Errorf("%#x: %w", handle, ErrIndexForeign)
	}
	return cause
}
