package tpm

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/go-tpm/tpm2"

	"halogenos.internal/boot/policy"
)

// Capabilities is what a TPM says about itself. It is read without
// authentication and decides nothing but which words and which fallback are
// used. How much NV memory is free is not among it: no TPM tells, one finds
// out by defining an index.
type Capabilities struct {
	Manufacturer string // vendor ID, "IFX", "NTC", "INTC", ...
	Model        string // vendor string
	Firmware     uint64 // two 32-bit halves, as vendors write it with dots

	Banks       []tpm2.TPMAlgID // PCR banks that are active
	NVBufferMax int             // bytes one NV write takes
	NVIndexMax  int             // bytes the largest index may have
	NVIndexes   []uint32        // handles of all NV indexes that exist

	OwnerAuth   bool // the owner hierarchy has a password
	LockoutAuth bool // the lockout hierarchy has a password
	Lockout     Lockout

	AuthorizeNV bool // TPM2_PolicyAuthorizeNV is implemented (Library revision 1.38)
}

// Lockout is the state of dictionary attack protection. None of it concerns
// what this package makes, which is exempt; other software's keys may be locked.
type Lockout struct {
	Active   bool
	Failures uint32        // so far
	Limit    uint32        // failures until it is active
	Interval time.Duration // until one failure is forgotten
}

// SHA256Active reports whether the bank that policies are made over is active.
func (c *Capabilities) SHA256Active() bool { return slices.Contains(c.Banks, tpm2.TPMAlgSHA256) }

// Index reports what keeps this TPM from holding the policy record, nil when
// nothing is known to. [TPM.SealPCR] is what then remains.
func (c *Capabilities) Index() error {
	switch {
	case c.OwnerAuth:
		return ErrOwnerAuth
	case !c.AuthorizeNV:
		return fmt.Errorf("%w: TPM2_PolicyAuthorizeNV, which a firmware update may bring", ErrUnsupported)
	case c.NVBufferMax < policy.RecordSize || c.NVIndexMax < policy.RecordSize:
		return fmt.Errorf("%w: NV writes of %d bytes, it takes %d (index of %d)", ErrUnsupported, policy.RecordSize, c.NVBufferMax, c.NVIndexMax)
	}
	return nil
}

// Bits of TPMA_PERMANENT (Part 2, 8.6).
const (
	permanentOwnerAuth   = 1 << 0
	permanentLockoutAuth = 1 << 2
	permanentInLockout   = 1 << 9
)

// Capabilities asks the TPM about itself, in five commands.
func (t *TPM) Capabilities() (c *Capabilities, err error) {
	const op = "asking for the TPM's capabilities"
	defer fence(op, &err)
	c = new(Capabilities)
	fixed, err := t.properties(tpm2.TPMPTManufacturer, 64)
	if err != nil {
		return nil, wrap(op, err)
	}
	variable, err := t.properties(tpm2.TPMPTPermanent, 32)
	if err != nil {
		return nil, wrap(op, err)
	}
	c.fill(fixed, variable)
	if c.Banks, err = t.Banks(); err != nil {
		return nil, err
	}
	if c.NVIndexes, err = t.nvIndexes(); err != nil {
		return nil, wrap(op, err)
	}
	if c.AuthorizeNV, err = t.implements(tpm2.TPMCCPolicyAuthorizeNV); err != nil {
		return nil, wrap(op, err)
	}
	return c, nil
}

