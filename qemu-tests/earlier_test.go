package qemutests

import (
	"slices"
	"testing"
	"time"
)

// TestEarlierRelease: a machine that an earlier release installed, whose systems share one
// upper directory of /etc, updates to this one and keeps what its administrator made of
// it. A rollback finds the earlier release's /etc as that left it. FAULTS 105
func TestEarlierRelease(t *testing.T) {
	t.Parallel()
	s := Serve(t)
	publish(t, s, "update-3")
	g := Machine(t, Options{Image: "earlier-1", Timeout: 15 * time.Minute, VM: debianMachine()})
	g.Expect(`reboot: `)
	g.startsAnew()
	g.Expect(shownKey)
	g.Expect(`Press Enter when you have written it down`)
	g.typeLine("")
	g.login()
	for _, name := range []string{"/etc/kept", "/var/lib/kept", "/home/kept"} {
		g.says("echo kept >"+name, "")
	}
	g.says("cat /etc/machine-id >/var/lib/id", "")
	g.says("ls -d /run/state/overlay/etc/upper /run/state/systems 2>/dev/null; true", `^/run/state/overlay/etc/upper$`)
	g.askServer(s)
	changed := g.administrates()
	g.updates(3)
	g.isBlessed()
	g.keptData()
	// One upper directory for all systems proves no deletion: the line that the administrator
	// has changed in another file may be one that the image brought, and is missing.
	g.carriedState(slices.Concat(bothChanged, []string{`login\.defs`})...)
	g.says("ls /run/state/systems | wc -l", `^[12]$`)
	if have := g.ukis(); have != "halogen_1.efi\nhalogen_3.efi" {
		t.Errorf("UKIs %q; version 3 was to be blessed and version 1 to stay", have)
	}
	// The way back is there still, and finds its /etc as it left it.
	g.says("ota rollback 2>&1 | cat; echo ${PIPESTATUS[0]}", `\n0$`)
	g.leave("systemctl reboot")
	g.startsAnew()
	g.login()
	g.says("cat /run/halogen/boot.json", `"version": "1"(?s:.*)"trial": false`)
	g.keptData()
	if now := g.says(digests, ""); now != changed {
		t.Errorf("after the rollback /etc has %s; it had %s", now, changed)
	}
	g.PowerCut()
}
