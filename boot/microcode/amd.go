package microcode

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// AMD's format is described by its reader alone (Linux,
// arch/x86/kernel/cpu/microcode/amd.c): a magic number, a table that gives each
// signature a number, and patches for those numbers, each part behind its kind and size.
const (
	amdMagic      = 0x00414d44
	amdTable      = 0
	amdPatch      = 1
	amdPart       = 8  // bytes of kind and size
	amdEntry      = 16 // bytes of an entry of the table
	amdHeader     = 64 // bytes of a patch's header
	maxAMDPatch   = 1 << 20
	maxAMDEntries = 4096
)

// container is one of AMD's, whole.
type container struct {
	data       []byte
	processors []Processor
}

// parseAMD reads containers that follow one another.
func parseAMD(data []byte) ([]container, error) {
	var all []container
	for at := 0; at < len(data); {
		c, err := parseContainer(data[at:])
		if err != nil {
			return nil, fmt.Errorf("container %d, at byte %d: %w", len(all)+1, at, err)
		}
		all = append(all, c)
		at += len(c.data)
	}
	return all, nil
}

func parseContainer(data []byte) (container, error) {
	le := binary.LittleEndian
	if len(data) < 4+amdPart || le.Uint32(data) != amdMagic || le.Uint32(data[4:]) != amdTable {
		return container{}, errors.New("does not begin with the magic number and a table of processors")
	}
	end := 4 + amdPart + uint64(le.Uint32(data[8:]))
	if end > uint64(len(data)) {
		return container{}, fmt.Errorf("the table of processors ends at byte %d, the file at %d", end, len(data))
	}
	numbers, err := parseTable(data[4+amdPart : end])
	if err != nil {
		return container{}, fmt.Errorf("table of processors: %w", err)
	}
	c := container{}
	at := end
	for at+amdPart <= uint64(len(data)) && le.Uint32(data[at:]) == amdPatch {
		size := uint64(le.Uint32(data[at+4:]))
		if size < amdHeader || size > maxAMDPatch || at+amdPart+size > uint64(len(data)) {
			return container{}, fmt.Errorf("the patch at byte %d has %d bytes, %d are left", at, size, uint64(len(data))-at-amdPart)
		}
		patch := data[at+amdPart:]
		number, revision := le.Uint16(patch[24:]), le.Uint32(patch[4:])
		if len(numbers[number]) == 0 {
			return container{}, fmt.Errorf("the patch at byte %d is for number %#04x, which the table gives no processor", at, number)
		}
		for _, signature := range numbers[number] {
			c.processors = append(c.processors, Processor{Signature: signature, Revision: revision})
		}
		if len(c.processors) > maxAMDEntries {
			return container{}, fmt.Errorf("has patches for more than %d processors", maxAMDEntries)
		}
		at += amdPart + size
	}
	if len(c.processors) == 0 {
		return container{}, errors.New("has no patch")
	}
	c.data = data[:at:at]
	return c, nil
}

// parseTable returns the signatures that have each number. An entry of zeros ends it.
func parseTable(table []byte) (map[uint16][]uint32, error) {
	le := binary.LittleEndian
	if len(table)%amdEntry != 0 || len(table) > maxAMDEntries*amdEntry {
		return nil, fmt.Errorf("%d bytes, want up to %d entries of %d", len(table), maxAMDEntries, amdEntry)
	}
	numbers := make(map[uint16][]uint32)
	for ; len(table) > 0; table = table[amdEntry:] {
		signature, number := le.Uint32(table), le.Uint16(table[12:])
		if signature == 0 {
			return numbers, nil
		}
		if !slices.Contains(numbers[number], signature) {
			numbers[number] = append(numbers[number], signature)
		}
	}
	return nil, errors.New("has no end")
}
