package machinetest

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"unicode/utf16"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/uki"
)

// measure extends the TPM and writes the log of it.
func (m *Machine) measure(manager, image []byte) error {
	b := newLog()
	if err := m.measurePrograms(b, manager, image); err != nil {
		return err
	}
	if m.Code != "" {
		for register := range 4 {
			b.event(register, pcr.EventCompactHash, []byte(m.Code))
		}
	}
	if m.OptionROM != "" {
		b.event(2, pcr.EventBootDriver, append(make([]byte, 32), m.OptionROM...))
	}
	for _, v := range []secureboot.Variable{secureboot.SecureBoot, secureboot.PK, secureboot.KEK, secureboot.DB, secureboot.DBX} {
		data := m.Vars[v.Name].Data
		if v == secureboot.DBX && m.HidesDBX {
			data = append(bytes.Clone(data), "more"...)
		}
		b.event(pcr.SecureBoot, pcr.EventVariableConfig, variableData(v, data))
	}
	b.event(pcr.SecureBoot, pcr.EventSeparator, []byte{0, 0, 0, 0})
	if m.Extra != "" {
		b.event(pcr.SecureBoot, pcr.EventEFIAction, []byte(m.Extra))
	}
	if m.Vars["SecureBoot"].Data[0] == 1 {
		entries, _, err := CertificatesIn(m.Vars)
		if err != nil {
			return err
		}
		if m.VendorLoader != nil {
			b.event(pcr.SecureBoot, pcr.EventVariableAuthority, variableData(secureboot.DB, entries[1].SignatureData()))
		}
		b.event(pcr.SecureBoot, pcr.EventVariableAuthority, variableData(secureboot.DB, entries[0].SignatureData()))
	}
	parsed, err := uki.Parse(image)
	if err != nil {
		return err
	}
	for _, name := range []string{".linux", ".osrel", ".cmdline", ".initrd", ".sbat"} {
		data, ok := parsed.Section(name)
		if !ok {
			return fmt.Errorf("the UKI has no section %s", name)
		}
		b.event(pcr.KernelImage, pcr.EventIPL, []byte(name+"\x00"))
		b.event(pcr.KernelImage, pcr.EventIPL, data)
	}
	if m.Extra12 != "" {
		b.event(pcr.KernelConfig, pcr.EventIPL, []byte(m.Extra12))
	}
	if m.Extra13 != "" {
		b.event(pcr.SystemExts, pcr.EventIPL, []byte(m.Extra13))
	}
	m.Log = b.out
	if m.NoTPM != nil {
		return nil
	}
	for _, e := range b.events {
		if err := m.Emulator.Extend(e.register, e.digest); err != nil {
			return err
		}
	}
	return nil
}

// measurePrograms is what firmware, an old boot manager and the stub do: PCR 4 gets the
// hashes of the programs as they lie on the ESP, and PCR 12 the UKI's own command line
// where the boot manager is older than 257.
func (m *Machine) measurePrograms(b *logBuilder, manager, image []byte) error {
	program := func(image []byte) error {
		digest, err := authenticode.Measured(image)
		if err == nil {
			b.add(pcr.BootPrograms, pcr.EventBootApplication, []byte("a program"), digest)
		}
		return err
	}
	const calling, returning = "Calling EFI Application from Boot Option", "Returning from EFI Application from Boot Option"
	b.event(pcr.BootPrograms, pcr.EventEFIAction, []byte(calling))
	b.event(pcr.BootPrograms, pcr.EventSeparator, []byte{0, 0, 0, 0})
	if m.CameBack != nil {
		if err := program(m.CameBack); err != nil {
			return err
		}
		b.event(pcr.BootPrograms, pcr.EventEFIAction, []byte(returning))
		b.event(pcr.BootPrograms, pcr.EventEFIAction, []byte(calling))
	}
	if m.Detour {
		b.event(pcr.BootPrograms, pcr.EventEFIAction, []byte(returning))
		b.event(pcr.BootPrograms, pcr.EventEFIAction, []byte(calling))
	}
	programs := [][]byte{manager, image}
	if m.VendorLoader != nil {
		programs = append([][]byte{m.VendorLoader}, programs...)
	}
	if m.StartsUKI {
		programs = slices.DeleteFunc(programs, func(p []byte) bool { return bytes.Equal(p, manager) })
	}
	for _, image := range programs {
		if err := program(image); err != nil {
			return err
		}
	}
	if m.Unaccounted {
		b.add(pcr.BootPrograms, pcr.EventCompactHash, []byte("the firmware's own"), pcr.Digest{4})
	}
	parsed, err := uki.Parse(image)
	if err != nil {
		return err
	}
	off := m.Vars["SecureBoot"].Data[0] == 0
	if mark, err := uki.Parse(manager); err == nil {
		if stub, err := mark.Stub(); err == nil && stub.Major < 257 {
			b.event(pcr.KernelConfig, pcr.EventIPL, []byte("q\x00u\x00i\x00e\x00t\x00\x00\x00"))
			if off {
				b.event(pcr.KernelConfig, pcr.EventIPL, []byte("q\x00u\x00i\x00e\x00t\x00\x00\x00"))
			}
		}
	}
	if kernel, ok := parsed.Section(".linux"); ok && off {
		return program(kernel)
	}
	return nil
}

// logBuilder writes an event log with a SHA-256 bank.
type logBuilder struct {
	out    []byte
	events []struct {
		register int
		digest   pcr.Digest
	}
}

func newLog() *logBuilder {
	le := binary.LittleEndian
	id := []byte("Spec ID Event03\x00\x00\x00\x00\x00\x00\x02\x00\x02")
	id = le.AppendUint32(id, 1)
	id = le.AppendUint16(id, uint16(pcr.SHA256))
	id = le.AppendUint16(id, sha256.Size)
	id = append(id, 0)
	b := &logBuilder{}
	b.out = le.AppendUint32(b.out, 0)
	b.out = le.AppendUint32(b.out, uint32(pcr.EventNoAction))
	b.out = append(b.out, make([]byte, 20)...)
	b.out = le.AppendUint32(b.out, uint32(len(id)))
	b.out = append(b.out, id...)
	return b
}

func (b *logBuilder) event(register int, kind pcr.EventType, data []byte) {
	b.add(register, kind, data, sha256.Sum256(data))
}

func (b *logBuilder) add(register int, kind pcr.EventType, data []byte, digest pcr.Digest) {
	le := binary.LittleEndian
	b.out = le.AppendUint32(b.out, uint32(register))
	b.out = le.AppendUint32(b.out, uint32(kind))
	b.out = le.AppendUint32(b.out, 1)
	b.out = le.AppendUint16(b.out, uint16(pcr.SHA256))
	b.out = append(b.out, digest[:]...)
	b.out = le.AppendUint32(b.out, uint32(len(data)))
	b.out = append(b.out, data...)
	b.events = append(b.events, struct {
		register int
		digest   pcr.Digest
	}{register, digest})
}

// variableData encodes UEFI_VARIABLE_DATA.
func variableData(v secureboot.Variable, data []byte) []byte {
	g := v.GUID
	out := []byte{g[3], g[2], g[1], g[0], g[5], g[4], g[7], g[6]} // mixed-endian
	out = append(out, g[8:]...)
	units := utf16.Encode([]rune(v.Name))
	out = binary.LittleEndian.AppendUint64(out, uint64(len(units)))
	out = binary.LittleEndian.AppendUint64(out, uint64(len(data)))
	for _, unit := range units {
		out = binary.LittleEndian.AppendUint16(out, unit)
	}
	return append(out, data...)
}
