package main

import (
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"halogenos.internal/initagent/command/commandtest"
	"halogenos.internal/initagent/network"
)

// What it does is tested in initagent/network.
func TestUse(t *testing.T) {
	type say = func(string, ...any)
	fails := errors.New("not here")
	commandtest.Use(t, cmd(func(say) (*network.Machine, error) { return nil, fails }))
	for _, c := range []struct {
		machine func(say) (*network.Machine, error)
		out     string
		want    string
	}{
		{func(say) (*network.Machine, error) { return nil, fails }, "", "not here"},
		{func(s say) (*network.Machine, error) {
			return &network.Machine{
				OpenSystem: func() (string, error) { return "", fails }, Say: s, Sleep: func(time.Duration) {},
				Interfaces: func() ([]net.Interface, error) { return nil, nil },
			}, nil
		}, "not here; what it has", "this machine has no wired network interface"},
	} {
		code, out, errs := commandtest.Run(cmd(c.machine))
		if code != 1 || !strings.HasPrefix(out, c.out) || !strings.HasPrefix(errs, "network: "+c.want) {
			t.Errorf("%d, %q, %q, want %q", code, out, errs, c.want)
		}
	}
}
