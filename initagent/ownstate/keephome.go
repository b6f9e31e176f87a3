package ownstate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/etcmerge"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/pgp"
	"halogenos.internal/boot/stateconf"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/keephome"
	"halogenos.internal/initagent/recoverykey"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/snapshot"
	"halogenos.internal/initagent/upper"
)

// KeepHomeNote reads the note of a reset that keeps /home; nil where there is none that is
// understood.
func KeepHomeNote(h *host.Host) (*keephome.Note, error) {
	text, err := h.Store.Read(keephome.Path, keephome.MaxSize)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil && !errors.Is(err, hw.ErrUnfit):
		return nil, fmt.Errorf("the note of a reset that keeps /home: %w", err)
	}
	var note *keephome.Note
	if err == nil {
		note, err = keephome.Parse(text)
	}
	if err != nil {
		h.Log.Say("it is ignored: %v", err)
	}
	return note, nil
}

// KeepHomeAsked takes the running system's request for a reset that keeps /home away, and
// reports whether it counts: no system has run since the one that asked.
func KeepHomeAsked(h *host.Host) bool {
	text, err := h.Store.Read(keephome.Requested, keephome.MaxRequest)
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	// First, or it would be asked about at each start.
	if err := h.Store.Remove(keephome.Requested); err != nil {
		h.Log.Say("the request for a reset that keeps /home is ignored, since it cannot be taken away: %v", err)
		return false
	}
	var r *keephome.Request
	if err == nil {
		r, err = keephome.ParseRequest(text)
	}
	if err == nil && r.After != keephome.LastStart(h.Journal.Written()) {
		err = errors.New("another system has run since somebody asked for a reset that keeps /home")
	}
	if err != nil {
		h.Log.Say("%v: it is ignored", err)
	}
	return err == nil
}

// MayKeepHome refuses a reset that keeps /home where this system has its homes elsewhere, or
// no /etc of its own to lay the accounts into.
func MayKeepHome(h *host.Host) error {
	entries, err := Entries(h)
	switch {
	case err != nil:
		return err
	case !slices.Contains(entries, stateconf.Entry{Mode: stateconf.Bind, Path: "/home"}):
		return errors.New("this system's /home is not a directory of its own on the root partition (state.conf has no line \"bind /home\"), and would go with the one that it lies in")
	case !slices.Contains(entries, stateconf.Entry{Mode: stateconf.Overlay, Path: "/etc"}):
		return errors.New("this system's /etc is none over the image's (state.conf has no line \"overlay /etc\"), and no account could be kept")
	}
	return nil
}

// WriteKeepHome writes it.
func WriteKeepHome(h *host.Host, n *keephome.Note) error {
	text, err := n.Encode()
	if err == nil {
		err = h.Store.MakeDirectory(rootpart.OwnDirectory, 0o700)
	}
	if err == nil {
		err = h.Store.Keep(keephome.Path, text)
	}
	return err
}

// DeleteAllButHome deletes the state of all systems, and what they share but /home: the
// snapshots first, and any request to put them back, or they would come back in its place.
// Cut anywhere, the same call deletes the rest.
func DeleteAllButHome(h *host.Host) error {
	if hasSnapshots(h) {
		// It says how subvolumes go. What it does not find as it should goes below, by its name.
		if err := snapshot.Forget(h.Store, RestoreNote); err != nil {
			h.Log.Say("what is kept of before an update: %v", err)
		}
	}
	if err := removeNote(h, RestoreNote); err != nil {
		return fmt.Errorf("the request to put directories back: %w", err)
	}
	h.Log.Say("deleting all but /home: where there are many files this takes minutes")
	h.AllowWatchdog(clearLimit)
	known := knowsKey(h)
	stays, err := h.Store.ClearBut(keephome.Cleared, func(name string) bool {
		return keephome.Stays(name) || known && name == keephome.ReleaseKey
	})
	left := leftover{h: h}
	for _, name := range stays {
		left.say("could not remove this, and it is not used: " + name)
	}
	if err != nil {
		return err
	}
	if err := disarmKept(h, &left); err != nil {
		return err
	}
	left.end()
	if err := ownHome(h); err != nil {
		return err
	}
	// It names a system whose state is gone, and says nothing any more.
	return removeNote(h, BlessedNote)
}

// leftover says what a reset has left: the owner may be about to give the machine away. The
// boot journal gets one entry, and the console no more lines than a person reads: an intruder
// can leave any number of things.
type leftover struct {
	h     *host.Host
	first string
	n     int
}

