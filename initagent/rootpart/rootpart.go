// Package rootpart is the root partition as the boot and the recovery console's
// commands open it and bind it to this machine: the same checks, no matter who asks.
//
// It refuses to open a volume that this machine did not make, and keeps no
// secret: each belongs to its caller.
package rootpart

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/argon2"

	"halogenos.internal/boot/bootflow"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/statefiles"
	"halogenos.internal/initagent/bootinfo"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootlock"
)

// Device is the device-mapper name of the open root partition.
const Device = "root"

// Directory is where its file system is while the initramfs is the root.
const Directory = statefiles.StateDirectory

// MountOptions are those by which its file system is mounted. Of btrfs it is the tree at the
// top, which has what the boot keeps, and not the default subvolume (btrfs-subvolume(8)),
// that tools for snapshots set: all data would seem to be gone.
func MountOptions(fileSystem string) string {
	if fileSystem == "btrfs" {
		return "subvolid=5" // BTRFS_FS_TREE_OBJECTID
	}
	return ""
}

// Where the root partition has what is initagent's own.
const (
	OwnDirectory = "halogen"
	ListFile     = OwnDirectory + "/secure-boot"          // the Secure Boot keys and what belongs to them
	KeysFile     = OwnDirectory + "/secure-boot-keys"     // the keys alone, of an earlier release
	NextFile     = OwnDirectory + "/next-secret"          // what a new machine secret needs, until it is in force
	NextKeysFile = OwnDirectory + "/next-keys"            // the Secure Boot keys that new ones replace, until the firmware enforces those
	EnrolledFile = OwnDirectory + "/secure-boot-enrolled" // the enrollment came to its end; only without a TPM
	PhraseFile   = OwnDirectory + "/phrase"               // the second copy of the phrase; that it is there says that the machine has had one
	UnseenFile   = OwnDirectory + "/phrase-unseen"        // why the machine has a phrase that nobody has seen yet; a word of [Unseen]
	Copies       = OwnDirectory + "/esp"                  // of the ESP's files
	Shared       = statefiles.OnRoot                      // what the running system shares with the boot: it sees this as /var/lib/halogen
)

// NoteFirstStart tells the running system that nothing but the systems of this version has
// run on what the root partition holds: setup(8) asks then, and takes the note away.
func NoteFirstStart(store hw.Store, v contract.Version) error {
	if err := MakeShared(store); err != nil {
		return err
	}
	return store.Keep(Shared+"/"+bootinfo.FirstStart, []byte(v.String()+"\n"))
}

// MakeShared makes the directory that the running system shares with the boot. The
// one above it is ours alone.
func MakeShared(store hw.Store) error {
	if err := store.MakeDirectory(OwnDirectory, 0o700); err != nil {
		return err
	}
	return store.MakeDirectory(Shared, 0o755)
}

// Look says in which condition the root partition of a disk is; the lock is nil
// unless it holds a volume. Where there is none it is bootflow.RootAbsent; where it
// could not be looked at too, with an error. With
// bootflow.RootDamaged the error says what is wrong.
func Look(disks hw.Disks, d hw.Disk, table *gpt.Table) (bootflow.Root, *rootlock.Lock, error) {
	partition, err := layout.Find(table, layout.Root)
	if errors.Is(err, layout.ErrMissing) {
		return bootflow.RootAbsent, nil, nil
	}
	if err != nil {
		return 0, nil, err
	}
	f, err := disks.OpenPartition(d, layout.Root, false)
	if err != nil {
		return 0, nil, err
	}
	defer f.Close()
	_, size := table.Bytes(partition)
	return rootlock.Look(f, size)
}

// Attach gives the volume to the kernel and returns the device node of what is
// in it. First it does what the header says that waits (FinishRedo).
func (v Volume) Attach() (string, error) {
	if err := v.FinishRedo(); err != nil {
		return "", err
	}
	path, err := v.Machine.Disks.PartitionPath(v.Disk, layout.Root)
	if err != nil {
		return "", err
	}
	return AttachAt(v.Machine, path, v.Lock, v.Key)
}

// AttachAt is Attach for a device that reads as the root partition does. The volume key stays
// the caller's.
func AttachAt(m hw.Machine, path string, lock *rootlock.Lock, volumeKey []byte) (string, error) {
	segment, err := lock.Header.Segment()
	if err != nil {
		return "", err
	}
	if err := m.Kernel.Load("dm_crypt", "xts"); err != nil {
		return "", err
	}
	_ = m.Kernel.Load("aesni_intel") // faster, where the processor can
	return m.Mapper.OpenCrypt(hw.Crypt{
		Name: Device, UUID: mapperUUID(lock.Header.UUID), Device: path,
		Cipher: segment.Cipher, Offset: segment.Offset, Length: segment.Length, SectorSize: segment.Sector, VolumeKey: volumeKey,
	})
}

// mapperUUID is the open root partition's device-mapper UUID, in the form in which
// cryptsetup's tools know a LUKS2 volume by it.
func mapperUUID(volume string) string {
	return "CRYPT-LUKS2-" + strings.ReplaceAll(volume, "-", "") + "-" + Device
}

