package sbom

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/CycloneDX/cyclonedx-go"

	"halogenos.internal/boot/testkit"
)

// memory is a root file system.
type memory map[string]string

func (m memory) ReadFile(name string, limit int64) ([]byte, error) {
	for at := path.Dir(name); at != "."; at = path.Dir(at) {
		if _, file := m[at]; file { // as a tree has it
			return nil, &fs.PathError{Op: "find", Path: name, Err: syscall.ENOTDIR}
		}
	}
	text, ok := m[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return []byte(text), nil
}

func (m memory) List(dir string) ([]string, error) {
	var names []string
	for name := range m {
		if rest, ok := strings.CutPrefix(name, dir+"/"); ok {
			first, _, _ := strings.Cut(rest, "/")
			names = append(names, first)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

func urls(all []Package) string {
	var out []string
	for _, p := range all {
		out = append(out, p.URL())
	}
	return strings.Join(out, "\n")
}

func TestDebianPackages(t *testing.T) {
	all, err := Read(memory{
		"etc/os-release": "ID=debian\nVERSION_ID=\"13\"\n",
		"var/lib/dpkg/status": `Package: libc6
Status: install ok installed
Architecture: amd64
Source: glibc (2.41-12)
Version: 2.41-12+deb13u1
Maintainer: GNU Libc Maintainers <debian-glibc@lists.debian.org>
Description: GNU C Library
 Version: 9 is not a field here
 .

Package: gone
Status: deinstall ok config-files
Version: 1

Package: coreutils
Status: install ok installed
Architecture: amd64
Version: 1:9.7-3
`,
		"var/lib/dpkg/status.d/tzdata":         "Package: tzdata\nVersion: 2025b-4\nArchitecture: all\n",
		"var/lib/dpkg/status.d/tzdata.md5sums": "Package: no\n",
	})
	if err != nil {
		t.Fatal(err)
	}
	if have, want := urls(all), `pkg:deb/debian/coreutils@1%3A9.7-3?arch=amd64&distro=debian-13
pkg:deb/debian/libc6@2.41-12%2Bdeb13u1?arch=amd64&distro=debian-13&upstream=glibc
pkg:deb/debian/tzdata@2025b-4?arch=all&distro=debian-13`; have != want {
		t.Errorf("have\n%s\nwant\n%s", have, want)
	}
	if all[1].Supplier != "GNU Libc Maintainers <debian-glibc@lists.debian.org>" {
		t.Errorf("supplier %q", all[1].Supplier)
	}
}

func TestGentooPackages(t *testing.T) {
	all, err := Read(memory{
		"var/db/pkg/sys-apps/systemd-257.9-r1/LICENSE":    "GPL-2 LGPL-2.1 MIT\n",
		"var/db/pkg/sys-apps/systemd-257.9-r1/repository": "gentoo\n",
		"var/db/pkg/x11-libs/gtk+-3.24.41-r1/SLOT":        "3\n",
		"var/db/pkg/dev-db/sqlite-3.46.1/EAPI":            "8",
		"var/db/pkg/app-misc/7zip-24.09/EAPI":             "8",
		"var/db/pkg/app-misc/-MERGING-x-1/EAPI":           "8",
		"var/db/pkg/world":                                "",
	})
	if err != nil {
		t.Fatal(err)
	}
	if have, want := urls(all), `pkg:ebuild/app-misc/7zip@24.09
pkg:ebuild/dev-db/sqlite@3.46.1
pkg:ebuild/sys-apps/systemd@257.9-r1?distro=gentoo
pkg:ebuild/x11-libs/gtk%2B@3.24.41-r1`; have != want {
		t.Errorf("have\n%s\nwant\n%s", have, want)
	}
	if all[2].License != "GPL-2 LGPL-2.1 MIT" {
		t.Errorf("licence %q", all[2].License)
	}
}

func TestSplitVersion(t *testing.T) {
	for full, want := range map[string]string{
		"a-1": "a 1", "a-b-1.2-r3": "a-b 1.2-r3", "font-100dpi-1.0": "font-100dpi 1.0", "a-r1": "", "a": "", "-1": "", "a-": "", "": "", "a-1_p2": "a 1_p2",
	} {
		name, version, ok := splitVersion(full)
		if have := strings.TrimSpace(name + " " + version); have != want || ok != (want != "") {
			t.Errorf("%q: %q, %v; want %q", full, have, ok, want)
		}
	}
}

func TestNoPackages(t *testing.T) {
	if all, err := Read(memory{}); err != nil || len(all) != 0 {
		t.Errorf("%v, %v", all, err)
	}
}

// TestGoModules reads a Go program.
func TestGoModules(t *testing.T) {
	testkit.Need(t, "go")
	program := filepath.Join(t.TempDir(), "program")
	t.Setenv("GOEXPERIMENT", "runtimesecret")
	testkit.Run(t, "go", "build", "-o", program, "halogenos.internal/builder/halogen")
	f, err := os.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	have := urls(GoModules(f))
	for _, want := range []string{"pkg:golang/stdlib@1.", "pkg:golang/github.com/CycloneDX/cyclonedx-go@v0"} {
		if !strings.Contains(have, want) {
			t.Errorf("no %s in\n%s", want, have)
		}
	}
	if strings.Contains(have, "X:") || strings.Contains(have, "X%3A") {
		t.Errorf("an experiment is part of a version in\n%s", have)
	}
	if all := GoModules(strings.NewReader("#!/bin/sh\n")); len(all) != 0 {
		t.Errorf("a script was made of %v", all)
	}
	listed, err := ReadModules([]byte("halogenos.internal\ngithub.com/u-root/u-root v0.16.0\n\n"))
	if err != nil || urls(listed) != "pkg:golang/github.com/u-root/u-root@v0.16.0" {
		t.Errorf("%v, %v", listed, err)
	}
	for _, text := range []string{"a b c", "a 1.0"} {
		if _, err := ReadModules([]byte(text)); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
}

func bill() Bill {
	return Bill{
		Name: "test-os", Version: "7", Serial: "3e671687-395b-81f5-a30f-a58921a69b79", Date: time.Unix(1_700_000_000, 0), Kernel: "6.12.1",
		Packages: []Package{{Type: "deb", Namespace: "debian", Name: "libc6", Version: "2.41", Supplier: "x <y@example.org>", License: "LGPL-2.1"}},
		Programs: []Program{
			{Name: "bin/bb", SHA256: strings.Repeat("ab", 32), Modules: []Package{{Type: "golang", Namespace: "example.org", Name: "one", Version: "v1"}}},
			{Name: "bin/ota", SHA256: strings.Repeat("cd", 32), Modules: []Package{{Type: "golang", Namespace: "example.org", Name: "one", Version: "v1"}}},
		},
		Firmware: []Firmware{{Name: "kernel/x86/microcode/GenuineIntel.bin", Supplier: "Intel", SHA256: strings.Repeat("ef", 32)}},
	}
}

func TestBill(t *testing.T) {
	text, err := bill().Encode()
	if err != nil {
		t.Fatal(err)
	}
	again, err := bill().Encode()
	if err != nil || !bytes.Equal(text, again) {
		t.Errorf("encoded again it differs, %v", err)
	}
	var have cyclonedx.BOM
	if err := cyclonedx.NewBOMDecoder(bytes.NewReader(text), cyclonedx.BOMFileFormatJSON).Decode(&have); err != nil {
		t.Fatal(err)
	}
	if have.SpecVersion != cyclonedx.SpecVersion1_6 || have.SerialNumber != "urn:uuid:3e671687-395b-81f5-a30f-a58921a69b79" || have.Metadata.Component.Name != "test-os" ||
		have.Metadata.Timestamp != "2023-11-14T22:13:20Z" {
		t.Errorf("%+v", have)
	}
	var refs []string
	for _, c := range *have.Components {
		refs = append(refs, c.BOMRef)
	}
	if want := []string{"kernel@6.12.1", "pkg:deb/debian/libc6@2.41", "program/bin/bb", "pkg:golang/example.org/one@v1", "program/bin/ota", "firmware/kernel/x86/microcode/GenuineIntel.bin"}; !slices.Equal(refs, want) {
		t.Errorf("components %q, want %q", refs, want)
	}
	// Whatever a dependency names is a component.
	for _, d := range *have.Dependencies {
		for _, ref := range append(*d.Dependencies, d.Ref) {
			if ref != "image" && !slices.Contains(refs, ref) {
				t.Errorf("%s is not a component", ref)
			}
		}
	}
}

func TestProvenance(t *testing.T) {
	p := Provenance{
		Made: []Digest{{"uki.efi", strings.Repeat("ab", 32)}}, Used: []Digest{{"root file system", strings.Repeat("cd", 32)}},
		Parameters: map[string]any{"version": "7"}, Tools: map[string]string{"go": "go1.26"}, Invocation: "urn:uuid:1",
	}
	text, err := p.Encode()
	if err != nil {
		t.Fatal(err)
	}
	var have struct {
		Type    string `json:"_type"`
		Subject []struct {
			Name   string
			Digest struct{ SHA256 string }
		}
		PredicateType string
		Predicate     struct {
			BuildDefinition struct {
				BuildType            string
				ExternalParameters   map[string]string
				ResolvedDependencies []struct{ Digest struct{ SHA256 string } }
			}
			RunDetails struct {
				Builder struct{ ID string }
			}
		}
	}
	if err := json.Unmarshal(text, &have); err != nil {
		t.Fatal(err)
	}
	d := have.Predicate.BuildDefinition
	if have.Type != "https://in-toto.io/Statement/v1" || have.PredicateType != "https://slsa.dev/provenance/v1" || len(have.Subject) != 1 ||
		have.Subject[0].Name != "uki.efi" || have.Subject[0].Digest.SHA256 != strings.Repeat("ab", 32) || d.BuildType == "" ||
		d.ExternalParameters["version"] != "7" || d.ResolvedDependencies[0].Digest.SHA256 != strings.Repeat("cd", 32) || have.Predicate.RunDetails.Builder.ID == "" {
		t.Errorf("%s", text)
	}
}

// directory is a root file system in a directory.
type directory string

func (f directory) ReadFile(name string, _ int64) ([]byte, error) {
	return os.ReadFile(filepath.Join(string(f), name))
}

func (f directory) List(name string) ([]string, error) {
	list, err := os.ReadDir(filepath.Join(string(f), name))
	if os.IsNotExist(err) {
		return nil, nil
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names, err
}

func TestDebian(t *testing.T) {
	dir := testkit.Debian(t)
	all, err := Read(directory(dir))
	if err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile(filepath.Join(dir, "usr/lib/sysimage/dpkg/status"))
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.Count(string(status), "\nStatus: install ok installed\n"); len(all) != want || want < 50 {
		t.Errorf("%d packages, want %d", len(all), want)
	}
	if have := urls(all); !strings.Contains(have, "pkg:deb/debian/systemd@") || !strings.Contains(have, "&distro=debian-13") {
		t.Errorf("packages\n%s", have)
	}
}

func FuzzDpkg(f *testing.F) {
	f.Add("Package: a\nStatus: install ok installed\nVersion: 1\n\nPackage: b\n c: d\n")
	f.Fuzz(func(t *testing.T, status string) {
		inFuzz(t, "pkg:deb/", memory{"var/lib/dpkg/status": status, "etc/os-release": status})
	})
}

func inFuzz(t *testing.T, prefix string, files memory) {
	all, err := Read(files)
	if err != nil {
		return
	}
	for _, p := range all {
		if u := p.URL(); !strings.HasPrefix(u, prefix) || strings.ContainsAny(u, " \n") {
			t.Errorf("URL %q", u)
		}
	}
}

func FuzzApk(f *testing.F) {
	f.Add("P:a\nV:1-r0\nA:x86_64\nL:MIT\n\nP:b\n")
	f.Fuzz(func(t *testing.T, text string) { inFuzz(t, "pkg:apk/", memory{"lib/apk/db/installed": text}) })
}

func FuzzPacman(f *testing.F) {
	f.Add("%NAME%\na\n\n%VERSION%\n1-1\n\n%LICENSE%\nGPL\nMIT\n")
	f.Fuzz(func(t *testing.T, text string) { inFuzz(t, "pkg:alpm/", memory{"var/lib/pacman/local/a-1/desc": text}) })
}
