package scan

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"

	"golang.org/x/crypto/cryptobyte"
)

// maxSelfTest bounds the keys of libraries' tests, in bytes of text: the longest has
// an RSA modulus of 15,360 bits.
const maxSelfTest = 16 << 10

// selfTest reports whether a private key starts here by which a library, the kernel
// or a benchmark tests itself: it is in the published source, every copy of the
// program has it, and it opens nothing. Only exactly these keys are known, whatever
// file they are in; another key in the same file is found.
func selfTest(data []byte) bool {
	der := keyDER(data[:min(len(data), maxSelfTest)])
	if der == nil {
		return false
	}
	sum := sha256.Sum256(der)
	_, known := selfTests[hex.EncodeToString(sum[:])]
	return known
}

// keyDER returns the private key that starts here, in DER or in plain PEM (RFC 7468),
// without what follows it; nil for another form, or where its end is missing.
func keyDER(data []byte) []byte {
	if bytes.HasPrefix(data, []byte("-----BEGIN ")) {
		_, body, _ := bytes.Cut(data, []byte("PRIVATE KEY-----")) // GnuTLS has some without an end of that line
		body, _, ended := bytes.Cut(body, []byte("-----END "))
		der, err := base64.StdEncoding.DecodeString(string(bytes.TrimSpace(body)))
		if !ended || err != nil {
			return nil
		}
		return der
	}
	s := cryptobyte.String(data)
	var der cryptobyte.String
	if !s.ReadAnyASN1Element(&der, nil) {
		return nil
	}
	return der
}

// selfTests are these keys, and keys that published protocols have for everybody: the SHA-256
// of the private key's DER, and whose it is.
var selfTests = map[string]string{
	"c641a1eb8cab9142984bb32f6861a3f9c69ee8d12e440ca0ef871f53d6fb8168": "Linux, crypto/testmgr.h: RSA of 512 bits, which kernels without FIPS 140 have",
	"9ac20020fcebd801079a5ad0381ebe3d83e4f715b1854e934a2be0acee464d6b": "Linux, crypto/testmgr.h: RSA of 1024 bits, which the same have",
	"f97eef5942d683aaa892503a2f0a8e2cc085092f4671a3c9a848d1b1a5c647b4": "Linux, crypto/testmgr.h: RSA of 4096 bits",
	"0c8ca6c33a0a1f647fecfd77acc40f390b6213aacd61b5ce741e579f7cfd39af": "Linux, crypto/testmgr.h: RSA of 2048 bits",
	"d7a2ac395c1b85ddd188fc0223da17981b43099386e5bcc6da74cd5f152aaa2f": "Linux, crypto/testmgr.h: RSA of 2048 bits, PKCS#1",
	"171349923b709500bee59c838b58a8f8233feb55c62b6c660c31cf4ee284462f": "openssl speed: RSA of 512 bits",
	"d5ad6f88cf914734f625ce2fb886c81e249e11a598554089f8bb4299d7ed681f": "openssl speed: RSA of 1024 bits",
	"c069f7ebcd214901cd196cdfd4f785ffe3d646506217f790aee51576eef363de": "openssl speed: RSA of 2048 bits",
	"54da0df6070851127a23e00c2836e3dd2c6b3b78f650ce690442a0243fde31bd": "openssl speed: RSA of 3072 bits",
	"bb6a6abd969e3ffb523c303fc951ee4ee56349d8f86f52d3386adae5cd4db004": "openssl speed: RSA of 4096 bits",
	"32620d7d2ae52c11db7cc95e333e585c2552abe20da6bd5169c010fedfa4c73e": "openssl speed: RSA of 7680 bits",
	"25eec4ddd628fd5e72aa14ad2a894cb91272852bfcae48ac193656ba350f6e40": "openssl speed: RSA of 15360 bits",
	"2859ff03b44c8f0e4f96604b8cced325ef4d01ca935422b2041d88d8809f8fa1": "GnuTLS, crypto-selftests-pk.c: RSA of 2048 bits",
	"09f1c1a4680df80b9e8e6e587d3a787de7402a919e366426ad807a1c0f8c98c1": "GnuTLS: DSA of 2048 bits",
	"7e38af7715bbb425a6aa8060b7c0af60aeb81d39975c55e83edcb9eae7a5e9f8": "GnuTLS: P-192",
	"09416ba3e0782523c56225fb168cd58cda7796e938db1b53f79b6abbaed2bbc7": "GnuTLS: P-224",
	"458022ddcb5598b39253bc027eb02c4f3dba00e2bdbaef239a35bc91c9bd4f3a": "GnuTLS: P-256",
	"995b8d5b08ac126a74f39d812fc8cce270d026093d810f366de923bb0fe47f60": "GnuTLS: P-384",
	"60c323abe4854b03743005874156ef6e0343bc9c05c09a2a43335cdda19342b3": "GnuTLS: P-521",
	"323a1e2a6917c0615aa5e0144ba9ea0b18553c671284f2b75ca5dde1308c477b": "GnuTLS: Ed25519",
	"803fc9d7eb40ea13dc82723b2d99780ac1e0335ba0b65d660e66994c613ed422": "GnuTLS: Ed448",
	"0294b4406902e33bb02f89eaf4c691328790d7a9cd01b873d68edac994f310a1": "GnuTLS: GOST R 34.10-2001",
	"d245e52c341a76645e1b0e56c58dc964cd4f3ecaea64a9c6d6db9897d4948a8a": "GnuTLS: GOST R 34.10-2012 of 256 bits",
	"87e288dc7dbc29a24241b596ec8c84f949d9f09f34fc0cf69242481fb2274770": "GnuTLS: GOST R 34.10-2012 of 512 bits",
	"c92270ee5b47c115eba1ea23276388e96405b7d0da7d1f3f8d308bd5786d30db": "FIDO U2F Raw Message Formats, section 8.1: P-256, the example's, which Chromium's virtual authenticator signs with",
	"cf7ef4b19799d760f13cff5d279c52a83fec6b71e4e51ec0ca6561d87b2da556": "the same, without PKCS#8",
	"841a699348fd06b29fe1f21845434ea3153c482396c0f60a739ede07a6b2440d": "stoken, sdtid.c: RSA of 1024 bits, which signs lists of tokens",
}
