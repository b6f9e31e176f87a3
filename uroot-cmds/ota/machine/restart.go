package machine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"halogenos.internal/boot/contract"
)

// A Restarting says whether the machine restarts.
type Restarting struct {
	Version contract.Version `json:"version"` // that waits
	Due     bool             `json:"due"`
	Reason  string           `json:"reason"`
	At      *time.Time       `json:"at,omitempty"`
}

// notice is how long those who are logged in have when the machine restarts by itself.
const notice = time.Minute

// RestartWhenDue restarts the machine into a release that waits, where the settings say
// that it does so by itself, and this is the time.
func (m *Machine) RestartWhenDue(ctx context.Context) (*Restarting, error) {
	r, err := m.system()
	if err != nil {
		return nil, err
	}
	s, err := m.staged(r)
	if err != nil {
		return nil, err
	}
	if s == nil {
		return &Restarting{Reason: "no release waits for a restart"}, nil
	}
	set, err := m.Settings()
	if err != nil {
		return nil, err
	}
	out := &Restarting{Version: s.Version}
	if out.Due, out.Reason = set.Restart.Due(m.Use(ctx)); !out.Due {
		return out, nil
	}
	at := m.Now().Add(notice)
	out.At = &at
	return out, m.Reboot(ctx, at, fmt.Sprintf("The machine restarts into version %s of its system.", s.Version))
}

// errNoRelease says that a restart would bring nothing new.
var errNoRelease = errors.New("no release waits for a restart: `ota fetch` fetches one. `reboot` restarts the machine all the same")

// RestartNow restarts the machine into a release that waits.
func (m *Machine) RestartNow(ctx context.Context) (*Restarting, error) {
	r, err := m.system()
	if err != nil {
		return nil, err
	}
	s, err := m.staged(r)
	if err == nil && s == nil {
		err = errNoRelease
	}
	if err != nil {
		return nil, err
	}
	return &Restarting{Version: s.Version, Due: true, Reason: "somebody wants it"}, m.Reboot(ctx, time.Time{}, "")
}
