package agent

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
	"unicode/utf16"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/bootoption"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/nextboot"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/uki"
	"halogenos.internal/initagent/hw"
)

type efiVariable struct {
	attributes uint32
	data       []byte
}

// firmware keeps variables. In Setup Mode it takes any update, and out of it what the
// key above has signed, later than what is there.
type firmware struct {
	vars   map[string]efiVariable
	op     func(string)
	done   func()
	refuse error // of every authenticated write
	// after is what the firmware makes of dbx when something is appended; or nil.
	after func([]byte) []byte
	// refuseRequest is what it says to a write of the request to the next boot.
	refuseRequest error
	keepsAll      bool // it says yes to a deletion, and deletes nothing
	// keeps is what the firmware makes of a key variable that it is given; or nil.
	keeps func([]byte) []byte
	full  string // a variable that it has no room for
}

func newVariables() map[string]efiVariable {
	v := map[string]efiVariable{}
	setFlag(v, "SecureBoot", 0)
	setFlag(v, "SetupMode", 1)
	return v
}

func setFlag(vars map[string]efiVariable, name string, value byte) {
	vars[name] = efiVariable{secureboot.BootServiceAccess | secureboot.RuntimeAccess, []byte{value}}
}

func (f *firmware) Read(name string, _ gpt.GUID) (uint32, []byte, error) {
	v, ok := f.vars[name]
	if !ok {
		return 0, nil, fs.ErrNotExist
	}
	return v.attributes, bytes.Clone(v.data), nil
}

func (f *firmware) WriteAuthenticated(name string, _ gpt.GUID, attributes uint32, payload []byte) error {
	f.op("variable " + name)
	if have, there := f.vars[name]; there && name == nextboot.Variable && have.attributes != attributes {
		return syscall.EINVAL // UEFI 2.10, section 8.2: the attributes of a variable do not change
	}
	if name == nextboot.Variable && f.refuseRequest != nil {
		return f.refuseRequest
	}
	if f.keepsAll && len(payload) == 0 {
		return nil
	}
	if attributes == nextboot.Attributes {
		f.vars[name] = efiVariable{attributes, bytes.Clone(payload)}
		if len(payload) == 0 {
			delete(f.vars, name)
		}
		f.done()
		return nil
	}
	if f.refuse != nil {
		return f.refuse
	}
	if f.full == name {
		return syscall.ENOSPC
	}
	at, _, content, err := secureboot.SplitUpdate(payload)
	if err != nil {
		return syscall.EINVAL
	}
	revokes := name == "dbx" && attributes == secureboot.KeyAttributes|secureboot.AppendWrite
	if attributes != secureboot.KeyAttributes && !revokes {
		return syscall.EACCES
	}
	if f.vars["SetupMode"].data[0] != 1 && !f.authorised(name, attributes, payload) {
		return syscall.EACCES
	}
	if !revokes {
		stamp := name + " time" // UEFI 2.10, section 8.2.2: later than that of what is there
		if last, there := f.vars[stamp]; there && at.Format(time.RFC3339) <= string(last.data) {
			return syscall.EACCES
		}
		f.vars[stamp] = efiVariable{0, []byte(at.Format(time.RFC3339))}
	}
	if revokes {
		attributes = secureboot.KeyAttributes
		content = append(bytes.Clone(f.vars[name].data), content...)
		if f.after != nil {
			content = f.after(content)
		}
	}
	if f.keeps != nil && !revokes {
		content = f.keeps(content)
	}
	f.vars[name] = efiVariable{attributes, bytes.Clone(content)}
	if name == "PK" {
		setFlag(f.vars, "SetupMode", 0)
	}
	f.done()
	return nil
}

// authorised reports whether an update is signed by a key that the variable above has: by
// PK for PK and KEK, by KEK for the others. Signatures are the same for the same input, so
// that the tests' own keys tell.
func (f *firmware) authorised(name string, attributes uint32, payload []byte) bool {
	v, above := secureboot.DB, "KEK"
	switch name {
	case "PK":
		v, above = secureboot.PK, "PK"
	case "KEK":
		v, above = secureboot.KEK, "PK"
	case "dbx":
		v = secureboot.DBX
	}
	have, err := secureboot.ParseDatabase(f.vars[above].data)
	sets, serr := keySets()
	at, _, content, perr := secureboot.SplitUpdate(payload)
	if errors.Join(err, serr, perr) != nil {
		return false
	}
	for _, k := range sets {
		pair := k.KEK
		if above == "PK" {
			pair = k.PK
		}
		trusted := slices.ContainsFunc(have, func(e secureboot.Entry) bool { return bytes.Equal(e.Data, pair.Certificate.Raw) })
		if want, err := secureboot.SignUpdate(v, attributes, at, content, pair); trusted && err == nil && bytes.Equal(want, payload) {
			return true
		}
	}
	return false
}

