package recipes_test

import (
	"archive/tar"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/rootheader"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/builder/config"
	"halogenos.internal/builder/rootfs"
	"halogenos.internal/builder/sbom"
)

// stage makes a stage 3 in which emerge, eselect and getuto write down how they
// were called; emerge installs a small system with all that the recipe changes.
func stage(t *testing.T) string {
	dir := t.TempDir()
	for _, d := range []string{"bin", "etc", "proc", "sys", "dev"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, tool := range []string{"bash", "mkdir", "cat", "cp", "env", "sleep", "chmod", "ln"} {
		take(t, dir, testkit.Need(t, tool))
	}
	for name, text := range map[string]string{
		"emerge": `#!/bin/bash
set -eu
echo "USE=${USE:-} emerge $*" >>/called
case " $* " in *" --root=/target "*) ;; *) exit 0 ;; esac
cd /target
mkdir -p bin etc var/log var/cache/edb var/tmp usr/lib var/db/pkg/sys-apps/systemd-257.9 usr/bin var/lib
echo 257.9 >var/db/pkg/sys-apps/systemd-257.9/PF
echo 0 >var/db/pkg/sys-apps/systemd-257.9/SLOT
cp /bin/bash /bin/env bin/
cp -r /lib* . 2>/dev/null
printf '#!/bin/bash\necho "$*" >>/etc/units\n[[ $* != *"enable lightdm"* ]] || ln -s lightdm /etc/systemd/system/display-manager.service\n' >bin/systemctl
cp /bin/ln bin/
mkdir -p usr/lib/systemd/system
echo >usr/lib/systemd/system/systemd-networkd.service
case "$*" in *x11-misc/lightdm\ *) for unit in lightdm.service NetworkManager.service cups.socket; do echo >usr/lib/systemd/system/$unit; done ;; esac
cp -r /etc/portage etc/portage-was
chmod 755 bin/systemctl
echo x >var/cache/edb/x
echo x >var/log/emerge.log
cat /etc/portage/make.conf >etc/make.conf
cat /called >etc/called
`,
		"eselect": "#!/bin/bash\necho \"eselect $*\" >>/called\n",
		"getuto":  "#!/bin/bash\necho getuto >>/called\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, "bin", name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	out := filepath.Join(t.TempDir(), "stage3.tar.xz")
	testkit.Run(t, "tar", "-C", dir, "-cJf", out, ".")
	return out
}

// take copies a program with its libraries into a root.
func take(t *testing.T, root, program string) {
	files := []string{program}
	for _, word := range strings.Fields(testkit.Run(t, "ldd", program)) {
		if strings.HasPrefix(word, "/") {
			files = append(files, word)
		}
	}
	for i, file := range files {
		to := filepath.Join(root, file)
		if i == 0 {
			to = filepath.Join(root, "bin", filepath.Base(file))
		}
		testkit.Run(t, "sh", "-c", `mkdir -p "$(dirname "$2")" && cp -L "$1" "$2"`, "sh", file, to)
	}
}

func gentoo(t *testing.T, env ...string) (string, error) {
	out := filepath.Join(t.TempDir(), "rootfs.tar")
	cmd := exec.CommandContext(t.Context(), "gentoo/make-rootfs", out)
	cmd.Env = append(os.Environ(), env...)
	log, err := cmd.CombinedOutput()
	if err != nil {
		return "", errors.New(err.Error() + "\n" + string(log))
	}
	return out, nil
}

// All of the Gentoo recipe but what Portage does.
func TestGentoo(t *testing.T) {
	testkit.Root(t, "mount and change the root")
	testkit.Need(t, "xz")
	env := []string{"STAGE3=" + stage(t), "MIRROR=https://mirror.example.org/gentoo", "EXTRA=app-editors/nano", "SOURCE_DATE_EPOCH=1767225600"}
	first, err := gentoo(t, env...)
	if err != nil {
		t.Fatal(err)
	}
	files := contents(t, first)
	for name, want := range map[string]string{
		"./etc/make.conf":  `GENTOO_MIRRORS="https://mirror.example.org/gentoo"`,
		"./etc/called":     "eselect profile set default/linux/amd64/23.0/systemd\n",
		"./etc/hostname":   "halogen",
		"./etc/machine-id": "",
		"./etc/units":      "enable systemd-networkd.service",
	} {
		if have, ok := files[name]; !ok || !strings.Contains(have, want) {
			t.Errorf("%s is %q, want %q in it", name, have, want)
		}
	}
	for _, want := range []string{
		"emerge --sync --quiet\n", "getuto\n", "USE=build emerge --quiet --root=/target --nodeps --oneshot sys-apps/baselayout\n",
		"--root-deps=rdeps --with-bdeps=n --usepkg sys-apps/baselayout sys-apps/systemd sys-kernel/gentoo-kernel ", " app-editors/nano\n",
	} {
		if !strings.Contains(files["./etc/called"], want) {
			t.Errorf("%q was not called:\n%s", want, files["./etc/called"])
		}
	}
	for _, name := range []string{"./var/cache/edb/x", "./var/log/emerge.log", "./etc/portage"} {
		if _, ok := files[name]; ok {
			t.Errorf("%s is in the image", name)
		}
	}
	t.Run("packages", func(t *testing.T) { packages(t, first) })
	t.Run("the same again", func(t *testing.T) {
		second, err := gentoo(t, append(env, "TZ=Asia/Tokyo")...)
		if err != nil {
			t.Fatal(err)
		}
		testkit.Run(t, "cmp", first, second)
	})
	t.Run("another profile", func(t *testing.T) {
		out, err := gentoo(t, append(env, "PROFILE=my:profile")...)
		if err != nil {
			t.Fatal(err)
		}
		if called := contents(t, out)["./etc/called"]; !strings.Contains(called, "eselect profile set my:profile\n") {
			t.Errorf("called:\n%s", called)
		}
	})
	t.Run("desktop", func(t *testing.T) { gentooDesktop(t, env) })
	for name, env := range map[string][]string{
		"no desktop":    append(env, "DESKTOP=cde"),
		"no firmware":   append(env, "FIRMWARE=some"),
		"no stage":      {"STAGE3="},
		"not an option": append(env, "EXTRA=--config-root=/"),
		"not an atom":   append(env, "EXTRA=nano"),
		"no archive":    {"STAGE3=/nonexistent"},
	} {
		if _, err := gentoo(t, env...); err == nil {
			t.Errorf("%s: the recipe did not fail", name)
		}
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(mounts), "/stage/") {
		t.Errorf("something is still mounted (%v)", err)
	}
}

// gentooDesktop is the same with a desktop: other packages, USE flags and services.
func gentooDesktop(t *testing.T, env []string) {
	out, err := gentoo(t, append(env, "DESKTOP=xfce")...)
	if err != nil {
		t.Fatal(err)
	}
	files := contents(t, out)
	for name, want := range map[string]string{
		"./etc/called": "eselect profile set default/linux/amd64/23.0/desktop/systemd\n",
		"./etc/units":  "--quiet disable systemd-networkd.service\n--quiet enable NetworkManager.service\n--quiet enable cups.socket\n--quiet enable lightdm.service\n",
		"./etc/flatpak/remotes.d/flathub.flatpakrepo":             "Url=https://dl.flathub.org/repo/\n",
		"./usr/lib/systemd/zram-generator.conf.d/50-desktop.conf": "[zram0]\n",
		"./etc/portage-was/package.use/desktop":                   "media-video/pipewire sound-server",
		"./etc/portage-was/package.license/firmware":              "linux-fw-redistributable",
		"./etc/portage-was/make.conf":                             "INSTALL_MASK=\"\"\n",
	} {
		if have, ok := files[name]; !ok || !strings.Contains(have, want) {
			t.Errorf("%s is %q, want %q in it", name, have, want)
		}
	}
	for _, want := range []string{" sys-apps/systemd ", " net-misc/networkmanager ", " xfce-base/xfce4-meta ", " sys-kernel/linux-firmware "} {
		if !strings.Contains(files["./etc/called"], want) {
			t.Errorf("%q is not installed:\n%s", want, files["./etc/called"])
		}
	}
	if _, ok := files["./etc/systemd/network/80-ethernet.network"]; ok {
		t.Error("systemd-networkd and NetworkManager have the network")
	}
	out, err = gentoo(t, append(env, "DESKTOP=kde", "FIRMWARE=free", "EXTRA=x11-misc/lightdm,app-editors/nano")...)
	if err != nil {
		t.Fatal(err)
	}
	files = contents(t, out)
	if called := files["./etc/called"]; strings.Contains(called, "linux-firmware") || !strings.Contains(called, " kde-plasma/plasma-meta ") {
		t.Errorf("firmware without source, or no KDE:\n%s", called)
	}
	if _, ok := files["./etc/portage-was/package.license/firmware"]; ok {
		t.Error("licences of firmware that is not wanted are accepted")
	}
	if _, err := gentoo(t, append(env, "DESKTOP=gnome")...); err == nil || !strings.Contains(err.Error(), "no display manager is enabled") {
		t.Errorf("a desktop at which nobody can log in: %v", err)
	}
}

// contents returns the files of an archive, whose order and times must be those
// that make it the same each time.
func contents(t *testing.T, path string) map[string]string {
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	all := make(map[string]string)
	var names []string
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.ModTime.Unix() > 1767225600 {
			t.Errorf("%s is of %s, after the source date", h.Name, h.ModTime)
		}
		names = append(names, strings.TrimSuffix(h.Name, "/"))
		if h.Size < 1<<16 {
			data, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			all[strings.TrimSuffix(h.Name, "/")] = string(data)
		}
	}
	if !slices.IsSortedFunc(names, func(a, b string) int {
		return slices.Compare(strings.Split(a, "/"), strings.Split(b, "/"))
	}) {
		t.Errorf("the archive's files are in no order: %q", names)
	}
	return all
}

// packages wants Portage's database to be found where the recipe has moved it.
func packages(t *testing.T, archive string) {
	tree, err := rootfs.NewTree(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	if err := tree.Fill(context.WithoutCancel(t.Context()), archive, "x86_64"); err != nil {
		t.Fatal(err)
	}
	found, err := sbom.Read(tree)
	if err != nil || len(found) != 1 || found[0].URL() != "pkg:ebuild/sys-apps/systemd@257.9" {
		t.Errorf("found the packages %v (%v)", found, err)
	}
}

// Shell scripts are read by a critic, and the recipes' own hooks are programs.
func TestScripts(t *testing.T) {
	var scripts []string
	for _, pattern := range []string{"*/make-rootfs", "gentoo/install", "finish-system", "entries", "desktop/config", "desktop/finish", "debian/mirror", "debian/make-extension", "debian/hooks/*", "../container/make-release", "../container/development-keys"} {
		found, err := filepath.Glob(pattern)
		if err != nil || len(found) == 0 {
			t.Fatalf("%s: %v", pattern, err)
		}
		scripts = append(scripts, found...)
	}
	testkit.Run(t, "shellcheck", scripts...)
	for _, s := range scripts {
		if info, err := os.Stat(s); err != nil || info.Mode().Perm()&0o111 == 0 {
			t.Errorf("%s is not executable (%v)", s, err)
		}
	}
}

// entries reads lists of packages as the recipes do.
func entries(t *testing.T, lists ...string) []string {
	return strings.Fields(testkit.Run(t, "./entries", lists...))
}

// Each desktop's lists are of packages, and none is named twice.
func TestLists(t *testing.T) {
	debian, gentoo := regexp.MustCompile(`^[a-z0-9][a-z0-9.+-]+$`), regexp.MustCompile(`^[a-z0-9][a-z0-9-]*/[A-Za-z0-9+_-]+$`)
	for _, desktop := range []string{"xfce", "gnome", "kde"} {
		for _, firmware := range []string{"free", "nonfree"} {
			for name, c := range map[string]struct {
				valid *regexp.Regexp
				lists []string
			}{
				"debian": {debian, []string{"debian/packages/base", "debian/packages/desktop", "debian/packages/" + desktop, "debian/packages/firmware-" + firmware, "debian/packages/microcode"}},
				"gentoo": {gentoo, []string{"gentoo/packages", "gentoo/desktop/packages", "gentoo/desktop/packages-" + desktop, "gentoo/desktop/firmware-" + firmware}},
			} {
				seen := map[string]bool{}
				for _, p := range entries(t, c.lists...) {
					if !c.valid.MatchString(p) || seen[p] {
						t.Errorf("%s, %s: %q is not a package, or named twice", name, desktop, p)
					}
					seen[p] = true
				}
				if len(seen) < 50 {
					t.Errorf("%s, %s: %d packages", name, desktop, len(seen))
				}
			}
		}
	}
	for _, list := range []string{"services", "services-off", "display-managers"} {
		for _, unit := range entries(t, "desktop/"+list) {
			if !regexp.MustCompile(`^[A-Za-z0-9-]+\.(service|socket|path|timer)$`).MatchString(unit) {
				t.Errorf("%s: %q is not a unit", list, unit)
			}
		}
	}
}

// A desktop or firmware that there is not is refused before anything is fetched.
func TestDebianOptions(t *testing.T) {
	for env, want := range map[string]string{"DESKTOP=cde": `DESKTOP is "cde": want xfce, gnome or kde`, "FIRMWARE=some": `FIRMWARE is "some": want free or nonfree`} {
		cmd := exec.CommandContext(t.Context(), "debian/make-rootfs", filepath.Join(t.TempDir(), "out.tar"))
		cmd.Env = append(os.Environ(), env)
		if said, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(said), want) {
			t.Errorf("%s: %v, %s", env, err, said)
		}
	}
}

// The key that machines will check what comes from Flathub with is Flathub's, in the tree
// and in what the page says of it.
func TestFlathubKey(t *testing.T) {
	testkit.Need(t, "gpg")
	const fingerprint = "6E5C05D979C76DAF93C081354184DD4D907A7CAE"
	text, err := os.ReadFile("desktop/files/etc/flatpak/remotes.d/flathub.flatpakrepo")
	if err != nil {
		t.Fatal(err)
	}
	_, encoded, _ := strings.Cut(string(text), "\nGPGKey=")
	key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(encoded))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "key.gpg")
	if err := os.WriteFile(path, key, 0o644); err != nil {
		t.Fatal(err)
	}
	shown := testkit.Run(t, "gpg", "--homedir", t.TempDir(), "--show-keys", "--with-colons", path)
	if !strings.Contains(shown, ":"+fingerprint+":\n") || strings.Count(shown, "pub:") != 1 || strings.Contains(shown, "sec:") {
		t.Errorf("want %s alone:\n%s", fingerprint, shown)
	}
	if page, err := os.ReadFile("README.md"); err != nil || !strings.Contains(string(page), fingerprint) {
		t.Errorf("README.md does not name it (%v)", err)
	}
}

