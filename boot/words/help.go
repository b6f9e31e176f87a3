package words

// The recovery console's list of commands, a text for each thing that went wrong. What is typed stands in
// the first column, in every language.
const (
	HelpTitle   = "What went wrong, and what cures it. Lines in order; the first is safe to try.\n\n"
	HelpCorrupt = `  the system is corrupt, or both are
      verify             which slot is damaged, and where first
      repair             its bad blocks again, from the other slot
      rollback           start the other system from now on
`
	HelpNewer = `  both are, or a newer release mends it
      unlock, network, ota fetch     it from the server, into the other slot
      unlock, ota fetch --from /dev/sdb1   it from a stick (blkid lists them)
`
	HelpTPM = `  the TPM did not open the root partition (new firmware, new hardware, new TPM)
      eventlog           what differs from the last boot that opened by itself
      unlock             open it with the recovery key
      reseal             have the TPM open it again, from the next start on
`
	HelpKeys = `  the firmware has lost its Secure Boot keys (a reset, an empty battery)
      unlock, enroll     this machine's keys again
`
	HelpESP = `  the EFI system partition is damaged
      unlock, esp-rebuild    make it again from copies
`
	HelpLost = `  the recovery key is lost to somebody else, or about to be
      unlock, recovery-key   a new one; the old one opens nothing any more
`
	HelpGivenAway = `  the machine is given away, or nothing else is left
      reset              wipe all data, keep the system. There is no way back

`
	HelpOthers = `  slots      what is in the two slots, which starts next, and the boot journal
  firmware   Secure Boot, keys, microcode, TPM, and what is advised
  network    an address by DHCP. By hand: ip addr add, ip link set, ip route add
  lock       close the root partition again
  keymap     what is printed on the keyboard: keymap de, fr, dvorak and others
  language   what this console speaks: language de, en
  dmesg      what the kernel and initagent said
  ls /bin    all commands
  exit       close everything and start again

`
	HelpEnd = `This console holds no key that was not typed in. Nothing here is urgent: leave a
damaged disk or a lost key as they are until you know what happened.
`
)

// What is said and asked at the recovery console by unlock and recovery-key.
const (
	// UnlockNoPhrase is said in place of the phrase, which the TPM does not give to the recovery console.
	UnlockNoPhrase = `
No phrase is shown here: the TPM gives nothing to the recovery console, nor to a
program that looks like it. Type the key only where nobody else can have put a
system of theirs into this machine.
`
	UnlockAsk       = "Recovery key (an empty line gives up): "
	UnlockOnceMore  = "Recovery key, once more (an empty line gives up): "
	UnlockReadOnly  = "The disk takes no writes, so your data is there to be read alone: copy it.\n"
	UnlockDone      = "The root partition is open at %s. `lock` closes it again, and so does `exit`.\n"
	ConsoleOldStays = "the old key stays"
	ConsoleOnlyKey  = "The new recovery key is the only one.\n"
)
