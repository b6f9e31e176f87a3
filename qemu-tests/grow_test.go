package qemutests

import (
	"crypto/aes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/xts"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/testkit"
)

// small is a machine with slots of 256 MiB, off, whose root partition has files near its end.
// Its note has the recovery key.
func small(t *testing.T, image string) Provisioned {
	t.Helper()
	o := Options{Image: image, Timeout: 20 * time.Minute, VM: debianMachine()}
	return Provision(t, o, "small slots, off", func(g *Guest) map[string]string {
		g.Expect(`halogen: enroll \(`)
		g.startsAnew()
		key := g.Expect(shownKey)[1]
		g.confirm()
		g.login()
		// What is written where nearly all is taken lies where the rest is: at the end, too.
		g.says("df -m / /var; fallocate -l $(( $(df --output=avail -B1 /var | tail -n 1) - 400000000 )) /var/hole && sync", "")
		g.says(`for i in $(seq 40); do mkdir -p /var/kept/$i /home/kept/$i && head -c 3M /dev/urandom >/var/kept/$i/file && head -c 1M /dev/urandom >/home/kept/$i/file; done; sync`, "")
		g.says("rm /var/hole && cd / && find var/kept home/kept etc/machine-id -type f | sort | xargs sha256sum >/root/sums && wc -l </root/sums", `^81$`)
		g.leave("systemctl poweroff")
		g.ExpectOff()
		return map[string]string{recoveryKeyNote: key}
	})
}

// keptFiles checks that all files are as they were.
func (g *Guest) keptFiles() {
	g.t.Helper()
	g.says("cd / && sha256sum --quiet -c /root/sums; dmesg | grep -iE 'ext4-fs error|btrfs (error|critical)' || true", `^$`)
}

// asksForSlots has the machine ask for slots of so many MiB.
func (g *Guest) asksForSlots(mib int) {
	g.t.Helper()
	g.says(fmt.Sprintf("ota grow --to %dM --yes", mib), `restart`)
}

// growsAtRestart restarts the machine, which makes its slots larger, and logs in.
func (g *Guest) growsAtRestart() {
	g.t.Helper()
	began := time.Now()
	g.leave("systemctl reboot")
	g.startsAnew()
	g.Expect(`halogen: grow-slots \(`)
	g.Expect(`halogen: reboot: `)
	g.startsAnew()
	g.login()
	g.t.Logf("the slots are larger, and the system is up, after %v", time.Since(began).Round(time.Second))
	g.says("cat /var/lib/halogen/growth.json", `"done":true`)
	g.says("test -e /var/lib/halogen/grow.json || echo none", `^none$`)
}

// startsVersion restarts the machine and checks which version comes up.
func (g *Guest) startsVersion(version string) {
	g.t.Helper()
	g.leave("systemctl reboot")
	g.startsAnew()
	g.login()
	g.says("cat /run/halogen/boot.json", `"version": "`+version+`"`)
}

// checkGrown has sgdisk, cryptsetup and the file system's own program judge a machine that is
// off: both slots have two extents of 384 MiB together, and the root partition's file system is
// whole and ends within it.
func checkGrown(t *testing.T, p Provisioned, fileSystem string) {
	t.Helper()
	d := openDisk(t, p.State.Disk(), os.O_RDONLY)
	d.checkTable()
	sizes := map[string]int{}
	for _, p := range regexp.MustCompile(`(?m)^ +\d+ +(\d+) +(\d+) .* (\S+) *$`).FindAllStringSubmatch(testkit.Run(t, "sgdisk", "-p", d.Name()), -1) {
		first, err := strconv.Atoi(p[1])
		must(t, err)
		last, err := strconv.Atoi(p[2])
		must(t, err)
		sizes[p[3]] = (last + 1 - first) / 2048 // MiB
	}
	for _, slot := range []string{"a", "b"} {
		if first, second := sizes["system-"+slot], sizes["system-"+slot+"-2"]; first != 256 || second != 128 {
			t.Errorf("system-%s has %d MiB, and its second extent %d; want 256 and 128", slot, first, second)
		}
		if sizes["verity-"+slot+"-2"] == 0 {
			t.Errorf("verity-%s has no second extent", slot)
		}
	}
	volume := d.cut(layout.Root)
	checkLUKS(t, p, volume)
	checkFileSystem(t, p, volume, fileSystem)
}

