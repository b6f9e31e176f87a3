package tpm

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/testkit"
)

// tool runs one of tpm2-tools on the emulator, in its directory.
func (e *emulator) tool(words string) (string, error) {
	e.t.Helper()
	args := strings.Fields(words)
	path := testkit.Need(e.t, args[0])
	var out []byte
	var err error
	e.release(func() {
		cmd := exec.Command(path, args[1:]...)
		cmd.Dir = e.dir
		cmd.Env = append(os.Environ(), "TPM2TOOLS_TCTI=swtpm:path="+e.socket)
		out, err = cmd.CombinedOutput()
	})
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", words, err, out)
	}
	return string(out), nil
}

func (e *emulator) mustTool(words string) string {
	e.t.Helper()
	out, err := e.tool(words)
	if err != nil {
		e.t.Fatal(err)
	}
	return out
}

func (e *emulator) put(name string, b []byte) {
	e.t.Helper()
	if err := os.WriteFile(filepath.Join(e.dir, name), b, 0o600); err != nil {
		e.t.Fatal(err)
	}
}

func (e *emulator) get(name string) []byte {
	e.t.Helper()
	b, err := os.ReadFile(filepath.Join(e.dir, name))
	if err != nil {
		e.t.Fatal(err)
	}
	return b
}

// The digests that are computed offline are those that the TPM computes in a
// trial session, as tpm2-tools drive it.
func TestDigestsAgreeWithTPM(t *testing.T) {
	m := provision(t, "uki 1", "uki 2")
	boots := []policy.Boot{predict("uki 1"), predict("uki 2")}
	one, two := boots[0].Branch(), boots[1].Branch()
	or, err := policy.OR([]policy.Digest{one, two})
	if err != nil {
		t.Fatal(err)
	}
	name, err := m.index.Name()
	if err != nil {
		t.Fatal(err)
	}
	public, err := policy.KeyPublic(m.index.Key)
	if err != nil {
		t.Fatal(err)
	}
	keyName := policy.NameOf(tpm2.Marshal(public))
	m.put("one", one[:])
	m.put("two", two[:])

	m.mustTool("tpm2_startauthsession -S session")
	m.mustTool("tpm2_policypcr -S session -l sha256:7,11,12,13,15 -L pcr")
	if got := m.get("pcr"); !bytes.Equal(got, one[:]) {
		t.Errorf("PolicyPCR %s, the TPM has %x", one, got)
	}
	m.mustTool("tpm2_policyor -S session -L or sha256:one,two")
	if got := m.get("or"); !bytes.Equal(got, or[:]) {
		t.Errorf("PolicyOR %s, the TPM has %x", or, got)
	}
	m.mustTool(fmt.Sprintf("tpm2_policyauthorizenv -S session -C %#x -L nv %#x", m.index.Handle, m.index.Handle))
	if got, want := m.get("nv"), policy.AuthorizeNV(name); !bytes.Equal(got, want[:]) {
		t.Errorf("PolicyAuthorizeNV %s, the TPM has %x", want, got)
	}
	m.mustTool("tpm2_flushcontext session")

	out := m.mustTool(fmt.Sprintf("tpm2_nvreadpublic %#x", m.index.Handle))
	signed := policy.Signed(keyName)
	for _, want := range []string{"name: " + name.String(), fmt.Sprintf("size: %d", policy.RecordSize),
		"authorization policy: " + strings.ToUpper(signed.String()), "policywrite|writeall|ownerread|authread|no_da|written"} {
		if !strings.Contains(strings.ToLower(out), strings.ToLower(want)) {
			t.Errorf("tpm2_nvreadpublic has no %q:\n%s", want, out)
		}
	}
	// The write key's Name, as the TPM has it for the same public area.
	loaded, err := tpm2.LoadExternal{InPublic: tpm2.New2B(public), Hierarchy: tpm2.TPMRHNull}.Execute(m.raw)
	if err != nil || !bytes.Equal(loaded.Name.Buffer, keyName[:]) {
		t.Errorf("write key %s, the TPM has %x, %v", keyName, loaded.Name.Buffer, err)
	}
}

