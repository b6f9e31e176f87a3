package contract

import (
	"bytes"
	"reflect"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/verity"
)

func sampleExtensions() []Extension {
	hash := bytes.Repeat([]byte{7}, len(verity.Root{}))
	return []Extension{
		{Name: "nvidia", RootHash: hash, Salt: []byte{1}, ImageSize: 3 * verity.BlockSize, Essential: true, Modules: true},
		{Name: "vpn", RootHash: hash, Salt: []byte{1}, ImageSize: verity.BlockSize},
	}
}

// initrdWith is the start of an initramfs with a list, and something compressed behind it.
func initrdWith(t *testing.T, list []Extension) []byte {
	t.Helper()
	first, err := Archive(sample())
	if err != nil {
		t.Fatal(err)
	}
	third, err := ExtensionsArchive(list)
	if err != nil {
		t.Fatal(err)
	}
	return slices.Concat(first, third, []byte("\x28\xb5\x2f\xfd and so on"))
}

func TestExtensions(t *testing.T) {
	for _, want := range [][]Extension{nil, sampleExtensions()} {
		initrd := initrdWith(t, want)
		got, err := ExtensionsFromInitrd(initrd)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
		// An initagent that knows nothing of extensions reads the rest as before.
		if c, err := FromInitrd(initrd); err != nil || c.ImageID != "desktop" || AbilitiesFromInitrd(initrd) != Own() {
			t.Errorf("the contract and the abilities beside a list: %+v, %v", c, err)
		}
	}
	e := sampleExtensions()[0]
	if size, err := e.FileSize(); err != nil || size <= e.ImageSize || size%verity.BlockSize != 0 {
		t.Errorf("file of %d bytes, %v", size, err)
	}
}

func TestExtensionsThatAreRefused(t *testing.T) {
	for what, spoil := range map[string]func(list []Extension){
		"name":       func(l []Extension) { l[0].Name = "../up" },
		"twice":      func(l []Extension) { l[1].Name = l[0].Name },
		"root hash":  func(l []Extension) { l[0].RootHash = l[0].RootHash[:31] },
		"salt":       func(l []Extension) { l[0].Salt = nil },
		"image size": func(l []Extension) { l[1].ImageSize = 4095 },
	} {
		list := sampleExtensions()
		spoil(list)
		if _, err := ExtensionsArchive(list); err == nil || !strings.Contains(err.Error(), what) && what != "name" {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := ExtensionsArchive(slices.Repeat(sampleExtensions()[:1], MaxExtensions+1)); err == nil {
		t.Error("too many extensions are taken")
	}
	for _, text := range []string{"", "{}", `{"format":2,"extensions":[]}`, `{"format":1,"extensions":[]}`, `{"format":1,"more":1}`} {
		if list, err := ParseExtensions([]byte(text)); err == nil {
			t.Errorf("%s: %v, want an error", text, list)
		}
	}
}

// A list that is read says the same when it is written and read again.
func FuzzExtensionsFromInitrd(f *testing.F) {
	first, err := Archive(sample())
	if err != nil {
		f.Fatal(err)
	}
	third, err := ExtensionsArchive(sampleExtensions())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(slices.Concat(first, third))
	f.Add(first)
	f.Fuzz(func(t *testing.T, initrd []byte) {
		list, err := ExtensionsFromInitrd(initrd)
		if err != nil || list == nil {
			return
		}
		again, err := ExtensionsArchive(list)
		if err != nil {
			t.Fatalf("%+v cannot be written: %v", list, err)
		}
		got, err := ExtensionsFromInitrd(slices.Concat(first, again))
		if err != nil || !reflect.DeepEqual(got, list) {
			t.Fatalf("got %+v, %v, want %+v", got, err, list)
		}
	})
}
