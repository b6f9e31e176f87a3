package health

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"halogenos.internal/boot/healthignore"
)

// A Run runs a program and returns what it prints.
type Run func(ctx context.Context, program string, args ...string) ([]byte, error)

// Find returns the service manager of the system that runs, and its name; nil where
// there is none that can be asked, as with System V's init.
func Find(root string, run Run) (Manager, string) {
	is := func(name string) bool {
		_, err := os.Stat(filepath.Join(root, name))
		return err == nil
	}
	switch {
	case is("run/systemd/system"): // sd_booted(3)
		return systemd(run, root), "systemd"
	case is(openrcState + "/softlevel"):
		return openrc(run, filepath.Join(root, openrcState)), "OpenRC"
	}
	return nil, ""
}

// Command is the Run of a machine.
func Command(ctx context.Context, program string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "SYSTEMD_COLORS=0", "SYSTEMD_PAGER=")
	out, err := cmd.Output()
	if failed, ok := errors.AsType[*exec.ExitError](err); ok && len(failed.Stderr) > 0 {
		err = fmt.Errorf("%w: %.200s", err, strings.TrimSpace(string(failed.Stderr)))
	}
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", program, err)
	}
	return out, err
}

// systemd asks systemctl(1), which needs no D-Bus daemon.
func systemd(run Run, root string) Manager {
	return func(ctx context.Context) (*Look, error) {
		jobs, err := run(ctx, "systemctl", "list-jobs", "--plain", "--no-legend", "--no-pager", "--full")
		if err != nil {
			return nil, err
		}
		units, err := run(ctx, "systemctl", "list-units", "--state=failed,auto-restart,auto-restart-queued", "--plain", "--no-legend", "--no-pager", "--full")
		if err != nil {
			return nil, err
		}
		look := &Look{Starting: jobsIn(string(jobs))}
		look.Failed, look.Restarting = unitsIn(string(units))
		if names := clip(slices.Concat(look.Failed, look.Restarting)); len(names) > 0 {
			about, err := run(ctx, "systemctl", slices.Concat([]string{"show", "--property=Id,Transient,Type,Options,Before,WantedBy,RequiredBy", "--"}, names)...)
			if err != nil {
				return nil, err
			}
			look.describe(string(about))
		}
		return look, look.desktop(ctx, root, run)
	}
}

// describe reads `systemctl show` of the units that failed: a block of properties for
// each. What was made while the system runs, as by systemd-run(1), has another name at
// each start, and is left out.
func (l *Look) describe(text string) {
	for block := range strings.SplitSeq(text, "\n\n") {
		unit := properties(block)
		name := unit["Id"]
		is := func(other string) bool { return other == name }
		switch {
		case unit["Transient"] == "yes":
			l.Failed, l.Restarting = slices.DeleteFunc(l.Failed, is), slices.DeleteFunc(l.Restarting, is)
		case ofNetwork(unit):
			l.Network = append(l.Network, name)
		}
	}
}

// properties reads a block of `systemctl show`.
func properties(block string) map[string]string {
	unit := map[string]string{}
	for line := range strings.Lines(block) {
		if key, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "="); ok {
			unit[key] = value
		}
	}
	return unit
}

// networkTypes are the types of file systems that lie on another machine, those that
// systemd knows (fstype_is_network in its mountpoint-util.c) and common ones of FUSE.
var networkTypes = []string{
	"afs", "ceph", "cifs", "curlftpfs", "davfs", "gfs", "gfs2", "glusterfs", "lustre", "ncp", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs",
	"pvfs2", "rclone", "s3fs", "smb3", "smbfs", "sshfs",
}

// ofNetwork reports whether a unit mounts what lies on a network.
func ofNetwork(unit map[string]string) bool {
	switch filepath.Ext(unit["Id"]) {
	case ".mount", ".automount", ".swap":
	default:
		return false
	}
	const remote = "remote-fs.target"
	return slices.Contains(networkTypes, strings.TrimPrefix(unit["Type"], "fuse.")) ||
		slices.Contains(strings.Split(unit["Options"], ","), "_netdev") ||
		slices.Contains(strings.Fields(unit["Before"]+" "+unit["WantedBy"]+" "+unit["RequiredBy"]), remote)
}

// jobsIn reads `systemctl list-jobs`: its lines have number, unit, kind and state. Jobs
// that wait do so for one that runs, and some for this very check.
func jobsIn(text string) (running []string) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) != 4 || f[3] != "running" || f[2] == "stop" || !counts(f[1]) {
			continue
		}
		if _, err := strconv.ParseUint(f[0], 10, 32); err == nil {
			running = append(running, f[1])
		}
	}
	return running
}

// unitsIn reads `systemctl list-units`: its lines have unit, load state, state, state
// in detail, and a description.
func unitsIn(text string) (failed, restarting []string) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 4 || !counts(f[0]) {
			continue
		}
		switch {
		case f[2] == "failed":
			failed = append(failed, f[0])
		case strings.HasPrefix(f[3], "auto-restart"):
			restarting = append(restarting, f[0])
		}
	}
	return failed, restarting
}

// own are HalogenOS's units that are not part of the system's health: a server that is
// away is not a fault of the system, nor is what users ask the update service for, nor an
// answer at a first start, and the others are what judges it.
var own = []string{
	"ota-fetch.service", "ota-health.service", "ota-bless.service", "ota-unhealthy.service", "ota-failures.service",
	"ota-restart.service", "ota-restart.timer", "otad.service", "otad.socket",
	"halogen-setup.service", "halogen-setup",
}

// counts reports whether this is the name of a unit that is not HalogenOS's own.
func counts(name string) bool {
	for _, o := range own {
		if name == o {
			return false
		}
	}
	return healthignore.ValidName(name)
}

// openrcState is where OpenRC keeps the state of its services.
const openrcState = "run/openrc"

// openrc asks rc-status(8) for the services of the runlevels that a start goes through.
// One that did not start is "failed" as long as the runlevel is entered, and "stopped"
// after that; `rc-status --crashed` tells of neither.
func openrc(run Run, state string) Manager {
	return func(ctx context.Context) (*Look, error) {
		text, err := os.ReadFile(filepath.Join(state, "softlevel"))
		level := strings.TrimSpace(string(text))
		if err == nil && (!healthignore.ValidName(level) || level[0] == '-') {
			err = fmt.Errorf("OpenRC says that its runlevel is %.80q", level)
		}
		if err != nil {
			return nil, err
		}
		out, err := run(ctx, "rc-status", "--nocolor", "--format", "ini", "sysinit", "boot", level)
		if err != nil {
			return nil, err
		}
		look := servicesIn(string(out))
		if _, err := os.Stat(filepath.Join(state, "rc.starting")); err == nil {
			look.Starting = append(look.Starting, level)
		}
		return look, nil
	}
}

// servicesIn reads `rc-status --format ini`: a runlevel in brackets, and below it
// services, each with its state.
func servicesIn(text string) *Look {
	look := &Look{}
	for line := range strings.Lines(text) {
		name, state, ok := strings.Cut(line, " = ")
		if !ok || !healthignore.ValidName(name) {
			continue
		}
		word, _, _ := strings.Cut(strings.TrimSpace(state), " ")
		switch word {
		case "stopped", "failed", "crashed", "unsupervised":
			look.Failed = append(look.Failed, name)
		case "starting":
			look.Starting = append(look.Starting, name)
		}
	}
	return look
}
