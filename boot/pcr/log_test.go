package pcr_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/testkit"
)

// The logs ovmf-setup and ovmf-enforced were written by OVMF 2022.11 with a
// swtpm, before and after keys were enrolled: systemd-boot 257 starts a
// unified kernel image with stub 257 and a kernel 6.1, and an unsigned option
// ROM (iPXE's) is there. The files .pcrs hold the registers as Linux read them
// from the TPM, without PCR 10, which IMA extends; .PK, .KEK and .db what the
// variables held.
func readLog(t testing.TB, name string) *pcr.Log {
	t.Helper()
	log, err := pcr.ParseLog(readFile(t, name+".eventlog"))
	if err != nil {
		t.Fatal(err)
	}
	return log
}

func readFile(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// readPCRs returns the registers of a bank from a file with lines
// "sha256 7 0123...".
func readPCRs(t testing.TB, name string, bank pcr.Algorithm) map[int][]byte {
	t.Helper()
	values := map[int][]byte{}
	for line := range strings.Lines(string(readFile(t, name+".pcrs"))) {
		var word, digits string
		var n int
		if _, err := fmt.Sscan(line, &word, &n, &digits); err != nil {
			t.Fatal(err)
		}
		if word != bank.String() {
			continue
		}
		value, err := hex.DecodeString(digits)
		if err != nil {
			t.Fatal(err)
		}
		values[n] = value
	}
	if len(values) == 0 {
		t.Fatalf("no registers of bank %s in %s", bank, name)
	}
	return values
}

func logNames() []string { return []string{"ovmf-setup", "ovmf-enforced"} }

// What a replay makes of the log is what the TPM held, in every bank.
func TestReplayEqualsTPM(t *testing.T) {
	for _, name := range logNames() {
		log := readLog(t, name)
		for _, bank := range []pcr.Algorithm{pcr.SHA1, pcr.SHA256, pcr.SHA384} {
			replayed, err := log.Replay(bank)
			if err != nil {
				t.Fatal(err)
			}
			for n, want := range readPCRs(t, name, bank) {
				got := replayed[n]
				if got == nil {
					got = make([]byte, len(want))
				}
				if !bytes.Equal(got, want) {
					t.Errorf("%s: PCR %d of bank %s is %x by the log, the TPM has %x", name, n, bank, got, want)
				}
			}
		}
	}
}

// tpm2-tools parse and replay with code of their own.
func TestReplayEqualsTPM2Tools(t *testing.T) {
	line := regexp.MustCompile(`^\s+(\d+)\s*: 0x([0-9a-f]+)`)
	for _, name := range logNames() {
		log := readLog(t, name)
		out := testkit.Run(t, "tpm2_eventlog", "testdata/"+name+".eventlog")
		_, out, found := strings.Cut(out, "\npcrs:\n")
		if !found {
			t.Fatalf("tpm2_eventlog lists no registers:\n%s", out)
		}
		var bank map[int][]byte
		compared := 0
		for text := range strings.Lines(out) {
			for _, b := range log.Banks {
				if strings.TrimSpace(text) == b.String()+":" {
					var err error
					if bank, err = log.Replay(b); err != nil {
						t.Fatal(err)
					}
				}
			}
			if m := line.FindStringSubmatch(text); m != nil {
				var n int
				fmt.Sscan(m[1], &n)
				if hex.EncodeToString(bank[n]) != m[2] {
					t.Errorf("%s: PCR %d is %x, tpm2_eventlog says %s", name, n, bank[n], m[2])
				}
				compared++
			}
		}
		if compared < 20 {
			t.Errorf("only %d registers could be compared", compared)
		}
	}
}

func TestCheck(t *testing.T) {
	log := readLog(t, "ovmf-enforced")
	values := map[int]pcr.Digest{}
	for n, value := range readPCRs(t, "ovmf-enforced", pcr.SHA256) {
		values[n] = pcr.Digest(value)
	}
	if err := log.Check(values); err != nil {
		t.Errorf("the registers that go with the log: %v", err)
	}
	values[7], values[12] = values[7].Extend(pcr.Digest{}), pcr.Digest{1}
	var mismatch *pcr.MismatchError
	if err := log.Check(values); !errors.As(err, &mismatch) || !slices.Equal(mismatch.PCRs, []int{7, 12}) {
		t.Errorf("two wrong registers: %v", err)
	} else if got := err.Error(); got != "the event log does not account for PCR 7, 12" {
		t.Errorf("error reads %q", got)
	}
	if err := log.Check(map[int]pcr.Digest{24: {}}); !errors.As(err, &mismatch) {
		t.Errorf("a register that no TPM has: %v", err)
	}
}

// FAULTS 70
func TestReplayWithoutBank(t *testing.T) {
	log, err := pcr.ParseLog(newLog(pcr.SHA1).event(7, pcr.EventSeparator, []byte{0, 0, 0, 0}).bytes())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := log.PCRs(); err == nil || !strings.Contains(err.Error(), "no bank sha256") {
		t.Errorf("replay of a bank that nothing was measured into: %v", err)
	}
	both := newLog(pcr.SHA1, pcr.SHA256)
	both.only = pcr.SHA1
	if log, err = pcr.ParseLog(both.event(7, pcr.EventSeparator, []byte{0, 0, 0, 0}).bytes()); err != nil {
		t.Fatal(err)
	}
	if _, err := log.PCRs(); err == nil || !strings.Contains(err.Error(), "event 1 has no digest") {
		t.Errorf("replay of a bank that the firmware left out: %v", err)
	}
}

func TestStartupLocality(t *testing.T) {
	mark := append([]byte("StartupLocality\x00"), 3)
	log, err := pcr.ParseLog(newLog(pcr.SHA256).event(0, pcr.EventNoAction, mark).event(0, pcr.EventSeparator, []byte{0, 0, 0, 0}).bytes())
	if err != nil {
		t.Fatal(err)
	}
	values, err := log.PCRs()
	if err != nil {
		t.Fatal(err)
	}
	if want := (pcr.Digest{31: 3}).Extend(sum([]byte{0, 0, 0, 0})); values[0] != want {
		t.Errorf("PCR 0 is %s, want %s", values[0], want)
	}
	if values[17] == values[16] || values[16] != (pcr.Digest{}) {
		t.Error("registers begin with other values than the TPM's")
	}
}

func TestDescribe(t *testing.T) {
	var text strings.Builder
	for _, e := range readLog(t, "ovmf-enforced").Events {
		fmt.Fprintf(&text, "%2d %s\n", e.PCR, e.Describe())
	}
	want := string(readFile(t, "ovmf-enforced.txt"))
	if text.String() != want {
		t.Errorf("the log reads\n%s\nwant\n%s", text.String(), want)
	}
}

func TestDescribeHostile(t *testing.T) {
	for kind := range 0x20 {
		for _, high := range []uint32{0, 0x80000000, 0x800000e0} {
			for _, data := range [][]byte{nil, {0}, bytes.Repeat([]byte{0xff}, 200), bytes.Repeat([]byte("\x1b[2J"), 400), bytes.Repeat([]byte{0}, 64)} {
				text := pcr.Event{Type: pcr.EventType(uint32(kind) | high), Data: data}.Describe()
				if text == "" || len(text) > 1000 || strings.ContainsAny(text, "\x1b\n\x00") {
					t.Errorf("type %#x, %.10x: %q", uint32(kind)|high, data, text)
				}
			}
		}
	}
}

func TestParseLogRefuses(t *testing.T) {
	le := binary.LittleEndian
	good := newLog(pcr.SHA1, pcr.SHA256).event(7, pcr.EventSeparator, []byte{0, 0, 0, 0}).bytes()
	header := len(newLog(pcr.SHA1, pcr.SHA256).bytes())
	change := func(offset int, value uint32) []byte {
		b := bytes.Clone(good)
		le.PutUint32(b[offset:], value)
		return b
	}
	idEvent := 32 // where the header's data begins
	tests := []struct {
		name string
		log  []byte
		want string
	}{
		{"empty", nil, "ends too early"},
		{"too long", make([]byte, pcr.MaxLog+1), "at most"},
		{"TPM 1.2", change(4, 1), "not in the crypto agile format"},
		{"header of 4 GiB", change(28, 0xffffffff), "ends too early"},
		{"no banks", change(idEvent+24, 0), "0 banks"},
		{"2^32-1 banks", change(idEvent+24, 0xffffffff), "banks, want"},
		{"more banks than there are", change(idEvent+24, 3), "is there twice|add up|digests of"},
		{"bank twice", change(idEvent+32, uint32(pcr.SHA1)|20<<16), "is there twice"},
		{"SHA-256 of 20 bytes", change(idEvent+32, uint32(pcr.SHA256)|20<<16), "digests of sha256 have 20 bytes"},
		{"digests of nothing", change(idEvent+32, 0x77), "have 0 bytes"},
		{"PCR 24", change(header, 24), "PCR 24"},
		{"PCR 2^32-1, measured", change(header, 0xffffffff), "PCR 4294967295"},
		{"2^32-1 digests", change(header+8, 0xffffffff), "digests, the log has 2 banks"},
		{"digest of a foreign bank", change(header+12, 0x0c), "not a bank"},
		{"digest twice", func() []byte { b := bytes.Clone(good); copy(b[header+12+22:], b[header+12:header+14]); return b }(), "is there twice"},
		{"data of 4 GiB", change(len(good)-8, 0xffffffff), "4294967295 bytes of data"},
		{"cut in an event", good[:len(good)-1], "bytes of data"},
		{"cut in a digest", good[:header+20], "bytes of data|too early"},
		{"cut in an event's head", append(bytes.Clone(good), 1, 2, 3), "too early"},
		{"start-up locality 9", newLog(pcr.SHA256).event(0, pcr.EventNoAction, append([]byte("StartupLocality\x00"), 9)).bytes(), "locality 9"},
		{"start-up locality of no bytes", newLog(pcr.SHA256).event(0, pcr.EventNoAction, []byte("StartupLocality\x00")).bytes(), "locality of 0 bytes"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := pcr.ParseLog(test.log)
			if err == nil || !regexp.MustCompile(test.want).MatchString(err.Error()) {
				t.Errorf("error is %v, want one with %q", err, test.want)
			}
		})
	}
	if _, err := pcr.ParseLog(good); err != nil {
		t.Errorf("the log that the faults were put into: %v", err)
	}
}

