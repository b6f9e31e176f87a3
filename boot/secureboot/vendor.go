package secureboot

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/gpt"
)

// An OptionROM is a driver that the firmware started from a card or from its
// own flash: an EV_EFI_BOOT_SERVICES_DRIVER or EV_EFI_RUNTIME_SERVICES_DRIVER
// event in PCR 2 (TCG PC Client Platform Firmware Profile 1.06, section 3.3.4.3).
type OptionROM struct {
	// Digest is its Authenticode SHA-256 hash, zero when the event log has
	// none.
	Digest [32]byte
	Path   string // device path, for messages
}

// Drivers is what the event log says about option ROMs. Without an event log
// nothing is known, which is not the same as none.
type Drivers struct {
	Known bool
	ROMs  []OptionROM
}

// Factory is what the firmware keeps of its vendor's: the contents that "restore
// factory keys" would put back, which nobody but the firmware can write. The live
// db is not among them: in Setup Mode anybody can have written it.
type Factory struct {
	DBDefault, KEKDefault, DBXDefault Database
	// Others are the certificates that are known by their hash (KnownOthers) in a dbDefault
	// that others can write. What starts this machine's option ROMs may be missing.
	Others Database
	// Hashes: the firmware says that it takes SHA-256 hashes in db (the variable
	// SignatureSupport; UEFI 2.10, section 3.3).
	Hashes bool
}

// Vendor is what is enrolled beside the machine's own keys, and why.
type Vendor struct {
	KEK, DB, DBX Database
	Reason       string
	From         Origin // of the certificates and revocations
}

func (v Vendor) origin(e Entry) Origin {
	if e.Type == TypeSHA256 && v.DB.Contains(e) {
		return FromOptionROM
	}
	return cmp.Or(v.From, FromFirmware)
}

// maxROMs bounds how many hashes of option ROMs go into db.
const maxROMs = 64

// ErrOptionROMs says that the machine has option ROMs which nothing we could
// enroll would let start. With a graphics card or a disk controller that means a
// machine that does not start any more.
var ErrOptionROMs = errors.New("option ROMs cannot be allowed")

// VendorCertificates decides what of others goes into KEK, db and dbx. owner is
// this machine's: what carries it is ours already and is not counted as a
// vendor's, so that an enrollment that was cut comes to the same result again.
//
// Vendor certificates widen what starts: everything that the vendor signed, some
// of it long since broken. So auto takes them only where a ROM needs them, and
// not where each ROM can be allowed by its hash: where the event log has all of
// the hashes and the firmware says that it takes hashes in db. (EDK II looks for
// the hash of an image in db whether the image is signed or not; what other
// firmware makes of one can only be seen by trying, and a graphics card that
// stays dark is a high price.) It leaves out the certificates that sign only
// Windows, and takes the firmware's default dbx along with the others.
//
// Firmware that keeps no defaults has no certificate that is known to be its
// vendor's: then it is by hash alone.
func VendorCertificates(mode contract.VendorKeys, owner gpt.GUID, drivers Drivers, factory Factory) (Vendor, error) {
	switch mode {
	case contract.VendorNone:
		return Vendor{Reason: "vendor_keys is none: db holds this machine's key alone"}, nil
	case contract.VendorMicrosoft:
		return microsoft(owner, drivers, factory)
	case contract.VendorAuto:
		return auto(owner, drivers, factory)
	}
	return Vendor{}, fmt.Errorf("vendor_keys is %q, want auto, none or microsoft", mode)
}

func microsoft(owner gpt.GUID, drivers Drivers, factory Factory) (Vendor, error) {
	v := Vendor{
		KEK: usable(owner, nil, factory.KEKDefault), DB: usable(owner, nil, slices.Concat(factory.DBDefault, factory.Others)),
		DBX: foreign(owner, factory.DBXDefault), From: FromContract,
	}
	if !slices.ContainsFunc(v.DB, func(e Entry) bool { return bytes.Contains(e.Data, []byte("Microsoft Corporation")) }) {
		return Vendor{}, errors.New("vendor_keys is microsoft, but the firmware keeps no certificate of Microsoft's in dbDefault, or has that one with the attribute NV, so that " +
			"any system can have written it, as what db holds now: update the machine's firmware, or build with vendor_keys = auto")
	}
	v.Reason = fmt.Sprintf("vendor_keys is microsoft: db also gets the firmware's %s", v.DB)
	if len(factory.Others) > 0 && len(drivers.ROMs) > 0 {
		roms, err := byHash(owner, drivers.ROMs, "and others can write the firmware's dbDefault")
		if err != nil {
			return Vendor{}, err
		}
		v.DB, v.Reason = append(v.DB, roms.DB...), v.Reason+"; "+roms.Reason
	}
	return v, nil
}

