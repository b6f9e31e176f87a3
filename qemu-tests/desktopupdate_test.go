package qemutests

import (
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"halogenos.internal/boot/manifest"
	"halogenos.internal/builder/release"
	"halogenos.internal/builder/vm"
)

// What anna runs in a terminal of her session, each as one script: the calls that programs of
// a desktop make, by systemd's clients of Varlink and D-Bus. What they say is in /tmp/said.
//
// These are, in their order, the calls of GNOME Software's plugin and Discover's backend for
// systemd-sysupdate: of which bus/clients_test.go of otad has the sources.
var desktopScripts = map[string]string{
	"see": `busctl --system --no-pager --activatable list | grep -o '^org.freedesktop.sysupdate1' >activatable
call / Manager ListTargets
call /target/host Target GetAppStream
call /target/host Target GetVersion
call /target/host Target CheckNew
call /target/host Target GetAppStream
call /target/host Target Describe st 2 0
cat "$(cut -d'"' -f2 GetAppStream | sed s,^file://,,)" >metainfo
varlinkctl introspect /run/halogen/otad org.halogenos.Update >introspect
varlinkctl call --json=short /run/halogen/otad org.halogenos.Update.Check '{}' >Check
varlinkctl call --json=short /run/halogen/otad io.systemd.SysUpdate.CheckNew '{"target":{"class":"host"}}' >SysUpdate
`,
	// Somebody is asked for a password, and watches.
	"get": `dbus-monitor --system "type='signal',sender='org.freedesktop.sysupdate1'" >signals &
call /target/host Target Acquire st '' 0
varlinkctl call --more --json=short --timeout=infinity /run/halogen/otad org.halogenos.Update.Follow '{}' >Follow || true
until grep -q JobRemoved signals; do sleep 1; done
call /target/host Target Install st '' 0
until [ "$(grep -c JobRemoved signals)" = 2 ]; do sleep 1; done
call /target/host Target CheckNew
call /target/host Target Describe st 2 1
kill %1
`,
	// A setting to look for afterwards; and the screen saver would lock a session in which
	// nobody types while a fetch runs.
	"set": `xfconf-query -n -c xsettings -p /Net/ThemeName -t string -s HighContrastInverse
xfconf-query -n -c xfce4-screensaver -p /saver/enabled -t bool -s false
xfconf-query -n -c xfce4-power-manager -p /xfce4-power-manager/dpms-enabled -t bool -s false
xset s off -dpms
`,
	"again": `varlinkctl call --json=short --timeout=infinity /run/halogen/otad org.halogenos.Update.Restart '{"allowInteractiveAuthentication":true}' >Restart
`,
	"look": `xfconf-query -c xsettings -p /Net/ThemeName >theme
greet >greeting
varlinkctl call --json=short /run/halogen/otad org.halogenos.Update.News '{}' >News
varlinkctl call --json=short /run/halogen/otad org.halogenos.Update.History '{}' >History
`,
}

// scriptStart is before each: what it says is said in the terminal, too.
const scriptStart = `mkdir -p /tmp/said && cd /tmp/said || exit 1
call() { b=$1 f=$2 m=$3; shift 3; busctl --system --timeout=3600 call org.freedesktop.sysupdate1 /org/freedesktop/sysupdate1${b%/} org.freedesktop.sysupdate1.$f $m "$@" 2>&1 | tee $m; }
`

// runs has anna run a script in the terminal, and waits for its end.
func (g *Guest) runs(name string) {
	g.t.Helper()
	g.begins(name)
	g.waitsFor("test -e /tmp/said/" + name + ".done")
}

func (g *Guest) begins(name string) {
	g.t.Helper()
	script := base64.StdEncoding.EncodeToString([]byte(scriptStart + desktopScripts[name] + "touch " + name + ".done\n"))
	g.says("echo "+script+" | base64 -d >/tmp/"+name, "^$")
	g.pressText("bash /tmp/" + name + "\n")
}

// isAsked types anna's password where polkit's agent in the session asks for it.
func (g *Guest) isAsked(before picture, name string) picture {
	g.t.Helper()
	g.waitsFor("pgrep -f polkit-agent-helper")
	now := g.settles(before, name)
	g.pressText("secret\n")
	return now
}

