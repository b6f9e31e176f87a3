package qemutests

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/bls"
)

// A layoutSystem is a system without systemd, laid out in another way than the recipes'.
type layoutSystem struct {
	name string
	// Lines of the shell that show how it differs, and what they print.
	says [][2]string
	// cron is where its cron finds the line that fetches updates.
	cron string
}

// sysvCron is where Debian's cron reads the line that the image has.
const sysvCron = "/etc/cron.d/ota"

var layoutSystems = []layoutSystem{
	// A boot manager and a stub of 2023, which measure otherwise than today's.
	{"sysvinit", [][2]string{
		{"cat /proc/1/comm && ! test -e /run/openrc", `^init$`},
		{"modinfo -n virtio_net", `^/lib/modules/\S*/virtio_net\.ko$`},
	}, sysvCron},
	{"openrc", [][2]string{
		{"cat /proc/1/comm && rc-status -f ini default | grep ota", `^init\nota *= *started`},
		{"for d in bin lib sbin; do stat -c %F /$d; done; ! test -e /usr/lib/modules", `^directory\ndirectory\ndirectory$`}, // /usr is not merged
		{"modinfo -n virtio_net; lsmod | grep -c ^virtio_net", `^/lib/modules/\S*/virtio_net\.ko\.zst\n1$`},
		{"cat /sys/module/apparmor/parameters/enabled && head -n 1 /sys/kernel/security/apparmor/profiles", `^Y\n\S.* \(\w+\)$`},
	}, sysvCron},
	{"busybox", [][2]string{
		{"readlink /proc/1/exe && pidof crond watchdog", `^/usr/bin/busybox\n\d+ \d+$`},
		{"readlink /home /usr/etc", `^var/home\n\.\./etc$`}, // as ostree has them
		{"cd /lib/modules/*/ && find . -name ext4.ko* -o -name dm-crypt.ko* -o -name virtio_net.ko* | sed 's,.*/,,' | sort; cd; lsmod | grep -cE '^(ext4|dm_crypt|virtio_net) '", `^dm-crypt.ko.gz\next4.ko.zst\nvirtio_net.ko\n3$`},
		// A program that musl loads; nobody may read by its capability, and by a list.
		{"su -s /bin/sh nobody -c 'musl-cat /etc/shadow | head -c 5; cat /usr/share/odd/list; cat /etc/shadow || true' 2>&1", `^root:odd\ncat: .*Permission denied$`},
		{"cd /usr/share/odd && ls links | wc -l && cat links/65536; cd", `^65537\nodd$`},
		// Before 1970 is 1970, and what has not come yet is the build's date.
		{"cd /usr/share/odd && stat -c '%n %u %g %Y' owner old new; cd", `^owner 4000000000 3000000000 1000000000\nold 0 0 0\nnew 0 0 1\d{9}$`},
		{`cd /usr/share/odd && cat not-$'\377\376'-utf8 "$(printf n%.0s $(seq 254))"; cd`, `^odd\nodd$`},
		{"getfattr -n security.selinux --only-values --absolute-names /usr/share/odd/label", `^system_u:object_r:usr_t:s0`},
	}, "/etc/crontabs/root"},
}

// layoutStories are the images that a machine runs one after the other: the first is
// installed, and each fetches the next. Each system is kept by its own script in one
// of them, and starts on an empty root partition or after another's.
var layoutStories = [][]string{
	{"openrc-1", "sysvinit-2", "busybox-3"},
	{"busybox-3", "openrc-4"},
}

// TestLayouts has systems without systemd live with the toolkit: with System V's init,
// OpenRC and busybox, /usr merged or not, and everything in the tree that the tools
// which read and write it stumble over. Updates are fetched by the line that each one's
// cron has, and kept by the script that each one's init starts. What the owner of the first
// has changed in /etc is there after a trial that failed, and merged after one that did not.
// FAULTS 105, 106, 112 (M14)
func TestLayouts(t *testing.T) {
	t.Parallel()
	for _, story := range layoutStories {
		t.Run(strings.Join(story, ","), func(t *testing.T) {
			t.Parallel()
			live(t, story)
		})
	}
}

// layoutOf returns what an image such as openrc-1 is.
func layoutOf(t *testing.T, image string) layoutSystem {
	t.Helper()
	name, _, _ := strings.Cut(image, "-")
	for _, s := range layoutSystems {
		if s.name == name {
			return s
		}
	}
	t.Fatalf("no system is called %s", name)
	return layoutSystem{}
}

