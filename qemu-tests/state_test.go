package qemutests

import (
	"fmt"
	"strings"
)

// bothChanged are the files that an administrator and version 3 have changed in one place.
var bothChanged = []string{`bindresvport\.blacklist`, `issue\.net`}

// What an administrator changes in the files that belong to the system. A later version
// changes the same files (qemu-tests/update/small, qemu-tests/inits/daemon), brings a
// daemon with the number of local950, and a directory in /var/lib.
const administration = `set -e
useradd -m -s /bin/sh anna
echo anna:a-word-of-hers | chpasswd
useradd -r -u 950 local950
sed -i 's/^PASS_MAX_DAYS.*/PASS_MAX_DAYS\t999/' /etc/login.defs
echo owner >/etc/issue.net
echo '# owner' >>/etc/bindresvport.blacklist
rm /etc/gai.conf
mkdir -p /etc/systemd/system
printf '[Service]\nExecStart=/bin/true\n' >/etc/systemd/system/mine.service
echo '# mine' >/etc/cron.d/mine
`

// digests is what the administrator's files have, for a fallback to find again.
const digests = `cd /etc && cat passwd shadow group gshadow subuid subgid login.defs issue.net bindresvport.blacklist systemd/system/mine.service cron.d/mine | sha256sum; ls /etc/gai.conf 2>&1; cd`

// administrates does it, and returns the digests.
func (g *Guest) administrates() string {
	g.t.Helper()
	g.says("("+strings.ReplaceAll(administration, "\n", "; ")+"grep -h ^anna: /etc/subuid /etc/subgid | wc -l)", `^2$`)
	return g.says(digests, `No such file`)
}

// carriedState checks what the first start of a system with the daemon has made of it.
// conflicting are the files that wait for a decision, in order.
func (g *Guest) carriedState(conflicting ...string) {
	g.t.Helper()
	// The daemon runs as its user, whose number was given away.
	g.says(`for p in /proc/[0-9]*; do grep -qx sleep $p/comm && stat -c %U $p; done 2>/dev/null | grep halotest`, `^halotest$`)
	numbers := strings.Fields(g.says("id -u local950; id -u halotest; id -g halotest; stat -c '%U:%G %a' /var/lib/halotest", ""))
	if len(numbers) != 5 || numbers[0] != "950" || numbers[1] == "950" || numbers[2] != numbers[1] || numbers[3] != "halotest:halotest" || numbers[4] != "750" {
		g.t.Errorf("numbers and directory of the daemon: %q; want 950, another one twice, and the daemon's directory", numbers)
	}
	g.says("cat /var/lib/halotest-data/readme", `^brought by version 3$`)
	// The owner's users, files and deletions are there; both sides' changes are merged.
	g.says("id -u anna; grep -h ^anna: /etc/passwd /etc/shadow /etc/group /etc/gshadow /etc/subuid /etc/subgid | wc -l; ls -d /home/anna", `^1000\n6\n/home/anna$`)
	g.says(`grep -E '^(PASS_MAX_DAYS|LOGIN_RETRIES)' /etc/login.defs`, `^PASS_MAX_DAYS\s+999\nLOGIN_RETRIES\s+4$`)
	g.says("ls -1 /etc/gai.conf /etc/cron.d/mine /etc/systemd/system/mine.service 2>&1; true", `gai.conf.*No such file[^\n]*\n/etc/cron.d/mine\n/etc/systemd/system/mine.service$`)
	g.says("stat -c '%a %U:%G' /etc/passwd /etc/shadow", `^644 root:root\n640 root:shadow$`)
	// What both changed is the owner's, and listed.
	g.says("cat /etc/issue.net; tail -n 1 /etc/bindresvport.blacklist", `^owner\n# owner$`)
	g.says("halogenctl changes --json | cat", `(?s)`+strings.Join(conflicting, ".*"))
	g.says("ota status | cat", fmt.Sprintf(`\n%d files were changed both here and by an update`, len(conflicting)))
}

// keepsHome resets an administrated machine, which asks at its next start, and checks what
// is left: the accounts of people with what they have, and nothing else of its own.
func (g *Guest) keepsHome() {
	g.t.Helper()
	const account = "cd /etc && grep -h ^anna: passwd shadow subuid subgid; cat /home/anna/letter; cd"
	g.says("usermod -a -G sudo anna && echo dear >/home/anna/letter && chown anna: /home/anna/letter && echo theirs >/var/lib/db", "")
	had, id := g.says(account, "(?s)^anna:.*dear$"), g.says("cat /etc/machine-id", `^\w{32}$`)
	g.says("halogenctl reset --keep-home", "The next start asks for the machine's name, and then deletes all but /home")
	g.leave("systemctl reboot")
	g.startsAnew()
	g.Expect(`A RESET THAT KEEPS /home`)
	g.Expect(`\n  anna, number 1000, in [^\n]*sudo`)
	g.Expect(`Type the machine's name, halogen, to do it: `)
	g.typeLine("halogen")
	g.Expect(`halogen: keep-home \(`)
	g.Expect(`halogen: carry-state \(`)
	g.login()
	if has := g.says(account, ""); has != had {
		g.t.Errorf("after the reset the account has %s; it had %s", has, had)
	}
	g.says("id -nG anna; stat -c %U /home/anna /home/anna/letter", `^anna\b[^\n]*\bsudo\nanna\nanna$`)
	g.says("id local950 2>&1; ls /var/lib/db /etc/cron.d/mine /etc/systemd/system/mine.service 2>&1; true", `(?s)no such user.*/var/lib/db.*No such file.*cron.d/mine.*No such file.*mine.service.*No such file`)
	g.says("cat /etc/issue.net /etc/gai.conf | head -n 1", `Debian`)
	if now := g.says("cat /etc/machine-id", `^\w{32}$`); now == id {
		g.t.Errorf("after the reset the machine ID is %s still", now)
	}
	g.says("ls /run/state; find /run/state/snapshots -mindepth 1 2>/dev/null; true", `^(bind|halogen|lost\+found|systems|\s)*$`)
	g.says("systemctl is-system-running --wait; systemctl list-units --failed --no-legend --plain --no-pager", `^running$`)
}
