// Package setupmenu says in the words of a machine's own firmware how its Secure Boot keys
// are cleared (Setup Mode: UEFI 2.10, section 32.3), so that a person finds it there.
//
// It refuses to know better than the firmware: menus differ from model to model, so it
// names where to look, and what it must not be confused with.
package setupmenu

import (
	"io/fs"
	"strings"

	"halogenos.internal/boot/words"
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

// String is the way in one sentence, in English.
func (m Menu) String() string { return m.Line().String() }

// Line is the way in one sentence.
func (m Menu) Line() words.Line {
	if m.Beware == "" {
		return words.Linef(words.SetupWay, words.Fixed(m.Key), words.Fixed(m.Clear))
	}
	return words.Linef(words.SetupWayBeware, words.Fixed(m.Key), words.Fixed(m.Clear), words.Fixed(m.Beware))
}

// provisioned is AMI's option, on by default, which most makers took over.
const provisioned = words.SetupProvisioned

// menus are by what the makers' names begin with in SMBIOS, in small letters.
var menus = []struct {
	makers []string
	menu   Menu
}{
	{[]string{"lenovo"}, Menu{words.SetupKeyLenovo, words.SetupLenovo, words.SetupLenovoBeware}},
	{[]string{"dell", "alienware"}, Menu{"F2", words.SetupDell, words.SetupDellBeware}},
	{[]string{"hp", "hewlett-packard"}, Menu{words.SetupKeyHP, "Security, Secure Boot Configuration, Clear Secure Boot Keys", words.SetupHPBeware}},
	{[]string{"hpe"}, Menu{"F9", "BIOS/Platform Configuration, Server Security, Secure Boot Settings, Advanced Secure Boot Options, Delete all keys", ""}},
	{[]string{"asustek", "asus"}, Menu{words.SetupKeyF2Del, words.SetupAsus, words.SetupAsusBeware}},
	{[]string{"micro-star", "msi"}, Menu{words.SetupKeyDel, "Settings, Security, Secure Boot: Secure Boot Mode Custom; Key Management, Delete all Secure Boot variables", provisioned}},
	{[]string{"gigabyte"}, Menu{words.SetupKeyDelF2, words.SetupGigabyte, provisioned}},
	{[]string{"asrock"}, Menu{words.SetupKeyF2Del, "Security, Secure Boot: Secure Boot Mode Custom; Key Management, Reset to Setup Mode", provisioned}},
	{[]string{"acer", "packard bell", "gateway"}, Menu{"F2", words.SetupAcer, words.SetupAcerBeware}},
	{[]string{"framework"}, Menu{"F2", "Administer Secure Boot, Erase all Secure Boot Settings", words.SetupFrameworkBeware}},
	{[]string{"intel"}, Menu{"F2", "Boot, Secure Boot, Clear Secure Boot Data", ""}},
	{[]string{"supermicro", "super micro"}, Menu{words.SetupKeyDel, words.SetupSupermicro, provisioned}},
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
