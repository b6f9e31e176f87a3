// Package container builds a release in a container that has all of the
// tooling, with docker, podman or buildah.
//
// It gives no key and no password to the making of the container's image: they
// are shown to the running container, as files under /run/secrets, where they
// lie. A `--secret` of buildah and podman would be copied into their storage,
// which is a disk. The package refuses keys that are not kept as they must be,
// since inside a container the kernel does not show on what they lie.
package container

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"halogenos.internal/builder/recipes"
)

//go:embed Containerfile make-release
var files embed.FS

// Options say what to build.
type Options struct {
	Engine Engine
	// Network of the engine's that making the image and running it use; empty
	// for the engine's default.
	Network string
	// Base is the image that the container is made of: a name, or the path of
	// a tar archive with a root file system. Empty for the Containerfile's.
	Base string
	// Programs is the directory with halogen and the machine's programs.
	Programs string
	Config   string // path of uki.conf; files that it refers to lie in its directory
	Out      string // directory for what is built
	Previous string // directory of the build that this one follows; empty for none
	Recipe   string
	Stage3   string // archive that the recipe starts from; empty for none
	// Environment of the recipe, as NAME=VALUE. MIRROR is where the
	// container's own packages come from, too.
	Environment []string
	// Arguments of `halogen build` that name no file.
	Arguments []string
	Secrets   []Secret
	// Log gets what the engine and the build say.
	Log io.Writer
}

// A Secret is a file that the container sees as /run/secrets/<Name>. It must
// have been checked.
type Secret struct{ Name, Path string }

// Names of the secrets.
const (
	ReleaseKey         = "release-key"
	ReleaseKeyPassword = "release-key-password"
	ModuleKey          = "module-key"
	ModuleKeyPassword  = "module-key-password"
)

// programs are the files of the programs' directory; of them, those without which
// there is nothing to build with.
var programs = map[string]bool{"halogen": true, "bb": true, "bb.list": true, "bb.modules": false, "ota": false, "otad": false, "halogenctl": false, "share": false}

// Recipes returns the names of the recipes.
func Recipes() ([]string, error) {
	found, err := fs.Glob(recipes.FS, "*/make-rootfs")
	if err != nil {
		return nil, err
	}
	for i, name := range found {
		found[i] = filepath.Dir(name)
	}
	return found, nil
}

// Build makes the container's image, and a release in a container of it.
func Build(ctx context.Context, o Options) (err error) {
	work, err := os.MkdirTemp("", "halogen-container-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	if err := os.MkdirAll(o.Out, 0o755); err != nil {
		return err
	}
	for _, path := range []*string{&o.Config, &o.Out, &o.Previous, &o.Stage3, &o.Programs} {
		if *path == "" {
			continue
		}
		if *path, err = filepath.Abs(*path); err != nil {
			return err
		}
	}
	if o.Engine == Docker {
		owner, err := o.dockerOwner(ctx)
		if err != nil {
			return err
		}
		o.Environment = slices.Concat(o.Environment, owner)
	}
	if o.Base, err = o.importBase(ctx, work); err != nil {
		return fmt.Errorf("import the base image: %w", err)
	}
	directory := filepath.Join(work, "context")
	if err := o.fill(directory); err != nil {
		return fmt.Errorf("collect what the container is made of: %w", err)
	}
	name := filepath.Join(work, "image")
	if err := o.exec(ctx, o.Engine.image(directory, name, o.Base, o.mirror(), o.Network)); err != nil {
		return fmt.Errorf("make the container's image: %w", err)
	}
	image, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	return o.run(ctx, strings.TrimSpace(string(image)), filepath.Join(work, "container"))
}

func (o Options) mirror() string {
	for _, e := range o.Environment {
		if value, ok := strings.CutPrefix(e, "MIRROR="); ok {
			return value
		}
	}
	return ""
}

// importBase makes an image of an archive, if the base is one.
func (o Options) importBase(ctx context.Context, work string) (string, error) {
	info, err := os.Stat(o.Base)
	if o.Base == "" || err != nil || !info.Mode().IsRegular() {
		return o.Base, nil
	}
	directory := filepath.Join(work, "base")
	if err := os.Mkdir(directory, 0o755); err != nil {
		return "", err
	}
	if err := copyFile(os.DirFS(filepath.Dir(o.Base)), filepath.Base(o.Base), filepath.Join(directory, "base.tar")); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(directory, "Containerfile"), []byte("FROM scratch\nADD base.tar /\n"), 0o644); err != nil {
		return "", err
	}
	const name = "localhost/halogen-base:latest"
	return name, o.exec(ctx, o.Engine.base(directory, name))
}

// fill puts together what the Containerfile copies.
func (o Options) fill(directory string) error {
	if err := copyTree(files, ".", directory); err != nil {
		return err
	}
	if err := copyTree(recipes.FS, ".", filepath.Join(directory, "recipes")); err != nil {
		return err
	}
	bin := os.DirFS(o.Programs)
	for name, needed := range programs {
		info, err := fs.Stat(bin, name)
		switch {
		case errors.Is(err, fs.ErrNotExist) && !needed:
			continue
		case err != nil:
			return fmt.Errorf("%w (`make build` makes it)", err)
		case info.IsDir():
			err = copyTree(bin, name, filepath.Join(directory, "programs", name))
		default:
			err = copyFile(bin, name, filepath.Join(directory, "programs", name))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// copyTree copies what lies below a directory.
func copyTree(from fs.FS, top, to string) error {
	return fs.WalkDir(from, top, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(top, name)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o755)
		}
		return copyFile(from, name, filepath.Join(to, rel))
	})
}

