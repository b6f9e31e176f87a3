package image

import (
	"maps"
	"strings"
	"testing"

	"halogenos.internal/builder/rootfs/rootfstest"
)

// An image that would restart its machines again and again is warned of. FAULTS 112
func TestHungryWatchdog(t *testing.T) {
	const systemd, drop = "usr/lib/systemd/systemd", "etc/systemd/system.conf.d/watchdog.conf"
	for name, c := range map[string]struct {
		seconds int
		files   map[string]string
		warned  string
	}{
		"off":                         {0, nil, ""},
		"no daemon":                   {180, nil, "install a watchdog daemon"},
		"a daemon":                    {180, map[string]string{"usr/sbin/watchdog": "x"}, ""},
		"systemd as it is":            {180, map[string]string{systemd: "x", "usr/sbin/watchdog": "x", "etc/systemd/system.conf": "#RuntimeWatchdogSec=0\n"}, "set RuntimeWatchdogSec="},
		"systemd that feeds it":       {180, map[string]string{systemd: "x", drop: "[Manager]\nRuntimeWatchdogSec=60s\n"}, ""},
		"systemd that is told not to": {180, map[string]string{systemd: "x", drop: "[Manager]\nRuntimeWatchdogSec = off\n"}, "say Watchdog=off"},
	} {
		files := maps.Clone(rootfstest.Minimal())
		for name, text := range c.files {
			files[name] = []byte(text)
		}
		o := options(t, files.Write(t, false))
		var said strings.Builder
		o.Disk, o.Config.WatchdogSeconds, o.Progress = false, c.seconds, NewProgress(&said)
		mustBuild(t, o)
		if warned := strings.Contains(said.String(), "hardware watchdog"); warned != (c.warned != "") || !strings.Contains(said.String(), c.warned) {
			t.Errorf("%s:\n%s", name, said.String())
		}
	}
}
