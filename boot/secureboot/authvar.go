package secureboot

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"time"
	"unicode/utf16"

	"halogenos.internal/boot/gpt"
)

// A Variable is the name of an EFI variable in its namespace.
type Variable struct {
	Name string
	GUID gpt.GUID
}

// String returns the variable's name alone, as a person knows it.
func (v Variable) String() string { return v.Name }

// Namespaces (UEFI 2.10, sections 3.3 and 32.6.1).
var (
	globalVariables = gpt.MustGUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
	imageSecurity   = gpt.MustGUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
)

// The variables of Secure Boot, and the defaults that the factory left.
var (
	PK         = Variable{"PK", globalVariables}
	KEK        = Variable{"KEK", globalVariables}
	DB         = Variable{"db", imageSecurity}
	DBX        = Variable{"dbx", imageSecurity}
	KEKDefault = Variable{"KEKDefault", globalVariables}
	DBDefault  = Variable{"dbDefault", globalVariables}
	DBXDefault = Variable{"dbxDefault", globalVariables}

	SecureBoot   = Variable{"SecureBoot", globalVariables}
	SetupMode    = Variable{"SetupMode", globalVariables}
	AuditMode    = Variable{"AuditMode", globalVariables}
	DeployedMode = Variable{"DeployedMode", globalVariables}

	// SignatureSupport lists the signature types that the firmware takes.
	SignatureSupport = Variable{"SignatureSupport", globalVariables}
)

// Attributes of variables (UEFI 2.10, section 8.2).
const (
	NonVolatile            uint32 = 1 << 0
	BootServiceAccess      uint32 = 1 << 1
	RuntimeAccess          uint32 = 1 << 2
	TimeBasedAuthenticated uint32 = 1 << 5
	AppendWrite            uint32 = 1 << 6

	// KeyAttributes are those of PK, KEK, db and dbx.
	KeyAttributes = NonVolatile | BootServiceAccess | RuntimeAccess | TimeBasedAuthenticated
)

const (
	efiTimeSize = 16
	// winCertHeader is the size of WIN_CERTIFICATE_UEFI_GUID before its data.
	winCertHeader         = 4 + 2 + 2 + 16
	winCertRevision       = 0x0200
	winCertTypeEFIGUID    = 0x0ef1
	earliest              = 2000 // years that a build date can be in
	latest                = 9900
	farFuture             = 20 // years
	authenticationHeaders = efiTimeSize + winCertHeader
)

// certTypePKCS7 is EFI_CERT_TYPE_PKCS7_GUID (UEFI 2.10, section 8.2.2).
var certTypePKCS7 = gpt.MustGUID("4aafd29d-68df-49ee-8aa9-347d375665a7")

func checkDate(t time.Time) error {
	if y := t.UTC().Year(); y < earliest || y > latest {
		return fmt.Errorf("year %d is not from %d to %d", y, earliest, latest)
	}
	return nil
}

// Timestamp chooses the time of an update from a clock that may be wrong by
// decades either way. Firmware refuses an update that is not newer than the
// last one: so never below the build date, and a clock that is more than 20
// years ahead of it is not believed, or one bad battery would shut out every
// later update.
func Timestamp(clock, buildDate time.Time) time.Time {
	if clock.Before(buildDate) || clock.After(buildDate.AddDate(farFuture, 0, 0)) {
		clock = buildDate
	}
	return clock.UTC().Truncate(time.Second)
}

// SignUpdate returns what SetVariable takes to give an authenticated variable
// its content: an EFI_VARIABLE_AUTHENTICATION_2 with the content behind it
// (UEFI 2.10, section 8.2.2). attributes are KeyAttributes, with AppendWrite or
// without; at has a resolution of one second.
func SignUpdate(v Variable, attributes uint32, at time.Time, content []byte, signer Pair) ([]byte, error) {
	if err := checkDate(at); err != nil {
		return nil, fmt.Errorf("sign update of %s: timestamp: %w", v, err)
	}
	if attributes&TimeBasedAuthenticated == 0 {
		return nil, fmt.Errorf("sign update of %s: attributes %#x are not those of an authenticated variable", v, attributes)
	}
	if len(content) > MaxDatabase {
		return nil, fmt.Errorf("sign update of %s: content has %d bytes, at most %d are allowed", v, len(content), MaxDatabase)
	}
	when := efiTime(at)
	signature, err := signDetached(signer, signedBytes(v, attributes, when, content))
	if err != nil {
		return nil, fmt.Errorf("sign update of %s: %w", v, err)
	}
	out := bytes.Clone(when[:])
	out = binary.LittleEndian.AppendUint32(out, uint32(winCertHeader+len(signature)))
	out = binary.LittleEndian.AppendUint16(out, winCertRevision)
	out = binary.LittleEndian.AppendUint16(out, winCertTypeEFIGUID)
	out = appendGUID(out, certTypePKCS7)
	out = append(out, signature...)
	return append(out, content...), nil
}

