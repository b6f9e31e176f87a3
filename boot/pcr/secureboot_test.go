package pcr_test

import (
	"bytes"
	"strings"
	"testing"

	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/secureboot"
)

func enforcedVariables(t testing.TB) pcr.SecureBootVariables {
	t.Helper()
	return pcr.SecureBootVariables{
		SecureBoot: true,
		PK:         readFile(t, "ovmf-enforced.PK"),
		KEK:        readFile(t, "ovmf-enforced.KEK"),
		DB:         readFile(t, "ovmf-enforced.db"),
	}
}

// The log from Setup Mode, the variables that were enrolled and the one
// certificate that signs everything must give the PCR 7 that the TPM held
// after the reboot.
func TestPredictPCR7EqualsTPM(t *testing.T) {
	want := pcr.Digest(readPCRs(t, "ovmf-enforced", pcr.SHA256)[7])
	authorities, err := readLog(t, "ovmf-enforced").Authorities()
	if err != nil {
		t.Fatal(err)
	}
	if len(authorities) != 1 || !bytes.Contains(readFile(t, "ovmf-enforced.db"), authorities[0]) {
		t.Fatalf("%d authorities, want one, from db", len(authorities))
	}
	for _, name := range logNames() {
		got, err := pcr.PredictPCR7(readLog(t, name), enforcedVariables(t), authorities)
		if err != nil || got != want {
			t.Errorf("PCR 7 from %s is %s, %v; the TPM had %s", name, got, err, want)
		}
	}
	setup, err := pcr.PredictPCR7(readLog(t, "ovmf-enforced"), pcr.SecureBootVariables{}, nil)
	if want := pcr.Digest(readPCRs(t, "ovmf-setup", pcr.SHA256)[7]); err != nil || setup != want {
		t.Errorf("PCR 7 back in Setup Mode is %s, %v; the TPM had %s", setup, err, want)
	}
}

func parse(t testing.TB, b *builder) *pcr.Log {
	t.Helper()
	log, err := pcr.ParseLog(b.bytes())
	if err != nil {
		t.Fatal(err)
	}
	return log
}

func pcr7(t testing.TB, b *builder) pcr.Digest {
	t.Helper()
	values, err := parse(t, b).PCRs()
	if err != nil {
		t.Fatal(err)
	}
	return values[7]
}

func TestPredictPCR7(t *testing.T) {
	pk, kek, db, dbx, rom, own := []byte("pk"), []byte("kek"), []byte("db"), []byte("dbx"), []byte("rom's entry"), []byte("own entry")
	vars := pcr.SecureBootVariables{SecureBoot: true, PK: pk, KEK: kek, DB: db, DBX: dbx}
	debug := []byte("UEFI Debug Mode")
	setup := func() *builder { return newLog(pcr.SHA1, pcr.SHA256).firmware(0, nil, nil, nil, nil) }
	user := func() *builder { return newLog(pcr.SHA1, pcr.SHA256).firmware(1, pk, kek, db, dbx) }
	tests := []struct {
		name        string
		log         *builder
		authorities [][]byte
		want        *builder
	}{
		{"from Setup Mode", setup(), [][]byte{own}, user().authority(own)},
		{"no authority", setup(), nil, user()},
		{"two authorities", setup(), [][]byte{rom, own}, user().authority(rom).authority(own)},
		{"each once", setup(), [][]byte{rom, own, rom, own}, user().authority(rom).authority(own)},
		{"authorities replaced", user().authority(rom), [][]byte{own}, user().authority(own)},
		{"authorities dropped", user().authority(rom).authority(own), nil, user()},
		{"other registers between", setup().event(4, pcr.EventSeparator, debug).event(2, pcr.EventBootDriver, rom), [][]byte{own}, user().authority(own)},
		{
			"events of the firmware's own stay",
			newLog(pcr.SHA256).event(7, pcr.EventEFIAction, debug).firmware(0, nil, nil, nil, nil).event(7, pcr.EventVariableConfig, variable(global, "DeployedMode", []byte{0})),
			[][]byte{own},
			newLog(pcr.SHA256).event(7, pcr.EventEFIAction, debug).firmware(1, pk, kek, db, dbx).event(7, pcr.EventVariableConfig, variable(global, "DeployedMode", []byte{0})).authority(own),
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := pcr.PredictPCR7(parse(t, test.log), vars, test.authorities)
			if want := pcr7(t, test.want); err != nil || got != want {
				t.Errorf("PCR 7 is %s, %v; want %s", got, err, want)
			}
		})
	}
}