const mostLeft = 100

func (l *leftover) say(text string) {
	if l.n++; l.n == 1 {
		l.first = text
	}
	if l.n <= mostLeft {
		l.h.Log.Say("WARNING: a reset that keeps /home %s", text)
	}
}

func (l *leftover) end() {
	if l.n == 0 {
		return
	}
	text := "a reset that keeps /home " + l.first
	if l.n > 1 {
		text += fmt.Sprintf(" (and %d more such things)", l.n-1)
		l.h.Log.Say("WARNING: a reset that keeps /home has left %d things", l.n)
	}
	l.h.NoteSelf(journal.State, text)
}

// disarmKept has nothing in what is kept make anybody root: no program there has more rights
// than those who start it, and nobody else owns a directory that the boot believes. Cut
// anywhere, the same call does the rest.
func disarmKept(h *host.Host, left *leftover) error {
	beside, err := h.Store.Names(upper.Bind)
	if err != nil {
		return err
	}
	slices.Sort(beside)
	kept := []string{rootpart.OwnDirectory}
	for _, name := range beside {
		if name != keephome.Home {
			left.say("keeps this, too, which may lie in /home: /run/state/" + upper.Bind + "/" + etcmerge.Name(name).String())
		}
		if at := path.Join(upper.Bind, name); keephome.IsHome(at) {
			kept = append(kept, at)
		}
	}
	for _, name := range kept {
		armed, err := h.Store.Disarm(name, func(looked int) {
			h.AllowWatchdog(disarmLimit)
			if looked%sayEach == 0 {
				h.Log.Say("looked at %d files in /run/state/%s", looked, etcmerge.Name(name))
			}
		})
		if err = directoryOrGone(h, name, err); err != nil {
			return err
		}
		for _, s := range armed {
			left.say("could not look whether this makes anybody root: " + s)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(keephome.Modes)) {
		if err := directoryOrGone(h, name, h.Store.RootsOwn(name, keephome.Modes[name])); err != nil {
			return err
		}
	}
	for _, name := range []string{recoverykey.NoteFile, keephome.ReleaseKey} {
		if err := keepAgain(h, name); err != nil {
			return err
		}
	}
	return nil
}

// keepAgain has a file of what the boot shares be root's, no matter whose it was. The boot journal
// becomes so with each entry.
func keepAgain(h *host.Host, name string) error {
	text, err := h.Store.Read(name, pgp.MaxKey)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, hw.ErrUnfit):
		return removeNote(h, name)
	case err != nil:
		return err
	}
	return h.Store.Keep(name, text)
}

const (
	// clearLimit is for what all other state holds, however many files those are.
	clearLimit = time.Hour
	// disarmLimit is the time for each few thousand files, of a slow disk, and for what comes
	// after the last.
	disarmLimit = 4 * host.StepLimit
	sayEach     = 64 << 12 // files
)

// directoryOrGone removes what a running system has put in a directory's place. Nothing is
// lost with it: no system of ours has made a link or a file there.
func directoryOrGone(h *host.Host, name string, err error) error {
	if !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ELOOP) {
		return err
	}
	h.Log.Say("/run/state/%s is not a directory: it is removed", etcmerge.Name(name))
	return h.Store.Remove(name)
}

// knowsKey reports whether what was learned of the release key is fit to be kept: without it
// a key counts again that was revoked. Only what the pinned key itself has signed counts in
// it, no matter who has put it there; what is damaged would keep the machine from its updates.
func knowsKey(h *host.Host) bool {
	text, err := h.Store.Read(keephome.ReleaseKey, pgp.MaxKey)
	if err != nil {
		return false
	}
	pinned, err := pgp.ParseKey(h.Contract.ReleaseKey)
	if err != nil {
		return false
	}
	known, err := pgp.ParseKey(text)
	if err == nil {
		_, err = pinned.Merge(known)
	}
	return err == nil
}

// ownHome gives /home to root again, as the image has it: an account that it belonged to could
// have another's home be its own.
func ownHome(h *host.Host) error {
	mode := fs.FileMode(0o755)
	if info, err := os.Lstat(h.Path(host.SystemDirectory, "home")); err == nil && info.IsDir() {
		mode = info.Mode().Perm()
	}
	return h.Store.RootsOwn(path.Join(upper.Bind, keephome.Home), mode)
}

