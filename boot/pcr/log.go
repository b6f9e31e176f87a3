package pcr

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// Algorithm is a TPM_ALG_ID of a hash (TCG Algorithm Registry).
type Algorithm uint16

// The banks that firmware may have.
const (
	SHA1   Algorithm = 0x0004
	SHA256 Algorithm = 0x000b
	SHA384 Algorithm = 0x000c
	SHA512 Algorithm = 0x000d
	SM3    Algorithm = 0x0012
)

// String returns the name that tpm2-tools use.
func (a Algorithm) String() string {
	switch a {
	case SHA1:
		return "sha1"
	case SHA256:
		return "sha256"
	case SHA384:
		return "sha384"
	case SHA512:
		return "sha512"
	case SM3:
		return "sm3_256"
	}
	return fmt.Sprintf("hash %#04x", uint16(a))
}

// EventType says what was measured (TCG PC Client Platform Firmware Profile
// 1.06, section 10.4.1). Nothing protects it: an event may lie about its type.
type EventType uint32

// The types that are told apart here.
const (
	EventPostCode           EventType = 0x00000001
	EventNoAction           EventType = 0x00000003
	EventSeparator          EventType = 0x00000004
	EventAction             EventType = 0x00000005
	EventTag                EventType = 0x00000006
	EventCRTMContents       EventType = 0x00000007
	EventCRTMVersion        EventType = 0x00000008
	EventCPUMicrocode       EventType = 0x00000009
	EventPlatformConfig     EventType = 0x0000000a
	EventTableOfDevices     EventType = 0x0000000b
	EventCompactHash        EventType = 0x0000000c
	EventIPL                EventType = 0x0000000d
	EventIPLPartitionData   EventType = 0x0000000e
	EventNonhostCode        EventType = 0x0000000f
	EventNonhostConfig      EventType = 0x00000010
	EventNonhostInfo        EventType = 0x00000011
	EventOmitBootDevice     EventType = 0x00000012
	EventPostCode2          EventType = 0x00000013
	EventVariableConfig     EventType = 0x80000001 // EV_EFI_VARIABLE_DRIVER_CONFIG
	EventVariableBoot       EventType = 0x80000002
	EventBootApplication    EventType = 0x80000003 // EV_EFI_BOOT_SERVICES_APPLICATION
	EventBootDriver         EventType = 0x80000004 // EV_EFI_BOOT_SERVICES_DRIVER
	EventRuntimeDriver      EventType = 0x80000005
	EventGPT                EventType = 0x80000006
	EventEFIAction          EventType = 0x80000007
	EventFirmwareBlob       EventType = 0x80000008
	EventHandoffTables      EventType = 0x80000009
	EventFirmwareBlob2      EventType = 0x8000000a
	EventHandoffTables2     EventType = 0x8000000b
	EventVariableBoot2      EventType = 0x8000000c
	EventGPT2               EventType = 0x8000000d
	EventHCRTM              EventType = 0x80000010
	EventVariableAuthority  EventType = 0x800000e0
	EventFirmwareSPDMBlob   EventType = 0x800000e1
	EventFirmwareSPDMConfig EventType = 0x800000e2
)

// Event is one entry of the log.
type Event struct {
	Number  int // in the log; the header is 0
	PCR     int // 0 to 23
	Type    EventType
	Digests []BankDigest // one a bank, as measured
	Data    []byte       // says what was measured; proves nothing unless Stated
}

// BankDigest is what one bank's register was extended by.
type BankDigest struct {
	Bank Algorithm
	Sum  []byte
}

// Digest returns what the register of that bank was extended by.
func (e Event) Digest(bank Algorithm) ([]byte, bool) {
	for _, d := range e.Digests {
		if d.Bank == bank {
			return d.Sum, true
		}
	}
	return nil, false
}

// Log is a firmware's list of what it measured since the machine was started.
// Anyone who could write to memory could write to it: only what a replay proves
// equal to the registers is true, and of an event's data only what its digest
// covers.
type Log struct {
	Banks  []Algorithm
	Events []Event // without the header
	// Locality is that of the TPM's start, 0, 3 or 4. PCR 0 begins with it.
	Locality uint8

	sizes []int // of Banks' digests, bytes
}

const (
	// MaxLog is the longest log that is read, in bytes. A firmware's own
	// buffer holds 64 KiB, some 300 KiB on servers.
	MaxLog = 4 << 20

	registers    = 24
	maxBanks     = 16
	maxSum       = 128 // bytes of a digest
	specIDPrefix = "Spec ID Event03\x00"
	localityMark = "StartupLocality\x00"
)

// cursor reads little-endian fields and remembers that it ran out of bytes.
type cursor struct {
	rest  []byte
	short bool
}

func (c *cursor) take(n int) []byte {
	if n < 0 || n > len(c.rest) {
		c.short = true
		c.rest = nil
		return nil
	}
	taken := c.rest[:n:n]
	c.rest = c.rest[n:]
	return taken
}

