package machine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/archive"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/notes"
	"halogenos.internal/initagent/bootdisk"
	"halogenos.internal/initagent/bootinfo"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/inventory"
	"halogenos.internal/uroot-cmds/ota/fetch"
	"halogenos.internal/uroot-cmds/ota/offer"
	"halogenos.internal/uroot-cmds/ota/settings"
	"halogenos.internal/uroot-cmds/ota/worker"
)

// Options of Check and Fetch.
type Options struct {
	From      string // a server, directory or archive instead of the configured server
	Impatient bool   // before it is this machine's turn, and whatever the owner's rules say
	Measure   bool   // Fetch finds out first how much it will fetch
	Patient   bool   // waits for a time that suits the rules (FetchWhenFit)
	Tell      func(worker.Event)
	// Version is the one that Fetch is to bring; 0 is whatever is offered.
	Version contract.Version
}

// ErrNotOffered says that the version that was asked for is not the one that is offered.
var ErrNotOffered = errors.New("is not what is offered")

// An Outcome is what became of an offer.
type Outcome struct {
	offer.Decision
	Running contract.Version `json:"running"`
	From    string           `json:"from"`
	// Size is the archive's, Fetch is what a fetch now would take of it, nil where that is
	// not known, and what was done with it follows.
	Size   int64  `json:"size,omitempty"`
	Fetch  *int64 `json:"fetch_size,omitempty"`
	Staged bool   `json:"staged"` // the next boot tries it
	// Notes are what is said of the releases that this machine gets by it, newest first.
	Notes    []notes.Release `json:"notes,omitempty"`
	Urgency  notes.Urgency   `json:"urgency,omitempty"` // the greatest of them
	Security bool            `json:"security,omitempty"`
	Result   *fetch.Result   `json:"result,omitempty"`
	// Extensions are those of the release that are enabled, and what became of them.
	Extensions []FetchedExtension `json:"extensions,omitempty"`
}

// update is one Check or Fetch under way.
type update struct {
	*Machine
	Options
	running  *Running
	settings settings.Settings
	disk     hw.Disk
	table    *gpt.Table
	inv      *inventory.Inventory
	self     *offer.Self
	request  worker.Request
	archive  *os.File // that From names
	stick    bool     // From is one, and mounted
	found    *fetch.Found
	lock     *os.File // nil: another ota has it
	meter    *Meter   // of a fetch
	alone    bool     // an extension is fetched, and no release: an archive in From is its own
}

// Check asks the server what it offers, and finds out how much of it would be fetched.
func (m *Machine) Check(ctx context.Context, o Options) (*Outcome, error) {
	r, err := m.Running()
	if err != nil {
		return nil, err
	}
	// While another ota is at work, nothing is remembered.
	lock, err := m.lock(r)
	if err == nil {
		defer lock.Close()
	} else if !errors.Is(err, ErrBusy) {
		return nil, err
	}
	u, err := m.begin(r, o)
	if err != nil {
		return nil, err
	}
	defer u.end()
	u.lock = lock
	out, head, err := u.look(ctx)
	if err != nil || out.Verdict != offer.Take {
		return out, err
	}
	if done, err := u.already(out); done || err != nil || lock == nil {
		return out, err
	}
	return out, u.measure(ctx, out, head)
}

// begin gathers what an update depends on, and changes nothing.
func (m *Machine) begin(r *Running, o Options) (*update, error) {
	u := &update{Machine: m, Options: o, running: r}
	if u.Tell == nil {
		u.Tell = func(worker.Event) {}
	}
	var err error
	u.settings, err = m.Settings()
	if errors.Is(err, errNoImage) && o.From != "" {
		// The image may have demanded the most.
		u.Tell(worker.Event{Note: err.Error()})
		u.settings, err = settings.Load([]byte("RequireSignedManifest="+string(settings.Always)), nil)
	}
	if err != nil {
		return nil, err
	}
	if u.disk, err = bootdisk.Disk(m.Hardware.Disks, m.Hardware.Firmware); err != nil {
		return nil, err
	}
	if u.table, _, err = bootdisk.Table(m.Hardware.Disks, u.disk); err != nil {
		return nil, fmt.Errorf("partition table of %s: %w", u.disk.Name, err)
	}
	if u.inv, err = inventory.Take(m.Hardware); err != nil {
		return nil, err
	}
	if err := u.setSelf(); err != nil {
		return nil, err
	}
	return u, u.setRequest()
}

