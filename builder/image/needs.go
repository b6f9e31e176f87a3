package image

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"halogenos.internal/boot/contract"
	"halogenos.internal/builder/config"
)

// needs refuses a kernel that no machine of the image could start with, which
// else the first boot finds out.
func (b *build) needs() error {
	k := b.parts.kernel
	missing := b.index.Missing(b.modules, b.Config.TPM == contract.Required)
	if len(b.Config.Extensions) > 0 {
		missing = append(missing, b.index.MissingForExtensions(b.modules)...)
	}
	settings, err := b.kernelConfig()
	if err != nil {
		return err
	}
	if settings != nil {
		missing = append(missing, unset(settings, b.Config)...)
	}
	if len(missing) == 0 {
		return nil
	}
	list := "\n\t" + strings.Join(missing, "\n\t")
	if !b.index.Known() && settings == nil && !b.kernel.Exports {
		b.Progress.Note("WARNING: /%s has no modules.builtin.modinfo (`make modules_install` writes it), so it cannot be told whether kernel %s has what every machine needs:%s", k.modules, k.release, list)
		return nil
	}
	return fmt.Errorf("kernel %s lacks what every machine of this image needs to start:%s", k.release, list)
}

// wantedModules are the configuration's, and what only larger slots take (initagent/growslots):
// an ext4 is made smaller on a snapshot. A kernel without it builds, and grows no slots.
func wantedModules(c *config.Config) []config.Module {
	if c.RootPartitionFormat != "ext4" {
		return c.Modules
	}
	return append(slices.Clone(c.Modules), config.Module{Name: "dm_snapshot", Optional: true})
}

// canSwap refuses swap space that no machine of the image could have.
func (b *build) canSwap() error {
	if b.Config.Swap == 0 {
		return nil
	}
	for _, name := range []string{"loop", "dm_crypt"} {
		if _, err := b.index.Select([]config.Module{{Name: name}}); err != nil {
			return fmt.Errorf("for Swap= of [Image] the kernel needs the module %s, which %s does not have: take a kernel that has it, or say Swap=off", name, b.parts.kernel.release)
		}
	}
	return nil
}

// settings are what a kernel was configured with, by the name without "CONFIG_".
type settings map[string]string

const maxSettings = 4 << 20 // bytes

// kernelConfig reads the kernel's configuration: its own, or the file that
// distributions put beside it. It is nil where there is none.
func (b *build) kernelConfig() (settings, error) {
	k := b.parts.kernel
	text := b.kernel.Config
	for _, name := range []string{"boot/config-" + k.release, path.Join(k.modules, "config"), path.Join(k.modules, "build/.config")} {
		if text != "" {
			break
		}
		file, err := b.tree.ReadFile(name, maxSettings)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("configuration of the kernel: %w", err)
		}
		text = string(file)
	}
	if !strings.Contains(text, "\nCONFIG_") {
		return nil, nil
	}
	s := make(settings)
	for line := range strings.Lines(text) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			s[strings.TrimPrefix(key, "CONFIG_")] = value
		}
	}
	return s, nil
}

// unset lists what the kernel's configuration has switched off that cannot be a
// module.
func unset(s settings, c *config.Config) []string {
	wanted := []struct{ name, why string }{
		{"BLK_DEV_INITRD", "the initramfs"},
		{"RD_ZSTD", "the initramfs is compressed with zstd"},
		{"DEVTMPFS", "/dev"},
		{"TMPFS", "/run"},
		{"EFI_STUB", "the firmware starts it"},
		{"SECURITY_LOCKDOWN_LSM", "lockdown=integrity of the command line"},
		{"EROFS_FS_XATTR", "capabilities and other extended attributes of the system image"},
	}
	if s["MODULES"] == "y" {
		wanted = append(wanted, struct{ name, why string }{"MODULE_SIG", "module.sig_enforce=1 of the command line"})
	}
	method, _, _ := strings.Cut(c.Compression, ",")
	if name, ok := map[string]string{
		"lz4": "EROFS_FS_ZIP", "lz4hc": "EROFS_FS_ZIP", "lzma": "EROFS_FS_ZIP_LZMA", "deflate": "EROFS_FS_ZIP_DEFLATE", "zstd": "EROFS_FS_ZIP_ZSTD",
	}[method]; ok {
		wanted = append(wanted, struct{ name, why string }{name, "Compression=" + c.Compression + " of [Image]"})
	}
	var missing []string
	for _, w := range wanted {
		if s[w.name] != "y" {
			missing = append(missing, fmt.Sprintf("CONFIG_%s=y: %s", w.name, w.why))
		}
	}
	return missing
}
