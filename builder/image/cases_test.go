package image

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"fmt"
	"io"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/boot/uki/ukitest"
	"halogenos.internal/builder/config"
	"halogenos.internal/builder/rootfs"
	"halogenos.internal/builder/rootfs/rootfstest"
)

// FAULTS 112 (B3)
func TestSourceDatesThatHaveNotCome(t *testing.T) {
	source := rootfstest.Minimal().Write(t, false)
	late := time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC)
	if err := os.Chtimes(filepath.Join(source, "usr/bin/hello"), late, late); err != nil {
		t.Fatal(err)
	}
	o := options(t, source)
	o.Disk = false
	_, err := Build(t.Context(), o)
	for _, say := range []string{"/usr/bin/hello is dated 2099-01-01", "touch", "SOURCE_DATE_EPOCH"} {
		if err == nil || !strings.Contains(err.Error(), say) {
			t.Errorf("error %v, want one that says %q", err, say)
		}
	}
	o.Date = late
	if _, err := Build(t.Context(), o); err == nil || !strings.Contains(err.Error(), "source date 2099") {
		t.Errorf("a source date in the future: error %v", err)
	}
	o.Date = rootfstest.Date
	r := mustBuild(t, o)
	if r.Release.SourceDate != rootfstest.Date.Unix() {
		t.Errorf("source date %d", r.Release.SourceDate)
	}
	said := testkit.Run(t, "dump.erofs", "--path=/usr/bin/hello", filepath.Join(o.Out, release.ImageFile))
	if !strings.Contains(said, "2023-11-14") {
		t.Errorf("the file from the future is of another date than the image's:\n%s", said)
	}
}

// The clock may be a day off, and files from before 1970 are not a reason to stop.
func TestSourceDate(t *testing.T) {
	for _, c := range []struct {
		date, now int64
		say       string
	}{
		{1_700_000_000, 1_700_000_000, ""}, {1_700_000_000 + 3600*20, 1_700_000_000, ""},
		{1_700_000_000 + 3600*25, 1_700_000_000, "has not come yet"}, {1 << 40, 1_700_000_000, "has not come yet"}, {-5, 1_700_000_000, "before 1970"},
		{1_700_000_000, 0, "1970-01-01"}, // a machine whose clock has no battery
	} {
		b := &build{Options: Options{Date: time.Unix(c.date, 0), Progress: NewProgress(io.Discard)}, tree: new(rootfs.Tree)}
		err := b.sourceDate(time.Unix(c.now, 0))
		if (err == nil) != (c.say == "") || err != nil && !strings.Contains(err.Error(), c.say) {
			t.Errorf("%d at %d: error %v, want one that says %q", c.date, c.now, err, c.say)
		}
	}
}

