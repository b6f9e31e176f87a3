// Command halogen makes releases of an operating system out of a root file
// system, and shows what is in them.
package main

import "os"

func main() {
	c := command{stdout: os.Stdout, stderr: os.Stderr, getenv: os.Getenv, executable: os.Executable}
	os.Exit(c.run(os.Args[1:]))
}
