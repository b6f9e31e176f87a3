package osfiles

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/testkit"
)

// updating are Debian's units that wait for an update, in an order that their own
// dependencies allow.
var updating = []string{"systemd-sysusers.service", "ldconfig.service", "systemd-hwdb-update.service", "systemd-journal-catalog-update.service", "systemd-update-done.service"}

// firstStart runs, in an overlay of Debian's root file system ($1) whose /usr cannot be
// written to, what systemd would at the first starts of some images. $2 is an empty
// directory, and the units follow. systemd itself judges which would run.
const firstStart = `
debian=$1 work=$2
shift 2
mount -t tmpfs tmpfs "$work"
cd "$work"
mkdir upper work root
mount -t overlay overlay -o "lowerdir=$debian,upperdir=upper,workdir=work" root
mount --rbind /proc root/proc
run() { chroot root "$@" </dev/null; }

# The image: dated as the builder does, with a daemon's user and a catalog.
rm -f root/etc/.updated root/var/.updated
echo 'u halogen-new - "of the new release"' >root/usr/lib/sysusers.d/new.conf
echo /usr/lib/halogen-new >root/etc/ld.so.conf.d/new.conf
# The machine: a user and a keyboard of its own.
echo 'admin:x:1000:1000::/home/admin:/bin/sh' >>root/etc/passwd
mkdir -p root/etc/udev/hwdb.d
printf 'evdev:input:b0003v1111p2222*\n KEYBOARD_KEY_70039=leftctrl\n' >root/etc/udev/hwdb.d/50-own.hwdb
mount --bind root/usr root/usr

wanted() { # UNIT...: those that would run
	for unit; do
		if run systemd-analyze condition --unit="$unit" >/dev/null 2>&1; then
			printf ' %s' "$unit"
		fi
	done
}
start() { # WHAT DATE UNIT...
	what=$1
	mount -o remount,bind,rw root/usr
	touch -d "@$2" root/usr
	mount -o remount,bind,ro root/usr
	shift 2
	started=$(wanted "$@")
	for unit in $started; do
		run sh -c "$(sed -n 's/^ExecStart=//p' "root/usr/lib/systemd/system/$unit")" >said 2>&1 || { echo "$unit failed:"; cat said; }
	done
	echo "$what:$started"
	echo "$what, then:$(wanted "$@")"
}
drop() { rm -f root/etc/.updated root/var/.updated; } # an /etc and a /var that were not updated yet

start first 1764000000 "$@"
run getent passwd admin halogen-new | cut -d: -f1,5
[ -s root/etc/udev/hwdb.bin ] && [ root/var/lib/systemd/catalog/database -nt root/usr/lib/os-release ] && echo databases
touch root/usr/x 2>/dev/null && echo "/usr can be written to"
start restarted 1764000000 "$@"
start newer 1765000000 "$@"
drop
start 'of the same date' 1765000000 "$@"
drop
start 'of 1970' 0 "$@"
`

// What waits for an update in a real Debian runs once at the first start of a newer image,
// and without the notes of the last one whatever its date, with /usr read-only and an /etc that the machine has changed.
func TestDebianUpdates(t *testing.T) {
	debian := testkit.Debian(t)
	found, err := exec.CommandContext(t.Context(), "grep", "-rlE", "^ConditionNeedsUpdate=", debian+"/"+units).Output()
	if err != nil {
		t.Fatal(err)
	}
	var have []string
	for name := range strings.FieldsSeq(string(found)) {
		have = append(have, strings.TrimPrefix(name, debian+"/"+units))
	}
	if slices.Sort(have); !slices.Equal(have, slices.Sorted(slices.Values(updating))) {
		t.Errorf("for an update wait %q, want %q: is the list here complete?", have, updating)
	}
	args := []string{"--mount"}
	if os.Geteuid() != 0 {
		args = append(args, "--map-root-user")
	}
	args = append(args, "sh", "-eufc", firstStart, "sh", debian, t.TempDir())
	said := testkit.Run(t, "unshare", append(args, updating...)...)
	all := " " + strings.Join(updating, " ")
	want := "first:" + all + "\nfirst, then:\nadmin:\nhalogen-new:of the new release\ndatabases\nrestarted:\nrestarted, then:\n"
	for _, image := range []string{"newer", "of the same date", "of 1970"} {
		want += image + ":" + all + "\n" + image + ", then:\n"
	}
	if said != want {
		t.Errorf("systemd says:\n%s\nwant:\n%s", said, want)
	}
}
