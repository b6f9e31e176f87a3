package osfiles

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"halogenos.internal/builder/rootfs"
)

// fwupd's programs and settings in an image (fwupd 2).
const (
	fwupdPrograms = "usr/libexec/fwupd/efi/"
	fwupdSettings = "etc/fwupd/fwupd.conf"
	fwupdDaemon   = "usr/libexec/fwupd/fwupd"
	maxSettings   = 1 << 20

	fwupdSection = "[uefi_capsule]"
	withoutShim  = "DisableShimForSecureBoot"
)

// letFwupdStart has fwupd start its EFI program by itself, which machines sign with their
// own key, and not by way of shim, which no machine has. What the distributor has set stays.
func letFwupdStart(t *rootfs.Tree, date time.Time) (notes []string, err error) {
	there := func(name string) bool { _, err := t.Resolve(name); return err == nil }
	if !slices.ContainsFunc([]string{"fwupdx64.efi", "fwupdx64.efi.signed"}, func(name string) bool { return there(fwupdPrograms + name) }) {
		if there(fwupdDaemon) {
			notes = append(notes, fmt.Sprintf("fwupd has no /%sfwupdx64.efi (Debian: fwupd-unsigned; Gentoo: sys-apps/fwupd-efi): it cannot update the firmware itself", fwupdPrograms))
		}
		return notes, nil
	}
	text, err := t.ReadFile(fwupdSettings, maxSettings)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, t.AddFile(fwupdSettings, []byte(startDirectly("")), 0o640, date)
	}
	if err != nil {
		return nil, err
	}
	if value, set := shimSetting(string(text)); set {
		if value != "true" {
			notes = append(notes, fmt.Sprintf("/%s has %s=%s: fwupd looks for a shim that no machine has, and cannot update the firmware itself", fwupdSettings, withoutShim, value))
		}
		return notes, nil
	}
	return nil, t.Replace(fwupdSettings, []byte(startDirectly(string(text))))
}

// shimSetting is the value of the setting; the last one counts, as in a GKeyFile.
func shimSetting(text string) (value string, set bool) {
	section := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			section = line
		}
		if key, v, ok := strings.Cut(line, "="); ok && section == fwupdSection && strings.TrimSpace(key) == withoutShim {
			value, set = strings.ToLower(strings.TrimSpace(v)), true
		}
	}
	return value, set
}

// startDirectly adds the setting to fwupd's settings: a group that is there twice is one.
func startDirectly(text string) string {
	if text != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	return text + "\n" + fwupdSection + "\n# Machines sign fwupdx64.efi with their own key; there is no shim.\n" + withoutShim + "=true\n"
}
