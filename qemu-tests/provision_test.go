package qemutests

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/extension"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/builder/vm"
	"halogenos.internal/qemu-tests/testos/protocol"
)

// Names of what the shared machine's life is remembered by.
const (
	recoveryKeyNote = "recovery-key" // shown once, on the second boot
	firstBootNote   = "console-1"    // the console from power on to the second boot's report
	thirdBootNote   = "console-3"    // the console of the third boot
	secondReport    = "report-2"
	thirdReport     = "report-3"
)

// shownKey matches the recovery key where the second boot shows it.
const shownKey = `RECOVERY KEY:\s+((?:[cbdefghijklnrtuv]{8}-){7}[cbdefghijklnrtuv]{8})\s`

// asksForKey is where a boot stands that the TPM did not unlock.
const asksForKey = `Recovery key \(an empty line opens the recovery console\): `

// What the second boot writes and the third must find.
var keptFiles = map[string]string{"/etc/kept": "in the overlay", "/var/lib/kept": "in a directory of its own", "/home/kept": "at home"}

// provisioned returns the machine that most boot tests start from: it has made its
// keys and its root partition, and was unlocked by its TPM once.
func provisioned(t testing.TB) Provisioned {
	t.Helper()
	return Provision(t, Options{Image: "testos-1"}, "provisioned-1", bringUp)
}

// provisionedAtInit is the same machine in its fourth boot (see atInit).
func provisionedAtInit(t testing.TB) Provisioned {
	t.Helper()
	return atInit(t, "testos-1", "provisioned-1", provisioned(t))
}

// refusedAtInit is the same machine in a boot in which its TPM opens nothing: db holds the
// machine's own certificate twice.
func refusedAtInit(t testing.TB) Provisioned {
	t.Helper()
	p := provisioned(t)
	const kind = "provisioned-1, own certificate twice"
	o := Options{Image: "testos-1", State: p.State, Prepare: func(s vm.State) error { return ownTwice(t, s) }}
	return suspendedAtInit(t, o, kind, p.Notes)
}

// bringUp lets a new machine provision itself, and gives it a third boot, the first
// one that the TPM unlocks.
func bringUp(g *Guest) map[string]string {
	key, report := g.provision()
	notes := map[string]string{recoveryKeyNote: key, secondReport: asJSON(g.t, report)}
	notes[firstBootNote] = g.Console().Text()
	for path, text := range keptFiles {
		g.Do(nil, "write", path, text)
	}
	notes[thirdReport] = asJSON(g.t, g.Reboot())
	notes[thirdBootNote] = g.Console().Text()[len(notes[firstBootNote]):]
	for path, text := range keptFiles {
		var read struct{ Text string }
		if g.Do(&read, "read", path); read.Text != text {
			g.t.Errorf("%s holds %q after a restart; %q was written", path, read.Text, text)
		}
	}
	g.PowerOff()
	return notes
}

// provision waits for a machine that provisions itself, confirms the recovery key
// and returns it with the report of the system that starts then.
func (g *Guest) provision() (recoveryKey string, r protocol.Report) {
	g.t.Helper()
	recoveryKey = g.Expect(shownKey)[1]
	g.confirm()
	return recoveryKey, g.Boot()
}

// confirm shows that the recovery key that was shown last was written down.
func (g *Guest) confirm() {
	g.t.Helper()
	shown := regexp.MustCompile(shownKey).FindAllStringSubmatch(g.Console().Text(), -1)
	if len(shown) == 0 {
		g.t.Fatal("no recovery key was shown")
	}
	g.typeGroups(shown[len(shown)-1][1])
}

// typeGroups types back the two groups of a recovery key that the machine asks for.
func (g *Guest) typeGroups(key string) {
	g.t.Helper()
	g.Expect(`Press Enter when you have written it down`)
	g.typeLine("")
	asked := g.Expect(`Type group (\d) and group (\d) of it, [^\n]*\n[^\n]*: `)
	letters := strings.Split(key, "-")
	var typed []string
	for _, number := range asked[1:] {
		n, err := strconv.Atoi(number)
		if err != nil || n < 1 || n > len(letters) {
			g.t.Fatalf("asks for group %s of %q", number, key)
		}
		typed = append(typed, letters[n-1])
	}
	g.typeLine(strings.Join(typed, " "))
}

// typeLine answers a question of the console, which forgets what was typed before
// the question was out.
func (g *Guest) typeLine(line string) {
	g.t.Helper()
	time.Sleep(300 * time.Millisecond)
	if err := g.SendLine(line); err != nil {
		g.t.Fatal(err)
	}
}

