package inspect

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"halogenos.internal/boot/microcode"
	"halogenos.internal/boot/uki"
)

// Microcode is what a UKI has of a maker's for Linux to load at its start.
type Microcode struct {
	Vendor     string      `json:"vendor"` // Intel or AMD
	Processors []Processor `json:"processors"`
}

// Processor is a kind of processor that there is microcode for.
type Processor struct {
	Name      string `json:"name"`                // family, model and stepping, as "06-9e-0a"
	Revision  string `json:"revision"`            // of the microcode, as "0xf8"
	Platforms string `json:"platforms,omitempty"` // Intel's: a bit each
}

// describeMicrocode looks where Linux does: in what the stub puts before the initramfs,
// and at its beginning.
func (e *EFI) describeMicrocode(img *uki.Image, initrd []byte) error {
	section, ok := img.Section(".ucode")
	if stub, err := img.Stub(); ok && err == nil && stub.Major < uki.MicrocodeStub {
		e.fault("the section .ucode has no effect: %s %s passes over it, %d is the first that does not", stub.Program, stub.Version, uki.MicrocodeStub)
		section = nil
	}
	inSection, _, errSection := microcode.Find(section)
	inInitrd, _, errInitrd := microcode.Find(initrd)
	if err := errors.Join(errSection, errInitrd); err != nil {
		return err
	}
	for _, v := range microcode.Vendors() {
		found := inSection
		if !found.Has(v) {
			found = inInitrd
		}
		if !found.Has(v) {
			continue
		}
		m := Microcode{Vendor: v.Name()}
		for _, p := range found.Processors(v) {
			one := Processor{Name: p.Name(), Revision: fmt.Sprintf("%#x", p.Revision)}
			if p.Platforms != 0 {
				one.Platforms = fmt.Sprintf("%#x", p.Platforms)
			}
			m.Processors = append(m.Processors, one)
		}
		e.Microcode = append(e.Microcode, m)
	}
	return nil
}

// namesInLine is how many processors are named in a line.
const namesInLine = 10

// microcodeText names each processor once.
func microcodeText(w io.Writer, all []Microcode) {
	if len(all) == 0 {
		line(w, "microcode\tnone\n")
	}
	for _, m := range all {
		var names []string
		for _, p := range m.Processors {
			if len(names) == 0 || names[len(names)-1] != p.Name {
				names = append(names, p.Name)
			}
		}
		line(w, "microcode\t%d processors of %s's (family-model-stepping)\n", len(names), m.Vendor)
		for len(names) > 0 {
			n := min(namesInLine, len(names))
			line(w, "\t  %s\n", strings.Join(names[:n], " "))
			names = names[n:]
		}
	}
}
