// Package machine is what ota changes on the machine it runs on, with
// privileges: it empties a slot, hands it to a worker, and says that it is
// ready to be staged; it blesses and gives up systems.
//
// It refuses to touch the slot of the running system, to empty the other one
// unless the running system is blessed and intact, and to believe a worker: all
// that one brings is judged again.
package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/bounded"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/statefiles"
	"halogenos.internal/boot/strictjson"
	"halogenos.internal/initagent/bootinfo"
	"halogenos.internal/initagent/changes"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/inventory"
	"halogenos.internal/initagent/snapshot"
	"halogenos.internal/initagent/upper"
	"halogenos.internal/uroot-cmds/ota/health"
	"halogenos.internal/uroot-cmds/ota/settings"
	"halogenos.internal/uroot-cmds/ota/when"
	"halogenos.internal/uroot-cmds/ota/worker"
)

// A Machine is everything with an effect. It is built once and passed on.
type Machine struct {
	Hardware hw.Machine // Disks, Firmware and ESP
	// Root is where the paths of this package start; "/" on a machine.
	Root   string
	Worker worker.Starter
	Random io.Reader
	Now    func() time.Time
	// Corrupt reports whether dm-verity has seen a block of the running system
	// that is not what it should be. ErrNotOpen: the system runs from no slot.
	Corrupt func() (bool, error)
	// OpenSystem mounts the system image at the recovery console, and returns
	// where.
	OpenSystem func() (string, error)
	// Services finds the service manager of the running system, and its name; nil
	// where there is none that can be asked.
	Services func() (health.Manager, string)
	// Waiting is what an update has left for somebody to decide.
	Waiting func() (changes.Waiting, error)
	// Snapshots is the root partition's file system.
	Snapshots snapshot.Store
	Waits
}

// Waits are what a fetch and a restart wait for.
type Waits struct {
	// Online reports whether this machine has an address in a network.
	Online func() bool
	// Surroundings says how things are that a fetch waits for.
	Surroundings func(ctx context.Context) when.Conditions
	// Use says how the machine is used, Obstacles what stands against a restart that a user
	// asks for, and Reboot restarts it.
	Use       func(ctx context.Context) when.Use
	Obstacles func(ctx context.Context, user uint32) (when.Obstacles, error)
	Reboot    func(ctx context.Context, o when.Order) error
	// LookEvery is how often they are asked for; 0 is what suits a machine.
	LookEvery time.Duration
}

// ErrNotOpen says that no dm-verity device holds the running system.
var ErrNotOpen = errors.New("no system is open through dm-verity")

// Places, from Root on.
const (
	reportFile     = statefiles.RunDirectory + "/" + bootinfo.ReportName
	stateDirectory = statefiles.Directory
	contractFile   = contract.Path                    // at the recovery console
	consoleState   = statefiles.AtConsole             // likewise
	consoleRoot    = statefiles.StateDirectory        // likewise
	consoleBound   = consoleRoot + "/bind/etc"        // likewise, where /etc is a directory that all systems share
	bootID         = "proc/sys/kernel/random/boot_id" //
)

// Names in the state directory.
const (
	stagedFile     = statefiles.StagedName
	fetchDirectory = statefiles.FetchDirectory
	seenFile       = fetchDirectory + "/seen.json"
	slotFile       = fetchDirectory + "/slot.json"
	keyFile        = fetchDirectory + "/release-key.pgp"
	lockFile       = statefiles.LockName
)

// maxFile bounds the small files that are read here, in bytes.
const maxFile = 1 << 20

// A Running is the system that runs now.
type Running struct {
	Contract *contract.Contract
	Slot     layout.Slot
	// Console is true at the recovery console, where no system runs.
	Console bool
}

func (m *Machine) path(name ...string) string {
	return filepath.Join(append([]string{m.Root}, name...)...)
}

// read reads a small file.
func (m *Machine) read(name ...string) ([]byte, error) { return readSmall(m.path(name...), maxFile) }

func readSmall(path string, limit int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := bounded.Read(f, limit)
	if err != nil {
		err = fmt.Errorf("read %s: %w", path, err)
	}
	return b, err
}

// Running says what system this is.
func (m *Machine) Running() (*Running, error) {
	if m.atConsole() {
		return m.console()
	}
	text, err := m.read(reportFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is not there: this system was not started by HalogenOS, and ota works only in one that was: run it on the installed machine", reportFile)
	}
	if err != nil {
		return nil, err
	}
	var r bootinfo.Report
	if err := strictjson.Unmarshal(text, &r); err != nil {
		return nil, fmt.Errorf("read %s: %w", reportFile, err)
	}
	if r.Contract == nil || !r.Slot.Valid() {
		return nil, fmt.Errorf("%s does not say which system this is", reportFile)
	}
	if err := r.Contract.Validate(); err != nil {
		return nil, fmt.Errorf("%s: %w", reportFile, err)
	}
	return &Running{Contract: r.Contract, Slot: r.Slot}, nil
}

