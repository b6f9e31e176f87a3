// Command ota updates this system: it fetches releases into the other slot,
// keeps the one that runs, and gives it up.
package main

import (
	"os"

	"halogenos.internal/uroot-cmds/ota/cli"
	"halogenos.internal/uroot-cmds/ota/machine"
)

func main() {
	os.Exit(cli.Run(os.Args[1:], cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}, machine.Linux))
}
