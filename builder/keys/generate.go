package keys

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/ProtonMail/go-crypto/openpgp/s2k"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"
	"github.com/youmark/pkcs8"
	"golang.org/x/sys/unix"
)

// Names of the files that Generate writes.
const (
	ReleaseSecret = "release-key.secret.asc"
	ReleasePublic = "release-key.asc"
	ModuleSecret  = "module-key.pem"
	ModulePublic  = "module-key.crt"
)

// Wanted says what Generate makes.
type Wanted struct {
	Dir      string // made when missing, for its owner alone
	Name     string // of the distributor
	Email    string // may be empty
	Password *Password
	Now      time.Time
	// UnencryptedStorage takes a directory that nothing encrypts: nothing but the
	// password then protects the key from anyone who gets hold of the disk.
	UnencryptedStorage bool
}

// A Made is what Generate made.
type Made struct {
	Fingerprint string   `json:"fingerprint"` // of the release key, for ReleaseKey=
	Files       []string `json:"files"`
}

// Generate makes a release key and a key for kernel modules, both encrypted
// with the password. It overwrites nothing: the release key of an image can
// never be replaced, so neither can its file.
func Generate(w Wanted) (*Made, error) {
	return using(func() (*Made, error) { return thisHost().generate(w) })
}

func (h host) generate(w Wanted) (*Made, error) {
	if w.Password == nil {
		return nil, errors.New("generate keys: there is no password")
	}
	if err := w.Password.Strong(); err != nil {
		return nil, fmt.Errorf("generate keys: %w", err)
	}
	if err := os.MkdirAll(w.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("generate keys: %w", err)
	}
	if _, err := h.storage(w.Dir, 0); err != nil && !w.UnencryptedStorage {
		return nil, fmt.Errorf("generate keys in %s: %w", w.Dir, err)
	}
	for _, name := range []string{ReleaseSecret, ReleasePublic, ModuleSecret, ModulePublic} {
		if _, err := os.Lstat(filepath.Join(w.Dir, name)); !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("generate keys: there is a %s in %s already: machines that have pinned its key take no other. For another image's keys name another --out", name, w.Dir)
		}
	}
	fingerprint, secret, public, err := releaseKey(w)
	if err != nil {
		return nil, fmt.Errorf("generate release key: %w", err)
	}
	module, cert, err := moduleKey(w)
	if err != nil {
		return nil, fmt.Errorf("generate key for kernel modules: %w", err)
	}
	made := &Made{Fingerprint: fingerprint}
	for _, f := range []struct {
		name string
		mode os.FileMode
		text []byte
	}{{ReleaseSecret, 0o600, secret}, {ReleasePublic, 0o644, public}, {ModuleSecret, 0o600, module}, {ModulePublic, 0o644, cert}} {
		path := filepath.Join(w.Dir, f.name)
		if err := writeNew(path, f.mode, f.text); err != nil {
			return nil, err
		}
		made.Files = append(made.Files, path)
	}
	// A power cut before this may lose files of a key that nobody has been told of yet; one
	// after it loses none: their names, and those of the directories above that were
	// made for them, are on the disk as well.
	if err := h.sync(w.Dir); err != nil {
		return nil, fmt.Errorf("generate keys: sync %s: %w: remove the keys there, and make others", w.Dir, err)
	}
	return made, nil
}

// syncDirectory sees the file system of a directory on the disk (syncfs(2)): to open each
// directory above it may not be allowed.
func syncDirectory(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
}

// writeNew writes a file that must not exist, and sees it on the disk.
func writeNew(path string, mode os.FileMode, text []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(path))
	}
	return nil
}

// releaseKey makes an OpenPGP key of version 4, which gpg 2.2 reads: an Ed25519
// key that certifies and nothing else, and a subkey that signs.
func releaseKey(w Wanted) (fingerprint string, secret, public []byte, err error) {
	salted := false
	config := &packet.Config{
		Algorithm: packet.PubKeyAlgoEdDSA, DefaultHash: crypto.SHA512, DefaultCipher: packet.CipherAES256,
		Time: func() time.Time { return w.Now }, NonDeterministicSignaturesViaNotation: &salted,
		// As slow as OpenPGP can make it (RFC 9580, section 3.7.1.3: 65 MB are
		// hashed).
		S2KConfig: &s2k.Config{S2KMode: s2k.IteratedSaltedS2K, Hash: crypto.SHA256, S2KCount: 65011712},
	}
	e, err := openpgp.NewEntity(w.Name, "", w.Email, config)
	if err != nil {
		return "", nil, nil, err
	}
	defer wipe(e.PrivateKey.PrivateKey)
	e.Subkeys = nil // of which there was one for encryption
	for id, identity := range e.Identities {
		sig := identity.SelfCertifications[0].Packet
		sig.FlagSign = false
		if err := sig.SignUserId(id, e.PrimaryKey, e.PrivateKey, config); err != nil {
			return "", nil, nil, err
		}
	}
	if err := e.AddSigningSubkey(config); err != nil {
		return "", nil, nil, err
	}
	defer wipe(e.Subkeys[0].PrivateKey.PrivateKey)
	if public, err = armored("PGP PUBLIC KEY BLOCK", e.Serialize); err != nil {
		return "", nil, nil, err
	}
	if err := e.EncryptPrivateKeys(w.Password.Bytes(), config); err != nil {
		return "", nil, nil, err
	}
	secret, err = armored("PGP PRIVATE KEY BLOCK", func(out io.Writer) error { return e.SerializePrivateWithoutSigning(out, config) })
	return fmt.Sprintf("%X", e.PrimaryKey.Fingerprint), secret, public, err
}

// oidModuleSigning marks a certificate whose key signs kernel modules alone. shim, by which other
// systems start, starts no program by one (shim, shim.c, verify_eku); the firmware itself does not
// look.
var oidModuleSigning = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 2312, 16, 1, 2}

// moduleKey makes a key and a certificate of it such as the kernel's build
// makes (Linux, certs/default_x509.genkey): RSA, which every kernel can verify.
func moduleKey(w Wanted) (secret, cert []byte, err error) {
	key, err := rsa.GenerateKey(rand.Reader, 4096)
	if err != nil {
		return nil, nil, err
	}
	defer wipe(key)
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, nil, err
	}
	id := sha1.Sum(x509.MarshalPKCS1PublicKey(&key.PublicKey))
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: w.Name + " kernel modules"}, SubjectKeyId: id[:], AuthorityKeyId: id[:],
		NotBefore: w.Now.Truncate(time.Second), NotAfter: w.Now.AddDate(100, 0, 0),
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		UnknownExtKeyUsage: []asn1.ObjectIdentifier{oidModuleSigning},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, nil, err
	}
	locked, err := pkcs8.MarshalPrivateKey(key, w.Password.Bytes(), &pkcs8.Opts{
		Cipher:  pkcs8.AES256CBC,
		KDFOpts: pkcs8.PBKDF2Opts{SaltSize: 16, IterationCount: 600_000, HMACHash: crypto.SHA256},
	})
	if err != nil {
		return nil, nil, err
	}
	secret = pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: locked})
	return secret, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

func armored(kind string, write func(io.Writer) error) ([]byte, error) {
	var out bytes.Buffer
	w, err := armor.Encode(&out, kind, nil)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(write(w), w.Close()); err != nil {
		return nil, err
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}
