package machine

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"halogenos.internal/boot/bounded"
	"halogenos.internal/boot/pgp"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/uroot-cmds/ota/settings"
)

// setKnown reads what was learned of the release key. A file that is damaged must
// not pass for none: a subkey that was revoked would count again.
func (u *update) setKnown() error {
	name := u.state(u.running, keyFile)
	text, err := readSmall(name, pgp.MaxKey)
	if errors.Is(err, fs.ErrNotExist) || len(u.running.Contract.ReleaseKey) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	if theirs, err := u.othersKey(text); err == nil && theirs != "" {
		return fmt.Errorf("%s is of the release key %s, and this system has pinned %s: an installation with another release key has left it on the root partition that was kept. It says nothing about this system's key: `rm %s` and try again", name, theirs, u.pinned(), name)
	}
	wiser, err := u.self.Learn(text)
	if err != nil {
		return fmt.Errorf("%s: %w, and it says what was learned of the release key: %w. Find out what damaged it (`dmesg` tells of a failing disk); if the server is to be trusted this once, `rm %s` and try again", name, errDamaged, err, name)
	}
	u.self = wiser
	return nil
}

// othersKey is the fingerprint of a key that is not the pinned one; empty where it is.
func (u *update) othersKey(text []byte) (string, error) {
	k, err := pgp.ParseKey(text)
	if err != nil {
		return "", err
	}
	if theirs := k.Fingerprint().String(); theirs != u.pinned() {
		return theirs, nil
	}
	return "", nil
}

// pinned is the fingerprint of the release key in the UKI; empty where that cannot be read.
func (u *update) pinned() string {
	k, err := pgp.ParseKey(u.running.Contract.ReleaseKey)
	if err != nil {
		return ""
	}
	return k.Fingerprint().String()
}

// learn keeps what a server's copy of the release key says that was not known.
// Cut before the rename, the old file is there; the next check learns it again.
func (u *update) learn() error {
	wiser, err := u.found.Learned(u.self)
	if err != nil || u.lock == nil || bytes.Equal(wiser.Known, u.self.Known) {
		return err
	}
	if err := os.MkdirAll(u.state(u.running, fetchDirectory), 0o755); err != nil {
		return err
	}
	u.self, u.request.Self = wiser, wiser
	return hw.KeepFile(u.state(u.running, keyFile), wiser.Known, 0o644)
}

// learnAnyway learns from an offer that is refused: that its key was revoked is
// remembered, so that an old copy of the key, shown later, makes it no good one again.
func (u *update) learnAnyway() error {
	if u.found == nil {
		return nil
	}
	if _, err := u.found.Learned(u.self); err != nil {
		return nil // another's key, which the refusal is about
	}
	return u.learn()
}

// authorities are the certificates that the settings name, since the worker has no
// files. At the recovery console /etc is the system's own.
func (m *Machine) authorities(s settings.Settings) (certificates []byte, err error) {
	if s.CA == "" {
		return nil, nil
	}
	name := m.path(s.CA)
	if below, ok := strings.CutPrefix(s.CA, "/etc/"); ok {
		etc, err := m.etc()
		if err != nil {
			return nil, err
		}
		name = filepath.Join(etc, below)
	}
	f, err := os.Open(name)
	if err == nil {
		defer f.Close()
		certificates, err = bounded.Named(f, name, maxFile)
	}
	if err != nil {
		return nil, fmt.Errorf("CA in ota.conf: %w: correct it, or take it out", err)
	}
	return certificates, nil
}
