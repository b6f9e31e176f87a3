package secureboot

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"halogenos.internal/boot/gpt"
)

// MaxRevocations bounds, in bytes, the entries for dbx that a release brings. The public
// list has 21 KiB for x86-64 after ten years; firmware has 32 to 64 KiB for the variable.
const MaxRevocations = 48 << 10

// ParseRevocations reads entries for dbx from a file: in the form in which UEFI publishes
// its list, an update as SetVariable takes it (DBXUpdate.bin; UEFI 2.10, section 8.2.2) or
// the signature lists in it alone; or in text, a SHA-256 Authenticode hash a line, which
// anything may follow after a space, and comments after '#'. The owner of entries in text
// is the zero GUID.
//
// The signature of an update is of nobody whose word counts here, and is not verified:
// each machine signs for itself what it takes. A kind of entry other than the hash of an
// image and a certificate is refused, since firmware would take it and nobody here could
// say what it stops.
func ParseRevocations(file []byte) (Database, error) {
	if len(file) > MaxDatabase {
		return nil, fmt.Errorf("has %d bytes, more than %d", len(file), MaxDatabase)
	}
	if utf8.Valid(file) && !bytes.ContainsRune(file, 0) {
		return parseHashes(string(file))
	}
	lists := file
	if !beginsWithList(file) {
		_, _, content, err := SplitUpdate(file)
		if err != nil {
			return nil, fmt.Errorf("is neither a text with hashes, nor signature lists, nor an update of dbx: %w", err)
		}
		lists = content
	}
	d, err := ParseDatabase(lists)
	if err != nil {
		return nil, err
	}
	d = d.once()
	return d, CheckRevocations(d)
}

func beginsWithList(b []byte) bool {
	return len(b) >= guidSize && slices.Contains([]gpt.GUID{TypeX509, TypeSHA256}, guidFromDisk(b))
}

func parseHashes(text string) (Database, error) {
	var d Database
	for i, line := range strings.Split(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		digest, err := hex.DecodeString(fields[0])
		if err != nil || len(digest) != sha256Size {
			return nil, fmt.Errorf("line %d: %.80q is not a SHA-256 hash: want %d hexadecimal digits", i+1, fields[0], 2*sha256Size)
		}
		d = append(d, Entry{Type: TypeSHA256, Data: digest})
	}
	d = d.once()
	return d, CheckRevocations(d)
}

// CheckRevocations refuses entries that no release may bring to dbx.
func CheckRevocations(d Database) error {
	if len(d) == 0 {
		return errors.New("has no entry for dbx")
	}
	b, err := d.Marshal()
	if err != nil {
		return err
	}
	if len(b) > MaxRevocations {
		return fmt.Errorf("%d entries for dbx take %d bytes, at most %d are taken: firmware has no room for more", len(d), len(b), MaxRevocations)
	}
	for i, e := range d {
		switch {
		case e.Type == TypeSHA256 && len(e.Data) == sha256Size:
		case e.Type == TypeX509:
			if _, ok := Subject(e.Data); !ok {
				return fmt.Errorf("entry %d for dbx: a certificate of %d bytes cannot be read", i+1, len(e.Data))
			}
		default:
			return fmt.Errorf("entry %d for dbx is a %s: want hashes (SHA-256) and certificates (X.509)", i+1, e)
		}
		if d[:i].Revokes(e) {
			return fmt.Errorf("entry %d for dbx, %s, is there twice", i+1, e)
		}
	}
	return nil
}

// Revokes reports whether the database has the entry, no matter who owns it: firmware compares
// the data alone.
func (d Database) Revokes(e Entry) bool {
	return slices.ContainsFunc(d, func(have Entry) bool { return have.Type == e.Type && bytes.Equal(have.Data, e.Data) })
}

// once returns each entry once, no matter who owns it.
func (d Database) once() Database {
	var all Database
	for _, e := range d {
		if !all.Revokes(e) {
			all = append(all, e)
		}
	}
	return all
}

// A Program is an EFI program that a machine starts, or may have to.
type Program struct {
	Name   string   // for people
	Digest [32]byte // its Authenticode SHA-256 hash
}

// Needed is what dbx must not stop on a machine.
type Needed struct {
	// Programs are all that starts from the ESP: both UKIs, one on trial, the boot
	// manager, the one before it; and what the event log says that this boot has started.
	Programs []Program
	// Drivers are the option ROMs of this boot.
	Drivers Drivers
	// Authorities are the entries of db by which this boot's programs and drivers started.
	Authorities Database
	// Reserved are the entries of others in db that are there for this machine: for an
	// option ROM, or because its owner wants a second system to start. What they are for
	// need not have run in this boot, as where a dock is not plugged in.
	Reserved Database
	// Own are the certificates of this machine's keys.
	Own []*x509.Certificate
}

// A Refusal is an entry for dbx that a machine does not take.
type Refusal struct {
	Entry Entry
	Why   string // what would no longer start, or why nobody knows
}

// JudgeRevocations decides which of the entries that a release brings a machine takes: those
// that its dbx lacks and that stop nothing it needs. An entry whose effect cannot be told
// is refused, since a machine whose graphics card or own system does not start helps
// nobody. Entries without an owner get this machine's.
func JudgeRevocations(entries, live Database, owner gpt.GUID, needed Needed) (take Database, refused []Refusal) {
	size := live.size()
	for _, e := range entries {
		if live.Revokes(e) || take.Revokes(e) {
			continue
		}
		why, more := needed.stoppedBy(e), Database{e}.size()
		if why == "" && size+more > MaxRevocations {
			why = fmt.Sprintf("dbx would have more than %d bytes, for which firmware has no room", MaxRevocations)
		}
		if why != "" {
			refused = append(refused, Refusal{e, why})
			continue
		}
		if e.Owner == (gpt.GUID{}) {
			e.Owner = owner
		}
		take, size = append(take, e), size+more
	}
	return take, refused
}