// checkFileSystem has the file system's own program look at what a volume holds, by the key that
// cryptsetup takes out of it.
func checkFileSystem(t *testing.T, p Provisioned, volume, fileSystem string) {
	t.Helper()
	keyFile := filepath.Join(t.TempDir(), "key")
	cmd := exec.Command(testkit.Need(t, "cryptsetup"), "luksDump", "--batch-mode", "--dump-volume-key", "--volume-key-file", keyFile, "--key-file", "-", volume)
	cmd.Stdin = strings.NewReader(p.Notes[recoveryKeyNote])
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cryptsetup luksDump --dump-volume-key: %v: %s", err, out)
	}
	key, err := os.ReadFile(keyFile)
	must(t, err)
	match := regexp.MustCompile(`(?s)Data segments:.*offset: (\d+) \[bytes\].*sector: (\d+) \[bytes\]`).FindStringSubmatch(testkit.Run(t, "cryptsetup", "luksDump", volume))
	if match == nil {
		t.Fatal("luksDump shows no data segment")
	}
	offset, err := strconv.ParseInt(match[1], 10, 64)
	must(t, err)
	sector, err := strconv.Atoi(match[2])
	must(t, err)
	plain := decryptVolume(t, volume, key, offset, sector)
	if fileSystem == "btrfs" {
		testkit.Run(t, "btrfs", "check", "--readonly", plain)
		return
	}
	testkit.Run(t, "e2fsck", "-fn", plain)
}

// decryptVolume writes what a volume of aes-xts-plain64 holds from an offset in bytes on into a file.
// The numbers of sectors are those of 512 bytes, as dm-crypt counts them.
func decryptVolume(t *testing.T, volume string, key []byte, offset int64, sector int) string {
	t.Helper()
	c, err := xts.NewCipher(aes.NewCipher, key)
	must(t, err)
	in, err := os.Open(volume)
	must(t, err)
	defer in.Close()
	out, err := os.Create(filepath.Join(t.TempDir(), "plain.img"))
	must(t, err)
	defer out.Close()
	b := make([]byte, 1<<20)
	for at := int64(0); ; at += int64(len(b)) {
		n, err := in.ReadAt(b, offset+at)
		for s := 0; s+sector <= n; s += sector {
			c.Decrypt(b[s:s+sector], b[s:s+sector], uint64(at+int64(s))/512)
		}
		_, werr := out.WriteAt(b[:n], at)
		must(t, werr)
		if errors.Is(err, io.EOF) {
			return out.Name()
		}
		must(t, err)
	}
}

// grows takes a machine with slots of 256 MiB to the release that needs 384: what is in the way
// is said, the root partition is made smaller, and version 2 runs in both extents.
func grows(t *testing.T, image, next, fileSystem string) *Guest {
	t.Helper()
	p := small(t, image)
	s := Serve(t)
	publish(t, s, next)
	g := Machine(t, Options{Image: image, State: p.State, Timeout: 20 * time.Minute, VM: debianMachine()})
	g.login()
	g.askServer(s)
	g.says("ota check 2>&1; [ $? = 3 ]", `ota grow`)
	g.says("ota fetch 2>&1; [ $? = 3 ]", `needs slots of 384 MiB(?s:.*)ota grow`)
	g.asksForSlots(384)
	g.says("ota status", `asked for slots of 384 MiB`)
	// A root partition too full says how much is missing; nothing changes.
	g.says("fallocate -l $(( $(df --output=avail -B1 /var | tail -n 1) - 180000000 )) /var/hole && sync", "")
	g.leave("systemctl reboot")
	g.startsAnew()
	g.Expect(`too full[^\n]*`)
	g.login()
	g.says("ota status", `too full: [^\n]*delete \d+ MiB`)
	g.keptFiles()
	g.says("rm /var/hole", "")
	g.asksForSlots(384)
	g.growsAtRestart()
	g.keptFiles()
	g.leave("systemctl poweroff")
	g.ExpectOff()
	checkGrown(t, Provisioned{State: g.State(), Notes: p.Notes}, fileSystem)
	g.PowerOn()
	g.login()
	g.updates(2)
	g.isBlessed()
	g.keptFiles()
	g.says("stat -c %s /usr/share/halogen/random; sha256sum </usr/share/halogen/random | cut -c 1-8", `^100663296\n[0-9a-f]{8}$`)
	return g
}

