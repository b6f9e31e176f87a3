package qemutests

import (
	"testing"
	"time"
)

// TestBtrfs takes a machine with RootPartitionFormat=btrfs to version 2, which writes to what
// both versions share, and back: with --state, /var and /root are as they were before the
// update, and /home is as it is. It is undone once; and then all but /home is deleted.
// FAULTS 105
func TestBtrfs(t *testing.T) {
	t.Parallel()
	s := Serve(t)
	publish(t, s, "btrfs-2")
	g := Machine(t, Options{Image: "btrfs-1", Timeout: 15 * time.Minute, VM: debianMachine()})
	g.Expect(`reboot: `)
	g.startsAnew()
	g.Expect(`RECOVERY KEY:`)
	g.confirm()
	g.login()
	g.says("findmnt -n -o FSTYPE,FSROOT /var; findmnt -n -o FSTYPE,FSROOT /home", `^btrfs +/bind/var\nbtrfs +/bind/home$`)
	// A subvolume's top has this inode.
	g.says("stat -c %i /var /root /srv /opt /usr/local", `^256\n256\n256\n256\n256$`)
	g.says("stat -c %i /home | grep -vx 256", "")
	g.says("ota rollback --state 2>&1; [ $? = 1 ]", "one is taken when a release is staged")
	g.holds("one")
	g.says("cat /etc/machine-id >/var/lib/id", "")
	g.askServer(s)
	changed := g.administrates()
	g.updates(2)
	g.isBlessed()
	g.carriedState(bothChanged...)
	g.says("ota status", `/var, /root, /srv, /opt, /usr/local can go back to [^\n]*, before version 2 was tried`)
	g.holds("two")
	// What root cannot rename goes back all the same: chattr, read-only subvolumes.
	g.says("chattr +i /srv && btrfs property set /opt ro true", "")
	// Nor does it matter which subvolume another tool has made the default.
	g.says("btrfs subvolume set-default $(btrfs inspect-internal rootid /var) /run/state", "")
	g.says("echo n | ota rollback --state; [ $? = 1 ]", `/var +then [^\n]*, now [^\n]*\n(?s:.*)Version 2 is given up\. The next start is of version 1\.\nGo back\? \[y/N\] `)
	g.says("echo y | ota rollback --state slow", `the next start puts /var, /root, /srv, /opt, /usr/local back: restart$`)
	g.goesBackTo("1")
	g.has("one", "two")
	if now := g.says(digests, ""); now != changed {
		t.Errorf("after the rollback /etc has %s; it had %s", now, changed)
	}
	g.says("cmp /etc/machine-id /var/lib/id", "")
	g.says("cat /run/state/snapshots/aside-a/var/lib/db", `^two$`)
	g.says("lsattr -d /srv /run/state/snapshots/aside-a/srv; btrfs property get /run/state/snapshots/aside-a/opt ro", `^-+ /srv\n----i-+ /run/state/snapshots/aside-a/srv\nro=true$`)
	g.says("ota status", `state +[^\n]*are as they were before the update`)
	g.says("systemctl is-system-running --wait; systemctl list-units --failed --no-legend --plain --no-pager", `^running$`)
	g.says("ota rollback --state --yes", `would hold again what they held before that`)
	g.goesBackTo("1")
	g.has("two", "two")
	g.says("ota rollback --state --yes && ota status", `the next start puts directories back`)
	g.says("ota rollback --state --cancel && ! ota status | grep -q 'next start puts'", `^the directories stay as they are[^\n]*$`)
	g.says("ota rollback --state --forget --yes; find /run/state/snapshots -mindepth 2", `it is deleted[^\n]*$`)
	g.says("ota rollback --state --yes 2>&1; [ $? = 1 ]", "there is no snapshot")
	g.keepsHome()
	g.PowerCut()
}

// holds has what the systems share hold a text.
func (g *Guest) holds(text string) {
	g.t.Helper()
	g.says("for f in /var/lib/db /root/x /home/x; do echo "+text+" >$f; done", "")
}

// has checks what /var, /root and /home hold.
func (g *Guest) has(state, home string) {
	g.t.Helper()
	g.says("cat /var/lib/db /root/x /home/x", "^"+state+"\n"+state+"\n"+home+"$")
}

// goesBackTo restarts a machine whose next start puts directories back.
func (g *Guest) goesBackTo(version string) {
	g.t.Helper()
	g.leave("systemctl reboot")
	g.startsAnew()
	g.Expect(`halogen: restore-state \(`)
	g.login()
	g.says("cat /run/halogen/boot.json", `"version": "`+version+`"(?s:.*)"trial": false`)
}