// size is what the entries take in bytes, but for the lists that hashes share.
func (d Database) size() (n int) {
	for _, e := range d {
		n += guidSize + len(e.Data)
		if e.Type != TypeSHA256 {
			n += listHeader
		}
	}
	return n
}

// stoppedBy says what an entry would stop; empty for nothing.
func (n Needed) stoppedBy(e Entry) string {
	if !n.Drivers.Known {
		return "the event log of this boot cannot be read, so that it is not known what the firmware started"
	}
	switch {
	case e.Type == TypeSHA256 && len(e.Data) == sha256Size:
		return n.stoppedByHash([32]byte(e.Data))
	case e.Type == TypeX509:
		return n.stoppedByCertificate(e)
	}
	return "it is of a kind whose effect is not known"
}

func (n Needed) stoppedByHash(digest [32]byte) string {
	for _, p := range n.Programs {
		if p.Digest == digest {
			return fmt.Sprintf("it would stop %s, which this machine starts", p.Name)
		}
	}
	if slices.ContainsFunc(n.Reserved, func(e Entry) bool { return e.Type == TypeSHA256 && bytes.Equal(e.Data, digest[:]) }) {
		return "it would stop what db allows on this machine by its hash, such as an option ROM"
	}
	for _, rom := range n.Drivers.ROMs {
		switch rom.Digest {
		case digest:
			return fmt.Sprintf("it would stop the option ROM %s, which ran in this boot", printable(rom.Path))
		case [32]byte{}:
			return fmt.Sprintf("the event log has no SHA-256 hash of the option ROM %s, so that it may be the one", printable(rom.Path))
		}
	}
	return ""
}

// stoppedByCertificate compares names: firmware refuses an image whose chain has the
// certificate anywhere, and of a chain only the entry of db is known, by which the image
// started. So the entry itself, who issued it and whom it issued count as in the chain, and
// what may be further from it: whose issuer's issuer is who, no name says.
func (n Needed) stoppedByCertificate(e Entry) string {
	revoked, err := x509.ParseCertificate(e.Data)
	if err != nil {
		return "the certificate is of an unusual form, so that it is not known what it signed"
	}
	for _, own := range n.Own {
		if sameChain(revoked, own) {
			return fmt.Sprintf("it would stop all that this machine has signed with %q", own.Subject.CommonName)
		}
	}
	for _, a := range slices.Concat(n.Authorities, n.Reserved) {
		if why := n.stoppedBelow(revoked, a); why != "" {
			return why
		}
	}
	if len(n.Drivers.ROMs) > 0 && !slices.ContainsFunc(n.Authorities, func(a Entry) bool { return !n.own(a) }) {
		return fmt.Sprintf("%d option ROMs ran in this boot (%s), and the event log does not say by which entry of db", len(n.Drivers.ROMs), paths(n.Drivers.ROMs))
	}
	return ""
}

// stoppedBelow says how a certificate would stop what starts by an entry of db; empty for
// not at all. What this machine's own keys have signed has no other certificate in its chain.
func (n Needed) stoppedBelow(revoked *x509.Certificate, a Entry) string {
	if n.own(a) {
		return ""
	}
	if a.Type != TypeX509 {
		// A signer in dbx outweighs a hash in db (EDK II, DxeImageVerificationLib).
		return fmt.Sprintf("the firmware starts something by the %s in db, and by whom that is signed is not known", a)
	}
	authority, err := x509.ParseCertificate(a.Data)
	if err != nil {
		return fmt.Sprintf("what the firmware starts by the %s may be signed with it", a)
	}
	name := printable(authority.Subject.String())
	switch {
	case sameChain(revoked, authority):
		return fmt.Sprintf("it would stop what the firmware starts by the certificate %q, such as an option ROM", name)
	case !selfIssued(revoked):
		return fmt.Sprintf("it may have been issued under the certificate %q, by which the firmware starts something such as an option ROM", name)
	case !selfIssued(authority) && mayIssue(revoked):
		return fmt.Sprintf("the certificate %q, by which the firmware starts something such as an option ROM, may have been issued under it", name)
	}
	return ""
}

// selfIssued reports whether a certificate ends its chain.
func selfIssued(c *x509.Certificate) bool { return bytes.Equal(c.RawSubject, c.RawIssuer) }

// mayIssue reports whether a certificate may stand above another. The first versions of
// X.509 have no word about it.
func mayIssue(c *x509.Certificate) bool { return c.IsCA || !c.BasicConstraintsValid }

func (n Needed) own(e Entry) bool {
	return e.Type == TypeX509 && slices.ContainsFunc(n.Own, func(c *x509.Certificate) bool { return bytes.Equal(c.Raw, e.Data) })
}

// sameChain reports whether two certificates may stand in one chain: as the same name or
// key, or next to each other.
func sameChain(a, b *x509.Certificate) bool {
	return bytes.Equal(a.Raw, b.Raw) || bytes.Equal(a.RawSubjectPublicKeyInfo, b.RawSubjectPublicKeyInfo) ||
		bytes.Equal(a.RawSubject, b.RawSubject) || bytes.Equal(a.RawIssuer, b.RawSubject) || bytes.Equal(a.RawSubject, b.RawIssuer)
}
