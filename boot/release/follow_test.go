package release

import (
	"strings"
	"testing"

	"halogenos.internal/boot/contract"
)

// FAULTS 112 (R9): what a machine would refuse after the release that it has
func TestFollows(t *testing.T) {
	was := contract.Contract{ImageID: "os", Arch: "x86_64", Version: 1, Epoch: 2, SlotSize: 64 << 20, SecureBoot: contract.Required, TPM: contract.Required, RootFileSystem: "ext4"}
	for want, change := range map[string]func(c *contract.Contract){
		"":                      func(c *contract.Contract) { c.Version, c.Epoch, c.SlotSize = 2, 3, 2*c.SlotSize },
		"it is of image other":  func(c *contract.Contract) { c.ImageID = "other" },
		"for aarch64":           func(c *contract.Contract) { c.Arch = "aarch64" },
		"epoch 1 is lower":      func(c *contract.Contract) { c.Epoch = 1 },
		"slots of 32 MiB":       func(c *contract.Contract) { c.SlotSize /= 2 },
		"wants btrfs":           func(c *contract.Contract) { c.RootFileSystem = "btrfs" },
		"without Secure Boot":   func(c *contract.Contract) { c.SecureBoot = contract.Optional },
		"without a TPM":         func(c *contract.Contract) { c.TPM = contract.Optional },
		"only one of them has ": func(c *contract.Contract) { c.ReleaseKey = []byte("key") },
	} {
		is := was
		change(&is)
		if err := Follows(&was, &is); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	more := was
	was.SecureBoot, was.TPM = contract.Optional, contract.Optional
	if err := Follows(&was, &more); err != nil {
		t.Errorf("asking for more: %v", err)
	}
}