func TestPredictPCR7Refuses(t *testing.T) {
	vars := pcr.SecureBootVariables{SecureBoot: true, PK: []byte("pk"), KEK: []byte("kek"), DB: []byte("db")}
	base := func() *builder { return newLog(pcr.SHA256).firmware(0, nil, nil, nil, nil) }
	sha1Only := newLog(pcr.SHA1, pcr.SHA256)
	sha1Only.only = pcr.SHA1
	tests := []struct {
		name string
		log  *builder
		want string
	}{
		{"nothing measured", newLog(pcr.SHA256), "the firmware measured no SecureBoot"},
		{"no db", newLog(pcr.SHA256).event(7, pcr.EventVariableConfig, variable(global, "SecureBoot", []byte{0})).
			event(7, pcr.EventVariableConfig, variable(global, "PK", nil)).event(7, pcr.EventVariableConfig, variable(global, "KEK", nil)), "measured no db"},
		{"db twice", base().event(7, pcr.EventVariableConfig, variable(security, "db", nil)), "db is measured twice"},
		{"db's data alone measured", newLog(pcr.SHA256).measured(7, pcr.EventVariableConfig, variable(security, "db", []byte("x")), []byte("x")), "not the variable as logged"},
		{"name with a surrogate", newLog(pcr.SHA256).event(7, pcr.EventVariableConfig, []byte("short")), "a variable's name"},
		{"a shim", base().event(7, pcr.EventVariableAuthority, variable(global, "Shim", []byte("x"))), "a shim in between"},
		{"authority not as logged", base().measured(7, pcr.EventVariableAuthority, variable(security, "db", []byte("x")), []byte("y")), "not its entry in db"},
		{"something behind an authority", base().authority([]byte("x")).event(7, pcr.EventEFIAction, []byte("y")), "follows an authority"},
		{"no SHA-256", sha1Only.firmware(0, nil, nil, nil, nil), "no SHA-256 digest"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := pcr.PredictPCR7(parse(t, test.log), vars, nil)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("PCR 7 is %s, %v; want an error with %q", got, err, test.want)
			}
		})
	}
}

func TestDrivers(t *testing.T) {
	drivers := readLog(t, "ovmf-setup").Drivers()
	if !drivers.Known || len(drivers.ROMs) != 1 {
		t.Fatalf("%+v, want one option ROM", drivers)
	}
	rom := drivers.ROMs[0]
	// The hash that tpm2_eventlog shows for the event.
	if got := pcr.Digest(rom.Digest).String(); got != "b6b9cf6db3efeaba1d6c5bba1359b69fd6e3b2032a9b179ff620a33b570e3997" {
		t.Errorf("option ROM's hash is %s", got)
	}
	if !strings.HasPrefix(rom.Path, "PciRoot(0x0)/Pci(") {
		t.Errorf("option ROM's place is %s", rom.Path)
	}
}

func TestDiff(t *testing.T) {
	setup, enforced := readLog(t, "ovmf-setup"), readLog(t, "ovmf-enforced")
	if got := pcr.Diff(enforced, enforced); len(got) != 0 {
		t.Errorf("a log differs from itself: %v", got)
	}
	var text strings.Builder
	for _, d := range pcr.Diff(setup, enforced) {
		text.WriteString(d.String() + "\n")
	}
	if want := string(readFile(t, "ovmf-diff.txt")); text.String() != want {
		t.Errorf("the difference reads\n%s\nwant\n%s", text.String(), want)
	}
}

