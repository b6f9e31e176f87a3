package main

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/gpt"
	"halogenos.internal/builder/files"
	"halogenos.internal/qemu-tests/testos/protocol"
)

// Vendor GUIDs of EFI variables: UEFI 2.10 section 3.3, and the Boot Loader
// Interface.
const (
	efiGlobal = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
	efiLoader = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
)

// report looks at everything.
func (s *system) report() protocol.Report {
	r := protocol.Report{
		Cmdline:   text("/proc/cmdline"),
		OSRelease: osRelease(text("/usr/lib/os-release")),
		Mounts:    mounts(),
		PCRs:      make(map[string]string),
		Writable:  make(map[string]bool),
		Halogen:   s.halogen(),
		Modules:   modules(),
		Lockdown:  chosen(text("/sys/kernel/security/lockdown")),
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		s.problem("uname: %v", err)
	}
	r.Kernel = unix.ByteSliceToString(uts.Release[:])
	if up, _, _ := strings.Cut(text("/proc/uptime"), " "); up != "" {
		r.Uptime, _ = strconv.ParseFloat(up, 64) // the kernel's own number
	}
	r.MemoryFree = memory()["MemAvailable"]
	for n := range 24 {
		if v := text(fmt.Sprintf("/sys/class/tpm/tpm0/pcr-sha256/%d", n)); v != "" {
			r.PCRs[strconv.Itoa(n)] = strings.ToLower(v)
		}
	}
	for _, dir := range []string{"/", "/usr", "/etc", "/var", "/home", "/root", "/tmp", "/run"} {
		r.Writable[dir] = writable(dir)
	}
	r.DM = s.deviceMapper()
	r.Disks = s.disks()
	r.EFI = efiVariables()
	r.Watchdogs = s.watchdogs()
	r.Problems = s.problems
	s.problems = nil
	return r
}

// mounts reads /proc/self/mountinfo (proc_pid_mountinfo(5)): fields up to a lone
// dash, then type, source and the file system's own options.
func mounts() []protocol.Mount {
	var all []protocol.Mount
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for line := range strings.Lines(text("/proc/self/mountinfo")) {
		front, back, ok := strings.Cut(strings.TrimSpace(line), " - ")
		f, b := strings.Fields(front), strings.Fields(back)
		if !ok || len(f) < 6 || len(b) < 3 {
			continue
		}
		all = append(all, protocol.Mount{Root: unescape.Replace(f[3]), Target: unescape.Replace(f[4]),
			Type: b[0], Source: unescape.Replace(b[1]), Options: f[5] + "," + b[2]})
	}
	return all
}

// osRelease reads NAME=value lines (os-release(5)).
func osRelease(content string) map[string]string {
	all := make(map[string]string)
	for line := range strings.Lines(content) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(name, "#") {
			all[name] = strings.Trim(value, `"'`)
		}
	}
	return all
}

// halogen reads what the initramfs left for the OS. What is not JSON becomes a JSON
// string.
func (s *system) halogen() map[string]json.RawMessage {
	all := make(map[string]json.RawMessage)
	paths, _ := filepath.Glob("/run/halogen/*.json") // the pattern is good
	for _, path := range paths {
		b, err := files.Read(path, maxRead)
		if err != nil {
			s.problem("%v", err)
			continue
		}
		if !json.Valid(b) {
			s.problem("%s is not JSON", path)
			b, _ = json.Marshal(string(b)) // a string always encodes
		}
		all[filepath.Base(path)] = b
	}
	return all
}

