package sbom

import (
	"bufio"
	"bytes"
	"cmp"
	"debug/buildinfo"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"path"
	"slices"
	"strings"
	"syscall"
)

// A Package is one that is in an image.
type Package struct {
	Type      string // of its package URL: deb, ebuild, apk, alpm, golang
	Namespace string // debian, a Gentoo category, or the front of a module's path
	Name      string
	Version   string
	Arch      string // may be empty
	Source    string // of which it was built, where that has another name
	Supplier  string // who maintains it, as its database says
	License   string // as its database says; may be empty
	Distro    string // such as debian-13; may be empty
}

// URL names the package (Package URL specification, ECMA-427).
func (p Package) URL() string {
	escape := func(text string) string { return strings.ReplaceAll(url.PathEscape(text), "+", "%2B") }
	var parts []string
	for part := range strings.SplitSeq(p.Namespace, "/") {
		if part != "" {
			parts = append(parts, escape(part))
		}
	}
	out := "pkg:" + p.Type + "/" + strings.Join(append(parts, escape(p.Name)), "/")
	if p.Version != "" {
		out += "@" + strings.ReplaceAll(escape(p.Version), ":", "%3A")
	}
	var more []string
	for _, q := range []struct{ key, value string }{{"arch", p.Arch}, {"distro", p.Distro}, {"upstream", p.Source}} {
		if q.value != "" {
			more = append(more, q.key+"="+strings.ReplaceAll(url.QueryEscape(q.value), "%3A", ":"))
		}
	}
	if len(more) > 0 {
		out += "?" + strings.Join(more, "&")
	}
	return out
}

const (
	maxStatus   = 256 << 20 // bytes of dpkg's database
	maxField    = 64 << 10  // bytes of a file of Portage's database
	maxPackages = 100_000
)

// Files reads files of a root file system.
type Files interface {
	// ReadFile reads a file that may not have more than limit bytes; the error
	// is fs.ErrNotExist where there is none.
	ReadFile(name string, limit int64) ([]byte, error)
	// List returns the names in a directory, none where there is none.
	List(name string) ([]string, error)
}

// Read lists the packages that the databases of dpkg, Portage, apk and pacman know. A tree
// without any has none, which is not an error: what it is made of, nobody wrote down, or
// in a form that is not read (see Unread).
func Read(files Files) ([]Package, error) {
	distro := distroOf(files)
	debs, err := readDpkg(files, distro)
	if err != nil {
		return nil, err
	}
	ebuilds, err := readPortage(files)
	if err != nil {
		return nil, err
	}
	apks, err := readApk(files, distro)
	if err != nil {
		return nil, err
	}
	arch, err := readPacman(files, distro)
	if err != nil {
		return nil, err
	}
	return sorted(slices.Concat(debs, ebuilds, apks, arch)), nil
}

func sorted(all []Package) []Package {
	slices.SortFunc(all, func(a, b Package) int { return strings.Compare(a.URL(), b.URL()) })
	return slices.CompactFunc(all, func(a, b Package) bool { return a.URL() == b.URL() })
}

// distroOf names the distribution of a tree, as in debian-13.
func distroOf(files Files) string {
	text, err := files.ReadFile("etc/os-release", maxField)
	if err != nil {
		if text, err = files.ReadFile("usr/lib/os-release", maxField); err != nil {
			return ""
		}
	}
	values := map[string]string{}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		values[key] = strings.Trim(value, `"'`)
	}
	return strings.Trim(values["ID"]+"-"+values["VERSION_ID"], "-")
}

// readDpkg reads dpkg's database (deb822(5), dpkg-query(1)): one file, or in
// images without dpkg one for each package.
func readDpkg(files Files, distro string) ([]Package, error) {
	names := []string{"var/lib/dpkg/status"}
	more, err := files.List("var/lib/dpkg/status.d")
	if err != nil {
		return nil, err
	}
	for _, name := range more {
		if !strings.HasSuffix(name, ".md5sums") {
			names = append(names, path.Join("var/lib/dpkg/status.d", name))
		}
	}
	var all []Package
	for i, name := range names {
		text, err := files.ReadFile(name, maxStatus)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("packages of dpkg: %w", err)
		}
		for paragraph := range bytes.SplitSeq(text, []byte("\n\n")) {
			f := fields(paragraph)
			installed := strings.HasSuffix(f["Status"], " installed") || i > 0 && f["Status"] == ""
			if f["Package"] == "" || !installed {
				continue
			}
			if len(all) >= maxPackages {
				return nil, fmt.Errorf("packages of dpkg: more than %d", maxPackages)
			}
			all = append(all, Package{
				Type: "deb", Namespace: vendor(distro), Name: f["Package"], Version: f["Version"], Arch: f["Architecture"],
				Source: source(f["Source"], f["Package"]), Supplier: f["Maintainer"], Distro: distro,
			})
		}
	}
	return all, nil
}

