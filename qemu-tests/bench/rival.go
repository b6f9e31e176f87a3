package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/fat"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/stateconf"
	"halogenos.internal/boot/uki"
	"halogenos.internal/builder/config"
	"halogenos.internal/builder/vm"
)

// The sides that use Debian's initramfs with systemd, made by dracut: with the
// kernel modules that this project's initramfs has, and with dracut's choice.
const (
	dracutSame = "dracut with systemd, same modules"
	dracutAll  = "dracut with systemd, its modules"
)

// A rival is a machine whose initramfs dracut makes. It does the same work: opens
// the system by verity and the root partition by the TPM, and mounts the same
// directories.
type rival struct {
	name        string
	sameModules bool
}

// volumeUUID is that of the root partition's LUKS2 volume.
const volumeUUID = "3c8a0f2e-5c0f-4a7e-9d57-0f1f4e6b2a11"

// rivals are what the machines of all rivals have in common.
type rivals struct {
	keys    *secureboot.KeySet
	date    time.Time
	manager []byte // the boot manager
	ours    *uki.Image
	stub    []byte
	root    string // root hash
	config  *config.Config
	machine vm.State // set up, with the boot files of no rival
}

// provisionRivals sets a machine up as an administrator of Debian would, on the
// disk of one of ours: the same partitions with the same system image and tree.
// Keys are enrolled by the boot manager, the root partition is made by cryptsetup
// and bound to the TPM's PCR 7 by systemd-cryptenroll.
func (b *bench) provisionRivals(ctx context.Context, ours vm.State) (*rivals, error) {
	r, err := b.newRivals()
	if err != nil {
		return nil, err
	}
	if r.machine, err = ours.Clone(filepath.Join(b.work, "machine-dracut-setup")); err != nil {
		return nil, err
	}
	if err := errors.Join(r.machine.ResetVars(), r.machine.ResetTPM()); err != nil {
		return nil, err
	}
	overlay := filepath.Join(b.chroot, "bench-setup")
	if err := writeFiles(overlay, setupFiles()); err != nil {
		return nil, err
	}
	initrd, err := b.dracut(ctx, r, rival{sameModules: true}, "/bench-setup", setupTools)
	if err != nil {
		return nil, err
	}
	enroll, err := r.enrollment()
	if err != nil {
		return nil, err
	}
	if err := r.writeESP(r.machine, r.config.Cmdline+" rd.systemd.unit=bench-setup.service", initrd, enroll); err != nil {
		return nil, err
	}
	return r, b.withMachine(ctx, vm.Options{State: r.machine}, func(ctx context.Context, m *vm.Machine) error {
		reason, err := m.Wait(ctx)
		if err == nil && !strings.Contains(m.Console().Text(), "bench: the root partition is made") {
			err = fmt.Errorf("the root partition was not made: the machine went off by %s:\n%s", reason, m.Console().Tail(30))
		}
		return err
	})
}

func (b *bench) newRivals() (r *rivals, err error) {
	r = &rivals{date: time.Now()}
	if r.keys, err = secureboot.Generate(rand.Reader, r.date); err != nil {
		return nil, err
	}
	if r.config, err = config.Load("uki.conf"); err != nil {
		return nil, err
	}
	directory := filepath.Join(b.images, bootImage)
	image, err := os.ReadFile(filepath.Join(directory, "uki.efi"))
	if err != nil {
		return nil, err
	}
	if r.ours, err = uki.Parse(image); err != nil {
		return nil, err
	}
	own, _ := r.ours.Section(".initrd")
	c, err := contract.FromInitrd(own)
	if err != nil {
		return nil, err
	}
	root := c.Root()
	r.root = hex.EncodeToString(root[:])
	if r.manager, err = os.ReadFile(filepath.Join(directory, "bootx64.efi")); err != nil {
		return nil, err
	}
	r.stub, err = os.ReadFile(filepath.Join(b.rootfs, "usr/lib/systemd/boot/efi/linuxx64.efi.stub"))
	return r, err
}

// provisionRival puts a rival's UKI on a machine that is set up, and starts it
// once, so that what the first start of a system does is done.
func (b *bench) provisionRival(ctx context.Context, all *rivals, r rival) (vm.State, error) {
	state, err := all.machine.Clone(filepath.Join(b.work, "machine-"+fileName(r.name)))
	if err != nil {
		return state, err
	}
	overlay := filepath.Join(b.chroot, "bench-boot")
	files, err := mountUnits()
	if err == nil {
		err = writeFiles(overlay, files)
	}
	if err != nil {
		return state, err
	}
	initrd, err := b.dracut(ctx, all, r, "/bench-boot", "")
	if err != nil {
		return state, err
	}
	cmdline := all.config.Cmdline + " roothash=" + all.root + " root=/dev/mapper/root rootfstype=erofs ro" +
		" rd.luks.name=" + volumeUUID + "=data rd.luks.options=tpm2-device=auto"
	if err := all.writeESP(state, cmdline, initrd, nil); err != nil {
		return state, err
	}
	return state, b.withMachine(ctx, vm.Options{State: state}, shutDown)
}