// staged puts files, and links ("-> target"), into a tree.
func staged(t *testing.T, files map[string]string) *rootfs.Tree {
	t.Helper()
	tree, err := rootfs.NewTree(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tree.Close() })
	for name, content := range files {
		if target, ok := strings.CutPrefix(content, "-> "); ok {
			err = tree.AddSymlink(name, target, rootfstest.Date)
		} else {
			err = tree.AddFile(name, []byte(content), 0o644, rootfstest.Date)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return tree
}

// FAULTS 112 (B5)
func TestWhereKernelsAre(t *testing.T) {
	const v = rootfstest.Release
	k, other := string(rootfstest.Kernel(v)), string(rootfstest.Kernel("6.13.0-other"))
	for _, c := range []struct {
		name  string
		files map[string]string
		want  string // the file, or words of the error
	}{
		{"Debian", map[string]string{"boot/vmlinuz-" + v: k, "vmlinuz": "-> boot/vmlinuz-" + v, "boot/vmlinuz": "-> vmlinuz-" + v}, "boot/vmlinuz-" + v},
		{"Arch", map[string]string{"usr/lib/modules/" + v + "/vmlinuz": k, "boot/vmlinuz-linux": k}, "usr/lib/modules/" + v + "/vmlinuz"},
		{"Arch, in a container", map[string]string{"usr/lib/modules/" + v + "/vmlinuz": k}, "usr/lib/modules/" + v + "/vmlinuz"},
		{"Fedora", map[string]string{"lib": "-> usr/lib", "usr/lib/modules/" + v + "/vmlinuz": k, "boot/vmlinuz-" + v: k, "boot/.vmlinuz-" + v + ".hmac": "sum", "boot/vmlinuz-0-rescue-0123": "-> nowhere"}, "usr/lib/modules/" + v + "/vmlinuz"},
		{"Fedora's kernel-install", map[string]string{"boot/0123456789abcdef0123456789abcdef/" + v + "/linux": k}, "boot/0123456789abcdef0123456789abcdef/" + v + "/linux"},
		{"openSUSE", map[string]string{"usr/lib/modules/" + v + "/vmlinuz": k, "boot/vmlinuz-" + v: "-> ../usr/lib/modules/" + v + "/vmlinuz", "boot/vmlinuz": "-> vmlinuz-" + v}, "usr/lib/modules/" + v + "/vmlinuz"},
		{"Alpine", map[string]string{"boot/vmlinuz-lts": k, "lib/modules/" + v + "/modules.dep": "", "boot/vmlinuz-lts.sig": "signature"}, "boot/vmlinuz-lts"},
		{"Gentoo's dist-kernel", map[string]string{"usr/src/linux-" + v + "/arch/x86/boot/bzImage": k, "usr/lib/modules/" + v + "/vmlinuz": "-> ../../../src/linux-" + v + "/arch/x86/boot/bzImage"}, "usr/src/linux-" + v + "/arch/x86/boot/bzImage"},
		{"Gentoo, absolute links", map[string]string{"usr/src/linux": "-> linux-" + v, "usr/src/linux-" + v + "/arch/x86/boot/bzImage": k, "usr/lib/modules/" + v + "/vmlinuz": "-> /usr/src/linux/arch/x86/boot/bzImage", "boot/kernel-" + v: k}, "usr/src/linux-" + v + "/arch/x86/boot/bzImage"},
		{"Gentoo, not installed", map[string]string{"usr/src/linux-" + v + "/arch/x86/boot/bzImage": k}, "usr/src/linux-" + v + "/arch/x86/boot/bzImage"},
		{"genkernel", map[string]string{"boot/kernel-x86_64-" + v: k, "boot/System.map-" + v: "map"}, "boot/kernel-x86_64-" + v},
		{"ostree", map[string]string{"usr/lib/ostree-boot/vmlinuz-" + v + "-0123abcd": k, "usr/lib/modules/" + v + "/vmlinuz": k}, "usr/lib/modules/" + v + "/vmlinuz"},
		{"two", map[string]string{"boot/vmlinuz-" + v: k, "boot/vmlinuz-other": other, "boot/vmlinuz": "-> vmlinuz-other"}, "2 kernels"},
		{"two with modules", map[string]string{"usr/lib/modules/" + v + "/vmlinuz": k, "usr/lib/modules/6.13.0-other/vmlinuz": other}, "2 kernels"},
		{"link that leads nowhere", map[string]string{"usr/lib/modules/" + v + "/vmlinuz": "-> /usr/src/linux/arch/x86/boot/bzImage"}, "has no kernel"},
		{"link that leads out", map[string]string{"usr/lib/modules/" + v + "/vmlinuz": "-> ../../../../../../../../../../boot/vmlinuz"}, "has no kernel"},
		{"for aarch64", map[string]string{"boot/vmlinuz-" + v: machineOf(k, 0xaa64)}, "is a kernel for aarch64"},
	} {
		t.Run(c.name, func(t *testing.T) {
			k, err := findKernel(staged(t, c.files), "")
			if strings.Contains(c.want, " ") {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("error %v, want one that says %q", err, c.want)
				}
				return
			}
			if err != nil || k.path != c.want || k.release != v {
				t.Errorf("found %+v, %v; want %s", k, err, c.want)
			}
		})
	}
	k2, err := findKernel(staged(t, map[string]string{"boot/vmlinuz-a": k, "boot/vmlinuz-b": other, "boot/vmlinuz": "-> vmlinuz-b"}), "/boot/vmlinuz")
	if err != nil || k2.release != "6.13.0-other" {
		t.Errorf("the kernel that was chosen, by a link, is %+v, %v", k2, err)
	}
}

