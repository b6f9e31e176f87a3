package tpm

import (
	"crypto/elliptic"
	"encoding/binary"
	"io"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"halogenos.internal/boot/policy"
)

// script is a TPM that answers from bytes: for each command a size, and as many
// bytes, behind a header that is right. A size with its top bit set gives the
// bytes without a header, so that frames are tried as well.
type script struct {
	data []byte
	sent int
}

func (s *script) Send(command []byte) ([]byte, error) {
	s.sent++
	if len(s.data) < 2 {
		return nil, io.ErrUnexpectedEOF
	}
	size := binary.BigEndian.Uint16(s.data)
	body := s.data[2:min(len(s.data), 2+int(size&0x1fff))]
	s.data = s.data[2+len(body):]
	if size&0x8000 != 0 {
		return body, nil
	}
	answer := append([]byte{}, command[:2]...)
	answer = binary.BigEndian.AppendUint32(answer, uint32(6+max(4, len(body))))
	if len(body) < 4 {
		body = make([]byte, 4)
	}
	return append(answer, body...), nil // the body begins with the response code
}

// operations are what a hostile TPM may be asked, each with an answer that it
// must never get away with.
func operations(t testing.TB) []func(*TPM) error {
	sealed := sealedForTest(t)
	fixed, err := checkKey(storageHandle, generator())
	if err != nil {
		t.Fatal(err)
	}
	return []func(*TPM) error{
		func(c *TPM) error { _, err := c.Capabilities(); return err },
		func(c *TPM) error { _, err := c.Now(); return err },
		func(c *TPM) error { _, err := c.PCRs(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11); return err },
		func(c *TPM) error { _, err := c.StorageKey(); return err },
		func(c *TPM) error { _, err := c.Indexes(); return err },
		func(c *TPM) error { return c.Undefine(firstIndex) },
		func(c *TPM) error { return c.ExtendText(11, "x") },
		func(c *TPM) error { _, err := c.readIndexUnauthenticated(*sealed.NVName); return err },
		func(c *TPM) error {
			if err := c.UseStorageKey(sealed.SRKName); err == nil {
				panic("another key was taken for the right one")
			}
			return noUnseal(c, sealed)
		},
		// The public part of the right key is not a secret, so the answers may hold it.
		func(c *TPM) error {
			c.key = fixed
			s := *sealed
			s.SRKName = fixed.name
			return noUnseal(c, &s)
		},
		func(c *TPM) error {
			m, err := policy.SecretFrom(make([]byte, 32))
			if err != nil {
				return err
			}
			if s, err := c.SealPCR(m, []int{11}, predict("x")); err == nil {
				panic("sealed to " + s.SRKName.String())
			}
			return nil
		},
	}
}

func noUnseal(c *TPM, s *policy.Sealed) error {
	got, record, err := c.Unseal(s)
	if err == nil || got != nil || record != nil {
		panic("a TPM without the key unsealed")
	}
	return err
}

// generator is the public area of a storage key whose point is the curve's
// generator: a valid key, and always the same.
func generator() []byte {
	p := elliptic.P256().Params()
	public := tpm2.ECCSRKTemplate
	public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: p.Gx.Bytes()}, Y: tpm2.TPM2BECCParameter{Buffer: p.Gy.Bytes()},
	})
	return tpm2.Marshal(public)
}

// readIndexUnauthenticated is the parsing of an index's public area and of what
// explains a failure, which is all that comes before a session proves itself.
func (t *TPM) readIndexUnauthenticated(name policy.Name) (_ []byte, err error) {
	defer fence("reading", &err)
	return nil, t.indexError(firstIndex, name, tpm2.TPMRCValue)
}

func FuzzAnswers(f *testing.F) { // FAULTS 76
	n := byte(len(operations(f)))
	for op := range n {
		f.Add(op, []byte{})
		f.Add(op, []byte{0, 4, 0, 0, 0, 0, 0x80, 10, 0x80, 1, 0, 0, 0, 10, 0, 0, 1, 0})
		f.Add(op, []byte{0, 4, 0, 0, 9, 0x22, 0, 6, 0, 0, 0, 0, 0xff, 0xff})
	}
	f.Fuzz(func(t *testing.T, op byte, data []byte) {
		s := &script{data: data}
		_ = operations(t)[int(op)%int(n)](newTPM(s, func(time.Duration) {}))
		if s.sent > 2*len(data)+100 {
			t.Errorf("%d commands for %d bytes of answers", s.sent, len(data))
		}
	})
}
