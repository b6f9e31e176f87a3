package qemutests

import (
	"crypto/sha256"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/builder/vm"
	"halogenos.internal/qemu-tests/testos/theft"
)

// softwareTPM starts the TPM of a machine that is off and returns its socket. It
// runs until the test ends or stop is called.
func softwareTPM(t *testing.T, s vm.State) (socket string, stop func()) {
	t.Helper()
	dir, err := os.MkdirTemp("", "tpm") // t.TempDir is too long for a socket's name
	must(t, err)
	socket = filepath.Join(dir, "s")
	swtpm := exec.Command(testkit.Need(t, "swtpm"), "socket", "--tpm2", "--tpmstate", "dir="+s.TPM(),
		"--server", "type=unixio,path="+socket, "--ctrl", "type=unixio,path="+socket+".ctrl", "--flags", "not-need-init,startup-clear")
	must(t, swtpm.Start())
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			_ = swtpm.Process.Kill()
			_ = swtpm.Wait()
			_ = os.RemoveAll(dir)
		}
	}
	t.Cleanup(stop)
	for range 500 {
		if _, err := os.Stat(socket); err == nil {
			return socket, stop
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("swtpm does not listen")
	return "", nil
}

// checkStealing tries to get at what is sealed, as root on the running system.
func checkStealing(g *Guest) {
	g.t.Helper()
	var r theft.Result
	g.Do(&r, "steal", "/dev/vda6")
	checkRefused(g.t, "the running system", r)
	const keys = "/run/state/halogen/secure-boot"
	var read struct{ Text, Hex string }
	g.Do(&read, "read", keys)
	if read.Text+read.Hex == "" || strings.Contains(read.Text, "PRIVATE KEY") {
		g.t.Errorf("%s holds %.100q", keys, read.Text)
	}
}

// TestStealingBefore is what checkStealing would see if it were wrong: with the PCRs
// as the initramfs phase of a good boot has them, the same thief gets the secret;
// once that phase is over, or the volume key was measured, they do not. FAULTS 95
func TestStealingBefore(t *testing.T) {
	t.Parallel()
	p := provisioned(t)
	d := openDisk(t, p.State.Disk(), os.O_RDONLY)
	_, size := d.partition(layout.Root)
	volume, err := os.Open(d.cut(layout.Root))
	must(t, err)
	defer volume.Close()
	sealed, err := theft.Sealed(volume, size)
	must(t, err)
	for name, later := range map[string]func(t *testing.T, tpm transport.TPM){
		"": nil,
		"after the initramfs phase": func(t *testing.T, tpm transport.TPM) {
			extend(t, tpm, pcr.KernelImage, sha256.Sum256([]byte(pcr.LeaveInitrd)))
		},
		"after the volume was open": func(t *testing.T, tpm transport.TPM) { extend(t, tpm, pcr.SystemID, sha256.Sum256([]byte("a volume"))) },
	} {
		s, err := p.State.Clone(filepath.Join(t.TempDir(), "machine"))
		must(t, err)
		socket, stop := softwareTPM(t, s)
		tpm, err := linuxudstpm.Open(socket)
		must(t, err)
		replay(t, tpm, s)
		if later != nil {
			later(t, tpm)
		}
		r, err := theft.Try(tpm, sealed)
		must(t, err)
		if later != nil {
			checkRefused(t, name, r)
		} else if r.Policy != "" || r.Unseal != "" || r.Secret != 32 || r.Straight == "" {
			t.Errorf("in the initramfs phase of a good boot: %+v; want the secret", r)
		}
		must(t, tpm.Close())
		stop()
	}
}

// checkRefused expects the TPM to have refused everything, for its own reasons.
func checkRefused(t testing.TB, when string, r theft.Result) {
	t.Helper()
	if !r.Loaded || r.Secret != 0 {
		t.Errorf("%s: loaded %t, %d bytes of secret", when, r.Loaded, r.Secret)
	}
	for _, refusal := range []struct{ what, got, want string }{
		{"policy", r.Policy, "TPM_RC_VALUE"}, {"unseal", r.Unseal, "TPM_RC_POLICY_FAIL"}, {"unseal with no policy", r.Straight, "TPM_RC_POLICY_FAIL"},
		{"write by owner", r.OwnerWrite, "TPM_RC_NV_AUTHORIZATION"}, {"write by index", r.IndexWrite, "TPM_RC_AUTH_UNAVAILABLE"},
	} {
		if !strings.Contains(refusal.got, refusal.want) {
			t.Errorf("%s: %s: %q; want %s", when, refusal.what, refusal.got, refusal.want)
		}
	}
}

// replay measures what the machine's last good boot did, by the event log that is
// kept on the ESP, up to the initramfs phase.
func replay(t *testing.T, tpm transport.TPM, s vm.State) {
	t.Helper()
	logs := espFiles(t, s, ".bin")
	if len(logs) != 1 {
		t.Fatalf("event logs on the ESP: %q; want one", logs)
	}
	local := filepath.Join(t.TempDir(), "log")
	espRead(t, s, logs[0], local)
	raw, err := os.ReadFile(local)
	must(t, err)
	log, err := pcr.ParseLog(raw)
	must(t, err)
	for _, e := range log.Events {
		digest, ok := e.Digest(pcr.SHA256)
		if ok && e.Type != pcr.EventNoAction && slices.Contains(policy.Bound(), e.PCR) {
			extend(t, tpm, e.PCR, [32]byte(digest))
		}
	}
	extend(t, tpm, pcr.KernelImage, sha256.Sum256([]byte(pcr.EnterInitrd)))
}

func extend(t *testing.T, tpm transport.TPM, register int, digest [32]byte) {
	t.Helper()
	_, err := tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(register), Auth: tpm2.PasswordAuth(nil)},
		Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: digest[:]}}},
	}.Execute(tpm)
	must(t, err)
}
