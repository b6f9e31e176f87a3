package qemutests

import (
	"strings"
	"testing"
	"time"
)

// TestSysvinit has a Debian 12 without systemd live with the system: a boot manager and
// a stub of 2023, which measure otherwise than today's, System V's init, updates fetched
// by cron's line and kept by a script.
// FAULTS 112
func TestSysvinit(t *testing.T) {
	t.Parallel()
	server := Serve(t)
	g := Machine(t, Options{Image: "sysvinit-1", Timeout: 15 * time.Minute, VM: debianMachine()})
	g.Expect(`reboot: `)
	g.startsAnew()
	g.Expect(`RECOVERY KEY:`)
	g.confirm()
	g.login()
	g.says("cat /proc/1/comm; ls -d /run/systemd/system", `^init\n`)
	g.says("findmnt -n -o SOURCE,FSTYPE / && mount | grep -E ' (/etc|/var|/home) '", `^/dev/\S+ +erofs\n`)
	g.says("mkdir -p /etc/halogen && echo Server="+server.URL+" >/etc/halogen/ota.conf && echo kept >/home/kept", "")
	publish(t, server, "sysvinit-2")
	g.says(`for i in $(seq 60); do ip route | grep -q ^default && break; sleep 1; done; sh -c "$(sed -n 's/.*&& nice/nice/p' /etc/cron.d/ota)"`, "")
	g.leave("reboot")
	g.startsAnew()
	g.Expect(`halogen: stage \(`)
	g.startsAnew()
	g.login()
	g.says("for i in $(seq 100); do ota status | grep -q trial || break; sleep 2; done; ota status", `(?i)version 2`)
	g.leave("reboot")
	g.startsAnew()
	g.login()
	g.says("grep -c '\"version\": \"2\"' /run/halogen/boot.json; grep -c '\"trial\": true' /run/halogen/boot.json; cat /home/kept", `^1\n0\nkept$`)
	if text := g.Console().Text(); !strings.Contains(text, "halogen: unlock (") || strings.Contains(text, "ecovery key") {
		t.Error("the boot did not unlock the root partition by itself")
	}
	g.PowerCut()
}
