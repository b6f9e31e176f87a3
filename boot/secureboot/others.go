package secureboot

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/strictjson"
	"halogenos.internal/boot/words"
)

// OthersOnESP is where an installer leaves the owner's wish that other systems go on
// starting, for the boot that makes this machine's keys. It stays there, and anybody can
// write it: a person at the console decides.
const OthersOnESP = "EFI/halogen/others.json"

const (
	othersVersion = 1
	// MaxOthers bounds that file in bytes: what is known of has 9 KiB in base64.
	MaxOthers = 32 << 10
	// maxOthers bounds how many certificates it has.
	maxOthers = 16
)

// othersText is the file's content.
type othersText struct {
	Version int `json:"version"`
	// Certificates are those that the installer has found in the firmware, in DER.
	Certificates [][]byte `json:"certificates"`
}

// EncodeOthers writes the file with the certificates of a database that are known.
func EncodeOthers(found Database) ([]byte, error) {
	t := othersText{Version: othersVersion, Certificates: [][]byte{}}
	for _, e := range KnownOthers(found) {
		t.Certificates = append(t.Certificates, e.Data)
	}
	text, err := json.Marshal(t)
	if err != nil {
		return nil, fmt.Errorf("encode the wish that other systems start: %w", err)
	}
	return append(text, '\n'), nil
}

// ParseOthers reads the file. Of the certificates it returns those that are known:
// anybody can have added others.
func ParseOthers(text []byte) (Database, error) {
	if len(text) > MaxOthers {
		return nil, fmt.Errorf("has %d bytes, more than %d", len(text), MaxOthers)
	}
	var t othersText
	if err := strictjson.Decode(text, &t); err != nil {
		return nil, err
	}
	if t.Version != othersVersion || len(t.Certificates) > maxOthers {
		return nil, fmt.Errorf("has version %d and %d certificates, and this program knows version %d and at most %d", t.Version, len(t.Certificates), othersVersion, maxOthers)
	}
	var d Database
	for _, der := range t.Certificates {
		d = append(d, Entry{Type: TypeX509, Data: der})
	}
	return KnownOthers(d), nil
}

// othersOwner is the owner of Microsoft's entries, by what it asks of vendors ("Windows
// Secure Boot Key Creation and Management Guidance").
var othersOwner = gpt.MustGUID("77fa9abd-0359-4d32-bd60-28f4e78f784b")

// knownOthers are the SHA-256 hashes of the certificates that have signed Windows and what
// other systems start with, of 2011 and of 2023 (https://github.com/microsoft/secureboot_objects,
// PreSignedObjects/DB/Certificates). So one of them is the same wherever it was found.
var knownOthers = []string{
	"e8e95f0733a55e8bad7be0a1413ee23c51fcea64b3c8fa6a786935fddcc71961", // Microsoft Windows Production PCA 2011
	"076f1fea90ac29155ebf77c17682f75f1fdd1be196da302dc8461e350a9ae330", // Windows UEFI CA 2023
	"48e99b991f57fc52f76149599bff0a58c47154229b9f8d603ac40d3500248507", // Microsoft Corporation UEFI CA 2011
	"f6124e34125bee3fe6d79a574eaa7b91c0e7bd9d929c1a321178efd611dad901", // Microsoft UEFI CA 2023
}

// KnownOthers returns the certificates of a database that are known to be Microsoft's, for
// Windows or for other systems, each once.
func KnownOthers(d Database) (known Database) {
	for _, e := range d {
		sum := sha256.Sum256(e.Data)
		if e.Type == TypeX509 && slices.Contains(knownOthers, hex.EncodeToString(sum[:])) && !holds(known, e) {
			known = append(known, Entry{Type: TypeX509, Owner: othersOwner, Data: e.Data})
		}
	}
	return known
}

// holds reports whether a database has a certificate or hash, of any owner.
func holds(d Database, e Entry) bool {
	return slices.ContainsFunc(d, func(have Entry) bool { return have.Type == e.Type && bytes.Equal(have.Data, e.Data) })
}

// OtherSystems are what db and dbx get where the owner lets other systems start.
type OtherSystems struct{ DB, DBX Database }

// ErrNoOthers says that there is no certificate by which other systems could start.
var ErrNoOthers = errors.New("the firmware keeps no certificate of Microsoft's that is known to be one, neither in dbDefault nor in db, and the installer has left none: update the machine's firmware, and install again")

