package scan

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Key stores that keytool has made are found, also as text, and those with
// certificates alone are not, but for one that shows nothing without its password.
func TestKeytool(t *testing.T) {
	files, err := filepath.Glob("testdata/keytool/*")
	if err != nil || len(files) < 16 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		store := must[[]byte](t)(os.ReadFile(file))
		name := filepath.Base(file)
		quiet := strings.HasSuffix(name, ".certs") && name != "PKCS12.certs"
		for how, data := range map[string][]byte{"as it is": store, "in Base64": []byte(base64.StdEncoding.EncodeToString(store) + "\n")} {
			s := New(nil)
			if err := s.Bytes(t.Context(), "/f", data); err != nil {
				t.Fatal(err)
			}
			found, _ := s.Findings()
			switch {
			case quiet && len(found) > 0:
				t.Errorf("%s, %s: %v", name, how, found)
			case !quiet && (len(found) == 0 || found[0].Rule != ruleStore):
				t.Errorf("%s, %s: %v, want %s", name, how, found, ruleStore)
			}
		}
	}
}

// A key store in the clear is passed over for what all of it is: a bag that is no
// certificate, or what follows one, makes it a finding.
func TestPlainStoreWithMore(t *testing.T) {
	store := must[[]byte](t)(os.ReadFile("testdata/keytool/PKCS12.plain.certs"))
	const bag = "\x2a\x86\x48\x86\xf7\x0d\x01\x0c\x0a\x01\x03"
	if strings.Count(string(store), bag) != 1 {
		t.Fatal("the sample has not one certificate")
	}
	for kind := range byte(8) {
		changed := []byte(strings.Replace(string(store), bag, bag[:len(bag)-1]+string([]byte{kind}), 1))
		s := New(nil)
		if err := s.Bytes(t.Context(), "/f", changed); err != nil {
			t.Fatal(err)
		}
		if found, _ := s.Findings(); (len(found) == 0) != (kind == 3 || kind == 4) {
			t.Errorf("with a bag of the kind %d: %v", kind, found)
		}
	}
}