func (c *Capabilities) fill(fixed, variable map[tpm2.TPMPT]uint32) {
	text := func(words ...tpm2.TPMPT) string {
		var b []byte
		for _, w := range words {
			b = binary.BigEndian.AppendUint32(b, fixed[w])
		}
		return strings.Map(func(r rune) rune {
			if r < ' ' || r > '~' { // it goes to a console
				return -1
			}
			return r
		}, strings.TrimSpace(string(b)))
	}
	c.Manufacturer = text(tpm2.TPMPTManufacturer)
	c.Model = text(tpm2.TPMPTVendorString1, tpm2.TPMPTVendorString2, tpm2.TPMPTVendorString3, tpm2.TPMPTVendorString4)
	c.Firmware = uint64(fixed[tpm2.TPMPTFirmwareVersion1])<<32 | uint64(fixed[tpm2.TPMPTFirmwareVersion2])
	c.NVBufferMax = int(fixed[tpm2.TPMPTNVBufferMax])
	c.NVIndexMax = int(fixed[tpm2.TPMPTNVIndexMax])
	permanent := variable[tpm2.TPMPTPermanent]
	c.OwnerAuth = permanent&permanentOwnerAuth != 0
	c.LockoutAuth = permanent&permanentLockoutAuth != 0
	c.Lockout = Lockout{
		Active:   permanent&permanentInLockout != 0,
		Failures: variable[tpm2.TPMPTLockoutCounter],
		Limit:    variable[tpm2.TPMPTMaxAuthFail],
		Interval: time.Duration(variable[tpm2.TPMPTLockoutInterval]) * time.Second,
	}
}

// capability asks for one page of a capability.
func (t *TPM) capability(c tpm2.TPMCap, from, count uint32) (*tpm2.GetCapabilityResponse, error) {
	rsp, err := tpm2.GetCapability{Capability: c, Property: from, PropertyCount: count}.Execute(t.t)
	if err != nil {
		return nil, err
	}
	if rsp.CapabilityData.Capability != c {
		return nil, fmt.Errorf("%w: asked for capability %d, got %d", ErrMalformed, c, rsp.CapabilityData.Capability)
	}
	return rsp, nil
}

func (t *TPM) properties(from tpm2.TPMPT, count uint32) (map[tpm2.TPMPT]uint32, error) {
	rsp, err := t.capability(tpm2.TPMCapTPMProperties, uint32(from), count)
	if err != nil {
		return nil, err
	}
	list, err := rsp.CapabilityData.Data.TPMProperties()
	if err != nil {
		return nil, err
	}
	out := make(map[tpm2.TPMPT]uint32)
	for _, p := range list.TPMProperty {
		out[p.Property] = p.Value
	}
	return out, nil
}

// Banks returns the algorithms of the PCR banks that have PCRs allocated.
func (t *TPM) Banks() (banks []tpm2.TPMAlgID, err error) {
	const op = "asking for the active PCR banks"
	defer fence(op, &err)
	rsp, err := t.capability(tpm2.TPMCapPCRs, 0, 1)
	if err != nil {
		return nil, wrap(op, err)
	}
	list, err := rsp.CapabilityData.Data.AssignedPCR()
	if err != nil {
		return nil, wrap(op, err)
	}
	for _, s := range list.PCRSelections {
		// A bank with only some PCRs is as good as none: what is missing could
		// be what matters.
		if len(s.PCRSelect) >= 3 && s.PCRSelect[0] == 0xff && s.PCRSelect[1] == 0xff {
			banks = append(banks, s.Hash)
		}
	}
	return banks, nil
}

// nvPage is how many handles are asked for at once.
const nvPage = 64

func (t *TPM) nvIndexes() ([]uint32, error) {
	var out []uint32
	from := uint32(0x01000000)
	for range 64 { // a TPM that always says "more" is not believed for ever
		rsp, err := t.capability(tpm2.TPMCapHandles, from, nvPage)
		if err != nil {
			return nil, err
		}
		list, err := rsp.CapabilityData.Data.Handles()
		if err != nil {
			return nil, err
		}
		for _, h := range list.Handle {
			out = append(out, uint32(h))
			from = uint32(h) + 1
		}
		if !rsp.MoreData || len(list.Handle) == 0 {
			break
		}
	}
	return out, nil
}

func (t *TPM) implements(cc tpm2.TPMCC) (bool, error) {
	rsp, err := t.capability(tpm2.TPMCapCommands, uint32(cc), 1)
	if err != nil {
		return false, err
	}
	list, err := rsp.CapabilityData.Data.Command()
	if err != nil {
		return false, err
	}
	for _, a := range list.CommandAttributes {
		if a.CommandIndex == uint16(cc) && !a.V {
			return true, nil
		}
	}
	return false, nil
}