// copyFile copies a file, of which it keeps no more than whether it is a
// program. That it can tell by the content alone: what is embedded in this
// program has no modes.
func copyFile(from fs.FS, name, to string) (err error) {
	in, err := from.Open(name)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	head := make([]byte, 4)
	n, err := io.ReadFull(in, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return err
	}
	if text := string(head[:n]); strings.HasPrefix(text, "#!") || text == "\x7fELF" {
		if err := out.Chmod(0o755); err != nil {
			return err
		}
	}
	if _, err := out.Write(head[:n]); err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return err
}

// run makes the release in a container of the image, whose ID goes to a file.
func (o Options) run(ctx context.Context, image, id string) error {
	r := running{image: image, id: id, network: o.Network, command: append([]string{"make-release", o.Recipe}, o.Arguments...)}
	r.volumes = []volume{{filepath.Dir(o.Config), "/config", true}, {o.Out, "/out", false}}
	if o.Previous != "" {
		r.volumes = append(r.volumes, volume{o.Previous, "/previous", true})
	}
	r.environment = append([]string{"CONFIG=" + filepath.Base(o.Config)}, o.Environment...)
	if o.Stage3 != "" {
		r.volumes = append(r.volumes, volume{o.Stage3, "/stage3", true})
		r.environment = append(r.environment, "STAGE3=/stage3")
	}
	for _, s := range o.Secrets {
		path, err := filepath.Abs(s.Path)
		if err != nil {
			return err
		}
		r.volumes = append(r.volumes, volume{path, "/run/secrets/" + s.Name, true})
	}
	for _, v := range r.volumes {
		if strings.ContainsAny(v.from, ":,\n") {
			return fmt.Errorf("path %q has a character that container engines read otherwise", v.from)
		}
	}
	if o.Engine != Buildah {
		return o.runOnce(ctx, r)
	}
	container, err := o.output(ctx, buildahFrom(r))
	if err != nil {
		return fmt.Errorf("make a container: %w", err)
	}
	err = o.exec(ctx, buildahRun(container, r))
	// Also after an interruption nothing shall be left.
	return errors.Join(err, o.exec(context.WithoutCancel(ctx), o.Engine.remove(container)))
}

// runOnce runs a container of docker's or podman's, which they remove. To
// interrupt their command does not end the container: its first process is bash,
// which waits for what it runs.
func (o Options) runOnce(ctx context.Context, r running) error {
	c := o.command(ctx, o.Engine.runOnce(r))
	c.Cancel = func() error { return c.Process.Kill() }
	err := o.wait(c)
	if ctx.Err() == nil {
		return notStarted(o.Engine, err)
	}
	id, missing := os.ReadFile(r.id)
	if missing != nil {
		return err // interrupted before there was one
	}
	return errors.Join(err, o.exec(context.WithoutCancel(ctx), o.Engine.remove(strings.TrimSpace(string(id)))))
}

// notStarted says what to do where the engine could not start a container, which is
// often the machine's fault: a runtime that does not take its cgroups, limits that even
// its root may not raise. Both engines have the same codes for that.
func notStarted(e Engine, err error) error {
	failed, ok := errors.AsType[*exec.ExitError](err)
	if !ok || failed.ExitCode() != 125 && failed.ExitCode() != 126 {
		return err
	}
	others := "buildah"
	if e == Podman {
		others = "buildah or docker; or podman with another runtime, such as runc, or limits (runtime and default_ulimits in containers.conf)"
	}
	return fmt.Errorf("%w: %s could not start the container, and says above why: cure that, or take another engine with --engine: %s", err, e, others)
}

// dockerOwner returns what tells the container whom the results shall belong to,
// where a daemon that is root runs it for another user.
func (o Options) dockerOwner(ctx context.Context) ([]string, error) {
	info, err := o.output(ctx, dockerInfo())
	if err != nil {
		return nil, fmt.Errorf("docker's daemon does not say how it confines containers (is it running, and may you use it?): %w", err)
	}
	rootless, err := dockerIsRootless(info)
	uid := os.Geteuid()
	if err != nil || rootless || uid == 0 {
		return nil, err
	}
	if len(o.Secrets) > 0 {
		return nil, errors.New("in a container of docker's, keys must belong to root: call halogen as root, or use podman")
	}
	return []string{"OWNER=" + strconv.Itoa(uid) + ":" + strconv.Itoa(os.Getegid())}, nil
}

func (o Options) command(ctx context.Context, args []string) *exec.Cmd {
	c := exec.CommandContext(ctx, args[0], args[1:]...)
	c.Cancel = func() error { return c.Process.Signal(os.Interrupt) }
	c.Stderr = o.Log
	return c
}

func (o Options) exec(ctx context.Context, args []string) error {
	return o.wait(o.command(ctx, args))
}

func (o Options) wait(c *exec.Cmd) error {
	c.Stdout = o.Log
	if err := c.Run(); err != nil {
		return fmt.Errorf("%s %s: %w", c.Args[0], c.Args[1], err)
	}
	return nil
}

func (o Options) output(ctx context.Context, args []string) (string, error) {
	out, err := o.command(ctx, args).Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w", args[0], args[1], err)
	}
	return strings.TrimSpace(string(out)), nil
}
