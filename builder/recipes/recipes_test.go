package recipes_test

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/testkit"
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
	for _, tool := range []string{"bash", "mkdir", "cat", "cp", "env", "sleep", "chmod"} {
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
printf '#!/bin/bash\necho "$*" >>/etc/units\n' >bin/systemctl
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
	for name, env := range map[string][]string{
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
	for _, pattern := range []string{"*/make-rootfs", "gentoo/install", "finish-system", "debian/mirror", "debian/hooks/*", "../container/make-release", "../container/development-keys"} {
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