// certificates are those of db.
func certificatesIn(vars map[string]efiVariable) (entries secureboot.Database, certificates []*x509.Certificate, err error) {
	db, err := secureboot.ParseDatabase(vars["db"].data)
	for _, e := range db {
		if c, err := x509.ParseCertificate(e.Data); err == nil {
			entries, certificates = append(entries, e), append(certificates, c)
		}
	}
	return entries, certificates, err
}

const (
	removable   = "EFI/BOOT/BOOTX64.EFI"
	managerCopy = "EFI/systemd/systemd-bootx64.efi"
)

// start is what firmware, boot manager and stub do: they choose, verify, count
// and measure. It returns the name of the UKI and the path with its counter.
func (m *machine) start() (chosen bls.Name, counted string, err error) {
	if m.noSecureBoot {
		setFlag(m.vars, "SetupMode", 0)
	}
	setFlag(m.vars, "SecureBoot", 1-m.vars["SetupMode"].data[0])
	if m.noSecureBoot {
		setFlag(m.vars, "SecureBoot", 0)
	}
	started := removable
	err = m.managerStarts(removable)
	if err != nil && m.bootEntry {
		started = managerCopy
		err = m.managerStarts(managerCopy)
	}
	if err != nil {
		return chosen, "", fmt.Errorf("the firmware starts no boot manager: %w", err)
	}
	var names []bls.Name
	for name, f := range m.esp.files {
		if n, err := bls.Parse(path.Base(name)); err == nil && path.Dir(name) == bls.Directory && !f.now.absent {
			names = append(names, n)
		}
	}
	if by := slices.IndexFunc(names, func(n bls.Name) bool { return n.Version == m.byHand }); by >= 0 {
		names = names[by : by+1]
	}
	chosen, ok := bls.Choose(names)
	once, told := m.vars["LoaderEntryOneShot"]
	delete(m.vars, "LoaderEntryOneShot")
	if told {
		chosen, err = bls.Parse(string(once.data))
		ok = err == nil
	}
	if !ok {
		return chosen, "", errors.New("the boot manager finds no UKI")
	}
	if chosen.Trial() && !m.countsNothing {
		old := path.Join(bls.Directory, chosen.String())
		chosen = chosen.Tried()
		counted = path.Join(bls.Directory, chosen.String())
		m.esp.files[counted] = m.esp.files[old]
		delete(m.esp.files, old)
	}
	file := path.Join(bls.Directory, chosen.String())
	if m.startFile != "" {
		file = m.startFile
	}
	m.image = file
	if m.releases[chosen.Version] == nil {
		return chosen, "", fmt.Errorf("nobody made version %s", chosen.Version)
	}
	if err := m.startable(file, m.releases[chosen.Version].uki); err != nil {
		return chosen, "", fmt.Errorf("the boot manager cannot start the UKI: %w", err)
	}
	return chosen, counted, m.measure(m.esp.files[started].now.data, m.esp.files[file].now.data)
}

// managerStarts looks at a path of the boot manager's, which may have either.
func (m *machine) managerStarts(name string) error {
	err := m.startable(name, m.manager)
	if err != nil && m.nextManager != nil {
		err = m.startable(name, m.nextManager)
	}
	return err
}

// startable verifies a file as LoadImage does, and that nothing but a signature
// has changed in it.
func (m *machine) startable(name string, original []byte) error {
	f, err := m.esp.get(name)
	if err != nil || f.now.unreadable {
		return fmt.Errorf("%s cannot be read (%v)", name, err)
	}
	got, err := authenticode.Digest(f.now.data)
	want, _ := authenticode.Digest(original)
	if err != nil || got != want {
		// Garbage behind the end that no header points to starts as well, in
		// Setup Mode.
		if m.vars["SecureBoot"].data[0] == 1 || !bytes.HasPrefix(f.now.data, original[:64]) || len(f.now.data) < len(original) {
			return fmt.Errorf("%s is not what was installed (%v)", name, err)
		}
	}
	if m.vars["SecureBoot"].data[0] == 0 {
		return nil
	}
	if bytes.Contains(m.vars["dbx"].data, got[:]) {
		return fmt.Errorf("%s is in dbx", name)
	}
	_, certificates, err := certificatesIn(m.vars)
	if err != nil {
		return err
	}
	err = errors.New("db is empty")
	for _, c := range certificates {
		if err = authenticode.VerifyOwn(f.now.data, c); err == nil {
			break
		}
	}
	return err
}

