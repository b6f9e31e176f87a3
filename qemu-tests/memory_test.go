package qemutests

import (
	"bytes"
	"crypto/aes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
	"golang.org/x/crypto/xts"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/boot/uki"
	"halogenos.internal/builder/vm"
	"halogenos.internal/initagent/firstboot"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
	"halogenos.internal/qemu-tests/testos/theft"
)

func TestSearch(t *testing.T) {
	needles := []needle{{name: "a", bytes: []byte("needle-of-some-length")}, {name: "b", bytes: []byte("0123456789abcdef")}}
	for _, at := range []int{0, 1, 4<<20 - 25, 4<<20 - 21, 4<<20 - 20, 4<<20 - 1, 4 << 20, 8<<20 - 3} {
		hay := bytes.Repeat([]byte{'x'}, 9<<20)
		copy(hay[at:], needles[0].bytes)
		found, size, err := search(bytes.NewReader(hay), needles)
		if err != nil || size != int64(len(hay)) || found["a"] != 1 || found["b"] != 0 {
			t.Errorf("at %d: %v in %d bytes, %v", at, found, size, err)
		}
	}
}

// secrets are what somebody learns who has a machine that is off, and replays its
// last good boot to its TPM.
func secrets(t *testing.T, p Provisioned) []needle {
	t.Helper()
	o := openRoot(t, p)
	passphrase, volumeKey := o.secret.LUKSPassphrase(), o.volumeKey
	write, err := o.secret.WriteKey()
	must(t, err)
	scalar, err := write.Bytes()
	must(t, err)
	wrap := o.secret.Key(firstboot.Purpose)
	out := []needle{
		{name: "machine secret", bytes: o.secret.Bytes()},
		{name: "machine secret in hexadecimal", bytes: []byte(fmt.Sprintf("%x", o.secret.Bytes()))},
		{name: passphraseNeedle, bytes: passphrase},
		{name: "key that may write the NV index", bytes: scalar},
		{name: "key that may write the NV index, words reversed", bytes: reversed(scalar)},
		{name: "key that wraps the Secure Boot keys", bytes: wrap[:]},
		{name: volumeKeyNeedle, bytes: volumeKey[:len(volumeKey)/2], mapped: true},
		{name: volumeKeyNeedle + ", tweak", bytes: volumeKey[len(volumeKey)/2:], mapped: true},
	}
	out = append(out, recoveryNeedles(t, p.Notes[recoveryKeyNote])...)
	return append(out, secureBootNeedles(o.keys(t))...)
}

// An openedRoot is a machine's root partition that its TPM has opened.
type openedRoot struct {
	volume    *os.File
	header    *luks2.Header
	volumeKey []byte
	secret    *policy.Secret
}

// openRoot replays a machine's last good boot to its TPM. The machine is off.
func openRoot(t *testing.T, p Provisioned) *openedRoot {
	t.Helper()
	s, err := p.State.Clone(filepath.Join(t.TempDir(), "stolen"))
	must(t, err)
	d := openDisk(t, s.Disk(), os.O_RDONLY)
	_, size := d.partition(layout.Root)
	volume, err := os.Open(d.cut(layout.Root))
	must(t, err)
	t.Cleanup(func() { volume.Close() })
	sealed, err := theft.Sealed(volume, size)
	must(t, err)
	socket, stop := softwareTPM(t, s)
	defer stop()
	wire, err := linuxudstpm.Open(socket)
	must(t, err)
	replay(t, wire, s)
	chip := tpm.OpenTransport(wire)
	secret, _, err := chip.Unseal(sealed)
	must(t, err)
	must(t, chip.Close())
	must(t, wire.Close())

	header, _, err := luks2.Open(volume, size)
	must(t, err)
	volumeKey, _, err := header.Unlock(volume, secret.LUKSPassphrase(), 1<<30)
	must(t, err)
	return &openedRoot{volume, header, volumeKey, secret}
}

