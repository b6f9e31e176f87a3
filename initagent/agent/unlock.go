package agent

import (
	"crypto/rsa"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"halogenos.internal/boot/fat"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/slot"
	"halogenos.internal/initagent/console"
	"halogenos.internal/initagent/enrol"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/provision"
	"halogenos.internal/initagent/tpm"
	"halogenos.internal/initagent/vault"
)

// goodLog is the event log of the last boot whose TPM opened the root partition.
// It lies on the ESP, since it is wanted when the root partition is closed. It
// explains and decides nothing.
const goodLog = provision.Folder + "/eventlog-"

// unlock opens the root partition with the TPM.
func (a *Agent) unlock() error {
	if a.lock.Sealed == nil {
		return errors.New("the root partition is not bound to a TPM")
	}
	last := a.lastGood()
	var known []policy.Boot
	if last != nil {
		if b, err := logged(last); err == nil {
			known = append(known, b)
		}
	}
	secret, record, err := a.TPM.tpm.Unseal(a.lock.Sealed, known...)
	if err != nil {
		return a.explain(err, last)
	}
	defer secret.Wipe()
	f, err := a.Disks.OpenPartition(a.disk, layout.RootNumber, false)
	if err != nil {
		return err
	}
	defer f.Close()
	volumeKey, err := a.lock.OpenTPM(f, secret, ^uint64(0))
	if err != nil {
		return err
	}
	defer luks2.Wipe(volumeKey)
	// Whatever volume this is, the secret is not unsealed again in this boot.
	if err := a.capVolume(volumeKey); err != nil {
		return err
	}
	if err := a.mayOpen(record, volumeKey); err != nil {
		return err
	}
	if err := a.openRoot(a.lock, volumeKey, false); err != nil {
		return err
	}
	if record != nil {
		a.state.Floor = record.Floor
	}
	a.state.Root = slot.RootOpen
	return a.afterUnlock(last)
}

// mayOpen refuses a volume that this machine did not make.
func (a *Agent) mayOpen(record *policy.Record, volumeKey []byte) error {
	if record != nil {
		if err := vault.CheckFingerprint(record, volumeKey); err != nil {
			return err
		}
	}
	if a.state.Keys != slot.KeysEnrolled {
		return nil // no db that could vouch for a deed
	}
	return vault.CheckDeed(a.lock.Deed, volumeKey, a.ownCertificates())
}

// afterUnlock keeps what explains a later failure, and removes what the first
// boot left. Neither is worth a boot.
func (a *Agent) afterUnlock(last *pcr.Log) error {
	if err := a.keepLog(last); err != nil {
		a.Log.Say("the event log of this boot was not kept: %v", err)
	}
	if err := a.removePending(); err != nil {
		a.Log.Say("%s on the ESP was not tidied up: %v", provision.Folder, err)
	}
	return nil
}

// explain says why the TPM refused, for the person at the machine.
func (a *Agent) explain(err error, last *pcr.Log) error {
	if _, ok := errors.AsType[*tpm.MismatchError](err); !ok {
		return err
	}
	if record, rerr := a.TPM.tpm.ReadRecord(a.lock.Sealed); rerr == nil {
		// An old system that was replaced for good explains itself by this.
		a.state.Floor = record.Floor
	}
	var out strings.Builder
	fmt.Fprintf(&out, "%v", err)
	now, _, lerr := readLog()
	switch {
	case lerr != nil:
		fmt.Fprintf(&out, "\nwhat changed is not known: %v", lerr)
	case last == nil:
		out.WriteString("\nwhat changed is not known: there is no event log of an earlier boot")
	default:
		for _, d := range pcr.Diff(last, now) {
			if bound(d.PCR) {
				fmt.Fprintf(&out, "\n%s", strings.TrimRight(d.String(), "\n"))
			}
		}
	}
	return errors.New(out.String())
}

func bound(n int) bool {
	for _, b := range policy.Bound() {
		if b == n {
			return true
		}
	}
	return false
}

