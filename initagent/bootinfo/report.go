package bootinfo

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/extension"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/microcode"
	"halogenos.internal/boot/strictjson"
	"halogenos.internal/initagent/hw"
)

// ReportName is the name of the file with the report of this boot.
const ReportName = "boot.json"

// A Report is what the running system may know of its boot. initagent writes it, and
// anyone who reads it uses this type.
type Report struct {
	ImageID string `json:"image_id"`
	Arch    string `json:"arch"`
	Version string `json:"version"`
	Epoch   uint64 `json:"epoch"`
	// Floor is the lowest epoch that the TPM releases keys to; 0 where no TPM
	// holds one.
	Floor uint64      `json:"floor"`
	Slot  layout.Slot `json:"slot"`
	Trial bool        `json:"trial"`
	// Reason says why this system was started and not the other; where the boot has stopped,
	// why it has.
	Reason string `json:"slot_reason"`
	// Stopped: the boot has ended at the recovery console.
	Stopped bool `json:"stopped,omitempty"`
	Signed  bool `json:"signed_updates"`
	// ReleaseKey is the fingerprint of the OpenPGP key that signs updates.
	ReleaseKey string `json:"release_key,omitempty"`
	// Bound are the PCRs that a boot must match for the TPM to release a key; none
	// where no TPM does.
	Bound []int `json:"tpm_pcrs,omitempty"`
	// Root says what opened the root partition: "tpm", "key", "new" where this
	// boot made it; "none" where there is none, and everything lies in memory.
	Root string `json:"root"`
	// Watchdog is the device that is handed over running; "" for none.
	Watchdog string `json:"watchdog,omitempty"`
	// WatchdogReset: the watchdog ended the boot before this one.
	WatchdogReset bool `json:"watchdog_reset"`
	// Extensions are the running release's, and what has come of each; UnknownExtensions are
	// enabled, and the release has none of these names.
	Extensions        []extension.State `json:"extensions,omitempty"`
	UnknownExtensions []string          `json:"extensions_unknown,omitempty"`
	// Processor is what runs, with the revision of the microcode that Linux has loaded or
	// the firmware before it; nil where Linux does not say.
	Processor *microcode.Running `json:"processor,omitempty"`
	// Microcode is the newest revision that the running UKI has for it, as "0xf8"; empty
	// where it has none. A virtual processor takes none.
	Microcode string     `json:"microcode_available,omitempty"`
	Steps     []hw.Entry `json:"steps"`
	// Total is how long it took from initagent's start until now, in ns.
	Total time.Duration `json:"total_ns"`
	// Contract is the running UKI's: what a new release is compared with.
	Contract *contract.Contract `json:"contract"`
}

// maxReport bounds the report in bytes.
const maxReport = 1 << 20

// Boot returns the report of this boot; nil where there is none.
func (p Place) Boot() (*Report, error) {
	f, err := os.Open(p.Report)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r := new(Report)
	text, err := io.ReadAll(io.LimitReader(f, maxReport))
	if err == nil {
		err = strictjson.Unmarshal(text, r)
	}
	if err != nil {
		return nil, fmt.Errorf("report of this boot: %w", err)
	}
	return r, nil
}