// SplitUpdate takes what SignUpdate returns apart: the PKCS #7 SignedData and
// the content. It verifies nothing.
func SplitUpdate(payload []byte) (at time.Time, signature, content []byte, err error) {
	if len(payload) < authenticationHeaders {
		return time.Time{}, nil, nil, fmt.Errorf("authenticated update has %d bytes, want %d or more", len(payload), authenticationHeaders)
	}
	when, header := payload[:efiTimeSize], payload[efiTimeSize:]
	size := binary.LittleEndian.Uint32(header)
	switch {
	case size < winCertHeader || uint64(size) > uint64(len(header)):
		return time.Time{}, nil, nil, fmt.Errorf("certificate of update claims %d bytes, %d are left", size, len(header))
	case binary.LittleEndian.Uint16(header[4:]) != winCertRevision || binary.LittleEndian.Uint16(header[6:]) != winCertTypeEFIGUID:
		return time.Time{}, nil, nil, errors.New("certificate of update is not of revision 2.0 and kind EFI GUID")
	case guidFromDisk(header[8:]) != certTypePKCS7:
		return time.Time{}, nil, nil, errors.New("certificate of update is not PKCS #7")
	}
	at = time.Date(int(binary.LittleEndian.Uint16(when)), time.Month(when[2]), int(when[3]), int(when[4]), int(when[5]), int(when[6]), 0, time.UTC)
	return at, header[winCertHeader:size], header[size:], nil
}

// signedBytes is what the signature of an update covers: name in UTF-16 without
// its terminator, namespace, attributes, time, content.
func signedBytes(v Variable, attributes uint32, when [efiTimeSize]byte, content []byte) []byte {
	var b []byte
	for _, unit := range utf16.Encode([]rune(v.Name)) {
		b = binary.LittleEndian.AppendUint16(b, unit)
	}
	b = appendGUID(b, v.GUID)
	b = binary.LittleEndian.AppendUint32(b, attributes)
	b = append(b, when[:]...)
	return append(b, content...)
}

// efiTime encodes an EFI_TIME (UEFI 2.10, section 8.3) as section 8.2.2 wants
// it: everything below the second, time zone and daylight zero.
func efiTime(t time.Time) (b [efiTimeSize]byte) {
	t = t.UTC()
	binary.LittleEndian.PutUint16(b[:], uint16(t.Year()))
	b[2], b[3] = byte(t.Month()), byte(t.Day())
	b[4], b[5], b[6] = byte(t.Hour()), byte(t.Minute()), byte(t.Second())
	return b
}

// Object identifiers of PKCS #7 (RFC 2315, RFC 5754).
var (
	oidData          = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	oidSHA256        = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
	oidRSAEncryption = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
)

// signedData is PKCS #7 SignedData (RFC 2315, section 9.1).
type signedData struct {
	Version          int
	DigestAlgorithms []pkix.AlgorithmIdentifier `asn1:"set"`
	ContentInfo      contentInfo
	Certificates     asn1.RawValue
	SignerInfos      []signerInfo `asn1:"set"`
}

type contentInfo struct{ Type asn1.ObjectIdentifier }

type signerInfo struct {
	Version            int
	IssuerAndSerial    issuerAndSerial
	DigestAlgorithm    pkix.AlgorithmIdentifier
	SignatureAlgorithm pkix.AlgorithmIdentifier
	Signature          []byte
}

type issuerAndSerial struct {
	Issuer asn1.RawValue
	Serial *big.Int
}

// signDetached makes a bare SignedData over content that is not in it: no
// ContentInfo around it (older firmware takes it only so), SHA-256, one signer,
// and no attributes, so that no clock comes in.
func signDetached(signer Pair, content []byte) ([]byte, error) {
	digest := sha256.Sum256(content)
	signature, err := signer.signDigest(digest[:])
	if err != nil {
		return nil, fmt.Errorf("RSA: %w", err)
	}
	sha := pkix.AlgorithmIdentifier{Algorithm: oidSHA256, Parameters: asn1.NullRawValue}
	certificate := signer.Certificate
	return asn1.Marshal(signedData{
		Version:          1,
		DigestAlgorithms: []pkix.AlgorithmIdentifier{sha},
		ContentInfo:      contentInfo{oidData},
		Certificates:     asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: certificate.Raw},
		SignerInfos: []signerInfo{{
			Version:            1,
			IssuerAndSerial:    issuerAndSerial{asn1.RawValue{FullBytes: certificate.RawIssuer}, certificate.SerialNumber},
			DigestAlgorithm:    sha,
			SignatureAlgorithm: pkix.AlgorithmIdentifier{Algorithm: oidRSAEncryption, Parameters: asn1.NullRawValue},
			Signature:          signature,
		}},
	})
}
