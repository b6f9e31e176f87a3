package image

import (
	"fmt"

	"halogenos.internal/boot/contract"
	"halogenos.internal/builder/config"
	"halogenos.internal/builder/modules"
)

// A kernel trusts a certificate for modules that is built into it. Another one gets there
// through the firmware's db, and only if the kernel looks there: mainline's does not. No
// other way is left on these machines, since there is no shim whose list a kernel would read,
// and initagent deletes what pretends to be such a list.

// canTrust refuses ModuleTrust=db for a kernel that does not take db's certificates for
// modules, or of which that cannot be told.
func (b *build) canTrust() error {
	if b.Config.ModuleTrust != config.TrustByDB {
		return nil
	}
	settings, err := b.kernelConfig()
	if err != nil {
		return err
	}
	const instead = "build the certificate into the kernel (CONFIG_SYSTEM_TRUSTED_KEYS) and say ModuleTrust=kernel, or take a kernel with that patch, as Debian's and Ubuntu's have it"
	release := b.parts.kernel.release
	for _, name := range []string{"INTEGRITY_PLATFORM_KEYRING", "LOAD_UEFI_KEYS"} {
		if settings != nil && settings[name] != "y" {
			return fmt.Errorf("for ModuleTrust=db of [Image] kernel %s needs CONFIG_%s=y, by which it reads the firmware's db, and the patch \"KEYS: Make use of platform keyring for module signature verify\": %s", release, name, instead)
		}
	}
	switch b.kernel.DB {
	case modules.DBTaken:
		return nil
	case modules.DBUnused:
		return fmt.Errorf("for ModuleTrust=db of [Image] the kernel has to verify modules by the firmware's db as well, and %s verifies them by its built-in certificates alone, as mainline does: it lacks the patch \"KEYS: Make use of platform keyring for module signature verify\": %s", release, instead)
	}
	return fmt.Errorf("for ModuleTrust=db of [Image] the kernel has to verify modules by the firmware's db as well, and of %s that cannot be told: where it calls verify_pkcs7_signature for a module was not found in its code: %s", release, instead)
}

// loadsOwn refuses modules that no machine would load: those that only ModuleKey vouches for,
// where the kernel does not have it built in and db does not get it.
func (b *build) loadsOwn(own int) error {
	if own == 0 {
		return nil
	}
	if b.Config.ModuleTrust == config.TrustByDB {
		b.Progress.Note("%d modules are signed with ModuleKey, which is not built into the kernel: a machine loads them once its owner has agreed that db gets the certificate", own)
		return nil
	}
	return fmt.Errorf("%d modules are signed with ModuleKey, whose certificate kernel %s does not have built in, so that no machine would load them: build the kernel with the certificate in CONFIG_SYSTEM_TRUSTED_KEYS, or say ModuleTrust=db in [Image]", own, b.parts.kernel.release)
}

// moduleTrust is the archive of the initramfs that has the certificate for db; empty where
// there is none.
func (b *build) moduleTrust() ([]byte, error) {
	if b.Config.ModuleTrust != config.TrustByDB {
		return nil, nil
	}
	return contract.ModuleKeyArchive(b.Config.ModuleKey.Raw)
}
