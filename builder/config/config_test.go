package config

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/microcode"
	"halogenos.internal/boot/microcode/microcodetest"
	"halogenos.internal/boot/words"
	"halogenos.internal/builder/splash"
)

const least = "[Image]\nImageID=test\nReleaseKey=none\n"

func TestExampleOfTheRepository(t *testing.T) {
	c, err := Load("../../uki.conf")
	if err != nil {
		t.Fatal(err)
	}
	if c.ImageID != "halogen" || c.SecureBoot != contract.Required || c.TPM != contract.Required || len(c.Modules) < 20 {
		t.Errorf("uki.conf gives %+v", c)
	}
}

func TestParse(t *testing.T) {
	text := `# a comment
[UKI]
Cmdline=console=tty0   # not part of it
	quiet
  # between the lines
	panic=10
Linux=boot/vmlinuz-1
Stub = /usr/lib/stub
Uname=6.1.0-1-amd64
OSRelease=ID=x
	NAME="X # not a comment"

[Image]
ImageID=my-os
Epoch=3
ESPSize=1G
SlotSize=512M
GrowSlots=yes
Compression=zstd,12
BootManager=/boot/manager.efi
ReleaseKey=none
SecureBoot=optional
TPM=optional
VendorKeys=microsoft
RootPartitionFormat=btrfs
Watchdog=90
Swap=1536M
FirstStart=ask
[Update]
Server=https://updates.example.org/os/
ReportTo=https://reports.example.org/os/
Channel=beta
RequireSignedManifest=no
[Initramfs]
Modules=nvme
	dm-verity ?tpm_tis # why
`
	c, err := Parse(text, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	want := &Config{
		UKI: UKI{
			Linux: "/boot/vmlinuz-1", Stub: "/usr/lib/stub", Uname: "6.1.0-1-amd64",
			OSRelease: "ID=x\nNAME=\"X", // '#' after a space starts a comment, as for ukify
			Cmdline:   "console=tty0 quiet lockdown=integrity " + ending,
		},
		Image: Image{ImageID: "my-os", Arch: "x86_64", Epoch: 3, ESPSize: 1 << 30, SlotSize: 512 << 20, GrowSlots: true, Compression: "zstd,12", BootManager: "/boot/manager.efi", ModuleTrust: TrustByKernel},
		Machine: Machine{
			SecureBoot: contract.Optional, TPM: contract.Optional, VendorKeys: contract.VendorMicrosoft,
			RootPartitionFormat: "btrfs", WatchdogSeconds: 90, Swap: 1536 << 20, FirstStart: AskAtFirstStart,
		},
		Update: Update{
			Server: "https://updates.example.org/os", ReportTo: "https://reports.example.org/os", Channel: manifest.Beta, SignedManifest: "no",
		},
		Modules: []Module{{Name: "nvme"}, {Name: "dm-verity"}, {Name: "tpm_tis", Optional: true}},
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("have %+v\nwant %+v", c, want)
	}
}

func TestFilesOfTheConfiguration(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"cmdline": "quiet\n splash\n", "logo.bmp": string(splash.Plain()), "cut.bmp": string(splash.Plain()[:9000]), "logo.png": "\x89PNG"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	c, err := Parse(least+"[UKI]\nCmdline=@cmdline\nSplash=logo.bmp\n", dir)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(c.Cmdline, "quiet splash lockdown=") || !bytes.Equal(c.Splash, splash.Plain()) {
		t.Errorf("command line %q, splash of %d bytes", c.Cmdline, len(c.Splash))
	}
	if c, err := Parse(least+"[UKI]\nSplash=plain\n", dir); err != nil || !bytes.Equal(c.Splash, splash.Plain()) {
		t.Errorf("the plain picture: %v", err)
	}
	for text, want := range map[string]string{"a\n[Image]\nQuiet=yes": "a quiet", "a\n[Image]\nQuiet=no": "a", "quiet b\n[Image]\nQuiet=yes": "quiet b",
		"a\n[Image]\nLanguage=en": "a", "a\n[Image]\nLanguage=de": "a halogen.language=de", "a\n[Image]\nQuiet=yes\nLanguage=de": "a quiet halogen.language=de"} {
		if c, err := Parse(least+"[UKI]\nCmdline="+text+"\n", dir); err != nil || c.Cmdline != want+" lockdown=integrity "+ending {
			t.Errorf("%s: %v, %+v", text, err, c)
		}
	}
	if c.Microcode != nil {
		t.Errorf("microcode by default: %+v", c.Microcode)
	}
	early, intel := new(microcode.Set), microcodetest.Intel(microcode.Processor{Signature: 0x906ea, Revision: 0xf8})
	if err := early.Add(intel); err != nil {
		t.Fatal(err)
	}
	archive, err := early.Archive()
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"early.img": archive, "06-9e-0a": intel, "damaged.img": archive[:1000]} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for value, want := range map[string]string{"auto": "", "none": "", "early.img": "early.img", "06-9e-0a": "06-9e-0a"} {
		c, err := Parse(least+"[UKI]\nMicrocode="+value+"\n", dir)
		if err != nil || (c.Microcode == nil) != (value == "auto") || c.MicrocodeFile != want || want != "" && !bytes.Equal(c.Microcode.File(microcode.Intel), intel) {
			t.Errorf("Microcode=%s: %+v, %v", value, c, err)
		}
	}
	if _, err := Parse(least+"[Image]\nLanguage=klingon\n", dir); err == nil || !strings.Contains(err.Error(), "there are "+strings.Join(words.Codes(), ", ")) {
		t.Errorf("a language that there is not: %v", err)
	}
	for _, text := range []string{"[Image]\nQuiet=1", "Microcode=", "Microcode=no", "Microcode=damaged.img", "Microcode=logo.bmp", "Splash=logo.png", "Splash=cut.bmp", "Splash=none.bmp", "Cmdline=@none", "Cmdline=@."} {
		if _, err := Parse(least+"[UKI]\n"+text+"\n", dir); err == nil {
			t.Errorf("%s was taken", text)
		}
	}
}

