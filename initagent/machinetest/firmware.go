package machinetest

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

// An EFIVariable is one of the firmware's.
type EFIVariable struct {
	Attributes uint32
	Data       []byte
}

// Firmware keeps variables. In Setup Mode it takes any update, and out of it what the
// key above has signed, later than what is there.
type Firmware struct {
	Vars   map[string]EFIVariable
	op     func(string)
	done   func()
	Refuse error // of every authenticated write
	// after is what the firmware makes of dbx when something is appended; or nil.
	after func([]byte) []byte
	// refuseRequest is what it says to a write of the request to the next boot.
	refuseRequest error
	keepsAll      bool // it says yes to a deletion, and deletes nothing
	// keeps is what the firmware makes of a key variable that it is given; or nil.
	keeps func([]byte) []byte
	Full  string // a variable that it has no room for
	room  int64  // that it says it has; 0: it does not say
}

// NewVariables are those of a firmware in Setup Mode.
func NewVariables() map[string]EFIVariable {
	v := map[string]EFIVariable{}
	SetFlag(v, "SecureBoot", 0)
	SetFlag(v, "SetupMode", 1)
	return v
}

// SetFlag sets a variable of one byte.
func SetFlag(vars map[string]EFIVariable, name string, value byte) {
	vars[name] = EFIVariable{secureboot.BootServiceAccess | secureboot.RuntimeAccess, []byte{value}}
}

func (f *Firmware) Read(name string, _ gpt.GUID) (uint32, []byte, error) {
	v, ok := f.Vars[name]
	if !ok {
		return 0, nil, fs.ErrNotExist
	}
	return v.Attributes, bytes.Clone(v.Data), nil
}

// Room is what it says of its variable store.
func (f *Firmware) Room() (bytes int64, known bool) { return f.room, f.room > 0 }

