package contract

import (
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"fmt"

	"halogenos.internal/boot/strictjson"
)

// ModuleKeyPath is where a UKI says whose kernel modules its release has, where that is not
// built into the kernel but is for each machine's db (ModuleTrust=db): in an archive of its
// own, as [ExtensionsPath], since the contract has no room for it.
const ModuleKeyPath = "halogen/module-key.json"

// ModuleKeyFormat is the number of this format; another is refused.
const ModuleKeyFormat = 1

const (
	// MaxModuleKey bounds the file in bytes.
	MaxModuleKey = 16 << 10
	// maxModuleCertificate bounds the certificate in bytes: db shares its room with others.
	maxModuleCertificate = 4 << 10
)

// moduleKey is the file.
type moduleKey struct {
	Format      int    `json:"format"`
	Certificate []byte `json:"certificate"` // X.509, DER
}

// minModuleKey is the least size in bits of the key in the certificate.
const minModuleKey = 2048

// ValidModuleKey refuses a certificate that could not be put into db: one that cannot be
// read, takes more room than firmware can be expected to have, or is not of an RSA key. EDK II,
// of which most firmware is made, takes a list with another key for damaged (SecurityPkg,
// AuthVariableLib, CheckSignatureListFormat).
func ValidModuleKey(der []byte) (*x509.Certificate, error) {
	if len(der) == 0 || len(der) > maxModuleCertificate {
		return nil, fmt.Errorf("certificate for kernel modules has %d bytes, want 1 to %d", len(der), maxModuleCertificate)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("certificate for kernel modules: %w", err)
	}
	if key, ok := c.PublicKey.(*rsa.PublicKey); !ok || key.N.BitLen() < minModuleKey {
		return nil, fmt.Errorf("certificate for kernel modules is not of an RSA key of at least %d bits, and firmware takes no other into db: make one with `halogen keys generate`", minModuleKey)
	}
	return c, nil
}

// ModuleKeyArchive is the archive that follows those of [Archive] and [ExtensionsArchive];
// empty without a certificate.
func ModuleKeyArchive(der []byte) ([]byte, error) {
	if len(der) == 0 {
		return nil, nil
	}
	if _, err := ValidModuleKey(der); err != nil {
		return nil, err
	}
	text, err := json.Marshal(moduleKey{Format: ModuleKeyFormat, Certificate: der})
	if err != nil {
		return nil, fmt.Errorf("encode the certificate for kernel modules: %w", err)
	}
	return archive(ModuleKeyPath, append(text, '\n'))
}

// ParseModuleKey reads the text of the file and returns the certificate in DER.
func ParseModuleKey(text []byte) ([]byte, error) {
	if len(text) > MaxModuleKey {
		return nil, fmt.Errorf("%s has %d bytes, more than %d", ModuleKeyPath, len(text), MaxModuleKey)
	}
	var file moduleKey
	if err := strictjson.Decode(text, &file); err != nil {
		return nil, fmt.Errorf("parse %s: %w", ModuleKeyPath, err)
	}
	if file.Format != ModuleKeyFormat {
		return nil, fmt.Errorf("%s has format %d, want %d", ModuleKeyPath, file.Format, ModuleKeyFormat)
	}
	if _, err := ValidModuleKey(file.Certificate); err != nil {
		return nil, fmt.Errorf("%s: %w", ModuleKeyPath, err)
	}
	return file.Certificate, nil
}

// ModuleKeyFromInitrd reads the certificate, in DER, from a UKI's .initrd section. A release
// that wants none in db has none, which is no error; a file that does not parse is one.
func ModuleKeyFromInitrd(initrd []byte) ([]byte, error) {
	text, err := factFromInitrd(initrd, ModuleKeyPath, MaxModuleKey)
	if text == nil || err != nil {
		return nil, err
	}
	return ParseModuleKey(text)
}
