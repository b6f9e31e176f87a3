// Package goodlog finds the event log of the last boot whose TPM opened the root
// partition. It lies on the ESP, since it is wanted when the root partition is
// closed.
//
// It explains and decides nothing: anybody can write to the ESP.
package goodlog

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"time"

	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
	"halogenos.internal/initagent/provision"
)

const prefix = "eventlog-"

// Is reports whether a file of provision.Folder is such a log.
func Is(name string) bool { return strings.HasPrefix(name, prefix) }

// Fresh is the path on the ESP of a log that is kept now.
func Fresh(now time.Time) string {
	return fmt.Sprintf("%s/%s%d.bin", provision.Folder, prefix, now.UnixNano())
}

// Read returns the log that was kept last; nil where there is none.
func Read(esp fs.FS) (*pcr.Log, error) {
	entries, err := fs.ReadDir(esp, provision.Folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	name := ""
	for _, e := range entries {
		if Is(e.Name()) {
			name = path.Join(provision.Folder, e.Name())
		}
	}
	if err != nil || name == "" {
		return nil, err
	}
	raw, err := read(esp, name)
	if err != nil {
		return nil, err
	}
	return pcr.ParseLog(raw)
}

func read(esp fs.FS, name string) ([]byte, error) {
	f, err := esp.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, pcr.MaxLog+1)) // which ParseLog refuses
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return raw, nil
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