// Firmware keeps db in an order of its own, or with an entry twice. PCR 7 differs, though the
// same is allowed.
func TestDiffOfTheSameEntries(t *testing.T) {
	db := func(hashes ...byte) *builder {
		var d secureboot.Database
		for _, h := range hashes {
			d = append(d, secureboot.Entry{Type: secureboot.TypeSHA256, Data: bytes.Repeat([]byte{h}, 32)})
		}
		text, err := d.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		return newLog(pcr.SHA256).firmware(1, nil, nil, text, nil)
	}
	one := func(h byte) []byte {
		text, err := secureboot.Database{{Type: secureboot.TypeSHA256, Data: bytes.Repeat([]byte{h}, 32)}}.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	lists := newLog(pcr.SHA256).firmware(1, nil, nil, append(one(1), one(2)...), nil) // and not one of both
	const how = " (their order, one that is there twice, or how they are grouped)"
	for _, c := range []struct {
		was, is *builder
		want    string
	}{
		{db(1), db(1, 1), "db holds the same signatures, but not in the same way: 1 entry, now 2 entries" + how},
		{db(1, 2), db(2, 1), "db holds the same signatures, but not in the same way: 2 entries, now 2 entries" + how},
		{db(1, 2), lists, "db holds the same signatures, but not in the same way: 2 entries, now 2 entries" + how},
	} {
		got := pcr.Diff(parse(t, c.was), parse(t, c.is))
		if len(got) != 1 || len(got[0].Changes) != 1 || got[0].Changes[0].String() != c.want {
			t.Errorf("%v, want %s", got, c.want)
		}
	}
}

func TestDiffFindsEvents(t *testing.T) {
	ipl := func(b *builder, names ...string) *builder {
		for _, name := range names {
			b.event(8, pcr.EventIPL, []byte(name))
		}
		return b
	}
	tests := []struct {
		was, is []string
		want    string
	}{
		{[]string{"a", "b", "c"}, []string{"a", "c"}, `gone: boot loader: "b"`},
		{[]string{"a", "c"}, []string{"a", "b", "c"}, `new: boot loader: "b"`},
		{[]string{"a", "b", "c"}, []string{"x", "b", "y"}, `gone: boot loader: "a"|new: boot loader: "x"|gone: boot loader: "c"|new: boot loader: "y"`},
		{[]string{"a", "b"}, []string{"b", "a"}, `gone: boot loader: "a"|new: boot loader: "a"`},
		{nil, []string{"a"}, `new: boot loader: "a"`},
		{[]string{"a"}, nil, `gone: boot loader: "a"`},
	}
	for _, test := range tests {
		differences := pcr.Diff(parse(t, ipl(newLog(pcr.SHA256), test.was...)), parse(t, ipl(newLog(pcr.SHA256), test.is...)))
		if len(differences) != 1 || differences[0].PCR != 8 {
			t.Errorf("%v to %v: %v, want PCR 8 alone", test.was, test.is, differences)
			continue
		}
		var got []string
		for _, c := range differences[0].Changes {
			got = append(got, c.String())
		}
		if strings.Join(got, "|") != test.want {
			t.Errorf("%v to %v: %s, want %s", test.was, test.is, strings.Join(got, "|"), test.want)
		}
	}
}

// A hostile log must not make the comparison take long.
func TestDiffIsBounded(t *testing.T) {
	was, is := newLog(pcr.SHA256), newLog(pcr.SHA256)
	for i := range 5000 {
		was.event(4, pcr.EventAction, []byte{byte(i), byte(i >> 8), 1})
		is.event(4, pcr.EventAction, []byte{byte(i), byte(i >> 8), 2})
	}
	if got := pcr.Diff(parse(t, was), parse(t, is)); len(got) != 1 || len(got[0].Changes) != 5000 {
		t.Errorf("%d registers differ, want one with 5000 changes", len(got))
	}
}
