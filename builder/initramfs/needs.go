package initramfs

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// A need is something of the kernel that a machine cannot start without. One of
// the modules has it, or any that has the alias.
type need struct {
	what    string
	modules []string
	alias   string
}

// needs are what initagent loads and what that uses.
var needs = []need{
	{"dm-verity, which checks the system image", []string{"dm_verity"}, ""},
	{"EROFS, the system image's file system", []string{"erofs"}, ""},
	{"SHA-256, for dm-verity", []string{"sha256", "sha256_generic", "libsha256"}, "crypto-sha256"},
	{"overlayfs, for /etc", []string{"overlay"}, ""},
	{"dm-crypt, which encrypts the root partition", []string{"dm_crypt"}, ""},
	{"AES, for dm-crypt", []string{"aes", "aes_generic", "libaes"}, "crypto-aes"},
	{"XTS, for dm-crypt", []string{"xts"}, ""},
	{"VFAT, the EFI system partition's file system", []string{"vfat"}, ""},
	// The kernel's configuration says which (CONFIG_FAT_DEFAULT_*).
	{"a code page for VFAT", []string{"nls_cp437", "nls_cp850", "nls_cp852", "nls_cp866", "nls_cp932", "nls_cp936"}, ""},
	{"a character set for VFAT's long names", []string{"nls_ascii", "nls_iso8859_1", "nls_iso8859_15", "nls_utf8"}, ""},
	{"efivarfs, which shows the firmware's variables", []string{"efivarfs"}, ""},
}

// tpmNeed is one more for machines that must have a TPM.
var tpmNeed = need{"a driver of a TPM", []string{"tpm_crb", "tpm_tis"}, ""}

// Known reports whether the modules' directory tells what the kernel has built
// in. `make modules_install` writes modules.builtin.modinfo since Linux 5.2;
// without it the list of names may be anybody's.
func (x *Index) Known() bool { return x.modinfo }

// Missing returns what the machine needs that the kernel has neither built in
// nor as one of the selected modules, a line each.
func (x *Index) Missing(selected []string, tpm bool) []string {
	all := needs
	if tpm {
		all = append(slices.Clone(needs), tpmNeed)
	}
	return x.missing(all, selected)
}

// extensionNeeds are those of a release with extensions: each is a file of the root partition.
var extensionNeeds = []need{{"loop devices, by which extensions are opened", []string{"loop"}, ""}}

// MissingForExtensions is Missing for what a machine needs besides where its release has
// extensions: without it they would be left out, or stop the boot where one is essential.
func (x *Index) MissingForExtensions(selected []string) []string {
	return x.missing(extensionNeeds, selected)
}

func (x *Index) missing(all []need, selected []string) []string {
	var missing []string
	for _, n := range all {
		names := append(slices.Clone(n.modules), x.aliases[n.alias]...)
		has := func(name string) bool { return x.builtins[name] || slices.Contains(selected, name) }
		if slices.ContainsFunc(names, has) || n.alias != "" && x.builtinAliases[n.alias] {
			continue
		}
		there := slices.DeleteFunc(names, func(name string) bool { return x.paths[name] == "" })
		if len(there) == 0 {
			missing = append(missing, fmt.Sprintf("%s (%s): the kernel was built without it", n.what, strings.Join(n.modules, " or ")))
			continue
		}
		missing = append(missing, fmt.Sprintf("%s: add %s to Modules in [Initramfs]", n.what, there[0]))
	}
	return missing
}

// readModinfo reads modules.builtin.modinfo: `module.key=value` with a zero
// byte after each. A kernel of before 5.2 has none.
func (x *Index) readModinfo(files Files) error {
	text, err := files.ReadFile(path.Join(x.dir, "modules.builtin.modinfo"), maxIndex)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("index of the kernel's modules: %w", err)
	}
	x.modinfo = true
	for entry := range strings.SplitSeq(string(text), "\x00") {
		key, value, _ := strings.Cut(entry, "=")
		name, key, _ := strings.Cut(key, ".")
		if key == "alias" {
			x.builtinAliases[value] = true
		}
		if name != "" {
			x.builtins[canonical(name)] = true
		}
	}
	return nil
}