// removeNote removes what the running system has left. Where that has put something in the
// place of the directory that it is in, there is nothing that a boot would read.
func removeNote(h *host.Host, name string) error {
	err := h.Store.Remove(name)
	if errors.Is(err, hw.ErrUnfit) {
		return nil
	}
	return err
}

// People are the accounts of this machine's people: as this system has them or, where it
// has no state of its own, as the one has them that it would take it over from.
func People(h *host.Host) (etcmerge.People, []etcmerge.Person, error) {
	entries, err := Entries(h)
	if err != nil {
		return nil, nil, err
	}
	if !slices.Contains(entries, stateconf.Entry{Mode: stateconf.Overlay, Path: "/etc"}) {
		return nil, nil, nil // no /etc is made that could have them
	}
	found, err := Known(h)
	if err != nil {
		return nil, nil, err
	}
	from := upper.Source{System: Own(h)}
	if !found.Has(Own(h)) {
		from = upper.Choose(found, Own(h), otherSlot(h, systemBefore(h)))
	}
	files, err := h.Store.Accounts(from, h.Path(host.SystemDirectory))
	if err != nil {
		return nil, nil, err
	}
	image, err := h.Store.Accounts(upper.Source{}, h.Path(host.SystemDirectory))
	if err != nil {
		return nil, nil, err
	}
	addSysusers(h, image)
	kept, people := etcmerge.PeopleOf(etcmerge.WithoutServices(files, image))
	return kept, people, nil
}

// TryPeople finds out whether this system can have an /etc with these accounts, before all
// else is deleted: a program of the image may give rights to a user or a group whose number
// one of them has.
func TryPeople(ctx context.Context, h *host.Host, people etcmerge.People) error {
	if len(people) == 0 {
		return nil
	}
	entries, err := Entries(h)
	if err != nil {
		return err
	}
	return h.Store.TryPeople(ctx, upper.Carry{
		Image: h.Path(host.SystemDirectory), Entries: entries, People: people, Options: etcmerge.Options{To: h.Contract.Version},
	})
}

// addSysusers adds the users and groups that the image has systemd make at a start
// (sysusers.d(5)), as lines of its passwd and group with a number of the system's: an account
// of such a user's name would be theirs, and one with a group of such a name in it. The
// image's own lines come first, and count.
func addSysusers(h *host.Host, image map[string][]byte) {
	add := func(file, name, number, rest string) {
		image[file] = fmt.Appendf(image[file], "\n%s:x:%s:%s\n", strings.Trim(name, `"`), number, rest)
	}
	files, _ := filepath.Glob(filepath.Join(h.Path(host.SystemDirectory), "usr/lib/sysusers.d/*.conf")) // the pattern is right
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // the image's own link or directory, which systemd does not read either
		}
		for line := range strings.Lines(string(text)) {
			field := strings.Fields(line)
			if len(field) < 2 {
				continue
			}
			number := "1" // one of the system's, where the line gives none
			if len(field) > 2 {
				if own, _, _ := strings.Cut(strings.Trim(field[2], `"`), ":"); own != "" && strings.Trim(own, "0123456789") == "" {
					number = own
				}
			}
			switch field[0] {
			case "u", "u!":
				add("passwd", field[1], number, "1:::")
				add("group", field[1], number, "")
			case "g":
				add("group", field[1], number, "")
			case "m": // it makes the group, too
				if len(field) > 2 {
					add("group", field[2], "1", "")
				}
			}
		}
	}
}

// mostPages bounds what the log has of a list of accounts.
const mostPages = 3

// keptPeople are the accounts for an /etc that has nothing to be taken over from. note: the
// note of the reset that has kept them is there, and goes once the /etc is.
func keptPeople(h *host.Host, from upper.Source) (people etcmerge.People, note bool, err error) {
	n, err := KeepHomeNote(h)
	if err != nil || n == nil {
		return nil, false, err
	}
	if from.System != "" || from.Unnamed {
		h.Log.Say("the accounts that a reset has kept are not used: another system has made an /etc since")
		return nil, true, nil
	}
	_, who := etcmerge.PeopleOf(n.People)
	pages := keephome.Pages(keephome.WhoStays(words.English, who)) // all were shown before they were confirmed
	h.Log.Say("%s", strings.TrimSuffix(strings.Join(pages[:min(mostPages, len(pages))], ""), "\n"))
	if more := len(pages) - mostPages; more > 0 {
		h.Log.Say("and %d pages more", more)
	}
	return n.People, true, nil
}
