package handover

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/rootpart"
)

// SystemShared is where the running system sees rootpart.Shared.
const SystemShared = "/var/lib/halogen"

// mountShared shows it to the running system. No program but ours wants it, so
// it is not worth a boot.
func mountShared(h *host.Host) {
	err := rootpart.MakeShared(h.Store)
	if err == nil {
		err = bindShared(h)
	}
	if err != nil {
		h.Log.Say("the system does not see the boot journal, and cannot be updated: %v", err)
	}
}

func bindShared(h *host.Host) error {
	target, err := directoryInSystem(h, SystemShared)
	if err != nil {
		return err
	}
	return h.Mount(h.Path(rootpart.Directory, rootpart.Shared), target, "", unix.MS_BIND, "")
}

// directoryInSystem makes a directory of the system where it is missing. What an
// earlier run of the system has put in its place must not lead out of the
// system: a link would be followed from the initramfs.
func directoryInSystem(h *host.Host, name string) (string, error) {
	at := h.Path(host.SystemDirectory)
	for part := range strings.SplitSeq(strings.Trim(name, "/"), "/") {
		at = path.Join(at, part)
		info, err := os.Lstat(at)
		if errors.Is(err, fs.ErrNotExist) {
			if err = os.Mkdir(at, 0o755); err == nil {
				info, err = os.Lstat(at)
			}
		}
		if err != nil {
			return "", err
		}
		if !info.IsDir() {
			return "", fmt.Errorf("%s of the system is no directory (%s)", strings.TrimPrefix(at, h.Path(host.SystemDirectory)), info.Mode())
		}
	}
	return at, nil
}
