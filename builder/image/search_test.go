package image

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/builder/config"
	"halogenos.internal/builder/rootfs/rootfstest"
	"halogenos.internal/builder/scan"
)

func privateKey(t *testing.T) []byte {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func TestSecretsAreRefused(t *testing.T) {
	allowed := func(o *Options, text string) {
		c, err := config.Parse(configuration+"[Allow]\n"+text, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		o.Config = c
	}
	for _, c := range []struct {
		name   string
		change func(o *Options, f rootfstest.Files)
		say    string // empty: it is built
	}{
		{"in the system image", func(_ *Options, f rootfstest.Files) { f["usr/share/thing"] = privateKey(t) }, "/usr/share/thing at byte 0: private-key-pem"},
		{"in a command of the machine", func(o *Options, _ rootfstest.Files) {
			name := filepath.Join(o.Machine, "bb")
			program, err := os.ReadFile(name)
			if err == nil {
				err = os.WriteFile(name, append(program, privateKey(t)...), 0o755)
			}
			if err != nil {
				t.Fatal(err)
			}
		}, "initramfs!/bin/bb at byte"},
		{"but not when it is allowed", func(o *Options, f rootfstest.Files) {
			f["usr/share/thing"] = privateKey(t)
			allowed(o, "private-key-pem=/usr/share/thing it is a test\n")
		}, ""},
		{"by an entry for something else", func(o *Options, _ rootfstest.Files) {
			allowed(o, "private-key-pem=/usr/share/thing it is a test\n")
		}, "matches nothing"},
	} {
		t.Run(c.name, func(t *testing.T) {
			files := rootfstest.Minimal()
			o := options(t, "")
			c.change(&o, files)
			o.RootFS = files.Write(t, false)
			_, err := Build(t.Context(), o)
			if c.say == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.say) {
				t.Fatalf("error %v, want %q", err, c.say)
			}
			if secrets := (*scan.SecretsError)(nil); strings.Contains(c.say, "at byte") && !errors.As(err, &secrets) {
				t.Errorf("error %T", err)
			}
			if left := listing(t, o.Out); len(left) > 0 {
				t.Errorf("left %q", left)
			}
		})
	}
}
