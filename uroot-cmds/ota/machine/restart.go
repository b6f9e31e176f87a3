package machine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/statefiles"
	"halogenos.internal/uroot-cmds/ota/when"
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
	grown, err := m.grown(r)
	if err != nil {
		return nil, err
	}
	asked := grown != nil && grown.Request != nil
	if s == nil && !asked {
		return &Restarting{Reason: "no release waits for a restart"}, nil
	}
	set, err := m.Settings()
	if err != nil {
		return nil, err
	}
	out := &Restarting{}
	if s != nil {
		out.Version = s.Version
	}
	if out.Due, out.Reason = set.Restart.Due(m.Use(ctx)); !out.Due {
		return out, nil
	}
	at := m.Now().Add(notice)
	out.At = &at
	return out, m.Reboot(ctx, when.Order{At: at, Message: message(s), Careful: true})
}

// message is what those who are logged in are told.
func message(s *statefiles.Staged) string {
	if s == nil {
		return "The machine restarts and makes room for a larger release of its system."
	}
	return fmt.Sprintf("The machine restarts into version %s of its system.", s.Version)
}

// errNoRelease says that a restart would bring nothing new.
var errNoRelease = errors.New("no release waits for a restart: `ota fetch` fetches one. `reboot` restarts the machine all the same")

// waiting is the release that waits for a restart; none is an error.
func (m *Machine) waiting() (*statefiles.Staged, error) {
	r, err := m.system()
	if err != nil {
		return nil, err
	}
	s, err := m.staged(r)
	if err == nil && s == nil {
		err = errNoRelease
	}
	return s, err
}

// RestartNow restarts the machine into a release that waits.
func (m *Machine) RestartNow(ctx context.Context) (*Restarting, error) {
	s, err := m.waiting()
	if err != nil {
		return nil, err
	}
	return &Restarting{Version: s.Version, Due: true, Reason: "somebody wants it"}, m.Reboot(ctx, when.Order{})
}

// RestartObstacles says what stands against a restart that a user asks for, into a release
// that waits: none is an error.
func (m *Machine) RestartObstacles(ctx context.Context, user uint32) (when.Obstacles, error) {
	if _, err := m.waiting(); err != nil {
		return when.Obstacles{}, err
	}
	return m.Obstacles(ctx, user)
}

// RestartBy restarts the machine into a release that waits as somebody has ordered.
func (m *Machine) RestartBy(ctx context.Context, o when.Order) error {
	s, err := m.waiting()
	if err != nil {
		return err
	}
	o.Message = message(s)
	return m.Reboot(ctx, o)
}
