package sbom

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"slices"
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

// accountFiles have the accounts of an image: ostree keeps its own below /usr
// (nss-altfiles).
var accountFiles = []struct{ kind, file string }{{"user", "etc/passwd"}, {"user", "usr/lib/passwd"}, {"group", "etc/group"}, {"group", "usr/lib/group"}}

// maxAccounts bounds such a file in bytes.
const maxAccounts = 4 << 20

// accountProperty begins the name of the property with an account's number.
const accountProperty = "halogenos:"

// ReadAccounts reads the accounts of a tree, without anything but names and numbers. A line
// that is not an account is none.
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
// those are not the same, and of each number that a new account has whose former account is
// gone: what that one owned is the new one's. Of lines with the same name the first counts,
// as for programs.
func Moved(was, is []Account) (moved []string) {
	before, now := firsts(was), firsts(is)
	names := make(map[number][]string) // that a number had
	for _, a := range was {
		if before[account{a.Kind, a.Name}] == a.Number {
			names[number{a.Kind, a.Number}] = append(names[number{a.Kind, a.Number}], a.Name)
		}
	}
	said := map[account]bool{}
	for _, a := range is {
		who := account{a.Kind, a.Name}
		if said[who] {
			continue
		}
		said[who] = true
		n, had := before[who]
		switch former := names[number{a.Kind, a.Number}]; {
		case had && n != a.Number:
			moved = append(moved, fmt.Sprintf("%s %q from %d to %d", a.Kind, a.Name, n, a.Number))
		case !had && len(former) > 0 && !slices.ContainsFunc(former, func(name string) bool { _, stays := now[account{a.Kind, name}]; return stays }):
			moved = append(moved, fmt.Sprintf("%s %q has %d, which was that of %q", a.Kind, a.Name, a.Number, former[0]))
		}
	}
	return moved
}

type account struct{ kind, name string }

type number struct {
	kind string
	n    uint32
}

// firsts are the accounts' numbers.
func firsts(all []Account) map[account]uint32 {
	out := make(map[account]uint32)
	for _, a := range all {
		if _, twice := out[account{a.Kind, a.Name}]; !twice {
			out[account{a.Kind, a.Name}] = a.Number
		}
	}
	return out
}
