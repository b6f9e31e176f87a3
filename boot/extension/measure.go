package extension

import (
	"crypto/sha256"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/verity"
)

// A Measured extension is one that a boot has opened, as its report names it.
type Measured struct {
	Name     string       `json:"name"`
	RootHash contract.Hex `json:"root_hash"`
}

// Event is what a boot measures into PCR 13 for an extension that it opens: the TPM hashes
// this text. The register is that of system extensions (UAPI Group, Linux TPM PCR Registry).
func Event(name string, root verity.Root) []byte {
	return []byte("halogen-extension:" + name + ":" + root.String())
}

// Register is the value that PCR 13 has after a boot has measured these, in this order.
func Register(list []Measured) pcr.Digest {
	var d pcr.Digest
	for _, m := range list {
		d = d.Extend(sha256.Sum256(Event(m.Name, verity.Root(m.RootHash))))
	}
	return d
}

// Measured are those that PCR 13 has, in order.
func (b *Boot) Measured() (list []Measured) {
	for _, s := range b.States {
		if s.Measured {
			list = append(list, Measured{s.Name, s.RootHash})
		}
	}
	return list
}
