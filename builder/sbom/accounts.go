package sbom

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"github.com/CycloneDX/cyclonedx-go"
)

// An Account is a user or a group of an image: whose number it is that its files have.
type Account struct {
	Kind   string // "user" or "group"
	Name   string
	Number uint32
}

// accountFiles have the accounts of an image.
var accountFiles = []struct{ kind, file string }{{"user", "etc/passwd"}, {"group", "etc/group"}}

// maxAccounts bounds such a file in bytes.
const maxAccounts = 4 << 20

// accountProperty begins the name of the property with an account's number.
const accountProperty = "halogenos:"

// ReadAccounts reads the accounts of a tree, without anything but names and numbers. A line
// that is no account is none.
func ReadAccounts(files Files) ([]Account, error) {
	var all []Account
	for _, f := range accountFiles {
		text, err := files.ReadFile(f.file, maxAccounts)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(text)) {
			field := strings.Split(line, ":")
			if len(field) < 3 || field[0] == "" || strings.HasPrefix(line, "#") {
				continue
			}
			if n, err := strconv.ParseUint(field[2], 10, 32); err == nil {
				all = append(all, Account{f.kind, field[0], uint32(n)})
			}
		}
	}
	return all, nil
}

// properties are the accounts as the image's properties in a bill.
func properties(all []Account) *[]cyclonedx.Property {
	if len(all) == 0 {
		return nil
	}
	var out []cyclonedx.Property
	for _, a := range all {
		out = append(out, cyclonedx.Property{Name: accountProperty + a.Kind + ":" + a.Name, Value: strconv.FormatUint(uint64(a.Number), 10)})
	}
	return &out
}

// AccountsOf are the accounts that a bill names; none for one that an earlier release of
// halogen wrote.
func AccountsOf(bill []byte) ([]Account, error) {
	var bom cyclonedx.BOM
	if err := cyclonedx.NewBOMDecoder(bytes.NewReader(bill), cyclonedx.BOMFileFormatJSON).Decode(&bom); err != nil {
		return nil, fmt.Errorf("bill of materials: %w", err)
	}
	if bom.Metadata == nil || bom.Metadata.Component == nil || bom.Metadata.Component.Properties == nil {
		return nil, nil
	}
	var all []Account
	for _, p := range *bom.Metadata.Component.Properties {
		rest, ours := strings.CutPrefix(p.Name, accountProperty)
		kind, name, ok := strings.Cut(rest, ":")
		if !ours || !ok || kind != "user" && kind != "group" {
			continue
		}
		n, err := strconv.ParseUint(p.Value, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("bill of materials: number of %s %q: %w", kind, name, err)
		}
		all = append(all, Account{kind, name, uint32(n)})
	}
	return all, nil
}

// Moved says of each account that both have which number it had and which it has, where
// those are not the same. Of lines with the same name the first counts, as for programs.
func Moved(was, is []Account) (moved []string) {
	type key struct{ kind, name string }
	before, seen := map[key]uint32{}, map[key]bool{}
	for _, a := range was {
		if _, twice := before[key{a.Kind, a.Name}]; !twice {
			before[key{a.Kind, a.Name}] = a.Number
		}
	}
	for _, a := range is {
		k := key{a.Kind, a.Name}
		n, had := before[k]
		if had && n != a.Number && !seen[k] {
			moved = append(moved, fmt.Sprintf("%s %q from %d to %d", a.Kind, a.Name, n, a.Number))
		}
		seen[k] = true
	}
	return moved
}
