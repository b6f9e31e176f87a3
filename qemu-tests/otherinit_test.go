package qemutests

import (
	"testing"

	"halogenos.internal/builder/vm"
)

// TestOtherInit: a command line from outside the UKI names the console's shell as
// the first process. It ends, and the kernel with it. FAULTS 77
func TestOtherInit(t *testing.T) {
	t.Parallel()
	g := Machine(t, Options{State: provisioned(t).State, VM: vm.Options{
		SMBIOS: []string{"io.systemd.stub.kernel-cmdline-extra=rdinit=/bin/sh"},
	}})
	g.Expect(`only initagent may be process 1, and this is \["/bin/sh"\]`)
	g.Expect(`Attempted to kill init`)
}
