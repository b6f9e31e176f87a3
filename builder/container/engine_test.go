package container

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/testkit"
	"halogenos.internal/builder/rootfs/rootfstest"
)

func TestCommands(t *testing.T) {
	r := running{image: "sha256:1", id: "/w/id", volumes: []volume{{"/c", "/config", true}, {"/o", "/out", false}}, environment: []string{"A=b c"}, command: []string{"make-release", "debian"}}
	host := r
	host.network = "host"
	const (
		confined = " --cap-add=SYS_ADMIN --cap-add=MKNOD --security-opt=apparmor=unconfined --security-opt=label=disable"
		volumes  = " --volume /c:/config:ro --volume /o:/out --env A=b c"
		mounts   = " --mount type=bind,source=/c,target=/config,readonly --mount type=bind,source=/o,target=/out --env A=b c"
		builder  = " build --tag localhost/halogen-builder:latest --iidfile /i --file /f/Containerfile"
	)
	for _, c := range []struct {
		name string
		have []string
		want string
	}{
		{"podman", Podman.runOnce(r), "podman run --rm --cidfile /w/id" + confined + volumes + " sha256:1 make-release debian"},
		{"docker", Docker.runOnce(r), "docker run --rm --cidfile /w/id" + confined + mounts + " sha256:1 make-release debian"},
		{"buildah, container", buildahFrom(r), "buildah from --pull=never" + confined + " sha256:1"},
		{"buildah, run", buildahRun("c1", r), "buildah run" + volumes + " c1 -- make-release debian"},
		{"podman, network", Podman.runOnce(host), "podman run --rm --cidfile /w/id" + confined + " --network=host" + volumes + " sha256:1 make-release debian"},
		{"docker, network", Docker.runOnce(host), "docker run --rm --cidfile /w/id" + confined + " --network=host" + mounts + " sha256:1 make-release debian"},
		{"buildah, network", buildahRun("c1", host), "buildah run --network=host" + volumes + " c1 -- make-release debian"},
		{"image", Docker.image("/f", "/i", "", "", ""), "docker" + builder + " /f"},
		{"image, network", Docker.image("/f", "/i", "", "", "host"), "docker" + builder + " --network=host /f"},
		{"image, all", Buildah.image("/f", "/i", "debian", "http://m", "host"), "buildah" + builder + " --network=host --layers --build-arg BASE=debian --build-arg MIRROR=http://m /f"},
		{"base", Podman.base("/f", "b"), "podman build --tag b --file /f/Containerfile /f"},
		{"docker, remove", Docker.remove("c1"), "docker rm --force --volumes c1"},
		{"podman, remove", Podman.remove("c1"), "podman rm --force --volumes c1"},
		{"buildah, remove", Buildah.remove("c1"), "buildah rm c1"},
	} {
		if have := strings.Join(c.have, " "); have != c.want {
			t.Errorf("%s:\n%s, want\n%s", c.name, have, c.want)
		}
	}
}