// atConsole reports whether this is the recovery console: where the initramfs is,
// no system runs.
func (m *Machine) atConsole() bool {
	_, err := os.Lstat(m.path(contractFile))
	return err == nil
}

// console finds out at the recovery console, which the same UKI has opened.
func (m *Machine) console() (*Running, error) {
	text, err := m.read(contractFile)
	if err != nil {
		return nil, err
	}
	c, err := contract.Parse(text)
	if err != nil {
		return nil, err
	}
	inv, err := inventory.Take(m.Hardware)
	if err != nil {
		return nil, err
	}
	r := &Running{Contract: c, Console: true}
	for _, s := range inv.Systems {
		if s.Contract != nil && s.Contract.Root() == c.Root() && s.Slot.Valid() {
			r.Slot = s.Slot
		}
	}
	if !r.Slot.Valid() {
		return nil, errors.New("no slot holds the content that this console's UKI names: what is in the slots cannot be told apart")
	}
	return r, nil
}

// state is the directory that is shared with the boot.
func (m *Machine) state(r *Running, name ...string) string {
	directory := stateDirectory
	if r.Console {
		directory = consoleState
	}
	return m.path(append([]string{directory}, name...)...)
}

// haveState refuses to go on without the root partition.
func (m *Machine) haveState(r *Running) error {
	var s unix.Statfs_t
	err := unix.Statfs(m.state(r), &s)
	if errors.Is(err, fs.ErrNotExist) && r.Console {
		return errLocked
	}
	if err != nil {
		return fmt.Errorf("%s: %w: the root partition is not mounted there; restart, and see what the boot says of it", m.state(r), err)
	}
	if m.Root == "/" && s.Type == unix.TMPFS_MAGIC {
		return errors.New("this system runs without its root partition: what is written now is gone at the next boot")
	}
	return nil
}

// errLocked is what is said at the recovery console before `unlock`.
var errLocked = errors.New("the root partition is not open: type `unlock` first")

// Settings are what ota.conf says.
func (m *Machine) Settings() (settings.Settings, error) {
	if m.atConsole() {
		return m.consoleSettings()
	}
	var text [2][]byte
	for i, name := range []string{settings.ImageFile, settings.OwnerFile} {
		var err error
		// The owner's may be a link into another directory.
		text[i], err = os.ReadFile(m.path(name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return settings.Settings{}, err
		}
	}
	return settings.Load(text[0], text[1])
}

// consoleSettings are those of the system that does not run. What cannot be read of
// them is an error: else the machine would follow another channel or server.
func (m *Machine) consoleSettings() (none settings.Settings, err error) {
	directory, err := m.OpenSystem()
	if err != nil {
		return none, fmt.Errorf("%w; %w", err, errNoImage)
	}
	image, err := readSmall(filepath.Join(directory, settings.ImageFile), settings.MaxSize)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return none, err
	}
	path, err := m.ownerFile()
	if err != nil {
		return none, err
	}
	owner, err := readSmall(path, settings.MaxSize)
	if errors.Is(err, unix.ELOOP) {
		err = fmt.Errorf("%s is a link, which leads elsewhere here: put the file itself there", path)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return none, err
	}
	return settings.Load(image, owner)
}

// errNoImage says that the system image, and what it says, is not to be had.
var errNoImage = errors.New("its settings cannot be read")

// etc is the system's own /etc: at the recovery console, what lies over the
// image's.
func (m *Machine) etc() (string, error) {
	if !m.atConsole() {
		return m.path("etc"), nil
	}
	for _, directory := range append([]string{consoleBound}, m.consoleEtc()...) {
		if _, err := os.Stat(m.path(directory)); err == nil {
			return m.path(directory), nil
		}
	}
	if _, err := os.Stat(m.path(consoleState)); err != nil {
		return "", errLocked
	}
	return "", errors.New("the root partition has no /etc of the system's")
}

