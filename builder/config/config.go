// Package config reads uki.conf, the description of an image to be built.
//
// The section [UKI] is ukify's, as far as its keys are honoured here; [Image],
// [Update], [Initramfs] and [Extension NAME] are our own. The package refuses whatever it does not know,
// naming the line: a misspelled key would otherwise be a weaker image.
package config

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/words"
	"halogenos.internal/builder/scan"
)

// A Config is what uki.conf says, with defaults filled in.
type Config struct {
	UKI
	Image
	Machine
	Update

	// Modules of the initramfs, in the order of the file.
	Modules []Module
	// Extensions are the release's system extensions, in the order of the file.
	Extensions []Extension
	// Allow lists the findings of the search for secrets that are wanted.
	Allow []scan.Allow
	// Notes are for the person who builds: keys that have another name now.
	Notes []string
}

// Update has the defaults of the image's machines for updates: the section [Update].
type Update struct {
	Server         string // base URL of the releases; empty for none
	Channel        manifest.Channel
	SignedManifest string // as ota.conf takes it: yes, no or auto
	ReportTo       string // where machines put reports whose owners allow it; may be empty
}

// The choices of ModuleTrust.
const (
	TrustByKernel = "kernel" // the certificate is built into the kernel
	TrustByDB     = "db"     // it goes into each machine's Secure Boot db, if its owner agrees
)

// A Module is a kernel module that the initramfs shall have.
type Module struct {
	Name     string // '-' and '_' mean the same
	Optional bool   // a kernel without it is fine
}

