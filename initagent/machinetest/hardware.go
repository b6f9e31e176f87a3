package machinetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	uroot "github.com/u-root/u-root/pkg/watchdog"
	"golang.org/x/sys/unix"

	"halogenos.internal/boot/bootoption"
	"halogenos.internal/boot/keyboard"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/verity"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/ownstate"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/snapshot"
	"halogenos.internal/initagent/snapshot/snapshottest"
	"halogenos.internal/initagent/tpm"
	"halogenos.internal/initagent/watchdog"
)

// Kernel implements hw.Kernel. A disk shows when the driver of its controller was
// loaded.
type Kernel struct{ m *Machine }

func (k Kernel) Coldplug(way []bootoption.Function) (int, error) {
	if k.m != nil {
		k.m.Driven, k.m.TpmPlugs = way, k.m.TpmPlugs-1
		if k.m.Plugging != nil {
			k.m.Plugging()
		}
	}
	return 0, nil
}

// Hotplug tells a person's program that devices are looked for.
func (k Kernel) Hotplug(ctx context.Context) {
	select {
	case k.m.hotplug <- struct{}{}:
		<-ctx.Done()
	case <-ctx.Done():
	}
}

func (Kernel) Load(...string) error { return nil }

// Messages implements hw.Kernel.
func (k Kernel) Messages() ([]byte, error) { return []byte(k.m.Messages), nil }

// mapper implements hw.Mapper. What dm-verity finds out in the end it finds out
// at once.
type mapper struct{ m *Machine }

func (p mapper) OpenVerity(v hw.Verity) (string, error) {
	roles := map[string]layout.Role{}
	for r := layout.ESP; r <= layout.Root; r++ {
		roles["/dev/disk0-"+r.String()] = r
	}
	data, err := p.m.Partition(roles[v.DataDevice])
	if err != nil {
		return "", err
	}
	tree, err := p.m.Partition(roles[v.HashDevice])
	if err != nil {
		return "", err
	}
	if err := verity.Verify(context.Background(), data, tree, v.Params, v.Root, func(int64) {}); err != nil {
		return "", fmt.Errorf("first read through dm-verity: %w", err)
	}
	if v.Name == ownstate.BeforeDevice {
		p.m.before = &v.Root
		return "/dev/dm-2", nil
	}
	p.m.openVerity = true
	return "/dev/dm-0", nil
}

func (p mapper) OpenCrypt(c hw.Crypt) (string, error) {
	header, err := p.m.Header()
	if err != nil {
		return "", err
	}
	if err := header.VerifyVolumeKey(c.VolumeKey); err != nil {
		return "", err
	}
	if p.m.OpenVolume != nil {
		return "", errors.New("a volume is open already")
	}
	id := policy.VolumeFingerprint(c.VolumeKey)
	p.m.OpenVolume = &id
	return "/dev/dm-1", nil
}

func (p mapper) Close(name string) error {
	if name == ownstate.BeforeDevice && p.m.before != nil {
		p.m.before = nil
		return nil
	}
	if name != rootpart.Device || p.m.OpenVolume == nil {
		return fmt.Errorf("no device %s: %w", name, unix.ENXIO)
	}
	if slices.Contains(p.m.Mounted, filepath.Join(p.m.Root, rootpart.Directory)) {
		return errors.New("device is busy")
	}
	p.m.OpenVolume = nil
	return nil
}

func (m *Machine) Header() (*luks2.Header, error) {
	s, err := m.Partition(layout.Root)
	if err != nil {
		return nil, err
	}
	header, _, err := luks2.Open(s, s.Size())
	return header, err
}

// mounts implements hw.Mounts.
type mounts struct{ m *Machine }

func (mounts) Base() error { return nil }

func (o mounts) Firmware() error { return o.m.NoEFI }

