// Command deb makes a Debian package of what `make install` has put into a directory.
//
// It writes the package itself, which is two tar archives in a third of the oldest
// kind: so it needs no Debian, and the same tree gives the same bytes on every machine,
// which dpkg-deb of different releases does not promise. It refuses what the package
// of a few programs has no use for: devices, sockets, and files that belong to users.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "deb:", err)
		os.Exit(1)
	}
}

func run(args []string) (err error) {
	var root, version, arch, maintainer, out string
	var date int64
	f := flag.NewFlagSet("deb", flag.ContinueOnError)
	f.StringVar(&root, "root", "", "`DIR` with the files of the package")
	f.StringVar(&version, "version", "", "version of HalogenOS")
	f.StringVar(&arch, "arch", "amd64", "Debian's name of the architecture")
	f.StringVar(&maintainer, "maintainer", "", "who answers for the package: NAME <ADDRESS>; without, DEBFULLNAME and DEBEMAIL say it")
	f.Int64Var(&date, "date", 0, "date of everything, in seconds since 1970")
	f.StringVar(&out, "out", "", "the package, a `FILE`")
	if err := f.Parse(args); err != nil {
		return err
	}
	if root == "" || out == "" || f.NArg() > 0 {
		return errors.New("want -root and -out, and nothing else")
	}
	v, err := debianVersion(version)
	if err != nil {
		return err
	}
	if maintainer == "" {
		maintainer = maintainerFrom(os.Getenv)
	}
	if maintainer == nobody {
		fmt.Fprintln(os.Stderr, "deb: the package says that nobody answers for it: to give it to others, set MAINTAINER='NAME <ADDRESS>', or DEBFULLNAME and DEBEMAIL")
	}
	c := control{Version: v, Architecture: arch, Maintainer: maintainer}
	file, err := os.OpenFile(out, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	return errors.Join(write(file, os.DirFS(root).(linkFS), c, time.Unix(date, 0)), file.Close())
}
