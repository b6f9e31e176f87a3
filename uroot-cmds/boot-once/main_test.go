package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	"halogenos.internal/boot/bootoption"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/initagent/command/commandtest"
)

// firmware has these boot options, and a damaged one.
func firmware(t *testing.T, names map[string]string) options {
	t.Helper()
	o := options{t.TempDir()}
	put := func(name string, value []byte) {
		if err := os.WriteFile(o.path(name), append([]byte{7, 0, 0, 0}, value...), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for number, name := range names {
		put("Boot"+number, bootoption.Encode(name, 1, 2048, 4096, gpt.GUID{1}, `\EFI\BOOT\BOOTX64.EFI`))
	}
	put("Boot00FF", []byte("damaged"))
	put("BootOrder", []byte{1, 0})
	return o
}

func TestBootOnce(t *testing.T) {
	names := map[string]string{"0000": "HalogenOS", "0001": "Windows Boot Manager", "0002": "UEFI disk", "0003": "UEFI network", "000A": "UEFI disk\x1b[2J"}
	o := firmware(t, names)
	_, out, errs := commandtest.Run(cmd(o))
	if errs != "" || strings.Count(out, "\n") != len(names) || !strings.Contains(out, "0001  Windows Boot Manager\n") || strings.Contains(out, "\x1b") {
		t.Errorf("%s\n%s", errs, out)
	}
	for name, want := range map[string]string{"windows": "\x01\x00", "UEFI disk": "\x02\x00", "000a": "\x0a\x00", "0000": "\x00\x00", "uefi n": "\x03\x00"} {
		if code, out, errs := commandtest.Run(cmd(o), name); code != 0 || !strings.Contains(out, "The next restart starts") {
			t.Errorf("%s: exit code %d, %s%s", name, code, out, errs)
		}
		if b, err := os.ReadFile(o.path(nextVariable)); err != nil || !bytes.Equal(b, []byte("\x07\x00\x00\x00"+want)) {
			t.Errorf("%s: BootNext is %x, %v", name, b, err)
		}
		if code, _, errs := commandtest.Run(cmd(o), "0001"); name != "windows" && (code != 1 || !strings.Contains(errs, "already, as fwupd or somebody else has asked for")) {
			t.Errorf("beside %s: exit code %d, %s", name, code, errs)
		}
		if _, out, _ := commandtest.Run(cmd(o), "--cancel"); !strings.Contains(out, "was to start") {
			t.Errorf("%s: %s", name, out)
		}
	}
	if code, out, _ := commandtest.Run(cmd(o), "0001"); code != 0 {
		t.Error(out)
	}
	if _, out, _ := commandtest.Run(cmd(o)); !strings.Contains(out, "0001  Windows Boot Manager  (at the next restart)\n") || strings.Count(out, "(at the next") != 1 {
		t.Error(out)
	}
	// What the firmware is to start may have no name that can be read, or none any more.
	for _, number := range []byte{0xff, 0x77} {
		if err := os.WriteFile(o.path(nextVariable), []byte{7, 0, 0, 0, number, 0}, 0o600); err != nil {
			t.Fatal(err)
		}
		if code, _, errs := commandtest.Run(cmd(o), "0001"); code != 1 || !strings.Contains(errs, fmt.Sprintf("starts the boot option 00%02X already", number)) {
			t.Errorf("beside %x: exit code %d, %s", number, code, errs)
		}
	}
	for range 2 {
		if code, _, errs := commandtest.Run(cmd(o), "--cancel"); code != 0 || errs != "" {
			t.Errorf("exit code %d, %s", code, errs)
		}
	}
	if _, err := os.Lstat(o.path(nextVariable)); !os.IsNotExist(err) {
		t.Errorf("BootNext is there: %v", err)
	}
	for name, want := range map[string]string{"UEFI": "3 boot options are called so", "Debian": "has no boot option", "00FF": "has no boot option"} {
		if code, _, errs := commandtest.Run(cmd(o), name); code != 1 || !strings.Contains(errs, want) {
			t.Errorf("%s: exit code %d, %s", name, code, errs)
		}
	}
	if code, _, errs := commandtest.Run(cmd(options{t.TempDir()})); code != 1 || !strings.Contains(errs, "is efivarfs mounted") {
		t.Errorf("exit code %d, %s", code, errs)
	}
}

func TestUse(t *testing.T) {
	commandtest.Use(t, cmd(firmware(t, map[string]string{"0000": "HalogenOS"})))
	for _, args := range [][]string{{"--cancel", "x"}, {"--json", "x"}, {"--cancel", "--json"}} {
		if code, _, _ := commandtest.Run(cmd(firmware(t, map[string]string{"0000": "x"})), args...); code != 2 {
			t.Errorf("%q: exit code %d", args, code)
		}
	}
}

func TestManual(t *testing.T) { testkit.Manual(t, "boot-once.8") }