// What `docker info` of 20.10 and 26 prints, as it is started by root, by a user,
// and with userns-remap.
func TestDockerIsRootless(t *testing.T) {
	for _, c := range []struct {
		info, err string
		want      bool
	}{
		{`["name=seccomp,profile=default"]`, "", false},
		{`["name=apparmor","name=seccomp,profile=builtin","name=cgroupns"]`, "", false},
		{`["name=seccomp,profile=builtin","name=rootless","name=cgroupns"]`, "", true},
		{`["name=seccomp,profile=default","name=userns"]`, "userns-remap", false},
		{`null`, "", false},
		{``, "JSON", false},
	} {
		rootless, err := dockerIsRootless(c.info)
		if rootless != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v, %v", c.info, rootless, err)
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

// fakeEngine is an engine that writes down how it was called, and what it was to
// make an image of. The rest of the script is what it does then.
func fakeEngine(t *testing.T, engine Engine, rest string) (log string) {
	dir := t.TempDir()
	log = filepath.Join(dir, "log")
	text := `#!/bin/sh
echo "$*" >>` + log + `
called=$1
while [ $# -gt 1 ]; do
	case $1 in --iidfile) echo sha256:77 >"$2" ;; --cidfile) echo c1 >"$2" ;; esac
	shift
done
[ $called != build ] || ls -R "$1" >>` + log + "\n" + rest + "\n"
	if err := os.WriteFile(filepath.Join(dir, string(engine)), []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return log
}

func options(t *testing.T, engine Engine) Options {
	programs := rootfstest.Machine(t)
	if err := os.WriteFile(filepath.Join(programs, "halogen"), []byte("\x7fELF"), 0o755); err != nil {
		t.Fatal(err)
	}
	return Options{Engine: engine, Programs: programs, Config: "/c/uki.conf", Out: t.TempDir(), Recipe: "debian", Log: io.Discard}
}

func TestBuild(t *testing.T) {
	log := fakeEngine(t, Podman, "")
	o := options(t, Podman)
	o.Base, o.Environment = "debian:13", []string{"MIRROR=http://m"}
	o.Arguments, o.Secrets = []string{"--version", "3"}, []Secret{{ReleaseKey, "/k/key"}}
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
	if err := os.Remove(filepath.Join(o.Programs, "bb")); err != nil {
		t.Fatal(err)
	}
	if err := Build(t.Context(), o); err == nil || !strings.Contains(err.Error(), "make build") {
		t.Errorf("without programs: %v", err)
	}
}

// An engine that cannot start a container is told from a container that fails.
func TestEngineThatStartsNothing(t *testing.T) {
	for _, engine := range []Engine{Docker, Podman} {
		for code, want := range map[string]string{"125": "could not start the container", "126": "could not start the container", "1": "run: exit status 1"} {
			fakeEngine(t, engine, "case $called in info) echo null ;; run) exit "+code+" ;; esac")
			err := Build(t.Context(), options(t, engine))
			if err == nil || !strings.Contains(err.Error(), string(engine)+" run: exit status "+code) || !strings.Contains(err.Error(), want) ||
				strings.Contains(err.Error(), "--engine") != (code != "1") {
				t.Errorf("%s, exit status %s: %v", engine, code, err)
				continue
			}
			if code == "126" {
				testkit.Tells(t, testkit.Error{What: "build: " + string(engine) + " cannot start containers", Thing: string(engine) + " run", Cure: "--engine: buildah"}, "halogen build: "+err.Error())
			}
		}
	}
}

// Nothing is left of a container that was interrupted: its end is not that of
// the command that runs it.
func TestInterrupted(t *testing.T) {
	for _, engine := range []Engine{Docker, Podman} {
		ready := filepath.Join(t.TempDir(), "ready")
		log := fakeEngine(t, engine, "case $called in info) echo null ;; run) : >"+ready+"; exec sleep 600 ;; esac")
		ctx, interrupt := context.WithCancel(t.Context())
		go func() {
			for {
				if _, err := os.Stat(ready); err == nil || ctx.Err() != nil {
					interrupt()
					return
				}
				time.Sleep(10 * time.Millisecond)
			}
		}()
		err := Build(ctx, options(t, engine))
		interrupt()
		text, _ := os.ReadFile(log)
		if err == nil || !strings.HasSuffix(string(text), "\nrm --force --volumes c1\n") {
			t.Errorf("%s: %v, after\n%s", engine, err, text)
		}
	}
}

// What docker's daemon makes belongs to its caller, who is not asked to
// show it keys that it could not read.
func TestDockerOwner(t *testing.T) {
	uid := os.Geteuid()
	for _, c := range []struct {
		info        string
		owner, keys bool // whether the owner is told, whether keys may be shown
		err         string
	}{
		{`["name=seccomp,profile=default"]`, uid != 0, uid == 0, "root"},
		{`["name=rootless"]`, false, true, ""},
		{`["name=userns"]`, false, false, "userns-remap"},
	} {
		log := fakeEngine(t, Docker, "[ $called != info ] || echo '"+c.info+"'")
		o := options(t, Docker)
		err := Build(t.Context(), o)
		text, _ := os.ReadFile(log)
		if (err == nil) != (c.err != "userns-remap") || strings.Contains(string(text), "--env OWNER=") != c.owner {
			t.Errorf("%s: %v, after\n%s", c.info, err, text)
		}
		o.Secrets = []Secret{{ReleaseKey, "/k/key"}}
		if err := Build(t.Context(), o); (err == nil) != c.keys || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s, with a key: %v", c.info, err)
		}
	}
}