func (o mounts) Mount(source, target, fstype string, _ uintptr, data string) error {
	if source == "/dev/dm-1" && (o.m.OpenVolume == nil || o.m.Volumes[*o.m.OpenVolume] == nil) {
		return errors.New("there is no file system on it")
	}
	if strings.HasPrefix(target, filepath.Join(o.m.Root, host.SystemDirectory)) && !o.m.openVerity {
		o.m.T.Errorf("%s was mounted on %s without verity", source, target)
	}
	if o.m.BadFiles != "" && strings.Contains(target, o.m.BadFiles) {
		return syscall.EIO
	}
	if fstype == "tmpfs" {
		o.m.Must(os.MkdirAll(target, 0o755)) // as hw.LinuxMounts does
	}
	o.m.Mounted = append(o.m.Mounted, target)
	if lower, ok := strings.CutSuffix(strings.TrimPrefix(data, "lowerdir="), ":"+target); fstype == "overlay" && ok {
		o.m.lay(lower, target)
	}
	return nil
}

func (o mounts) Unmount(target string) error {
	at := slices.Index(o.m.Mounted, target)
	if at < 0 {
		return fmt.Errorf("%s is not mounted: %w", target, unix.EINVAL)
	}
	for _, later := range o.m.Mounted[at+1:] {
		if target == filepath.Join(o.m.Root, rootpart.Directory) && later != target {
			return fmt.Errorf("%s is busy: %s", target, later)
		}
	}
	o.m.Mounted = slices.Delete(o.m.Mounted, at, at+1)
	return nil
}

func (o mounts) SwitchRoot(string, []string) error {
	if o.m.before != nil {
		o.m.T.Error("the system gets the image of the one before it, still open")
	}
	if o.m.Agent.Phrase != nil {
		o.m.T.Error("the system could read the phrase")
	}
	o.m.NothingUnseals("the system")
	panic(Halt{"system"})
}

// NothingUnseals plays what runs after initagent: it asks the TPM for whatever
// lies on the disk.
func (m *Machine) NothingUnseals(who string) {
	if m.NoTPM != nil {
		return
	}
	var sealed []*policy.Sealed
	if m.Agent.Lock != nil && m.Agent.Lock.Sealed != nil {
		sealed = append(sealed, m.Agent.Lock.Sealed)
	}
	if m.Agent.Lock != nil && m.Agent.Lock.Phrase != nil {
		sealed = append(sealed, m.Agent.Lock.Phrase.Sealed)
	}
	if m.Agent.Left.Pending != nil {
		if s, err := m.Agent.Left.Pending.SealedSecret(); err == nil {
			sealed = append(sealed, s)
		}
	}
	for _, s := range sealed {
		if secret, _, err := tpm.OpenTransport(m.Emulator).Unseal(s); err == nil {
			secret.Wipe()
			m.T.Errorf("%s unseals the machine secret (FAULTS 62, 79)", who)
		}
	}
}

type power struct{ m *Machine }

func (power) Reboot() error { panic(Halt{"reboot"}) }

func (power) PowerOff() error { panic(Halt{"off"}) }

// Store implements hw.Store: what Keep and Seed have returned for survives.
type Store struct{ M *Machine }

func (s Store) files() map[string][]byte {
	if s.M.OpenVolume != nil {
		return s.M.Volumes[*s.M.OpenVolume]
	}
	return map[string][]byte{} // in memory
}

func (s Store) MakeFileSystem(string, string, string) error {
	s.M.op("mkfs")
	s.M.Volumes[*s.M.OpenVolume] = map[string][]byte{}
	s.M.durable++
	return nil
}

