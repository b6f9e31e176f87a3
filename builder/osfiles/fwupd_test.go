package osfiles

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// An image with fwupd's EFI program has fwupd start it without shim, whatever else its
// settings say; what the distributor has set stays, and is said where it does not do.
func TestLetFwupdStart(t *testing.T) {
	const unsigned, signed = fwupdPrograms + "fwupdx64.efi", fwupdPrograms + "fwupdx64.efi.signed"
	const debian = "[fwupd]\n# use `man 5 fwupd.conf` for documentation\n"
	for _, c := range []struct {
		name     string
		has      []string
		settings string // "-": none
		added    bool
		note     string
	}{
		{"no fwupd", nil, "-", false, ""},
		{"no program", []string{fwupdDaemon}, debian, false, "fwupd-unsigned"},
		{"no settings", []string{fwupdDaemon, unsigned}, "-", true, ""},
		{"Debian's settings", []string{fwupdDaemon, signed}, debian, true, ""},
		{"another section", []string{unsigned}, "[fwupd]\nDisableShimForSecureBoot=true", true, ""},
		{"the section", []string{unsigned}, "[uefi_capsule]\n#DisableShimForSecureBoot=false\nEnableGrubChainLoad=false", true, ""},
		{"set", []string{unsigned}, "[uefi_capsule]\nDisableShimForSecureBoot = True\n", false, ""},
		{"set otherwise", []string{unsigned}, "[uefi_capsule]\nDisableShimForSecureBoot=false\n", false, "DisableShimForSecureBoot=false"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tree, dir := tree(t, c.has...)
			if c.settings != "-" {
				if err := tree.AddFile(fwupdSettings, []byte(c.settings), 0o640, date); err != nil {
					t.Fatal(err)
				}
			}
			notes, err := letFwupdStart(tree, date)
			if said := strings.Join(notes, "\n"); err != nil || (said == "") != (c.note == "") || !strings.Contains(said, c.note) {
				t.Fatalf("notes %q, %v", notes, err)
			}
			text, err := os.ReadFile(filepath.Join(dir, fwupdSettings))
			if err != nil && (c.settings != "-" || c.added) {
				t.Fatal(err)
			}
			value, set := shimSetting(string(text))
			if (set && value == "true") != (c.added || c.name == "set") || c.settings != "-" && !strings.HasPrefix(string(text), c.settings) {
				t.Errorf("settings are %q", text)
			}
			if _, err := letFwupdStart(tree, date); err != nil {
				t.Fatal(err)
			}
			if again, err := os.ReadFile(filepath.Join(dir, fwupdSettings)); err == nil && string(again) != string(text) {
				t.Errorf("the second time makes %q of %q", again, text)
			}
		})
	}
}
