package image

// initPath is what every machine starts once its root file system is in place.
const initPath = "sbin/init"

// idle warns of a root file system that has nothing to start: images for containers
// have no init.
func (b *build) idle() {
	if _, err := b.tree.Resolve(initPath); err != nil {
		b.Progress.Note("WARNING: the root file system has no /%s, which every machine starts: none would get further than that. Install an init system (Debian: the package systemd-sysv)", initPath)
	}
}
