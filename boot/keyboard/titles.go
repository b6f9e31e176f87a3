package keyboard

import "strings"

// titles are what those call the keyboards of the keymaps who use them, in characters that the
// font of the kernel's console has.
var titles = map[string]string{
	"us": "English (US)", "de": "Deutsch", "at": "Deutsch (Österreich)", "ch": "Deutsch (Schweiz)", "ch-fr": "Français (Suisse)",
	"fr": "Français (AZERTY)", "bepo": "Français (BÉPO)", "be": "Belgisch, Belge", "nl": "Nederlands", "gb": "English (UK)",
	"es": "Español", "latam": "Español (Latinoamérica)", "pt": "Português", "br": "Português (Brasil)", "it": "Italiano",
	"ca": "Français (Canada)", "dk": "Dansk", "no": "Norsk", "se": "Svenska", "fi": "Suomi", "is": "Icelandic", "ee": "Eesti",
	"lv": "Latvian", "pl": "Polski", "cz": "Czech (QWERTZ)", "cz-qwerty": "Czech (QWERTY)", "sk": "Slovak", "hu": "Magyar",
	"ro": "Romanian", "si": "Slovenian", "hr": "Hrvatski", "rs-latin": "Srpski (latinica)", "tr": "Türkçe (Q)", "tr-f": "Türkçe (F)",
	"dvorak": "Dvorak", "dvorak-l": "Dvorak (left hand)", "dvorak-r": "Dvorak (right hand)", "dvp": "Programmer Dvorak",
	"colemak": "Colemak", "colemak-dh": "Colemak-DH", "workman": "Workman",
}

// Title is what the keyboard is called by those who use it.
func (k Keymap) Title() string { return titles[k.Name] }

// Layout is the keyboard by its name in xkeyboard-config, as answers.Keyboard takes it.
func (k Keymap) Layout() string {
	if !strings.Contains(k.xkb, "(") {
		return k.Name // Finland's keys are Sweden's there, by its own name
	}
	return k.xkb
}
