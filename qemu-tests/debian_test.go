package qemutests

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"halogenos.internal/boot/layout"
	"halogenos.internal/builder/vm"
)

// shellPrompt is what a shell of the Debian image is told to ask with: a text that
// the line which sets it does not hold.
const shellPrompt = "halogen-ready> "

// login logs in as root, with the password of a development image, at the login
// prompt that the console shows next.
func (g *Guest) login() {
	g.t.Helper()
	// On a host that is too busy systemd gives the terminal up, and nobody is asked to log in.
	if i, match := g.ExpectAny(`halogen login: `, `Timed out waiting for device [^\n]*ttyS0[^\n]*`); i != 0 {
		g.t.Fatalf("there is no login: %s", match[0])
	}
	g.typeLine("root")
	g.Expect(`Password: `)
	g.typeLine("halogen")
	g.Expect(`root@halogen:~# `)
	g.typeLine(`PS1=halogen-'ready> ' PS2= TERM=dumb; bind 'set enable-bracketed-paste off'; stty -echo; dmesg -n 1`)
	g.Expect(`\n` + shellPrompt)
}

// shell runs a line in the shell and returns what it printed, and its exit status.
func (g *Guest) shell(line string) (output string, status string) {
	g.t.Helper()
	if err := g.SendLine(line + `; echo "[$?]"`); err != nil {
		g.t.Fatal(err)
	}
	match := g.Expect(`(?s)^(.*)\[([0-9]+)\]\n` + shellPrompt)
	return strings.TrimSpace(match[1]), match[2]
}

// says runs a line in the shell that must succeed and print what the expression
// matches.
func (g *Guest) says(line, pattern string) string {
	g.t.Helper()
	output, status := g.shell(line)
	if status != "0" || !regexp.MustCompile(pattern).MatchString(output) {
		g.t.Errorf("%s: exit status %s, %q; want %q", line, status, output, pattern)
	}
	return output
}

// leave runs the line that ends the system. Whether the shell asks for another one
// before it is ended itself is not known.
func (g *Guest) leave(line string) {
	g.t.Helper()
	if err := g.SendLine(line); err != nil {
		g.t.Fatal(err)
	}
}

// TestDebian takes a Debian through its first boots to the login prompt, logs in and
// has Debian's own tools say what it stands on. The boot after that asks for nothing.
func TestDebian(t *testing.T) {
	t.Parallel()
	r := imageRelease(t, "debian-1")
	g := Machine(t, Options{Image: "debian-1", VM: vm.Options{Watchdog: vm.I6300ESB, Memory: debianMemoryMiB}})
	g.Expect(`halogen: initagent (\d\S*|unknown)\s`) // the first line says which
	g.Expect(`halogen: enroll \(`)
	g.Expect(`RECOVERY KEY:`)
	g.confirm()
	g.login()
	checkDebian(g, fmt.Sprintf("%x", []byte(r.RootHash)))
	checkModules(g)
	g.says("echo kept >/etc/kept && cp /etc/kept /var/lib/kept && cat /etc/machine-id >/var/lib/id", "")
	g.leave("systemctl poweroff")
	if reason := g.ExpectOff(); reason != "guest-shutdown" {
		t.Fatalf("the machine went off by %s", reason)
	}
	d := openDisk(t, g.State().Disk(), os.O_RDONLY)
	d.checkTable()
	d.checkESP()
	d.checkTree(fmt.Sprintf("%x", []byte(r.RootHash)))
	g.PowerOn()
	g.login()
	if text := g.Console().Text(); !strings.Contains(text, "halogen: unlock (") || strings.Contains(text, "ecovery key") {
		t.Error("the boot did not unlock the root partition by itself")
	}
	g.says("cat /etc/kept /var/lib/kept && cmp /etc/machine-id /var/lib/id", `^kept\nkept$`)
	g.PowerCut()
}

// checkDebian asks Debian's tools.
func checkDebian(g *Guest, root string) {
	g.t.Helper()
	g.says("findmnt -n -o SOURCE,FSTYPE,OPTIONS /", `^/dev/(mapper/system|dm-\d+) +erofs +ro,`)
	g.says("dmsetup ls | sort", `^root\s.*\nsystem\s`)
	g.says("dmsetup table system", `^0 \d+ verity 1 \S+ \S+ 4096 4096 \d+ 1 sha256 `+root+` [0-9a-f]{64}$`)
	g.says("dmsetup status system", ` verity V$`)
	g.says("dmsetup table root", `^0 \d+ crypt aes-xts-plain64 `)
	g.says("veritysetup status system", `root hash:\s+`+root)
	g.says("mokutil --sb-state", `SecureBoot enabled`)
	partition := g.says("lsblk -nrpo NAME,PARTLABEL | awk '$2 == \""+layout.RootLabel+"\" { print $1 }'", `^/dev/\w+$`)
	g.says("cryptsetup luksDump "+partition, `(?s)Version:\s+2\n.*aes-xts-plain64.*Keyslots:.*Tokens:`)
	g.says("cryptsetup status root", `(?s)type:\s+LUKS2.*cipher:\s+aes-xts-plain64`)
	g.says("touch /etc/x /var/x /home/x && rm /etc/x /var/x /home/x", `^$`)
	if _, status := g.shell("touch /usr/x"); status == "0" {
		g.t.Error("a file was made in /usr")
	}
	g.says("cat /sys/kernel/security/lockdown", `\[integrity\]`)
	// Units that failed are named, and there are to be none.
	g.says("systemctl is-system-running --wait; systemctl list-units --failed --no-legend --plain --no-pager", `^running$`)
}