// keys are the machine's Secure Boot keys, which its root partition has.
func (o *openedRoot) keys(t *testing.T) *secureboot.KeySet {
	t.Helper()
	segment, err := o.header.Segment()
	must(t, err)
	plain := decrypt(t, segment, o.volume, o.volumeKey)
	wrapped := filepath.Join(t.TempDir(), "keys")
	testkit.Run(t, "debugfs", "-R", "dump /"+rootpart.ListFile+" "+wrapped, plain)
	text, err := os.ReadFile(wrapped)
	must(t, err)
	keys, err := firstboot.UnwrapKeys(o.secret, text)
	must(t, err)
	return keys
}

// recoveryNeedles are a recovery key as text, with and without its dashes, and as
// the bytes that it stands for.
func recoveryNeedles(t *testing.T, text string) []needle {
	t.Helper()
	key, err := luks2.ParseRecoveryKey([]byte(text))
	must(t, err)
	return []needle{
		{name: "recovery key", bytes: []byte(text)},
		{name: "recovery key without dashes", bytes: []byte(strings.ReplaceAll(text, "-", ""))},
		{name: "recovery key's bytes", bytes: key.Bytes()},
	}
}

// secureBootNeedles are the private keys.
func secureBootNeedles(keys *secureboot.KeySet) []needle {
	var out []needle
	for _, k := range []struct {
		name string
		pair secureboot.Pair
	}{{"PK", keys.PK}, {"KEK", keys.KEK}, {"db", keys.DB}} {
		for name, n := range map[string][]byte{
			"private exponent": k.pair.Key.D.Bytes(), "prime p": k.pair.Key.Primes[0].Bytes(), "prime q": k.pair.Key.Primes[1].Bytes(),
		} {
			out = append(out, needle{name: k.name + "'s " + name, bytes: n}, needle{name: k.name + "'s " + name + ", words reversed", bytes: reversed(n)})
		}
	}
	return out
}

// decrypt writes what was ever written of a volume in clear.
func decrypt(t *testing.T, segment luks2.Segment, volume *os.File, volumeKey []byte) (path string) {
	t.Helper()
	cipher, err := xts.NewCipher(aes.NewCipher, volumeKey)
	must(t, err)
	f, err := os.Create(filepath.Join(t.TempDir(), "plain"))
	must(t, err)
	defer f.Close()
	start, size := segment.Offset, segment.Length
	must(t, f.Truncate(size))
	sector := make([]byte, segment.Sector)
	must(t, vm.DataExtents(volume, start+size, func(off, length int64) error {
		for at := (max(off, start) - start) / int64(len(sector)) * int64(len(sector)); at < off+length-start; at += int64(len(sector)) {
			if _, err := volume.ReadAt(sector, start+at); err != nil {
				return err
			}
			cipher.Decrypt(sector, sector, uint64(at)/512)
			if _, err := f.WriteAt(sector, at); err != nil {
				return err
			}
		}
		return nil
	}))
	return f.Name()
}