// setSelf says what this machine is to the one who judges an offer.
func (u *update) setSelf() error {
	entries, err := bootinfo.ReadJournal(u.state(u.running))
	if err != nil {
		return fmt.Errorf("read the boot journal: %w", err)
	}
	u.self = &offer.Self{
		Running: u.running.Contract, Floor: u.running.Contract.Epoch, Failed: failures(entries), Machine: u.id(),
		Channel: u.settings.Channel, Impatient: u.Impatient, Signed: u.settings.SignedManifest, Now: u.Now(),
	}
	if err := u.setSeen(); err != nil {
		return err
	}
	if err := u.setKnown(); err != nil {
		return err
	}
	target := u.running.Slot.Other()
	var terr error
	u.self.SlotSize, err = layout.Size(u.table, target.System())
	u.self.TreeSize, terr = layout.Size(u.table, target.Verity())
	if err := errors.Join(err, terr); err != nil {
		return fmt.Errorf("slot %s of %s: %w", target, u.disk.Name, err)
	}
	return nil
}

// setSeen reads what was seen of signed manifests. A file that is damaged must not
// pass for none: an old manifest would be taken, and an unsigned one.
func (u *update) setSeen() error {
	name := u.state(u.running, seenFile)
	there, err := decodeStrictly(name, &u.self.Seen)
	if err == nil && there && !u.self.Seen.Signed {
		err = fmt.Errorf("%s: %w", name, errDamaged)
	}
	if errors.Is(err, errDamaged) {
		err = fmt.Errorf("%w, and it says which of the server's lists was the newest. Find out what damaged it (`dmesg` tells of a failing disk); if the server is to be trusted this once, `rm %s` and try again", err, name)
	}
	return err
}

// failures are the versions that this machine does not take: those that have
// failed, and those that somebody has given up.
func failures(entries []journal.Entry) map[contract.Version]string {
	failed := journal.Failures(entries)
	given := map[contract.Version]string{}
	for _, e := range entries {
		switch e.Kind {
		case journal.Rollback:
			given[e.Version] = "given up by hand"
			if e.Reason != "" {
				given[e.Version] += ": " + e.Reason
			}
		case journal.Blessed, journal.Forgiven:
			delete(given, e.Version)
		}
	}
	for v, why := range given {
		if _, ok := failed[v]; !ok && v != 0 {
			failed[v] = why
		}
	}
	return failed
}

// id stays the same for this installation. It is sent to nobody.
func (u *update) id() []byte {
	if etc, err := u.etc(); err == nil {
		text, err := readSmall(filepath.Join(etc, "machine-id"), maxFile)
		if text = bytes.TrimSpace(text); err == nil && len(text) > 0 {
			return text
		}
	}
	return u.table.Disk[:]
}