func live(t *testing.T, story []string) {
	server := Serve(t)
	g := Machine(t, Options{Image: story[0], Timeout: 15 * time.Minute, VM: debianMachine()})
	began := time.Now()
	g.Expect(`reboot: `)
	g.startsAnew()
	g.Expect(`RECOVERY KEY:`)
	g.confirm()
	g.login()
	g.is(layoutOf(t, story[0]))
	t.Logf("%s is set up after %v", story[0], time.Since(began).Round(time.Second))
	g.says("mkdir -p /etc/halogen && echo Server="+server.URL+" >/etc/halogen/ota.conf && echo kept >/etc/kept && echo kept >/var/lib/kept", "")
	owned := story[1] == "sysvinit-2" // the next system is made for it
	var changed string
	if owned {
		changed = g.administrates()
		g.says(`mkdir -p /etc/halogen/health.d && printf '#!/bin/sh\nexit 1\n' >/etc/halogen/health.d/never && chmod 755 /etc/halogen/health.d/never`, "")
	}
	for i, image := range story[1:] {
		began = time.Now()
		publish(t, server, image)
		g.fetches(layoutOf(t, story[i]))
		if owned && i == 0 {
			g.losesTrial()
			if now := g.says(digests, ""); now != changed {
				t.Errorf("after the fallback /etc has %s; it had %s", now, changed)
			}
			g.says("rm /etc/halogen/health.d/never; ota retry 2", "")
			g.fetches(layoutOf(t, story[i]))
		}
		g.leave("reboot")
		g.startsAnew()
		g.Expect(`halogen: stage \(`)
		g.startsAnew()
		g.login()
		version := image[strings.LastIndex(image, "-")+1:]
		g.says("cat /run/halogen/boot.json", fmt.Sprintf(`"version": "%s"(?s:.*)"trial": true`, version))
		g.says("for i in $(seq 100); do ota status | head -n 1 | grep -q blessed && break; sleep 2; done; ota status | head -n 1", `(?m)^halogen `+version+` for .*, blessed$`)
		g.is(layoutOf(t, image))
		g.says("cat /etc/kept /var/lib/kept", `^kept\nkept$`)
		if text := g.Console().Text(); !strings.Contains(text, "halogen: unlock (") || strings.Contains(text, "ecovery key") {
			t.Errorf("%s did not unlock the root partition by itself", image)
		}
		if owned && i == 0 {
			g.carriedState(bothChanged...)
		}
		t.Logf("%s is blessed after %v", image, time.Since(began).Round(time.Second))
	}
	g.PowerCut()
}

// losesTrial has a fetched version 2 fail its health check, which it has from the owner, and
// comes back to the system before it.
func (g *Guest) losesTrial() {
	g.t.Helper()
	g.leave("reboot")
	g.startsAnew()
	g.Expect(`halogen: stage \(`)
	g.Expect(`halogen: reboot: `)
	g.endsAtRestart()
	// Two of its three tries are taken as failed, or this would take minutes more.
	mtools(g.t, g.State(), "mren", "::"+bls.Directory+"/halogen_2+3.efi", "::"+bls.Directory+"/halogen_2+1-2.efi")
	g.PowerOn()
	g.Expect(`halogen: carry-state \(`)
	g.startsAnew()
	g.login()
	g.says("cat /run/halogen/boot.json", `"version": "1"(?s:.*)"trial": false`)
}

// is checks that the running system is what it is to be, and that it was verified.
func (g *Guest) is(s layoutSystem) {
	g.t.Helper()
	g.says("grep ' / ' /proc/mounts | tail -n 1", `^/dev/\S+ / erofs ro,`)
	g.says("! test -e /run/systemd/system", "")
	g.says("touch /etc/x /var/x /home/x && rm /etc/x /var/x /home/x && echo written", `written$`)
	g.says("halogenctl slots", "")
	for _, line := range s.says {
		g.says(line[0], line[1])
	}
}

// fetches runs the line of cron's, without what waits for the night.
func (g *Guest) fetches(s layoutSystem) {
	g.t.Helper()
	g.says("for i in $(seq 60); do ip route | grep -q ^default && break; sleep 1; done; "+
		`sh -c "$(sed -n 's/.*&& nice/nice/p' `+s.cron+`)"`, "")
}
