package main

import (
	"context"
	"strings"
)

// versions of the tools that are compared.
func (b *bench) versions(ctx context.Context) map[string]string {
	versions := map[string]string{}
	here := func(name string, args ...string) {
		words := strings.Fields(said(ctx, name, args...))
		for _, w := range words {
			if w = strings.Trim(w, "(),"); w != "" && w[0] >= '0' && w[0] <= '9' {
				versions[name] = w
				return
			}
		}
	}
	here("veritysetup", "--version")
	here("pigz", "--version")
	here("sgdisk", "--version")
	here("mtools", "--version")
	here("qemu-system-x86_64", "--version")
	versions["erofs-utils"] = said(ctx, "dpkg-query", "-W", "-f", "${Version}", "erofs-utils") // this machine's, which builds
	for _, root := range []string{b.tools, b.chroot} {
		for _, p := range []string{"systemd-ukify", "initramfs-tools-core", "dracut-core", "linux-image-amd64"} {
			if v := said(ctx, "dpkg-query", "--root="+root, "-W", "-f", "${Version}", p); v != "unknown" && v != "" {
				versions[p] = v
			}
		}
	}
	return versions
}
