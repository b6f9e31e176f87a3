package machine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/extension"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/uroot-cmds/ota/fetch"
	"halogenos.internal/uroot-cmds/ota/worker"
)

// A FetchedExtension is one whose file was brought, for a release.
type FetchedExtension struct {
	Name    string           `json:"name"`
	Version contract.Version `json:"version"`
	// Missing: the server does not have it.
	Missing bool `json:"missing,omitempty"`
	// There: it was on the root partition already, whole.
	There  bool          `json:"there,omitempty"`
	Result *fetch.Result `json:"result,omitempty"`
}

// An ExtensionChange is what enabling or disabling has done.
type ExtensionChange struct {
	Enabled  []string           `json:"enabled"` // that are so now, all of them
	Fetched  []FetchedExtension `json:"fetched,omitempty"`
	Freed    int64              `json:"freed,omitempty"` // bytes
	Warnings []string           `json:"warnings,omitempty"`
}

func (c *ExtensionChange) warn(format string, args ...any) {
	c.Warnings = append(c.Warnings, fmt.Sprintf(format, args...))
}

// EnableExtensions fetches extensions for the release that runs, and for those beside it,
// and has the next start open them.
//
// A name counts as enabled when its files are there and whole: cut before that, the next call
// goes on where it was, and no start looks for a file that is not there.
func (m *Machine) EnableExtensions(ctx context.Context, names []string, o Options) (*ExtensionChange, error) {
	r, err := m.Running()
	if err != nil {
		return nil, err
	}
	lock, err := m.lock(r)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	x, err := m.extensions(r)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if !x.has(name) {
			return nil, x.noSuch(name)
		}
	}
	u, err := m.begin(r, o)
	if err != nil {
		return nil, err
	}
	defer u.end()
	u.lock, u.alone = lock, true
	if err := m.makeExtensions(r); err != nil {
		return nil, err
	}
	out := &ExtensionChange{Enabled: x.choice.Enabled()}
	for _, name := range names {
		if err := u.enable(ctx, x, name, out); err != nil {
			return out, hw.Full(err)
		}
	}
	return out, nil
}

// enable does so with one.
func (u *update) enable(ctx context.Context, x *Extensions, name string, out *ExtensionChange) error {
	for i, c := range x.carriersOf(name) {
		at := slices.IndexFunc(c.list, func(e contract.Extension) bool { return e.Name == name })
		e := &c.list[at]
		if i > 0 && (c.Role == Gone || c.contract.Epoch < u.running.Contract.Epoch) {
			continue // it is not started any more
		}
		got, err := u.bring(ctx, &fetch.Extension{Extension: *e, Of: c.contract}, x)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err == nil {
			out.Fetched = append(out.Fetched, *got)
		}
		if err == nil && got.Missing {
			err = u.notHad(name, c.Version)
		}
		switch {
		case err == nil:
		case i == 0:
			return fmt.Errorf("extension %s is not enabled: %w", name, err)
		case e.Essential && c.Role == RoleWaits:
			return fmt.Errorf("extension %s is not enabled: version %s waits, has it as an essential one, and would not start without it: %w", name, c.Version, err)
		case e.Essential:
			out.warn("version %s would not start as long as extension %s is enabled, which it has as an essential one: disable it before a rollback. %v", c.Version, name, err)
		default:
			out.warn("version %s starts without extension %s: %v", c.Version, name, err)
		}
	}
	choice, err := x.choice.With(name)
	if err != nil {
		return err
	}
	if err := u.keepChoice(u.running, choice); err != nil {
		return err
	}
	x.choice, out.Enabled = choice, choice.Enabled()
	return nil
}

// notHad says that the server has no archive of an extension.
func (u *update) notHad(name string, v contract.Version) error {
	return fmt.Errorf("%s does not have %s of version %s (%s/%s.tar.gz): it may not be published yet, or version %s was withdrawn. Try again later, or take a newer release; anyone who has the archive names it with --from", u.from(), name, v, v, name, v)
}

// keepChoice writes which extensions are enabled. Cut before the rename, the old choice is
// there, and after it the new one: both are whole.
func (m *Machine) keepChoice(r *Running, c extension.Choice) error {
	return hw.KeepFile(m.state(r, extension.Directory, extension.ChoiceName), c.Encode(), 0o600)
}

// makeExtensions makes the directory.
func (m *Machine) makeExtensions(r *Running) error {
	directory := m.state(r, extension.Directory)
	err := os.Mkdir(directory, 0o700)
	if err == nil {
		return hw.SyncDirectory(filepath.Dir(directory))
	}
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := os.Lstat(directory)
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("%s is no directory, and extensions belong there: set it aside", directory)
	}
	return err
}

