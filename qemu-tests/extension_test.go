package qemutests

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/extension"
	"halogenos.internal/boot/statefiles"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/boot/verity"
	"halogenos.internal/builder/vm"
	"halogenos.internal/qemu-tests/testos/protocol"
)

// An extensionFile is a system extension, and its file on this computer.
type extensionFile struct {
	contract.Extension
	path string
}

type extensionFiles []extensionFile

// String names the machines whose release has them.
func (x extensionFiles) String() string {
	var text strings.Builder
	for _, e := range x.list() {
		fmt.Fprintf(&text, "%s %x %v ", e.Name, e.RootHash, e.Essential)
	}
	return text.String()
}

func (x extensionFiles) list() (all []contract.Extension) {
	for _, e := range x {
		all = append(all, e.Extension)
	}
	return all
}

// makeExtension makes one of files below /usr.
func makeExtension(t testing.TB, name string, essential bool, files map[string][]byte) extensionFile {
	t.Helper()
	tree := t.TempDir()
	for file, content := range files {
		path := filepath.Join(tree, "usr", file)
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must(t, os.WriteFile(path, content, 0o644))
	}
	path := filepath.Join(t.TempDir(), name+".raw")
	testkit.Run(t, "mkfs.erofs", "--quiet", "-T0", "-U00000000-0000-0000-0000-000000000000", path, tree)
	image, err := os.ReadFile(path)
	must(t, err)
	e := contract.Extension{Name: name, Salt: []byte("salt"), ImageSize: int64(len(image)), RootHash: make([]byte, len(verity.Root{})), Essential: essential}
	for range 2 { // the UUID in the superblock is made of the root hash
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		must(t, err)
		root, err := verity.Generate(t.Context(), bytes.NewReader(image), e.VerityParams(), io.NewOffsetWriter(f, e.ImageSize), func(int64) {})
		must(t, err)
		must(t, f.Close())
		e.RootHash = root[:]
	}
	must(t, e.Validate())
	return extensionFile{e, path}
}

func (e extensionFile) content(t testing.TB) []byte {
	t.Helper()
	content, err := os.ReadFile(e.path)
	must(t, err)
	return content
}

// Places in the running system.
const (
	extensionsDirectory = statefiles.Directory + "/" + extension.Directory
	extensionChoice     = extensionsDirectory + "/" + extension.ChoiceName
)

// enables writes which extensions the machine has enabled.
func (g *Guest) enables(names ...string) {
	g.t.Helper()
	var choice extension.Choice
	for _, name := range names {
		var err error
		choice, err = choice.With(name)
		must(g.t, err)
	}
	g.Do(nil, "write", extensionChoice, string(choice.Encode()))
}

// textOf reads a file of text.
func (g *Guest) textOf(path string) string {
	g.t.Helper()
	var file struct{ Text string }
	g.Do(&file, "read", path)
	return file.Text
}

// TestExtension: version 2 has an extension, which the machine gets and enables; its files are
// then part of /usr, through dm-verity. A byte that is changed in its file is not read, and the
// system runs on; a file of another content is left out. One that is essential and missing stops
// the boot, and version 1 is not asked about it.
// FAULTS 111
func TestExtension(t *testing.T) {
	t.Parallel()
	large := bytes.Repeat([]byte("of the extension\n"), 64<<10)
	vpn := makeExtension(t, "vpn", false, map[string][]byte{"share/vpn/text": []byte("of version 2\n"), "share/vpn/large": large})
	driver := makeExtension(t, "driver", true, map[string][]byte{"share/driver/text": []byte("a driver\n")})
	disk := holdsModules(t, map[string][]byte{"vpn.raw": vpn.content(t)})
	g := onTrial(t, variant{Watchdog: 20, Extensions: extensionFiles{driver, vpn}}, tries, vm.Options{Disks: []vm.Disk{disk}})
	g.PowerOn()
	r := g.boots(newSystem())
	g.bless(r)

	i := slices.IndexFunc(r.Disks, func(d protocol.Disk) bool { return d.Serial == "disk1" })
	if i < 0 || len(r.Disks[i].Kernel) != 1 {
		t.Fatalf("disks %+v; want one with the extension", r.Disks)
	}
	g.mountFAT("/dev/"+r.Disks[i].Kernel[0], "ro")
	g.Do(nil, "mkdir", extensionsDirectory)
	file := extensionsDirectory + "/" + extension.FileName(vpn.Root())
	g.Do(nil, "cp", "/mnt/vpn.raw", file)
	g.Do(nil, "umount", "/mnt")
	g.enables("vpn")
	g.Do(nil, "reboot")
	if opened := extensionsOf(t, g.boots(blessed())); len(opened) != 1 || opened[0].Name != "vpn" {
		t.Errorf("the boot says that it has opened %v", opened)
	}
	if text := g.textOf("/usr/share/vpn/text"); text != "of version 2\n" {
		t.Errorf("the extension has %q", text)
	}

	// A changed byte, far behind what the boot looks at.
	at := bytes.Index(vpn.content(t), large[:4096]) + len(large)/2
	g.Do(nil, "ddwrite", file, fmt.Sprint(at), hex.EncodeToString([]byte("X")))
	g.Do(nil, "reboot")
	g.boots(blessed())
	if err := g.Try(nil, "sha256", "/usr/share/vpn/large"); err == nil || !strings.Contains(err.Error(), "input/output error") {
		t.Errorf("a file with a changed byte is read: %v", err)
	}
	if text := g.textOf("/usr/share/vpn/text"); text != "of version 2\n" {
		t.Errorf("beside a changed byte the extension has %q", text)
	}

	// Another content of the same size.
	g.Do(nil, "ddwrite", file, fmt.Sprint(vpn.ImageSize+verity.BlockSize), strings.Repeat("00", 64))
	g.Do(nil, "reboot")
	g.Expect(`WARNING: [^\n]*vpn[^\n]*`)
	g.boots(blessed())
	if err := g.Try(nil, "read", "/usr/share/vpn/text"); err == nil {
		t.Error("an extension that is another one is part of the system")
	}

	g.enables("driver", "vpn")
	g.Do(nil, "reboot")
	g.Expect(`RECOVERY: [^\n]*driver[^\n]*`)
}