func TestRefuses(t *testing.T) {
	for _, c := range []struct {
		name, text string
		line       int // 0: the fault is in no one line
		say        string
	}{
		{"unknown key", "[Image]\nImageID=a\nImagID=b\n", 3, "unknown key ImagID in [Image]"},
		{"unknown section", "[Image]\nImageID=a\n\n[Kernel]\nX=1\n", 4, "unknown section [Kernel]"},
		{"key of ukify's that has no use", "[UKI]\nSecureBootPrivateKey=/key\n", 2, "not supported: each machine signs"},
		{"signature section of ukify's", "[PCRSignature:initrd]\nPhases=x\n", 1, "unknown section"},
		{"wrong case", "[UKI]\ncmdline=x\n", 2, "unknown key cmdline"},
		{"key twice by two names", "[Image]\nImageID=a\nRootPartitionFormat=ext4\nRootFileSystem=btrfs\n", 4, "RootFileSystem is the former name of RootPartitionFormat, which line 3 has: take one of them out"},
		{"key twice by its old name", "[Image]\nImageID=a\nRootFileSystem=ext4\nRootFileSystem=btrfs\n", 4, "given again, first in line 3"},
		{"trust in what is not named", least + "[Image]\nModuleTrust=db\n", 0, "needs a certificate: name it with ModuleKey"},
		{"trust of an unknown kind", "[Image]\nModuleTrust=mok\n", 2, "ModuleTrust"},
		{"key twice", "[Image]\nImageID=a\nImageID=b\n", 3, "given again, first in line 2"},
		{"key before a section", "ImageID=a\n", 1, "before any section"},
		{"no key", "[Image]\n=a\n", 2, "not Key=value"},
		{"no value sign", "[Image]\nImageID\n", 2, "not Key=value"},
		{"header that does not end", "[Image\n", 1, "not a section"},
		{"continuation of nothing", "[Image]\n  ImageID=a\n", 2, "continues no value"},
		{"continuation after an empty line", "[Initramfs]\nModules=a\n\n  b\n", 4, "continues no value"},
		{"allowed without a reason", "[Image]\nImageID=a\n[Allow]\nprivate-key-pem=/etc/key\n", 4, "no reason"},
		{"allowed by a rule that there is not", "[Allow]\neverything=/etc/key because\n", 2, "no rule"},
		{"image ID", "[Image]\nImageID=My_OS\n", 2, "ImageID"},
		{"architecture", "[Image]\nArch=riscv64\n", 2, "want x86_64"},
		{"epoch", "[Image]\nEpoch=-1\n", 2, "Epoch"},
		{"a first start that asks a little", "[Image]\nFirstStart=yes\n", 2, "want ask or none"},
		{"watchdog without a number", "[Image]\nWatchdog=on\n", 2, "neither off nor"},
		{"watchdog of a day", "[Image]\nWatchdog=86400\n", 2, "neither off nor"},
		{"watchdog of no time", "[Image]\nWatchdog=0\n", 2, "neither off nor"},
		{"swap space of no size", "[Image]\nSwap=yes\n", 2, "or off"},
		{"swap space of half a MiB", "[Image]\nSwap=16896K\n", 2, "multiple"},
		{"swap space of nothing", "[Image]\nSwap=0\n", 2, "from 16M"},
		{"swap space without end", "[Image]\nSwap=2T\n", 2, "to 1024G"},
		{"ESP smaller than it was", "[Image]\nESPSize=511M\n", 2, "from 512M"},
		{"ESP of no whole MiB", "[Image]\nESPSize=1048577K\n", 2, "multiple"},
		{"ESP without end", "[Image]\nESPSize=17G\n", 2, "to 16G"},
		{"ESP of no size", "[Image]\nESPSize=large\n", 2, "ESPSize"},
		{"slots that grow maybe", "[Image]\nGrowSlots=maybe\n", 2, "neither yes nor no"},
		{"slot size without a unit it knows", "[Image]\nSlotSize=4X\n", 2, "SlotSize"},
		{"slot size of no whole MiB", "[Image]\nSlotSize=1500K\n", 2, "multiple"},
		{"slot size that overflows", "[Image]\nSlotSize=9999999999T\n", 2, "SlotSize"},
		{"compression", "[Image]\nCompression=xz -C1\n", 2, "Compression"},
		{"choice", "[Image]\nTPM=maybe\n", 2, "required or optional"},
		{"path out of the tree", "[UKI]\nLinux=/boot/../../x\n", 2, "not a path in the root file system"},
		{"kernel version", "[UKI]\nUname=a/b\n", 2, "not a kernel version"},
		{"module's name", "[Initramfs]\nModules=../x\n", 2, "not a module's name"},
		{"module twice", "[Initramfs]\nModules=dm-mod ?dm_mod\n", 2, "named twice"},
		{"server without a host", "[Update]\nServer=https:///os\n", 2, "http or https URL"},
		{"server of another kind", "[Update]\nServer=ftp://example.org\n", 2, "http or https URL"},
		{"server with a password", "[Update]\nServer=https://u:p@example.org\n", 2, "without a password"},
		{"server on two lines", "[Update]\nServer=https://example.org\n a\n", 2, "http or https URL"},
		{"channel", "[Update]\nChannel=nightly\n", 2, "stable or beta or alpha"},
		{"signed manifest without a key", least + "[Update]\nRequireSignedManifest=yes\n", 0, "ReleaseKey is none"},
		{"no image ID", "[Image]\nReleaseKey=none\n", 0, "ImageID"},
		{"no word about a key", "[Image]\nImageID=a\n", 0, "ReleaseKey"},
		{"fingerprint without a file", "[Image]\nImageID=a\nReleaseKey=" + strings.Repeat("ab", 20) + "\n", 0, "ReleaseKeyFile is missing"},
		{"file without a fingerprint", least + "ReleaseKeyFile=k\n", 0, "yet there is a ReleaseKeyFile"},
		{"short fingerprint", "[Image]\nImageID=a\nReleaseKey=0123456789ABCDEF\nReleaseKeyFile=k\n", 0, "not a whole"},
		{"not text", "[Image]\nImageID=\xff\n", 0, "UTF-8"},
		{"NUL", "[Image]\nImageID=a\x00\n", 0, "UTF-8"},
		{"too long", strings.Repeat("#", maxFile+1), 0, "more than"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse(c.text, t.TempDir())
			if err == nil || !strings.Contains(err.Error(), c.say) {
				t.Fatalf("error %v, want one that says %q", err, c.say)
			}
			if fault := (*LineError)(nil); errors.As(err, &fault) != (c.line > 0) || c.line > 0 && fault.Line != c.line {
				t.Errorf("error %v, want line %d", err, c.line)
			}
		})
	}
}

