package layout

// Names on the ESP, and what systemd calls the files that are taken from a root file
// system, for x86-64.
const (
	// RemovableManager is what firmware starts unasked (UEFI 2.10, section 3.5.1.1).
	RemovableManager = "EFI/BOOT/BOOTX64.EFI"
	// Manager is the same boot manager where its own tools look for it.
	Manager = "EFI/systemd/systemd-bootx64.efi"
	// LoaderConf has the boot manager's settings.
	LoaderConf = "loader/loader.conf"

	// SystemManager is the boot manager in a root file system, SystemStub the UKI stub.
	SystemManager = "usr/lib/systemd/boot/efi/systemd-bootx64.efi"
	SystemStub    = "usr/lib/systemd/boot/efi/linuxx64.efi.stub"
)

// Managers are the names of the boot manager on the ESP. The one that the machine cannot
// do without comes last.
func Managers() []string { return []string{Manager, RemovableManager} }
