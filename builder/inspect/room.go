package inspect

import (
	"io"

	"halogenos.internal/boot/contract"
	"halogenos.internal/builder/room"
)

// takes returns what the release of a UKI or a release.json takes of a machine.
func (r *Report) takes() (room.Release, bool) {
	switch {
	case r.EFI != nil && r.EFI.Contract != nil:
		return room.OfUKI(r.EFI.Contract, r.Size, r.EFI.able), true
	case r.Release != nil && r.Release.Extension == "":
		is := room.Of(r.Release, contract.Abilities{})
		is.ESP = 0 // it is the UKI that says so
		return is, true
	}
	return room.Release{}, false
}

// Plan says how long the partitions of machines will do, after releases of before, or
// none. The same release may be among them.
func (r *Report) Plan(past []room.Release) {
	is, ok := r.takes()
	if !ok {
		return
	}
	for _, p := range past {
		if p.Version == is.Version && is.ESP == 0 {
			is.ESP = p.ESP
		}
	}
	plan := room.New(is, past)
	r.Room = &plan
}

// Image is the architecture and the image ID of the release, with a slash between;
// empty for what is of none.
func (r *Report) Image() string {
	switch {
	case r.EFI != nil && r.EFI.Contract != nil:
		return r.EFI.Contract.Arch + "/" + r.EFI.Contract.ImageID
	case r.Release != nil:
		return r.Release.Arch + "/" + r.Release.ImageID
	}
	return ""
}

// Pinned is the release key in a UKI; empty where there is none.
func (r *Report) Pinned() []byte {
	if r.EFI == nil || r.EFI.Contract == nil {
		return nil
	}
	return r.EFI.Contract.ReleaseKey
}

func (r *Report) roomText(w io.Writer) {
	if r.Room == nil {
		return
	}
	heading := "room"
	for _, text := range r.Room.Lines() {
		line(w, "%s\t%s\n", heading, text)
		heading = ""
	}
}