func (c *cursor) u8() uint8 {
	if b := c.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (c *cursor) u16() uint16 {
	if b := c.take(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (c *cursor) u32() uint32 {
	if b := c.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (c *cursor) u64() uint64 {
	if b := c.take(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

var errShort = errors.New("ends too early")

// ParseLog reads a log in the crypto agile format (section 10.2 of the
// profile), as Linux has it in binary_bios_measurements. It must end with an
// event's end. Events' data points into b.
func ParseLog(b []byte) (*Log, error) {
	if len(b) > MaxLog {
		return nil, fmt.Errorf("parse event log: %d bytes, at most %d are read", len(b), MaxLog)
	}
	c := &cursor{rest: b}
	log, err := parseHeader(c)
	if err != nil {
		return nil, fmt.Errorf("parse event log: header: %w", err)
	}
	for number := 1; len(c.rest) > 0; number++ {
		event, err := log.parseEvent(c)
		if err != nil {
			return nil, fmt.Errorf("parse event log: event %d: %w", number, err)
		}
		event.Number = number
		if err := log.noteLocality(event); err != nil {
			return nil, fmt.Errorf("parse event log: event %d: %w", number, err)
		}
		log.Events = append(log.Events, event)
	}
	return log, nil
}

// parseHeader reads the first event, which has the format of TPM 1.2 and holds
// TCG_EfiSpecIdEvent.
func parseHeader(c *cursor) (*Log, error) {
	c.u32() // register
	kind := EventType(c.u32())
	c.take(20) // SHA-1
	data := c.take(int(c.u32()))
	if c.short {
		return nil, errShort
	}
	if kind != EventNoAction || !bytes.HasPrefix(data, []byte(specIDPrefix)) {
		return nil, errors.New("not in the crypto agile format of TPM 2.0")
	}
	id := &cursor{rest: data[len(specIDPrefix):]}
	id.take(8) // platform class, version, size of UINTN
	count := id.u32()
	if count < 1 || count > maxBanks {
		return nil, fmt.Errorf("%d banks, want 1 to %d", count, maxBanks)
	}
	log := &Log{}
	for range count {
		bank, size := Algorithm(id.u16()), int(id.u16())
		known := hashOf(bank)
		if size < 1 || size > maxSum || known != 0 && size != known.Size() {
			return nil, fmt.Errorf("digests of %s have %d bytes", bank, size)
		}
		if slices.Contains(log.Banks, bank) {
			return nil, fmt.Errorf("bank %s is there twice", bank)
		}
		log.Banks, log.sizes = append(log.Banks, bank), append(log.sizes, size)
	}
	id.take(int(id.u8())) // vendor's
	if id.short || len(id.rest) != 0 {
		return nil, fmt.Errorf("its %d bytes are not what its fields add up to", len(data))
	}
	return log, nil
}

func (l *Log) parseEvent(c *cursor) (Event, error) {
	register := c.u32()
	event := Event{Type: EventType(c.u32())}
	count := c.u32()
	if c.short {
		return Event{}, errShort
	}
	// What is not measured may name no register.
	if event.Type == EventNoAction && register == 0xffffffff {
		register = 0
	}
	if register >= registers {
		return Event{}, fmt.Errorf("PCR %d, a TPM has %d", register, registers)
	}
	event.PCR = int(register)
	if count > uint32(len(l.Banks)) {
		return Event{}, fmt.Errorf("%d digests, the log has %d banks", count, len(l.Banks))
	}
	for range count {
		bank := Algorithm(c.u16())
		index := slices.Index(l.Banks, bank)
		if c.short {
			return Event{}, errShort
		}
		if _, twice := event.Digest(bank); index < 0 || twice {
			return Event{}, fmt.Errorf("a digest of %s, which is not a bank of the log or is there twice", bank)
		}
		event.Digests = append(event.Digests, BankDigest{bank, c.take(l.sizes[index])})
	}
	size := c.u32()
	if uint64(size) > uint64(len(c.rest)) {
		return Event{}, fmt.Errorf("%d bytes of data, %d are left", size, len(c.rest))
	}
	event.Data = c.take(int(size))
	if c.short {
		return Event{}, errShort
	}
	return event, nil
}

// noteLocality picks up from where the TPM was started (section 10.4.5.3).
func (l *Log) noteLocality(e Event) error {
	if e.Type != EventNoAction || !bytes.HasPrefix(e.Data, []byte(localityMark)) {
		return nil
	}
	if len(e.Data) != len(localityMark)+1 {
		return fmt.Errorf("start-up locality of %d bytes", len(e.Data)-len(localityMark))
	}
	l.Locality = e.Data[len(localityMark)]
	if l.Locality != 0 && l.Locality != 3 && l.Locality != 4 {
		return fmt.Errorf("start-up locality %d, want 0, 3 or 4", l.Locality)
	}
	return nil
}