func asJSON(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// notedReport decodes a report that bringUp kept.
func notedReport(t testing.TB, p Provisioned, name string) (r protocol.Report) {
	t.Helper()
	if err := json.Unmarshal([]byte(p.Notes[name]), &r); err != nil {
		t.Fatalf("note %s: %v", name, err)
	}
	return r
}

// TestFirstBoots judges the three boots that made the shared machine.
func TestFirstBoots(t *testing.T) {
	t.Parallel()
	p := provisioned(t)
	inOrder(t, "first and second boot", p.Notes[firstBootNote],
		"halogen: partition (", "halogen: make-tree (", "halogen: open-verity (", "halogen: enroll (",
		"reboot: machine restart", "halogen: open-verity (", "RECOVERY KEY:", "Set a password in the firmware's setup", "halogen: make-root (",
		"halogen: mount-state (", protocol.Greeting)
	inOrder(t, "third boot", p.Notes[thirdBootNote],
		"halogen: open-verity (", "halogen: unlock (", "halogen: mount-state (", protocol.Greeting)
	for _, question := range []string{"ecovery key", "RECOVERY", "[y/N]", "Press Enter", "FAILED"} {
		if strings.Contains(p.Notes[thirdBootNote], question) {
			t.Errorf("the third boot says %q; nothing was to be asked, nothing to fail", question)
		}
	}
	for _, name := range []string{secondReport, thirdReport} {
		r := notedReport(t, p, name)
		checkSecured(t, name, r)
		if sealed, open := r.PCRs["11"], notedReport(t, p, secondReport).PCRs["11"]; sealed != open {
			t.Errorf("%s: PCR 11 is %s, after the other boot of the same UKI %s", name, sealed, open)
		}
	}
	checkSteps(t, notedReport(t, p, thirdReport))
}

// inOrder looks for texts, each after the one before.
func inOrder(t testing.TB, what, text string, want ...string) {
	t.Helper()
	for _, w := range want {
		_, after, ok := strings.Cut(text, w)
		if !ok {
			t.Errorf("%s: no %q, or not in its place of %q", what, w, want)
			return
		}
		text = after
	}
}

// checkSecured is what every boot of a provisioned machine must come to: Secure Boot
// enforced, the system image verified, the root partition open, its key out of reach.
func checkSecured(t testing.TB, what string, r protocol.Report) {
	t.Helper()
	if r.EFI["SecureBoot"] != "1" || r.EFI["SetupMode"] != "0" {
		t.Errorf("%s: SecureBoot=%s, SetupMode=%s; want 1 and 0", what, r.EFI["SecureBoot"], r.EFI["SetupMode"])
	}
	if r.Lockdown != "integrity" {
		t.Errorf("%s: lockdown %q", what, r.Lockdown)
	}
	devices := make(map[string]string)
	for _, d := range r.DM {
		devices[d.Name] = strings.Join(d.Table, "\n")
	}
	if !strings.Contains(devices["system"], " verity ") {
		t.Errorf("%s: system is on %q; want a verity target", what, devices["system"])
	}
	crypt := strings.Fields(devices["root"])
	if len(crypt) < 5 || crypt[2] != "crypt" || crypt[3] != "aes-xts-plain64" || crypt[4] != ":64:logon:halogen:root" {
		t.Errorf("%s: root is on %q; want aes-xts-plain64 with a key that only the kernel has", what, devices["root"])
	}
	for _, dir := range []string{"/", "/usr"} {
		if r.Writable[dir] {
			t.Errorf("%s: %s can be written", what, dir)
		}
	}
	for _, dir := range []string{"/etc", "/var", "/home"} {
		if !r.Writable[dir] {
			t.Errorf("%s: %s cannot be written", what, dir)
		}
	}
	extensions := extensionsOf(t, r)
	if strings.Trim(r.PCRs["15"], "0") == "" || strings.Trim(r.PCRs["12"], "0") != "" || r.PCRs["13"] != extension.Register(extensions).String() {
		t.Errorf("%s: PCR 12 %s, 13 %s, 15 %s; want the last one extended, and 13 by the extensions %v alone", what, r.PCRs["12"], r.PCRs["13"], r.PCRs["15"], extensions)
	}
	if len(r.Problems) > 0 {
		t.Errorf("%s: problems %q", what, r.Problems)
	}
}

// extensionsOf are those that a boot has opened.
func extensionsOf(t testing.TB, r protocol.Report) (opened []extension.Measured) {
	t.Helper()
	var boot struct {
		Extensions []struct {
			extension.Measured
			Opened bool
		}
	}
	must(t, json.Unmarshal(r.Halogen["boot.json"], &boot))
	for _, e := range boot.Extensions {
		if e.Opened {
			opened = append(opened, e.Measured)
		}
	}
	return opened
}

// checkSteps reads the times that a normal boot leaves for the system.
func checkSteps(t *testing.T, r protocol.Report) {
	t.Helper()
	var boot struct {
		Slot  string
		Steps []struct {
			Step string
			NS   time.Duration
		}
	}
	if err := json.Unmarshal(r.Halogen["boot.json"], &boot); err != nil {
		t.Fatalf("/run/halogen/boot.json: %v", err)
	}
	var names []string
	var sum time.Duration
	for _, s := range boot.Steps {
		names = append(names, s.Step)
		sum += s.NS
		if s.NS <= 0 {
			t.Errorf("step %s took %v", s.Step, s.NS)
		}
	}
	want := []string{"firmware", "drivers", "contract", "tpm", "measure", "disk", "open-verity", "unlock", "mount-state"}
	for _, name := range want {
		if !slices.Contains(names, name) {
			t.Errorf("steps %q; want %q among them", names, want)
			break
		}
	}
	if boot.Slot != "a" || sum.Seconds() > r.Uptime {
		t.Errorf("slot %q, steps of %v in a boot of %.1f s", boot.Slot, sum, r.Uptime)
	}
	t.Logf("a normal boot's steps take %v: %s", sum.Round(time.Millisecond), r.Halogen["boot.json"])
}

// TestOthersAgree has the tools of others judge a provisioned machine's disk.
func TestOthersAgree(t *testing.T) {
	t.Parallel()
	p := provisioned(t)
	d := openDisk(t, p.State.Disk(), os.O_RDONLY)
	d.checkTable()
	d.checkESP()
	checkLUKS(t, p, d.cut(layout.Root))
	checkSignatures(t, p)
}

// checkLUKS: cryptsetup opens the root partition with the recovery key, and sees the
// two keyslots and their tokens.
func checkLUKS(t *testing.T, p Provisioned, volume string) {
	t.Helper()
	dump := testkit.Run(t, "cryptsetup", "luksDump", volume)
	for _, want := range []string{"aes-xts-plain64", "argon2id", "pbkdf2", "systemd-recovery", "halogen-tpm2"} {
		if !strings.Contains(dump, want) {
			t.Errorf("luksDump shows no %s:\n%s", want, dump)
		}
	}
	if n := strings.Count(dump, ": luks2"); n != 2 || strings.Contains(dump, "unfinished") {
		t.Errorf("luksDump shows %d keyslots; want 2, and nothing unfinished:\n%s", n, dump)
	}
	open := func(key string) ([]byte, error) {
		cmd := exec.Command(testkit.Need(t, "cryptsetup"), "luksOpen", "--test-passphrase", "--key-file", "-", volume)
		cmd.Stdin = strings.NewReader(key)
		return cmd.CombinedOutput()
	}
	key := p.Notes[recoveryKeyNote]
	if out, err := open(key); err != nil {
		t.Errorf("cryptsetup with the recovery key: %v: %s", err, out)
	}
	if out, err := open(wrongKey(key)); err == nil {
		t.Errorf("cryptsetup takes a wrong recovery key: %s", out)
	}
}

// wrongKey is a recovery key with one letter changed.
func wrongKey(key string) string {
	if strings.HasPrefix(key, "c") {
		return "b" + key[1:]
	}
	return "c" + key[1:]
}

// checkSignatures: sbverify accepts every EFI file on the ESP by the certificate that
// the machine's db holds, and no other.
func checkSignatures(t *testing.T, p Provisioned) {
	t.Helper()
	db := certificatePEM(t, p.State, secureboot.DB)
	kek := certificatePEM(t, p.State, secureboot.KEK)
	files := espFiles(t, p.State, ".efi")
	if len(files) < 2 {
		t.Fatalf("EFI files on the ESP: %q; want boot manager and UKI", files)
	}
	for _, name := range files {
		local := filepath.Join(t.TempDir(), "file.efi")
		espRead(t, p.State, name, local)
		testkit.Run(t, "sbverify", "--cert", db, local)
		if out, err := exec.Command("sbverify", "--cert", kek, local).CombinedOutput(); err == nil {
			t.Errorf("sbverify accepts %s by the KEK's certificate: %s", name, out)
		}
	}
}

// TestNotInSetupMode: a machine that needs its own keys, and whose firmware has
// somebody else's, says how to get into Setup Mode and writes nothing.
func TestNotInSetupMode(t *testing.T) {
	t.Parallel()
	other := provisioned(t)
	var before string
	g := Machine(t, Options{Image: "testos-1", Prepare: func(s vm.State) error {
		// Its firmware starts what is not signed only while Secure Boot is off.
		if err := vm.CopySparse(s.Vars(), other.State.Vars()); err != nil {
			return err
		}
		before = bootFilesDigest(t, s)
		return switchSecureBootOff(s.Vars())
	}})
	g.Expect(`RECOVERY: Secure Boot is not in Setup Mode: open the firmware's setup`)
	g.expectConsole()
	g.PowerCut()
	if after := bootFilesDigest(t, g.State()); after != before {
		t.Errorf("the ESP's EFI files were %s, and are %s", before, after)
	}
}

// TestNoTPM: a machine that needs a TPM and has none says how to get one.
func TestNoTPM(t *testing.T) {
	t.Parallel()
	g := Machine(t, Options{Image: "testos-1", VM: vm.Options{TPM: vm.NoTPM}})
	g.Expect(`RECOVERY: this machine has no TPM 2.0, or it is switched off: enable it in the firmware's setup`)
	g.expectConsole()
	// The console's commands see what the boot sees.
	g.command("slots", `slot a +version 1 +epoch 0 +blessed \(halogen_1\.efi\)`)
}

// TestNoTPMOptional: where the TPM is optional, a machine without one provisions
// itself, Secure Boot and all, and the recovery key opens its root partition.
func TestNoTPMOptional(t *testing.T) {
	t.Parallel()
	g := Machine(t, Options{Image: "testos-optional-1", VM: vm.Options{TPM: vm.NoTPM}})
	key := g.Expect(shownKey)[1]
	g.confirm()
	g.Expect(asksForKey) // after the restart that the keys' enrollment ends in
	g.typeLine(wrongKey(key))
	g.Expect(`Nothing is lost: try again`)
	g.Expect(asksForKey)
	g.typeLine(key)
	r := g.Boot()
	if r.EFI["SecureBoot"] != "1" || r.EFI["SetupMode"] != "0" || !rootIsOpen(r) || !r.Writable["/var"] {
		t.Errorf("SecureBoot=%s, SetupMode=%s, writable %v, devices %+v", r.EFI["SecureBoot"], r.EFI["SetupMode"], r.Writable, r.DM)
	}
	if strings.Contains(g.Console().Text(), "[y/N]") {
		t.Error("asked to accept the machine, without a TPM to bind anything to")
	}
}

// TestOptionalOutsideSetupMode: where Secure Boot is optional, a machine with foreign
// keys is left as it is, and its data is bound to the TPM all the same.
func TestOptionalOutsideSetupMode(t *testing.T) {
	t.Parallel()
	other := provisioned(t)
	g := Machine(t, Options{Image: "testos-optional-1", Prepare: func(s vm.State) error {
		if err := vm.CopySparse(s.Vars(), other.State.Vars()); err != nil {
			return err
		}
		return switchSecureBootOff(s.Vars())
	}})
	_, r := g.provision()
	if r.EFI["SecureBoot"] != "0" || !rootIsOpen(r) {
		t.Errorf("SecureBoot=%s, devices %+v", r.EFI["SecureBoot"], r.DM)
	}
	again := g.Reboot()
	if !rootIsOpen(again) || strings.Contains(g.Console().Text(), "Recovery key (") {
		t.Errorf("devices %+v; want root, and no question", again.DM)
	}
}

func rootIsOpen(r protocol.Report) bool {
	return slices.ContainsFunc(r.DM, func(d protocol.DM) bool { return d.Name == "root" })
}

// expectConsole waits for the recovery console and returns the names of the mapped
// devices that are open there.
func (g *Guest) expectConsole() (devices []string) {
	g.t.Helper()
	g.Expect("halogen: the boot has stopped, and nothing was lost")
	return g.expectDevices()
}

// expectDevices has the recovery console name the mapped devices that are open.
func (g *Guest) expectDevices() (devices []string) {
	g.t.Helper()
	g.Expect(`\$ `)
	// Where there is none the pattern is not a word, and cat would wait for input.
	return strings.Fields(g.command("echo devices: $(cat /dev/null /sys/block/dm-*/dm/name) end", `(?m)^devices: (.*)end`)[1])
}

func (g *Guest) typed(text string) {
	g.t.Helper()
	if err := g.Console().Send([]byte(text)); err != nil {
		g.t.Fatal(err)
	}
}