// Load reads a configuration. Files that it refers to are looked for from its
// own directory.
func Load(path string) (*Config, error) {
	text, err := readBounded(path, maxFile)
	if err != nil {
		return nil, err
	}
	c, err := Parse(string(text), filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// Parse reads the text of a configuration; dir is where the paths in it start.
func Parse(text, dir string) (*Config, error) {
	entries, err := parse(text)
	if err != nil {
		return nil, err
	}
	r := &reader{dir: dir, config: defaults()}
	if err := r.rename(entries); err != nil {
		return nil, err
	}
	for _, e := range entries {
		if err := r.set(e); err != nil {
			return nil, &LineError{Line: e.line, Err: err}
		}
	}
	if err := r.finish(); err != nil {
		return nil, err
	}
	return &r.config, nil
}

func defaults() Config {
	return Config{
		Image:   Image{Arch: "x86_64", ESPSize: layout.ESPSize, SlotSize: 4 << 30, Compression: "lz4hc", ModuleTrust: TrustByKernel},
		Machine: Machine{SecureBoot: contract.Required, TPM: contract.Required, VendorKeys: contract.VendorAuto, RootPartitionFormat: "ext4", FirstStart: NoneAtFirstStart},
		Update:  Update{Channel: manifest.Stable, SignedManifest: "auto"},
	}
}

type reader struct {
	dir                  string
	config               Config
	cmdline              string
	quiet                bool
	language             words.Language
	fingerprint, keyFile string
}

// keys are the keys of each section but [Allow], and what takes their values over.
func (r *reader) keys() map[string]map[string]func(string) error {
	return map[string]map[string]func(string) error{
		"UKI": {
			"Linux":     r.path(&r.config.Linux),
			"Stub":      r.path(&r.config.Stub),
			"OSRelease": r.textOrFile(&r.config.OSRelease),
			"Cmdline":   r.textOrFile(&r.cmdline),
			"Uname":     r.uname,
			"Splash":    r.splash,
			"Microcode": r.microcode,
		},
		"Image": {
			"ImageID":             r.imageID,
			"Arch":                r.oneOf(&r.config.Arch, "x86_64"),
			"Epoch":               r.epoch,
			"ESPSize":             r.espSize,
			"SlotSize":            r.slotSize,
			"GrowSlots":           r.growSlots,
			"Compression":         r.compression,
			"Modules":             r.plainModules,
			"BootManager":         r.path(&r.config.BootManager),
			"ReleaseKey":          r.text(&r.fingerprint),
			"ReleaseKeyFile":      r.text(&r.keyFile),
			"ModuleKey":           r.moduleKey,
			"ModuleTrust":         r.oneOf(&r.config.ModuleTrust, TrustByKernel, TrustByDB),
			"SecureBoot":          r.oneOf((*string)(&r.config.SecureBoot), "required", "optional"),
			"TPM":                 r.oneOf((*string)(&r.config.TPM), "required", "optional"),
			"VendorKeys":          r.oneOf((*string)(&r.config.VendorKeys), "auto", "none", "microsoft"),
			"RootPartitionFormat": r.oneOf(&r.config.RootPartitionFormat, "ext4", "btrfs"),
			"Watchdog":            r.watchdog,
			"Quiet":               r.yes(&r.quiet),
			"Language":            r.languageOfScreens,
			"Swap":                r.swap,
			"FirstStart":          r.oneOf(&r.config.FirstStart, AskAtFirstStart, NoneAtFirstStart),
		},
		"Update": {
			"Server":                r.server(&r.config.Server),
			"ReportTo":              r.server(&r.config.ReportTo),
			"Channel":               r.oneOf((*string)(&r.config.Channel), "stable", "beta", "alpha"),
			"RequireSignedManifest": r.oneOf(&r.config.SignedManifest, "yes", "no", "auto"),
		},
		"Initramfs": {"Modules": r.modules},
	}
}

// renamed are keys by the names that they had before, in each section.
var renamed = map[string]map[string]string{
	// It never was about the root file system, which is the image.
	"Image": {"RootFileSystem": "RootPartitionFormat"},
}

// rename gives entries with a former name the present one, and notes it.
func (r *reader) rename(entries []entry) error {
	for i, e := range entries {
		now, ok := renamed[e.section][e.key]
		if !ok {
			continue
		}
		for _, other := range entries {
			if other.section == e.section && other.key == now {
				return &LineError{Line: e.line, Err: fmt.Errorf("%s is the former name of %s, which line %d has: take one of them out", e.key, now, other.line)}
			}
		}
		entries[i].key = now
		r.config.Notes = append(r.config.Notes, fmt.Sprintf("%s in line %d of uki.conf is the former name of %s: write %s=%s", e.key, e.line, now, now, e.value))
	}
	return nil
}

// set takes one entry over.
func (r *reader) set(e entry) error {
	head := e.key == "" // a section may be empty, as one whose source the command line names
	if e.section == "Allow" {
		if head {
			return nil
		}
		return r.allow(e.key, e.value)
	}
	if first, _, _ := strings.Cut(e.section, " "); first == extensionSection {
		return r.extension(e)
	}
	keys, ok := r.keys()[e.section]
	if !ok {
		return fmt.Errorf("unknown section [%s]: want [UKI], [Image], [Update], [Initramfs], [Extension NAME] or [Allow]", e.section)
	}
	if head {
		return nil
	}
	set, ok := keys[e.key]
	if !ok {
		return unknownKey(e)
	}
	if err := set(e.value); err != nil {
		return fmt.Errorf("%s: %w", e.key, err)
	}
	return nil
}

// allow takes what may be found in an image: the key is the name of a rule.
func (r *reader) allow(rule, value string) error {
	entries, err := scan.ParseAllow(rule, value)
	if err != nil {
		return fmt.Errorf("key %s of [Allow]: %w", rule, err)
	}
	r.config.Allow = append(r.config.Allow, entries...)
	return nil
}

// yes takes yes or no.
func (r *reader) yes(set *bool) func(string) error {
	return func(value string) error {
		if *set = value == "yes"; !*set && value != "no" {
			return fmt.Errorf("%q is neither yes nor no", value)
		}
		return nil
	}
}

// unknownKey says why a key that ukify has is not honoured here.
func unknownKey(e entry) error {
	why := ""
	if e.section == "UKI" {
		why = map[string]string{
			"Initrd":                "the initramfs is made by the builder",
			"SecureBootPrivateKey":  "each machine signs with its own key",
			"SecureBootCertificate": "each machine signs with its own key",
			"SecureBootSigningTool": "each machine signs with its own key",
			"SignKernel":            "each machine signs with its own key",
			"EFIArch":               "use Arch of [Image]",
			"PCRBanks":              "PCR 11 is predicted for SHA-256",
			"PCRPKey":               "the TPM's policy lives in an NV index",
			"DeviceTree":            "there is none on x86_64",
		}[e.key]
	}
	if why != "" {
		return fmt.Errorf("key %s of [%s] is not supported: %s", e.key, e.section, why)
	}
	return fmt.Errorf("unknown key %s in [%s]: correct it or take it out (capital and small letters differ)", e.key, e.section)
}

// finish checks what needs more than one key.
func (r *reader) finish() error {
	if r.config.ImageID == "" {
		return errors.New("no ImageID in [Image]: name the image there, such as ImageID=my-os")
	}
	if err := r.moduleTrust(); err != nil {
		return err
	}
	line := r.cmdline
	if r.quiet && !slices.Contains(strings.Fields(line), "quiet") {
		line += " quiet"
	}
	if r.language != words.English {
		line += " " + words.Argument + r.language.Code()
	}
	cmdline, err := completeCmdline(line)
	if err != nil {
		return fmt.Errorf("key Cmdline: %w", err)
	}
	r.config.Cmdline = cmdline
	if err := r.releaseKey(); err != nil {
		return err
	}
	if r.config.SignedManifest == "yes" && len(r.config.ReleaseKey) == 0 {
		return errors.New("RequireSignedManifest is yes, yet ReleaseKey is none: no machine could check the signature")
	}
	return nil
}

func (r *reader) text(to *string) func(string) error {
	return func(value string) error {
		if value == "" {
			return fmt.Errorf("has no value")
		}
		*to = value
		return nil
	}
}

func (r *reader) local(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(r.dir, name)
}

func (r *reader) oneOf(to *string, choices ...string) func(string) error {
	return func(value string) error {
		if !slices.Contains(choices, value) {
			return fmt.Errorf("%q: want %s", value, strings.Join(choices, " or "))
		}
		*to = value
		return nil
	}
}

// server takes the base URL of the releases. A password in it would be read by
// everybody who has the image.
func (r *reader) server(to *string) func(string) error {
	return func(value string) error {
		u, err := url.Parse(value)
		if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.User != nil ||
			u.RawQuery != "" || u.Fragment != "" || strings.ContainsFunc(value, unicode.IsSpace) {
			return fmt.Errorf("%q: want an http or https URL without a password, query or fragment", value)
		}
		*to = strings.TrimRight(value, "/")
		return nil
	}
}

func (r *reader) modules(value string) error {
	name := regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
	for _, word := range strings.Fields(value) {
		m := Module{Name: strings.TrimPrefix(word, "?"), Optional: strings.HasPrefix(word, "?")}
		if !name.MatchString(m.Name) {
			return fmt.Errorf("%q is not a module's name", word)
		}
		same := func(have Module) bool { return canonical(have.Name) == canonical(m.Name) }
		if slices.ContainsFunc(r.config.Modules, same) {
			return fmt.Errorf("%s is named twice", m.Name)
		}
		r.config.Modules = append(r.config.Modules, m)
	}
	return nil
}

func canonical(name string) string { return strings.ReplaceAll(name, "-", "_") }

// readBounded reads a file that may not have more than limit bytes.
func readBounded(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	if info.Size() > limit {
		return nil, fmt.Errorf("%s has %d bytes, more than %d", path, info.Size(), limit)
	}
	return os.ReadFile(path)
}