// machineOf gives an image a PE header for a kind of processor.
func machineOf(image string, machine uint16) string {
	b := []byte(image)
	at := binary.LittleEndian.Uint32(b[60:])
	if at == 0 { // our kernels have none
		at = 0x40
		binary.LittleEndian.PutUint32(b[60:], at)
		copy(b[at:], "PE\x00\x00")
	}
	binary.LittleEndian.PutUint16(b[at+4:], machine)
	return string(b)
}

// FAULTS 112 (B8)
func TestProgramsForOtherMachines(t *testing.T) {
	for machine, say := range map[uint16]string{0xaa64: "aarch64", 0x14c: "32-bit x86", 0x5064: "riscv64", 0x1234: "0x1234"} {
		for _, what := range []struct{ file, key string }{{"/" + layout.SystemStub, "Stub= in [UKI]"}, {"/" + layout.SystemManager, "BootManager= in [Image]"}} {
			files := rootfstest.Minimal()
			files[what.file[1:]] = []byte(machineOf(string(files[what.file[1:]]), machine))
			_, err := Build(t.Context(), options(t, files.Write(t, false)))
			for _, want := range []string{what.file, say, "x86-64", what.key} {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("error %v, want one that says %q", err, want)
				}
			}
		}
	}
}

// signer is somebody who signs EFI images.
func signer(t *testing.T) (*rsa.PrivateKey, *x509.Certificate) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "somebody"}, NotBefore: rootfstest.Date, NotAfter: rootfstest.Date.AddDate(10, 0, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return key, cert
}

// Boot manager and stub come without signatures, whatever these are like: each
// machine can sign them. FAULTS 112 (B10)
func TestProgramsThatAreSigned(t *testing.T) {
	key, cert := signer(t)
	plain := ukitest.Stub("257.13-1")
	signed, err := authenticode.Sign(plain, key, cert, rootfstest.Date)
	if err != nil {
		t.Fatal(err)
	}
	change := func(f func(b []byte) []byte) []byte { return f(bytes.Clone(signed)) }
	size := len(plain)
	directory := int(binary.LittleEndian.Uint32(plain[60:])) + 24 + 112 + 4*8
	for name, image := range map[string][]byte{
		"not signed": plain,
		"signed":     signed,
		// pesign 0.112: an object identifier that is none for a content type.
		"by an old pesign": change(func(b []byte) []byte {
			return bytes.Replace(b, []byte{0x82, 0x37, 2, 1, 4}, []byte{0x82, 0x37, 2, 1, 21}, 1)
		}),
		"by a form of before PKCS #7": change(func(b []byte) []byte { b[size+6] = 1; return b }),
		"damaged":                     change(func(b []byte) []byte { binary.LittleEndian.PutUint32(b[size:], 0xffffff); return b }),
		"with bytes behind it":        change(func(b []byte) []byte { return append(b, 0, 0, 0, 0) }),
		"with a table that is shorter": change(func(b []byte) []byte {
			binary.LittleEndian.PutUint32(b[directory+4:], binary.LittleEndian.Uint32(b[directory+4:])-4)
			return b
		}),
	} {
		t.Run(name, func(t *testing.T) {
			files := rootfstest.Minimal()
			files[layout.SystemStub], files[layout.SystemManager] = image, image
			o := options(t, files.Write(t, false))
			o.Disk = false
			mustBuild(t, o)
			for _, file := range []string{release.BootManagerFile, release.UKIFile} {
				again, err := authenticode.Sign(read(t, o.Out, file), key, cert, rootfstest.Date)
				if err != nil {
					t.Fatalf("%s cannot be signed: %v", file, err)
				}
				if _, err := authenticode.Verify(again, []*x509.Certificate{cert}); err != nil {
					t.Errorf("%s, signed: %v", file, err)
				}
			}
			if have := read(t, o.Out, release.BootManagerFile); !bytes.Equal(have, plain) {
				t.Errorf("the boot manager has %d bytes, want the %d from before it was signed", len(have), len(plain))
			}
		})
	}
	overlap := bytes.Clone(signed)
	binary.LittleEndian.PutUint32(overlap[directory:], uint32(size-512))
	binary.LittleEndian.PutUint32(overlap[directory+4:], uint32(len(signed)-size+512))
	files := rootfstest.Minimal()
	files[layout.SystemManager] = overlap
	if _, err := Build(t.Context(), options(t, files.Write(t, false))); err == nil || !strings.Contains(err.Error(), "boot manager "+"/"+layout.SystemManager) {
		t.Errorf("a table over the sections: error %v", err)
	}
}

