package qemutests

import (
	"bytes"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf16"

	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/builder/vm"
)

// secureBootEnable is the variable behind the switch in OVMF's setup: one byte, 1
// when Secure Boot is on (edk2, SecurityPkg/Include/Guid/AuthenticatedVariableFormat.h).
var secureBootEnable = secureboot.Variable{Name: "SecureBootEnable", GUID: gpt.MustGUID("f0a30bc7-af08-4556-99c4-001009c93a44")}

// A firmwareVars is OVMF's variable store, as somebody writes it who has the machine
// open and a programmer on its flash (edk2, MdeModulePkg/Include/Guid/VariableFormat.h).
type firmwareVars struct {
	raw []byte // of the file
	end int    // of the store
}

const (
	volumeHeader   = 0x48 // of the firmware volume that holds the store
	storeHeader    = 28
	variableHeader = 60
	variableStart  = 0x55aa
	variableAdded  = 0x3f
	variableGone   = 0x3c // was added, in deletion, deleted
)

// readFirmwareVars reads vars.fd.
func readFirmwareVars(path string) (*firmwareVars, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if len(raw) < volumeHeader+storeHeader || raw[volumeHeader+20] != 0x5a {
		return nil, fmt.Errorf("%s is not a variable store", path)
	}
	size := int(binary.LittleEndian.Uint32(raw[volumeHeader+16:]))
	if size > len(raw)-volumeHeader {
		return nil, fmt.Errorf("%s: a variable store of %d bytes in %d", path, size, len(raw))
	}
	return &firmwareVars{raw, volumeHeader + size}, nil
}

// find returns where a variable's header is and its data begins and ends, and where
// the next one would be added.
func (f *firmwareVars) find(v secureboot.Variable) (header, data, end, free int, err error) {
	var name []byte
	for _, u := range utf16.Encode([]rune(v.Name + "\x00")) {
		name = binary.LittleEndian.AppendUint16(name, u)
	}
	le := binary.LittleEndian
	at := volumeHeader + storeHeader
	for at+variableHeader <= f.end && le.Uint16(f.raw[at:]) == variableStart {
		h := f.raw[at:]
		nameSize, dataSize := int(le.Uint32(h[36:])), int(le.Uint32(h[40:]))
		from := at + variableHeader + nameSize
		if nameSize < 0 || dataSize < 0 || from+dataSize > f.end {
			return 0, 0, 0, 0, fmt.Errorf("variable at %#x of %d and %d bytes", at, nameSize, dataSize)
		}
		if h[2] == variableAdded && bytes.Equal(h[variableHeader:variableHeader+nameSize], name) && bytes.Equal(h[44:60], diskGUID(v.GUID)) {
			header, data, end = at, from, from+dataSize
		}
		at = (from + dataSize + 3) &^ 3
	}
	if header == 0 {
		err = fmt.Errorf("the firmware has no variable %s", v)
	}
	return header, data, end, at, err
}

// diskGUID is a GUID as firmware stores it: the first three fields little-endian.
func diskGUID(g gpt.GUID) []byte {
	return []byte{g[3], g[2], g[1], g[0], g[5], g[4], g[7], g[6], g[8], g[9], g[10], g[11], g[12], g[13], g[14], g[15]}
}

// get returns a variable's value.
func (f *firmwareVars) get(v secureboot.Variable) ([]byte, error) {
	_, data, end, _, err := f.find(v)
	return f.raw[data:end], err
}

// set gives a variable that exists another value, and keeps attributes and time.
func (f *firmwareVars) set(v secureboot.Variable, value []byte) error {
	header, data, _, free, err := f.find(v)
	if err != nil {
		return err
	}
	if free+data-header+len(value) > f.end {
		return errors.New("the variable store is full")
	}
	fresh := append(bytes.Clone(f.raw[header:data]), value...)
	binary.LittleEndian.PutUint32(fresh[40:], uint32(len(value)))
	copy(f.raw[free:], fresh)
	f.raw[header+2] = variableGone
	return nil
}

