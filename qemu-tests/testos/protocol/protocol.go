// Package protocol is what the test operating system and the tests say to each
// other over the serial console: a line for each command, and exactly one line for
// each answer. It refuses a line longer than a terminal takes.
package protocol

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// The starts of the lines that the test operating system prints.
const (
	Greeting = "TESTOS" // once at start, followed by a Report as JSON
	OK       = "OK"     // followed by the command's result as JSON
	Failed   = "ERR"    // followed by what failed, in words
	Prompt   = "testos> "
)

// MaxLine bounds a command in bytes: a terminal in canonical mode takes 4095 and
// the newline (termios(3)).
const MaxLine = 4000

// Report is what the test operating system sees of itself.
type Report struct {
	Kernel     string                     `json:"kernel"` // release
	Cmdline    string                     `json:"cmdline"`
	Uptime     float64                    `json:"uptime"` // seconds since the kernel started
	OSRelease  map[string]string          `json:"os_release"`
	Mounts     []Mount                    `json:"mounts"`
	DM         []DM                       `json:"dm"`
	PCRs       map[string]string          `json:"pcrs"` // SHA-256 bank: number to lower-case hex
	Disks      []Disk                     `json:"disks"`
	EFI        map[string]string          `json:"efi"`     // variables that are set, see EFIVariables
	Halogen    map[string]json.RawMessage `json:"halogen"` // /run/halogen/*.json by file name
	Modules    []string                   `json:"modules"` // loaded, sorted
	Writable   map[string]bool            `json:"writable"`
	Watchdogs  []Watchdog                 `json:"watchdogs"`
	Lockdown   string                     `json:"lockdown"`    // of none, integrity, confidentiality the one in force
	MemoryFree uint64                     `json:"memory_free"` // bytes available
	Problems   []string                   `json:"problems"`    // what could not be looked at, and why
}

// Mount is a line of /proc/self/mountinfo (proc_pid_mountinfo(5)).
type Mount struct {
	Target  string `json:"target"`
	Root    string `json:"root"` // the directory of the file system that is mounted
	Source  string `json:"source"`
	Type    string `json:"type"`
	Options string `json:"options"` // of the mount and of the file system
}

// DM is a device-mapper device. Keys that a table holds in hex are masked: a test
// that searches memory for them must not find our copy.
type DM struct {
	Device string   `json:"device"` // dm-0
	Name   string   `json:"name"`
	UUID   string   `json:"uuid"`
	Table  []string `json:"table"`  // "start length type parameters", in 512-byte sectors
	Status []string `json:"status"` // likewise
}

// Disk is a whole disk.
type Disk struct {
	Device     string      `json:"device"` // vda
	Serial     string      `json:"serial"`
	Bytes      uint64      `json:"bytes"`
	SectorSize int         `json:"sector_size"`
	ReadOnly   bool        `json:"read_only"`
	Partitions []Partition `json:"partitions"`
	Kernel     []string    `json:"kernel"` // partitions as the kernel has them
}

// Partition is an entry of a disk's partition table, as read from the disk.
type Partition struct {
	Number int    `json:"number"`
	Label  string `json:"label"`
	UUID   string `json:"uuid"`
	Type   string `json:"type"`
	Offset uint64 `json:"offset"` // bytes
	Bytes  uint64 `json:"bytes"`
}

// Watchdog is a hardware watchdog. The test operating system feeds one that is
// running, and leaves one that is not alone.
type Watchdog struct {
	Name     string `json:"name"`
	Identity string `json:"identity"`
	State    string `json:"state"`   // active, inactive
	Timeout  int    `json:"timeout"` // seconds
	Fed      bool   `json:"fed"`
}

// Fields splits a command into words. A word that starts with a double quote is a
// Go string literal, so that it can hold spaces and any byte.
func Fields(line string) ([]string, error) {
	var words []string
	for {
		line = strings.TrimLeft(line, " \t")
		if line == "" {
			return words, nil
		}
		if line[0] != '"' {
			end := strings.IndexAny(line, " \t")
			if end < 0 {
				end = len(line)
			}
			words, line = append(words, line[:end]), line[end:]
			continue
		}
		quoted, err := strconv.QuotedPrefix(line)
		if err != nil {
			return nil, fmt.Errorf("no end to the string that starts %.20s", line)
		}
		word, err := strconv.Unquote(quoted)
		if err != nil {
			return nil, fmt.Errorf("string %.20s: %w", quoted, err)
		}
		words, line = append(words, word), line[len(quoted):]
		if line != "" && line[0] != ' ' && line[0] != '\t' {
			return nil, fmt.Errorf("no space after the string %.20s", quoted)
		}
	}
}

// Line joins words into a command that Fields splits again.
func Line(words ...string) (string, error) {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = w
		if w == "" || w[0] == '"' || strings.ContainsFunc(w, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
			quoted[i] = strconv.QuoteToASCII(w)
		}
	}
	line := strings.Join(quoted, " ")
	if len(line) > MaxLine {
		return "", fmt.Errorf("command of %d bytes, a terminal takes %d", len(line), MaxLine)
	}
	return line, nil
}