// tpm2-tools unseal what we sealed, in the right boot; and as root of the
// running system, after the initramfs, they do not.
func TestToolsUnseal(t *testing.T) { // FAULTS 79
	m := provision(t, "uki 1", "uki 2")
	sized := func(b []byte) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...) }
	m.put("public", sized(m.sealed.Public))
	m.put("private", sized(m.sealed.Private))
	one, two := predictBranch("uki 1"), predictBranch("uki 2")
	m.put("one", one[:])
	m.put("two", two[:])
	unseal := func() (string, error) {
		for _, step := range []string{
			"tpm2_flushcontext -t", "tpm2_flushcontext -l", "tpm2_flushcontext -s",
			"tpm2_load -C 0x81000001 -u public -r private -c object",
			"tpm2_startauthsession -S session --policy-session",
			"tpm2_policypcr -S session -l sha256:7,11,12,13,15",
			"tpm2_policyor -S session sha256:one,two",
			fmt.Sprintf("tpm2_policyauthorizenv -S session -C %#x %#x", m.index.Handle, m.index.Handle),
			"tpm2_unseal -c object -p session:session -o secret",
		} {
			if out, err := m.tool(step); err != nil {
				return out, err
			}
		}
		return "", nil
	}
	if _, err := unseal(); err != nil {
		t.Fatal(err)
	}
	if got := m.get("secret"); !bytes.Equal(got, m.secret.Bytes()) {
		t.Errorf("another secret came out")
	}
	if err := os.Remove(filepath.Join(m.dir, "secret")); err != nil {
		t.Fatal(err)
	}
	c := m.open()
	if err := c.ExtendText(pcr.KernelImage, pcr.LeaveInitrd); err != nil {
		t.Fatal(err)
	}
	closed(t, c)
	if _, err := unseal(); err == nil || !strings.Contains(err.Error(), "policyor") {
		t.Errorf("after the initramfs: %v", err)
	}
	// Without the OR that cannot be satisfied, nothing helps either.
	if _, err := m.tool("tpm2_unseal -c object"); err == nil {
		t.Error("unsealed with an empty password")
	}
}

// Extends reach every active bank, with the digest of the word.
func TestExtendReachesEveryBank(t *testing.T) {
	e := startTPM(t)
	c := e.open()
	if err := c.ExtendText(11, pcr.EnterInitrd); err != nil { // no key known yet
		t.Fatal(err)
	}
	if _, err := c.StorageKey(); err != nil {
		t.Fatal(err)
	}
	for range 2 { // in a session, which lasts
		if err := c.ExtendText(11, pcr.LeaveInitrd); err != nil {
			t.Fatal(err)
		}
	}
	for n, bad := range map[int][]byte{-1: []byte("x"), 24: []byte("x"), 11: nil, 12: make([]byte, 1025)} {
		if err := c.Extend(n, bad); err == nil {
			t.Errorf("PCR %d, %d bytes: extended", n, len(bad))
		}
	}
	now, err := c.Now()
	if err != nil {
		t.Fatal(err)
	}
	if want := pcr.Phases(pcr.Digest{}, pcr.EnterInitrd, pcr.LeaveInitrd, pcr.LeaveInitrd); now.PCR11 != want {
		t.Errorf("PCR 11 is %s, want %s", now.PCR11, want)
	}
	closed(t, c)
	banks, err := c.Banks()
	if err != nil || len(banks) < 2 {
		t.Fatalf("banks %v, %v", banks, err)
	}
	out := strings.ToLower(e.mustTool("tpm2_pcrread sha1:11+sha256:11+sha384:11+sha512:11"))
	if !strings.Contains(out, now.PCR11.String()) {
		t.Errorf("tpm2_pcrread does not have %s:\n%s", now.PCR11, out)
	}
	for i, line := range strings.Split(out, "\n") {
		if _, value, ok := strings.Cut(line, "11: 0x"); ok && strings.Trim(value, "0") == "" {
			t.Errorf("line %d: a bank was left out:\n%s", i, out)
		}
	}
}

func TestCapabilities(t *testing.T) {
	m := provision(t, "uki 1")
	c := m.open()
	defer closed(t, c)
	caps, err := c.Capabilities()
	if err != nil {
		t.Fatal(err)
	}
	if err := caps.Index(); err != nil {
		t.Errorf("%v", err)
	}
	if !caps.SHA256Active() || caps.Lockout.Active || caps.OwnerAuth || caps.LockoutAuth {
		t.Errorf("%+v", caps)
	}
	found := false
	for _, h := range caps.NVIndexes {
		found = found || h == m.index.Handle
	}
	if !found {
		t.Errorf("%#x is not among %#x", m.index.Handle, caps.NVIndexes)
	}
	out := m.mustTool("tpm2_getcap properties-fixed")
	if !strings.Contains(out, fmt.Sprintf("TPM2_PT_NV_BUFFER_MAX:\n  raw: 0x%X\n", caps.NVBufferMax)) ||
		!strings.Contains(out, fmt.Sprintf("value: %q", caps.Manufacturer)) {
		t.Errorf("%+v, tpm2_getcap has\n%s", *caps, out)
	}
	for name, c := range map[string]*Capabilities{
		"small writes": {AuthorizeNV: true, NVBufferMax: policy.RecordSize - 1, NVIndexMax: 2048},
		"old TPM":      {NVBufferMax: 1024, NVIndexMax: 2048},
	} {
		if err := c.Index(); err == nil {
			t.Errorf("%s: nothing wrong with it", name)
		}
	}
}
