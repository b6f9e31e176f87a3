// Package reports reads what machines have told of their updates (boot/trialreport): a
// directory of files that a web server has taken.
//
// Anyone who can reach that server can write there, so nothing in a report is believed but as
// one machine's word: what is malformed is passed over and counted, and no text of a report
// leads anywhere.
package reports

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/bounded"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/trialreport"
)

// maxReports bounds how many are read: 4 GB at the most, where each has its largest size.
var maxReports = 1 << 20 // smaller in tests

// Counts are how many trials ended well, and how many did not.
type Counts struct {
	Kept   int `json:"kept"`
	Failed int `json:"failed"`
}

// Total is how many there are.
func (c Counts) Total() int { return c.Kept + c.Failed }

// add counts a report.
func (c *Counts) add(r *trialreport.Report) {
	if r.Result == trialreport.Kept {
		c.Kept++
	} else {
		c.Failed++
	}
}

// A Release is what machines have told of one version.
type Release struct {
	Version contract.Version `json:"version"`
	Counts
	Causes   map[trialreport.Cause]int `json:"causes"`   // of the failures
	Hardware []Hardware                `json:"hardware"` // most failures first
	First    string                    `json:"first"`    // day of the first report, YYYY-MM-DD
	Last     string                    `json:"last"`
	// Seconds is the median of how long the trials took that were kept; 0: not known.
	Seconds int64 `json:"seconds"`

	// Channels are the counts of the machines that follow each.
	Channels map[manifest.Channel]Counts `json:"channels"`

	hardware map[string]*Counts
	took     []int64
}

// A Hardware is how a version fares on one make of machines.
type Hardware struct {
	Name string `json:"name"`
	Counts
}

// An Image is what machines have told of its releases.
type Image struct {
	Arch     string     `json:"arch"`
	ImageID  string     `json:"image_id"`
	Releases []*Release `json:"releases"` // newest first
}

// A Collection is all of it.
type Collection struct {
	Images []*Image `json:"images"`
	// Malformed counts the files that are not reports.
	Malformed int `json:"malformed"`
	// Missing says what of it was not read; empty: all was.
	Missing string `json:"missing,omitempty"`
}

// Read reads a directory, and those in it. What cannot be read, or is too much, it says in
// Missing: anyone who fills the collection must not keep a release from being stopped.
func Read(ctx context.Context, directory string) (*Collection, error) {
	root, err := os.OpenRoot(directory)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	c, number, unread := new(Collection), 0, 0
	releases := map[[2]string]map[contract.Version]*Release{}
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil && name == ".":
			return err
		case err != nil:
			unread++
			return nil
		case !d.Type().IsRegular() || !strings.HasSuffix(name, trialreport.Suffix):
			return nil
		}
		if number++; number > maxReports {
			c.Missing = fmt.Sprintf("there are more than %d reports: move those of old releases elsewhere", maxReports)
			return fs.SkipAll
		}
		r, err := read(root, name)
		switch {
		case errors.Is(err, errMalformed):
			c.Malformed++
		case errors.Is(err, fs.ErrNotExist): // taken away meanwhile
		case err != nil:
			unread++
		default:
			image := [2]string{r.Arch, r.ImageID}
			if releases[image] == nil {
				releases[image] = map[contract.Version]*Release{}
			}
			if releases[image][r.Version] == nil {
				releases[image][r.Version] = &Release{Version: r.Version, Causes: map[trialreport.Cause]int{}, Channels: map[manifest.Channel]Counts{}, hardware: map[string]*Counts{}}
			}
			releases[image][r.Version].take(r)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the reports in %s: %w", directory, err)
	}
	if unread > 0 && c.Missing == "" {
		c.Missing = fmt.Sprintf("%d files or directories cannot be read: see their permissions", unread)
	}
	for name, of := range releases {
		image := &Image{Arch: name[0], ImageID: name[1]}
		for _, v := range slices.Backward(slices.Sorted(maps.Keys(of))) {
			image.Releases = append(image.Releases, of[v].finished())
		}
		c.Images = append(c.Images, image)
	}
	slices.SortFunc(c.Images, func(a, b *Image) int {
		return cmp.Or(strings.Compare(a.Arch, b.Arch), strings.Compare(a.ImageID, b.ImageID))
	})
	return c, nil
}

var errMalformed = errors.New("no report")

// read reads one.
func read(root *os.Root, name string) (*trialreport.Report, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := bounded.Named(f, name, trialreport.MaxSize)
	if errors.Is(err, bounded.ErrTooLarge) {
		return nil, errMalformed
	}
	if err != nil {
		return nil, err
	}
	r, err := trialreport.Parse(text)
	if err != nil {
		return nil, errMalformed
	}
	return r, nil
}

// take counts a report.
func (r *Release) take(of *trialreport.Report) {
	r.add(of)
	on := r.Channels[of.Channel]
	on.add(of)
	r.Channels[of.Channel] = on
	if of.Result == trialreport.Failed {
		r.Causes[of.Cause]++
	} else if of.Seconds > 0 {
		r.took = append(r.took, of.Seconds)
	}
	name := cmp.Or(strings.TrimSpace(of.Vendor+" "+of.Product), "unknown")
	if r.hardware[name] == nil {
		r.hardware[name] = new(Counts)
	}
	r.hardware[name].add(of)
	if r.First == "" || of.Day < r.First {
		r.First = of.Day
	}
	r.Last = max(r.Last, of.Day)
}

// finished is the release with what is known once all are counted.
func (r *Release) finished() *Release {
	for name, c := range r.hardware {
		r.Hardware = append(r.Hardware, Hardware{name, *c})
	}
	slices.SortFunc(r.Hardware, func(a, b Hardware) int {
		return cmp.Or(cmp.Compare(b.Failed, a.Failed), cmp.Compare(b.Kept, a.Kept), strings.Compare(a.Name, b.Name))
	})
	if slices.Sort(r.took); len(r.took) > 0 {
		r.Seconds = r.took[len(r.took)/2]
	}
	return r
}

// Of is what the machines that follow a channel have told of a version of an image; nothing
// where nobody has told of it.
func (c *Collection) Of(arch, imageID string, v contract.Version, on manifest.Channel) Counts {
	for _, image := range c.Images {
		for _, r := range image.Releases {
			if image.Arch == arch && image.ImageID == imageID && r.Version == v {
				return r.Channels[on]
			}
		}
	}
	return Counts{}
}
