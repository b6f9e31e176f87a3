package machinetest

import (
	"bytes"
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

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/bootoption"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/nextboot"
	"halogenos.internal/boot/secureboot"
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