func vendor(distro string) string { return cmp.Or(named(distro), "debian") }

// named is a distribution's name without its version.
func named(distro string) string {
	name, _, _ := strings.Cut(distro, "-")
	return name
}

// source is the name of a source package where it is not the package's own.
func source(text, name string) string {
	if s, _, _ := strings.Cut(text, " "); s != name {
		return s
	}
	return ""
}

// fields reads a paragraph; what goes on in further lines is left out.
func fields(paragraph []byte) map[string]string {
	f := make(map[string]string)
	for line := range bytes.Lines(paragraph) {
		if len(line) == 0 || line[0] == ' ' || line[0] == '\t' {
			continue
		}
		key, value, ok := strings.Cut(string(line), ":")
		if ok {
			f[key] = strings.TrimSpace(value)
		}
	}
	return f
}

// readPortage reads Portage's database: a directory for each package, with a file
// for each variable (Package Manager Specification, appendix; portage(5)).
func readPortage(files Files) ([]Package, error) {
	const base = "var/db/pkg"
	categories, err := files.List(base)
	if err != nil {
		return nil, fmt.Errorf("packages of Portage: %w", err)
	}
	var all []Package
	for _, category := range categories {
		names, err := files.List(path.Join(base, category))
		if err != nil {
			return nil, fmt.Errorf("packages of Portage: %w", err)
		}
		for _, full := range names {
			name, version, ok := splitVersion(full)
			if !ok || strings.HasPrefix(full, "-MERGING-") {
				continue
			}
			if len(all) >= maxPackages {
				return nil, fmt.Errorf("packages of Portage: more than %d", maxPackages)
			}
			p := Package{Type: "ebuild", Namespace: category, Name: name, Version: version}
			for key, to := range map[string]*string{"LICENSE": &p.License, "CHOST": &p.Arch, "repository": &p.Distro} {
				text, err := files.ReadFile(path.Join(base, category, full, key), maxField)
				if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
					return nil, fmt.Errorf("packages of Portage: %w", err)
				}
				*to = strings.Join(strings.Fields(string(text)), " ")
			}
			all = append(all, p)
		}
	}
	return all, nil
}

// splitVersion takes a name such as gtk+-3.24.41-r1 apart: the version starts
// behind the last '-' that a digit follows, but for the revision.
func splitVersion(full string) (name, version string, ok bool) {
	end := len(full)
	for {
		i := strings.LastIndexByte(full[:end], '-')
		if i <= 0 || i+1 >= len(full) {
			return "", "", false
		}
		if c := full[i+1]; c >= '0' && c <= '9' {
			return full[:i], full[i+1:], true
		}
		if full[i+1] != 'r' || end != len(full) {
			return "", "", false
		}
		end = i
	}
}

// GoModules lists the modules that a Go program was built of; none where it is
// no Go program or does not tell.
func GoModules(program io.ReaderAt) []Package {
	info, err := buildinfo.Read(program)
	if err != nil {
		return nil
	}
	// Experiments follow the version: "go1.26.8-X:runtimesecret".
	version, _, _ := strings.Cut(strings.TrimPrefix(info.GoVersion, "go"), "-X:")
	all := []Package{{Type: "golang", Name: "stdlib", Version: version}}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		all = append(all, goModule(m.Path, m.Version))
	}
	return sorted(all)
}

func goModule(module, version string) Package {
	return Package{Type: "golang", Namespace: strings.Trim(path.Dir(module), "."), Name: path.Base(module), Version: version}
}

// ReadModules reads a list of Go modules, `path version` a line, for a program
// whose build information does not have them.
func ReadModules(text []byte) ([]Package, error) {
	var all []Package
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		switch {
		case len(words) == 0 || len(words) == 1: // the main module has no version
		case len(words) == 2 && strings.HasPrefix(words[1], "v"):
			all = append(all, goModule(words[0], words[1]))
		default:
			return nil, fmt.Errorf("list of modules: %.80q is not a path and a version", lines.Text())
		}
	}
	return sorted(all), lines.Err()
}