// FAULTS 112 (B9)
func TestRoomOnTheESP(t *testing.T) {
	const manager = 200 << 10
	for size, fits := range map[int64]bool{30 << 20: true, 215 << 20: true, 225 << 20: false, 400 << 20: false} {
		err := fitsESP(size, manager, layout.ESPSize, layout.ESPSize)
		if (err == nil) != fits {
			t.Errorf("a UKI of %d MiB on an ESP of %d: %v", size>>20, layout.ESPSize>>20, err)
		}
		if err != nil && (!strings.Contains(err.Error(), "may have 230.") || !strings.Contains(err.Error(), "Modules in [Initramfs]")) {
			t.Errorf("the error does not say how much it may be, or what to do: %v", err)
		}
	}
	files := rootfstest.Minimal()
	o := options(t, files.Write(t, false))
	o.Config.Splash = append([]byte("BM"), make([]byte, 250<<20)...)
	if _, err := Build(t.Context(), o); err == nil || !strings.Contains(err.Error(), "the UKI has 262.") {
		t.Errorf("a UKI of 250 MiB: error %v", err)
	}
}

// What a kernel with all that machines need has built in, and how it was configured.
const (
	wholeKernel = "dm_verity.license=GPL\x00erofs.file=fs/erofs/erofs\x00sha256_generic.alias=crypto-sha256\x00overlay.license=GPL\x00dm_crypt.license=GPL\x00" +
		"aesni_intel.alias=crypto-aes\x00xts.license=GPL\x00vfat.license=GPL\x00nls_cp437.license=GPL\x00nls_utf8.license=GPL\x00efivarfs.license=GPL\x00tpm_tis.license=GPL\x00"
	goodConfig = "# Linux\nCONFIG_BLK_DEV_INITRD=y\nCONFIG_RD_ZSTD=y\nCONFIG_DEVTMPFS=y\nCONFIG_TMPFS=y\nCONFIG_EFI_STUB=y\nCONFIG_SECURITY_LOCKDOWN_LSM=y\nCONFIG_EROFS_FS_XATTR=y\nCONFIG_EROFS_FS_ZIP=y\nCONFIG_MODULES=y\nCONFIG_MODULE_SIG=y\n"
)

