package qemutests

import (
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/bls"
)

// TestBadUpdate: a version 2 that does not pass its health check is tried, given up
// and not taken again, and nobody has to help.
// FAULTS 49, 105
func TestBadUpdate(t *testing.T) {
	t.Parallel()
	first := installed(t)
	s := Serve(t)
	publish(t, s, "update-bad-2")
	g := Machine(t, Options{State: first.State, Timeout: 15 * time.Minute, VM: debianMachine()})
	g.goesOn()
	g.askServer(s)
	changed := g.administrates()
	g.says("systemctl start ota-fetch.service", "")
	g.leave("systemctl reboot")
	g.startsAnew()
	g.Expect(`halogen: stage \(`)
	g.Expect(`halogen: reboot: `)
	g.endsAtRestart()
	// Its first try is taken as failed, or this test would take minutes more.
	mtools(t, g.State(), "mren", "::"+bls.Directory+"/halogen_2+3.efi", "::"+bls.Directory+"/halogen_2+2-1.efi")
	g.PowerOn()
	began := time.Now()
	trials := 0
	for {
		i, match := g.ExpectAny(`halogen: halogen 2, epoch `, `halogen: remember \(`, `RECOVERY: [^\n]*`)
		if i == 1 {
			break
		}
		if trials++; i == 2 || trials > 2 {
			t.Fatalf("after %d trials: %s", trials, match[0])
		}
		g.startsAnew()
	}
	g.login()
	t.Logf("version 1 is back after %d trials, %v", trials, time.Since(began).Round(time.Second))
	g.says("cat /run/halogen/boot.json", `"version": "1"(?s:.*)"trial": false`)
	g.keptData()
	if now := g.says(digests, ""); now != changed {
		t.Errorf("after the fallback /etc has %s; it had %s", now, changed)
	}
	before := len(s.Requests())
	output, status := g.shell("(set -o pipefail; ota fetch 2>&1 | cat)")
	if !strings.Contains(output, "never-well.service") || status != "3" {
		t.Errorf("ota fetch ends with %s and says %q; it was to say why it does not take version 2", status, output)
	}
	if sent := Sent(s.Requests()[before:]); sent > 1<<20 {
		t.Errorf("%d bytes were fetched of a release that is not taken", sent)
	}
	t.Logf("ota fetch says: %s", output)
	g.keepsHome()
	g.PowerCut()
}
