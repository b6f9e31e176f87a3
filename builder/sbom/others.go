package sbom

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"syscall"
)

// readApk reads apk's database (apk-tools, doc/apk.8 and doc/apk-v2.5): one file with a
// paragraph for each package, whose lines begin with a letter. The letters' case tells.
func readApk(files Files, distro string) ([]Package, error) {
	var all []Package
	for _, name := range []string{"lib/apk/db/installed", "usr/lib/apk/db/installed"} {
		text, err := files.ReadFile(name, maxStatus)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("packages of apk: %w", err)
		}
		for paragraph := range bytes.SplitSeq(text, []byte("\n\n")) {
			f := fields(paragraph)
			if f["P"] == "" {
				continue
			}
			if len(all) >= maxPackages {
				return nil, fmt.Errorf("packages of apk: more than %d", maxPackages)
			}
			all = append(all, Package{
				Type: "apk", Namespace: cmp.Or(named(distro), "alpine"), Name: f["P"], Version: f["V"], Arch: f["A"],
				Source: source(f["o"], f["P"]), Supplier: f["m"], License: f["L"], Distro: distro,
			})
		}
	}
	return all, nil
}

// readPacman reads pacman's database (libalpm, be_local.c): a directory for each package,
// whose file desc has a name between '%' and below it its values, a line each.
func readPacman(files Files, distro string) ([]Package, error) {
	const base = "var/lib/pacman/local"
	names, err := files.List(base)
	if err != nil {
		return nil, fmt.Errorf("packages of pacman: %w", err)
	}
	var all []Package
	for _, name := range names {
		text, err := files.ReadFile(path.Join(base, name, "desc"), maxField)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) { // such as the file ALPM_DB_VERSION
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("packages of pacman: %w", err)
		}
		f := map[string]string{}
		for paragraph := range strings.SplitSeq(string(text), "\n\n") {
			key, values, _ := strings.Cut(strings.TrimSpace(paragraph), "\n")
			f[key] = strings.Join(strings.Split(values, "\n"), ", ")
		}
		if f["%NAME%"] == "" {
			continue
		}
		if len(all) >= maxPackages {
			return nil, fmt.Errorf("packages of pacman: more than %d", maxPackages)
		}
		all = append(all, Package{
			Type: "alpm", Namespace: cmp.Or(named(distro), "arch"), Name: f["%NAME%"], Version: f["%VERSION%"], Arch: f["%ARCH%"],
			Source: source(f["%BASE%"], f["%NAME%"]), Supplier: f["%PACKAGER%"], License: f["%LICENSE%"], Distro: distro,
		})
	}
	return all, nil
}

// unread are databases of packages that Read does not read, by what has them.
var unread = []struct{ place, manager string }{
	{"usr/lib/sysimage/rpm", "RPM"}, {"usr/share/rpm", "RPM"}, {"var/lib/rpm", "RPM"}, {"var/db/xbps", "XBPS"}, {"nix/store", "Nix"}, {"gnu/store", "Guix"}, {"var/lib/flatpak/app", "Flatpak"},
}

// Unread says which databases of packages a tree has that Read cannot read, so that what
// they list is not in the bill.
func Unread(files Files) ([]string, error) {
	var found []string
	for _, u := range unread {
		names, err := files.List(u.place)
		if err != nil {
			return nil, err
		}
		if len(names) > 0 {
			found = append(found, fmt.Sprintf("%s (/%s)", u.manager, u.place))
		}
	}
	return found, nil
}
