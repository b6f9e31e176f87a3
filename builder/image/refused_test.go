package image

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/boot/uki/ukitest"
	"halogenos.internal/builder/rootfs/rootfstest"
)

func TestRootFileSystemsThatCannotBeBuilt(t *testing.T) {
	modules := "usr/lib/modules/" + rootfstest.Release + "/"
	efi := "usr/lib/systemd/boot/efi/"
	for _, c := range []struct {
		name   string
		change func(f rootfstest.Files)
		say    []string // all of them
	}{
		{"no kernel", func(f rootfstest.Files) { delete(f, "boot/vmlinuz-"+rootfstest.Release) },
			[]string{"no kernel", "/boot/vmlinuz-*", "/usr/lib/modules/*/vmlinuz"}},
		{"two kernels", func(f rootfstest.Files) { f["boot/vmlinuz-6.13.0"] = rootfstest.Kernel("6.13.0") },
			[]string{"2 kernels", "/boot/vmlinuz-6.13.0 (6.13.0)", "/boot/vmlinuz-" + rootfstest.Release, "Linux= in [UKI]"}},
		{"two kernels of one version", func(f rootfstest.Files) { f[modules+"vmlinuz"] = append(rootfstest.Kernel(rootfstest.Release), 0) },
			[]string{"2 kernels"}},
		{"kernel that is none", func(f rootfstest.Files) { f["boot/vmlinuz-"+rootfstest.Release] = []byte("ELF") },
			[]string{"/boot/vmlinuz-" + rootfstest.Release, "not an x86 kernel"}},
		{"truncated kernel", func(f rootfstest.Files) {
			f["boot/vmlinuz-"+rootfstest.Release] = rootfstest.Kernel(rootfstest.Release)[:0x800]
		}, []string{"does not tell its version"}},
		{"kernel that firmware cannot start", func(f rootfstest.Files) { f["boot/vmlinuz-"+rootfstest.Release][0] = 0 },
			[]string{"CONFIG_EFI_STUB"}},
		{"no stub", func(f rootfstest.Files) { delete(f, efi+"linuxx64.efi.stub") }, []string{"no UKI stub", "/" + efi + "linuxx64.efi.stub"}},
		{"truncated stub", func(f rootfstest.Files) { f[efi+"linuxx64.efi.stub"] = f[efi+"linuxx64.efi.stub"][:700] }, []string{"UKI stub"}},
		{"a stub that was not tried", func(f rootfstest.Files) { f[efi+"linuxx64.efi.stub"] = ukitest.Stub("253.1-1") },
			[]string{"systemd-stub 253.1-1", "was not tried", "252, 254"}},
		{"a boot manager that was not tried", func(f rootfstest.Files) { f[efi+"systemd-bootx64.efi"] = ukitest.Manager("9000") },
			[]string{"systemd-boot 9000", "was not tried"}},
		{"no boot manager", func(f rootfstest.Files) { delete(f, efi+"systemd-bootx64.efi") }, []string{"no boot manager", "/" + efi + "systemd-bootx64.efi"}},
		{"no os-release", func(f rootfstest.Files) { delete(f, "etc/os-release") }, []string{"os-release"}},
		{"no modules for the kernel", func(f rootfstest.Files) { f["boot/vmlinuz-"+rootfstest.Release] = rootfstest.Kernel("6.13.0") },
			[]string{"is 6.13.0", "modules of " + rootfstest.Release + " only"}},
		{"module that is not there", func(f rootfstest.Files) { f[modules+"modules.dep"] = nil }, []string{"no module one"}},
		{"unsigned module", func(f rootfstest.Files) { f[modules+"kernel/fs/one.ko"] = []byte("\x7fELF") }, []string{"one.ko", "not signed"}},
		{"a file where a command belongs", func(f rootfstest.Files) { f["usr/bin/ota"] = nil }, []string{"/bin/ota", "file of its own"}},
		{"image larger than a slot", func(f rootfstest.Files) { f["usr/large"] = noise(17 << 20) }, []string{"does not fit a system partition of 16.0 MiB", "SlotSize", "17.0 MiB  /usr"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			files := rootfstest.Minimal()
			c.change(files)
			o := options(t, files.Write(t, false))
			_, err := Build(t.Context(), o)
			for _, say := range c.say {
				if err == nil || !strings.Contains(err.Error(), say) {
					t.Errorf("error %v, want one that says %q", err, say)
				}
			}
			if left := listing(t, o.Out); len(left) != 0 {
				t.Errorf("a failed build left %q", left)
			}
		})
	}
}

// noise is data that does not compress.
func noise(n int) []byte {
	out := make([]byte, n)
	x := uint64(88172645463325252)
	for i := range out {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		out[i] = byte(x)
	}
	return out
}