// TestGrow makes the slots of a machine with ext4 larger for a release that does not fit them,
// goes back to the one before, and on to the next.
// FAULTS 116
func TestGrow(t *testing.T) {
	t.Parallel()
	g := grows(t, "grow-1", "grow-2", "ext4")
	g.says("ota rollback", `version 2 is given up`)
	g.startsVersion("1")
	g.keptFiles()
	g.says("ota retry 2", `tried again`)
	g.updates(2)
	g.isBlessed()
	g.keptFiles()
	s := Serve(t)
	publish(t, s, "grow-3")
	g.askServer(s)
	g.updates(3) // into the slot of version 1
	g.isBlessed()
	g.keptFiles()
	g.PowerCut()
}

// TestGrowBtrfs is TestGrow with btrfs, which the kernel makes smaller.
// FAULTS 116
func TestGrowBtrfs(t *testing.T) {
	t.Parallel()
	g := grows(t, "grow-btrfs-1", "grow-btrfs-2", "btrfs")
	g.says("ota rollback", `version 2 is given up`)
	g.startsVersion("1")
	g.keptFiles()
	g.PowerCut()
}

// TestGrowCuts cuts the power at ten moments of the start that makes the slots larger: each
// machine is cut twice, and then goes on to what an undisturbed one comes to.
// FAULTS 116
func TestGrowCuts(t *testing.T) {
	t.Parallel()
	p := small(t, "grow-1")
	o := Options{Image: "grow-1", State: p.State, Timeout: 20 * time.Minute, VM: debianMachine()}
	asked := Provision(t, o, "asked to grow, off", func(g *Guest) map[string]string {
		g.login()
		g.asksForSlots(384)
		g.leave("systemctl poweroff")
		g.ExpectOff()
		return p.Notes
	})
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	later := func(least, most time.Duration) time.Duration {
		return least + time.Duration(r.Int64N(int64(most-least)))
	}
	for _, m := range [][2]moment{
		{{`grow-slots: to shrink`, later(0, time.Second)}, {`e2fsck and resize2fs`, 0}},
		{{`e2fsck and resize2fs`, later(0, 3*time.Second)}, {`e2fsck and resize2fs`, later(3*time.Second, 8*time.Second)}},
		{{`the snapshot has used`, 0}, {`the snapshot has used`, later(0, time.Second)}},
		{{`MiB wait on the partition`, later(0, 500*time.Millisecond)}, {`MiB wait on the partition`, later(0, 2*time.Second)}},
		{{`redo: done`, 0}, {`the partition table is written`, 0}},
	} {
		g := newGuest(t, Options{Image: "grow-1", State: asked.State, Timeout: 20 * time.Minute, VM: debianMachine()})
		cuts := 0
		for _, m := range m {
			if g.cutGrowing(m) {
				cuts++
			} else {
				t.Logf("no start came to %q any more", m.shown)
			}
		}
		t.Logf("%d cuts", cuts)
		g.PowerOn()
		if i, _ := g.ExpectAny(`halogen: grow-slots \(`, `halogen login: `); i == 0 {
			g.Expect(`halogen: reboot: `)
			g.startsAnew()
			g.login()
		} else {
			g.typeLine("")
			g.login()
		}
		g.keptFiles()
		g.says("cat /var/lib/halogen/growth.json", `"done":true`)
		g.leave("systemctl poweroff")
		g.ExpectOff()
		if said := g.Console().Text(); regexp.MustCompile(`Recovery key \(`).MatchString(said) {
			t.Error("the machine asked for the recovery key")
		}
		checkGrown(t, Provisioned{State: g.State(), Notes: p.Notes}, "ext4")
	}
}

// cutGrowing switches the machine on and cuts the power at the moment; false when it got to its
// system first.
func (g *Guest) cutGrowing(m moment) bool {
	g.t.Helper()
	g.PowerOn()
	defer g.PowerCut()
	i, _ := g.ExpectAny(m.shown, `halogen login: `)
	if i == 0 {
		time.Sleep(m.after)
	}
	return i == 0
}
