// Livedebian is the first process of a live system for tests: it lays a file
// system in memory over the read-only image of a Debian, and becomes Debian's own
// first process. It knows nothing of how HalogenOS boots.
//
// The kernel hands it live=SERIAL of its command line in the environment: the disk
// with the image.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"halogenos.internal/initagent/hw"
)

// main ends in a panic of the kernel when something failed, and the machine with it.
func main() { fmt.Println("live system:", run()) }

// run returns only when something failed.
func run() error {
	for _, m := range []struct{ kind, at string }{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}, {"tmpfs", "/run"}} {
		if err := mount("none", m.at, m.kind, 0, ""); err != nil {
			return err
		}
	}
	kernel, err := hw.NewLinuxKernel("/sys", "/lib/modules")
	if err != nil {
		return err
	}
	for _, name := range []string{"virtio_pci", "virtio_blk", "crc32c_generic", "erofs", "overlay"} {
		if err := kernel.Load(name); err != nil {
			return err
		}
	}
	disk, err := find(os.Getenv("live"))
	if err != nil {
		return err
	}
	if err := mount(disk, "/run/image", "erofs", unix.MS_RDONLY, ""); err != nil {
		return err
	}
	for _, dir := range []string{"/run/upper", "/run/work"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	if err := mount("none", "/sysroot", "overlay", 0, "lowerdir=/run/image,upperdir=/run/upper,workdir=/run/work"); err != nil {
		return err
	}
	if err := enter("/sysroot"); err != nil {
		return err
	}
	return fmt.Errorf("start /sbin/init: %w", unix.Exec("/sbin/init", []string{"/sbin/init"}, []string{"HOME=/", "TERM=vt220"}))
}

func mount(source, at, kind string, flags uintptr, options string) error {
	if err := os.MkdirAll(at, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(source, at, kind, flags, options); err != nil {
		return fmt.Errorf("mount %s at %s: %w", kind, at, err)
	}
	return nil
}

// find waits for the disk with a serial number.
func find(serial string) (string, error) {
	for range 300 {
		paths, err := filepath.Glob("/sys/block/*/serial")
		if err != nil {
			return "", err
		}
		for _, path := range paths {
			b, err := os.ReadFile(path)
			if err == nil && strings.TrimSpace(string(b)) == serial {
				return "/dev/" + filepath.Base(filepath.Dir(path)), nil
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	return "", fmt.Errorf("no disk has the serial number %q", serial)
}

// enter makes a directory the root of everything (the kernel's initramfs cannot be
// unmounted).
func enter(root string) error {
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move %s to /: %w", root, err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	return os.Chdir("/")
}
