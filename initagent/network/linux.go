package network

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"time"

	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/sysimage"
)

// firmwarePath is where the kernel is told of one more directory with firmware (kernel
// documentation, driver-api/firmware/fw_search_path.rst).
const firmwarePath = "/sys/module/firmware_class/parameters/path"

// Linux is the machine that this runs on.
func Linux(say func(format string, args ...any)) (*Machine, error) {
	kernel, err := hw.NewLinuxKernel("/sys", "/lib/modules")
	if err != nil {
		return nil, err
	}
	m := hw.Linux(kernel, "", "")
	return &Machine{
		Root: "/", OpenSystem: func() (string, error) { return sysimage.Open(m, "/") }, LoadDrivers: loadDrivers,
		Interfaces: net.Interfaces, Addresses: addresses, Lease: dhclient, Say: say, Sleep: time.Sleep,
	}, nil
}

func loadDrivers(modules string) error {
	// A driver may want firmware, which lies beside the modules.
	firmware := filepath.Join(filepath.Dir(modules), "firmware")
	if _, err := os.Stat(firmware); err == nil {
		// Without it drivers say what they lack.
		_ = os.WriteFile(firmwarePath, []byte(firmware), 0)
	}
	kernel, err := hw.NewLinuxKernel("/sys", modules)
	if err != nil {
		return err
	}
	_ = kernel.Load("af_packet") // DHCP needs it; mostly the kernel has it built in
	_, err = kernel.ColdplugOnly(isDriver)
	return err
}

func addresses(name string) ([]net.Addr, error) {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return nil, err
	}
	return i.Addrs()
}

// dhclient runs u-root's, which sets the interface up, its address, the routes and
// the name servers. Its exit code says nothing.
func dhclient(ctx context.Context, name string) string {
	cmd := exec.CommandContext(ctx, "/bin/dhclient", "-ipv6=false", "-timeout", "5", "-retry", "3", "^"+regexp.QuoteMeta(name)+"$")
	said, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Sprintf("%sdhclient %s: %v\n", said, name, err)
	}
	return string(said)
}