// setupTools are what the start that sets the machine up needs beside the rest.
const setupTools = "cryptsetup systemd-cryptenroll mkfs.ext4 mkdir cp head mount umount sync systemctl"

// setupFiles has the root partition made, instead of starting a system.
func setupFiles() map[string]string {
	return map[string]string{
		"etc/systemd/system/bench-setup.service": `[Unit]
DefaultDependencies=no
Wants=systemd-udevd.service systemd-udev-trigger.service
BindsTo=dev-disk-by\x2dpartlabel-root.device dev-disk-by\x2dpartlabel-system\x2da.device dev-tpmrm0.device
After=dev-disk-by\x2dpartlabel-root.device dev-disk-by\x2dpartlabel-system\x2da.device dev-tpmrm0.device
[Service]
Type=oneshot
ExecStart=/bin/sh -ex /etc/bench-setup
ExecStopPost=systemctl poweroff --force
StandardOutput=tty
StandardError=tty
TTYPath=/dev/console
`,
		"etc/bench-setup": `
root=/dev/disk/by-partlabel/root
head -c 32 /dev/urandom >/run/key
cryptsetup luksFormat --batch-mode --type luks2 --uuid ` + volumeUUID + ` --sector-size 4096 --cipher aes-xts-plain64 --key-size 512 --pbkdf pbkdf2 --key-file /run/key $root
systemd-cryptenroll --unlock-key-file=/run/key --tpm2-device=auto --tpm2-pcrs=7 $root
cryptsetup open --key-file /run/key $root data
mkfs.ext4 -q /dev/mapper/data
mkdir -p /run/state /run/system
mount -t ext4 /dev/mapper/data /run/state
mount -t erofs -o ro /dev/disk/by-partlabel/system-a /run/system
mkdir -p /run/state/upper /run/state/work
` + copyDirectories() + `
umount /run/state
sync
echo "bench: the root partition is made"
`,
	}
}

// stateEntries are the directories of the system that may change.
func stateEntries() []stateconf.Entry {
	entries, err := stateconf.Parse([]byte(stateconf.Default))
	if err != nil {
		panic(err) // a constant, which has a test
	}
	return entries
}

// copyDirectories fills the directories that are mounted over the system's own.
func copyDirectories() string {
	var lines []string
	for _, e := range stateEntries() {
		if e.Mode == stateconf.Bind {
			name := strings.ReplaceAll(strings.Trim(e.Path, "/"), "/", "-")
			lines = append(lines, fmt.Sprintf("cp -a /run/system%s /run/state/%s", e.Path, name))
		}
	}
	return strings.Join(lines, "\n")
}

// mountUnits mount the same directories as this project's initramfs.
func mountUnits() (map[string]string, error) {
	files := map[string]string{}
	add := func(where, what, kind, options, needs string) {
		name := strings.ReplaceAll(strings.ReplaceAll(strings.Trim(where, "/"), "-", `\x2d`), "/", "-") + ".mount"
		files["etc/systemd/system/"+name] = "[Unit]\nDefaultDependencies=no\nBefore=initrd-fs.target\n" + needs +
			"[Mount]\nWhat=" + what + "\nWhere=" + where + "\nType=" + kind + "\nOptions=" + options + "\n"
		files["etc/systemd/system/initrd-fs.target.requires/"+name] = "-> ../" + name
	}
	const state = "/run/state"
	add(state, "/dev/mapper/data", "ext4", "nodev,noatime", `BindsTo=dev-mapper-data.device`+"\n"+`After=dev-mapper-data.device`+"\n")
	needs := "RequiresMountsFor=/sysroot " + state + "\n"
	for _, e := range stateEntries() {
		where := "/sysroot" + e.Path
		switch e.Mode {
		case stateconf.Overlay:
			if e.Path != "/etc" {
				return nil, fmt.Errorf("an overlay over %s is not expected", e.Path)
			}
			add(where, "overlay", "overlay", "nosuid,nodev,lowerdir="+where+",upperdir="+state+"/upper,workdir="+state+"/work", needs)
		case stateconf.Bind:
			add(where, state+"/"+strings.ReplaceAll(strings.Trim(e.Path, "/"), "/", "-"), "none", "bind", needs)
		case stateconf.Tmpfs:
			add(where, "tmpfs", "tmpfs", "nosuid,nodev,mode=1777", needs)
		}
	}
	return files, nil
}

