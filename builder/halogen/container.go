package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"halogenos.internal/builder/config"
	"halogenos.internal/builder/container"
	"halogenos.internal/builder/image"
	"halogenos.internal/builder/keys"
)

const containerSummary = `
With --container it builds in a container that has all that is needed, with
podman, docker or buildah, and makes the root file system itself, by a recipe.
With --release-key it also signs the release and publishes it in DIR/server.
Keys and passwords are shown to the container below /run/secrets, and are in no
layer; they are checked as by 'halogen keys check' before.

       halogen build --container --version 1 --out DIR --release-key KEY --release-key-password-file FILE
`

// containerFlags are the options of a build in a container.
type containerFlags struct {
	on                                                     bool
	engine, network, recipe, base, mirror, profile, stage3 string
	set                                                    []string
	releaseKey, releasePassword                            string
}

// define adds the options to those of build.
func (n *containerFlags) define(f *flag.FlagSet) {
	f.BoolVar(&n.on, "container", false, "build in a container, by a recipe")
	f.StringVar(&n.engine, "engine", "", "`NAME` of what runs the container: podman, docker or buildah; by default the first that there is")
	f.StringVar(&n.network, "network", "", "`NAME` of the engine's network that the container is made and run in, such as host; by default the engine's own choice")
	f.StringVar(&n.recipe, "recipe", "debian", "`NAME` of the recipe for the root file system: debian or gentoo")
	f.StringVar(&n.base, "base", "", "`IMAGE` that the container is made of, or a tar archive with a Debian; by default docker.io/library/debian:trixie-slim")
	f.StringVar(&n.mirror, "mirror", "", "`URL` of the distribution's packages, for the recipe")
	f.StringVar(&n.profile, "profile", "", "`NAME` of the Portage profile, for the recipe gentoo")
	f.StringVar(&n.stage3, "stage3", "", "stage 3 `ARCHIVE`, for the recipe gentoo")
	f.Func("set", "`NAME=VALUE` for the recipe, which says what it takes; more than once", func(value string) error {
		if !regexp.MustCompile(`^[A-Z][A-Z0-9_]*=`).MatchString(value) {
			return errors.New("want NAME=VALUE")
		}
		n.set = append(n.set, value)
		return nil
	})
	f.StringVar(&n.releaseKey, "release-key", "", "secret `KEY` of ReleaseKey, which signs the release")
	f.StringVar(&n.releasePassword, "release-key-password-file", "", "`FILE` whose first line is that key's password")
}

// Options of build that belong to one of the two ways only.
var (
	containerOnly = []string{"engine", "network", "recipe", "base", "mirror", "profile", "stage3", "set", "release-key", "release-key-password-file"}
	hostOnly      = []string{"rootfs", "agent", "json", "server", "cache", "extension"}
)

// checkWay refuses options that the way of building does not know.
func (c command) checkWay(f *flag.FlagSet, inContainer bool) (err error) {
	f.Visit(func(given *flag.Flag) {
		switch {
		case err != nil:
		case inContainer && slices.Contains(hostOnly, given.Name):
			err = c.misused(f, "--%s does not go with --container", given.Name)
		case !inContainer && slices.Contains(containerOnly, given.Name):
			err = c.misused(f, "--%s is for --container", given.Name)
		}
	})
	return err
}

// buildInContainer builds as the options say, which were checked as far as they
// are those of every build.
func (c command) buildInContainer(ctx context.Context, f *flag.FlagSet, b buildFlags, o image.Options) error {
	n := b.container
	recipes, err := container.Recipes()
	if err != nil {
		return err
	}
	if !slices.Contains(recipes, n.recipe) {
		return c.misused(f, "--recipe %q: want %s", n.recipe, strings.Join(recipes, " or "))
	}
	// What is wrong with the configuration shall be known before the container
	// is made.
	if o.Config, err = config.Load(b.config); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	if len(o.Config.Extensions) > 0 {
		return fmt.Errorf("%s has extensions, whose sources the container does not see: build without --container", b.config)
	}
	if (n.releaseKey != "") != (len(o.Config.ReleaseKey) > 0) {
		return c.misused(f, "--release-key goes with ReleaseKey= in %s: one is there, and not the other", b.config)
	}
	secrets, err := c.secrets(f, b)
	if err != nil {
		return err
	}
	engine, err := container.FindEngine(n.engine)
	if err != nil {
		return err
	}
	start := time.Now()
	o.Progress.Note("building in a container, with %s", engine)
	err = container.Build(ctx, container.Options{
		Engine: engine, Network: n.network, Base: n.base, Programs: o.Machine, Config: b.config, Out: b.out, Previous: b.previous,
		Recipe: n.recipe, Stage3: n.stage3, Environment: c.recipeEnvironment(n), Arguments: containerArguments(b),
		Secrets: secrets, Log: c.stderr,
	})
	if err != nil {
		return err
	}
	o.Progress.Note("built in a container in %.1f s", time.Since(start).Seconds())
	_, err = fmt.Fprintln(c.stdout, filepath.Clean(b.out))
	return err
}

// recipeEnvironment is what the recipe, and `halogen build` after it, is told.
func (c command) recipeEnvironment(n containerFlags) []string {
	all := slices.Clone(n.set)
	for _, e := range []struct{ name, value string }{{"MIRROR", n.mirror}, {"PROFILE", n.profile}, {"SOURCE_DATE_EPOCH", c.getenv("SOURCE_DATE_EPOCH")}} {
		if e.value != "" {
			all = append(all, e.name+"="+e.value)
		}
	}
	return all
}

// containerArguments are the options of the build in the container, but for
// those that name files.
func containerArguments(b buildFlags) []string {
	args := []string{"--version", b.version}
	if b.disk {
		args = append(args, "--disk", "--disk-size", b.diskSize)
	}
	if b.installer {
		args = append(args, "--installer")
	}
	if b.expiringKey {
		args = append(args, "--allow-expiring-key")
	}
	if b.movedAccounts {
		args = append(args, "--allow-moved-accounts")
	}
	return args
}

// secrets checks the keys and passwords where they lie.
func (c command) secrets(f *flag.FlagSet, b buildFlags) ([]container.Secret, error) {
	if err := c.protect(); err != nil {
		return nil, err
	}
	var all []container.Secret
	for _, k := range []struct{ name, key, passwordName, password string }{
		{container.ReleaseKey, b.container.releaseKey, container.ReleaseKeyPassword, b.container.releasePassword},
		{container.ModuleKey, b.moduleKey, container.ModuleKeyPassword, b.modulePassword},
	} {
		if (k.key == "") != (k.password == "") {
			return nil, c.misused(f, "--%s and --%s-password-file go together, since nobody is there in a container to be asked", k.name, k.name)
		}
		if k.key == "" {
			continue
		}
		key, err := keys.Check(k.key, nil, time.Now())
		if err != nil {
			return nil, err
		}
		password, err := keys.CheckPlace(k.password)
		if err != nil {
			return nil, err
		}
		if err := errors.Join(key.Err(excused(b.unencrypted)...), password.Err(excused(b.unencrypted)...)); err != nil {
			return nil, err
		}
		all = append(all, container.Secret{Name: k.name, Path: k.key}, container.Secret{Name: k.passwordName, Path: k.password})
	}
	return all, nil
}
