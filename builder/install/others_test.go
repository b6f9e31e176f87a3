package install

import (
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/boot/blocktest"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/fat"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/words"
)

// The wish is on the ESP of the disk that it was chosen for, and on no other.
func TestLetOthersStart(t *testing.T) {
	build := newBuild(t, func(c *contract.Contract) { c.VendorKeys = contract.VendorNone })
	for _, chosen := range []bool{true, false} {
		s := open(t, build)
		d := blocktest.New(windowsSize, blocktest.Zero)
		fillWindows(t, d)
		p := NewPlan(s, windowsDisk(t, d), Facts{}, randomIDs(t), Choice{FreeSpace: true, OtherMachine: true, LetOthersStart: chosen})
		if err := p.Err(false); err != nil {
			t.Fatal(err)
		}
		recorder := blocktest.Record(d)
		if err := p.Install(t.Context(), target{recorder}, s, quiet); err != nil {
			t.Fatal(err)
		}
		esp, err := layout.FindESP(p.Table, p.IDs.ESP)
		if err != nil {
			t.Fatal(err)
		}
		at, size := p.Table.Bytes(esp)
		files, err := fat.Open(io.NewSectionReader(recorder, at, size))
		if err != nil {
			t.Fatal(err)
		}
		text, err := fs.ReadFile(files, secureboot.OthersOnESP)
		if _, perr := secureboot.ParseOthers(text); chosen && errors.Join(err, perr) != nil || !chosen && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("chosen %t: %q, %v, %v", chosen, text, err, perr)
		}
		if again := strings.Contains(words.English.List(p.Next(), "\n"), "asks whether other systems go on starting"); again != chosen {
			t.Errorf("chosen %t: what comes next is %q", chosen, p.Next())
		}
	}
	older := *open(t, build)
	older.Others = false
	d := blocktest.New(windowsSize, blocktest.Zero)
	fillWindows(t, d)
	p := NewPlan(&older, windowsDisk(t, d), Facts{}, randomIDs(t), Choice{FreeSpace: true, OtherMachine: true, LetOthersStart: true})
	if err := p.Err(true); err == nil || !strings.Contains(err.Error(), "does not ask whether other systems go on starting") {
		t.Errorf("a release of an older halogen: %v", err)
	}
	if p := NewPlan(&older, windowsDisk(t, d), Facts{}, randomIDs(t), Choice{FreeSpace: true, OtherMachine: true}); p.AsksOthers {
		t.Error("what an older release cannot do is asked for")
	}
}

// Of the firmware's certificates those count that are known by their hash; what cannot be
// read counts as none.
func TestOthersInFirmware(t *testing.T) {
	forged, err := secureboot.Database{{Type: secureboot.TypeX509, Data: []byte("Microsoft Corporation UEFI CA 2011")}}.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"forged": forged, "cut": forged[:20], "empty": nil} {
		t.Run(name, func(t *testing.T) {
			l := Linux{Sys: t.TempDir()}
			for _, v := range []secureboot.Variable{secureboot.DB, secureboot.DBDefault} {
				file := filepath.Join(l.Sys, "firmware/efi/efivars", v.Name+"-"+v.GUID.String())
				value := append(binary.LittleEndian.AppendUint32(nil, 6), content...)
				if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, value, 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			if f := l.Facts(); len(f.Others) != 0 {
				t.Errorf("%s", f.Others)
			}
		})
	}
}
