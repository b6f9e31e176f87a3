package pcr

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Describe says for a person what the event measured, going by its data. The
// text is printable and of bounded length, whatever the log holds.
func (e Event) Describe() string {
	switch e.Type {
	case EventVariableConfig, EventVariableBoot, EventVariableBoot2, EventVariableAuthority:
		return e.describeVariable()
	case EventBootApplication, EventBootDriver, EventRuntimeDriver:
		return e.describeImage()
	case EventSeparator:
		return e.describeSeparator()
	case EventTag:
		return e.describeTag()
	case EventFirmwareBlob, EventFirmwareBlob2:
		return e.describeBlob()
	case EventIPL:
		return e.describeIPL()
	case EventAction, EventEFIAction:
		return "firmware: " + e.quoted()
	case EventCRTMVersion:
		return "firmware version " + e.quoted()
	case EventPostCode, EventPostCode2:
		return "start-up code " + e.quoted()
	}
	if name := e.Type.describe(); name != "" {
		return name
	}
	return fmt.Sprintf("event of type %#x, %d bytes", uint32(e.Type), len(e.Data))
}

// describeIPL knows what systemd-stub and systemd-boot measure with EV_IPL.
func (e Event) describeIPL() string {
	text := e.text()
	switch {
	case e.PCR == KernelImage && strings.HasPrefix(text, "."):
		name := Digest(sha256.Sum256([]byte(text + "\x00")))
		if sum, ok := e.Digest(SHA256); ok && bytes.Equal(sum, name[:]) {
			return "name of section " + text
		}
		return "content of section " + text
	case e.PCR == KernelConfig, e.PCR == SystemExts:
		return "from outside the kernel image: " + e.quoted()
	}
	return "boot loader: " + e.quoted()
}

// describe covers types whose data says nothing to a person.
func (t EventType) describe() string {
	switch t {
	case EventNoAction:
		return "note, not measured"
	case EventCRTMContents:
		return "contents of the firmware's first code"
	case EventCPUMicrocode:
		return "processor microcode"
	case EventPlatformConfig:
		return "platform configuration"
	case EventTableOfDevices:
		return "table of devices"
	case EventCompactHash:
		return "value without description"
	case EventIPLPartitionData:
		return "partition data of the boot disk"
	case EventNonhostCode, EventNonhostConfig, EventNonhostInfo:
		return "embedded controller"
	case EventOmitBootDevice:
		return "boot device passed over"
	case EventGPT, EventGPT2:
		return "partition table of the boot disk"
	case EventHandoffTables, EventHandoffTables2:
		return "firmware tables, such as SMBIOS"
	case EventHCRTM:
		return "code measured before the firmware's"
	case EventFirmwareSPDMBlob, EventFirmwareSPDMConfig:
		return "firmware of a device"
	}
	return ""
}

func (e Event) describeVariable() string {
	v, err := looseVariable(e.Data)
	switch {
	case err != nil && (e.Type == EventVariableBoot || e.Type == EventVariableBoot2):
		return fmt.Sprintf("boot variable, %d bytes", len(e.Data))
	case err != nil:
		return fmt.Sprintf("unreadable variable of %d bytes", len(e.Data))
	case e.Type == EventVariableAuthority:
		return v.describeAuthority()
	}
	return v.describe()
}

// describeImage reads UEFI_IMAGE_LOAD_EVENT (section 10.2.3).
func (e Event) describeImage() string {
	kind := "EFI program"
	switch e.Type {
	case EventBootDriver:
		kind = "EFI driver"
	case EventRuntimeDriver:
		kind = "EFI runtime driver"
	}
	text := kind + " from " + e.imagePath()
	if sum, ok := e.Digest(SHA256); ok {
		text += fmt.Sprintf(", hash %.8x...", sum)
	}
	return text
}

func (e Event) imagePath() string {
	c := &cursor{rest: e.Data}
	c.take(3 * 8) // address, length, link time address
	size := c.u64()
	if c.short || size > uint64(len(c.rest)) {
		return "an unreadable place"
	}
	return devicePath(c.rest[:size])
}

func (e Event) describeSeparator() string {
	if len(e.Data) == 4 {
		switch binary.LittleEndian.Uint32(e.Data) {
		case 0, 0xffffffff:
			return "separator: what follows is not the firmware's"
		case 1:
			return "separator: the firmware reports an error"
		}
	}
	return fmt.Sprintf("separator %.16x", e.Data)
}

