package image

import "halogenos.internal/builder/osfiles"

// initPath is what every machine starts once its root file system is in place.
const initPath = "sbin/init"

// idle warns of a root file system that has nothing to start: images for containers
// have no init.
func (b *build) idle() {
	if _, err := b.tree.Resolve(initPath); err != nil {
		b.Progress.Note("WARNING: the root file system has no /%s, which every machine starts: none would get further than that. Install an init system (Debian: the package systemd-sysv)", initPath)
	}
}

// makers are the Debian packages with the program that makes a root partition's file system.
var makers = map[string]string{"ext4": "e2fsprogs", "btrfs": "btrfs-progs"}

// rootless warns of a root file system whose machines could not make their root
// partition: they run mkfs out of the verified image.
func (b *build) rootless() {
	kind := b.Config.RootPartitionFormat
	if _, err := b.tree.Resolve("sbin/mkfs." + kind); err != nil {
		b.Progress.Note("WARNING: RootPartitionFormat is %s, and there is no /sbin/mkfs.%s: a new machine stops at its second boot. Install it (Debian: the package %s)", kind, kind, makers[kind])
	}
}

// choose has the UKI say what somebody who installs the image can choose from. Where that cannot
// be told, the installer asks nothing, and the first start does.
func (b *build) choose() {
	choices, err := osfiles.Choices(b.tree, b.Config)
	if err == nil && choices != nil {
		b.choices, err = choices.Encode()
	}
	if err != nil {
		b.choices = nil
		b.Progress.Note("WARNING: the installer of this image will not ask for a language, an account and the like, and its machines' first start will: %v", err)
	}
}
