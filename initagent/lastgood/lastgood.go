// Package lastgood finds the event log of the last boot whose TPM opened the root
// partition. It lies on the ESP, since it is wanted when the root partition is
// closed. Anybody can write there, so its name carries a MAC under a key that is
// derived from the machine secret: once that is known, by the recovery key, what
// is not this machine's own is told apart.
//
// It decides nothing, and an older log of this machine's own passes for the last
// one: what it explains is a difference to a boot that was good at that time.
package lastgood

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
	"halogenos.internal/initagent/firstboot"
)

const (
	prefix = "eventlog-"
	suffix = ".bin"
	// purpose is what the key of the MAC is derived for.
	purpose = "last-good-event-log"
	// maxLooked is how many logs are looked at for one that is authentic. There
	// is one, but for what a cut or somebody else has left.
	maxLooked = 16
)

// A Log is the event log of an earlier boot.
type Log struct {
	*pcr.Log
	Kept time.Time // by that boot's clock
	// Authentic: this machine has kept it. Otherwise anybody can have.
	Authentic bool
}

// Is reports whether a file of firstboot.Directory is such a log.
func Is(name string) bool { return strings.HasPrefix(name, prefix) }

// Fresh is the path on the ESP of a log that is kept now.
func Fresh(now time.Time, secret *policy.Secret, raw []byte) string {
	sum := mac(now, secret, raw)
	return fmt.Sprintf("%s/%s%d-%s%s", firstboot.Directory, prefix, now.UnixNano(), hex.EncodeToString(sum[:]), suffix)
}

func mac(kept time.Time, secret *policy.Secret, raw []byte) (sum [sha256.Size]byte) {
	key := secret.Key(purpose)
	defer clear(key[:])
	h := hmac.New(sha256.New, key[:])
	h.Write(binary.LittleEndian.AppendUint64(nil, uint64(kept.UnixNano())))
	h.Write(raw)
	h.Sum(sum[:0])
	return sum
}

// Read returns the log that was kept last; nil where there is none. With the
// machine secret it is the last authentic one, where there is one.
func Read(esp fs.FS, secret *policy.Secret) (*Log, error) {
	entries, err := fs.ReadDir(esp, firstboot.Directory)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		if Is(e.Name()) {
			names = append(names, e.Name())
		}
	}
	if err != nil || len(names) == 0 {
		return nil, err
	}
	slices.Sort(names)
	slices.Reverse(names)
	if secret != nil {
		for _, name := range names[:min(len(names), maxLooked)] {
			if l, err := read(esp, name, secret); err == nil && l.Authentic {
				return l, nil
			}
		}
	}
	return read(esp, names[0], nil)
}

func read(esp fs.FS, name string, secret *policy.Secret) (*Log, error) {
	f, err := esp.Open(path.Join(firstboot.Directory, name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, pcr.MaxLog+1)) // which ParseLog refuses
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	l := new(Log)
	nanoseconds, sum, _ := strings.Cut(strings.TrimSuffix(strings.TrimPrefix(name, prefix), suffix), "-")
	if n, err := strconv.ParseInt(nanoseconds, 10, 64); err == nil {
		l.Kept = time.Unix(0, n)
	}
	if claimed, err := hex.DecodeString(sum); err == nil && secret != nil {
		want := mac(l.Kept, secret, raw)
		l.Authentic = hmac.Equal(claimed, want[:])
	}
	l.Log, err = pcr.ParseLog(raw)
	return l, err
}

// Differences are those between two boots that keep the root partition closed.
func Differences(lastGood, now *pcr.Log) (out []pcr.Difference) {
	for _, d := range pcr.Diff(lastGood, now) {
		for _, n := range policy.Bound() {
			if d.PCR == n {
				out = append(out, d)
			}
		}
	}
	return out
}

// Explain says for a person what differs from a boot that was good, and what that
// boot's log is worth. last may be nil.
func Explain(last *Log, now *pcr.Log) string {
	if last == nil {
		return "What changed is not known: there is no event log of an earlier boot.\n"
	}
	var out strings.Builder
	if last.Authentic {
		fmt.Fprintf(&out, "Compared with the event log that this machine has kept of a good boot on %s:\n", last.Kept.UTC().Format(time.DateOnly))
	} else {
		out.WriteString("Compared with an event log that nobody vouches for: anyone who had the disk can have written it, so that it may hide what changed:\n")
	}
	differences := Differences(last.Log, now)
	if len(differences) == 0 {
		out.WriteString("Nothing that was measured differs.\n")
	}
	for _, d := range differences {
		fmt.Fprintf(&out, "%s\n", strings.TrimRight(d.String(), "\n"))
	}
	return out.String()
}
