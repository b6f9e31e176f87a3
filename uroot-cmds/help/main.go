// Command help tells a person at the recovery console which command cures what.
package main

import (
	"context"
	"fmt"

	"halogenos.internal/initagent/command"
)

const help = `usage: help

Lists the commands of the recovery console by what went wrong. Each command's
--help says more.

Exit codes: 0 shown, 2 wrong usage.
`

const text = `What went wrong, and what cures it. Lines in order; the first is safe to try.

  the system is corrupt, or both are
      verify             which slot is damaged, and where first
      repair             its bad blocks again, from the other slot
      rollback           start the other system from now on
  both are, or a newer release mends it
      unlock, network, ota fetch     it from the server, into the other slot
      unlock, ota fetch --from /dev/sdb1   it from a stick (blkid lists them)
  the TPM did not open the root partition (new firmware, new hardware, new TPM)
      eventlog           what differs from the last boot that opened by itself
      unlock             open it with the recovery key
      reseal             have the TPM open it again, from the next start on
  the firmware has lost its Secure Boot keys (a reset, an empty battery)
      unlock, enroll     this machine's keys again
  the EFI system partition is damaged
      unlock, esp-rebuild    make it again from copies
  the recovery key is lost to somebody else, or about to be
      unlock, recovery-key   a new one; the old one opens nothing any more
  the machine is given away, or nothing else is left
      reset              wipe all data, keep the system. There is no way back

  slots      what is in the two slots, which starts next, and the boot journal
  firmware   Secure Boot, keys, microcode, TPM, and what is advised
  network    an address by DHCP. By hand: ip addr add, ip link set, ip route add
  lock       close the root partition again
  keymap     what is printed on the keyboard: keymap de, fr, dvorak and others
  language   what this console speaks: language de, en
  dmesg      what the kernel and initagent said
  ls /bin    all commands
  exit       close everything and start again

This console holds no key that was not typed in. Nothing here is urgent: leave a
damaged disk or a lost key as they are until you know what happened.
`

func main() { cmd().Main() }

func cmd() command.Command {
	return command.Command{Name: "help", Help: help, Run: func(_ context.Context, c *command.Call) error {
		_, err := fmt.Fprint(c.Stdout, text)
		return err
	}}
}
