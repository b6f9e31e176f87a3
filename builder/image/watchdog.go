package image

import (
	"path"
	"regexp"
	"strings"
)

// maxSystemConf bounds a configuration file of systemd's, in bytes.
const maxSystemConf = 1 << 20

// systemConf is where systemd's manager is told to feed a watchdog
// (systemd-system.conf(5)).
var systemConf = []string{"etc/systemd", "usr/lib/systemd", "usr/local/lib/systemd"}

// watchdogDaemons feed one where systemd does not: of the package watchdog, and busybox.
var watchdogDaemons = []string{"usr/sbin/watchdog", "sbin/watchdog", "usr/sbin/wd_keepalive", "sbin/wd_keepalive", "usr/bin/watchdog"}

var feedsWatchdog = regexp.MustCompile(`(?m)^\s*RuntimeWatchdogSec\s*=\s*(.+?)\s*$`)

// hungry warns of a system that feeds no watchdog, to which initagent hands one over
// running: each machine that has one would restart for ever.
func (b *build) hungry() {
	if b.Config.WatchdogSeconds == 0 || b.fed() {
		return
	}
	how := "install a watchdog daemon"
	if b.tree.HasSystemd() {
		how = "set RuntimeWatchdogSec= in /etc/systemd/system.conf.d"
	}
	b.Progress.Note("WARNING: nothing was found in the image that feeds a hardware watchdog, and Watchdog=%d of [Image] hands one over running: a machine that has one restarts %d s after each start. If nothing feeds it, say Watchdog=off, or %s",
		b.Config.WatchdogSeconds, b.Config.WatchdogSeconds, how)
}

// fed reports whether the image has what can feed a watchdog.
func (b *build) fed() bool {
	if !b.tree.HasSystemd() {
		for _, name := range watchdogDaemons {
			if _, err := b.tree.Resolve(name); err == nil {
				return true
			}
		}
		return false
	}
	for _, dir := range systemConf {
		files := []string{path.Join(dir, "system.conf")}
		more, _ := b.tree.List(path.Join(dir, "system.conf.d")) // most have none
		for _, name := range more {
			if strings.HasSuffix(name, ".conf") {
				files = append(files, path.Join(dir, "system.conf.d", name))
			}
		}
		for _, name := range files {
			text, err := b.tree.ReadFile(name, maxSystemConf)
			if err != nil {
				continue
			}
			for _, m := range feedsWatchdog.FindAllSubmatch(text, -1) {
				if v := string(m[1]); v != "0" && v != "off" {
					return true
				}
			}
		}
	}
	return false
}
