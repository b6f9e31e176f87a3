package secureboot

import (
	"slices"

	"halogenos.internal/boot/gpt"
)

// Namespaces of the shim boot loader (MokVars.txt of its source), of systemd
// (https://systemd.io/SYSTEMD_EFI_VARIABLES/) and of the boot loader interface
// (https://systemd.io/BOOT_LOADER_INTERFACE/).
var (
	shimVariables    = gpt.MustGUID("605dab50-e046-4300-abb6-3dd810dd8b23")
	systemdVariables = gpt.MustGUID("8cf2644b-4b0b-428f-9387-6d876050dc67")
	loaderVariables  = gpt.MustGUID("4a67b082-0a4c-41cf-b6c7-440b29bb8c4f")
)

// An Unmeasured variable is obeyed by what runs later, and neither firmware nor UKI
// measures it: anyone who was root once, or at a console, could store it for good.
type Unmeasured struct {
	Name   string
	Vendor gpt.GUID
	// Early: the kernel obeys it before process 1 runs. Taken away, it counts from the
	// next start on.
	Early bool
	// Ignored: process 1 takes no notice of one that was stored, so that one which cannot
	// be deleted stops nothing.
	Ignored bool
	Does    string // what it does, after "which"
}

// UnmeasuredVariables are all that Linux 6.18 and systemd 259 obey, and of the boot loader
// interface those that process 1 goes by.
//
// Where shim starts a system, it sets those of its namespace at each start, as variables
// that do not outlive it. Nothing here is started by shim: there are none of these, and
// the kernel takes what somebody has stored under their names
// (security/integrity/platform_certs/load_uefi.c, machine_keyring.c and efi/libstub).
//
// systemd-boot and its stub set those of the loader interface, as volatile ones, and leave
// what somebody has stored under their names. What the interface keeps over a restart
// (LoaderEntryDefault, LoaderEntryOneShot, LoaderConfigTimeout, LoaderSystemToken and
// their like) is not among them, and is its owner's.
var UnmeasuredVariables = []Unmeasured{
	{"MokListRT", shimVariables, true, false, "gives the kernel further keys that it trusts kernel modules by"},
	{"MokListXRT", shimVariables, true, false, "takes keys away from the kernel"},
	{"MokListTrustedRT", shimVariables, true, false, "gives the kernel further keys that it trusts kernel modules by"},
	{"MokIgnoreDB", shimVariables, true, false, "keeps the kernel from the keys of this machine's db"},
	{"SystemdOptions", systemdVariables, false, false, "adds to the kernel command line that systemd obeys"},
	{"LoaderBootCountPath", loaderVariables, false, true, "says that a system is on trial"},
	{"LoaderDevicePartUUID", loaderVariables, false, true, "says which disk the machine was started from"},
	{"StubImageIdentifier", loaderVariables, false, true, "says which file the system was started from"},
}

// Planted reports whether a variable with these attributes was stored by somebody: what
// a program of this very start has set, which the firmware measured, is gone with it.
func (Unmeasured) Planted(attributes uint32) bool { return attributes&NonVolatile != 0 }

// Obeyed reports whether a variable is one of UnmeasuredVariables that counts for somebody
// where it was stored: that it is absent must be the firmware's word.
func Obeyed(name string, vendor gpt.GUID) bool {
	return slices.ContainsFunc(UnmeasuredVariables, func(v Unmeasured) bool {
		return v.Name == name && v.Vendor == vendor && !v.Ignored
	})
}
