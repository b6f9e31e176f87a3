package goodlog

import (
	"os"
	"testing"
	"testing/fstest"
	"time"

	"halogenos.internal/boot/pcr"
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
	esp := fstest.MapFS{}
	if log, err := Read(esp); log != nil || err != nil {
		t.Errorf("without a folder: %v, %v", log, err)
	}
	esp["EFI/halogen/keys-0.json"] = &fstest.MapFile{Data: []byte("{}")}
	if log, err := Read(esp); log != nil || err != nil {
		t.Errorf("without a log: %v, %v", log, err)
	}
	older, newer := Fresh(time.Unix(1700000000, 0)), Fresh(time.Unix(1800000000, 5))
	esp[newer] = file(t, "ovmf-enforced.eventlog")
	esp[older] = &fstest.MapFile{Data: []byte("damage")}
	now, err := Read(esp)
	if err != nil {
		t.Fatal(err)
	}
	if d := Differences(now, now); len(d) > 0 {
		t.Errorf("a log differs from itself: %v", d)
	}
	setup, err := pcr.ParseLog(file(t, "ovmf-setup.eventlog").Data)
	if err != nil {
		t.Fatal(err)
	}
	if d := Differences(setup, now); len(d) != 2 || d[0].PCR != pcr.SecureBoot || d[1].PCR != pcr.KernelImage {
		t.Errorf("%v, want PCR 7 and 11 alone", d)
	}
	esp[newer] = &fstest.MapFile{Data: []byte("damage")}
	if log, err := Read(esp); err == nil {
		t.Errorf("damage is read as %v", log)
	}
	esp[newer] = &fstest.MapFile{Data: make([]byte, pcr.MaxLog+1)}
	if _, err := Read(esp); err == nil {
		t.Error("a log without end is read")
	}
}
