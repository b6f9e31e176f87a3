package bootflow

import "halogenos.internal/boot/contract"

// Firmware is what is seen of the firmware's Secure Boot keys.
type Firmware struct {
	Enforces  bool // it starts signed images alone
	SetupMode bool // it is on
	// Compared is what they are beside those that this machine has noted as enrolled.
	Compared Keys
}

// JudgeKeys says how far this machine's Secure Boot keys have come. A machine in use has no
// list of what it enrolled within reach before its root partition is open; whether the
// firmware holds the same keys still is for PCR 7 to say. What the ESP says about it counts
// for nothing, since anybody can write there.
func JudgeKeys(s State, f Facts, firmware Firmware) Keys {
	switch {
	case f.Came(Enroll) == Done:
		return KeysFinished
	case hasRoot(s) && firmware.Enforces:
		return KeysEnrolled
	case hasRoot(s) && firmware.SetupMode:
		return KeysMissing
	case hasRoot(s):
		return KeysOff
	}
	if (firmware.Compared == KeysForeign || firmware.Compared == KeysOff) && f.SecureBoot == contract.Optional {
		return KeysUnneeded
	}
	return firmware.Compared
}

// Making reports whether a root partition in this condition is made, or made again.
func (r Root) Making() bool { return r == RootBlank || r == RootUnfinished }

// Past is what is known of the root partition's past.
type Past struct {
	Between  bool // the machine's first boot is over, and its second is not
	Unlocked bool // the ESP says that it was opened before
	OwnKeys  bool // the firmware starts what this machine's own keys have signed
}

// JudgeRoot tells a root partition that was never finished from one that was lost. Between
// its first boot, which cleared the place and made the keys, and the end of its second a
// machine may find anything there that a cut has left, and makes it again. After that it
// makes none, whatever the disk looks like.
func JudgeRoot(s State, past Past) Root {
	switch {
	case past.Between && s.Root == RootDamaged:
		return RootUnfinished
	case past.Between || !s.Root.Making():
		return s.Root
	case past.Unlocked || s.Keys == KeysEnrolled || s.Keys == KeysUnneeded && past.OwnKeys:
		return RootDamaged
	}
	return s.Root
}
