package microcode

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"
)

// A few bytes that claim many processors, and many containers, take no memory to speak of.
func TestBoundsOfAMD(t *testing.T) {
	le := binary.LittleEndian
	table := make([]byte, 4096*amdEntry) // the last one ends it
	for i := range 4095 {
		le.PutUint32(table[i*amdEntry:], uint32(i+1))
		le.PutUint16(table[i*amdEntry+12:], 1)
	}
	file := le.AppendUint32(nil, amdMagic)
	file = append(le.AppendUint32(le.AppendUint32(file, amdTable), uint32(len(table))), table...)
	patch := le.AppendUint32(le.AppendUint32(nil, amdPatch), amdHeader)
	patch = append(patch, make([]byte, amdHeader)...)
	le.PutUint16(patch[amdPart+24:], 1)
	one := append(bytes.Clone(file), patch...)
	if _, err := parseContainer(one); err != nil {
		t.Errorf("one patch: %v", err)
	}
	if _, err := parseContainer(append(one, patch...)); err == nil || !strings.Contains(err.Error(), "for more than 4096 processors") {
		t.Errorf("two patches: %v", err)
	}
	s := &Set{amd: make([]container, maxAMDContainers)}
	if err := s.addAMD(one); err == nil || !strings.Contains(err.Error(), "more than 256 containers") {
		t.Errorf("many containers: %v", err)
	}
}