// lastGood reads the kept event log; none, or one that makes no sense, is nil.
func (a *Agent) lastGood() (log *pcr.Log) {
	_ = a.readESP(func(esp *fat.FS) error {
		name, err := goodLogName(esp)
		if err != nil || name == "" {
			return err
		}
		raw, err := fs.ReadFile(esp, name)
		if err != nil {
			return err
		}
		log, err = pcr.ParseLog(raw)
		return err
	})
	return log
}

// goodLogName is the kept log's path on the ESP: the last of its kind.
func goodLogName(esp *fat.FS) (string, error) {
	entries, err := fs.ReadDir(esp, provision.Folder)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	name := ""
	for _, e := range entries {
		if full := path.Join(provision.Folder, e.Name()); strings.HasPrefix(full, goodLog) {
			name = full
		}
	}
	return name, err
}

// keepLog keeps this boot's event log where it differs from the last one in a
// PCR that matters. The new file is there before the old one goes.
func (a *Agent) keepLog(last *pcr.Log) error {
	now, raw, err := readLog()
	if err != nil {
		return err
	}
	changed := last == nil
	if last != nil {
		for _, d := range pcr.Diff(last, now) {
			changed = changed || bound(d.PCR)
		}
	}
	if !changed {
		return nil
	}
	return a.writeESP(func(dir enrol.MountedDir) error {
		if err := os.MkdirAll(espFolder+"/"+provision.Folder, 0o700); err != nil {
			return err
		}
		names, err := dir.List(provision.Folder)
		if err != nil {
			return err
		}
		var old []string
		fresh := fmt.Sprintf("%s%d.bin", goodLog, a.Now().UnixNano())
		for _, n := range names {
			if full := path.Join(provision.Folder, n.Name); strings.HasPrefix(full, goodLog) && full != fresh {
				old = append(old, full)
			}
		}
		return enrol.Replace(dir, fresh, raw, old...)
	})
}

// removePending takes away what the first boot left on the ESP. The object in it
// is the one that opens the root partition, under the record that is there now,
// so that who finds it in free space has nothing.
func (a *Agent) removePending() error {
	if a.pending == nil {
		return nil
	}
	err := a.writeESP(func(dir enrol.MountedDir) error {
		names, err := dir.List(provision.Folder)
		if err != nil {
			return err
		}
		for _, n := range names {
			if _, ours := provision.Count(n.Name); ours {
				if err := dir.Remove(path.Join(provision.Folder, n.Name)); err != nil {
					return err
				}
			}
		}
		return dir.SyncDir(provision.Folder)
	})
	if err == nil {
		a.pending = nil
	}
	return err
}

// keyTimeout is how long the console waits for a recovery key before it becomes
// the recovery console.
const keyTimeout = 10 * time.Minute

// askKey opens the root partition with the recovery key. Every try costs the
// keyslot's key derivation, and nothing else.
func (a *Agent) askKey() error {
	c, err := console.Open()
	if err != nil {
		return err
	}
	defer c.Close()
	f, err := a.Disks.OpenPartition(a.disk, layout.RootNumber, true)
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		typed, err := c.Ask("\nRecovery key (an empty line opens the recovery console): ", true, keyTimeout)
		if err != nil {
			return err
		}
		if len(typed) == 0 {
			return errors.New("no recovery key was given")
		}
		volumeKey, secret, err := a.lock.OpenRecovery(f, typed, ^uint64(0))
		luks2.Wipe(typed)
		if err != nil {
			c.Print(fmt.Sprintf("%v. Nothing is lost: try again.\n", err))
			continue
		}
		defer luks2.Wipe(volumeKey)
		defer secret.Wipe()
		return a.openTyped(c, f, volumeKey, secret)
	}
}

// openTyped goes on with a volume that the recovery key opened. The key itself
// proves the volume: a foreign one does not open by it.
func (a *Agent) openTyped(c *console.Console, f hw.File, volumeKey []byte, secret *policy.Secret) error {
	if err := a.openRoot(a.lock, volumeKey, false); err != nil {
		return err
	}
	if a.TPM.Err == nil {
		if err := a.offerAccept(c, f, volumeKey, secret); err != nil {
			c.Print(fmt.Sprintf("the TPM was left as it is: %v\n", err))
		}
	}
	if err := a.capVolume(volumeKey); err != nil {
		return err
	}
	a.state.Root = slot.RootOpen
	return nil
}