// writeFiles fills a directory again. A content that starts with "-> " is a symbolic
// link's target.
func writeFiles(directory string, files map[string]string) error {
	if err := os.RemoveAll(directory); err != nil {
		return err
	}
	for name, content := range files {
		full := filepath.Join(directory, name)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			return err
		}
		target, link := strings.CutPrefix(content, "-> ")
		var err error
		if link {
			err = os.Symlink(target, full)
		} else {
			err = os.WriteFile(full, []byte(content), 0o644)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// dracutScript makes an initramfs without what this machine can do without. $1 is
// the kernel's release, $2 the modules or nothing, $3 a directory with more files, $4
// more programs.
const dracutScript = `
mount -t proc proc /proc
dracut --quiet --force --no-hostonly --no-hostonly-cmdline --reproducible --zstd --kver "$1" \
	--add "systemd systemd-initrd systemd-veritysetup systemd-cryptsetup tpm2-tss dm crypt" \
	--omit "bluetooth btrfs biosdevname convertfs dbus dbus-broker dbus-daemon dmraid drm i18n kernel-modules-extra lunmask lvm mdraid memstrack multipath network nfs nvdimm overlay-root pcmcia plymouth pollcdrom resume virtfs virtiofs warpclock" \
	--filesystems "erofs ext4 overlay vfat" ${2:+--drivers "$2"} ${4:+--install "$4"} --include "$3" / /bench.img >&2
cat /bench.img`

// dracut makes an initramfs.
func (b *bench) dracut(ctx context.Context, all *rivals, r rival, include, install string) ([]byte, error) {
	kernels, err := filepath.Glob(filepath.Join(b.chroot, "usr/lib/modules/*"))
	if err != nil || len(kernels) != 1 {
		return nil, fmt.Errorf("%d kernels in %s, want one", len(kernels), b.chroot)
	}
	if uname, _ := all.ours.Section(".uname"); filepath.Base(kernels[0]) != string(bytes.TrimSpace(uname)) {
		return nil, fmt.Errorf("%s has kernel %s, and the image %s, which loads none of its modules: remove %[1]s and its stamp, or the images, and make them again", b.chroot, filepath.Base(kernels[0]), uname)
	}
	modules := ""
	if r.sameModules {
		var names []string
		for _, m := range all.config.Modules {
			names = append(names, m.Name)
		}
		modules = strings.Join(names, " ")
	}
	var out, said bytes.Buffer
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "chroot", b.chroot, "bash", "-euc", dracutScript, "dracut", filepath.Base(kernels[0]), modules, include, install)
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("dracut: %w: %s", err, said.String())
	}
	return out.Bytes(), nil
}

// enrollment are the files by which the boot manager enrolls the keys.
func (r *rivals) enrollment() (map[string][]byte, error) {
	files := map[string][]byte{}
	for _, v := range []struct {
		variable     secureboot.Variable
		pair, signer secureboot.Pair
	}{{secureboot.PK, r.keys.PK, r.keys.PK}, {secureboot.KEK, r.keys.KEK, r.keys.PK}, {secureboot.DB, r.keys.DB, r.keys.KEK}} {
		list, err := secureboot.Database{secureboot.Certificate(r.keys.Owner, v.pair.Certificate)}.Marshal()
		if err != nil {
			return nil, err
		}
		update, err := secureboot.SignUpdate(v.variable, secureboot.KeyAttributes, r.date, list, v.signer)
		if err != nil {
			return nil, err
		}
		files["loader/keys/auto/"+v.variable.Name+".auth"] = update
	}
	return files, nil
}

// writeESP formats the ESP of a machine with a UKI of the same kernel, the same
// boot manager and more files.
func (r *rivals) writeESP(state vm.State, cmdline string, initrd []byte, more map[string][]byte) error {
	var sections []uki.Section
	for _, name := range []string{".osrel", ".cmdline", ".uname", ".initrd", ".linux"} {
		data, ok := r.ours.Section(name)
		switch {
		case name == ".cmdline":
			data = []byte(cmdline)
		case name == ".initrd":
			data = initrd
		case !ok:
			continue
		}
		sections = append(sections, uki.Section{Name: name, Data: data})
	}
	image, err := uki.Build(r.stub, sections)
	if err != nil {
		return err
	}
	files := map[string][]byte{"loader/loader.conf": []byte("timeout 0\nsecure-boot-enroll force\n")}
	for name, data := range more {
		files[name] = data
	}
	for name, program := range map[string][]byte{"EFI/Linux/debian.efi": image, "EFI/BOOT/BOOTX64.EFI": r.manager, "EFI/systemd/systemd-bootx64.efi": r.manager} {
		if files[name], err = authenticode.Sign(program, r.keys.DB.Key, r.keys.DB.Certificate, r.date); err != nil {
			return err
		}
	}
	return formatESP(state.Disk(), r.date, files)
}

func formatESP(disk string, date time.Time, files map[string][]byte) error {
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	const sector = 512
	table, _, err := gpt.Read(f, uint64(info.Size())/sector, sector)
	if err != nil {
		return err
	}
	esp, err := layout.Find(table, layout.ESP)
	if err != nil {
		return err
	}
	at, size := table.Bytes(esp)
	var list []fat.File
	for name, data := range files {
		list = append(list, fat.File{Path: name, Size: int64(len(data)), Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }})
	}
	if err := fat.Format(io.NewOffsetWriter(f, at), size, fat.Options{SectorSize: sector, VolumeID: 1, Label: "ESP", Time: date}, list); err != nil {
		return err
	}
	return f.Close()
}

// fileName makes a side's name fit for a directory.
func fileName(name string) string {
	return strings.Map(func(c rune) rune {
		if c == ' ' || c == ',' {
			return '-'
		}
		return c
	}, name)
}
