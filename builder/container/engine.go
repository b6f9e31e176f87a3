package container

import (
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
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
// out directories and modes, and say nothing (measured: systemd-tmpfiles).
var capabilities = []string{"--cap-add=SYS_ADMIN", "--cap-add=MKNOD"}

// confinement is switched off where it forbids to mount, or to read what lies
// in a home directory.
var confinement = []string{"--security-opt=apparmor=unconfined", "--security-opt=label=disable"}

// base returns the command that makes an image of an archive in a directory.
func (e Engine) base(directory, name string) []string {
	return []string{string(e), "build", "--tag", name, "--file", directory + "/Containerfile", directory}
}

// image returns the command that makes the container's image and writes its ID
// to a file.
func (e Engine) image(directory, id, base, mirror, network string) []string {
	args := []string{string(e), "build", "--tag", "localhost/halogen-builder:latest", "--iidfile", id, "--file", directory + "/Containerfile"}
	args = append(args, networkOption(network)...)
	if e == Buildah {
		args = append(args, "--layers") // as the others do: what has not changed is not made again
	}
	if base != "" {
		args = append(args, "--build-arg", "BASE="+base)
	}
	if mirror != "" {
		args = append(args, "--build-arg", "MIRROR="+mirror)
	}
	return append(args, directory)
}

// networkOption names the network of the engine's that is used; empty for its
// default.
func networkOption(network string) []string {
	if network == "" {
		return nil
	}
	return []string{"--network=" + network}
}

// A volume is a file or directory that a container sees.
type volume struct {
	from, to string
	readOnly bool
}

// option returns the volume as an option of the engine. docker's --volume makes
// a directory of what is missing, which a key is to a daemon on another machine;
// its --mount fails.
func (v volume) option(e Engine) []string {
	switch {
	case e == Docker && v.readOnly:
		return []string{"--mount", "type=bind,source=" + v.from + ",target=" + v.to + ",readonly"}
	case e == Docker:
		return []string{"--mount", "type=bind,source=" + v.from + ",target=" + v.to}
	case v.readOnly:
		return []string{"--volume", v.from + ":" + v.to + ":ro"}
	}
	return []string{"--volume", v.from + ":" + v.to}
}

// running is what a container is to do.
type running struct {
	image       string
	id          string // file that docker and podman write the container's ID to
	network     string
	volumes     []volume
	environment []string
	command     []string
}

func (r running) options(e Engine) []string {
	args := networkOption(r.network)
	for _, v := range r.volumes {
		args = append(args, v.option(e)...)
	}
	for _, e := range r.environment {
		args = append(args, "--env", e)
	}
	return args
}

// runOnce returns the command of docker and podman that runs a container and
// removes it.
func (e Engine) runOnce(r running) []string {
	return slices.Concat([]string{string(e), "run", "--rm", "--cidfile", r.id}, capabilities, confinement, r.options(e), []string{r.image}, r.command)
}

// remove returns the command that ends a container and removes it.
func (e Engine) remove(id string) []string {
	if e == Buildah {
		return []string{"buildah", "rm", id}
	}
	return []string{string(e), "rm", "--force", "--volumes", id}
}

// buildahFrom returns the command that makes a container and prints its name.
func buildahFrom(r running) []string {
	return slices.Concat([]string{"buildah", "from", "--pull=never"}, capabilities, confinement, []string{r.image})
}

// buildahRun returns the command that runs in it.
func buildahRun(id string, r running) []string {
	return slices.Concat([]string{"buildah", "run"}, r.options(Buildah), []string{id, "--"}, r.command)
}

// dockerInfo returns the command that prints, as a JSON list, how docker's daemon
// confines containers.
func dockerInfo() []string {
	return []string{"docker", "info", "--format", "{{json .SecurityOptions}}"}
}

// dockerIsRootless interprets what dockerInfo prints: whether root in a container
// is the user of the daemon, and not root. It refuses a daemon whose containers
// can neither read keys nor write what is built.
func dockerIsRootless(info string) (bool, error) {
	var options []string
	if err := json.Unmarshal([]byte(info), &options); err != nil {
		return false, fmt.Errorf("docker info printed %q, want a JSON list: %w", info, err)
	}
	rootless := false
	for _, o := range options {
		switch name, _, _ := strings.Cut(o, ","); name {
		case "name=userns":
			return false, errors.New("docker gives containers users of their own (userns-remap), who can neither read the keys nor write what is built: use a daemon without it, or podman")
		case "name=rootless":
			rootless = true
		}
	}
	return rootless, nil
}