// offerAccept lets the owner accept the machine as it is now: by one write of
// the record, or, where the TPM was cleared or is another, by sealing anew.
func (a *Agent) offerAccept(c *console.Console, f hw.File, volumeKey []byte, secret *policy.Secret) error {
	answer, err := c.Ask("Accept this machine as it is now, so that it opens by itself from the next start on?\n"+
		"Say yes only if you know what changed it (a firmware update, new hardware). [y/N] ", false, keyTimeout)
	if err != nil || !strings.EqualFold(strings.TrimSpace(string(answer)), "y") {
		return err
	}
	boot, err := a.measured()
	if err != nil {
		return err
	}
	record := &policy.Record{Floor: a.contract.Epoch, Volume: policy.VolumeFingerprint(volumeKey), Branches: []policy.Branch{a.branch(boot)}}
	if a.lock.Sealed != nil && a.lock.Sealed.Kind == policy.KindNV {
		if old, err := a.TPM.tpm.ReadRecord(a.lock.Sealed); err == nil {
			if err := record.Succeeds(old); err != nil {
				return err
			}
			if err := a.writeRecord(secret, a.lock.Sealed, record); err != nil {
				return err
			}
			c.Print("Accepted.\n")
			return nil
		}
	}
	sealed, err := a.seal(secret, boot, record)
	if err != nil {
		return err
	}
	deedKey, err := a.deedKey(secret)
	if err != nil {
		return err
	}
	if err := a.lock.Rebind(f, volumeKey, secret, sealed, deedKey); err != nil {
		return err
	}
	c.Print("Bound to this TPM.\n")
	return nil
}

// deedKey is this machine's db key, from the open root partition; nil where it
// has none.
func (a *Agent) deedKey(secret *policy.Secret) (*rsa.PrivateKey, error) {
	wrapped, err := os.ReadFile(filepath.Join(stateRoot, ownFolder, keysFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	keys, err := provision.UnwrapKeys(secret, wrapped)
	if err != nil {
		return nil, err
	}
	return keys.DB.Key, nil
}

// measured is this boot as the TPM has it, for an owner who says that it is
// good. A log that accounts for it is required all the same: what nobody can
// explain is not accepted.
func (a *Agent) measured() (policy.Boot, error) {
	log, _, err := readLog()
	if err != nil {
		return policy.Boot{}, err
	}
	told, err := logged(log)
	if err != nil {
		return policy.Boot{}, err
	}
	now, err := a.TPM.tpm.Now()
	if err != nil {
		return policy.Boot{}, err
	}
	if differ := told.Differ(&now); len(differ) > 0 {
		return policy.Boot{}, fmt.Errorf("the event log does not account for PCR %v", differ)
	}
	return now, now.Check()
}

// showRecoveryKey shows the key on every console, once, and nowhere else.
func (a *Agent) showRecoveryKey(key *luks2.RecoveryKey) error {
	c, err := console.Open()
	if err != nil {
		return fmt.Errorf("the recovery key cannot be shown: %w", err)
	}
	defer c.Close()
	text := key.Passphrase()
	defer luks2.Wipe(text)
	drawn, err := console.QR(string(text))
	if err != nil {
		return err
	}
	c.Print("\n" + drawn + "\nThis machine's RECOVERY KEY:\n\n    " + string(text) + "\n\n" + advice)
	_, err = c.Ask("Press Enter when you have written it down (or wait a minute). ", false, time.Minute)
	if err != nil && !errors.Is(err, console.ErrTimeout) {
		return err
	}
	c.Print("\033[H\033[2J\033[3J") // and off the screen
	return nil
}

// advice is what the machine cannot do for its owner.
const advice = `Write it down and keep it away from this machine. It is shown this once. It opens
your data when the TPM does not: after a firmware update, with a new mainboard.
Set a password in the firmware's setup. Without one, somebody with the machine
in hand can switch Secure Boot off. That opens nothing, since the TPM then keeps
the key; but it lets him start a system that looks like yours and asks for what
you type.
`