// FAULTS 112 (B7)
func TestKernelsThatCannotStartTheMachine(t *testing.T) {
	dir := "usr/lib/modules/" + rootfstest.Release + "/"
	for _, c := range []struct {
		name    string
		modinfo string
		files   map[string]string
		say     string // of the error; empty for none
	}{
		{"all built in", wholeKernel, nil, ""},
		{"no dm-verity", strings.Replace(wholeKernel, "dm_verity.", "dm_other.", 1), nil, "dm-verity, which checks the system image (dm_verity): the kernel was built without it"},
		{"no SHA-256", strings.Replace(wholeKernel, "crypto-sha256", "crypto-sha512", 1), nil, ""}, // its name is enough
		{"no SHA-256 at all", strings.Replace(wholeKernel, "sha256_generic.alias=crypto-sha256", "sha512_generic.alias=crypto-sha512", 1), nil, "SHA-256, for dm-verity"},
		{"no AES", strings.Replace(wholeKernel, "crypto-aes", "crypto-ctr(aes)", 1), nil, "AES, for dm-crypt"},
		{"no EROFS", strings.Replace(wholeKernel, "erofs.file", "squashfs.file", 1), nil, "EROFS"},
		{"no efivarfs", strings.Replace(wholeKernel, "efivarfs.", "efi_pstore.", 1), nil, "efivarfs"},
		{"no TPM driver", strings.Replace(wholeKernel, "tpm_tis.", "tpm_tis_core.", 1), nil, "tpm_crb or tpm_tis"},
		{"a module that the initramfs does not get", strings.Replace(wholeKernel, "dm_verity.", "dm_other.", 1), map[string]string{
			dir + "modules.dep": "kernel/fs/one.ko: kernel/lib/two-parts.ko\nkernel/lib/two-parts.ko:\nkernel/drivers/md/dm-verity.ko:\n",
		}, "add dm_verity to Modules in [Initramfs]"},
		{"a module that has the alias", strings.Replace(wholeKernel, "sha256_generic.alias=crypto-sha256", "sha512_generic.alias=crypto-sha512", 1), map[string]string{
			dir + "modules.alias": "alias crypto-sha256 one\n",
		}, ""},
		{"a good configuration", wholeKernel, map[string]string{"boot/config-" + rootfstest.Release: goodConfig}, ""},
		{"no zstd", wholeKernel, map[string]string{"boot/config-" + rootfstest.Release: strings.Replace(goodConfig, "CONFIG_RD_ZSTD=y", "# CONFIG_RD_ZSTD is not set", 1)}, "CONFIG_RD_ZSTD=y: the initramfs is compressed with zstd"},
		{"no lockdown", wholeKernel, map[string]string{dir + "config": strings.Replace(goodConfig, "CONFIG_SECURITY_LOCKDOWN_LSM=y", "", 1)}, "lockdown=integrity"},
		{"modules without signatures", wholeKernel, map[string]string{dir + "config": strings.Replace(goodConfig, "CONFIG_MODULE_SIG=y", "", 1)}, "CONFIG_MODULE_SIG=y"},
		{"no compression of EROFS", wholeKernel, map[string]string{dir + "config": strings.Replace(goodConfig, "CONFIG_EROFS_FS_ZIP=y", "", 1)}, "Compression=lz4hc"},
		{"a configuration, and no list", "", map[string]string{dir + "config": goodConfig}, "dm_verity"},
		{"nothing that tells", "", nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			files := rootfstest.Minimal()
			if c.modinfo != "" {
				files[dir+"modules.builtin.modinfo"] = []byte(c.modinfo)
			}
			for name, content := range c.files {
				files[name] = []byte(content)
			}
			o := options(t, files.Write(t, false))
			o.Disk = false
			_, err := Build(t.Context(), o)
			if (err == nil) != (c.say == "") || err != nil && !strings.Contains(err.Error(), c.say) {
				t.Errorf("error %v, want one that says %q", err, c.say)
			}
		})
	}
}

