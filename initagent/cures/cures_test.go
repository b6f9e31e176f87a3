package cures

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/slot"
)

func TestFor(t *testing.T) {
	used := slot.State{Table: slot.TableComplete, Booted: 1, TreeNamed: true, Keys: slot.KeysEnrolled, Root: slot.RootLocked}
	facts := slot.Facts{SecureBoot: contract.Required, TPM: contract.Required, TPMPresent: true, Epoch: 3}
	for _, c := range []struct {
		name   string
		change func(s *slot.State, f *slot.Facts)
		first  string   // what the first line has
		wants  []string // anywhere
		never  string
	}{
		{"asked for", func(_ *slot.State, f *slot.Facts) { f.ConsoleAsked = true }, "`slots`", []string{"`rollback`"}, "`reset`"},
		{"wiped, as was asked for", func(s *slot.State, f *slot.Facts) { s.Root, f.Reset = slot.RootDamaged, slot.Done }, "Setup Mode", []string{"new recovery key"}, "Leave the disk"},
		{"a reset that failed half-way", func(_ *slot.State, f *slot.Facts) { f.Reset, f.ResetBegun = slot.Failed, true }, "overwritten", []string{"`reset` does all of it once more"}, "`unlock`"},
		{"a reset that keeps /home", func(_ *slot.State, f *slot.Facts) { f.KeepHome, f.KeepHomeBegun = slot.Failed, true }, "/home is whole", []string{"halogen/keep-home"}, "`reset`"},
		{"nothing known", func(*slot.State, *slot.Facts) {}, "`slots`", []string{"`dmesg`"}, "`reset`"},
		{"no disk", func(s *slot.State, _ *slot.Facts) { *s = slot.State{} }, "disk is attached", nil, "`reset`"},
		{"another's disk", func(s *slot.State, _ *slot.Facts) { s.Table = slot.TableForeign }, "Nothing was written", nil, "`reset`"},
		{"read-only", func(s *slot.State, _ *slot.Facts) { s.Table = slot.TableReadOnly }, "write protection", []string{"`unlock`"}, "`reset`"},
		{"no TPM", func(_ *slot.State, f *slot.Facts) { f.TPMPresent = false }, "Switch the TPM on", []string{"`unlock`"}, "`reseal`"},
		{"both corrupt", func(_ *slot.State, f *slot.Facts) { f.Verity = slot.Failed }, "`verify`", []string{"`repair`", "`rollback`"}, "`reset`"},
		{"under the floor", func(s *slot.State, _ *slot.Facts) { s.Floor = 4 }, "replaced by a newer one", []string{"`rollback`"}, "`reseal`"},
		{"under the floor, and the TPM refused", func(s *slot.State, f *slot.Facts) { s.Floor, f.Unlock = 4, slot.Failed }, "replaced by a newer one", []string{"`rollback`"}, "`reseal`"},
		{"something from outside", func(_ *slot.State, f *slot.Facts) { f.Foreign, f.Unlock = true, slot.Failed }, "Remove what was added", []string{"loader/credentials"}, "`reseal`"},
		{"TPM refused, no key", func(_ *slot.State, f *slot.Facts) { f.Unlock, f.Key = slot.Failed, slot.Failed }, "`eventlog`", []string{"`unlock`", "`reseal`"}, "`enroll`"},
		{"keys lost", func(s *slot.State, f *slot.Facts) {
			s.Keys, f.Unlock, f.Key = slot.KeysMissing, slot.Failed, slot.Failed
		},
			"`exit`, and type the recovery key", []string{"do not type"}, "`enroll`"},
		{"Secure Boot off", func(s *slot.State, f *slot.Facts) { s.Keys, f.Unlock, f.Key = slot.KeysOff, slot.Failed, slot.Failed },
			"Switch Secure Boot on", []string{"type the recovery key"}, "`enroll`"},
		{"header lost", func(s *slot.State, _ *slot.Facts) { s.Root = slot.RootDamaged }, "Leave the disk", []string{"`reset`"}, "`unlock`"},
		{"mount", func(s *slot.State, f *slot.Facts) { s.Root, f.Mount = slot.RootOpen, slot.Failed }, "`unlock`", []string{"/run/state"}, "`reset`"},
		{"carry", func(s *slot.State, f *slot.Facts) { s.Root, f.Carried = slot.RootOpen, slot.Failed }, "`unlock`", []string{"/run/state"}, "`reset`"},
		{"restore", func(s *slot.State, f *slot.Facts) { s.Root, f.Restored = slot.RootOpen, slot.Failed }, "`unlock`", []string{"/run/state"}, "`reset`"},
		{"mount, and the disk fails", func(s *slot.State, f *slot.Facts) {
			s.Root, f.Mount, f.Cause = slot.RootOpen, slot.Failed, "state directory /etc: input/output error: "+slot.CannotRead
		}, "The disk fails to read", []string{"`unlock`", "/run/state", "replace the disk"}, "`rollback`"},
		{"unlock, and the disk fails", func(_ *slot.State, f *slot.Facts) {
			f.Unlock, f.Cause = slot.Failed, "as the boot before this one says: mount: input/output error: "+slot.CannotRead
		}, "The disk fails to read", []string{"`unlock`", "replace the disk"}, "`reset`"},
		{"enrollment", func(s *slot.State, f *slot.Facts) {
			s.Root, s.Keys, f.Enroll = slot.RootBlank, slot.KeysMissing, slot.Failed
		},
			"firmware's setup", []string{"goes on where it stopped"}, "`reset`"},
	} {
		s, f := used, facts
		c.change(&s, &f)
		lines := For(s, f)
		all := strings.Join(lines, "\n")
		if len(lines) == 0 || !strings.Contains(lines[0], c.first) || strings.Contains(all, c.never) {
			t.Errorf("%s: want first %q and never %q:\n%s", c.name, c.first, c.never, all)
			continue
		}
		for _, want := range c.wants {
			if !strings.Contains(all, want) {
				t.Errorf("%s lacks %q:\n%s", c.name, want, all)
			}
		}
		if strings.Contains(lines[0], "`reset`") {
			t.Errorf("%s: what destroys data comes first:\n%s", c.name, all)
		}
		named(t, c.name, all)
	}
}

var quoted = regexp.MustCompile("`([a-z-]+)`")

// named: every command that is recommended exists.
func named(t *testing.T, name, text string) {
	t.Helper()
	for _, m := range quoted.FindAllStringSubmatch(text, -1) {
		switch m[1] {
		case "exit", "dmesg", "blkid": // the shell's, and u-root's
			continue
		}
		if _, err := os.Stat("../../uroot-cmds/" + m[1] + "/main.go"); err != nil {
			t.Errorf("%s recommends %s: %v", name, m[1], err)
		}
	}
}
