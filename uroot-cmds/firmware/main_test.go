package main

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/uki/ukitest"
	"halogenos.internal/initagent/bootinfo"
	"halogenos.internal/initagent/command/commandtest"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/tpm"

	"github.com/google/go-tpm/tpm2"
)

// variables are a firmware's; nil for one that has none.
type variables map[string][]byte

func (v variables) Read(name string, _ gpt.GUID) (uint32, []byte, error) {
	if v == nil {
		return 0, nil, errors.New("efivarfs is not there")
	}
	data, ok := v[name]
	if !ok {
		return 0, nil, fs.ErrNotExist
	}
	return secureboot.KeyAttributes, data, nil
}

func (variables) WriteAuthenticated(string, gpt.GUID, uint32, []byte) error {
	return errors.New("a command that only reads has written")
}

func (variables) Room() (int64, bool) { return 0, false }

func lists(t *testing.T, d ...secureboot.Entry) []byte {
	t.Helper()
	b, err := secureboot.Database(d).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// named is an entry with a certificate that no parser takes, but for the name in it.
func named(name string) secureboot.Entry {
	return secureboot.Entry{Type: secureboot.TypeX509, Data: []byte("certificate of " + name)}
}

// boots reports a UKI that has this revision of microcode for the processor.
func boots(microcode string) func() (*bootinfo.Report, error) {
	return func() (*bootinfo.Report, error) { return &bootinfo.Report{Microcode: microcode}, nil }
}

// machine is one on which nothing is advised.
func machine(t *testing.T) (source, variables, fstest.MapFS) {
	t.Helper()
	root := fstest.MapFS{}
	for name, text := range map[string]string{
		"sys/class/dmi/id/sys_vendor": "A Maker\n", "sys/class/dmi/id/product_name": "Model 1\n", "sys/class/dmi/id/bios_vendor": "A House\n",
		"sys/class/dmi/id/bios_version": "1.65\n", "sys/class/dmi/id/bios_date": "03/06/2026\n",
		"proc/cpuinfo": "vendor_id: GenuineIntel\ncpu family: 6\nmodel: 158\nstepping: 10\nmicrocode: 0xf8\n",
		"sys/firmware/efi/esrt/entries/entry0/fw_class":   "6de5d951-d755-576b-bd09-c5cf66b27234\n",
		"sys/firmware/efi/esrt/entries/entry0/fw_type":    "1\n",
		"sys/firmware/efi/esrt/entries/entry0/fw_version": "65601\n",
	} {
		root[name] = &fstest.MapFile{Data: []byte(text)}
	}
	vars := variables{
		"SecureBoot": {1}, "SetupMode": {0}, "PK": lists(t, named("HalogenOS PK")), "KEK": lists(t, named("HalogenOS KEK")), "db": lists(t, named("HalogenOS db")),
		"dbx": lists(t, secureboot.Hash(gpt.GUID{}, [32]byte{1}), secureboot.Hash(gpt.GUID{}, [32]byte{2})),
	}
	good := func() (*tpm.Capabilities, error) {
		return &tpm.Capabilities{Manufacturer: "IFX", Model: "SLB9670", Firmware: 7<<48 | 85<<32 | 4555<<16, Banks: []tpm2.TPMAlgID{tpm2.TPMAlgSHA256}}, nil
	}
	return source{vars, good, root, boots("0xf8")}, vars, root
}

func TestFirmware(t *testing.T) {
	s, _, _ := machine(t)
	code, out, errs := commandtest.Run(cmd(s))
	if code != 0 || errs != "" {
		t.Errorf("exit code %d: %s", code, errs)
	}
	for _, want := range []string{
		"machine       A Maker Model 1\n", "firmware      A House 1.65, of 03/06/2026\n", "Secure Boot   on\n", "dbx           2 entries\n",
		"processor     GenuineIntel 06-9e-0a, microcode 0xf8; the UKI has 0xf8\n", "TPM           IFX SLB9670, firmware 7.85.4555.0\n",
		"update        system: version 0x10041, none tried\n", "Nothing is advised.\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("lacks %q:\n%s", want, out)
		}
	}
	var got facts
	code, out, _ = commandtest.Run(cmd(s), "--json")
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != 0 || got.SecureBoot != "on" || got.DBX != 2 || len(got.PK) != 1 || got.Available != "0xf8" || got.TPM.Maker != "IFX" || len(got.Advice) > 0 {
		t.Errorf("%+v, %v", got, err)
	}
}

