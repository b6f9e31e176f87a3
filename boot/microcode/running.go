package microcode

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// CPUInfo is where Linux says what processors run, and with which microcode.
const CPUInfo = "/proc/cpuinfo"

// A Running is the processor of a machine that is running.
type Running struct {
	Vendor string `json:"vendor"` // as the processor has it, such as GenuineIntel
	Name   string `json:"name"`   // family, model and stepping, as "06-9e-0a"
	// Revision is that of the microcode, as "0xf8"; empty where Linux does not know it.
	Revision string `json:"revision,omitempty"`
	// Virtual: a hypervisor shows the processor, and says of the microcode what it likes.
	Virtual bool `json:"virtual,omitempty"`
	// Platform is the bit of Intel's platform; 0 where it is not known.
	Platform uint32 `json:"-"`
}

// PlatformFile is where Linux says which of Intel's platforms runs.
const PlatformFile = "/sys/devices/system/cpu/cpu0/microcode/processor_flags"

// ParsePlatform takes the platform from the content of PlatformFile.
func (r *Running) ParsePlatform(text []byte) {
	if n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 0, 32); err == nil {
		r.Platform = uint32(n)
	}
}

// String is for people.
func (r Running) String() string {
	revision := r.Revision
	if revision == "" {
		revision = "unknown"
	}
	return fmt.Sprintf("%s %s, microcode %s", r.Vendor, r.Name, revision)
}

// ParseCPUInfo reads what /proc/cpuinfo says of the first processor; nil where it is not
// one of x86 (Linux, arch/x86/kernel/cpu/proc.c).
func ParseCPUInfo(text []byte) *Running {
	values := map[string]string{}
	for line := range strings.Lines(string(text)) {
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			break // an empty line ends the first one
		}
		values[strings.TrimSpace(name)] = strings.TrimSpace(value)
	}
	var numbers [3]uint64
	for i, name := range []string{"cpu family", "model", "stepping"} {
		n, err := strconv.ParseUint(values[name], 10, 16)
		if err != nil {
			return nil
		}
		numbers[i] = n
	}
	r := &Running{
		Vendor: printable(values["vendor_id"]), Name: fmt.Sprintf("%02x-%02x-%02x", numbers[0], numbers[1], numbers[2]),
		Virtual: slices.Contains(strings.Fields(values["flags"]), "hypervisor"),
	}
	if n, err := strconv.ParseUint(values["microcode"], 0, 32); err == nil {
		r.Revision = fmt.Sprintf("%#x", n)
	}
	return r
}

// printable keeps what a name of CPUID's is made of, of twelve letters at most.
func printable(s string) string {
	return strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return -1
		}
		return c
	}, s[:min(len(s), 12)])
}

// Newest returns the newest revision that the set has for a processor; false for none.
// Where the platform is not known, it may be one for another platform.
func (s *Set) Newest(r Running) (Processor, bool) {
	var best Processor
	found := false
	for _, p := range s.Processors(Vendor(r.Vendor)) {
		if p.Platforms != 0 && r.Platform != 0 && p.Platforms&r.Platform == 0 {
			continue
		}
		if p.Name() == r.Name && (!found || int32(p.Revision) > int32(best.Revision)) {
			best, found = p, true
		}
	}
	return best, found
}
