package agent

import (
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/crypto/argon2"
	"golang.org/x/sys/unix"

	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/slot"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/tpm"
	"halogenos.internal/initagent/vault"
)

// rootDevice is the device-mapper name of the open root partition.
const rootDevice = "root"

// Where the root partition has what is initagent's own.
const (
	ownFolder  = "halogen"
	keysFile   = "secure-boot-keys"
	wantedFile = "secure-boot-wanted"
)

// observeRoot looks at the root partition, until it is open.
func (a *Agent) observeRoot() error {
	if a.state.Root == slot.RootOpen {
		return nil
	}
	partition, ok := a.table.ByNumber(layout.RootNumber)
	if !ok {
		a.state.Root = slot.RootAbsent
		return nil
	}
	f, err := a.Disks.OpenPartition(a.disk, layout.RootNumber, false)
	if err != nil {
		return err
	}
	defer f.Close()
	_, size := a.table.Bytes(partition)
	a.state.Root, a.lock, err = vault.Look(f, size)
	if err != nil {
		a.facts.Cause = err.Error()
		return nil
	}
	return nil
}

// observeLoss tells a root partition that was never made from one whose header
// was lost. Only a machine between its first and second boot makes one: what it
// made its keys with is still there.
func (a *Agent) observeLoss() error {
	making := a.state.Root == slot.RootBlank || a.state.Root == slot.RootUnfinished
	if making && a.state.Keys == slot.KeysEnrolled && a.pending == nil {
		a.state.Root = slot.RootDamaged
		a.facts.Cause = "its header is empty, although this machine's keys were enrolled before"
	}
	return nil
}

// seal seals the machine secret to an NV index with this record, or, where the
// TPM has no room or no command for one, to the one boot.
func (a *Agent) seal(secret *policy.Secret, boot policy.Boot, record *policy.Record) (*policy.Sealed, error) {
	t := a.TPM.tpm
	if _, err := t.StorageKey(); err != nil {
		return nil, err
	}
	sealed, err := a.sealIndex(secret, record)
	if err == nil {
		return sealed, nil
	}
	if !errors.Is(err, tpm.ErrNoSpace) && !errors.Is(err, tpm.ErrUnsupported) {
		return nil, err
	}
	a.Log.Say("WARNING: this TPM cannot hold the policy record (%v): the secret is bound to this one system, an update binds it anew, and an older copy of it is not shut out", err)
	return t.SealPCR(secret, record.PCRs(), boot)
}

// sealIndex defines the index, writes the record, seals, and unseals once to see
// that this TPM does what was computed.
func (a *Agent) sealIndex(secret *policy.Secret, record *policy.Record) (*policy.Sealed, error) {
	t := a.TPM.tpm
	key, err := secret.WriteKey()
	if err != nil {
		return nil, err
	}
	index, err := t.Define(&key.PublicKey)
	if err != nil {
		return nil, err
	}
	if err := t.WriteRecord(index.Handle, key, record); err != nil {
		return nil, err
	}
	sealed, err := t.Seal(secret, index)
	if err != nil {
		return nil, err
	}
	again, _, err := t.Unseal(sealed)
	if err != nil {
		return nil, fmt.Errorf("what was sealed just now does not unseal: %w", err)
	}
	defer again.Wipe()
	if !again.Equal(secret) {
		return nil, errors.New("what was sealed just now unseals to something else")
	}
	return sealed, nil
}

// owner is what a new root partition is made with.
type owner struct {
	secret *policy.Secret
	keys   *secureboot.KeySet // nil where there are none
	sealed *policy.Sealed     // nil without a TPM
	boot   policy.Boot
}

func (o *owner) wipe() {
	o.secret.Wipe()
	if o.keys != nil {
		o.keys.Wipe()
	}
}

func (o *owner) deedKey() *rsa.PrivateKey {
	if o.keys == nil {
		return nil
	}
	return o.keys.DB.Key
}