// Each fact that calls for something is told, and that alone.
func TestAdvice(t *testing.T) {
	for name, c := range map[string]struct {
		change func(s *source, v variables, root fstest.MapFS)
		want   []string // of what is advised, or of what is shown
	}{
		"off":        {func(_ *source, v variables, _ fstest.MapFS) { v["SecureBoot"] = []byte{0} }, []string{"Secure Boot is off"}},
		"setup mode": {func(_ *source, v variables, _ fstest.MapFS) { v["SecureBoot"], v["SetupMode"] = []byte{0}, []byte{1} }, []string{"no Platform Key"}},
		"absent":     {func(_ *source, v variables, _ fstest.MapFS) { clear(v) }, []string{"no Secure Boot"}},
		"unreadable": {func(s *source, _ variables, _ fstest.MapFS) { s.Variables = variables(nil) }, []string{"is efivarfs mounted"}},
		"test key":   {func(_ *source, v variables, _ fstest.MapFS) { v["PK"] = lists(t, named("DO NOT TRUST - AMI Test PK")) }, []string{"a test key whose secret half was published"}},
		"others' keys": {func(_ *source, v variables, _ fstest.MapFS) {
			v["db"] = append(v["db"], lists(t, named("Microsoft"))...)
			delete(v, "dbx")
		}, []string{"dbx is empty"}},
		"newer microcode": {func(s *source, _ variables, _ fstest.MapFS) { s.Boot = boots("0xfa") }, []string{"newer microcode (0xfa) than runs"}},
		"no microcode":    {func(s *source, _ variables, _ fstest.MapFS) { s.Boot = boots("") }, []string{"no microcode for this processor"}},
		"no report": {func(s *source, _ variables, _ fstest.MapFS) {
			s.Boot = func() (*bootinfo.Report, error) { return nil, nil }
		}, nil},
		"virtual": {func(s *source, _ variables, root fstest.MapFS) {
			s.Boot = boots("0xfa")
			root["proc/cpuinfo"] = &fstest.MapFile{Data: append(root["proc/cpuinfo"].Data, "flags: fpu hypervisor\n"...)}
		}, nil},
		"no TPM": {func(s *source, _ variables, _ fstest.MapFS) {
			s.TPM = func() (*tpm.Capabilities, error) { return nil, tpm.ErrAbsent }
		}, []string{"There is no TPM"}},
		"TPM is busy": {func(s *source, _ variables, _ fstest.MapFS) {
			s.TPM = func() (*tpm.Capabilities, error) { return nil, errors.New("busy") }
		}, []string{"cannot be asked: busy"}},
		"TPM locked": {func(s *source, _ variables, _ fstest.MapFS) {
			s.TPM = func() (*tpm.Capabilities, error) { return &tpm.Capabilities{Lockout: tpm.Lockout{Active: true}}, nil }
		}, []string{"SHA-256 bank is off", "is locked after wrong passwords"}},
		"update failed": {func(_ *source, _ variables, root fstest.MapFS) {
			root["sys/firmware/efi/esrt/entries/entry0/last_attempt_version"] = &fstest.MapFile{Data: []byte("65602\n")}
			root["sys/firmware/efi/esrt/entries/entry0/last_attempt_status"] = &fstest.MapFile{Data: []byte("7\n")}
		}, []string{"did not succeed"}},
	} {
		s, v, root := machine(t)
		c.change(&s, v, root)
		code, out, errs := commandtest.Run(cmd(s))
		_, below, _ := strings.Cut(out, "\n\n")
		advice := strings.Split(strings.TrimSpace(below), "\n")
		if len(c.want) == 0 {
			c.want = []string{"Nothing is advised."}
		}
		if code != 0 || errs != "" || len(advice) != len(c.want) {
			t.Errorf("%s: exit code %d, advice %q, want %q", name, code, advice, c.want)
			continue
		}
		for i, want := range c.want {
			if !strings.Contains(advice[i], want) {
				t.Errorf("%s: advice %q, want %q", name, advice[i], want)
			}
		}
	}
}

// Whether the firmware starts fwupd's program is told by the signature on it, where Secure
// Boot is on.
func TestUpdater(t *testing.T) {
	date := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	keys, err := secureboot.Generate(rand.Reader, date)
	if err != nil {
		t.Fatal(err)
	}
	program := ukitest.Image(ukitest.Section{Name: ".text", Data: []byte("fwupd-efi")})
	signed, err := enroll.DBSigner{Pair: keys.DB, Time: date}.Sign(program)
	if err != nil {
		t.Fatal(err)
	}
	digest, err := authenticode.Digest(program)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		file         []byte
		off, revoked bool
		shows        string
		advised      bool
	}{
		"none":            {nil, false, false, "", false},
		"signed":          {signed, false, false, "starts its program", false},
		"by nobody":       {program, false, false, "does not start its program", true},
		"in dbx":          {signed, false, true, "does not start its program", true},
		"no Secure Boot":  {program, true, false, "", false},
		"no image at all": {[]byte("MZ"), false, false, "does not start its program", true},
	} {
		s, v, root := machine(t)
		v["db"] = lists(t, secureboot.Certificate(gpt.GUID{}, keys.DB.Certificate))
		if c.file != nil {
			root["usr/libexec/fwupd/efi/fwupdx64.efi.signed"] = &fstest.MapFile{Data: c.file}
		}
		if c.off {
			v["SecureBoot"] = []byte{0}
		}
		if c.revoked {
			v["dbx"] = lists(t, secureboot.Hash(gpt.GUID{}, digest))
		}
		code, out, errs := commandtest.Run(cmd(s))
		if code != 0 || errs != "" || strings.Contains(out, "\nfwupd  ") != (c.shows != "") || !strings.Contains(out, c.shows) || strings.Contains(out, "fwupd cannot update") != c.advised {
			t.Errorf("%s: exit code %d, %s\n%s", name, code, errs, out)
		}
	}
}

func TestUpdateText(t *testing.T) {
	for status, want := range map[uint64]string{0: "to 0x2, succeeded", 7: "the battery is too low", 4096: "failed for the reason 4096 of its maker's"} {
		if got := (update{"system", 1, 2, status}).String(); !strings.Contains(got, want) {
			t.Errorf("status %d: %s", status, got)
		}
	}
	if names := slices.Compact(slices.Clone(statuses)); len(names) != len(statuses) {
		t.Error("two statuses have the same words")
	}
}

func TestUse(t *testing.T) {
	s, _, _ := machine(t)
	commandtest.Use(t, cmd(s))
}
