package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"halogenos.internal/builder/config"
	"halogenos.internal/qemu-tests/bench/measure"
)

// The generators that an initramfs is compared with.
const (
	byInitramfsTools = "initramfs-tools"
	byDracut         = "dracut"
	byBooster        = "booster, same modules"
)

// sizeScripts make an initramfs for the same job: the system through dm-verity,
// the root partition through LUKS and the TPM, on any machine. $1 is the kernel's
// release, $2 the file, $3 our kernel modules.
var sizeScripts = map[string]string{
	byInitramfsTools: `conf=$(mktemp -d); cp -a /etc/initramfs-tools/. $conf
mkdir -p $conf/hooks; cat >$conf/hooks/bench <<'EOT'
#!/bin/sh
[ "$1" != prereqs ] || exit 0
. /usr/share/initramfs-tools/hook-functions
copy_exec /usr/sbin/veritysetup; copy_exec /usr/sbin/cryptsetup; copy_exec /usr/bin/tpm2; for l in /usr/lib/x86_64-linux-gnu/libtss2-tcti-device.so.*; do copy_exec $l; done
manual_add_modules dm_verity dm_crypt erofs overlay ext4 tpm_crb tpm_tis
EOT
chmod +x $conf/hooks/bench; CRYPTSETUP=y mkinitramfs -d $conf -o "$2" "$1"; rm -rf $conf`,
	byDracut: `dracut --quiet --force --no-hostonly --no-hostonly-cmdline --reproducible --zstd --kver "$1" \
	--add "systemd systemd-initrd systemd-veritysetup systemd-cryptsetup tpm2-tss dm crypt" --filesystems "erofs ext4 overlay vfat" "$2"`,
	byBooster: `printf 'modules: "-*,%s"\nuniversal: true\nstrip: false\n' "$3" >"$2.yaml"
"$(dirname "$2")/generator" build --force --init-binary "$(dirname "$2")/init" --config "$2.yaml" --kernel-version "$1" "$2"`,
}

// initramfsSizes plans row 7. Ours has the recovery console in it.
func (b *bench) initramfsSizes(context.Context) ([]measure.Job, []measure.Growth, error) {
	kernels, err := filepath.Glob(filepath.Join(b.chroot, "usr/lib/modules/*"))
	if err != nil || len(kernels) != 1 {
		return nil, nil, fmt.Errorf("%d kernels in %s, want one", len(kernels), b.chroot)
	}
	ours, err := b.initramfs()
	if err != nil {
		return nil, nil, err
	}
	place, err := b.room(b.chroot)
	if err != nil {
		return nil, nil, err
	}
	c, err := config.Load("uki.conf")
	if err != nil {
		return nil, nil, err
	}
	modules, err := present(kernels[0], c)
	if err != nil {
		return nil, nil, err
	}
	sides := []measure.Side{{Name: "halogen", Run: func(context.Context) (measure.Sample, error) {
		return measure.Sample{measure.Size: float64(len(ours))}, nil
	}}}
	for _, name := range []string{byInitramfsTools, byDracut, byBooster} {
		file := fileName(name)
		side := measure.Side{Name: name, Run: func(ctx context.Context) (measure.Sample, error) {
			argv := within(b.chroot, "bash", "-euo", "pipefail", "-c", "mount -t proc proc /proc; mount -t sysfs sysfs /sys\n"+sizeScripts[name], "script",
				filepath.Base(kernels[0]), filepath.Join(place.inside, file), strings.Join(modules, ","))
			if _, err := measure.Command("unshare", append([]string{"--mount"}, argv...)...)(ctx); err != nil {
				return nil, err
			}
			info, err := os.Stat(filepath.Join(place.host, file))
			if err != nil {
				return nil, err
			}
			return measure.Sample{measure.Size: float64(info.Size())}, nil
		}}
		if name == byBooster {
			if side.Absent, err = b.boosterIn(place); err != nil {
				return nil, nil, err
			}
		}
		sides = append(sides, side)
	}
	goal := func(against string, n float64) measure.Goal {
		return measure.Goal{Number: 7, Work: "initramfs", Metric: measure.Size, Against: against, Kind: measure.TimesAtMost, N: n}
	}
	return []measure.Job{{Name: "initramfs", Once: true, Sides: sides, Goals: []measure.Goal{
		goal(byInitramfsTools, 0.2), goal(byDracut, 1), goal(byBooster, 1),
	}}}, nil, nil
}

// boosterIn copies booster into the tree, or says why it cannot be measured.
func (b *bench) boosterIn(place room) (absent string, err error) {
	if b.booster == "" {
		return "booster's source could not be had", nil
	}
	for _, name := range []string{"generator", "init"} {
		program, err := os.ReadFile(filepath.Join(b.booster, name))
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(place.host, name), program, 0o755); err != nil {
			return "", err
		}
	}
	return "", nil
}

// present are the configuration's modules that the kernel has as files.
func present(kernel string, c *config.Config) ([]string, error) {
	text, err := os.ReadFile(filepath.Join(kernel, "modules.dep"))
	if err != nil {
		return nil, err
	}
	have := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		file, _, _ := strings.Cut(line, ":")
		name, _, _ := strings.Cut(filepath.Base(file), ".")
		have[strings.ReplaceAll(name, "-", "_")] = true
	}
	var names []string
	for _, m := range c.Modules {
		if have[strings.ReplaceAll(m.Name, "-", "_")] {
			names = append(names, m.Name)
		}
	}
	if len(names) == 0 {
		return nil, errors.New("the kernel has none of the modules")
	}
	return names, nil
}
