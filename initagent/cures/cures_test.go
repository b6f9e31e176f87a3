package cures

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"halogenos.internal/boot/bootflow"
	"halogenos.internal/boot/contract"
)

func TestFor(t *testing.T) {
	used := bootflow.State{Table: bootflow.TableComplete, Booted: 1, TreeNamed: true, Keys: bootflow.KeysEnrolled, Root: bootflow.RootLocked}
	facts := bootflow.Facts{SecureBoot: contract.Required, TPM: contract.Required, TPMPresent: true, Epoch: 3}
	for _, c := range []struct {
		name   string
		change func(s *bootflow.State, f *bootflow.Facts)
		first  string   // what the first line has
		wants  []string // anywhere
		never  string
	}{
		{"asked for", func(_ *bootflow.State, f *bootflow.Facts) { f.ConsoleAsked = true }, "`slots`", []string{"`rollback`"}, "`reset`"},
		{"wiped, as was asked for", func(s *bootflow.State, f *bootflow.Facts) {
			s.Root, f.Outcomes[bootflow.Reset] = bootflow.RootDamaged, bootflow.Done
		}, "Setup Mode", []string{"new recovery key"}, "Leave the disk"},
		{"a reset that failed half-way", func(_ *bootflow.State, f *bootflow.Facts) {
			f.Outcomes[bootflow.Reset], f.ResetBegun = bootflow.Failed, true
		}, "overwritten", []string{"`reset` does all of it once more"}, "`unlock`"},
		{"a reset that keeps /home", func(_ *bootflow.State, f *bootflow.Facts) {
			f.Outcomes[bootflow.KeepHome], f.KeepHomeBegun = bootflow.Failed, true
		}, "/home is whole", []string{"halogen/keep-home"}, "`reset`"},
		{"nothing known", func(*bootflow.State, *bootflow.Facts) {}, "`slots`", []string{"`dmesg`"}, "`reset`"},
		{"no disk", func(s *bootflow.State, _ *bootflow.Facts) { *s = bootflow.State{} }, "disk is attached", nil, "`reset`"},
		{"another's disk", func(s *bootflow.State, _ *bootflow.Facts) { s.Table = bootflow.TableForeign }, "Nothing was written", nil, "`reset`"},
		{"read-only", func(s *bootflow.State, _ *bootflow.Facts) { s.Table = bootflow.TableReadOnly }, "write protection", []string{"`unlock`"}, "`reset`"},
		{"no TPM", func(_ *bootflow.State, f *bootflow.Facts) { f.TPMPresent = false }, "Switch the TPM on", []string{"`unlock`"}, "`reseal`"},
		{"both corrupt", func(_ *bootflow.State, f *bootflow.Facts) { f.Outcomes[bootflow.OpenVerity] = bootflow.Failed }, "`verify`", []string{"`repair`", "`rollback`"}, "`reset`"},
		{"under the floor", func(s *bootflow.State, _ *bootflow.Facts) { s.Floor = 4 }, "replaced by a newer one", []string{"`rollback`"}, "`reseal`"},
		{"under the floor, and the TPM refused", func(s *bootflow.State, f *bootflow.Facts) { s.Floor, f.Outcomes[bootflow.Unlock] = 4, bootflow.Failed }, "replaced by a newer one", []string{"`rollback`"}, "`reseal`"},
		{"something from outside", func(_ *bootflow.State, f *bootflow.Facts) {
			f.Foreign, f.Outcomes[bootflow.Unlock] = true, bootflow.Failed
		}, "Remove what was added", []string{"loader/credentials"}, "`reseal`"},
		{"TPM refused, no key", func(_ *bootflow.State, f *bootflow.Facts) {
			f.Outcomes[bootflow.Unlock], f.Outcomes[bootflow.AskKey] = bootflow.Failed, bootflow.Failed
		}, "`eventlog`", []string{"`unlock`", "`reseal`"}, "`enroll`"},
		{"a PIN, and no key", func(_ *bootflow.State, f *bootflow.Facts) {
			f.PIN, f.Outcomes[bootflow.Unlock], f.Outcomes[bootflow.AskKey] = true, bootflow.Failed, bootflow.Failed
		},
			"`eventlog`", []string{"press Enter where the PIN is asked for", "`reseal`"}, "`enroll`"},
		{"keys lost", func(s *bootflow.State, f *bootflow.Facts) {
			s.Keys, f.Outcomes[bootflow.Unlock], f.Outcomes[bootflow.AskKey] = bootflow.KeysMissing, bootflow.Failed, bootflow.Failed
		},
			"`exit`, and type the recovery key", []string{"do not type"}, "`enroll`"},
		{"Secure Boot off", func(s *bootflow.State, f *bootflow.Facts) {
			s.Keys, f.Outcomes[bootflow.Unlock], f.Outcomes[bootflow.AskKey] = bootflow.KeysOff, bootflow.Failed, bootflow.Failed
		},
			"Switch Secure Boot on", []string{"type the recovery key"}, "`enroll`"},
		{"header lost", func(s *bootflow.State, _ *bootflow.Facts) { s.Root = bootflow.RootDamaged }, "Leave the disk", []string{"the recovery key may still open: on another machine, with `cryptsetup open`", "`reset`"}, "`unlock`"},
		{"mount", func(s *bootflow.State, f *bootflow.Facts) {
			s.Root, f.Outcomes[bootflow.MountState] = bootflow.RootOpen, bootflow.Failed
		}, "`unlock`", []string{"/run/state"}, "`reset`"},
		{"carry", func(s *bootflow.State, f *bootflow.Facts) {
			s.Root, f.Outcomes[bootflow.CarryState] = bootflow.RootOpen, bootflow.Failed
		}, "`unlock`", []string{"/run/state"}, "`reset`"},
		{"restore", func(s *bootflow.State, f *bootflow.Facts) {
			s.Root, f.Outcomes[bootflow.RestoreState] = bootflow.RootOpen, bootflow.Failed
		}, "`unlock`", []string{"/run/state", "--cancel", "--forget"}, "`rollback`"},
		{"mount, and the disk fails", func(s *bootflow.State, f *bootflow.Facts) {
			s.Root, f.Outcomes[bootflow.MountState], f.Cause = bootflow.RootOpen, bootflow.Failed, "state directory /etc: input/output error: "+bootflow.CannotRead
		}, "The disk fails to read", []string{"`unlock`", "/run/state", "replace the disk"}, "`rollback`"},
		{"unlock, and the disk fails", func(_ *bootflow.State, f *bootflow.Facts) {
			f.Outcomes[bootflow.Unlock], f.Cause = bootflow.Failed, "as the boot before this one says: mount: input/output error: "+bootflow.CannotRead
		}, "The disk fails to read", []string{"`unlock`", "replace the disk"}, "`reset`"},
		{"enrollment", func(s *bootflow.State, f *bootflow.Facts) {
			s.Root, s.Keys, f.Outcomes[bootflow.Enroll] = bootflow.RootBlank, bootflow.KeysMissing, bootflow.Failed
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

// The firmware's menu is shown where its keys are to be cleared, and nowhere else: cleared
// without need, the machine asks for the recovery key.
func TestClearsKeys(t *testing.T) {
	for name, tt := range map[string]struct {
		s    bootflow.State
		f    bootflow.Facts
		want bool
	}{
		"as it should be":  {bootflow.State{Keys: bootflow.KeysEnrolled}, bootflow.Facts{SecureBoot: contract.Required}, false},
		"the vendor's":     {bootflow.State{Keys: bootflow.KeysForeign}, bootflow.Facts{SecureBoot: contract.Required}, true},
		"and nobody minds": {bootflow.State{Keys: bootflow.KeysForeign}, bootflow.Facts{SecureBoot: contract.Optional}, false},
		"switched off":     {bootflow.State{Keys: bootflow.KeysOff}, bootflow.Facts{SecureBoot: contract.Required}, false},
		"cleared":          {bootflow.State{Keys: bootflow.KeysMissing}, bootflow.Facts{SecureBoot: contract.Required}, false},
		"not enrolled":     {bootflow.State{Keys: bootflow.KeysMissing}, bootflow.Facts{SecureBoot: contract.Required, Outcomes: bootflow.Outcomes{bootflow.Enroll: bootflow.Failed}}, true},
		"reset":            {bootflow.State{Keys: bootflow.KeysEnrolled}, bootflow.Facts{Outcomes: bootflow.Outcomes{bootflow.Reset: bootflow.Done}}, true},
	} {
		if got := ClearsKeys(tt.s, tt.f); got != tt.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
