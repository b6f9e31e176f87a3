package secureboot

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Wanted is what the firmware shall hold: exactly this in PK, KEK and db, and
// at least this in dbx, to which revocations are added over the years. It is
// public, and kept to compare the firmware with at later boots.
type Wanted struct {
	PK, KEK, DB, DBX Database
}

const wantedMagic = "HSBWANT1"

// Wanted returns what this set enrolls, together with what the vendor's parts of
// the machine need.
func (k *KeySet) Wanted(vendor Vendor) Wanted {
	return Wanted{
		PK:  Database{Certificate(k.Owner, k.PK.Certificate)},
		KEK: slices.Concat(Database{Certificate(k.Owner, k.KEK.Certificate)}, vendor.KEK),
		DB:  slices.Concat(Database{Certificate(k.Owner, k.DB.Certificate)}, vendor.DB),
		DBX: slices.Clone(vendor.DBX),
	}
}

// Of returns what the variable shall hold; nothing for other variables.
func (w Wanted) Of(v Variable) Database {
	switch v {
	case PK:
		return w.PK
	case KEK:
		return w.KEK
	case DB:
		return w.DB
	case DBX:
		return w.DBX
	}
	return nil
}

// Marshal encodes the four databases for being stored.
func (w Wanted) Marshal() ([]byte, error) {
	out := []byte(wantedMagic)
	for _, d := range []Database{w.PK, w.KEK, w.DB, w.DBX} {
		b, err := d.Marshal()
		if err != nil {
			return nil, err
		}
		out = appendPart(out, b)
	}
	return out, nil
}

// ParseWanted reads what Marshal wrote.
func ParseWanted(b []byte) (Wanted, error) {
	var w Wanted
	if len(b) < len(wantedMagic) || string(b[:len(wantedMagic)]) != wantedMagic {
		return w, errors.New("this is not a list of wanted Secure Boot contents")
	}
	b = b[len(wantedMagic):]
	for i, d := range []*Database{&w.PK, &w.KEK, &w.DB, &w.DBX} {
		part, rest, err := cutPart(b, MaxDatabase)
		if err != nil {
			return Wanted{}, fmt.Errorf("wanted database %d: %w", i, err)
		}
		if *d, err = ParseDatabase(part); err != nil {
			return Wanted{}, fmt.Errorf("wanted database %d: %w", i, err)
		}
		b = rest
	}
	if len(b) != 0 {
		return Wanted{}, fmt.Errorf("%d bytes follow the wanted databases", len(b))
	}
	return w, nil
}

// Update returns the payload that gives the variable this content: PK and KEK
// are signed by PK, db and dbx by KEK (UEFI 2.10, section 32.3).
func (k *KeySet) Update(v Variable, content Database, at time.Time) ([]byte, error) {
	var signer Pair
	switch v {
	case PK, KEK:
		signer = k.PK
	case DB, DBX:
		signer = k.KEK
	default:
		return nil, fmt.Errorf("%s is not a Secure Boot key variable", v)
	}
	if signer.Key == nil {
		return nil, fmt.Errorf("sign update of %s: the private keys were wiped", v)
	}
	b, err := content.Marshal()
	if err != nil {
		return nil, fmt.Errorf("encode content of %s: %w", v, err)
	}
	return SignUpdate(v, KeyAttributes, at, b, signer)
}