// What is made of uki.conf is whole, and a file in which something has no place is refused.
func TestDesktopConfig(t *testing.T) {
	text := testkit.Run(t, "desktop/config", "../../uki.conf")
	c, err := config.Parse(text, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if c.ImageID != "desktop" || c.SlotSize != 8<<30 || c.ESPSize != 1<<30 || len(c.Splash) == 0 || c.FirstStart != config.AskAtFirstStart || !strings.Contains(c.Cmdline, " quiet ") || !strings.Contains(c.Cmdline, "lockdown=confidentiality") || strings.Contains(c.Cmdline, "lockdown=integrity") {
		t.Errorf("%+v", c)
	}
	path := filepath.Join(t.TempDir(), "uki.conf")
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(text, "ImageID=", "Name=")), 0o644); err != nil {
		t.Fatal(err)
	}
	if said, err := exec.CommandContext(t.Context(), "desktop/config", path).CombinedOutput(); err == nil || !strings.Contains(string(said), "ImageID=desktop") && !strings.Contains(string(said), "Splash=plain") {
		t.Errorf("%v, %s", err, said)
	}
}

// The rules that hide the machine's partitions name those that it has.
func TestHiddenPartitions(t *testing.T) {
	text, err := os.ReadFile("desktop/files/usr/lib/udev/rules.d/62-halogen-partitions.rules")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		fmt.Sprintf(`"%s", ENV{ID_PART_ENTRY_NAME}=="%s|%s"`, layout.TypeRoot, layout.SlotA.SystemLabel(), layout.SlotB.SystemLabel()),
		fmt.Sprintf(`"%s", ENV{ID_PART_ENTRY_NAME}=="%s|%s"`, layout.TypeRootVerity, layout.SlotA.VerityLabel(), layout.SlotB.VerityLabel()),
		fmt.Sprintf(`"%s", ENV{ID_FS_LABEL}=="%s"`, layout.TypeLUKS, rootheader.Label),
		fmt.Sprintf(`ENV{ID_PART_ENTRY_TYPE}=="%s", ENV{UDISKS_IGNORE}="1"`, layout.TypeMore),
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("it lacks %s:\n%s", want, text)
		}
	}
}