// owner takes up what the first boot left, or, where Secure Boot is optional and
// nothing was enrolled, makes a secret.
func (a *Agent) owner() (*owner, error) {
	o := new(owner)
	var err error
	if a.pending != nil {
		if o.secret, o.keys, err = a.openPending(); err != nil {
			return nil, fmt.Errorf("the keys of the first boot: %w", err)
		}
		if o.sealed, err = a.pending.SealedSecret(); err != nil {
			return nil, err
		}
		if err := a.checkEnforced(); err != nil {
			return nil, err
		}
	} else if o.secret, err = policy.NewSecret(rand.Reader); err != nil {
		return nil, err
	}
	if a.TPM.Err != nil {
		return o, nil
	}
	if o.boot, err = a.expected(); err != nil {
		return nil, err
	}
	switch {
	case o.sealed == nil:
		o.sealed, err = a.seal(o.secret, o.boot, &policy.Record{
			Floor: a.contract.Epoch, Branches: []policy.Branch{a.branch(o.boot)}, Volume: [32]byte{1}, // replaced once there is a volume
		})
	case o.sealed.Kind == policy.KindPCR:
		// The first boot could not bind it to PCR 7.
		o.sealed, err = a.TPM.tpm.SealPCR(o.secret, policy.Bound(), o.boot)
	}
	return o, err
}

// branch is the running release's entry in the record.
func (a *Agent) branch(boot policy.Boot) policy.Branch {
	return policy.Branch{Policy: boot.Branch(), Version: uint64(a.contract.Version), Epoch: a.contract.Epoch}
}

// makeRoot makes the root partition.
//
// The order: the volume is formatted with a mark that says unfinished; file
// system, keys and the TPM's record follow; the recovery key is shown; then the
// mark goes. Cut before that, all of it is made again, with another recovery
// key, and nobody has used the one that was shown. Cut after it, the volume
// opens, and what the first boot left on the ESP is removed at the next boot.
func (a *Agent) makeRoot() error {
	o, err := a.owner()
	if err != nil {
		return err
	}
	keep := false
	defer func() {
		if !keep {
			o.wipe()
		}
	}()
	recovery, err := luks2.NewRecoveryKey(rand.Reader)
	if err != nil {
		return err
	}
	defer recovery.Wipe()
	f, err := a.Disks.OpenPartition(a.disk, layout.RootNumber, true)
	if err != nil {
		return err
	}
	defer f.Close()
	lock, volumeKey, err := a.formatRoot(f, o, &recovery)
	if err != nil {
		return err
	}
	defer luks2.Wipe(volumeKey)
	if err := a.openRoot(lock, volumeKey, true); err != nil {
		return err
	}
	if err := a.keepInRoot(o); err != nil {
		return err
	}
	if err := a.recordVolume(o, volumeKey); err != nil {
		return err
	}
	if err := a.capVolume(volumeKey); err != nil {
		return err
	}
	if err := a.showRecoveryKey(&recovery); err != nil {
		return err
	}
	if err := lock.Finish(f); err != nil {
		return err
	}
	a.lock, a.state.Root, a.facts.RootMade = lock, slot.RootOpen, true
	if a.TPM.Err != nil {
		a.secret, keep = o.secret, true // the Secure Boot keys are still to come
		return nil
	}
	return a.removePending()
}

func (a *Agent) formatRoot(f hw.File, o *owner, recovery *luks2.RecoveryKey) (*vault.Lock, []byte, error) {
	partition, _ := a.table.ByNumber(layout.RootNumber)
	_, size := a.table.Bytes(partition)
	uuid, err := gpt.RandomGUID(rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	memory, err := keyMemory(runtime.NumCPU())
	if err != nil {
		return nil, nil, err
	}
	return vault.Make(f, vault.Options{
		UUID: uuid.String(), Size: size, SectorSize: 4096, Memory: memory, CPUs: runtime.NumCPU(),
		Secret: o.secret, Recovery: recovery, Sealed: o.sealed, Owner: o.deedKey(),
	})
}

// keyTime is what one try of a recovery key is meant to take on this machine.
const keyTime = 2 * time.Second

// keyMemory is how much memory, in bytes, a keyslot's key derivation may be told
// the machine has, so that it takes about keyTime: a slow machine gets a cheaper
// keyslot, as cryptsetup's benchmark does it. The key has 256 bits of its own.
func keyMemory(cpus int) (uint64, error) {
	memory, err := machineMemory()
	if err != nil {
		return 0, err
	}
	const probe, passes = 16 << 10, 4 // KiB; luks2.Argon2id's passes
	start := time.Now()
	argon2.IDKey([]byte("probe"), make([]byte, 16), 1, probe, uint8(min(cpus, 4)), 32)
	took := max(time.Since(start), time.Millisecond)
	affordable := uint64(float64(probe<<10) * float64(keyTime) / float64(took) / passes)
	return min(memory, max(2*affordable, 64<<20)), nil // a keyslot takes half
}

func machineMemory() (uint64, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0, fmt.Errorf("size of the machine's memory: %w", err)
	}
	return info.Totalram * uint64(info.Unit), nil
}