func TestOptionsThatCannotBeBuilt(t *testing.T) {
	source := rootfstest.Minimal().Write(t, false)
	for _, c := range []struct {
		name   string
		change func(o *Options)
		say    string
	}{
		{"disk too small", func(o *Options) { o.DiskSize = 513 << 20 }, "too small"},
		{"disk of an odd size", func(o *Options) { o.DiskSize = 532<<20 + 512 }, "not a multiple"},
		{"no busybox", func(o *Options) { o.Machine = t.TempDir() }, "busybox"},
		{"output in the source", func(o *Options) { o.Out = filepath.Join(source, "out") }, "lies in the root file system"},
		{"output is the source", func(o *Options) { o.Out = source }, "lies in the root file system"},
		{"no source", func(o *Options) { o.RootFS = filepath.Join(source, "none") }, "none"},
		{"kernel that is not there", func(o *Options) { o.Config.Linux = "/boot/other" }, "/boot/other"},
		{"another kernel than was said", func(o *Options) { o.Config.Uname = "6.0.0" }, "Uname of [UKI] is 6.0.0"},
		{"stub that is not there", func(o *Options) { o.Config.Stub = "/stub" }, "looked for /stub"},
		{"root partition's format without its module", func(o *Options) { o.Config.RootPartitionFormat = "btrfs" }, "has no btrfs"},
		{"swap space without loop devices", func(o *Options) { o.Config.Swap = 16 << 20 }, "needs the module loop"},
		{"interrupted", nil, "canceled"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := options(t, source)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if c.change == nil {
				cancel()
			} else {
				c.change(&o)
			}
			_, err := Build(ctx, o)
			if err == nil || !strings.Contains(err.Error(), c.say) {
				t.Errorf("error %v, want one that says %q", err, c.say)
			}
			if o.Out != source && len(listing(t, o.Out)) != 0 {
				t.Errorf("a failed build left %q", listing(t, o.Out))
			}
		})
	}
}

// What machines have in /var belongs to numbers: an account keeps its own, or the build is
// refused.
func TestMovedAccounts(t *testing.T) {
	files := rootfstest.Minimal()
	files["etc/passwd"] = []byte("root:x:0:0::/root:/bin/sh\nbus:x:101:101::/:/bin/false\n")
	o := options(t, files.Write(t, false))
	o.Disk = false
	mustBuild(t, o)
	build := func(passwd, group string, edit func(o *Options)) (string, error) {
		files["etc/passwd"], files["etc/group"] = []byte(passwd), []byte(group)
		next := options(t, files.Write(t, false))
		var said bytes.Buffer
		next.Disk, next.Version, next.Previous, next.Progress = false, 8, o.Out, NewProgress(&said)
		edit(&next)
		_, err := Build(t.Context(), next)
		return said.String(), err
	}
	const same, moved = "root:x:0:0::/root:/bin/sh\nbus:x:101:7::/:\nnew:x:102:0::/:\n", "root:x:0:0::/root:/bin/sh\nbus:x:102:101::/:/bin/false\n"
	if said, err := build(same, "bus:x:9:\n", func(*Options) {}); err != nil || strings.Contains(said, "numbers") {
		t.Errorf("%q, %v", said, err)
	}
	_, err := build("root:x:0:0::/root:/bin/sh\nnew:x:101:0::/:\n", "", func(*Options) {})
	if err == nil || !strings.Contains(err.Error(), `user "new" has 101, which was that of "bus"`) {
		t.Errorf("the number of one that is gone: error %v", err)
	}
	_, err = build(moved, "", func(*Options) {})
	for _, say := range []string{`user "bus" from 101 to 102`, "/var", "useradd --uid", "ACCT_USER_NAME_ID", "--allow-moved-accounts"} {
		if err == nil || !strings.Contains(err.Error(), say) {
			t.Errorf("error %v, want one that says %q", err, say)
		}
	}
	if said, err := build(moved, "", func(o *Options) { o.MovedAccounts = true }); err != nil || !strings.Contains(said, `WARNING: other numbers than in the previous build: user "bus" from 101 to 102`) {
		t.Errorf("%q, %v", said, err)
	}
	// An earlier release of halogen wrote no accounts, and a bill may be missing.
	bill := filepath.Join(o.Out, BillFile)
	for _, text := range []string{`{"bomFormat":"CycloneDX","specVersion":"1.6"}`, ""} {
		if err := os.Remove(bill); err != nil {
			t.Fatal(err)
		}
		if text != "" {
			if err := os.WriteFile(bill, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if said, err := build(moved, "", func(*Options) {}); err != nil || !strings.Contains(said, "names no users and groups") {
			t.Errorf("%q: %q, %v", text, said, err)
		}
		if text == "" {
			break
		}
	}
}
