package qemutests

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/boot/uki/ukitest"
	"halogenos.internal/builder/vm"
)

// hidesEventLog is an EFI driver, as machine code for x86-64: it has the firmware's TCG2
// protocol (TCG EFI Protocol Specification, 1.00 revision 0.13, section 6) answer that it
// keeps no event log. The firmware measures as before.
func hidesEventLog() []byte {
	code := []byte{
		0x48, 0x83, 0xec, 0x28, // sub rsp, 40
		0x48, 0x8b, 0x42, 0x60, // mov rax, [rdx+0x60]: the boot services
		0x48, 0x8d, 0x0d, 0x34, 0, 0, 0, // lea rcx, [rip+52]: the protocol's GUID
		0x31, 0xd2, // xor edx, edx
		0x4c, 0x8d, 0x44, 0x24, 0x20, // lea r8, [rsp+32]
		0xff, 0x90, 0x40, 1, 0, 0, // call [rax+0x140]: LocateProtocol
		0x48, 0x85, 0xc0, // test rax, rax
		0x75, 0x10, // jnz +16
		0x48, 0x8b, 0x44, 0x24, 0x20, // mov rax, [rsp+32]
		0x48, 0x8d, 0x0d, 0x0b, 0, 0, 0, // lea rcx, [rip+11]: the answer below
		0x48, 0x89, 0x48, 0x08, // mov [rax+8], rcx: GetEventLog
		0x31, 0xc0, // xor eax, eax
		0x48, 0x83, 0xc4, 0x28, // add rsp, 40
		0xc3,                                        // ret
		0x48, 0xb8, 3, 0, 0, 0, 0, 0, 0, 0x80, 0xc3, // mov rax, EFI_UNSUPPORTED; ret
	}
	// 607f766c-7455-42be-930b-e4d76db2720f
	return append(code, 0x6c, 0x76, 0x7f, 0x60, 0x55, 0x74, 0xbe, 0x42, 0x93, 0x0b, 0xe4, 0xd7, 0x6d, 0xb2, 0x72, 0x0f)
}

// optionROM puts a driver on a card (UEFI 2.10, section 14.4.2; PCI Firmware
// Specification 3.3, section 5.1). The firmware runs it where it enforces no signatures.
func optionROM(code []byte) []byte {
	const header, subsystem, characteristics, driver = 64, 64 + 24 + 68, 64 + 24 + 240 + 36, 11
	le := binary.LittleEndian
	image := ukitest.Image(ukitest.Section{Name: ".text", Data: code})
	le.PutUint16(image[subsystem:], driver)
	le.PutUint32(image[characteristics:], 0x60000020) // code, to be executed
	rom := append(make([]byte, header), image...)
	rom = append(rom, make([]byte, (512-len(rom)%512)%512)...)
	units := uint16(len(rom) / 512)
	copy(rom, "\x55\xaa")
	le.PutUint16(rom[2:], units)
	le.PutUint32(rom[4:], 0x0ef1)
	le.PutUint16(rom[8:], driver)
	le.PutUint16(rom[10:], 0x8664)
	le.PutUint16(rom[22:], header)
	le.PutUint16(rom[24:], 28) // where the PCI data structure is
	pci := rom[28:]
	copy(pci, "PCIR")
	le.PutUint16(pci[4:], 0x1b36) // QEMU's test device
	le.PutUint16(pci[6:], 0x0005)
	le.PutUint16(pci[10:], 24)
	le.PutUint16(pci[16:], units)
	pci[20], pci[21] = 3, 0x80 // EFI, the last image
	return rom
}

// TestNoEventLog: firmware that measures and keeps no event log. Where the TPM is
// optional it is used all the same, and what is weaker is said. A required one explains
// itself: agent.TestNoEventLog.
// FAULTS 112 (M2)
func TestNoEventLog(t *testing.T) {
	t.Parallel()
	rom := filepath.Join(t.TempDir(), "card.rom")
	must(t, os.WriteFile(rom, optionROM(hidesEventLog()), 0o644))
	other := provisioned(t)
	g := Machine(t, Options{
		Image: "testos-optional-1", VM: vm.Options{Extra: []string{"-device", "pci-testdev,romfile=" + rom}},
		Prepare: func(s vm.State) error {
			return errors.Join(vm.CopySparse(s.Vars(), other.State.Vars()), switchSecureBootOff(s.Vars()))
		},
	})
	_, r := g.provision()
	if err := g.Try(nil, "ls", "/sys/kernel/security/tpm0"); !errors.Is(err, ErrRefused) {
		t.Fatalf("there is an event log (%v): the card's driver did not run", err)
	}
	if !rootIsOpen(r) || strings.Trim(r.PCRs["4"], "0") == "" || strings.Trim(r.PCRs["11"], "0") == "" {
		t.Errorf("devices %+v, PCR 4 %s, 11 %s; want root, and measurements", r.DM, r.PCRs["4"], r.PCRs["11"])
	}
	said := g.Console().Text()
	if want := "PCR 4, which boot manager started the machine, is left out: there is no event log"; !strings.Contains(said, want) {
		t.Errorf("the boot does not say that %s", want)
	}
	if r := g.Reboot(); !rootIsOpen(r) || strings.Contains(g.Console().Text()[len(said):], "Recovery key (") {
		t.Errorf("devices %+v; want root, and no question", r.DM)
	}
	g.PowerOff()
}