func (f *Firmware) WriteAuthenticated(name string, _ gpt.GUID, attributes uint32, payload []byte) error {
	f.op("variable " + name)
	if have, there := f.Vars[name]; there && name == nextboot.Variable && have.Attributes != attributes {
		return syscall.EINVAL // UEFI 2.10, section 8.2: the attributes of a variable do not change
	}
	if name == nextboot.Variable && f.refuseRequest != nil {
		return f.refuseRequest
	}
	if f.keepsAll && len(payload) == 0 {
		return nil
	}
	if attributes == nextboot.Attributes {
		f.Vars[name] = EFIVariable{attributes, bytes.Clone(payload)}
		if len(payload) == 0 {
			delete(f.Vars, name)
		}
		f.done()
		return nil
	}
	if f.Refuse != nil {
		return f.Refuse
	}
	if f.Full == name {
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
	if f.Vars["SetupMode"].Data[0] != 1 && !f.authorised(name, attributes, payload) {
		return syscall.EACCES
	}
	if !revokes {
		stamp := name + " time" // UEFI 2.10, section 8.2.2: later than that of what is there
		if last, there := f.Vars[stamp]; there && at.Format(time.RFC3339) <= string(last.Data) {
			return syscall.EACCES
		}
		f.Vars[stamp] = EFIVariable{0, []byte(at.Format(time.RFC3339))}
	}
	if revokes {
		attributes = secureboot.KeyAttributes
		content = append(bytes.Clone(f.Vars[name].Data), content...)
		if f.after != nil {
			content = f.after(content)
		}
	}
	if f.keeps != nil && !revokes {
		content = f.keeps(content)
	}
	f.Vars[name] = EFIVariable{attributes, bytes.Clone(content)}
	if name == "PK" {
		SetFlag(f.Vars, "SetupMode", 0)
	}
	f.done()
	return nil
}

// authorised reports whether an update is signed by a key that the variable above has: by
// PK for PK and KEK, by KEK for the others. Signatures are the same for the same input, so
// that the tests' own keys tell.
func (f *Firmware) authorised(name string, attributes uint32, payload []byte) bool {
	v, above := secureboot.DB, "KEK"
	switch name {
	case "PK":
		v, above = secureboot.PK, "PK"
	case "KEK":
		v, above = secureboot.KEK, "PK"
	case "dbx":
		v = secureboot.DBX
	}
	have, err := secureboot.ParseDatabase(f.Vars[above].Data)
	sets, serr := KeySets()
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
func CertificatesIn(vars map[string]EFIVariable) (entries secureboot.Database, certificates []*x509.Certificate, err error) {
	db, err := secureboot.ParseDatabase(vars["db"].Data)
	for _, e := range db {
		if c, err := x509.ParseCertificate(e.Data); err == nil {
			entries, certificates = append(entries, e), append(certificates, c)
		}
	}
	return entries, certificates, err
}

// Paths of the boot manager on the ESP.
const (
	Removable   = "EFI/BOOT/BOOTX64.EFI"
	ManagerCopy = "EFI/systemd/systemd-bootx64.efi"
)

// Start is what firmware, boot manager and stub do: they choose, verify, count
// and measure. It returns the name of the UKI and the path with its counter.
func (m *Machine) Start() (chosen bls.Name, counted string, err error) {
	if m.NoSecureBoot {
		SetFlag(m.Vars, "SetupMode", 0)
	}
	SetFlag(m.Vars, "SecureBoot", 1-m.Vars["SetupMode"].Data[0])
	if m.NoSecureBoot {
		SetFlag(m.Vars, "SecureBoot", 0)
	}
	started := Removable
	err = m.managerStarts(Removable)
	if err != nil && m.BootEntry {
		started = ManagerCopy
		err = m.managerStarts(ManagerCopy)
	}
	if err != nil {
		return chosen, "", fmt.Errorf("the firmware starts no boot manager: %w", err)
	}
	var names []bls.Name
	for name, f := range m.ESP.Files {
		if n, err := bls.Parse(path.Base(name)); err == nil && path.Dir(name) == bls.Directory && !f.Now.Absent {
			names = append(names, n)
		}
	}
	if by := slices.IndexFunc(names, func(n bls.Name) bool { return n.Version == m.ByHand }); by >= 0 {
		names = names[by : by+1]
	}
	chosen, ok := bls.Choose(names)
	once, told := m.Vars["LoaderEntryOneShot"]
	delete(m.Vars, "LoaderEntryOneShot")
	if told {
		chosen, err = bls.Parse(string(once.Data))
		ok = err == nil
	}
	if !ok {
		return chosen, "", errors.New("the boot manager finds no UKI")
	}
	if chosen.Trial() && !m.CountsNothing {
		old := path.Join(bls.Directory, chosen.String())
		chosen = chosen.Tried()
		counted = path.Join(bls.Directory, chosen.String())
		m.ESP.Files[counted] = m.ESP.Files[old]
		delete(m.ESP.Files, old)
	}
	file := path.Join(bls.Directory, chosen.String())
	if m.StartFile != "" {
		file = m.StartFile
	}
	m.image = file
	if m.Releases[chosen.Version] == nil {
		return chosen, "", fmt.Errorf("nobody made version %s", chosen.Version)
	}
	if err := m.Startable(file, m.Releases[chosen.Version].UKI); err != nil {
		return chosen, "", fmt.Errorf("the boot manager cannot start the UKI: %w", err)
	}
	return chosen, counted, m.measure(m.ESP.Files[started].Now.Data, m.ESP.Files[file].Now.Data)
}

// managerStarts looks at a path of the boot manager's, which may have either.
func (m *Machine) managerStarts(name string) error {
	err := m.Startable(name, m.Manager)
	if err != nil && m.NextManager != nil {
		err = m.Startable(name, m.NextManager)
	}
	return err
}

// Startable verifies a file as LoadImage does, and that nothing but a signature
// has changed in it.
func (m *Machine) Startable(name string, original []byte) error {
	f, err := m.ESP.Get(name)
	if err != nil || f.Now.Unreadable {
		return fmt.Errorf("%s cannot be read (%v)", name, err)
	}
	got, err := authenticode.Digest(f.Now.Data)
	want, _ := authenticode.Digest(original)
	if err != nil || got != want {
		// Garbage behind the end that no header points to starts as well, in
		// Setup Mode.
		if m.Vars["SecureBoot"].Data[0] == 1 || !bytes.HasPrefix(f.Now.Data, original[:64]) || len(f.Now.Data) < len(original) {
			return fmt.Errorf("%s is not what was installed (%v)", name, err)
		}
	}
	if m.Vars["SecureBoot"].Data[0] == 0 {
		return nil
	}
	if bytes.Contains(m.Vars["dbx"].Data, got[:]) {
		return fmt.Errorf("%s is in dbx", name)
	}
	_, certificates, err := CertificatesIn(m.Vars)
	if err != nil {
		return err
	}
	err = errors.New("db is empty")
	for _, c := range certificates {
		if err = authenticode.VerifyOwn(f.Now.Data, c); err == nil {
			break
		}
	}
	return err
}

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

// LoaderString implements hw.Firmware. What somebody has stored under a name is in the way
// of boot manager and stub.
func (m *Machine) LoaderString(name string) (string, error) {
	if v, there := m.Vars[name]; there {
		directory := m.T.TempDir()
		file := filepath.Join(directory, name+"-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f")
		m.Must(os.WriteFile(file, append(binary.LittleEndian.AppendUint32(nil, v.Attributes), v.Data...), 0o600))
		return hw.LinuxFirmware{EFIVars: directory}.LoaderString(name)
	}
	switch name {
	case "LoaderDevicePartUUID":
		return strings.ToUpper(m.EspUUID), nil
	case "StubImageIdentifier":
		if m.StubSays != "" {
			return m.StubSays, nil
		}
		return `\` + strings.ToUpper(strings.ReplaceAll(m.image, "/", `\`)), nil
	case "LoaderBootCountPath":
		return strings.ReplaceAll(m.counted, "/", `\`), nil
	}
	return "", nil
}

// Flag implements hw.Firmware.
func (m *Machine) BootedFrom() ([]bootoption.Function, error) { return m.StartsFrom, nil }

func (m *Machine) Flag(name string) (bool, error) { return m.Vars[name].Data[0] == 1, nil }

// CloneVariables copies the variables, and not what they hold.
func CloneVariables(v map[string]EFIVariable) map[string]EFIVariable { return maps.Clone(v) }
