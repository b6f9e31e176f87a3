// Package manifest reads and writes manifest.env, the one file of a release
// server that changes: it names the release of every channel.
//
// The file has shell assignments, KEY=VALUE a line, so that a script can source
// it. Nothing is ever expanded: the package refuses every value that a shell
// would read differently, every variable that is set twice, and a manifest
// without STABLE. It does not say that a manifest is genuine; what it names is
// signed, and so may it be.
package manifest

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"halogenos.internal/boot/contract"
)

// Names on the server, relative to the directory <arch>/<image-id>.
const (
	FileName      = "manifest.env"
	SignatureName = FileName + ".pgp"
)

// ArchiveName is the release's archive, relative to the image's directory.
func ArchiveName(v contract.Version) string { return v.String() + "/" + v.String() + ".tar.gz" }

// ArchiveSignatureName is the detached signature over the archive.
func ArchiveSignatureName(v contract.Version) string { return ArchiveName(v) + ".pgp" }

// ExtensionArchiveName is the archive of a system extension of a release. An extension's
// name starts with a letter, so that it is no version.
func ExtensionArchiveName(v contract.Version, name string) string {
	return v.String() + "/" + name + ".tar.gz"
}

// ExtensionSignatureName is the detached signature over it.
func ExtensionSignatureName(v contract.Version, name string) string {
	return ExtensionArchiveName(v, name) + ".pgp"
}

// ImageName is what IMAGE says of an image's manifest, which is its directory on a server.
func ImageName(arch, imageID string) string { return arch + "/" + imageID }

// validImage reports whether s is an ImageName.
func validImage(s string) bool {
	arch, id, ok := strings.Cut(s, "/")
	return ok && contract.ValidArch(arch) && contract.ValidID(id)
}

// Bounds.
const (
	MaxSize      = 64 << 10 // bytes of the file
	maxName      = 128      // bytes of the key's file name
	maxUnknown   = 64       // variables of others
	MaxWithdrawn = 256      // versions that one channel has withdrawn
	maxSteps     = 64
)

// MaxJump is how far SEQUENCE may grow at once. A machine takes nothing lower than
// what it has seen, so that one great number would keep it from all later ones. It
// leaves room for dates of fourteen digits, to the second.
const MaxJump = 1 << 46

// A Channel is a kind of release that a machine follows.
type Channel string

// The channels, from the one with the most tried releases on.
const (
	Stable Channel = "stable"
	Beta   Channel = "beta"
	Alpha  Channel = "alpha"
)

// Channels returns all of them, the most tried first.
func Channels() []Channel { return []Channel{Stable, Beta, Alpha} }

// ParseChannel reads a channel's name.
func ParseChannel(s string) (Channel, error) {
	if c := Channel(s); slices.Contains(Channels(), c) {
		return c, nil
	}
	return "", fmt.Errorf("channel %q: want stable, beta or alpha", s)
}

// withdrawnPrefix starts the names of the variables of withdrawn releases.
const withdrawnPrefix = "WITHDRAWN_"

// variable is the channel's name in the file.
func (c Channel) variable() string { return strings.ToUpper(string(c)) }

// An Entry is what the manifest says about one channel.
type Entry struct {
	Version contract.Version // 0: the channel has no release of its own
	// Limited says that only a share of the machines takes the release:
	// Percent of them.
	Limited bool
	Percent int // 0 to 100
}

// A Withdrawal is a release that a channel named until it was withdrawn. Machines
// may have it. It is for those who publish: machines have no use for it.
type Withdrawal struct {
	Channel Channel
	Version contract.Version
}

// A Variable is an assignment that this package has no use for.
type Variable struct{ Name, Value string }

// A Manifest is the content of manifest.env.
type Manifest struct {
	Stable, Beta, Alpha Entry
	// Steps are releases that machines with older ones take before anything newer, in
	// ascending order: what follows needs them.
	Steps []contract.Version
	// PubKey is the file name of the release key beside the manifest; without
	// one, the releases are not signed.
	PubKey string
	// Image is whose releases these are (ImageName); "" is not said. One key may sign
	// those of several images, and what is meant for the machines of one could be shown
	// to those of another.
	Image string
	// Expires is when the manifest must no longer be believed, in whole
	// seconds; the zero time is never.
	Expires time.Time
	// Sequence grows with every manifest that is published; 0 is none.
	Sequence uint64
	// Withdrawn are sorted by channel, the most tried first, and by version.
	Withdrawn []Withdrawal
	// Unknown are the variables that others may know, in their order.
	Unknown []Variable
}

// Entry returns what the manifest says about a channel.
func (m *Manifest) Entry(c Channel) Entry {
	if e := m.entry(c); e != nil {
		return *e
	}
	return Entry{}
}

// Set changes what the manifest says about a channel.
func (m *Manifest) Set(c Channel, e Entry) error {
	at := m.entry(c)
	if at == nil {
		return fmt.Errorf("channel %q: want stable, beta or alpha", c)
	}
	*at = e
	return nil
}

