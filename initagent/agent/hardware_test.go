package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/bootoption"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/verity"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/ownstate"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/snapshot"
	"halogenos.internal/initagent/snapshot/snapshottest"
	"halogenos.internal/initagent/tpm"
)

// kernel implements hw.Kernel. A disk shows when the driver of its controller was
// loaded.
type kernel struct{ m *machine }

func (k kernel) Coldplug(way []bootoption.Function) (int, error) {
	if k.m != nil {
		k.m.driven, k.m.tpmPlugs = way, k.m.tpmPlugs-1
		if k.m.plugging != nil {
			k.m.plugging()
		}
	}
	return 0, nil
}

// Hotplug tells a person's program that devices are looked for.
func (k kernel) Hotplug(ctx context.Context) {
	select {
	case k.m.hotplug <- struct{}{}:
		<-ctx.Done()
	case <-ctx.Done():
	}
}

func (kernel) Load(...string) error { return nil }

// Messages implements hw.Kernel.
func (k kernel) Messages() ([]byte, error) { return []byte(k.m.messages), nil }

// mapper implements hw.Mapper. What dm-verity finds out in the end it finds out
// at once.
type mapper struct{ m *machine }

func (p mapper) OpenVerity(v hw.Verity) (string, error) {
	numbers := map[string]int{}
	for n := 1; n <= 6; n++ {
		numbers[fmt.Sprintf("/dev/disk0p%d", n)] = n
	}
	data, err := p.m.partition(numbers[v.DataDevice])
	if err != nil {
		return "", err
	}
	tree, err := p.m.partition(numbers[v.HashDevice])
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
	header, err := p.m.header()
	if err != nil {
		return "", err
	}
	if err := header.VerifyVolumeKey(c.VolumeKey); err != nil {
		return "", err
	}
	if p.m.openVolume != nil {
		return "", errors.New("a volume is open already")
	}
	id := policy.VolumeFingerprint(c.VolumeKey)
	p.m.openVolume = &id
	return "/dev/dm-1", nil
}

func (p mapper) Close(name string) error {
	if name == ownstate.BeforeDevice && p.m.before != nil {
		p.m.before = nil
		return nil
	}
	if name != rootpart.Device || p.m.openVolume == nil {
		return fmt.Errorf("no device %s: %w", name, unix.ENXIO)
	}
	if slices.Contains(p.m.mounted, filepath.Join(p.m.root, rootpart.Directory)) {
		return errors.New("device is busy")
	}
	p.m.openVolume = nil
	return nil
}

func (m *machine) header() (*luks2.Header, error) {
	s, err := m.partition(layout.RootNumber)
	if err != nil {
		return nil, err
	}
	header, _, err := luks2.Open(s, s.Size())
	return header, err
}

// mounts implements hw.Mounts.
type mounts struct{ m *machine }

func (mounts) Base() error       { return nil }
func (o mounts) Firmware() error { return o.m.noEFI }

func (o mounts) Mount(source, target, fstype string, _ uintptr, _ string) error {
	if source == "/dev/dm-1" && (o.m.openVolume == nil || o.m.volumes[*o.m.openVolume] == nil) {
		return errors.New("there is no file system on it")
	}
	if strings.HasPrefix(target, filepath.Join(o.m.root, host.SystemDirectory)) && !o.m.openVerity {
		o.m.t.Errorf("%s was mounted on %s without verity", source, target)
	}
	if o.m.badFiles != "" && strings.Contains(target, o.m.badFiles) {
		return syscall.EIO
	}
	o.m.mounted = append(o.m.mounted, target)
	return nil
}

func (o mounts) Unmount(target string) error {
	at := slices.Index(o.m.mounted, target)
	if at < 0 {
		return fmt.Errorf("%s is not mounted: %w", target, unix.EINVAL)
	}
	for _, later := range o.m.mounted[at+1:] {
		if target == filepath.Join(o.m.root, rootpart.Directory) && later != target {
			return fmt.Errorf("%s is busy: %s", target, later)
		}
	}
	o.m.mounted = slices.Delete(o.m.mounted, at, at+1)
	return nil
}