// What a tar has comes out of the image as a file system's own tool reads it. FAULTS 112 (B2)
func TestAttributesInTheImage(t *testing.T) {
	testkit.Root(t, "keep labels and owners")
	const list = "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x06\x00\xd2\x04\x00\x00\x04\x00\x00\x00\xff\xff\xff\xff\x10\x00\x06\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff"
	const label = "system_u:object_r:shadow_t:s0"
	source := filepath.Join(t.TempDir(), "root.tar")
	testkit.Run(t, "tar", "-C", rootfstest.Minimal().Write(t, false), "-cf", source, ".")
	var more bytes.Buffer
	w := tar.NewWriter(&more)
	header := &tar.Header{Name: "secret", Typeflag: tar.TypeReg, Mode: 0o660, ModTime: rootfstest.Date, Uid: 4_000_000_000, Format: tar.FormatPAX, PAXRecords: map[string]string{
		"SCHILY.acl.access": "user::rw-\nuser:1234:rw-\ngroup::---\nmask::rw-\nother::---\n", "RHT.security.selinux": label, "SCHILY.xattr.user.note": "text",
	}}
	directory := &tar.Header{Name: "shared", Typeflag: tar.TypeDir, Mode: 0o770, ModTime: rootfstest.Date, Format: tar.FormatPAX, PAXRecords: map[string]string{
		"SCHILY.acl.default": "user::rw-,group::---,other::---,user:1234:rw-,mask::rw-",
	}}
	for _, h := range []*tar.Header{header, directory} {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	second := filepath.Join(t.TempDir(), "more.tar")
	if err := os.WriteFile(second, more.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	testkit.Run(t, "tar", "--concatenate", "-f", source, second)
	o := options(t, source)
	o.Disk = false
	mustBuild(t, o)
	tools := testkit.Tools13(t)
	tools.Run("fsck.erofs", "--extract="+tools.Path("out"), "--xattrs", "--preserve", tools.Put("system.erofs", read(t, o.Out, release.ImageFile)))
	for _, x := range []struct{ file, key, want string }{
		{"secret", "system.posix_acl_access", list}, {"secret", "security.selinux", label}, {"secret", "user.note", "text"}, {"shared", "system.posix_acl_default", list},
	} {
		value := make([]byte, 4096)
		n, err := unix.Lgetxattr(filepath.Join(tools.Host(tools.Path("out")), x.file), x.key, value)
		if err != nil || string(value[:max(n, 0)]) != x.want {
			t.Errorf("%s of %s is %q, %v; want %q", x.key, x.file, value[:max(n, 0)], err, x.want)
		}
	}
	var s syscall.Stat_t
	if err := syscall.Lstat(filepath.Join(tools.Host(tools.Path("out")), "secret"), &s); err != nil || s.Uid != 4_000_000_000 || s.Mode&0o777 != 0o660 {
		t.Errorf("owner %d, mode %o, %v", s.Uid, s.Mode, err)
	}
}

// FAULTS 112 (B6)
func TestSparseFilesInTheImage(t *testing.T) {
	source := rootfstest.Minimal().Write(t, false)
	log := filepath.Join(source, "lastlog")
	for _, err := range []error{os.WriteFile(log, []byte("start"), 0o644), os.Truncate(log, 64<<20), os.Chtimes(log, rootfstest.Date, rootfstest.Date)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, compression := range []string{"none", "lz4hc"} {
		o := options(t, source)
		o.Disk = false
		if compression == "none" {
			o.Config.Compression = ""
		}
		if r := mustBuild(t, o); r.Release.ImageSize > 8<<20 {
			t.Errorf("%s: an image with a hole of 64 MiB has %d bytes", compression, r.Release.ImageSize)
		}
		out := filepath.Join(t.TempDir(), "out")
		testkit.Run(t, "fsck.erofs", "--extract="+out, filepath.Join(o.Out, release.ImageFile))
		f, err := os.Open(filepath.Join(out, "lastlog"))
		if err != nil {
			t.Fatal(err)
		}
		start := make([]byte, 6)
		info, statErr := f.Stat()
		if _, err := f.ReadAt(start, 0); err != nil || statErr != nil || info.Size() != 64<<20 || string(start) != "start\x00" {
			t.Errorf("%s: %d bytes, %q, %v, %v", compression, info.Size(), start, err, statErr)
		}
		f.Close()
		os.RemoveAll(out)
	}
}

// mkfs.erofs 1.5 cannot take the longest names, and says nothing of which. FAULTS 112 (B6)
func TestLongestNames(t *testing.T) {
	name := strings.Repeat("n", 255)
	files := rootfstest.Minimal()
	files["usr/share/"+name] = []byte("content")
	o := options(t, files.Write(t, false))
	o.Disk = false
	if _, err := Build(t.Context(), o); err != nil && (!strings.Contains(err.Error(), "/usr/share/"+name) || !strings.Contains(err.Error(), "255 bytes")) {
		t.Errorf("error %v", err)
	} else if err == nil {
		testkit.Run(t, "dump.erofs", "--path=/usr/share/"+name, filepath.Join(o.Out, release.ImageFile))
	}
	b := &build{tree: staged(t, map[string]string{"dir/" + name: ""})}
	if err := b.explain(&exec.ExitError{}); !strings.Contains(err.Error(), "/dir/"+name) {
		t.Errorf("error %v", err)
	}
	if err := b.explain(io.EOF); err != io.EOF {
		t.Errorf("error %v", err)
	}
}

// Holes that cost minutes are said or refused before anything takes long. FAULTS 112 (B6)
func TestHoles(t *testing.T) {
	for size, want := range map[int64]string{1 << 20: "", 3 << 30: "WARNING: the root file system has holes of 6442.5 MB", 20 << 30: "/var/one with 21474.8 MB"} {
		var said bytes.Buffer
		b := &build{tree: staged(t, map[string]string{"var/one": "", "var/two": ""})}
		b.Progress = NewProgress(&said)
		for _, name := range []string{"var/one", "var/two"} {
			if err := os.Truncate(filepath.Join(b.tree.Dir(), name), size); err != nil {
				t.Fatal(err)
			}
		}
		err := b.holes("the root file system", b.tree)
		if text := fmt.Sprintf("%s%v", &said, err); !strings.Contains(text, want) || want == "" && text != "<nil>" || (err != nil) != (size == 20<<30) {
			t.Errorf("%d bytes: %s", size, text)
		}
	}
}

func FuzzBareEFI(f *testing.F) {
	plain := ukitest.Stub("257.13-1")
	f.Add(plain)
	at := int(binary.LittleEndian.Uint32(plain[60:])) + 24 + 112 + 4*8
	signed := append(bytes.Clone(plain), 16, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	binary.LittleEndian.PutUint32(signed[at:], uint32(len(plain)))
	binary.LittleEndian.PutUint32(signed[at+4:], 16)
	f.Add(signed)
	f.Fuzz(func(t *testing.T, image []byte) {
		_ = machineName(peMachine(image))
		bare, err := bareEFI(image)
		if err != nil {
			return
		}
		if again, err := bareEFI(bare); err != nil || !bytes.Equal(again, bare) {
			t.Errorf("%d bytes without signatures, %d when taken off again, %v", len(bare), len(again), err)
		}
	})
}

// Machines make their root partition with the image's mkfs.
func TestRootless(t *testing.T) {
	for kind, say := range map[string]string{"ext4": "", "btrfs": "no /sbin/mkfs.btrfs: a new machine stops at its second boot. Install it (Debian: the package btrfs-progs)"} {
		var said bytes.Buffer
		b := &build{tree: staged(t, map[string]string{"sbin/mkfs.ext4": ""})}
		b.Progress, b.Config = NewProgress(&said), &config.Config{Machine: config.Machine{RootPartitionFormat: kind}}
		b.rootless()
		if text := said.String(); !strings.Contains(text, say) || say == "" && text != "" {
			t.Errorf("%s: it says %q", kind, text)
		}
	}
}
