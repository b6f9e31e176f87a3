package modules_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/smallstep/pkcs7"

	"halogenos.internal/boot/testkit"
	"halogenos.internal/builder/modules"
	"halogenos.internal/builder/rootfs/rootfstest"
)

const release = rootfstest.Release

func kernel(t testing.TB) *modules.Kernel {
	t.Helper()
	k, err := modules.ReadKernel(rootfstest.Kernel(release), release)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func sign(t testing.TB, pair rootfstest.KeyPair, content []byte) []byte {
	t.Helper()
	signed, err := modules.Sign(content, pair.Certificate, pair.Key)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

func pair(t testing.TB, name string) rootfstest.KeyPair {
	t.Helper()
	p, err := rootfstest.NewKeyPair(name)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestKernel(t *testing.T) {
	k := kernel(t)
	if k.Vermagic != release+rootfstest.Config || len(k.Certificates) != 1 || !k.Certificates[0].Equal(rootfstest.ModuleKey().Certificate) {
		t.Errorf("have %+v", k)
	}
}

func TestCheck(t *testing.T) {
	own, other := pair(t, "own"), pair(t, "other")
	magic := "vermagic=" + release + rootfstest.Config
	good := func(info ...string) []byte {
		return sign(t, rootfstest.ModuleKey(), rootfstest.UnsignedModule(append([]string{magic, "license=GPL"}, info...)...))
	}
	plain := rootfstest.UnsignedModule(magic, "license=GPL")
	signed := good()
	flip := func(at int) []byte {
		b := slices.Clone(signed)
		b[(at+len(b))%len(b)] ^= 1
		return b
	}
	raw := rootfstest.ModuleKey().Certificate.Raw
	embedded := func(at int) []byte { // with a certificate, a bit of which is wrong
		b := certified(t, plain)
		b[bytes.Index(b, raw)+at] ^= 1
		return b
	}
	for _, c := range []struct {
		name    string
		content []byte
		say     string // empty: it is taken
	}{
		{"signed with the kernel's key", signed, ""},
		{"signed with the distributor's key", sign(t, own, plain), ""},
		{"with a name", good("name=a_b"), ""},
		{"with a certificate in its signature", certified(t, plain), ""},
		{"with a damaged certificate in its signature", embedded(0), "the certificates in its signature"},
		{"with another certificate of that name in its signature", embedded(len(raw) - 1), "not its signer's"},
		{"with a foreign certificate beside its signer's", foreign(t, plain, own.Certificate), "not its signer's"},
		{"with more in its .modinfo", good("author=one", "author=two", "parm=x:what it does", "intree=Y"), ""},
		{"unsigned", plain, "is not signed"},
		{"signed with another key", sign(t, other, plain), "neither the kernel nor ModuleKey vouches"},
		{"changed after it was signed", bytes.Replace(signed, []byte("license=GPL"), []byte("license=Gpl"), 1), "its signature is wrong"},
		{"with a signature of another", slices.Concat(rootfstest.UnsignedModule(magic, "license=BSD"), signed[len(plain):]), "its signature is wrong"},
		{"with a changed signature", flip(-60), "its signature is wrong"},
		{"signed in an unknown way", flip(-len("~Module signature appended~\n") - 10), "unknown kind"},
		{"with a signature longer than itself", flip(-len("~Module signature appended~\n") - 4), "signature of"},
		{"with a signature that ends within a tag", attach(plain, []byte{0x30, 2, 0x1f, 0x81}), "read its signature"},
		{"with a signature that ends within a length", attach(plain, []byte{0x30, 2, 4, 0x81}), "read its signature"},
		{"with a signature of attributes", attributes(t, plain), "not one for modules"},
		{"of another version", sign(t, own, rootfstest.UnsignedModule("vermagic=6.12.2 SMP", "license=GPL")), `was built for kernel "6.12.2"`},
		{"of a longer version", sign(t, own, rootfstest.UnsignedModule("vermagic="+release+"x"+rootfstest.Config, "license=GPL")), "was built for kernel"},
		{"of another configuration", sign(t, own, rootfstest.UnsignedModule("vermagic="+release+" SMP preempt_rt mod_unload ", "license=GPL")), "configured differently"},
		{"without a vermagic", sign(t, own, rootfstest.UnsignedModule("license=GPL")), "0 entries vermagic"},
		{"with two vermagics", good(magic), "2 entries vermagic"},
		{"without a licence", sign(t, own, rootfstest.UnsignedModule(magic)), "0 entries license"},
		{"under another name", good("name=other"), `says that it is "other"`},
		{"with a damaged .modinfo", good("nothing"), "not key=value"},
		{"without a .modinfo", sign(t, own, bytes.Replace(plain, []byte(".modinfo"), []byte(".modxxxx"), 1)), "has no .modinfo"},
		{"that is a program", sign(t, own, rootfstest.Program(false)), "ET_EXEC"},
		{"for another machine", sign(t, own, func() []byte {
			b := slices.Clone(plain)
			binary.LittleEndian.PutUint16(b[18:], 183)
			return b
		}()), "EM_AARCH64"},
		{"that is no module", []byte("text"), "not an ELF file"},
		{"that is nothing but the end of a signature", []byte("~Module signature appended~\n"), "ends within"},
		{"that is cut off", signed[:len(signed)-1], "is not signed"},
	} {
		checker := modules.NewChecker(kernel(t), own.Certificate)
		_, err := checker.Check("/usr/lib/modules/x/a-b.ko.xz", c.content)
		if c.say == "" && err != nil || c.say != "" && (err == nil || !strings.Contains(err.Error(), c.say) || !strings.Contains(err.Error(), "a-b.ko")) {
			t.Errorf("a module %s: %v, want %q", c.name, err, c.say)
		}
	}
}

// TestOneBit changes each bit of signed modules in turn.
func TestOneBit(t *testing.T) {
	long, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	content := rootfstest.UnsignedModule("vermagic="+release+rootfstest.Config, "license=GPL")
	for _, key := range []crypto.Signer{rootfstest.ModuleKey().Key, long} {
		cert := certificate(t, key)
		module, err := modules.Sign(content, cert, key)
		if err != nil {
			t.Fatal(err)
		}
		c := modules.NewChecker(kernel(t), cert)
		if _, err := c.Check("x.ko", module); err != nil {
			t.Fatal(err)
		}
		for i := range len(module) * 8 {
			module[i/8] ^= 1 << (i % 8)
			if _, err := c.Check("x.ko", module); err == nil {
				t.Errorf("%T: taken with bit %d of byte %d of %d changed", key, i%8, i/8, len(module))
			}
			module[i/8] ^= 1 << (i % 8)
		}
	}
}

// attributes signs as e-mail is signed, which the kernel does not take.
func attributes(t *testing.T, content []byte) []byte {
	return signWith(t, content, (*pkcs7.SignedData).AddSigner)
}

// certified signs with the certificate in the signature.
func certified(t *testing.T, content []byte) []byte {
	return signWith(t, content, (*pkcs7.SignedData).SignWithoutAttr)
}

// foreign signs with the certificate in the signature, and that of somebody else, whose
// algorithm the kernel may not know.
func foreign(t *testing.T, content []byte, other *x509.Certificate) []byte {
	return signWith(t, content, func(sd *pkcs7.SignedData, c *x509.Certificate, key crypto.PrivateKey, config pkcs7.SignerInfoConfig) error {
		sd.AddCertificate(other)
		return sd.SignWithoutAttr(c, key, config)
	})
}

func signWith(t *testing.T, content []byte, how func(*pkcs7.SignedData, *x509.Certificate, crypto.PrivateKey, pkcs7.SignerInfoConfig) error) []byte {
	t.Helper()
	sd, err := pkcs7.NewSignedData(content)
	if err != nil {
		t.Fatal(err)
	}
	sd.SetDigestAlgorithm(pkcs7.OIDDigestAlgorithmSHA256)
	sd.SetEncryptionAlgorithm(pkcs7.OIDDigestAlgorithmECDSASHA256)
	if err := how(sd, rootfstest.ModuleKey().Certificate, rootfstest.ModuleKey().Key, pkcs7.SignerInfoConfig{}); err != nil {
		t.Fatal(err)
	}
	sd.Detach()
	signature, err := sd.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return attach(content, signature)
}

func attach(content, signature []byte) []byte {
	out := append(slices.Concat(content, signature), 0, 0, 2, 0, 0, 0, 0, 0)
	return append(binary.BigEndian.AppendUint32(out, uint32(len(signature))), "~Module signature appended~\n"...)
}

func TestDependencies(t *testing.T) {
	c := modules.NewChecker(kernel(t))
	module := func(info ...string) []byte {
		return sign(t, rootfstest.ModuleKey(), rootfstest.UnsignedModule(append(info, "vermagic="+release+rootfstest.Config, "license=GPL")...))
	}
	if _, err := c.Check("one.ko", module("depends=two-b,three")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Check("three.ko", module("depends=")); err != nil {
		t.Fatal(err)
	}
	if err := c.Finish(); err == nil || !strings.Contains(err.Error(), "one.ko needs the module two_b") {
		t.Errorf("error %v", err)
	}
	if _, err := c.Check("two_b.ko", module()); err != nil {
		t.Fatal(err)
	}
	if err := c.Finish(); err != nil {
		t.Error(err)
	}
	if all, own := c.Counts(); all != 3 || own != 0 {
		t.Errorf("%d modules, %d by the distributor", all, own)
	}
}

func certificate(t *testing.T, key crypto.Signer) *x509.Certificate {
	t.Helper()
	cert, err := rootfstest.Certificate(key, "certificate")
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// TestSignature has OpenSSL judge our signatures, and us those of OpenSSL,
// which the kernel's own tool makes.
func TestSignature(t *testing.T) {
	testkit.Need(t, "openssl")
	curve, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	long, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	content := rootfstest.UnsignedModule("vermagic="+release+rootfstest.Config, "license=GPL")
	for _, c := range []struct {
		name string
		cert *x509.Certificate
		key  crypto.Signer
	}{{"RSA", certificate(t, long), long}, {"ECDSA", certificate(t, curve), curve}} {
		signed, err := modules.Sign(content, c.cert, c.key)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := modules.Sign(content, c.cert, c.key); err != nil || !bytes.Equal(again, signed) {
			t.Errorf("%s: signed again it differs, %v", c.name, err)
		}
		dir := t.TempDir()
		signature := signed[len(content) : len(signed)-len("~Module signature appended~\n")-12]
		key, err := x509.MarshalPKCS8PrivateKey(c.key)
		if err != nil {
			t.Fatal(err)
		}
		for name, data := range map[string][]byte{"signature": signature, "module": content, "cert": c.cert.Raw, "key": key} {
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		testkit.Run(t, "openssl", "cms", "-verify", "-inform", "DER", "-in", dir+"/signature", "-binary", "-content", dir+"/module",
			"-certfile", dir+"/cert", "-noverify", "-out", dir+"/out")
		// What scripts/sign-file.c does.
		testkit.Run(t, "openssl", "cms", "-sign", "-binary", "-noattr", "-nocerts", "-nosmimecap", "-md", "sha256", "-outform", "DER",
			"-signer", dir+"/cert", "-inkey", dir+"/key", "-in", dir+"/module", "-out", dir+"/theirs")
		theirs, err := os.ReadFile(dir + "/theirs")
		if err != nil {
			t.Fatal(err)
		}
		if c.name == "RSA" && !bytes.Equal(signature, theirs) { // ECDSA's are by chance
			t.Errorf("have %x, want %x", signature, theirs)
		}
		out := append(slices.Concat(content, theirs), 0, 0, 2, 0, 0, 0, 0, 0)
		out = append(binary.BigEndian.AppendUint32(out, uint32(len(theirs))), "~Module signature appended~\n"...)
		if _, err := modules.NewChecker(kernel(t), c.cert).Check("x.ko", out); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if _, err := modules.Sign(content, certificate(t, curve), long); err == nil {
		t.Error("signed with a key that is not the certificate's")
	}
	if _, err := modules.Sign(rootfstest.Module(release), certificate(t, curve), curve); err == nil {
		t.Error("signed twice")
	}
}

func TestPack(t *testing.T) {
	content := bytes.Repeat([]byte("module "), 9999)
	for _, name := range []string{"a.ko", "a.ko.gz", "a.ko.xz", "a.ko.zst"} {
		packed, err := modules.Pack(name, content)
		if err != nil {
			t.Fatal(err)
		}
		if plain, err := modules.Unpack(name, packed); err != nil || !bytes.Equal(plain, content) || !modules.IsModule("/x/"+name) {
			t.Errorf("%s: %d bytes, %v", name, len(plain), err)
		}
		if again, err := modules.Pack(name, content); err != nil || !bytes.Equal(again, packed) {
			t.Errorf("%s: packed again it differs, %v", name, err)
		}
	}
	for _, name := range []string{"a.ko.lz4", "a.o", "ko", "modules.ko.catalog"} {
		if _, err := modules.Pack(name, content); err == nil || modules.IsModule(name) {
			t.Errorf("%s was taken", name)
		}
	}
}

// TestDebian reads a real kernel and a real module.
func TestDebian(t *testing.T) {
	dir := testkit.Debian(t)
	kernels, err := filepath.Glob(dir + "/boot/vmlinuz-*")
	if err != nil || len(kernels) != 1 {
		t.Fatalf("kernels %q, %v", kernels, err)
	}
	image, err := os.ReadFile(kernels[0])
	if err != nil {
		t.Fatal(err)
	}
	version := strings.TrimPrefix(filepath.Base(kernels[0]), "vmlinuz-")
	k, err := modules.ReadKernel(image, version)
	if err != nil || len(k.Certificates) == 0 || !strings.HasPrefix(k.Vermagic, version+" SMP") {
		t.Fatalf("kernel %+v, %v", k, err)
	}
	files, err := filepath.Glob(dir + "/usr/lib/modules/*/kernel/fs/*/*.ko*")
	if err != nil || len(files) < 50 {
		t.Fatalf("modules %q, %v", files, err)
	}
	c := modules.NewChecker(k)
	for _, file := range files[:50] {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		plain, err := modules.Unpack(file, raw)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Check(file, plain); err != nil {
			t.Error(err)
		}
		plain[len(plain)/2] ^= 0x10
		if _, err := c.Check(file, plain); err == nil {
			t.Errorf("%s was taken with a bit changed", file)
		}
	}
	other := *k
	other.Certificates = []*x509.Certificate{pair(t, "other").Certificate}
	raw, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	plain, err := modules.Unpack(files[0], raw)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := modules.NewChecker(&other).Check(files[0], plain); err == nil || !strings.Contains(err.Error(), "vouches") {
		t.Errorf("of another kernel: %v", err)
	}
}

func FuzzCheck(f *testing.F) {
	f.Add(rootfstest.Module(release))
	f.Add(rootfstest.UnsignedModule("vermagic=x"))
	f.Add([]byte("\x7fELF\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x00\x01~Module signature appended~\n"))
	k := kernel(f)
	plain := rootfstest.UnsignedModule("vermagic="+release+rootfstest.Config, "license=GPL")
	if !bytes.HasPrefix(rootfstest.Module(release), plain) {
		f.Fatal("the module is not the one that is signed here")
	}
	// Of what is signed nothing may differ. The signature may: it can have
	// certificates with it, and for one key and module there are many.
	f.Fuzz(func(t *testing.T, content []byte) {
		_, err := modules.NewChecker(k).Check("one.ko", content)
		if err == nil && !bytes.HasPrefix(content, plain) {
			t.Errorf("%x was taken", content)
		}
	})
}

func FuzzKernel(f *testing.F) {
	f.Add(rootfstest.Kernel(release))
	f.Fuzz(func(t *testing.T, image []byte) {
		k, err := modules.ReadKernel(image, release)
		if err == nil && k.Release != release {
			t.Errorf("%+v", k)
		}
	})
}