// TestMemory: nothing that opens the machine, or speaks for it, lies in its memory
// where somebody gets a shell or the system runs.
// FAULTS 75, 85, 88, 104
func TestMemory(t *testing.T) {
	t.Parallel()
	p := provisioned(t)
	needles := secrets(t, p)
	for _, tt := range []struct {
		name    string
		from    func(t testing.TB) Provisioned
		prepare func(s vm.State) error
		run     func(g *Guest) (open bool)
	}{
		{"console asked for early", provisionedAtInit, nil, func(g *Guest) bool {
			g.Expect(`halogen: press r for the recovery console`)
			g.typed("r")
			g.expectConsole()
			return false
		}},
		{"console asked for after the unlock", provisionedAtInit, nil, func(g *Guest) bool {
			g.Expect(`halogen: unlock \(`)
			g.typed("r")
			g.Expect(`The machine restarts into the recovery console`)
			g.expectConsole()
			return false
		}},
		{"console after a failed unlock", refusedAtInit, nil, func(g *Guest) bool {
			g.Expect(asksForKey)
			g.typeLine("")
			g.expectConsole()
			return false
		}},
		{"console after a wrong recovery key", refusedAtInit, nil, func(g *Guest) bool {
			g.Expect(asksForKey)
			g.typeLine(wrongKey(p.Notes[recoveryKeyNote]))
			g.Expect(`Nothing is lost: try again`)
			g.Expect(asksForKey)
			g.typeLine("")
			g.expectConsole()
			return false
		}},
		{"console after a failed mount", provisionedAtInit, breakFileSystem(t), func(g *Guest) bool {
			g.Expect(asksForKey)
			g.typeLine("")
			g.Expect(`The machine restarts into the recovery console`)
			g.expectConsole()
			return false
		}},
		{"system opened by the TPM", provisioned, nil, func(g *Guest) bool { g.Boot(); return true }},
		{"system opened by the recovery key", refusedAtInit, nil, func(g *Guest) bool {
			g.Expect(asksForKey)
			g.typeLine(p.Notes[recoveryKeyNote])
			g.Expect(`\[y/N\] `)
			g.typeLine("y")
			g.Boot()
			return true
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			g := Machine(t, Options{State: tt.from(t).State, Prepare: tt.prepare})
			open := tt.run(g)
			g.wantNoSecrets(tt.name, needles, open)
		})
	}
}

// TestMemoryKeyboard: the recovery key is typed in front of a screen, on a USB keyboard,
// once wrong and once right.
// FAULTS 75, 104
func TestMemoryKeyboard(t *testing.T) {
	t.Parallel()
	p := provisioned(t)
	o := vm.Options{Display: true, Extra: []string{"-machine", "i8042=off", "-device", "qemu-xhci,id=keyboards", "-device", "usb-kbd,bus=keyboards.0"}}
	g := Machine(t, Options{State: p.State, VM: o, Prepare: func(s vm.State) error { return ownTwice(t, s) }})
	wrong := wrongKey(p.Notes[recoveryKeyNote])
	g.Expect(asksForKey)
	g.pressLine(wrong)
	g.Expect(`\(answered on tty1\)`)
	g.Expect(`Nothing is lost: try again`)
	g.Expect(asksForKey)
	g.pressLine(p.Notes[recoveryKeyNote])
	g.Expect(`\(answered on tty1\)`)
	g.Expect(`\[y/N\] `)
	g.pressLine("y")
	checkSecured(t, "opened by the keyboard", g.Boot())
	g.wantNoSecrets("recovery key typed on a keyboard", append(secrets(t, p), recoveryNeedles(t, wrong)...), true)
}

// pressLine answers a question of the console at the keyboard.
func (g *Guest) pressLine(line string) {
	g.t.Helper()
	time.Sleep(time.Second) // as in typeLine; the emulated keyboard is polled
	var keys []string
	for _, r := range line {
		key := string(r)
		if r == '-' {
			key = "minus"
		}
		keys = append(keys, key)
	}
	ctx, cancel := g.wait()
	defer cancel()
	must(g.t, g.SendKeys(ctx, append(keys, "ret")...))
}

// breakFileSystem overwrites the superblock of the root partition's file system.
func breakFileSystem(t *testing.T) func(s vm.State) error {
	return func(s vm.State) error {
		d := openDisk(t, s.Disk(), os.O_RDWR)
		start, _ := d.partition(layout.Root)
		_, err := d.WriteAt(bytes.Repeat([]byte{0xaa}, 4096), start+luks2.DataOffset)
		return err
	}
}