func auto(owner gpt.GUID, drivers Drivers, factory Factory) (Vendor, error) {
	if drivers.Known && len(drivers.ROMs) == 0 {
		return Vendor{Reason: "the event log shows no option ROMs: db holds this machine's key alone"}, nil
	}
	if drivers.Known && factory.Hashes {
		if v, err := byHash(owner, drivers.ROMs, "and the firmware takes hashes in db"); err == nil {
			return v, nil
		}
	}
	v := Vendor{DB: usable(owner, windowsOnly, factory.DBDefault), DBX: foreign(owner, factory.DBXDefault), From: FromFirmware}
	v.DB = append(v.DB, allowedHashes(owner, drivers, factory)...)
	hasCertificate := slices.ContainsFunc(v.DB, func(e Entry) bool { return e.Type == TypeX509 })
	switch {
	case !drivers.Known && hasCertificate:
		v.Reason = fmt.Sprintf("there is no event log, so whether option ROMs need them is unknown: db also gets the firmware's %s", v.DB)
		return v, nil
	case !drivers.Known:
		return Vendor{Reason: "there is no event log, and the firmware keeps no vendor's certificates: db holds this machine's key alone"}, nil
	case hasCertificate:
		v.Reason = fmt.Sprintf("%d option ROMs were started (%s): db also gets the firmware's %s", len(drivers.ROMs), paths(drivers.ROMs), v.DB)
		return v, nil
	}
	return byHash(owner, drivers.ROMs, "and the firmware keeps no vendor's certificates")
}

// byHash allows exactly the option ROMs that are there: a card whose firmware is
// updated does not start until it is enrolled again.
func byHash(owner gpt.GUID, roms []OptionROM, why string) (Vendor, error) {
	v := Vendor{From: FromOptionROM}
	for _, rom := range roms {
		if rom.Digest == [32]byte{} {
			return Vendor{}, fmt.Errorf("%w: the firmware keeps no vendor's certificates that it alone can have written, and the event log has no SHA-256 hash of %s; "+
				"restore the factory keys in the firmware's setup and clear the Platform Key alone, or build with vendor_keys = none if the machine starts without this ROM", ErrOptionROMs, printable(rom.Path))
		}
		if e := Hash(owner, rom.Digest); !v.DB.Contains(e) {
			v.DB = append(v.DB, e)
		}
	}
	if len(v.DB) > maxROMs {
		return Vendor{}, fmt.Errorf("%w: the event log shows %d of them, at most %d are allowed one by one", ErrOptionROMs, len(v.DB), maxROMs)
	}
	v.Reason = fmt.Sprintf("%d option ROMs were started (%s), %s: db also gets the ROMs' hashes; "+
		"after an update of such a card's firmware they are enrolled again", len(roms), paths(roms), why)
	return v, nil
}

func paths(roms []OptionROM) string {
	const most = 4
	var b []byte
	for i, rom := range roms {
		switch {
		case i == most:
			return fmt.Sprintf("%s and %d more", b, len(roms)-most)
		case i > 0:
			b = append(b, ", "...)
		}
		b = append(b, printable(rom.Path)...)
	}
	return string(b)
}

// usable returns the certificates of the database, without ours, without those
// that leave matches, and without keys that were published: some firmware
// shipped with test keys whose private half is public.
func usable(owner gpt.GUID, leave func([]byte) bool, d Database) Database {
	return slices.DeleteFunc(foreign(owner, d), func(e Entry) bool {
		return e.Type != TypeX509 || publishedKey(e.Data) || leave != nil && leave(e.Data)
	})
}

// foreign returns the entries that are not ours, each once; with no owner, all: there are
// firmwares that name none in their defaults.
func foreign(owner gpt.GUID, d Database) Database {
	d = d.Without(nil)
	return slices.DeleteFunc(d, func(e Entry) bool { return !owner.IsZero() && e.Owner == owner })
}

// allowedHashes returns what the firmware allows by hash among the ROMs that
// were started.
func allowedHashes(owner gpt.GUID, drivers Drivers, factory Factory) Database {
	var out Database
	for _, e := range foreign(owner, factory.DBDefault) {
		started := slices.ContainsFunc(drivers.ROMs, func(r OptionROM) bool { return bytes.Equal(r.Digest[:], e.Data) })
		if e.Type == TypeSHA256 && started && !out.Contains(e) {
			out = append(out, e)
		}
	}
	return out
}

// The names are looked for in the bytes: a certificate that Go's parser refuses
// must not slip past.

// PublishedKey reports whether a certificate is of a test key that firmware was shipped
// with, and whose private half is public.
func PublishedKey(e Entry) bool { return e.Type == TypeX509 && publishedKey(e.Data) }

func publishedKey(der []byte) bool {
	return bytes.Contains(der, []byte("DO NOT TRUST")) || bytes.Contains(der, []byte("DO NOT SHIP"))
}

func windowsOnly(der []byte) bool {
	return bytes.Contains(der, []byte("Microsoft Windows Production PCA")) || bytes.Contains(der, []byte("Windows UEFI CA"))
}
