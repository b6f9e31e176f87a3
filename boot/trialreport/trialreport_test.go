package trialreport

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/journal"
)

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

// at is an entry so many seconds after noon.
func at(seconds int, kind journal.Kind, v contract.Version) journal.Entry {
	return journal.Entry{Time: noon.Add(time.Duration(seconds) * time.Second), Kind: kind, Version: v, Reason: "root's own words"}
}

func TestOf(t *testing.T) {
	watchdog := at(90, journal.Boot, 1)
	watchdog.Watchdog = true
	begun := []journal.Entry{at(0, journal.Boot, 1), at(10, journal.Staged, 2), at(20, journal.Boot, 2)}
	for name, tt := range map[string]struct {
		then []journal.Entry
		want *Report
	}{
		"under way":          {nil, nil},
		"blessed":            {[]journal.Entry{at(80, journal.Blessed, 2)}, &Report{Version: 2, From: 1, Result: Kept, Seconds: 60}},
		"and given up later": {[]journal.Entry{at(80, journal.Blessed, 2), at(90, journal.Rollback, 2), at(99, journal.Failed, 2)}, &Report{Version: 2, From: 1, Result: Failed, Cause: GivenUp}},
		"not what was kept":  {[]journal.Entry{at(80, journal.Blessed, 2), at(90, journal.Rollback, 3)}, &Report{Version: 2, From: 1, Result: Kept, Seconds: 60}},
		"unhealthy":          {[]journal.Entry{at(30, journal.Unhealthy, 2), at(50, journal.Failed, 2)}, &Report{Version: 2, From: 1, Result: Failed, Cause: Unhealthy, Seconds: 30}},
		"condemned":          {[]journal.Entry{at(30, journal.Condemned, 2), at(50, journal.Failed, 2)}, &Report{Version: 2, From: 1, Result: Failed, Cause: Condemned, Seconds: 30}},
		"no room":            {[]journal.Entry{at(30, journal.NoRoom, 2), at(50, journal.Failed, 2)}, &Report{Version: 2, From: 1, Result: Failed, Cause: NoRoom, Seconds: 30}},
		"given up":           {[]journal.Entry{at(30, journal.Rollback, 2), at(50, journal.Failed, 2)}, &Report{Version: 2, From: 1, Result: Failed, Cause: GivenUp, Seconds: 30}},
		"the watchdog":       {[]journal.Entry{watchdog, at(95, journal.Failed, 2)}, &Report{Version: 2, From: 1, Result: Failed, Cause: Hang, Seconds: 75}},
		"it just ended":      {[]journal.Entry{at(25, journal.Boot, 2), at(50, journal.Failed, 2)}, &Report{Version: 2, From: 1, Result: Failed, Cause: Ended, Seconds: 30}},
		"a clock that jumps": {[]journal.Entry{at(-80, journal.Blessed, 2)}, &Report{Version: 2, From: 1, Result: Kept}},
		"the newest counts":  {[]journal.Entry{at(30, journal.Blessed, 2), at(40, journal.Staged, 3), at(50, journal.Condemned, 3), at(60, journal.Boot, 2), at(61, journal.Failed, 3)}, &Report{Version: 3, From: 2, Result: Failed, Cause: Condemned}},
	} {
		t.Run(name, func(t *testing.T) {
			got := Of(append(begun[:len(begun):len(begun)], tt.then...))
			if tt.want != nil {
				tt.want.Format, tt.want.Day = Format, "2026-01-02"
			}
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("have %+v, want %+v", got, tt.want)
			}
		})
	}
}

// A report names no machine, whatever the journal and the firmware say.
func TestNamesNoMachine(t *testing.T) {
	r := Of([]journal.Entry{at(0, journal.Staged, 2), at(0, journal.Boot, 2), {Time: noon, Boot: "6ad0e4d2-secret", Kind: journal.Blessed, Version: 2, Reason: "alice's laptop"}})
	r.ImageID, r.Arch, r.Channel, r.Vendor, r.Product = "os", "x86_64", "beta", Name(" QEMU\n\x1b[2J"), Name("Standard PC")
	text, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"format":1,"image_id":"os","arch":"x86_64","version":"2","channel":"beta","result":"kept","vendor":"QEMU[2J","product":"Standard PC","day":"2026-01-02"}`
	var short bytes.Buffer
	if err := json.Compact(&short, text); err != nil || short.String() != want {
		t.Errorf("%v, %s", err, short.String())
	}
	name, err := r.FileName(bytes.NewReader(bytes.Repeat([]byte{0xab}, 12)))
	if err != nil || name != "os-2-"+strings.Repeat("ab", 12)+".json" {
		t.Errorf("%q, %v", name, err)
	}
}

func TestRefuses(t *testing.T) {
	const good = `{"format":1,"image_id":"os","arch":"x86_64","version":"2","channel":"beta","result":"kept","day":"2026-01-02"}`
	if _, err := Parse([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for _, change := range [][2]string{
		{`"format":1`, `"format":2`}, {`"os"`, `"../os"`}, {`"os"`, `""`}, {`"x86_64"`, `"<b>"`}, {`"2",`, `"0",`}, {`"kept"`, `"fine"`}, {`"beta"`, `"mine"`}, {`"beta"`, `""`},
		{`"kept"`, `"failed"`}, {`"kept"`, `"failed","cause":"because"`}, {`"kept"`, `"kept","cause":"hang"`},
		{`2026-01-02`, `2026-13-02`}, {`2026-01-02`, `2026-01-02T12:00:00Z`}, {`"day"`, `"seconds":-1,"day"`}, {`"day"`, `"seconds":86401,"day"`},
		{`"day"`, `"vendor":"` + strings.Repeat("a", maxText+1) + `","day"`}, {`"day"`, `"product":"a\u001b[2J","day"`}, {`"day"`, `"machine":"me","day"`},
		{good, good + strings.Repeat(" ", MaxSize)}, {good, good + good},
	} {
		text := strings.Replace(good, change[0], change[1], 1)
		if r, err := Parse([]byte(text)); err == nil {
			t.Errorf("%s was taken: %+v", text, r)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"format":1,"image_id":"os","arch":"x86_64","version":"2","channel":"beta","from":"1","result":"failed","cause":"hang","vendor":"QEMU","product":"PC","day":"2026-01-02","seconds":3}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := Parse(text)
		if err != nil {
			return
		}
		again, err := r.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if same, err := Parse(again); err != nil || !reflect.DeepEqual(r, same) {
			t.Errorf("%+v, %v", same, err)
		}
	})
}