func (s Store) Read(name string, limit int64) ([]byte, error) {
	b, ok := s.files()[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	if name == s.M.UnreadableFile {
		return nil, syscall.EIO
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s: %w: more than %d bytes", name, hw.ErrUnfit, limit)
	}
	return slices.Clone(b), nil
}

func (s Store) Keep(name string, content []byte) error {
	s.M.op("root keep " + name)
	if name == s.M.FullFile || s.M.FullRoot {
		return fmt.Errorf("write %s: %w", name, hw.Full(syscall.ENOSPC))
	}
	s.files()[name] = slices.Clone(content)
	s.M.durable++
	return nil
}

func (s Store) Remove(name string) error {
	if _, ok := s.files()[name]; !ok {
		return nil
	}
	s.M.op("root remove " + name)
	if name == s.M.StuckFile {
		return syscall.EPERM
	}
	delete(s.files(), name)
	s.M.durable++
	return nil
}

func (s Store) MakeDirectory(name string, _ fs.FileMode) error {
	if s.M.BadFiles != "" && strings.Contains(name, s.M.BadFiles) {
		return syscall.EIO
	}
	if strings.HasPrefix(name, snapshot.Directory) {
		return s.disk().MakeDirectory(name, 0)
	}
	return nil
}

func (s Store) Seed(_, name string, subvolume bool) error {
	if s.M.BadFiles != "" && strings.Contains(name, s.M.BadFiles) {
		return syscall.EIO
	}
	if _, ok := s.files()[name]; ok {
		return nil
	}
	s.M.op("root seed " + name)
	s.files()[name] = []byte{}
	if subvolume && s.M.Agent.Contract.RootFileSystem == "btrfs" {
		s.files()[name] = []byte(snapshottest.Writable)
	}
	s.M.durable++
	return nil
}

type chipSeam struct{ m *Machine }

func (c chipSeam) Open() (*tpm.TPM, error) { return c.m.OpenTPM() }

func (c chipSeam) EventLog() ([]byte, error) {
	if c.m.NoLog {
		return nil, fs.ErrNotExist
	}
	if c.m.WrongLog { // one of its digests of PCR 7
		digest := sha256.Sum256(variableData(secureboot.SecureBoot, c.m.Vars["SecureBoot"].Data))
		other := sha256.Sum256(digest[:])
		return bytes.Replace(c.m.Log, digest[:], other[:], 1), nil
	}
	return c.m.Log, nil
}

// person writes down every recovery key and types what the test says.
type person struct {
	m        *Machine
	language words.Language
}

func (p person) Open(l words.Language) (hw.Console, error) {
	return person{p.m, l}, p.m.NoTerminal
}

// Language implements hw.Console.
func (p person) Language() words.Language { return p.language }

func (person) Close() error { return nil }

var keyPattern = regexp.MustCompile(`(?:RECOVERY KEY|SCHLÜSSEL dieses Rechners):\s+(\S+)\s`)

func (p person) Print(text string) {
	p.m.Printed.WriteString(text)
	if match := keyPattern.FindStringSubmatch(text); match != nil {
		p.m.Shown = append(p.m.Shown, match[1])
	}
}

// PrintSecret implements hw.Console.
func (p person) PrintSecret(text, _ string) { p.Print(text) }

// Positions implements hw.Console.
func (p person) Positions() (restore func()) {
	was := p.m.Keymap
	p.m.Keymap = ""
	return func() { p.m.Keymap = was }
}

// AskKey implements hw.Console.
func (p person) AskKey(prompt string, _ bool, timeout time.Duration) ([]byte, error) {
	return p.Ask(prompt, false, timeout)
}

func (p person) Ask(prompt string, _ bool, timeout time.Duration) ([]byte, error) {
	p.m.Printed.WriteString(prompt)
	p.m.Waits = append(p.m.Waits, timeout)
	if p.m.Listening {
		p.m.T.Errorf("two wait for what is typed after %q", prompt)
	}
	if p.m.Pulled != "" && strings.HasPrefix(prompt, p.m.Pulled) {
		panic(Halt{"death"})
	}
	enter := strings.HasPrefix(prompt, "Press Enter") || p.asks(prompt, words.KeyWritten)
	if p.m.Absent && enter {
		return nil, hw.ErrNobody
	}
	if enter || strings.HasPrefix(prompt, "\nTHE RECOVERY KEY THAT WAS SHOWN LAST") {
		return nil, nil
	}
	first := strings.HasSuffix(prompt, p.language.Text(words.KeyLater)+"): ")
	if p.asks(prompt, words.KeyGroups) && (p.m.Echo || first && !p.m.Later) {
		return []byte(p.groups(prompt, p.m.Shown[len(p.m.Shown)-1])), nil
	}
	switch {
	case p.m.Owner && strings.HasPrefix(prompt, "\nRecovery key"):
		return []byte(p.m.Shown[len(p.m.Shown)-1]), nil
	case p.m.Owner && strings.HasSuffix(prompt, "[y/N] "):
		return []byte("y"), nil
	}
	if len(p.m.Typed) == 0 {
		return nil, hw.ErrNobody
	}
	answer := p.m.Typed[0]
	p.m.Typed = p.m.Typed[1:]
	return []byte(answer), nil
}

// asks reports whether a question is one of the catalogue's, in the person's language.
func (p person) asks(question, text string) bool {
	begins, _, _ := strings.Cut(p.language.Text(text), "%")
	return strings.HasPrefix(question, begins)
}

// groups are those of a recovery key that a question asks for.
func (p person) groups(question, key string) string {
	var a, b int
	format, _, _ := strings.Cut(p.language.Text(words.KeyGroups), "\n")
	if _, err := fmt.Sscanf(question, format, &a, &b); err != nil {
		return err.Error()
	}
	parts := strings.Split(key, "-")
	return parts[a-1] + parts[b-1]
}

// plugsIn expects that what is plugged in beside a person's program gets its driver.
func (p person) plugsIn(what string) {
	select {
	case <-p.m.hotplug:
	case <-time.After(10 * time.Second):
		p.m.T.Errorf("what is plugged in beside %s gets no driver", what)
	}
}

func (p person) Program(path string, args ...string) error {
	p.m.NothingUnseals("what an installer stick brings")
	if !p.m.hidden {
		p.m.T.Error("an installer stick's program could read the kernel's memory")
	}
	p.plugsIn("the installer")
	p.m.Program = append([]string{path}, args...)
	return p.m.ProgramEnds
}

// Keymap implements hw.Person.
func (p person) Keymap(k keyboard.Keymap) error {
	p.m.Keymap = k.Name
	if p.m.RefusesKeymaps || p.m.RefusesKeymap && k.Name != "us" {
		return unix.EINVAL
	}
	return nil
}

// Quiet implements hw.Person.
func (p person) Quiet() (restore func()) {
	p.m.quiet = true
	return func() { p.m.quiet = false }
}

func (p person) Shell() error {
	if !p.m.quiet {
		p.m.T.Error("the kernel writes over the recovery console")
	}
	if p.m.OpenVolume != nil {
		p.m.T.Error("the recovery console opens beside an open root partition")
	}
	if p.m.Agent.Phrase != nil {
		p.m.T.Error("the recovery console could read the phrase")
	}
	if p.m.Agent.Released || p.m.Agent.Secret != nil {
		p.m.T.Error("the recovery console opens in a boot that has had a secret in memory")
	}
	if !p.m.hidden {
		p.m.T.Error("the recovery console opens, and its shell could read the kernel's memory")
	}
	p.m.NothingUnseals("the recovery console")
	p.plugsIn("the recovery console")
	panic(Halt{"recovery"})
}

// listener is asked once it was asked that often.
type listener struct{ m *Machine }

// Listen implements hw.Person.
func (p person) Listen() hw.Listener {
	if p.m.Listening {
		p.m.T.Error("two listen at once")
	}
	p.m.Listening = true
	return listener{p.m}
}

func (l listener) Asked() bool {
	if !l.m.Listening {
		l.m.T.Error("it is asked after it was closed")
	}
	l.m.Looks++
	return l.m.Presses > 0 && l.m.Looks >= l.m.Presses
}

func (l listener) Touched() bool { return l.m.Presses > 0 && l.m.Looks >= l.m.Presses }

func (l listener) Close() { l.m.Listening = false }

// Timer is a watchdog device that keeps what it was told.
type Timer struct {
	Limit   time.Duration
	Stopped bool
	Closed  bool
	status  uroot.Status
}

func (t *Timer) BootStatus() (uroot.Status, error) { return t.status, nil }

func (t *Timer) SetTimeout(d time.Duration) error { t.Limit = d; return nil }

func (t *Timer) Timeout() (time.Duration, error) { return t.Limit, nil }

func (t *Timer) KeepAlive() error { return nil }

func (t *Timer) MagicClose() error { t.Stopped, t.Closed = true, true; return nil }

func (t *Timer) Close() error { t.Closed = true; return nil }

// watchdog is the machine's, where it has one.
func (m *Machine) watchdog() (string, watchdog.Timer, error) {
	if m.WatchdogReset {
		return "watchdog0 (test)", &Timer{status: uroot.StatusCardReset}, nil
	}
	return "", nil, watchdog.ErrNone
}
