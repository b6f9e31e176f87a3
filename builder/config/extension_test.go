package config

import (
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"halogenos.internal/boot/contract"
)

const minimal = "[Image]\nImageID=a\nReleaseKey=none\n"

// FAULTS 111
func TestExtensions(t *testing.T) {
	dir := t.TempDir()
	c, err := Parse(minimal+"[Extension vpn]\nSource=vpn.tar\n[Extension nvidia]\nEssential=yes\nSource=/srv/nvidia\n", dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"vpn=other,essential", "more=a=b"} {
		if err := c.AddExtension(text); err != nil {
			t.Error(text, err)
		}
	}
	want := []Extension{{"vpn", "other", true}, {"nvidia", "/srv/nvidia", true}, {"more", "a=b", false}}
	if !reflect.DeepEqual(c.Extensions, want) {
		t.Errorf("got %+v, want %+v", c.Extensions, want)
	}
	if c, err := Parse(minimal+"[Extension vpn]\nSource=vpn.tar\n", dir); err != nil || c.Extensions[0].Source != filepath.Join(dir, "vpn.tar") {
		t.Errorf("got %+v, %v", c, err)
	}
	// One without a source is not forgotten: the build asks for it.
	if c, err := Parse(minimal+"[Extension vpn]\n#Source=vpn.tar\n[Allow]\n", dir); err != nil || !reflect.DeepEqual(c.Extensions, []Extension{{Name: "vpn"}}) {
		t.Errorf("an empty section: %+v, %v", c, err)
	}
	for text, want := range map[string]string{
		"[Extension  vpn]\nSource=a":        "want a name of 1 to 64",
		"[Extension Vpn]":                   "line 4: section [Extension Vpn]: extension \"Vpn\": want a name",
		"[extension vpn]":                   "line 4: unknown section [extension vpn]",
		"[Extension]\nSource=a":             "want a name of 1 to 64",
		"[Extension ../x]\nSource=a":        "want a name of 1 to 64",
		"[Extension a b]\nSource=a":         "want a name of 1 to 64",
		"[Extension a]\nSource=":            "is not the name of a directory",
		"[Extension a]\nEssential=maybe":    "neither yes nor no",
		"[Extension a]\nName=b":             "unknown key Name in [Extension a]",
		"[Extension a]\nSource=b\nSource=c": "is given again",
		"[Extensions]\nSource=a":            "unknown section [Extensions]",
	} {
		if _, err := Parse(minimal+text+"\n", dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	for _, text := range []string{"", "vpn", "vpn=", "=src", "VPN=src", "vpn=,essential"} {
		if err := c.AddExtension(text); err == nil {
			t.Errorf("took %q", text)
		}
	}
	for i := range contract.MaxExtensions {
		err = c.AddExtension("x" + strings.Repeat("y", i%60) + string(rune('a'+i/60)) + "=src")
	}
	if err == nil || !strings.Contains(err.Error(), "one too many") {
		t.Errorf("the last of too many: %v", err)
	}
}