func modules() []string {
	var names []string
	for line := range strings.Lines(text("/proc/modules")) {
		name, _, _ := strings.Cut(line, " ")
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// memory reads /proc/meminfo in bytes (proc_meminfo(5)).
func memory() map[string]uint64 {
	all := make(map[string]uint64)
	for line := range strings.Lines(text("/proc/meminfo")) {
		name, value, _ := strings.Cut(line, ":")
		n, err := strconv.ParseUint(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64)
		if err == nil {
			all[name] = n << 10
		}
	}
	return all
}

// chosen returns the word in brackets of a list such as "none [integrity]".
func chosen(list string) string {
	_, rest, _ := strings.Cut(list, "[")
	word, _, _ := strings.Cut(rest, "]")
	return word
}

// writable tries, since mount options do not tell all.
func writable(dir string) bool {
	f, err := os.CreateTemp(dir, ".testos-")
	if err != nil {
		return false
	}
	_, err = f.Write([]byte("x"))
	return err == nil && f.Close() == nil && os.Remove(f.Name()) == nil
}

// efiVariables returns the variables of interest that exist: numbers in decimal,
// strings without their NUL.
func efiVariables() map[string]string {
	all := make(map[string]string)
	for _, name := range []string{"SecureBoot", "SetupMode"} {
		if b := efiVariable(name, efiGlobal); len(b) == 1 {
			all[name] = strconv.Itoa(int(b[0]))
		}
	}
	for _, name := range []string{"LoaderEntrySelected", "LoaderInfo", "StubInfo", "LoaderDevicePartUUID", "StubDevicePartUUID"} {
		b := efiVariable(name, efiLoader)
		var units []uint16
		for i := 0; i+1 < len(b); i += 2 {
			units = append(units, uint16(b[i])|uint16(b[i+1])<<8)
		}
		if len(units) > 0 {
			all[name] = strings.TrimRight(string(utf16.Decode(units)), "\x00")
		}
	}
	return all
}

// efiVariable returns a variable's value without the attributes that efivarfs puts
// before it, nil when there is none.
func efiVariable(name, vendor string) []byte {
	b, err := os.ReadFile("/sys/firmware/efi/efivars/" + name + "-" + vendor)
	if err != nil || len(b) < 4 {
		return nil
	}
	return b[4:]
}

func (s *system) watchdogs() []protocol.Watchdog {
	var all []protocol.Watchdog
	paths, _ := filepath.Glob("/sys/class/watchdog/watchdog*") // the pattern is good
	for _, path := range paths {
		w := protocol.Watchdog{Name: filepath.Base(path), Identity: text(filepath.Join(path, "identity")),
			State: text(filepath.Join(path, "state"))}
		w.Timeout, _ = strconv.Atoi(text(filepath.Join(path, "timeout"))) // the kernel's own number
		w.Fed = s.fed[w.Name] != nil && !s.hung.Load()
		all = append(all, w)
	}
	return all
}

// disks lists whole disks with media, and what their partition tables say.
func (s *system) disks() []protocol.Disk {
	var all []protocol.Disk
	paths, _ := filepath.Glob("/sys/block/*") // the pattern is good
	for _, path := range paths {
		name := filepath.Base(path)
		sectors, err := strconv.ParseUint(text(filepath.Join(path, "size")), 10, 64) // always in 512 bytes
		if err != nil || sectors == 0 || strings.HasPrefix(name, "dm-") || strings.HasPrefix(name, "loop") || strings.HasPrefix(name, "ram") {
			continue
		}
		d := protocol.Disk{Device: name, Bytes: sectors * 512, ReadOnly: text(filepath.Join(path, "ro")) == "1"}
		d.SectorSize, _ = strconv.Atoi(text(filepath.Join(path, "queue/logical_block_size"))) // the kernel's own number
		for _, where := range []string{"serial", "device/serial"} {
			d.Serial = strings.TrimSpace(d.Serial + text(filepath.Join(path, where)))
		}
		parts, _ := filepath.Glob(filepath.Join(path, name+"*")) // a device's name is a good pattern
		for _, part := range parts {
			d.Kernel = append(d.Kernel, filepath.Base(part))
		}
		if d.Partitions, err = partitions("/dev/"+name, d); err != nil {
			s.problem("%v", err)
		}
		all = append(all, d)
	}
	return all
}

func partitions(dev string, d protocol.Disk) ([]protocol.Partition, error) {
	f, err := os.Open(dev)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if d.SectorSize < 512 {
		return nil, fmt.Errorf("%s: sectors of %d bytes", dev, d.SectorSize)
	}
	table, _, err := gpt.Read(f, d.Bytes/uint64(d.SectorSize), d.SectorSize)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dev, err)
	}
	var all []protocol.Partition
	for _, p := range table.Partitions {
		all = append(all, protocol.Partition{Number: p.Number, Label: p.Label, UUID: p.UUID.String(), Type: p.Type.String(),
			Offset: p.First * uint64(d.SectorSize), Bytes: (p.Last - p.First + 1) * uint64(d.SectorSize)})
	}
	return all, nil
}

// maxRead bounds what a command reads into an answer, in bytes.
const maxRead = 64 << 10

// content is a file's content as an answer.
func content(b []byte) map[string]string {
	if valid := strings.ToValidUTF8(string(b), ""); valid == string(b) && !strings.Contains(valid, "\x00") {
		return map[string]string{"text": valid}
	}
	return map[string]string{"hex": hex.EncodeToString(b)}
}