// TestDesktopUpdate takes a desktop that somebody uses to its next release, which has one more
// package: seen, fetched and restarted into in the session, by the calls of the programs that
// desktops show updates with. The setting of the session and the file in /etc are there after it.
func TestDesktopUpdate(t *testing.T) {
	t.Parallel()
	first := desktop(t)
	s := Serve(t)
	text := filepath.Join(t.TempDir(), "notes.md")
	must(t, os.WriteFile(text, []byte("Urgency: high\nURL: https://example.org/2\n\nIt greets.\n"), 0o644))
	_, err := release.Publish(t.Context(), release.Options{
		Build: filepath.Dir(Image(t, "desktop-update-2")), Server: s.Root, Channel: manifest.Stable, Notes: text, Now: time.Now(), Note: t.Logf,
		Key: keyOf(filepath.Join(filepath.Dir(filepath.Dir(Image(t, "desktop-update-2"))), "update-key")),
	})
	must(t, err)
	g := Machine(t, Options{State: first.State, Timeout: desktopTimeout, VM: vm.Options{Memory: 3072, Screen: vm.HiddenScreen, Network: true, NoReboot: true}})
	g.login()
	g.says("systemctl --quiet mask --now fwupd-refresh.timer fwupd-refresh.service 2>&1", "") // it fails where no Internet is
	g.askServer(s)
	g.says("echo kept >/etc/kept; greet 2>&1; dpkg-query -W greet 2>&1; true", `(?s)not found.*no packages found`)
	before := g.opensTerminal(g.entersSession(picture{}, "update-1-login.png", "update-2-session.png"), "update-3-terminal.png")
	g.runs("set")
	before = g.settles(before, "update-4-setting.png")
	g.runs("see")
	before = g.settles(before, "update-5-seen.png")
	said, sent := g.seesUpdate(), Sent(s.Requests())

	g.begins("get")
	before = g.isAsked(before, "update-6-password.png")
	before = g.settles(before, "update-7-fetching.png")
	g.waitsFor("test -e /tmp/said/get.done") // with no second question
	g.settles(before, "update-8-fetched.png")
	g.fetchedInSession()
	// The list, its signature and the notes are beside what is said.
	if got := Sent(s.Requests()) - sent; got < said || got > said+1<<20 {
		t.Errorf("%d bytes were to be fetched, and the server has sent %d", said, got)
	}
	g.begins("again") // with no question: who sits before a machine may restart it, also with root logged in (logind's policy)
	g.startsAnew()
	g.Expect(`halogen: stage \(`)
	g.Expect(`halogen: reboot: `)
	g.startsAnew()

	g.login()
	g.says("cat /run/halogen/boot.json", `"version": "2"(?s:.*)"trial": true`)
	g.says("cat /etc/kept; dpkg-query -W greet", `^kept\ngreet\s+2$`)
	before = g.opensTerminal(g.entersSession(picture{}, "update-9-login.png", "update-10-session.png"), "update-11-terminal.png")
	g.isBlessed()
	g.runs("look")
	g.settles(before, "update-12-greets.png")
	g.says("cd /tmp/said && cat theme greeting", `^HighContrastInverse\nHello from version 2\.$`)
	g.says("cat /tmp/said/News", `It greets\.`)
	g.says("cat /tmp/said/History", `(?s)"2".*blessed`)
	g.says("pgrep -u anna xfce4-panel && loginctl list-sessions --no-legend | grep -c anna", `\d`)
	g.PowerCut()
}

// seesUpdate checks what anna's clients have said of the update, and returns how many bytes are
// to be fetched.
func (g *Guest) seesUpdate() int64 {
	g.t.Helper()
	for _, c := range []struct{ file, want string }{
		{"activatable", `^org.freedesktop.sysupdate1$`},
		{"ListTargets", `^a\(sso\) 1 "host" "host" "/org/freedesktop/sysupdate1/target/host"$`},
		{"GetVersion", `^s "1"$`}, {"CheckNew", `^s "2"$`}, {"GetAppStream", `^as 1 "file:///run/halogen/update.metainfo.xml"$`},
		{"Describe", `\\"version\\":\\"2\\".*\\"installed\\":false.*\\"fetch_size\\":\d+`},
		{"metainfo", `(?s)<release version="2" urgency="high">.*This machine fetches \d+\.\d MB of it\..*<p>It greets\.</p>`},
		{"introspect", `method Fetch`}, {"Check", `"version":"2".*"fetch_size":\d+.*It greets\.`}, {"SysUpdate", `^\{"available":"2"\}$`},
	} {
		g.says("cat /tmp/said/"+c.file, c.want)
	}
	var said struct {
		Offer struct {
			Fetch int64 `json:"fetch_size"`
		}
	}
	must(g.t, json.Unmarshal([]byte(g.says("cat /tmp/said/Check", "")), &said))
	g.t.Logf("%d bytes are to be fetched", said.Offer.Fetch)
	return said.Offer.Fetch
}

// fetchedInSession checks what they have said of the fetch.
func (g *Guest) fetchedInSession() {
	g.t.Helper()
	for _, c := range []struct{ file, want string }{
		{"Acquire", `^sto "2" \d+ "/org/freedesktop/sysupdate1/job/_\d+"$`}, {"Install", `^sto "2" \d+ "/org/freedesktop/sysupdate1/job/_\d+"$`},
		{"CheckNew", `^s ""$`}, {"Describe", `\\"installed\\":true.*\\"pending\\":true`},
		{"signals", `(?s)string "Progress"\s+variant\s+uint32 \d.*member=JobRemoved.*int32 0\b.*member=JobRemoved.*int32 0\b`},
		{"Follow", `"progress"`},
	} {
		g.says("cat /tmp/said/"+c.file, c.want)
	}
}
