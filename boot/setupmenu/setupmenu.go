// Package setupmenu says in the words of a machine's own firmware how its Secure Boot keys
// are cleared (Setup Mode: UEFI 2.10, section 32.3), so that a person finds it there.
//
// It refuses to know better than the firmware: menus differ from model to model, so it
// names where to look, and what it must not be confused with.
package setupmenu

import (
	"io/fs"
	"strings"
)

// A Menu is what one maker's firmware calls it.
type Menu struct {
	// Key opens the firmware's setup at power-on.
	Key string
	// Clear leads to what clears the keys.
	Clear string
	// Beware is what goes wrong there otherwise; may be empty.
	Beware string
}

// String is the way in one sentence.
func (m Menu) String() string {
	s := m.Key + " at power-on opens the setup; there: " + m.Clear
	if m.Beware != "" {
		s += " (" + m.Beware + ")"
	}
	return s
}

// provisioned is AMI's option, on by default, which most makers took over.
const provisioned = "where there is Provision Factory Default Keys, switch it off first, or the keys come back at the next start"

// menus are by what the makers' names begin with in SMBIOS, in small letters.
var menus = []struct {
	makers []string
	menu   Menu
}{
	{[]string{"lenovo"}, Menu{"F1 (ThinkPad, ThinkCentre) or F2", "Security, Secure Boot, Reset to Setup Mode or Clear All Secure Boot Keys", "not Restore Factory Keys"}},
	{[]string{"dell", "alienware"}, Menu{"F2", "Secure Boot or Boot Configuration, Expert Key Management: switch Custom Mode on, then Delete All Keys", "the menu is there while Secure Boot is on"}},
	{[]string{"hp", "hewlett-packard"}, Menu{"Esc and then F10", "Security, Secure Boot Configuration, Clear Secure Boot Keys", "switch Sure Start Secure Boot Keys Protection off first, where it is there; the next start wants a code typed that it shows"}},
	{[]string{"hpe"}, Menu{"F9", "BIOS/Platform Configuration, Server Security, Secure Boot Settings, Advanced Secure Boot Options, Delete all keys", ""}},
	{[]string{"asustek", "asus"}, Menu{"F2 or Del", "Boot or Security, Secure Boot, Key Management, Clear Secure Boot Keys or Reset to Setup Mode", "OS Type stays at Windows UEFI Mode: Other OS switches Secure Boot off"}},
	{[]string{"micro-star", "msi"}, Menu{"Del", "Settings, Security, Secure Boot: Secure Boot Mode Custom; Key Management, Delete all Secure Boot variables", provisioned}},
	{[]string{"gigabyte"}, Menu{"Del or F2", "Boot or Security, Secure Boot: Secure Boot Mode Custom; Reset to Setup Mode, or Key Management, Delete all Secure Boot Variables", provisioned}},
	{[]string{"asrock"}, Menu{"F2 or Del", "Security, Secure Boot: Secure Boot Mode Custom; Key Management, Reset to Setup Mode", provisioned}},
	{[]string{"acer", "packard bell", "gateway"}, Menu{"F2", "Security: set a supervisor password, then Erase all Secure Boot Setting; desktops: Key Management, Reset To Setup Mode", "where there is Default Key Provisioning, switch it off first"}},
	{[]string{"framework"}, Menu{"F2", "Administer Secure Boot, Erase all Secure Boot Settings", "where the keys are back at the next start: PK Options, and delete the PK alone"}},
	{[]string{"intel"}, Menu{"F2", "Boot, Secure Boot, Clear Secure Boot Data", ""}},
	{[]string{"supermicro", "super micro"}, Menu{"Del", "Security, Secure Boot: Secure Boot Mode Custom; Key Management, Reset to Setup Mode or Delete All Secure Boot Variables", provisioned}},
	{[]string{"qemu"}, Menu{"Esc", "Device Manager, Secure Boot Configuration: Secure Boot Mode Custom Mode; Custom Secure Boot Options, PK Options, Delete Pk", ""}},
}

// Of returns the menu of the machine that this /sys is of.
func Of(sys fs.FS) (m Menu, known bool) {
	name := func(attribute string) string {
		b, _ := fs.ReadFile(sys, "class/dmi/id/"+attribute) // absent is empty
		return string(b)
	}
	return For(name("sys_vendor"), name("board_vendor"))
}

// For returns the menu of a machine by SMBIOS: its maker, or that of its mainboard where
// somebody has built it of parts.
func For(maker, board string) (m Menu, known bool) {
	for _, name := range []string{maker, board} {
		name = strings.ToLower(strings.TrimSpace(name))
		for _, one := range menus {
			for _, begins := range one.makers {
				rest, is := strings.CutPrefix(name, begins)
				if is && (rest == "" || strings.ContainsAny(rest[:1], " ,.(-")) {
					return one.menu, true
				}
			}
		}
	}
	return Menu{}, false
}
