package rootfs

import (
	"archive/tar"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
)

// Extended attributes that hold an access control list, as Linux keeps them.
const (
	accessACL  = "system.posix_acl_access"
	defaultACL = "system.posix_acl_default"
	selinux    = "security.selinux"
)

// keepXattr reports whether an extended attribute goes into the image. Some
// belong to the machine or the file system that the tree lay on and mean
// nothing elsewhere. One that an image cannot keep is an error.
func keepXattr(name string) (bool, error) {
	switch {
	case name == accessACL, name == defaultACL:
		return true, nil
	case name == "security.evm", // sums up what the file had on one machine, with that machine's key
		strings.HasPrefix(name, "btrfs."),
		name == "system.nfs4_acl", name == "system.cifs_acl", name == "system.ntfs_attrib": // made up by the file system
		return false, nil
	case strings.HasPrefix(name, "trusted.overlay."), strings.HasPrefix(name, "user.overlay."), strings.HasPrefix(name, "user.fuseoverlayfs."):
		if strings.HasSuffix(name, ".redirect") || strings.HasSuffix(name, ".metacopy") {
			return false, fmt.Errorf("is a part of an overlay (%s), the rest of which lies in another directory: %s", name, mountPoint)
		}
		return strings.HasSuffix(name, ".opaque") || strings.HasSuffix(name, ".whiteout"), nil // until overlaid has seen them
	case strings.HasPrefix(name, "user."), strings.HasPrefix(name, "security."), strings.HasPrefix(name, "trusted."):
		return true, nil
	}
	return false, fmt.Errorf("has the extended attribute %s, which EROFS cannot hold: remove it, or leave it out with `tar --xattrs-exclude=%[1]s`", name)
}

// Keys of PAX records. The archivers do not agree on them.
const (
	paxXattr      = "SCHILY.xattr."     // star, GNU tar, libarchive, Go
	paxLibarchive = "LIBARCHIVE.xattr." // libarchive: name as in a URL, value in base64
	paxSELinux    = "RHT.security.selinux"
	paxACL        = "SCHILY.acl."
)

// xattrsOf returns the extended attributes of a tar entry, and the text of its
// access control lists by the name of their attribute.
func xattrsOf(h *tar.Header) (xattrs, acls map[string]string, err error) {
	xattrs, acls = make(map[string]string), make(map[string]string)
	for _, key := range slices.Backward(slices.Sorted(maps.Keys(h.PAXRecords))) { // SCHILY.xattr before the others
		name, value, err := paxXattrOf(key, h.PAXRecords[key])
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", h.Name, err)
		}
		switch {
		case name == "":
		case strings.HasPrefix(key, paxACL):
			acls[name] = value
		default:
			keep, err := keepXattr(name)
			if err != nil {
				return nil, nil, fmt.Errorf("%s: %w", h.Name, err)
			}
			if _, have := xattrs[name]; keep && !have {
				xattrs[name] = value
			}
		}
	}
	for name := range xattrs {
		delete(acls, name) // `tar --acls --xattrs` has a list twice, and this form names no accounts
	}
	return xattrs, acls, nil
}

// paxXattrOf returns the extended attribute that a PAX record stands for; no
// name for other records.
func paxXattrOf(key, value string) (string, string, error) {
	if name, ok := strings.CutPrefix(key, paxXattr); ok {
		return name, value, nil
	}
	if name, ok := strings.CutPrefix(key, paxLibarchive); ok {
		plain, err := url.PathUnescape(name)
		if err != nil {
			return "", "", fmt.Errorf("extended attribute %q: %w", key, err)
		}
		data, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(value, "="))
		if err != nil {
			return "", "", fmt.Errorf("extended attribute %q: %w", key, err)
		}
		return plain, string(data), nil
	}
	switch key {
	case paxSELinux:
		return selinux, value, nil
	case paxACL + "access", paxACL + "default":
		switch {
		case strings.TrimSpace(value) == "":
			return "", "", nil // an archiver's way to say that there is none
		case key == paxACL+"default":
			return defaultACL, value, nil
		}
		return accessACL, value, nil
	case paxACL + "ace":
		return "", "", errors.New("has an access control list of NFSv4, which Linux file systems cannot hold: pack it without ACLs")
	case "SCHILY.realsize", "SCHILY.offset":
		return "", "", errors.New("is sparse in star's own way: pack it with GNU tar --sparse, or without")
	}
	return "", "", nil
}