// ending is what every command line ends with, behind its lockdown.
const ending = "module.sig_enforce=1 init_on_free=1 init_on_alloc=1 panic=10 systemd.import_credentials=no systemd.gpt_auto=0"

func TestCommandLineThatContradicts(t *testing.T) {
	for _, word := range []string{
		"lockdown=none", "lockdown=", "Lockdown=confidentiality lockdown=none", "init_on_free=0", "init_on_alloc=off", "module.sig_enforce=0", "module.sig-enforce=0", `"module.sig_enforce=0"`, "panic=0",
		"systemd.import_credentials=yes", "systemd.import-credentials", "systemd.gpt_auto=1", "systemd.gpt-auto=yes",
		"rdinit=/bin/sh", "initrd=/x", "noinitrd", "root=/dev/sda", "dm-mod.create=x", "--", "--\tlockdown=integrity",
		strings.Repeat("x", maxCmdline), "a\x01b",
	} {
		if line, err := completeCmdline("quiet " + word); err == nil {
			t.Errorf("%q was taken: %s", word, line)
		}
	}
	for text, want := range map[string]string{
		"lockdown=integrity  a=b panic=10\nc":       "a=b c lockdown=integrity " + ending,
		"a lockdown=confidentiality init_on_free=1": "a lockdown=confidentiality " + ending,
	} {
		if line, err := completeCmdline(text); err != nil || line != want {
			t.Errorf("%q, %v; want %q", line, err, want)
		}
	}
}