func (o mounts) SwitchRoot(string, []string) error {
	if o.m.before != nil {
		o.m.t.Error("the system gets the image of the one before it, still open")
	}
	o.m.nothingUnseals("the system")
	panic(halt{"system"})
}

// nothingUnseals plays what runs after initagent: it asks the TPM for whatever
// lies on the disk.
func (m *machine) nothingUnseals(who string) {
	if m.noTPM != nil {
		return
	}
	var sealed []*policy.Sealed
	if m.agent.Lock != nil && m.agent.Lock.Sealed != nil {
		sealed = append(sealed, m.agent.Lock.Sealed)
	}
	if m.agent.Left.Pending != nil {
		if s, err := m.agent.Left.Pending.SealedSecret(); err == nil {
			sealed = append(sealed, s)
		}
	}
	for _, s := range sealed {
		if secret, _, err := tpm.OpenTransport(m.emulator).Unseal(s); err == nil {
			secret.Wipe()
			m.t.Errorf("%s unseals the machine secret (FAULTS 62, 79)", who)
		}
	}
}

type power struct{ m *machine }

func (power) Reboot() error   { panic(halt{"reboot"}) }
func (power) PowerOff() error { panic(halt{"off"}) }

// store implements hw.Store: what Keep and Seed have returned for survives.
type store struct{ m *machine }

func (s store) files() map[string][]byte {
	if s.m.openVolume != nil {
		return s.m.volumes[*s.m.openVolume]
	}
	return map[string][]byte{} // in memory
}

func (s store) MakeFileSystem(string, string, string) error {
	s.m.op("mkfs")
	s.m.volumes[*s.m.openVolume] = map[string][]byte{}
	s.m.durable++
	return nil
}

