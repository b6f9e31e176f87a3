package pcr_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"math/big"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/secureboot"
)

func wide(text string) (out []byte) {
	for _, unit := range utf16.Encode([]rune(text)) {
		out = binary.LittleEndian.AppendUint16(out, unit)
	}
	return out
}

// aVariable is UEFI_VARIABLE_DATA.
func aVariable(namespace, name string, data []byte) []byte {
	guid := gpt.MustGUID(namespace).Encoded()
	out := append([]byte(nil), guid[:]...)
	out = binary.LittleEndian.AppendUint64(out, uint64(len(utf16.Encode([]rune(name)))))
	out = binary.LittleEndian.AppendUint64(out, uint64(len(data)))
	return append(append(out, wide(name)...), data...)
}

// negative makes a certificate like those of vendors that crypto/x509 refuses: its
// serial number is negative. The signature is not judged.
func negative(t *testing.T, name string) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(0x7f112233), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	at := strings.Index(string(der), "\x02\x04\x7f\x11\x22\x33")
	der[at+2] = 0x91
	if _, err := x509.ParseCertificate(der); err == nil {
		t.Fatal("crypto/x509 takes a negative serial number: this test has lost its sample")
	}
	return der
}

// FAULTS 112 (M12): what real firmware measures, and a person can learn something of.
func TestDescribeOddities(t *testing.T) {
	const global, security = "8be4df61-93ca-11d2-aa0d-00e098032b8c", "d719b2cb-3d3a-4596-a3bc-dad00e67656f"
	vendor := negative(t, "A Vendor 2011")
	owner := make([]byte, 16)
	database, err := secureboot.Database{{Type: secureboot.TypeX509, Data: vendor}}.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	guid := gpt.MustGUID("1e0a8b3c-4d5e-6f70-8192-a3b4c5d6e7f8").Encoded()
	for _, c := range []struct {
		kind pcr.EventType
		data []byte
		want string
	}{
		{pcr.EventVariableConfig, aVariable(global, "SecureBoot", nil), "SecureBoot is empty: the firmware has no such variable"},
		{pcr.EventVariableConfig, aVariable(global, "SecureBoot", []byte{1}), "SecureBoot is on"},
		{pcr.EventIPL, append(wide("initrd"), 0), `boot loader: "initrd"`},
		{pcr.EventIPL, append(wide("initrd=\\x"), 0, 0, 0), `boot loader: "initrd=\\x"`},
		{pcr.EventIPL, wide("Überraschung"), `boot loader: "Überraschung"`},
		{pcr.EventIPL, []byte("grub_cmd: ls (hd0)\x00"), `boot loader: "grub_cmd: ls (hd0)"`},
		{pcr.EventIPL, []byte("is it?"), `boot loader: "is it?"`},
		{pcr.EventIPL, []byte("A"), `boot loader: "A"`},
		{pcr.EventCRTMVersion, wide("1.2.3\x00"), `firmware version "1.2.3"`},
		{pcr.EventCRTMVersion, guid[:], "firmware version 1e0a8b3c-4d5e-6f70-8192-a3b4c5d6e7f8"},
		{pcr.EventCRTMVersion, []byte{0x80, 1, 2, 0xff}, "firmware version of 4 bytes, 800102ff"},
		{pcr.EventCRTMVersion, []byte{0, 0}, "firmware version (empty)"},
		{pcr.EventCRTMVersion, nil, "firmware version (empty)"},
		{pcr.EventPostCode, append([]byte{1, 2, 3, 4, 5}, make([]byte, 40)...), "start-up code of 45 bytes, 01020304050000000000000000000000..."},
		{pcr.EventVariableConfig, aVariable(security, "db", database), `db holds certificate "CN=A Vendor 2011" (of an unusual form)`},
		{pcr.EventVariableAuthority, aVariable(security, "db", append(owner, vendor...)), `image allowed by db: certificate "CN=A Vendor 2011"`},
		// As shim before version 15.3 wrote it: its size is stated as 6 bytes less.
		{pcr.EventVariableAuthority, append(aVariable(security, "db", append(owner, vendor...)), "MokLis"...), `image allowed by db: certificate "CN=A Vendor 2011"`},
		{pcr.EventIPL, []byte("grub_cmd: menuentry A {\n\trecordfail\n}\x00"), `boot loader: "grub_cmd: menuentry A {  recordfail }"`},
		{pcr.EventVariableAuthority, aVariable(security, "db", append(owner, "no certificate at all"...)), "image allowed by db: unreadable certificate of 21 bytes"},
	} {
		if got := (pcr.Event{Type: c.kind, Data: c.data}).Describe(); got != c.want {
			t.Errorf("%x: %s\nwant %s", c.data, got, c.want)
		}
	}
}
