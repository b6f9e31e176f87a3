package container

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/builder/rootfs/rootfstest"
)

func TestCommands(t *testing.T) {
	r := running{image: "sha256:1", volumes: []volume{{"/c", "/config", true}, {"/o", "/out", false}}, environment: []string{"A=b c"}, command: []string{"make-release", "debian"}}
	const options = "--volume /c:/config:ro --volume /o:/out --env A=b c"
	for _, c := range []struct {
		name string
		have []string
		want string
	}{
		{"podman", Podman.runOnce(r), "podman run --rm --cap-add=SYS_ADMIN --cap-add=MKNOD --security-opt=apparmor=unconfined --security-opt=label=disable " + options + " sha256:1 make-release debian"},
		{"docker", Docker.runOnce(r), "docker run --rm --cap-add=SYS_ADMIN --cap-add=MKNOD --security-opt=apparmor=unconfined --security-opt=label=disable " + options + " sha256:1 make-release debian"},
		{"buildah, container", buildahFrom(r), "buildah from --pull=never --cap-add=SYS_ADMIN --cap-add=MKNOD --security-opt=apparmor=unconfined --security-opt=label=disable sha256:1"},
		{"buildah, run", buildahRun("c1", r), "buildah run " + options + " c1 -- make-release debian"},
		{"image", Docker.image("/f", "/i", "", ""), "docker build --tag localhost/halogen-builder:latest --iidfile /i --file /f/Containerfile /f"},
		{"image, all", Buildah.image("/f", "/i", "debian", "http://m"), "buildah build --tag localhost/halogen-builder:latest --iidfile /i --file /f/Containerfile --layers --build-arg BASE=debian --build-arg MIRROR=http://m /f"},
		{"base", Podman.base("/f", "b"), "podman build --tag b --file /f/Containerfile /f"},
	} {
		if have := strings.Join(c.have, " "); have != c.want {
			t.Errorf("%s:\n%s, want\n%s", c.name, have, c.want)
		}
	}
}

func TestFindEngine(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	for _, c := range []struct {
		install, name, want, err string
	}{
		{"", "", "", "neither"},
		{"", "buildah", "", "not installed"},
		{"", "lxc", "", "want podman"},
		{"buildah", "", "buildah", ""},
		{"docker", "", "docker", ""},
		{"podman", "", "podman", ""},
		{"", "buildah", "buildah", ""},
	} {
		if c.install != "" {
			if err := os.WriteFile(filepath.Join(dir, c.install), []byte("#!/bin/sh\n"), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		e, err := FindEngine(c.name)
		if string(e) != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("with %s, %q: %q, %v", c.install, c.name, e, err)
		}
	}
}

// fakeEngine is a podman that writes down how it was called.
func fakeEngine(t *testing.T) (log string) {
	dir := t.TempDir()
	log = filepath.Join(dir, "log")
	text := `#!/bin/sh
echo "$*" >>` + log + `
[ "$1" = build ] || exit 0
while [ $# -gt 1 ]; do [ "$1" != --iidfile ] || echo sha256:77 >"$2"; shift; done
ls -R "$1" >>` + log + "\n"
	if err := os.WriteFile(filepath.Join(dir, "podman"), []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return log
}

func TestBuild(t *testing.T) {
	log := fakeEngine(t)
	programs := rootfstest.Machine(t)
	if err := os.WriteFile(filepath.Join(programs, "halogen"), []byte("\x7fELF"), 0o755); err != nil {
		t.Fatal(err)
	}
	o := Options{
		Engine: Podman, Programs: programs, Config: "/c/uki.conf", Out: t.TempDir(), Recipe: "debian", Base: "debian:13",
		Environment: []string{"MIRROR=http://m"}, Arguments: []string{"--version", "3"}, Secrets: []Secret{{ReleaseKey, "/k/key"}}, Log: io.Discard,
	}
	if err := Build(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"--build-arg BASE=debian:13 --build-arg MIRROR=http://m", "/context/recipes/debian/hooks:", "make-release\n", "bb.list\n",
		"--volume /k/key:/run/secrets/release-key:ro --env CONFIG=uki.conf --env MIRROR=http://m sha256:77 make-release debian --version 3\n",
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
	// No key is there when the image is made.
	if build, _, _ := strings.Cut(string(text), "run --rm"); strings.Contains(build, "/k/key") {
		t.Errorf("the image was made with the key:\n%s", build)
	}
	o.Out = filepath.Join(t.TempDir(), "a:b")
	if err := Build(t.Context(), o); err == nil || !strings.Contains(err.Error(), "a:b") {
		t.Errorf("a path with a colon: %v", err)
	}
	if err := os.Remove(filepath.Join(programs, "bb")); err != nil {
		t.Fatal(err)
	}
	if err := Build(t.Context(), o); err == nil || !strings.Contains(err.Error(), "make build") {
		t.Errorf("without programs: %v", err)
	}
}