func (m *Manifest) entry(c Channel) *Entry {
	switch c {
	case Stable:
		return &m.Stable
	case Beta:
		return &m.Beta
	case Alpha:
		return &m.Alpha
	default:
		return nil
	}
}

// An Offer is a release that a machine may take, and the channel that names it.
type Offer struct {
	Entry
	Channel Channel
}

// Offers returns what a machine on channel c may take, the newest first: the
// channel's own release and those of the channels that are more tried. So a
// machine never waits for a release that has reached everybody else: a channel
// without one of its own follows the next one that is more tried, and so does one
// whose release a hotfix has overtaken.
func (m *Manifest) Offers(c Channel) ([]Offer, error) {
	all := Channels()
	i := slices.Index(all, c)
	if i < 0 {
		return nil, fmt.Errorf("channel %q: want stable, beta or alpha", c)
	}
	var out []Offer
	for ; i >= 0; i-- {
		e := m.Entry(all[i])
		if e.Version == 0 {
			continue
		}
		// Of channels that name the same release, the one that gives it to most
		// machines counts.
		same := slices.IndexFunc(out, func(o Offer) bool { return o.Version == e.Version })
		switch {
		case same < 0:
			out = append(out, Offer{e, all[i]})
		case out[same].share() < e.share():
			out[same].Entry = e
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s names no stable release", FileName)
	}
	slices.SortStableFunc(out, func(a, b Offer) int { return cmp.Compare(b.Version, a.Version) })
	return out, nil
}

// Resolve returns the newest release that a machine on channel c is offered, and
// the channel that offers it.
func (m *Manifest) Resolve(c Channel) (Entry, Channel, error) {
	all, err := m.Offers(c)
	if err != nil {
		return Entry{}, "", err
	}
	return all[0].Entry, all[0].Channel, nil
}

// Step returns the release that a machine with version from takes first on its way
// to version to; 0: none, it goes there at once.
func (m *Manifest) Step(from, to contract.Version) contract.Version {
	for _, s := range m.Steps {
		if from < s && s < to {
			return s
		}
	}
	return 0
}

// share is the percentage of the machines that takes the release.
func (e Entry) share() int {
	if !e.Limited {
		return 100
	}
	return e.Percent
}

// Includes reports whether a machine belongs to the share that takes the
// release already. Which machines come first differs from release to release,
// and a greater share always includes a smaller one. machine is any ID that
// stays the same.
func (e Entry) Includes(machine []byte) bool {
	if !e.Limited {
		return true
	}
	h := sha256.New()
	fmt.Fprintf(h, "halogen rollout\x00%s\x00", e.Version)
	h.Write(machine)
	return binary.BigEndian.Uint64(h.Sum(nil))%100 < uint64(e.Percent)
}

// ValidKeyName reports whether s can be the key's file name: it stays in its
// directory, is not hidden, and is none of the names that the server's layout
// uses.
func ValidKeyName(s string) bool {
	if len(s) == 0 || len(s) > maxName || s[0] == '.' || s[0] == '-' || s == FileName || s == SignatureName {
		return false
	}
	if _, err := contract.ParseVersion(s); err == nil || slices.Contains(Channels(), Channel(s)) {
		return false
	}
	return strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-+@") == ""
}

// Validate reports the first thing that is wrong with the manifest.
func (m *Manifest) Validate() error {
	if m.Stable.Version == 0 {
		return fmt.Errorf("%s does not define STABLE: add a line such as STABLE=2026010101, with a release that is there", FileName)
	}
	for _, c := range Channels() {
		e := m.Entry(c)
		switch {
		case e.Version > contract.MaxVersion:
			return fmt.Errorf("%s: version %d is out of range", c.variable(), uint64(e.Version))
		case e.Limited && (e.Percent < 0 || e.Percent > 100), !e.Limited && e.Percent != 0:
			return fmt.Errorf("ROLLOUT_%s is %d, want 0 to 100", c.variable(), e.Percent)
		}
	}
	switch {
	case m.PubKey != "" && !ValidKeyName(m.PubKey):
		return fmt.Errorf("PUBKEY is %.60q, want the name of a file beside %s", m.PubKey, FileName)
	case m.Image != "" && !validImage(m.Image):
		return fmt.Errorf("IMAGE is %.120q, want <arch>/<image-id>", m.Image)
	case !m.Expires.IsZero() && (m.Expires.Nanosecond() != 0 || m.Expires.UTC().Year() < 1970 || m.Expires.UTC().Year() > 9999):
		return fmt.Errorf("EXPIRES is %s, want whole seconds in the years 1970 to 9999", m.Expires)
	case m.Sequence > uint64(contract.MaxVersion):
		return fmt.Errorf("SEQUENCE %d is out of range", m.Sequence)
	case len(m.Steps) > maxSteps:
		return fmt.Errorf("STEPS names %d releases, more than %d", len(m.Steps), maxSteps)
	case !slices.IsSortedFunc(m.Steps, func(a, b contract.Version) int { return cmp.Or(cmp.Compare(a, b), -1) }):
		return errors.New("STEPS wants versions in ascending order, each once")
	case len(m.Steps) > 0 && (m.Steps[0] == 0 || m.Steps[len(m.Steps)-1] > contract.MaxVersion):
		return errors.New("STEPS has a version that is out of range")
	case len(m.Unknown) > maxUnknown:
		return fmt.Errorf("%d variables are not known, more than %d", len(m.Unknown), maxUnknown)
	}
	if err := m.validateWithdrawn(); err != nil {
		return err
	}
	return m.validateUnknown()
}

func (m *Manifest) validateWithdrawn() error {
	for _, c := range Channels() {
		var last contract.Version
		list := m.withdrawn(c)
		if len(list) > MaxWithdrawn {
			return fmt.Errorf("%s%s has %d versions, more than %d", withdrawnPrefix, c.variable(), len(list), MaxWithdrawn)
		}
		for _, v := range list {
			if v <= last || v > contract.MaxVersion {
				return fmt.Errorf("%s%s: version %d is out of order or range", withdrawnPrefix, c.variable(), uint64(v))
			}
			last = v
		}
	}
	return nil
}

// withdrawn returns the versions that a channel has withdrawn.
func (m *Manifest) withdrawn(c Channel) (list []contract.Version) {
	for _, w := range m.Withdrawn {
		if w.Channel == c {
			list = append(list, w.Version)
		}
	}
	return list
}

// SetWithdrawn replaces what is known of withdrawn releases, in whatever order it is
// given. Of each channel's, the newest MaxWithdrawn are kept.
func (m *Manifest) SetWithdrawn(all []Withdrawal) {
	m.Withdrawn = slices.Clone(all)
	slices.SortFunc(m.Withdrawn, func(a, b Withdrawal) int {
		return cmp.Or(cmp.Compare(slices.Index(Channels(), a.Channel), slices.Index(Channels(), b.Channel)), cmp.Compare(a.Version, b.Version))
	})
	m.Withdrawn = slices.Compact(m.Withdrawn)
	for _, c := range Channels() {
		if list := m.withdrawn(c); len(list) > MaxWithdrawn {
			least := list[len(list)-MaxWithdrawn]
			m.Withdrawn = slices.DeleteFunc(m.Withdrawn, func(w Withdrawal) bool { return w.Channel == c && w.Version < least })
		}
	}
}

func (m *Manifest) validateUnknown() error {
	for i, v := range m.Unknown {
		same := func(other Variable) bool { return other.Name == v.Name }
		switch {
		case !validName(v.Name) || isKnown(v.Name):
			return fmt.Errorf("variable %.60q cannot be one of others", v.Name)
		case slices.ContainsFunc(m.Unknown[:i], same):
			return fmt.Errorf("%s is set twice", v.Name)
		case !plain(v.Value):
			return fmt.Errorf("%s has a value with control characters, quotes, $, ` or \\", v.Name)
		}
	}
	return nil
}

// Encode returns manifest.env: always the same bytes for the same manifest.
func (m *Manifest) Encode() ([]byte, error) {
	if err := m.Validate(); err != nil {
		return nil, err
	}
	var out bytes.Buffer
	for _, c := range Channels() {
		e := m.Entry(c)
		if e.Version != 0 {
			fmt.Fprintf(&out, "%s=%s\n", c.variable(), e.Version)
		}
		if e.Limited {
			fmt.Fprintf(&out, "ROLLOUT_%s=%d\n", c.variable(), e.Percent)
		}
	}
	if len(m.Steps) > 0 {
		var steps []string
		for _, v := range m.Steps {
			steps = append(steps, v.String())
		}
		fmt.Fprintf(&out, "STEPS=%s\n", strings.Join(steps, ","))
	}
	if m.PubKey != "" {
		fmt.Fprintf(&out, "PUBKEY=%s\n", m.PubKey)
	}
	if m.Image != "" {
		fmt.Fprintf(&out, "IMAGE=%s\n", m.Image)
	}
	if !m.Expires.IsZero() {
		fmt.Fprintf(&out, "EXPIRES=%s\n", m.Expires.UTC().Format(time.RFC3339))
	}
	if m.Sequence != 0 {
		fmt.Fprintf(&out, "SEQUENCE=%s\n", strconv.FormatUint(m.Sequence, 10))
	}
	for _, c := range Channels() {
		var list []string
		for _, v := range m.withdrawn(c) {
			list = append(list, v.String())
		}
		if len(list) > 0 {
			fmt.Fprintf(&out, "%s%s=%s\n", withdrawnPrefix, c.variable(), strings.Join(list, ","))
		}
	}
	for _, v := range m.Unknown {
		fmt.Fprintf(&out, "%s=%s\n", v.Name, quote(v.Value))
	}
	if out.Len() > MaxSize {
		return nil, fmt.Errorf("%s would have %d bytes, more than %d", FileName, out.Len(), MaxSize)
	}
	return out.Bytes(), nil
}
