// Package pid1 ends every program but initagent when it is started as process 1.
// The initramfs is one program under many names, and a kernel command line from
// outside the UKI (rdinit=) may name another one: a shell that nobody has earned,
// before the PCRs are capped.
//
// It refuses by ending the process: the kernel then panics, and the machine starts
// again. Importing it is enough; it is the one thing here that happens before main.
package pid1

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// names are those under which initagent is started as process 1.
var names = []string{"init", "initagent"}

func init() {
	if err := check(os.Getpid(), os.Geteuid(), os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "halogen:", err)
		os.Exit(1)
	}
}

// check refuses the machine's process 1, which is root's. Another user's is that of a
// PID namespace, such as ota's worker.
func check(pid, user int, args []string) error {
	if pid != 1 || user != 0 || len(args) > 0 && slices.Contains(names, filepath.Base(args[0])) {
		return nil
	}
	return fmt.Errorf("only initagent may be process 1, and this is %q", args)
}