// measure extends the TPM and writes the log of it.
func (m *machine) measure(manager, image []byte) error {
	b := newLog()
	if err := m.measurePrograms(b, manager, image); err != nil {
		return err
	}
	if m.code != "" {
		for register := range 4 {
			b.event(register, pcr.EventCompactHash, []byte(m.code))
		}
	}
	if m.optionROM != "" {
		b.event(2, pcr.EventBootDriver, append(make([]byte, 32), m.optionROM...))
	}
	for _, v := range []secureboot.Variable{secureboot.SecureBoot, secureboot.PK, secureboot.KEK, secureboot.DB, secureboot.DBX} {
		data := m.vars[v.Name].data
		if v == secureboot.DBX && m.hidesDBX {
			data = append(bytes.Clone(data), "more"...)
		}
		b.event(pcr.SecureBoot, pcr.EventVariableConfig, variableData(v, data))
	}
	b.event(pcr.SecureBoot, pcr.EventSeparator, []byte{0, 0, 0, 0})
	if m.extra != "" {
		b.event(pcr.SecureBoot, pcr.EventEFIAction, []byte(m.extra))
	}
	if m.vars["SecureBoot"].data[0] == 1 {
		entries, _, err := certificatesIn(m.vars)
		if err != nil {
			return err
		}
		if m.vendorLoader != nil {
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
	if m.extra12 != "" {
		b.event(pcr.KernelConfig, pcr.EventIPL, []byte(m.extra12))
	}
	if m.extra13 != "" {
		b.event(pcr.SystemExts, pcr.EventIPL, []byte(m.extra13))
	}
	m.log = b.out
	if m.noTPM != nil {
		return nil
	}
	for _, e := range b.events {
		if err := m.emulator.extend(e.register, e.digest); err != nil {
			return err
		}
	}
	return nil
}

// measurePrograms is what firmware, an old boot manager and the stub do: PCR 4 gets the
// hashes of the programs as they lie on the ESP, and PCR 12 the UKI's own command line
// where the boot manager is older than 257.
func (m *machine) measurePrograms(b *logBuilder, manager, image []byte) error {
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
	if m.cameBack != nil {
		if err := program(m.cameBack); err != nil {
			return err
		}
		b.event(pcr.BootPrograms, pcr.EventEFIAction, []byte(returning))
		b.event(pcr.BootPrograms, pcr.EventEFIAction, []byte(calling))
	}
	if m.detour {
		b.event(pcr.BootPrograms, pcr.EventEFIAction, []byte(returning))
		b.event(pcr.BootPrograms, pcr.EventEFIAction, []byte(calling))
	}
	programs := [][]byte{manager, image}
	if m.vendorLoader != nil {
		programs = append([][]byte{m.vendorLoader}, programs...)
	}
	if m.startsUKI {
		programs = slices.DeleteFunc(programs, func(p []byte) bool { return bytes.Equal(p, manager) })
	}
	for _, image := range programs {
		if err := program(image); err != nil {
			return err
		}
	}
	if m.unaccounted {
		b.add(pcr.BootPrograms, pcr.EventCompactHash, []byte("the firmware's own"), pcr.Digest{4})
	}
	parsed, err := uki.Parse(image)
	if err != nil {
		return err
	}
	off := m.vars["SecureBoot"].data[0] == 0
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

// LoaderString implements hw.Firmware. What somebody has stored under a name is in the way
// of boot manager and stub.
func (m *machine) LoaderString(name string) (string, error) {
	if v, there := m.vars[name]; there {
		directory := m.t.TempDir()
		file := filepath.Join(directory, name+"-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f")
		m.must(os.WriteFile(file, append(binary.LittleEndian.AppendUint32(nil, v.attributes), v.data...), 0o600))
		return hw.LinuxFirmware{EFIVars: directory}.LoaderString(name)
	}
	switch name {
	case "LoaderDevicePartUUID":
		return strings.ToUpper(m.espUUID), nil
	case "StubImageIdentifier":
		if m.stubSays != "" {
			return m.stubSays, nil
		}
		return `\` + strings.ToUpper(strings.ReplaceAll(m.image, "/", `\`)), nil
	case "LoaderBootCountPath":
		return strings.ReplaceAll(m.counted, "/", `\`), nil
	}
	return "", nil
}

// Flag implements hw.Firmware.
func (m *machine) BootedFrom() ([]bootoption.Function, error) { return m.bootedFrom, nil }

func (m *machine) Flag(name string) (bool, error) { return m.vars[name].data[0] == 1, nil }

func cloneVariables(v map[string]efiVariable) map[string]efiVariable { return maps.Clone(v) }
