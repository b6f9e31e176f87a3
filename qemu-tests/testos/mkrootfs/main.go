// Command mkrootfs assembles the root file system of the test operating system:
//
//	mkrootfs -debian TREE -init PROGRAM -config uki.conf -out DIRECTORY
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"

	"halogenos.internal/qemu-tests/testos"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "mkrootfs:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	flags := flag.NewFlagSet("mkrootfs", flag.ContinueOnError)
	var o testos.Options
	flags.StringVar(&o.Debian, "debian", "", "unpacked Debian with linux-image-amd64, systemd-boot-efi and e2fsprogs")
	flags.StringVar(&o.Init, "init", "", "program made from qemu-tests/testos/init with CGO_ENABLED=0")
	flags.StringVar(&o.Config, "config", "", "the uki.conf that the image will be built with: its modules are taken along")
	flags.StringVar(&o.Out, "out", "", "directory to fill; absent or empty")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if o.Debian == "" || o.Init == "" || o.Out == "" || flags.NArg() > 0 {
		return errors.New("-debian, -init and -out are needed, and nothing else is taken")
	}
	return testos.Make(o)
}
