package container

import (
	"errors"
	"fmt"
	"os/exec"
	"slices"
)

// An Engine makes and runs containers. Where it keeps them, and how it keeps
// them apart, it takes from its own configuration and environment
// (BUILDAH_ISOLATION, STORAGE_DRIVER, CONTAINERS_STORAGE_CONF, DOCKER_HOST).
type Engine string

// The engines, in the order in which they are looked for.
const (
	Podman  Engine = "podman"
	Docker  Engine = "docker"
	Buildah Engine = "buildah"
)

// FindEngine returns the engine of a name, or the first that is installed.
func FindEngine(name string) (Engine, error) {
	all := []Engine{Podman, Docker, Buildah}
	if name != "" {
		if !slices.Contains(all, Engine(name)) {
			return "", fmt.Errorf("engine %q: want podman, docker or buildah", name)
		}
		all = []Engine{Engine(name)}
	}
	for _, e := range all {
		if _, err := exec.LookPath(string(e)); err == nil {
			return e, nil
		}
	}
	if name != "" {
		return "", fmt.Errorf("%s is not installed", name)
	}
	return "", errors.New("neither podman nor docker nor buildah is installed: install one, such as the package buildah, or build without --container")
}

// capabilities beyond an engine's defaults: a root file system is made with
// /proc mounted in it and with device nodes. Without the first, packages leave
// out folders and modes, and say nothing (measured: systemd-tmpfiles).
var capabilities = []string{"--cap-add=SYS_ADMIN", "--cap-add=MKNOD"}

// confinement is switched off where it forbids to mount, or to read what lies
// in a home folder.
var confinement = []string{"--security-opt=apparmor=unconfined", "--security-opt=label=disable"}

// base returns the command that makes an image of an archive in a folder.
func (e Engine) base(folder, name string) []string {
	return []string{string(e), "build", "--tag", name, "--file", folder + "/Containerfile", folder}
}

// image returns the command that makes the container's image and writes its ID
// to a file.
func (e Engine) image(folder, id, base, mirror string) []string {
	args := []string{string(e), "build", "--tag", "localhost/halogen-builder:latest", "--iidfile", id, "--file", folder + "/Containerfile"}
	if e == Buildah {
		args = append(args, "--layers") // as the others do: what has not changed is not made again
	}
	if base != "" {
		args = append(args, "--build-arg", "BASE="+base)
	}
	if mirror != "" {
		args = append(args, "--build-arg", "MIRROR="+mirror)
	}
	return append(args, folder)
}

// A volume is a file or folder that a container sees.
type volume struct {
	from, to string
	readOnly bool
}

func (v volume) String() string {
	if v.readOnly {
		return v.from + ":" + v.to + ":ro"
	}
	return v.from + ":" + v.to
}

// running is what a container is to do.
type running struct {
	image       string
	volumes     []volume
	environment []string
	command     []string
}

func (r running) options() []string {
	var args []string
	for _, v := range r.volumes {
		args = append(args, "--volume", v.String())
	}
	for _, e := range r.environment {
		args = append(args, "--env", e)
	}
	return args
}

// runOnce returns the command of docker and podman that runs a container and
// removes it.
func (e Engine) runOnce(r running) []string {
	return slices.Concat([]string{string(e), "run", "--rm"}, capabilities, confinement, r.options(), []string{r.image}, r.command)
}

// buildahFrom returns the command that makes a container and prints its name.
func buildahFrom(r running) []string {
	return slices.Concat([]string{"buildah", "from", "--pull=never"}, capabilities, confinement, []string{r.image})
}

// buildahRun returns the command that runs in it.
func buildahRun(id string, r running) []string {
	return slices.Concat([]string{"buildah", "run"}, r.options(), []string{id, "--"}, r.command)
}