// DisableExtensions has the next start leave extensions out, in whatever slot, and removes
// the files that no release here lists.
//
// The choice comes first: cut after it, a file too many is there, which the next call or the
// next fetch removes. In the other order a start would miss a file.
func (m *Machine) DisableExtensions(names []string) (*ExtensionChange, error) {
	r, err := m.Running()
	if err != nil {
		return nil, err
	}
	lock, err := m.lock(r)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	choice, err := m.readChoice(r)
	if err != nil {
		return nil, err
	}
	// That the EFI system partition cannot be read is no reason to keep a machine from
	// starting without an extension.
	x, unlisted := m.carriers(r)
	if unlisted != nil {
		x = &Extensions{Unlisted: unlisted.Error()}
	}
	for _, name := range names {
		if !choice.Has(name) && !x.has(name) {
			return nil, fmt.Errorf("no extension %s is enabled, and no release here has one: enabled are %s", name, Names(choice.Enabled()))
		}
	}
	for _, name := range names {
		choice = choice.Without(name)
	}
	out := &ExtensionChange{Enabled: choice.Enabled()}
	if err := m.makeExtensions(r); err != nil {
		return nil, err
	}
	if err := m.keepChoice(r, choice); err != nil {
		return nil, hw.Full(err)
	}
	for _, name := range names {
		if essential := x.essentialIn(name); len(essential) > 0 {
			out.warn("extension %s is essential to version %s: its distributor does not expect the system to work without it", name, strings.Join(essential, " and "))
		}
	}
	if out.Freed, err = m.sweep(r, x, names...); err != nil {
		out.warn("%v", err)
	}
	return out, nil
}

// Names are names for people.
func Names(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// carriersOf are the releases that have an extension.
func (x *Extensions) carriersOf(name string) (all []Carrier) {
	for _, c := range x.Releases {
		if slices.ContainsFunc(c.list, func(e contract.Extension) bool { return e.Name == name }) {
			all = append(all, c)
		}
	}
	return all
}

// has reports whether one that runs or waits has an extension.
func (x *Extensions) has(name string) bool {
	return slices.ContainsFunc(x.carriersOf(name), Carrier.current)
}

func (c Carrier) current() bool { return c.Role == RoleRuns || c.Role == RoleWaits }

// noSuch names those that there are.
func (x *Extensions) noSuch(name string) error {
	var all []string
	for _, c := range x.Releases {
		for _, e := range c.list {
			if c.current() && !slices.Contains(all, e.Name) {
				all = append(all, e.Name)
			}
		}
	}
	slices.Sort(all)
	err := fmt.Errorf("the release that runs has no extension %q: it has %s", name, Names(all))
	if x.Unlisted != "" {
		err = fmt.Errorf("%w. Not every release could be asked: %s", err, x.Unlisted)
	}
	return err
}

// essentialIn are the versions to which an extension is essential.
func (x *Extensions) essentialIn(name string) (versions []string) {
	for _, c := range x.carriersOf(name) {
		if slices.ContainsFunc(c.list, func(e contract.Extension) bool { return e.Name == name && e.Essential }) {
			versions = append(versions, c.Version.String())
		}
	}
	return versions
}

// needed says that the server does not have an essential extension.
func (u *update) needed(name string, v contract.Version) error {
	return fmt.Errorf("extension %s is enabled and essential to it, and %w. Or go on without it: `ota extension disable %s`, and fetch again", name, u.notHad(name, v), name)
}

// bringExtensions brings the enabled extensions of a release that was fetched, before it is
// staged: so that no trial starts without one that it needs. Cut anywhere, nothing is staged,
// and the next fetch finds the slot and these files as they are.
func (u *update) bringExtensions(ctx context.Context, out *Outcome) error {
	c, list, err := u.fetchedExtensions(u.running, out.Version)
	if err != nil {
		return err
	}
	if len(list) == 0 {
		if _, err := os.Lstat(u.state(u.running, extension.Directory)); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
	}
	choice, err := u.readChoice(u.running)
	if err != nil && len(list) == 0 { // which the release starts with as well
		u.Tell(worker.Event{Note: err.Error()})
		return nil
	}
	if err != nil {
		return err
	}
	x, err := u.carriers(u.running)
	if err != nil {
		return err
	}
	if _, err := u.sweep(u.running, x); err != nil {
		u.Tell(worker.Event{Note: err.Error()})
	}
	before := out.Result.Fetched
	tell := u.Tell
	defer func() { u.Tell = tell }()
	u.Tell = func(e worker.Event) {
		if e.Progress != nil { // which counts what one worker fetches
			p := *e.Progress
			p.Fetched += before
			e.Progress = &p
		}
		tell(e)
	}
	for _, name := range choice.Enabled() {
		at := slices.IndexFunc(list, func(e contract.Extension) bool { return e.Name == name })
		if at < 0 {
			u.Tell(worker.Event{Note: fmt.Sprintf("extension %s is enabled, and version %s has none of that name: it starts without", name, out.Version)})
			continue
		}
		got, err := u.bring(ctx, &fetch.Extension{Extension: list[at], Of: c}, x)
		if err != nil {
			return fmt.Errorf("extension %s: %w", name, err)
		}
		if got.Missing && list[at].Essential {
			return fmt.Errorf("version %s is fetched, and is not tried: %w", out.Version, u.needed(name, out.Version))
		}
		if got.Result != nil {
			before += got.Result.Fetched
		}
		if got.Missing {
			u.Tell(worker.Event{Note: fmt.Sprintf("version %s will start without extension %s: %v", out.Version, name, u.notHad(name, out.Version))})
		}
		out.Extensions = append(out.Extensions, *got)
	}
	return nil
}
