package bootflow

import (
	"testing"

	"halogenos.internal/boot/contract"
)

func TestJudgeKeys(t *testing.T) {
	for name, c := range map[string]struct {
		state    State
		facts    Facts
		firmware Firmware
		want     Keys
	}{
		"enrolled in this boot":                    {State{Root: RootLocked}, Facts{Outcomes: Outcomes{Enroll: Done}}, Firmware{SetupMode: true}, KeysFinished},
		"an enrollment that failed is none":        {State{}, Facts{Outcomes: Outcomes{Enroll: Failed}}, Firmware{Compared: KeysMissing}, KeysMissing},
		"in use":                                   {State{Root: RootLocked}, Facts{}, Firmware{Enforces: true, Compared: KeysForeign}, KeysEnrolled},
		"in use, and its header damaged":           {State{Root: RootDamaged}, Facts{}, Firmware{Enforces: true, Compared: KeysForeign}, KeysEnrolled},
		"in use, and the firmware was reset":       {State{Root: RootOpen}, Facts{}, Firmware{SetupMode: true, Compared: KeysEnrolled}, KeysMissing},
		"in use, and Secure Boot is off":           {State{Root: RootLocked}, Facts{}, Firmware{Compared: KeysEnrolled}, KeysOff},
		"what the ESP says counts before":          {State{Root: RootBlank}, Facts{}, Firmware{Enforces: true, Compared: KeysEnrolled}, KeysEnrolled},
		"the firmware has those of another":        {State{Root: RootBlank}, Facts{SecureBoot: contract.Required}, Firmware{Enforces: true, Compared: KeysForeign}, KeysForeign},
		"those of another, and nobody needs them":  {State{Root: RootBlank}, Facts{SecureBoot: contract.Optional}, Firmware{Enforces: true, Compared: KeysForeign}, KeysUnneeded},
		"off, and nobody needs it":                 {State{}, Facts{SecureBoot: contract.Optional}, Firmware{Compared: KeysOff}, KeysUnneeded},
		"Setup Mode is used, also where optional":  {State{}, Facts{SecureBoot: contract.Optional}, Firmware{SetupMode: true, Compared: KeysMissing}, KeysMissing},
		"in use: optional makes no difference":     {State{Root: RootLocked}, Facts{SecureBoot: contract.Optional}, Firmware{Compared: KeysForeign}, KeysOff},
		"enrolled, also where they are not needed": {State{}, Facts{SecureBoot: contract.Optional}, Firmware{Enforces: true, Compared: KeysEnrolled}, KeysEnrolled},
	} {
		if got := JudgeKeys(c.state, c.facts, c.firmware); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}

// A root partition is made again only between the first boot and the second, and one that
// was in use never is.
func TestJudgeRoot(t *testing.T) {
	for root := RootAbsent; root <= RootDamaged; root++ {
		for keys := KeysUnneeded; keys <= KeysFinished; keys++ {
			for bits := range 8 {
				past := Past{Between: bits&1 != 0, Unlocked: bits&2 != 0, OwnKeys: bits&4 != 0}
				got := JudgeRoot(State{Root: root, Keys: keys}, past)
				used := past.Unlocked || keys == KeysEnrolled || keys == KeysUnneeded && past.OwnKeys
				switch {
				case root == RootAbsent || root == RootLocked || root == RootOpen:
					if got != root {
						t.Errorf("%d became %d with %+v", root, got, past)
					}
				case past.Between:
					if !got.Making() {
						t.Errorf("%d is not made again between the boots, but %d", root, got)
					}
				case used && got != RootDamaged:
					t.Errorf("%d of a machine in use (keys %d, %+v) would be made again", root, keys, past)
				case !used && root.Making() && got != root:
					t.Errorf("%d of a new machine became %d", root, got)
				case root == RootDamaged && got != RootDamaged:
					t.Errorf("a damaged header became %d", got)
				}
			}
		}
	}
}
