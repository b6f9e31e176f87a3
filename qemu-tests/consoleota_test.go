package qemutests

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/patch"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/builder/release"
	"halogenos.internal/builder/vm"
)

// TestConsoleUpdate: at the recovery console the network comes up with the system
// image's drivers, a release is fetched from a web server, and the next start tries
// it. A stick's release would be taken as well.
// FAULTS 80
func TestConsoleUpdate(t *testing.T) {
	t.Parallel()
	p := provisioned(t)
	n := makeNewer(t, "testos-1", variant{})
	s := Serve(t)
	if _, err := release.Publish(t.Context(), release.Options{Build: n.dir, Server: s.Root, Channel: manifest.Stable, Now: time.Now(), Note: t.Logf}); err != nil {
		t.Fatal(err)
	}
	stick := filepath.Join(t.TempDir(), "stick.img")
	testkit.Run(t, "mkfs.vfat", "-C", stick, "131072")
	testkit.Run(t, "mcopy", "-s", "-i", stick, filepath.Join(s.Root, "x86_64"), "::")
	g := Machine(t, Options{State: p.State, VM: vm.Options{Network: true, Disks: []vm.Disk{{Path: stick, ReadOnly: true}}}})
	g.Expect(`halogen: press r for the recovery console`)
	g.typed("r")
	g.Expect(`\$ `)
	g.command("ota status", `halogen 1 for x86_64, epoch \d+, slot a, recovery console(?s:.*)WARNING: the root partition is not open`)
	g.command("ota fetch", "ota fetch: the root partition is not open: type `unlock` first")
	g.unlock(p.Notes[recoveryKeyNote])
	g.command("ota check --from /dev/vdb", `version 2 is newer than 1`)
	g.command("ota fetch --from "+s.URL, "this console has no network: type `network` first")
	g.command("network", `eth0: 10\.0\.2\.\d+/24`)
	g.command("ota channel beta && ota channel", `beta\n(?s:.*)beta\n`)
	g.command("ota bless", `no system runs`)
	g.command("ota check --from "+s.URL, `version 2 is newer than 1`)
	g.command("ota fetch --from "+s.URL, `version 2 is in slot b: restart to try it`)
	sent, size := Sent(s.Requests()), n.ImageSize
	if sent > size/2 {
		t.Errorf("%d bytes were fetched for an image of %d that is in slot a but for one block", sent, size)
	}
	g.typeLine("exit")
	g.Expect(`halogen: stage \(`)
	g.Expect(`halogen: reboot: `)
	r := g.Boot()
	r.Problems = nil // the stick has no partition table
	checkSecured(t, "after an update at the console", r)
	var conf struct{ Text string }
	if g.Do(&conf, "read", "/etc/halogen/ota.conf"); conf.Text != "Channel=beta\n" {
		t.Errorf("ota.conf holds %q", conf.Text)
	}
	g.PowerOff()
	wantUKIs(t, g.State(), "halogen_1.efi", "halogen_2+2-1.efi")
}

// TestPatches: a machine makes blocks of a newer release of its own by patches. Where these
// arrive damaged it fetches the blocks, and what was there before power was cut stays.
func TestPatches(t *testing.T) {
	t.Parallel()
	p := provisioned(t)
	s := Serve(t)
	publish := func(build string, from ...contract.Version) string {
		r, err := release.Publish(t.Context(), release.Options{Build: build, Server: s.Root, Channel: manifest.Stable, PatchFrom: from, Now: time.Now(), Note: t.Logf})
		must(t, err)
		return r.Directory
	}
	publish(filepath.Dir(Image(t, "testos-1")))
	dir := publish(makeNewer(t, "testos-1", variant{Changed: true}).dir, 1)
	file := filepath.Join(dir, patch.FileName(2, 1))
	good, err := os.ReadFile(file)
	must(t, err)
	damaged := bytes.Clone(good)
	damaged[len(damaged)/2] ^= 1
	must(t, os.WriteFile(file, damaged, 0o644))

	g := Machine(t, Options{State: p.State, VM: vm.Options{Network: true}})
	console := func() {
		g.Expect(`halogen: press r for the recovery console`)
		g.typed("r")
		g.Expect(`\$ `)
		g.unlock(p.Notes[recoveryKeyNote])
		g.command("network", `eth0: 10\.0\.2\.\d+/24`)
	}
	console()
	g.command("ota fetch --from "+s.URL, `a patch is of no use, and its blocks are fetched: (?s:.*)another SHA-256(?s:.*)version 2 is in slot b: restart to try it`)
	whole := Sent(s.Requests())

	publish(makeNewer(t, "testos-1", variant{Changed: true, Version: 3}).dir, 1)
	g.command("ota check --from "+s.URL, `version 3 is newer than 1`)
	g.typeLine("ota fetch --from " + s.URL)
	g.Expect(`checking system`)
	g.PowerCut()
	g.PowerOn()
	console()
	g.command("ota fetch --from "+s.URL, ` made of it by patches(?s:.*)version 3 is in slot b: restart to try it`)
	sent := int64(0)
	for _, r := range s.Requests() {
		if strings.Contains(r.Path, "/3/") {
			sent += r.Bytes
		}
	}
	t.Logf("%d bytes for version 2 without patches, %d for version 3 with them and in two tries", whole, sent)
	g.typeLine("exit")
	g.Expect(`halogen: stage \(`)
	g.Expect(`halogen: reboot: `)
	checkSecured(t, "after an update by patches", g.Boot())
	g.PowerOff()
	wantUKIs(t, g.State(), "halogen_1.efi", "halogen_3+2-1.efi")
}
