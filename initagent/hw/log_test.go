package hw

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A quiet boot shows nothing while it goes well, and everything, in its order, once it
// does not, takes long, or somebody wants to see it. The kernel's log has all at once.
func TestQuiet(t *testing.T) {
	const held, longest = "halogen: one\r\n", 3 * time.Second
	for name, tt := range map[string]struct {
		then func(l *Log)
		want string
	}{
		"goes well":      {func(l *Log) { _ = l.Step("two", "reason", func() error { return nil }) }, ""},
		"nearly long":    {func(*Log) { time.Sleep(longest - 1); synctest.Wait() }, ""},
		"takes long":     {func(*Log) { time.Sleep(longest); synctest.Wait() }, held},
		"a step fails":   {func(l *Log) { _ = l.Step("two", "", func() error { return errors.New("no") }) }, held + "halogen: two FAILED after 0.0 ms: no\r\n"},
		"a warning":      {func(l *Log) { l.Say("WARNING: %s", "two"); l.Say("three") }, held + "halogen: WARNING: two\r\nhalogen: three\r\n"},
		"the boot ends":  {func(l *Log) { l.Announce("reboot", "why") }, held + "halogen: reboot: why\r\n"},
		"somebody looks": {func(l *Log) { l.Show(); l.Show(); l.Say("two") }, held + "halogen: two\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var console, kmsg strings.Builder
				l := NewLog(&console, &kmsg)
				l.Hold(longest)
				l.Say("one")
				if kmsg.String() != debug+"initagent: one\n" {
					t.Errorf("the kernel's log has %q", kmsg.String())
				}
				tt.then(l)
				if console.String() != tt.want {
					t.Errorf("the consoles show %q, want %q", console.String(), tt.want)
				}
			})
		})
	}
	var console strings.Builder
	NewLog(&console, io.Discard).Say("one")
	if console.String() != held {
		t.Errorf("a boot that is not quiet shows %q", console.String())
	}
}