// Enforces reports whether the firmware starts signed images alone.
func Enforces(s enroll.State) bool { return s.SecureBoot == enroll.On && s.SetupMode != enroll.On }

// OwnEnforced reports whether the firmware starts what this machine's own keys
// signed, so that its db can vouch for an owner signature. Where Secure Boot is optional it
// may be somebody else's.
func OwnEnforced(s enroll.State, wanted contract.Requirement) bool {
	own := func(c *x509.Certificate) bool { return strings.HasPrefix(c.Subject.CommonName, secureboot.NamePrefix) }
	return Enforces(s) && (wanted == contract.Required || slices.ContainsFunc(Certificates(s), own))
}

// Certificates are those that the firmware's db holds, but for those of kernel modules: what
// they sign is not this machine's own, and they vouch for no volume.
func Certificates(s enroll.State) []*x509.Certificate { return certificates(s.DB.Content) }

func certificates(db secureboot.Database) []*x509.Certificate {
	var out []*x509.Certificate
	for _, e := range db {
		if e.Type != secureboot.TypeX509 || secureboot.IsModuleKey(e) {
			continue
		}
		if c, err := x509.ParseCertificate(e.Data); err == nil {
			out = append(out, c)
		}
	}
	return out
}

// MayOpen refuses a volume that this machine did not make. A record without a
// volume vouches for none (nor does nil), and neither does one that an attacker
// has made together with a volume: the owner signature does.
func MayOpen(lock *rootlock.Lock, record *policy.Record, volumeKey []byte, s enroll.State, wanted contract.Requirement) error {
	if record != nil && !record.Provisional() {
		if err := rootlock.CheckFingerprint(record, volumeKey); err != nil {
			return err
		}
	}
	if !OwnEnforced(s, wanted) {
		return nil // no db that could vouch for an owner signature
	}
	return lock.CheckOwnerSignature(volumeKey, Certificates(s))
}

// MayOpenTyped is MayOpen for a volume that a recovery key opens. Where the image can do
// without a TPM a volume has an owner signature only if the machine had one when it was made, or since
// it was bound to one: the others are for MadeHere.
func MayOpenTyped(lock *rootlock.Lock, volumeKey []byte, s enroll.State, c *contract.Contract) error {
	if c.TPM != contract.Required && len(lock.OwnerSignature) == 0 {
		return nil
	}
	return MayOpen(lock, nil, volumeKey, s, c.SecureBoot)
}

// ErrNotMadeHere refuses to start a system on a volume that nothing shows to be this
// machine's own.
var ErrNotMadeHere = errors.New("nothing shows that this machine made its root partition: it has no owner signature, and not the keys that the firmware enforces. " +
	"Somebody may have put it there, to have you type your recovery key into what it starts. If you know that it is yours, `unlock` at the recovery console opens its data, " +
	"and the machine starts with it again once you have cleared the Secure Boot keys in the firmware's setup (Setup Mode)")

// MadeHere refuses an open volume without an owner signature that this machine did not make: it must
// hold the private key of a certificate that the firmware enforces, which nobody has who
// has made a volume of their own. An owner signature was looked at before.
func MadeHere(store hw.Store, lock *rootlock.Lock, secret *policy.Secret, s enroll.State, c *contract.Contract) error {
	if len(lock.OwnerSignature) > 0 || !OwnEnforced(s, c.SecureBoot) {
		return nil
	}
	keys, err := StoredKeys(store, secret, lock)
	if err != nil {
		return fmt.Errorf("%w (%w)", ErrNotMadeHere, err)
	}
	if keys == nil {
		return ErrNotMadeHere
	}
	defer keys.Wipe()
	if !slices.ContainsFunc(Certificates(s), keys.DB.Certificate.Equal) {
		return ErrNotMadeHere
	}
	return nil
}

// keyTime is what one try of a recovery key is meant to take on this machine,
// and minKeyMemory what it takes at least of its memory, in bytes, if there is
// so much.
const (
	keyTime      = 2 * time.Second
	minKeyMemory = 64 << 20
)

// KeyMemory is how much of memory, in bytes, a keyslot's key derivation may be
// told the machine has, so that it takes about keyTime: a slow machine gets a
// cheaper keyslot, as cryptsetup's benchmark does it. The key has 256 bits of
// its own.
func KeyMemory(memory uint64, cpus int) uint64 {
	if memory <= minKeyMemory {
		return memory
	}
	const probe, passes = 16 << 10, 4 // KiB; luks2.Argon2id's passes
	start := time.Now()
	argon2.IDKey([]byte("probe"), make([]byte, 16), 1, probe, uint8(min(cpus, 4)), 32)
	defer luks2.FreeMemory(probe << 10)
	took := max(time.Since(start), time.Millisecond)
	affordable := uint64(float64(probe<<10) * float64(keyTime) / float64(took) / passes)
	return min(memory, max(2*affordable, minKeyMemory)) // a keyslot takes half
}

// KeyLimit is how much of memory, in bytes, a key derivation that a header asks
// for may take. It comes from the disk, and running out of memory ends PID 1.
func KeyLimit(memory uint64) uint64 { return memory / 4 * 3 }
