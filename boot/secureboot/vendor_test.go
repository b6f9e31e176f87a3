package secureboot

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"strings"
	"sync"
	"testing"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/gpt"
)

var vendorKey = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, keyBits) })

// microsoftOwner is the SignatureOwner that Microsoft asks vendors to use.
var microsoftOwner = gpt.MustGUID("77fa9abd-0359-4d32-bd60-28f4e78f784b")

// factoryCertificate makes a certificate that looks like one of the factory's.
func factoryCertificate(t *testing.T, organization, name string) Entry {
	t.Helper()
	key, err := vendorKey()
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: buildDate, NotAfter: buildDate.AddDate(15, 0, 0),
		Subject: pkix.Name{Organization: []string{organization}, CommonName: name},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return Entry{Type: TypeX509, Owner: microsoftOwner, Data: der}
}

func TestVendorCertificates(t *testing.T) {
	k, _ := testSets(t)
	uefiCA := factoryCertificate(t, "Microsoft Corporation", "Microsoft Corporation UEFI CA 2011")
	romCA := factoryCertificate(t, "Microsoft Corporation", "Microsoft Option ROM UEFI CA 2023")
	windows := factoryCertificate(t, "Microsoft Corporation", "Microsoft Windows Production PCA 2011")
	windows23 := factoryCertificate(t, "Microsoft Corporation", "Windows UEFI CA 2023")
	oem := factoryCertificate(t, "Example Computers", "Example Computers Secure Boot")
	kek := factoryCertificate(t, "Microsoft Corporation", "Microsoft Corporation KEK CA 2011")
	test := factoryCertificate(t, "AMI", "DO NOT TRUST - AMI Test PK")
	revoked := Hash(microsoftOwner, [32]byte{0xee})
	romHash, otherHash := Hash(microsoftOwner, [32]byte{1}), Hash(microsoftOwner, [32]byte{2})

	full := Factory{
		DBDefault:  Database{uefiCA, windows, romCA, windows23, oem, test, oem, romHash, otherHash},
		KEKDefault: Database{kek, test},
		DBXDefault: Database{revoked},
	}
	one := Drivers{Known: true, ROMs: []OptionROM{{Digest: [32]byte{1}, Path: "PciRoot(0x0)/Pci(0x1,0x0)"}}}
	unhashed := Drivers{Known: true, ROMs: []OptionROM{{Path: "PciRoot(0x0)\x1b[1m"}}}
	none := Drivers{Known: true}
	hashing := full
	hashing.Hashes = true

	for _, c := range []struct {
		name    string
		mode    contract.VendorKeys
		drivers Drivers
		factory Factory
		want    Vendor
		reason  string // part of the reason or of the error
		fails   bool
	}{
		{"none", contract.VendorNone, one, full, Vendor{}, "vendor_keys is none", false},
		{"auto, no ROMs", contract.VendorAuto, none, full, Vendor{}, "no option ROMs", false},
		{"auto, a ROM", contract.VendorAuto, one, full, Vendor{DB: Database{uefiCA, romCA, oem, romHash}, DBX: Database{revoked}}, "Pci(0x1,0x0)", false},
		{"auto, no event log", contract.VendorAuto, Drivers{}, full, Vendor{DB: Database{uefiCA, romCA, oem}, DBX: Database{revoked}}, "no event log", false},
		{"auto, nothing known", contract.VendorAuto, Drivers{}, Factory{}, Vendor{}, "no event log", false},
		{"auto, no defaults but a db", contract.VendorAuto, one, Factory{}, Vendor{DB: Database{Hash(k.Owner, [32]byte{1})}}, "keeps no vendor's certificates", false},
		{"auto, the firmware takes hashes", contract.VendorAuto, one, hashing, Vendor{DB: Database{Hash(k.Owner, [32]byte{1})}}, "takes hashes in db", false},
		{"auto, it takes hashes and there is none", contract.VendorAuto, unhashed, hashing, Vendor{DB: Database{uefiCA, romCA, oem}, DBX: Database{revoked}}, "?[1m", false},
		{"auto, it takes hashes and the log is missing", contract.VendorAuto, Drivers{}, hashing, Vendor{DB: Database{uefiCA, romCA, oem}, DBX: Database{revoked}}, "no event log", false},
		{"auto, only test keys", contract.VendorAuto, one, Factory{DBDefault: Database{test}}, Vendor{DB: Database{Hash(k.Owner, [32]byte{1})}}, "hashes", false},
		{"auto, no hash", contract.VendorAuto, unhashed, Factory{}, Vendor{}, "no SHA-256 hash of PciRoot(0x0)?[1m", true},
		{"microsoft", contract.VendorMicrosoft, none, full, Vendor{KEK: Database{kek}, DB: Database{uefiCA, windows, romCA, windows23, oem}, DBX: Database{revoked}}, "Windows UEFI CA 2023", false},
		{"microsoft, none there", contract.VendorMicrosoft, none, Factory{DBDefault: Database{oem}}, Vendor{}, "keeps no certificate of Microsoft's in dbDefault", true},
		{"auto, others write the defaults", contract.VendorAuto, one, Factory{Others: Database{uefiCA}, DBXDefault: Database{revoked}}, Vendor{DB: Database{Hash(k.Owner, [32]byte{1})}}, "keeps no vendor's certificates", false},
		{"auto, others write them, and no hash", contract.VendorAuto, unhashed, Factory{Others: Database{uefiCA}}, Vendor{}, "no SHA-256 hash of", true},
		{"auto, others write them, and no event log", contract.VendorAuto, Drivers{}, Factory{Others: Database{uefiCA}}, Vendor{}, "no event log", false},
		{"microsoft, others write the defaults", contract.VendorMicrosoft, one, Factory{Others: Database{uefiCA}, DBXDefault: Database{revoked}}, Vendor{DB: Database{uefiCA, Hash(k.Owner, [32]byte{1})}, DBX: Database{revoked}}, "others can write", false},
		{"microsoft, others write them, and no hash", contract.VendorMicrosoft, unhashed, Factory{Others: Database{uefiCA}}, Vendor{}, "no SHA-256 hash of", true},
		{"unset", "", none, full, Vendor{}, "vendor_keys", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := VendorCertificates(c.mode, k.Owner, c.drivers, c.factory)
			if (err != nil) != c.fails {
				t.Fatalf("error %v", err)
			}
			if err != nil {
				if !strings.Contains(err.Error(), c.reason) {
					t.Errorf("error %q does not say %q", err, c.reason)
				}
				return
			}
			if !strings.Contains(got.Reason, c.reason) {
				t.Errorf("reason %q does not say %q", got.Reason, c.reason)
			}
			for _, d := range []struct {
				name      string
				got, want Database
			}{{"KEK", got.KEK, c.want.KEK}, {"db", got.DB, c.want.DB}, {"dbx", got.DBX, c.want.DBX}} {
				if len(d.got) != len(d.want) || !d.got.Same(d.want) {
					t.Errorf("%s: %s, want %s", d.name, d.got, d.want)
				}
			}
		})
	}
}

func TestTooManyOptionROMs(t *testing.T) {
	k, _ := testSets(t)
	d := Drivers{Known: true}
	for i := range maxROMs + 1 {
		d.ROMs = append(d.ROMs, OptionROM{Digest: [32]byte{byte(i), 1}, Path: "PciRoot(0x0)"})
	}
	if _, err := VendorCertificates(contract.VendorAuto, k.Owner, d, Factory{}); !errors.Is(err, ErrOptionROMs) {
		t.Errorf("%d option ROMs: %v", len(d.ROMs), err)
	}
	d.ROMs = append(d.ROMs[1:], d.ROMs[1])
	v, err := VendorCertificates(contract.VendorAuto, k.Owner, d, Factory{})
	if err != nil || len(v.DB) != maxROMs {
		t.Errorf("%d hashes, %v", len(v.DB), err)
	}
}
