package layout

import (
	"crypto/sha256"
	"io"

	"halogenos.internal/boot/gpt"
)

// ReleaseGUID returns the UUID of a thing of a release, the same in each build of it
// (RFC 9562, version 8: the other bits are the start of a SHA-256).
func ReleaseGUID(thing, imageID, version string) gpt.GUID {
	return hashed("halogen " + thing + "\x00" + imageID + "\x00" + version)
}

func hashed(text string) gpt.GUID {
	sum := sha256.Sum256([]byte(text))
	id := gpt.GUID(sum[:16])
	id[6] = id[6]&0x0f | 0x80
	id[8] = id[8]&0x3f | 0x80
	return id
}

// DiskImageIDs are the UUIDs of the disk and of the ESP in a release's disk image: all
// disks that it is written to have them.
func DiskImageIDs(imageID, version string) (disk, esp gpt.GUID) {
	return ReleaseGUID("disk", imageID, version), ReleaseGUID("esp", imageID, version)
}

// OwnESP is the UUID of its own that an ESP gets for the one of a disk image, by the
// UUID of its disk. Until the next start the boot manager's variables have the old
// one, so anyone who looks for it must be able to tell that this is the same ESP.
func OwnESP(old, disk gpt.GUID) gpt.GUID {
	return hashed("halogen own esp\x00" + old.String() + "\x00" + disk.String())
}

// OwnIDs returns a copy of the table in which the disk and the ESP have UUIDs that no
// other disk has, where they are still those of the release's disk image; and whether
// that changes anything. IDs that an installation gave are left alone: the firmware's
// boot entries name them.
func OwnIDs(t *gpt.Table, imageID, version string, random io.Reader) (own *gpt.Table, changed bool, err error) {
	disk, esp := DiskImageIDs(imageID, version)
	own = clone(t)
	if own.Disk == disk {
		if own.Disk, err = gpt.RandomGUID(random); err != nil {
			return nil, false, err
		}
		changed = true
	}
	for i := range own.Partitions {
		if p := &own.Partitions[i]; p.Type == TypeESP && p.UUID == esp {
			p.UUID = OwnESP(esp, own.Disk)
			changed = true
		}
	}
	return own, changed, nil
}