// openRoot gives the volume to the kernel and mounts its file system, which it
// makes first where it is fresh.
func (a *Agent) openRoot(lock *vault.Lock, volumeKey []byte, fresh bool) error {
	segment, err := lock.Header.Segment()
	if err != nil {
		return err
	}
	path, err := a.Disks.PartitionPath(a.disk, layout.RootNumber)
	if err != nil {
		return err
	}
	if err := a.Kernel.Load("dm_crypt", "xts"); err != nil {
		return err
	}
	_ = a.Kernel.Load("aesni_intel") // faster, where the processor can
	device, err := a.Mapper.OpenCrypt(hw.Crypt{
		Name: rootDevice, UUID: "CRYPT-LUKS2-" + lock.Header.UUID + "-" + rootDevice, Device: path,
		Cipher: segment.Cipher, Offset: int64(segment.Offset) * luks2.SectorSize, Length: int64(segment.Sectors) * luks2.SectorSize,
		IVTweak: segment.IVOffset, SectorSize: segment.CryptSector, VolumeKey: volumeKey,
	})
	if err != nil {
		return err
	}
	if err := a.Kernel.Load(a.contract.RootFileSystem); err != nil {
		return err
	}
	if fresh {
		if err := a.makeFileSystem(device); err != nil {
			return err
		}
	}
	return a.Mounts.Mount(device, stateRoot, a.contract.RootFileSystem, unix.MS_NODEV|unix.MS_NOATIME, "")
}

// makeFileSystem runs the mkfs of the verified system image, inside it: the
// initramfs needs none, and what runs is as verified as we are.
func (a *Agent) makeFileSystem(device string) error {
	dev := filepath.Join(sysroot, "dev")
	if err := a.Mounts.Mount("/dev", dev, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	args := map[string][]string{
		"ext4":  {"-q", "-F", "-L", "halogen-root", "-m", "1", "-E", "lazy_itable_init=1,lazy_journal_init=1", device},
		"btrfs": {"-q", "-f", "-L", "halogen-root", device},
	}[a.contract.RootFileSystem]
	cmd := exec.Command("/sbin/mkfs."+a.contract.RootFileSystem, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: sysroot}
	cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("make the root partition's file system: mkfs.%s of the system image: %w: %s", a.contract.RootFileSystem, err, out)
	}
	return errors.Join(err, a.Mounts.Unmount(dev))
}

// keepInRoot moves what the first boot left on the ESP to the root partition.
func (a *Agent) keepInRoot(o *owner) error {
	if a.pending == nil {
		return nil
	}
	wanted, err := secureboot.ParseWanted(a.pending.Wanted)
	if err != nil {
		return err
	}
	return a.storeKeys(a.pending.Keys, wanted)
}

// storeKeys puts the wrapped keys on the root partition.
func (a *Agent) storeKeys(wrapped []byte, wanted secureboot.Wanted) error {
	public, err := wanted.Marshal()
	if err != nil {
		return err
	}
	folder := filepath.Join(stateRoot, ownFolder)
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	for name, content := range map[string][]byte{keysFile: wrapped, wantedFile: public} {
		if err := writeSynced(filepath.Join(folder, name), content); err != nil {
			return err
		}
	}
	return syncFolder(folder)
}

// recordVolume binds the TPM's record to the volume and to PCR 7 as it is now.
// Nothing that an earlier record allowed unseals any more.
func (a *Agent) recordVolume(o *owner, volumeKey []byte) error {
	if o.sealed == nil || o.sealed.Kind != policy.KindNV {
		return nil
	}
	return a.writeRecord(o.secret, o.sealed, &policy.Record{
		Floor: a.contract.Epoch, Volume: policy.VolumeFingerprint(volumeKey), Branches: []policy.Branch{a.branch(o.boot)},
	})
}

func (a *Agent) writeRecord(secret *policy.Secret, sealed *policy.Sealed, r *policy.Record) error {
	key, err := secret.WriteKey()
	if err != nil {
		return err
	}
	return a.TPM.tpm.WriteRecord(sealed.NVIndex, key, r)
}

// capVolume measures the volume key, so that nothing unseals a second time.
func (a *Agent) capVolume(volumeKey []byte) error {
	if a.TPM.Err != nil {
		return nil
	}
	event := policy.VolumeEvent(volumeKey)
	return a.TPM.tpm.Extend(pcr.SystemID, event[:])
}

func writeSynced(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Sync(), f.Close())
}

func syncFolder(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
