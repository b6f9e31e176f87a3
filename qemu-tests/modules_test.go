package qemutests

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/builder/modules"
	"halogenos.internal/builder/rootfs/rootfstest"
)

// smallModule is a module that needs no other and is used by nothing at work: small
// enough to be typed.
const smallModule = "crc7"

// debianModule reads the module from the tree that the Debian image was made of.
func debianModule(t testing.TB) []byte {
	t.Helper()
	dir := os.Getenv("HALOGEN_DEBIAN")
	if dir == "" {
		t.Fatal("HALOGEN_DEBIAN names no root file system: make boot-test has one")
	}
	files, err := filepath.Glob(filepath.Join(dir, "usr/lib/modules/*/kernel/lib", smallModule+".ko*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("modules %q, %v", files, err)
	}
	raw, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	plain, err := modules.Unpack(files[0], raw)
	if err != nil {
		t.Fatal(err)
	}
	return plain
}

// unsigned takes the signature off a module.
func unsigned(t testing.TB, module []byte) []byte {
	t.Helper()
	// The signature starts with the sequence of PKCS#7, in the last two KiB.
	const start = "\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02"
	at := bytes.LastIndex(module, []byte(start))
	if !modules.Signed(module) || at < 4 {
		t.Fatal("the module has no signature")
	}
	return module[:at-4]
}

// typeFile puts a file into the machine by way of its console.
func (g *Guest) typeFile(name string, content []byte) {
	g.t.Helper()
	var packed bytes.Buffer
	w, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	if err != nil {
		g.t.Fatal(err)
	}
	if _, err := w.Write(content); err != nil {
		g.t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		g.t.Fatal(err)
	}
	text := base64.StdEncoding.EncodeToString(packed.Bytes())
	g.says(": >/run/typed", "")
	for len(text) > 0 {
		n := min(len(text), 600)
		g.says("echo "+text[:n]+" >>/run/typed", "^$")
		text = text[n:]
	}
	g.says("base64 -d </run/typed | gzip -d >"+name, "^$")
}

// checkModules has the kernel refuse modules that it must not load, and load the one
// that they were made of.
func checkModules(g *Guest) {
	g.t.Helper()
	module := debianModule(g.t)
	plain := unsigned(g.t, module)
	stranger, err := rootfstest.NewKeyPair("stranger")
	if err != nil {
		g.t.Fatal(err)
	}
	signed, err := modules.Sign(plain, stranger.Certificate, stranger.Key)
	if err != nil {
		g.t.Fatal(err)
	}
	g.says("cat /sys/module/module/parameters/sig_enforce", "^Y$")
	for name, content := range map[string][]byte{
		"unsigned":           plain,
		"changed":            bytes.Replace(module, []byte("license="), []byte("licence="), 1),
		"of-another":         bytes.Replace(module, []byte("vermagic=6."), []byte("vermagic=5."), 1),
		"of-a-strangers-key": signed,
	} {
		if bytes.Equal(content, module) {
			g.t.Fatalf("%s is the module itself", name)
		}
		g.typeFile("/run/"+name+".ko", content)
		output, status := g.shell("insmod /run/" + name + ".ko")
		if status == "0" || !strings.Contains(output, "could not insert module") {
			g.t.Errorf("a module %s: exit status %s, %q", name, status, output)
		}
	}
	g.says("modprobe "+smallModule+" && grep -c ^"+smallModule+" /proc/modules && rmmod "+smallModule, `^1$`)
}