func FuzzParseLog(f *testing.F) {
	for _, name := range logNames() {
		f.Add(readFile(f, name+".eventlog"))
	}
	f.Add(newLog(pcr.SHA1, pcr.SHA256).event(7, pcr.EventSeparator, []byte{0, 0, 0, 0}).bytes())
	good := readLog(f, "ovmf-enforced")
	f.Fuzz(func(t *testing.T, data []byte) {
		log, err := pcr.ParseLog(data)
		if err != nil {
			return
		}
		size := 0
		for _, e := range log.Events {
			size += len(e.Data)
			if text := e.Describe(); text == "" || len(text) > 4096 {
				t.Errorf("event %d reads %q", e.Number, text)
			}
		}
		if size > len(data) {
			t.Errorf("events of %d bytes in a log of %d", size, len(data))
		}
		values, err := log.PCRs()
		if err == nil && log.Check(values) != nil {
			t.Error("a log does not agree with its own replay")
		}
		for _, d := range pcr.Diff(good, log) {
			_ = d.String()
		}
		if len(pcr.Diff(log, log)) != 0 && err == nil {
			t.Error("a log differs from itself")
		}
		_ = log.Drivers()
		if authorities, err := log.Authorities(); err == nil {
			_, _ = pcr.PredictPCR7(log, pcr.SecureBootVariables{}, authorities)
		}
	})
}