// setRequest says to the worker where to look.
func (u *update) setRequest() error {
	u.request = worker.Request{Address: u.settings.Server, UserAgent: u.settings.UserAgent, RateLimit: u.settings.RateLimit, Proxy: u.settings.Proxy, Self: u.self}
	var err error
	if u.request.CA, err = u.authorities(u.settings); err != nil {
		return err
	}
	if u.From == "" {
		return nil
	}
	const ending = ".tar.gz"
	if strings.HasPrefix(u.From, "http://") || strings.HasPrefix(u.From, "https://") {
		u.request.Address = u.From
		if strings.HasSuffix(u.From, ending) {
			at := strings.LastIndexByte(u.From, '/')
			u.request.Address, u.request.Archive = u.From[:at], u.From[at+1:]
		}
		return nil
	}
	place, err := filepath.Abs(strings.TrimPrefix(u.From, "file://"))
	if err != nil {
		return err
	}
	info, err := os.Stat(place)
	if err != nil {
		return err
	}
	if isDisk(info) {
		u.request.Address, err = u.mountStick(place)
		u.stick = err == nil
		return err
	}
	u.request.Address = place
	if !info.IsDir() {
		u.request.Address, u.request.Archive = "", filepath.Base(place)
		if u.archive, err = os.OpenFile(place, os.O_RDONLY|unix.O_NONBLOCK, 0); err != nil {
			return err
		}
	}
	return nil
}

func (u *update) end() {
	if u.archive != nil {
		_ = u.archive.Close() // it was only read
	}
	if u.stick {
		if err := u.Hardware.Mounts.Unmount(u.path(stickDirectory)); err != nil {
			u.Tell(worker.Event{Note: err.Error()})
		}
	}
}

// look has a worker ask the server, and judges what it brings. The head is nil
// unless the release is to be taken.
func (u *update) look(ctx context.Context) (*Outcome, *archive.Head, error) {
	request := u.request
	request.Do = worker.Look
	if u.running.Console && strings.HasPrefix(request.Address, "http") && !u.Online() {
		return nil, nil, errors.New("this console has no network: type `network` first, or name a stick's device with --from")
	}
	err := u.Worker.Run(ctx, request, worker.Files{worker.Archive: u.archive}, func(e worker.Event) {
		if e.Found != nil {
			u.found = e.Found
			return
		}
		u.Tell(e)
	})
	if err == nil && u.found == nil {
		err = errors.New("worker found nothing and does not say why")
	}
	if err == nil && u.request.Archive == "" && len(u.found.Manifest) == 0 {
		err = fmt.Errorf("%w: it brought no manifest", errWorker)
	}
	if err != nil {
		return nil, nil, errors.Join(err, u.learnAnyway())
	}
	d, head, seen, err := u.found.Judge(u.self)
	if err != nil {
		return nil, nil, errors.Join(err, u.learnAnyway())
	}
	if err := u.learn(); err != nil {
		return nil, nil, err
	}
	if err := u.remember(seen); err != nil {
		return nil, nil, err
	}
	out := &Outcome{Decision: d, Running: u.running.Contract.Version, From: u.from()}
	if head != nil {
		out.Size = head.ArchiveSize()
	}
	if d.SlotSize != 0 {
		u.needsSlots(&out.Decision, u.meter != nil)
	}
	if err := out.Err(); err != nil {
		return out, nil, err
	}
	if d.Verdict == offer.Take && u.Version != 0 && d.Version != u.Version {
		return out, nil, fmt.Errorf("version %s %w now, but version %s: ask for that", u.Version, ErrNotOffered, d.Version)
	}
	if d.Verdict == offer.Take && head == nil {
		return nil, nil, errors.New("worker brings no release and does not say why")
	}
	if d.Verdict == offer.Take {
		u.said(out)
	}
	return out, head, nil
}

// from is where the offer comes from, for people.
func (u *update) from() string {
	if u.From != "" {
		return Redacted(u.From)
	}
	return Redacted(u.settings.Server)
}

// remember keeps what was seen of signed manifests, so that an old one is
// noticed.
func (u *update) remember(seen offer.Seen) error {
	if seen == u.self.Seen || u.lock == nil {
		return nil
	}
	text, err := json.Marshal(seen)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(u.state(u.running, fetchDirectory), 0o755); err != nil {
		return err
	}
	u.self.Seen = seen
	return hw.KeepFile(u.state(u.running, seenFile), append(text, '\n'), 0o644)
}
