package agent_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"strings"
	"testing"

	"halogenos.internal/boot/bootflow"
	"halogenos.internal/boot/layout"
	"halogenos.internal/initagent/machinetest"
)

// moveSegment is what somebody does to both copies of the LUKS2 header who has
// stored a file system at that byte of the volume. It takes no key.
func moveSegment(m *machinetest.Machine, offset, tweak string) {
	m.T.Helper()
	part, err := m.Partition(layout.Root)
	m.Must(err)
	for _, off := range []int64{0, 16 << 10} {
		b := make([]byte, 16<<10)
		_, err := part.ReadAt(b, off)
		m.Must(err)
		for old, fresh := range map[string]string{`"offset":"16777216"`: `"offset":"` + offset + `"`, `"iv_tweak":"0"`: `"iv_tweak":"` + tweak + `"`} {
			if bytes.Count(b, []byte(old)) != 1 {
				m.T.Fatalf("the header has %s %d times", old, bytes.Count(b, []byte(old)))
			}
			b = bytes.Replace(b, []byte(old), []byte(fresh), 1)
		}
		text, _, _ := bytes.Cut(b[4096:], []byte{0})
		if !json.Valid(text) {
			m.T.Fatalf("not JSON: %s", text)
		}
		b = append(b[:4096+len(text)], make([]byte, 16<<10)...)[:16<<10]
		binary.BigEndian.PutUint64(b[16:], binary.BigEndian.Uint64(b[16:])+1)
		clear(b[448:512])
		sum := sha256.Sum256(b)
		copy(b[448:], sum[:])
		_, err = part.WriteAt(b, off)
		m.Must(err)
	}
}

// A LUKS2 header that has the data begin in the middle of the volume opens by
// nothing: not by the TPM, not by the recovery key at the boot, and not at the
// recovery console. FAULTS 86
func TestMovedSegment(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	moveSegment(m, "117440512", "196608") // 96 MiB further
	m.Ops = nil
	m.Typed = []string{m.Shown[0]}
	m.Ends("recovery", "LUKS header refused", `"offset":"117440512"`)
	if m.OpenVolume != nil || m.Agent.State.Root == bootflow.RootOpen {
		t.Error("it is open")
	}
	if len(m.Written("index"))+len(m.Written("disk")) > 0 {
		t.Errorf("written to: %q", m.Ops)
	}
	console, c := m.Console()
	m.Typed = []string{m.Shown[0]}
	if err := console.Unlock(c); err == nil || !strings.Contains(err.Error(), "LUKS header refused") || m.OpenVolume != nil {
		t.Errorf("the recovery console unlocks: %v", err)
	}
}
