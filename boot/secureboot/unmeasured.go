package secureboot

import "halogenos.internal/boot/gpt"

// Namespaces of the shim boot loader (MokVars.txt of its source) and of systemd
// (https://systemd.io/SYSTEMD_EFI_VARIABLES/).
var (
	shimVariables    = gpt.MustGUID("605dab50-e046-4300-abb6-3dd810dd8b23")
	systemdVariables = gpt.MustGUID("8cf2644b-4b0b-428f-9387-6d876050dc67")
)

// An Unmeasured variable is obeyed by what runs later, and neither firmware nor UKI
// measures it: whoever was root once, or at a console, could store it for good.
type Unmeasured struct {
	Name   string
	Vendor gpt.GUID
	// Early: the kernel obeys it before process 1 runs. Taken away, it counts from the
	// next start on.
	Early bool
	Does  string // what it does, after "which"
}

// UnmeasuredVariables are all that Linux 6.18 and systemd 259 obey.
//
// Where shim starts a system, it sets those of its namespace at each start, as variables
// that do not outlive it. Nothing here is started by shim: there are none of these, and
// the kernel takes what somebody has stored under their names
// (security/integrity/platform_certs/load_uefi.c, machine_keyring.c and efi/libstub).
var UnmeasuredVariables = []Unmeasured{
	{"MokListRT", shimVariables, true, "gives the kernel further keys that it trusts kernel modules by"},
	{"MokListXRT", shimVariables, true, "takes keys away from the kernel"},
	{"MokListTrustedRT", shimVariables, true, "gives the kernel further keys that it trusts kernel modules by"},
	{"MokIgnoreDB", shimVariables, true, "keeps the kernel from the keys of this machine's db"},
	{"SystemdOptions", systemdVariables, false, "adds to the kernel command line that systemd obeys"},
}

// Planted reports whether a variable with these attributes was stored by somebody: what
// a program of this very start has set, which the firmware measured, is gone with it.
func (Unmeasured) Planted(attributes uint32) bool { return attributes&NonVolatile != 0 }