// LetOthers decides what the firmware gets for other systems beside what a list wants already:
// Microsoft's certificates for Windows and for the loaders of others, as the firmware's
// defaults have them; and those that are known by their hash, in the firmware's db or in
// what the installer has left, since old defaults lack the certificates of 2023. What the
// firmware's defaults revoke comes along.
//
// Microsoft's key for db itself (KEK) is not among it: no other system needs it to start, and
// who has it could let anything else start later. Nor is its certificate for option ROMs.
//
// Nothing and no error means that the list lets them start as it is.
func LetOthers(wanted Wanted, factory Factory, live, left Database) (o OtherSystems, err error) {
	var all Database
	for _, e := range slices.Concat(usable(gpt.GUID{}, notForSystems, factory.DBDefault), KnownOthers(slices.Concat(factory.Others, live, left))) {
		if !holds(all, e) {
			all = append(all, e)
		}
	}
	if len(all) == 0 {
		return o, ErrNoOthers
	}
	if o.DB = slices.DeleteFunc(all, func(e Entry) bool { return holds(wanted.DB, e) }); len(o.DB) == 0 {
		return OtherSystems{}, nil
	}
	for _, e := range foreign(gpt.GUID{}, factory.DBXDefault) {
		if !holds(wanted.DBX, e) {
			o.DBX = append(o.DBX, e)
		}
	}
	return o, nil
}

// notForSystems tells certificates that start no other system: those of the machine's
// maker, and Microsoft's for option ROMs.
func notForSystems(der []byte) bool {
	return !bytes.Contains(der, []byte("Microsoft Corporation")) || bytes.Contains(der, []byte("Option ROM"))
}

// Question asks the owner about it, for a machine with a TPM or without.
func (o OtherSystems) Question(l words.Language, tpm bool) string {
	var b bytes.Buffer
	b.WriteString(l.Text(words.OthersAsk))
	for _, e := range o.DB {
		fmt.Fprintf(&b, "  %s\n", e)
	}
	b.WriteString(l.Text(words.OthersWeaken) + "\n")
	if tpm {
		b.WriteString(l.Text(words.OthersSpare) + "\n")
	} else {
		b.WriteString(l.Text(words.OthersNoTPM) + "\n")
	}
	return b.String() + l.Text(words.OthersChosen)
}

// LetStart wants what other systems start by, since the owner has said so, and reports
// whether the list has changed.
func (l *List) LetStart(o OtherSystems) (changed bool) {
	for _, e := range o.DB {
		changed = l.Add(DB, e, FromOwner) || changed
	}
	for _, e := range o.DBX {
		changed = l.Add(DBX, e, FromFirmware) || changed
	}
	return changed
}

// ownRoom is what this machine's certificates in PK, KEK and db take of the firmware's
// variable store in bytes, with the names of the variables, and the signature that comes with
// a write.
const ownRoom = 5 << 10

// Room is how many bytes of variables the firmware must take for what a list wants with what
// it gets for other systems, where its dbx has this already.
func (o OtherSystems) Room(wanted Wanted, dbx Database) (int64, error) {
	all := int64(ownRoom)
	for _, d := range []Database{slices.Concat(wanted.KEK, wanted.DB, o.DB), slices.Concat(dbx, slices.Concat(wanted.DBX, o.DBX).Without(dbx))} {
		if len(d) == 0 {
			continue
		}
		text, err := d.Marshal()
		if err != nil {
			return 0, fmt.Errorf("what other systems start by: %w", err)
		}
		all += int64(len(text))
	}
	return all, nil
}

// LetNoneStart takes back what LetStart has added, and reports whether the list has changed.
// Revocations stay where the list has certificates of others that its owner has not added.
func (l *List) LetNoneStart() (changed bool) {
	owners := func(e Entry) bool { return e.Type == TypeX509 && l.Origin(e) == FromOwner }
	if !slices.ContainsFunc(l.Wanted.DB, owners) {
		return false
	}
	l.Wanted.DB = l.drop(l.Wanted.DB, owners)
	if !slices.ContainsFunc(l.Wanted.DB, func(e Entry) bool { return e.Type == TypeX509 && l.Origin(e) != "" }) {
		l.Wanted.DBX = l.drop(l.Wanted.DBX, func(e Entry) bool { return l.Origin(e) == FromFirmware })
	}
	return true
}

// drop returns the entries that are not gone, and forgets where those came from that are.
func (l *List) drop(d Database, gone func(Entry) bool) (left Database) {
	for _, e := range d {
		if gone(e) {
			delete(l.origins, entryID(e))
		} else {
			left = append(left, e)
		}
	}
	return left
}

// StartsROMs reports whether option ROMs may start by an entry of db that is a certificate:
// those that sign Windows, or kernel modules, alone do not count.
func StartsROMs(e Entry) bool { return e.Type == TypeX509 && !IsModuleKey(e) && !windowsOnly(e.Data) }
