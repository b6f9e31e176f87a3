package snapshot

import "fmt"

// A Room is a file system's, in bytes.
type Room struct{ Size, Free int64 }

// A snapshot costs nothing when it is taken, and then what is written: the old content of
// each block that changes stays. An update's trial writes little, and a busy machine can
// write as much as it has within days. So one is only taken where enough is free for both
// (a tenth, and room for btrfs itself, which allocates metadata 256 MiB at a time), and
// goes where half of that is left: below, a btrfs becomes slow, and then refuses even to
// delete files.
const (
	takePercent, takeBytes = 10, 256 << 20
	keepPercent, keepBytes = 5, 128 << 20
)

// Refuses says why no snapshot is taken; "" where one is.
func (r Room) Refuses() string {
	if why := r.short(takePercent, takeBytes); why != "" {
		return why + ", and a snapshot keeps what is deleted and overwritten"
	}
	return ""
}

// Tight says why the snapshot goes; "" where it stays.
func (r Room) Tight() string { return r.short(keepPercent, keepBytes) }

func (r Room) short(percent, bytes int64) string {
	if least := max(r.Size/100*percent, bytes); r.Free < least {
		return fmt.Sprintf("%d MiB of the root partition's %d MiB are free, fewer than %d MiB", r.Free>>20, r.Size>>20, least>>20)
	}
	return ""
}