func newKey(t *testing.T) *openpgp.Entity {
	t.Helper()
	key, err := openpgp.NewEntity("Releases", "", "r@example.org", &packet.Config{
		Algorithm: packet.PubKeyAlgoEdDSA, Time: func() time.Time { return time.Unix(1_700_000_000, 0) },
	})
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func armored(t *testing.T, kind string, write func(w *bytes.Buffer) error) []byte {
	t.Helper()
	var plain, out bytes.Buffer
	if err := write(&plain); err != nil {
		t.Fatal(err)
	}
	w, err := armor.Encode(&out, kind, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(plain.Bytes()); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestReleaseKey(t *testing.T) {
	key, other := newKey(t), newKey(t)
	public := func(w *bytes.Buffer) error { return key.Serialize(w) }
	var binary bytes.Buffer
	if err := public(&binary); err != nil {
		t.Fatal(err)
	}
	right := key.PrimaryKey.Fingerprint
	for _, c := range []struct {
		name string
		text []byte
		want []byte
		say  string // empty: it is taken
	}{
		{"binary", binary.Bytes(), right, ""},
		{"armored", armored(t, openpgp.PublicKeyType, public), right, ""},
		{"other fingerprint", binary.Bytes(), other.PrimaryKey.Fingerprint, "fingerprint"},
		{"private", armored(t, openpgp.PrivateKeyType, func(w *bytes.Buffer) error { return key.SerializePrivate(w, nil) }), right, "private"},
		{"two keys", append(bytes.Clone(binary.Bytes()), binary.Bytes()...), right, "want one public key"},
		{"cut off", binary.Bytes()[:binary.Len()/2], right, "OpenPGP"},
		{"empty", nil, right, "no data"},
		{"text", []byte("hello"), right, "OpenPGP"},
	} {
		t.Run(c.name, func(t *testing.T) {
			have, err := publicKey(c.text, c.want)
			if c.say == "" {
				if err != nil || !bytes.Equal(have, binary.Bytes()) {
					t.Fatalf("%d bytes, %v", len(have), err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.say) {
				t.Fatalf("error %v, want one that says %q", err, c.say)
			}
		})
	}
}

func TestReleaseKeyFromFile(t *testing.T) {
	key := newKey(t)
	dir := t.TempDir()
	var binary bytes.Buffer
	if err := key.Serialize(&binary); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "key.pgp"), binary.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	text := "[Image]\nImageID=a\nReleaseKeyFile=key.pgp\nReleaseKey=" + strings.ToUpper(hexOf(key.PrimaryKey.Fingerprint)) + "\n"
	c, err := Parse(text, dir)
	if err != nil || !bytes.Equal(c.ReleaseKey, binary.Bytes()) {
		t.Fatalf("%v, %v", c, err)
	}
}

func hexOf(b []byte) string {
	text, _ := contract.Hex(b).MarshalText()
	return string(text)
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{"0": 0, "7": 7, "1K": 1 << 10, "3M": 3 << 20, "8G": 8 << 30, "1T": 1 << 40} {
		if have, err := ParseSize(text); err != nil || have != want {
			t.Errorf("%s: %d, %v; want %d", text, have, err, want)
		}
	}
	for _, text := range []string{"", "G", "1KB", "1MM", "-1", "+1", "1.5G", " 1", "9223372036854775807G", "1k"} {
		if have, err := ParseSize(text); err == nil {
			t.Errorf("%q gives %d", text, have)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(least)
	f.Add("[UKI]\nCmdline=a\n b\n#c\n\n[Image]\nSlotSize=1G\n[Initramfs]\nModules=?a\n")
	f.Add("[a]\n=\n")
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(text, "@") || strings.Contains(text, "Splash") || strings.Contains(text, "File") {
			return // names of files are not this test's affair
		}
		c, err := Parse(text, "/nonexistent")
		if err != nil {
			return
		}
		if !strings.HasSuffix(c.Cmdline, "lockdown=integrity "+ending) || !contract.ValidID(c.ImageID) {
			t.Errorf("taken: %+v", c)
		}
	})
}

// A key by the name that it had before is read, and noted.
func TestFormerNames(t *testing.T) {
	c, err := Parse("[Image]\nImageID=a\nReleaseKey=none\nRootFileSystem=btrfs\n", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"RootFileSystem in line 4 of uki.conf is the former name of RootPartitionFormat: write RootPartitionFormat=btrfs"}; c.RootPartitionFormat != "btrfs" || !slices.Equal(c.Notes, want) {
		t.Errorf("%s, %q", c.RootPartitionFormat, c.Notes)
	}
}