func (s store) Read(name string, limit int64) ([]byte, error) {
	b, ok := s.files()[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	if name == s.m.unreadableFile {
		return nil, syscall.EIO
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s: %w: more than %d bytes", name, hw.ErrUnfit, limit)
	}
	return slices.Clone(b), nil
}

func (s store) Keep(name string, content []byte) error {
	s.m.op("root keep " + name)
	if name == s.m.fullFile || s.m.fullRoot {
		return fmt.Errorf("write %s: %w", name, hw.Full(syscall.ENOSPC))
	}
	s.files()[name] = slices.Clone(content)
	s.m.durable++
	return nil
}

func (s store) Remove(name string) error {
	if _, ok := s.files()[name]; !ok {
		return nil
	}
	s.m.op("root remove " + name)
	if name == s.m.stuckFile {
		return syscall.EPERM
	}
	delete(s.files(), name)
	s.m.durable++
	return nil
}

func (s store) MakeDirectory(name string, _ fs.FileMode) error {
	if s.m.badFiles != "" && strings.Contains(name, s.m.badFiles) {
		return syscall.EIO
	}
	if strings.HasPrefix(name, snapshot.Directory) {
		return s.disk().MakeDirectory(name, 0)
	}
	return nil
}

func (s store) Seed(_, name string, subvolume bool) error {
	if s.m.badFiles != "" && strings.Contains(name, s.m.badFiles) {
		return syscall.EIO
	}
	if _, ok := s.files()[name]; ok {
		return nil
	}
	s.m.op("root seed " + name)
	s.files()[name] = []byte{}
	if subvolume && s.m.agent.Contract.RootFileSystem == "btrfs" {
		s.files()[name] = []byte(snapshottest.Writable)
	}
	s.m.durable++
	return nil
}

type chipSeam struct{ m *machine }

func (c chipSeam) Open() (*tpm.TPM, error) { return c.m.openTPM() }
func (c chipSeam) EventLog() ([]byte, error) {
	if c.m.noLog {
		return nil, fs.ErrNotExist
	}
	if c.m.wrongLog { // one of its digests of PCR 7
		digest := sha256.Sum256(variableData(secureboot.SecureBoot, c.m.vars["SecureBoot"].data))
		other := sha256.Sum256(digest[:])
		return bytes.Replace(c.m.log, digest[:], other[:], 1), nil
	}
	return c.m.log, nil
}

// person writes down every recovery key and types what the test says.
type person struct{ m *machine }

func (p person) Open() (hw.Console, error) { return p, p.m.noTerminal }
func (person) Close() error                { return nil }

var keyPattern = regexp.MustCompile(`RECOVERY KEY:\s+(\S+)\s`)

func (p person) Print(text string) {
	p.m.printed.WriteString(text)
	if match := keyPattern.FindStringSubmatch(text); match != nil {
		p.m.shown = append(p.m.shown, match[1])
	}
}

// PrintSecret implements hw.Console.
func (p person) PrintSecret(text string) { p.Print(text) }

// AskKey implements hw.Console.
func (p person) AskKey(prompt string, _ bool, timeout time.Duration) ([]byte, error) {
	return p.Ask(prompt, false, timeout)
}

func (p person) Ask(prompt string, _ bool, timeout time.Duration) ([]byte, error) {
	p.m.printed.WriteString(prompt)
	p.m.waits = append(p.m.waits, timeout)
	if p.m.listening {
		p.m.t.Errorf("two wait for what is typed after %q", prompt)
	}
	if p.m.pulled != "" && strings.HasPrefix(prompt, p.m.pulled) {
		panic(halt{"death"})
	}
	if strings.HasPrefix(prompt, "Press Enter") || strings.HasPrefix(prompt, "\nTHE RECOVERY KEY THAT WAS SHOWN LAST") {
		return nil, nil
	}
	first := strings.Contains(prompt, "(an empty line: later)")
	if strings.HasPrefix(prompt, "Type group") && (p.m.echo || first && !p.m.later) {
		return []byte(groups(prompt, p.m.shown[len(p.m.shown)-1])), nil
	}
	switch {
	case p.m.owner && strings.HasPrefix(prompt, "\nRecovery key"):
		return []byte(p.m.shown[len(p.m.shown)-1]), nil
	case p.m.owner && strings.HasSuffix(prompt, "[y/N] "):
		return []byte("y"), nil
	}
	if len(p.m.typed) == 0 {
		return nil, hw.ErrNobody
	}
	answer := p.m.typed[0]
	p.m.typed = p.m.typed[1:]
	return []byte(answer), nil
}

// groups are those of a recovery key that a question asks for.
func groups(question, key string) string {
	var a, b int
	if _, err := fmt.Sscanf(question, "Type group %d and group %d", &a, &b); err != nil {
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
		p.m.t.Errorf("what is plugged in beside %s gets no driver", what)
	}
}

func (p person) Program(path string, args ...string) error {
	p.m.nothingUnseals("what an installer stick brings")
	if !p.m.hidden {
		p.m.t.Error("an installer stick's program could read the kernel's memory")
	}
	p.plugsIn("the installer")
	p.m.program = append([]string{path}, args...)
	return p.m.programEnds
}

// Quiet implements hw.Person.
func (p person) Quiet() (restore func()) {
	p.m.quiet = true
	return func() { p.m.quiet = false }
}

func (p person) Shell() error {
	if !p.m.quiet {
		p.m.t.Error("the kernel writes over the recovery console")
	}
	if p.m.openVolume != nil {
		p.m.t.Error("the recovery console opens beside an open root partition")
	}
	if p.m.agent.Released || p.m.agent.Secret != nil {
		p.m.t.Error("the recovery console opens in a boot that has had a secret in memory")
	}
	if !p.m.hidden {
		p.m.t.Error("the recovery console opens, and its shell could read the kernel's memory")
	}
	p.m.nothingUnseals("the recovery console")
	p.plugsIn("the recovery console")
	panic(halt{"recovery"})
}
