package lastgood

import (
	"os"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
)

func file(t *testing.T, name string) *fstest.MapFile {
	t.Helper()
	b, err := os.ReadFile("../../boot/pcr/testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return &fstest.MapFile{Data: b}
}

func TestRead(t *testing.T) {
	secret, other := secretOf(t, 1), secretOf(t, 2)
	esp := fstest.MapFS{}
	if log, err := Read(esp, secret); log != nil || err != nil {
		t.Errorf("without a directory: %v, %v", log, err)
	}
	esp["EFI/halogen/keys-0.json"] = &fstest.MapFile{Data: []byte("{}")}
	if log, err := Read(esp, nil); log != nil || err != nil {
		t.Errorf("without a log: %v, %v", log, err)
	}
	good := file(t, "ovmf-enforced.eventlog")
	older, newer := time.Unix(1700000000, 0), time.Unix(1800000000, 5)
	esp[Fresh(newer, secret, good.Data)] = good
	esp[Fresh(older, secret, []byte("damage"))] = &fstest.MapFile{Data: []byte("damage")}
	now, err := Read(esp, secret)
	if err != nil || !now.Authentic || !now.Kept.Equal(newer) {
		t.Fatalf("%+v, %v", now, err)
	}
	if d := Differences(now.Log, now.Log); len(d) > 0 {
		t.Errorf("a log differs from itself: %v", d)
	}
	for _, s := range []*policy.Secret{nil, other} {
		if l, err := Read(esp, s); err != nil || l.Authentic {
			t.Errorf("with another secret, or none: %+v, %v", l, err)
		}
	}
	setup, err := pcr.ParseLog(file(t, "ovmf-setup.eventlog").Data)
	if err != nil {
		t.Fatal(err)
	}
	if d := Differences(setup, now.Log); len(d) != 3 || d[0].PCR != pcr.BootPrograms || d[1].PCR != pcr.SecureBoot || d[2].PCR != pcr.KernelImage {
		t.Errorf("%v, want PCR 4, 7 and 11 alone", d)
	}
}

// Whatever else lies there, the authentic log is found, and nothing passes for one
// that is not. FAULTS 87
func TestForgedLog(t *testing.T) {
	secret := secretOf(t, 1)
	good, forged := file(t, "ovmf-enforced.eventlog"), file(t, "ovmf-setup.eventlog")
	kept := time.Unix(1800000000, 5)
	name := Fresh(kept, secret, good.Data)
	later := "EFI/halogen/eventlog-9999999999999999999.bin"
	esp := fstest.MapFS{name: good, later: forged}
	if l, err := Read(esp, nil); err != nil || l.Authentic {
		t.Errorf("before the secret is known: %+v, %v", l, err)
	} else if text := Explain(l, l.Log); !strings.Contains(text, "nobody vouches for") {
		t.Error(text)
	}
	l, err := Read(esp, secret)
	if err != nil || !l.Authentic || len(Differences(l.Log, l.Log)) > 0 || !l.Kept.Equal(kept) {
		t.Fatalf("%+v, %v", l, err)
	}
	if text := Explain(l, l.Log); !strings.Contains(text, "kept of a good boot on 2027-01-15") {
		t.Error(text)
	}
	for what, name := range map[string]string{
		"another content":         name,
		"another time":            strings.Replace(name, "1800000000000000005", "1900000000000000005", 1),
		"no MAC":                  "EFI/halogen/eventlog-1800000000000000005.bin",
		"a MAC of another length": strings.Replace(name, ".bin", "00.bin", 1),
	} {
		content := good
		if what == "another content" {
			content = forged
		}
		if l, err := Read(fstest.MapFS{name: content}, secret); err != nil || l.Authentic {
			t.Errorf("%s: %+v, %v", what, l, err)
		}
	}
	if l, err := Read(fstest.MapFS{later: &fstest.MapFile{Data: []byte("damage")}}, secret); err == nil {
		t.Errorf("damage is read as %v", l)
	}
	if _, err := Read(fstest.MapFS{later: &fstest.MapFile{Data: make([]byte, pcr.MaxLog+1)}}, secret); err == nil {
		t.Error("a log without end is read")
	}
}

func secretOf(t *testing.T, first byte) *policy.Secret {
	t.Helper()
	b := make([]byte, 32)
	b[0] = first
	s, err := policy.SecretFrom(b)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
