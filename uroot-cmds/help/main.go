// Command help tells a person at the recovery console what there is.
package main

import (
	"fmt"
	"os"
)

const text = `This console has no keys and can read everything that is not encrypted.

  slots     what is in the two slots, and which of them starts next
  verify    read a slot against its root hash, and say which block is corrupt
  dmesg     what the kernel and initagent said (initagent's lines carry its name)
  ls /bin   all commands

  exit      start again

Leave an empty ESP, a damaged disk or a lost key as they are until you know what
happened: nothing here is urgent. A command's --help says more.
`

func main() {
	if _, err := fmt.Fprint(os.Stdout, text); err != nil {
		os.Exit(1)
	}
}