// consoleEtc are the places of what lies over the image's /etc, the likeliest first:
// that of the system whose console this is, of the one that ran last, and of a release
// that kept one for all systems.
func (m *Machine) consoleEtc() (places []string) {
	var systems []string
	if text, err := m.read(contractFile); err == nil {
		if c, err := contract.Parse(text); err == nil {
			systems = append(systems, c.Root().String())
		}
	}
	if text, err := m.read(path.Join(consoleRoot, upper.Blessed)); err == nil {
		found := upper.Found{Blessed: upper.Systems(strings.Fields(string(text)))}
		systems = append(systems, found.Current())
	}
	for _, system := range slices.DeleteFunc(systems, func(s string) bool { return s == "" }) {
		directory, _ := upper.Overlay(system, "etc")
		places = append(places, path.Join(consoleRoot, directory))
	}
	return append(places, path.Join(consoleRoot, upper.Source{Unnamed: true}.Upper("etc")))
}

// ownerFile is where the owner's settings are.
func (m *Machine) ownerFile() (string, error) {
	etc, err := m.etc()
	return filepath.Join(etc, strings.TrimPrefix(settings.OwnerFile, "/etc/")), err
}

// note appends to the boot journal.
func (m *Machine) note(r *Running, e journal.Entry) error {
	e.Time = m.Now()
	if id, err := m.read(bootID); err == nil {
		e.Boot = strings.TrimSpace(string(id))
	}
	return bootinfo.AppendJournal(m.state(r), e)
}

// runningFiles are the names of the running UKI on the ESP: more than one only
// where a cut has left them.
func (r *Running) runningFiles(names []bls.Name) []bls.Name {
	var out []bls.Name
	for _, n := range names {
		if n.ImageID == r.Contract.ImageID && n.Version == r.Contract.Version {
			out = append(out, n)
		}
	}
	return out
}

// names lists the UKIs on the ESP without mounting it.
func names(inv *inventory.Inventory) []bls.Name {
	var out []bls.Name
	for _, s := range inv.Systems {
		if n, err := bls.Parse(s.File); err == nil {
			out = append(out, n)
		}
	}
	return out
}

// onTrial reports whether the running system still has a counter.
func (m *Machine) onTrial(r *Running, inv *inventory.Inventory) (bool, error) {
	files := r.runningFiles(names(inv))
	if len(files) == 0 {
		return false, fmt.Errorf("the EFI system partition has no boot file (UKI) of version %s, which runs: restart, which writes it again", r.Contract.Version)
	}
	return !slices.ContainsFunc(files, func(n bls.Name) bool { return !n.Counted }), nil
}

// ErrBusy says that another ota is at work.
var ErrBusy = errors.New("another ota is at work")

// lock takes the machine for one ota alone, until the file is closed here and in
// every process that was given it.
func (m *Machine) lock(r *Running) (*os.File, error) {
	if err := m.haveState(r); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(m.state(r, lockFile), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		other, _ := io.ReadAll(io.LimitReader(f, 20))
		return nil, errors.Join(fmt.Errorf("%w (process %s): wait until it has ended", ErrBusy, strings.TrimSpace(string(other))), f.Close())
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	// For people; the lock itself is the kernel's and ends with the processes.
	if err := f.Truncate(0); err == nil {
		_, _ = fmt.Fprintln(f, os.Getpid())
	}
	return f, nil
}

// decode reads a JSON file of the state directory; an absent one is false, and so
// is one that is malformed.
func decode(path string, v any) (bool, error) {
	there, err := decodeStrictly(path, v)
	if errors.Is(err, errDamaged) {
		return false, nil
	}
	return there, err
}

// errDamaged says that a file is malformed.
var errDamaged = errors.New("it is damaged")

// decodeStrictly is decode for what must not be taken for absent.
func decodeStrictly(path string, v any) (bool, error) {
	text, err := readSmall(path, maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if err := strictjson.Unmarshal(text, v); err != nil {
		return false, fmt.Errorf("%s: %w (%w)", path, errDamaged, err)
	}
	return true, nil
}

// staged returns what waits to be staged; nil is nothing.
func (m *Machine) staged(r *Running) (*statefiles.Staged, error) {
	var s statefiles.Staged
	ok, err := decode(m.state(r, stagedFile), &s)
	if err != nil || !ok || s.Format != statefiles.StagedFormat || s.Version == 0 {
		return nil, err
	}
	return &s, nil
}

// fetchDirectories are the versions that a fetch was begun for.
func (m *Machine) fetchDirectories(r *Running) []contract.Version {
	entries, err := os.ReadDir(m.state(r, fetchDirectory))
	if err != nil {
		return nil
	}
	var out []contract.Version
	for _, e := range entries {
		name := strings.TrimSuffix(e.Name(), workEnding)
		if v, err := contract.ParseVersion(name); err == nil && e.IsDir() && !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	return out
}

// readOwner reads the owner's settings, and makes their directory when it is
// missing.
func readOwner(path string) ([]byte, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	text, err := readSmall(path, settings.MaxSize)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return text, err
}
