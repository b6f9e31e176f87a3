package main

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// A control is what the package says of itself, as far as it differs from build to
// build (Debian Policy 4.7, section 5.3).
type control struct{ Version, Architecture, Maintainer string }

// What the package is and needs. Every name is in Debian 12 and 13.
//
// Building needs mkfs.erofs alone; all else is needed for one command each, and a
// machine that builds in CI can leave it out (--no-install-recommends).
const fields = `Package: halogen
Section: admin
Priority: optional
Depends: erofs-utils
Recommends: ca-certificates, gpg, gpg-agent, ovmf, podman | docker.io | buildah, qemu-system-x86, swtpm
Suggests: buildah, gnupg-pkcs11-scd, mmdebstrap, rsync
Description: make signed operating systems that verify what they read
 HalogenOS turns the root file system of any Linux distribution into a signed
 operating system that verifies every block it reads, encrypts its data for
 one machine in one state, and takes updates that it can take back.
 .
 This package has halogen, with which a distributor makes images and releases,
 publishes and installs them, and the programs of the machines that are made.
`

// beforeVersion is what comes before the version itself: 1.0-rc1 before 1.0.
var beforeVersion = regexp.MustCompile(`-((?i:alpha|beta|pre|rc)[0-9A-Za-z.]*)`)

// debianVersion is the package's version: that of HalogenOS, in dpkg's order.
func debianVersion(version string) (string, error) {
	v := beforeVersion.ReplaceAllString(version, "~$1")
	if strings.Contains(v, "-") {
		return "", fmt.Errorf("version %q has a hyphen before something else than alpha, beta, pre or rc, and a package's version cannot say whether it comes before or after what is left of it: tag it with a dot (1.2.1), or name another (make deb HALOGEN_VERSION=1.2.1)", version)
	}
	if !regexp.MustCompile(`^[0-9][0-9A-Za-z.+~]*$`).MatchString(v) {
		return "", fmt.Errorf("version %q cannot be a package's: build from git, or name one (make HALOGEN_VERSION=1.2)", version)
	}
	return v, nil
}

// nobody is the maintainer of a package of which its builder does not say who answers
// for it. Nothing is delivered to the address (RFC 2606, section 2).
const nobody = "A local build that nobody answers for <nobody@localhost>"

// maintainerFrom is who answers for a package, by the variables that Debian's own tools
// read (debchange(1), "ENVIRONMENT"): the address may have the name with it.
func maintainerFrom(env func(string) string) string {
	switch address, name := env("DEBEMAIL"), env("DEBFULLNAME"); {
	case address == "":
		return nobody
	case strings.Contains(address, "<"):
		return address
	case name == "":
		return address + " <" + address + ">"
	default:
		return name + " <" + address + ">"
	}
}

// text is the file control; kib is the size of what is installed.
func (c control) text(kib int64) ([]byte, error) {
	for _, value := range []string{c.Version, c.Architecture, c.Maintainer} {
		if value == "" || strings.ContainsAny(value, "\n\r") {
			return nil, fmt.Errorf("%q is not a version, an architecture or a maintainer", value)
		}
	}
	if !regexp.MustCompile(`^[^<>]+ <[^<>@ ]+@[^<>@ ]+>$`).MatchString(c.Maintainer) {
		return nil, errors.New("maintainer: want NAME <ADDRESS>, have " + c.Maintainer)
	}
	own := fmt.Sprintf("Version: %s\nArchitecture: %s\nMaintainer: %s\nInstalled-Size: %d\n", c.Version, c.Architecture, c.Maintainer, kib)
	head, rest, _ := strings.Cut(fields, "\n")
	return []byte(head + "\n" + own + rest), nil
}
