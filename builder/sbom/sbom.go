// Package sbom writes down what an image is made of and how it was made: a bill
// of materials (CycloneDX 1.6) and its provenance (in-toto, SLSA 1.0).
//
// It refuses nothing that it does not find: an image whose packages nobody
// wrote down has a bill without them. Neither document has a time or a path of
// the machine that made it, so that another machine makes the same.
package sbom

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/CycloneDX/cyclonedx-go"
)

// A Bill is what goes into a bill of materials.
type Bill struct {
	Name, Version string // of the image
	Serial        string // a UUID
	Date          time.Time
	Builder       string    // version of the halogen that built it
	Packages      []Package // of the operating system
	// Programs are Go programs of the machine with their modules.
	Programs []Program
	Firmware []Firmware // that the kernel loads at its start
	Kernel   string     // its release
	Accounts []Account
	// Extensions are files beside the image, which a machine may lay over it.
	Extensions []Extension
}

// An Extension is a system extension of the image.
type Extension struct {
	Name     string
	SHA256   string // hexadecimal, of its file
	Packages []Package
	Programs []Program // of Go
}

// A Program is a Go program.
type Program struct {
	Name    string
	SHA256  string // hexadecimal
	Modules []Package
}

// Firmware is a file for a part of the machine.
type Firmware struct {
	Name     string
	Supplier string
	SHA256   string // hexadecimal
}

// Encode returns the bill in JSON.
func (b Bill) Encode() ([]byte, error) {
	bom := cyclonedx.NewBOM()
	bom.SerialNumber = "urn:uuid:" + b.Serial
	root := cyclonedx.Component{BOMRef: "image", Type: cyclonedx.ComponentTypeOS, Name: b.Name, Version: b.Version, Properties: properties(b.Accounts)}
	bom.Metadata = &cyclonedx.Metadata{
		Timestamp: b.Date.UTC().Format(time.RFC3339), Component: &root,
		Tools: &cyclonedx.ToolsChoice{Components: &[]cyclonedx.Component{{Type: cyclonedx.ComponentTypeApplication, Name: "halogen", Version: b.Builder}}},
	}
	var all []cyclonedx.Component
	var within []string
	add := func(c cyclonedx.Component) {
		if !slices.ContainsFunc(all, func(have cyclonedx.Component) bool { return have.BOMRef == c.BOMRef }) {
			all = append(all, c)
		}
	}
	if b.Kernel != "" {
		ref := "kernel@" + b.Kernel
		add(cyclonedx.Component{BOMRef: ref, Type: cyclonedx.ComponentTypeOS, Name: "linux", Version: b.Kernel})
		within = append(within, ref)
	}
	for _, p := range b.Packages {
		add(component(p))
		within = append(within, p.URL())
	}
	depend := []cyclonedx.Dependency{}
	program := func(p Program) string {
		ref := "program/" + p.Name
		add(hashed(cyclonedx.ComponentTypeApplication, ref, p.Name, p.SHA256))
		var modules []string
		for _, m := range p.Modules {
			add(component(m))
			modules = append(modules, m.URL())
		}
		depend = append(depend, cyclonedx.Dependency{Ref: ref, Dependencies: &modules})
		return ref
	}
	for _, p := range b.Programs {
		within = append(within, program(p))
	}
	for _, e := range b.Extensions {
		ref := "extension/" + e.Name
		add(hashed(cyclonedx.ComponentTypeFile, ref, e.Name, e.SHA256))
		within = append(within, ref)
		has := []string{}
		for _, p := range e.Packages {
			add(component(p))
			has = append(has, p.URL())
		}
		for _, p := range e.Programs {
			has = append(has, program(p))
		}
		depend = append(depend, cyclonedx.Dependency{Ref: ref, Dependencies: &has})
	}
	for _, f := range b.Firmware {
		ref := "firmware/" + f.Name
		c := hashed(cyclonedx.ComponentTypeFirmware, ref, f.Name, f.SHA256)
		c.Supplier = &cyclonedx.OrganizationalEntity{Name: f.Supplier}
		add(c)
		within = append(within, ref)
	}
	depend = append([]cyclonedx.Dependency{{Ref: "image", Dependencies: &within}}, depend...)
	bom.Components, bom.Dependencies = &all, &depend
	var out bytes.Buffer
	e := cyclonedx.NewBOMEncoder(&out, cyclonedx.BOMFileFormatJSON)
	e.SetPretty(true)
	e.SetEscapeHTML(false)
	if err := e.EncodeVersion(bom, cyclonedx.SpecVersion1_6); err != nil {
		return nil, fmt.Errorf("write bill of materials: %w", err)
	}
	return out.Bytes(), nil
}

// hashed is a component that is one file.
func hashed(kind cyclonedx.ComponentType, ref, name, sum string) cyclonedx.Component {
	return cyclonedx.Component{BOMRef: ref, Type: kind, Name: name, Hashes: &[]cyclonedx.Hash{{Algorithm: cyclonedx.HashAlgoSHA256, Value: sum}}}
}

func component(p Package) cyclonedx.Component {
	c := cyclonedx.Component{
		BOMRef: p.URL(), Type: cyclonedx.ComponentTypeLibrary, Group: p.Namespace, Name: p.Name, Version: p.Version, PackageURL: p.URL(),
	}
	if p.Supplier != "" {
		c.Supplier = &cyclonedx.OrganizationalEntity{Name: p.Supplier}
	}
	if p.License != "" {
		c.Licenses = &cyclonedx.Licenses{{License: &cyclonedx.License{Name: p.License}}}
	}
	return c
}

// A Digest names bytes that something was made of or that were made.
type Digest struct {
	Name   string
	SHA256 string // hexadecimal
}

// A Provenance says how a release was made (in-toto Attestation Framework 1.0;
// SLSA 1.0, "Provenance").
type Provenance struct {
	Made       []Digest          // the files of the release
	Parameters map[string]any    // that the distributor chose
	Used       []Digest          // what it was made of
	Tools      map[string]string // versions of what made it
	Invocation string            // names the build; the same for the same
}

// Types of the statement. The build's says how the parameters are meant.
const (
	statementType = "https://in-toto.io/Statement/v1"
	predicateType = "https://slsa.dev/provenance/v1"
	buildType     = "urn:halogenos:build:1"
	builderID     = "urn:halogenos:halogen"
)

type resource struct {
	Name   string            `json:"name"`
	Digest map[string]string `json:"digest"`
}

func resources(all []Digest) []resource {
	out := make([]resource, len(all))
	for i, d := range all {
		out[i] = resource{d.Name, map[string]string{"sha256": d.SHA256}}
	}
	return out
}

// Encode returns the statement in JSON.
func (p Provenance) Encode() ([]byte, error) {
	type object map[string]any
	text, err := json.MarshalIndent(object{
		"_type": statementType, "subject": resources(p.Made), "predicateType": predicateType,
		"predicate": object{
			"buildDefinition": object{"buildType": buildType, "externalParameters": p.Parameters, "resolvedDependencies": resources(p.Used)},
			"runDetails":      object{"builder": object{"id": builderID, "version": p.Tools}, "metadata": object{"invocationId": p.Invocation}},
		},
	}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write provenance: %w", err)
	}
	return append(text, '\n'), nil
}