// add stores a variable with such attributes: one with NonVolatile anybody who is root could
// store, one without the firmware alone.
func (f *firmwareVars) add(v secureboot.Variable, attributes uint32, value []byte) error {
	le := binary.LittleEndian
	name := utf16.Encode([]rune(v.Name + "\x00"))
	_, _, _, free, _ := f.find(v)
	b := le.AppendUint16(nil, variableStart)
	b = append(b, variableAdded, 0)
	b = le.AppendUint32(b, attributes)
	b = append(b, make([]byte, 28)...) // count, time and key of authenticated ones
	b = le.AppendUint32(le.AppendUint32(b, uint32(2*len(name))), uint32(len(value)))
	b = append(b, diskGUID(v.GUID)...)
	for _, u := range name {
		b = le.AppendUint16(b, u)
	}
	b = append(b, value...)
	if free+len(b) > f.end {
		return errors.New("the variable store is full")
	}
	copy(f.raw[free:], b)
	return nil
}

// plant stores a certificate, in a machine that is off, where the kernel looks for keys
// that it trusts modules by.
func plant(path string, e secureboot.Entry) error {
	f, err := readFirmwareVars(path)
	if err != nil {
		return err
	}
	value, err := secureboot.Database{e}.Marshal()
	if err == nil {
		u := secureboot.UnmeasuredVariables[0]
		err = f.add(secureboot.Variable{Name: u.Name, GUID: u.Vendor}, secureboot.NonVolatile|secureboot.BootServiceAccess|secureboot.RuntimeAccess, value)
	}
	if err != nil {
		return fmt.Errorf("plant a certificate: %w", err)
	}
	return os.WriteFile(path, f.raw, 0o644)
}

// TestPlantedKernelKeys: a certificate that nothing measures is taken away before the
// TPM is asked, and the machine starts again without a kernel that trusts it.
func TestPlantedKernelKeys(t *testing.T) {
	t.Parallel()
	p := provisioned(t)
	g := Machine(t, Options{State: p.State, Prepare: func(s vm.State) error { return plant(s.Vars(), keyEntry(t, s, secureboot.PK)) }})
	g.Expect(`the firmware had a variable MokListRT, which gives the kernel further keys`)
	g.Expect(`reboot: the kernel has obeyed MokListRT`)
	r := g.Boot()
	checkSecured(t, "after a planted certificate", r)
	if text := g.Console().Text(); strings.Count(text, "the firmware had a variable") != 1 || strings.Contains(text, asksForKeyText) {
		t.Errorf("it was found again, or the recovery key is asked for:\n%s", text)
	}
}

// change rewrites a variable of a machine that is off.
func change(path string, v secureboot.Variable, to func(value []byte) ([]byte, error)) error {
	f, err := readFirmwareVars(path)
	if err != nil {
		return err
	}
	value, err := f.get(v)
	if err == nil {
		value, err = to(bytes.Clone(value))
	}
	if err == nil {
		err = f.set(v, value)
	}
	if err != nil {
		return fmt.Errorf("change %s: %w", v, err)
	}
	return os.WriteFile(path, f.raw, 0o644)
}

// switchSecureBootOff is the switch in the firmware's setup: the keys stay.
func switchSecureBootOff(path string) error {
	return change(path, secureBootEnable, func([]byte) ([]byte, error) { return []byte{0}, nil })
}

// addToDB lets db trust one more certificate.
func addToDB(path string, e secureboot.Entry) error {
	return change(path, secureboot.DB, func(value []byte) ([]byte, error) {
		db, err := secureboot.ParseDatabase(value)
		if err != nil {
			return nil, err
		}
		return append(db, e).Marshal()
	})
}

// ownTwice has db hold this machine's own certificate twice: PCR 7 changes, and nobody
// else is trusted.
func ownTwice(t testing.TB, s vm.State) error {
	t.Helper()
	return addToDB(s.Vars(), keyEntry(t, s, secureboot.DB))
}

// keyEntry is the only entry of a key variable.
func keyEntry(t testing.TB, s vm.State, v secureboot.Variable) secureboot.Entry {
	t.Helper()
	f, err := readFirmwareVars(s.Vars())
	if err != nil {
		t.Fatal(err)
	}
	value, err := f.get(v)
	if err != nil {
		t.Fatal(err)
	}
	db, err := secureboot.ParseDatabase(value)
	if err != nil || len(db) != 1 {
		t.Fatalf("%s holds %v, %v; want one certificate", v, db, err)
	}
	return db[0]
}

// certificatePEM writes the only certificate of a key variable as sbverify wants it.
func certificatePEM(t testing.TB, s vm.State, v secureboot.Variable) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), v.Name+".pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: keyEntry(t, s, v).Data})
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}