// TestMemoryAfterStaging: a boot that has signed a release with the machine's key,
// and the trial after it.
// FAULTS 75, 104
func TestMemoryAfterStaging(t *testing.T) {
	t.Parallel()
	p := fetched(t, successor())
	needles := secrets(t, p)
	g := Machine(t, Options{State: p.State})
	g.Expect(`halogen: stage \(`)
	g.boots(newSystem())
	g.wantNoSecrets("trial of a release that was staged", needles, true)
}

// TestMemoryControl: the searcher finds the secrets of a machine whose initagent
// does not erase them, and whose kernel does not erase freed memory.
// FAULTS 104
func TestMemoryControl(t *testing.T) {
	t.Parallel()
	image := filepath.Join(t.TempDir(), "disk.img")
	must(t, vm.CopySparse(image, Image(t, "testos-1")))
	d := openDisk(t, image, os.O_RDWR)
	d.putUKI(imageRelease(t, "testos-1"), forgetful(t, "testos-1"))
	must(t, d.Close())
	p := Provision(t, Options{Image: "testos-1", Prepare: func(s vm.State) error { return vm.CopySparse(s.Disk(), image) }}, "forgetful-1", bringUp)
	needles := secrets(t, p)
	// What is freed may be written over before the system runs, so one start proves nothing.
	all := map[string]int{}
	g := Machine(t, Options{State: p.State})
	for range 3 {
		g.Boot()
		found := g.searchMemory(needles)
		t.Logf("without erasing: %v", found)
		maps.Copy(all, found)
		if all["machine secret"] > 0 && all["key that wraps the Secure Boot keys"] > 0 {
			return
		}
		g.PowerCut()
		g.PowerOn()
	}
	t.Errorf("the searcher does not find the machine secret and a key made from it where nothing erases them: %v", all)
}

// forgetful is an image's UKI that does not erase what it has used: without the
// kernel's erasing of freed memory, and with an initagent that was built without
// runtime/secret. The kernel unpacks the second archive over the first.
func forgetful(t *testing.T, image string) []byte {
	t.Helper()
	file, section := imageUKI(t, image)
	cmdline := string(section(".cmdline"))
	changed := strings.NewReplacer("init_on_free=1", "init_on_free=0", "init_on_alloc=1", "init_on_alloc=0").Replace(cmdline)
	if changed == cmdline {
		t.Fatalf("the command line is %q", cmdline)
	}
	resize(t, file, ".cmdline", []byte(changed))
	return replaceLast(t, file, ".initrd", append(section(".initrd"), forgetfulArchive(t)...))
}

// imageUKI is the UKI of an image, and what its sections hold.
func imageUKI(t testing.TB, image string) (file []byte, section func(name string) []byte) {
	t.Helper()
	file, err := os.ReadFile(imageFile(t, image, release.UKIFile))
	must(t, err)
	parsed, err := uki.Parse(file)
	must(t, err)
	return slices.Clone(file), func(name string) []byte {
		t.Helper()
		b, ok := parsed.Section(name)
		if !ok {
			t.Fatalf("the UKI has no %s", name)
		}
		return b
	}
}

// forgetfulArchive is a cpio archive with the machine's commands.
func forgetfulArchive(t *testing.T) []byte {
	t.Helper()
	bb := os.Getenv("HALOGEN_FORGETFUL")
	if bb == "" {
		skip(t, "HALOGEN_FORGETFUL is not set: `make test` builds the machine's commands without runtime/secret")
	}
	dir := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(dir, "bin"), 0o755))
	must(t, vm.CopySparse(filepath.Join(dir, "bin/bb"), bb))
	must(t, os.Chmod(filepath.Join(dir, "bin/bb"), 0o755))
	cpio := exec.Command(testkit.Need(t, "cpio"), "--quiet", "-o", "-H", "newc", "-R", "0:0")
	cpio.Dir, cpio.Stdin = dir, strings.NewReader("bin\nbin/bb\n")
	out, err := cpio.Output()
	must(t, err)
	return append(out, make([]byte, -len(out)&3)...)
}
