package osfiles

import (
	"fmt"
	"slices"
	"strings"

	"halogenos.internal/builder/config"
	"halogenos.internal/builder/rootfs"
)

// swapPrograms are what /usr/lib/halogen/swap runs and not every system has.
var swapPrograms = []string{"cryptsetup", "losetup", "mkswap", "swapon", "swapoff", "mountpoint"}

// canSwap refuses swap space that no machine of the image could have, and returns what
// is left to the distributor.
func canSwap(t *rootfs.Tree, c *config.Config) (notes []string, err error) {
	programs := swapPrograms
	if c.RootPartitionFormat == "btrfs" {
		programs = append(programs[:len(programs):len(programs)], "chattr")
	}
	if missing := lacks(t, programs); len(missing) > 0 {
		return nil, fmt.Errorf("for Swap= of [Image] the root file system needs %s: install util-linux, cryptsetup and, with btrfs, e2fsprogs, or say Swap=off", strings.Join(missing, ", "))
	}
	if !t.HasSystemd() {
		notes = append(notes, "Swap= of [Image] takes effect where the system's init runs `/usr/lib/halogen/swap start` at each start, once loop devices can be made, and `stop` at its end")
	}
	return notes, nil
}

// lacks returns the programs that are nowhere in the image where a service finds them.
func lacks(t *rootfs.Tree, programs []string) (missing []string) {
	for _, name := range programs {
		there := func(directory string) bool {
			_, err := t.Resolve(directory + "/" + name)
			return err == nil
		}
		if !slices.ContainsFunc([]string{"usr/sbin", "usr/bin", "sbin", "bin"}, there) {
			missing = append(missing, name)
		}
	}
	return missing
}

// swapSettings is the image's swap.conf.
func swapSettings(c *config.Config) string {
	return fmt.Sprintf("# How much swap space this system has: a number with M or G, or off. /etc/halogen/swap.conf\n# goes over it, from the next start on.\nSize=%dM\n", c.Swap>>20)
}