// Tags of EV_EVENT_TAG that Linux and systemd-stub use.
const (
	tagLinuxInitrd   = 0x8f3b22ec
	tagLinuxOptions  = 0x8f3b22ed
	tagStubDTB       = 0x6c46f751
	tagStubInitrd    = 0x49dffe0f
	tagStubMicrocode = 0xdac08e1a
	tagLoaderConf    = 0xf5bc582a
)

func (e Event) describeTag() string {
	c := &cursor{rest: e.Data}
	tag, size := c.u32(), c.u32()
	if c.short || uint64(size) > uint64(len(c.rest)) {
		return fmt.Sprintf("unreadable tagged event of %d bytes", len(e.Data))
	}
	data := c.rest[:size]
	switch tag {
	case tagLinuxInitrd:
		return "initramfs that the kernel loaded"
	case tagLinuxOptions:
		return fmt.Sprintf("load options of the kernel: %q", anyText(data))
	case tagStubDTB:
		return fmt.Sprintf("device tree addon %q", anyText(data))
	case tagStubInitrd:
		return fmt.Sprintf("initramfs addon %q", anyText(data))
	case tagStubMicrocode:
		return fmt.Sprintf("microcode addon %q", anyText(data))
	case tagLoaderConf:
		return fmt.Sprintf("boot manager's configuration %q", anyText(data))
	}
	return fmt.Sprintf("tagged event %#x, %q", tag, anyText(data))
}

func (e Event) describeBlob() string {
	data := e.Data
	name := ""
	if e.Type == EventFirmwareBlob2 {
		c := &cursor{rest: data}
		name = string(c.take(int(c.u8())))
		data = c.rest
	}
	if len(data) != 16 {
		return fmt.Sprintf("firmware volume, %d bytes of description", len(e.Data))
	}
	text := fmt.Sprintf("firmware volume of %d bytes at %#x", binary.LittleEndian.Uint64(data[8:]), binary.LittleEndian.Uint64(data))
	if name != "" {
		text += fmt.Sprintf(" %q", printable(name))
	}
	return text
}

// text is the event's data read as text, in whichever encoding it is.
func (e Event) text() string { return anyText(e.Data) }

// anyText tells UTF-16 from bytes by its zeros, and takes one byte too many for none.
func anyText(b []byte) string {
	if isUTF16(b) {
		return textUTF16(b[:len(b)&^1])
	}
	return printable(strings.TrimRight(string(b), "\x00"))
}

// isUTF16 reports whether b begins with a Latin letter in UTF-16, and most of what
// follows up to the first NUL is of that kind.
func isUTF16(b []byte) bool {
	latin, all := 0, 0
	for i := 0; i+1 < len(b) && (b[i] != 0 || b[i+1] != 0); i += 2 {
		if all++; b[i] != 0 && b[i+1] == 0 {
			latin++
		}
	}
	return all > 0 && b[0] != 0 && b[1] == 0 && 2*latin > all && (len(b)%2 == 0 || all > 1)
}

// quoted is data that should be text: in quotation marks where it is, and else as
// GUID, which firmware likes to give for a version, or as what bytes it has.
func (e Event) quoted() string {
	b := e.Data
	switch {
	case len(bytes.Trim(b, "\x00")) == 0:
		return "(empty)"
	case isUTF16(b), bytes.IndexFunc(bytes.TrimRight(b, "\x00"), notText) < 0:
		return fmt.Sprintf("%q", e.text())
	case len(b) == 16:
		return guid([16]byte(b))
	}
	const most = 16
	if len(b) > most {
		return fmt.Sprintf("of %d bytes, %x...", len(b), b[:most])
	}
	return fmt.Sprintf("of %d bytes, %x", len(b), b)
}

// notText reports whether a character is none of text's; with U+FFFD it is not UTF-8.
func notText(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) && !unicode.IsSpace(r) }

// guid is the usual form of a GUID whose first three fields are little-endian.
func guid(b [16]byte) string {
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", binary.LittleEndian.Uint32(b[:]), binary.LittleEndian.Uint16(b[4:]), binary.LittleEndian.Uint16(b[6:]), b[8:10], b[10:])
}
