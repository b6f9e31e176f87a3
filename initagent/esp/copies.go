package esp

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"time"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/strictjson"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/hw"
)

const (
	indexFile    = "index.json"
	maxIndex     = 64 << 10
	maxCopies    = 32       // entries of an index
	maxSettings  = 64 << 10 // bytes of loader.conf
	maxFiles     = 1024     // of a directory
	wholeEvery   = 7 * 24 * time.Hour
	indexVersion = 1
)

// A Keeper keeps copies of what the machine starts with on its root partition,
// and puts them back when they are lost or damaged on the ESP. Of systems it
// keeps those that are blessed.
type Keeper struct {
	Store     hw.Store
	Directory string // of the copies, in the store
	ImageID   string
	// Starts says why the firmware would not start an image. It is nil where
	// Secure Boot does not tell: then a file is damaged when it is not what it
	// was.
	Starts func(image []byte) error
	// Old reports whether a boot manager is one that another has replaced, and by which
	// this machine is not to start; nil where nothing is known of it.
	Old func(image []byte) bool
	// Belongs says why a system that was lost is none of this machine's any more:
	// no slot holds what it names, say.
	Belongs func(c *contract.Contract) error
	Now     time.Time
	Say     func(format string, args ...any)
}

// A Copy is one file, as it is on the ESP and in the store.
type Copy struct {
	// Name is the file's path on the ESP. A UKI's has no counters.
	Name   string       `json:"name"`
	Size   int64        `json:"size"`
	SHA256 contract.Hex `json:"sha256"`
	// Damaged: the ESP's file is this, it is no good, and there is no copy.
	Damaged bool `json:"damaged,omitempty"`
}

// An Index says which copies there are. What lies on the ESP is compared with
// it, so that an ordinary boot need not read any file.
type Index struct {
	Format int `json:"format"`
	// Checked is when every byte of the files was compared last; zero where
	// something could not be put back then.
	Checked time.Time `json:"checked"`
	// Dirty: the file system said then that it was not unmounted. It goes on
	// saying so.
	Dirty bool `json:"dirty,omitempty"`
	// Tangled are files that lay in the same place as another, and were sound.
	Tangled []string `json:"tangled,omitempty"`
	Copies  []Copy   `json:"copies"`
}

// errIndex is wrapped where the index is malformed: it is as good as none, and
// the copies are made again.
var errIndex = errors.New("the index of the ESP's copies is malformed")

// Index reads the index; fs.ErrNotExist where there is none.
func (k *Keeper) Index() (*Index, error) {
	text, err := k.Store.Read(path.Join(k.Directory, indexFile), maxIndex)
	if errors.Is(err, hw.ErrUnfit) {
		return nil, fmt.Errorf("%w: %w", errIndex, err)
	}
	if err != nil {
		return nil, err
	}
	index := new(Index)
	if err := strictjson.Unmarshal(text, index); err != nil {
		return nil, fmt.Errorf("%w: %w", errIndex, err)
	}
	switch {
	case index.Format != indexVersion:
		return nil, fmt.Errorf("%w: format %d, want %d", errIndex, index.Format, indexVersion)
	case len(index.Copies) > maxCopies:
		return nil, fmt.Errorf("%w: %d entries, more than %d", errIndex, len(index.Copies), maxCopies)
	}
	for _, c := range index.Copies {
		if !k.guards(c.Name) || len(c.SHA256) != sha256.Size || c.Size < 0 || c.Size > enroll.MaxEFIFile {
			return nil, fmt.Errorf("%w: entry %q", errIndex, c.Name)
		}
	}
	return index, nil
}

// guards reports whether a file is one that is kept.
func (k *Keeper) guards(name string) bool {
	if name == layout.RemovableManager || name == layout.Manager || name == layout.LoaderConf {
		return true
	}
	n, ok := k.system(name)
	return ok && !n.Counted
}

// system returns the name of a UKI of ours, by its path.
func (k *Keeper) system(name string) (bls.Name, bool) {
	n, err := bls.Parse(path.Base(name))
	return n, err == nil && path.Dir(name) == bls.Directory && n.ImageID == k.ImageID
}

// get returns the entry of a file, or nil.
func (x *Index) get(name string) *Copy {
	if x == nil {
		return nil
	}
	for i := range x.Copies {
		if x.Copies[i].Name == name {
			return &x.Copies[i]
		}
	}
	return nil
}

// whole reports whether every byte is to be compared, and why.
func (k *Keeper) whole(x *Index, dirty bool) (string, bool) {
	age := k.Now.Sub(x.Checked)
	switch {
	case dirty && !x.Dirty:
		return "the power was cut while it was written to", true
	case x.Checked.IsZero():
		return "not all of it could be put back", true
	case age > wholeEvery, age < -wholeEvery: // the clock may be off either way
		return "it was not read for a week", true
	}
	return "", false
}

// copyPath is where the copy of a file lies in the store. Names differ in more
// than their case, and in their last part.
func (k *Keeper) copyPath(name string) string {
	return path.Join(k.Directory, strings.ToLower(path.Base(name)))
}

// errNoCopy is returned for a copy that is not there, or not what it was.
var errNoCopy = errors.New("there is no good copy of it")

// ErrUnread is wrapped where something cannot be read this time. Nothing is given up
// for it.
var ErrUnread = errors.New("it cannot be read now")

// copyOf reads a copy.
func (k *Keeper) copyOf(c *Copy) ([]byte, error) {
	if c == nil || c.Damaged {
		return nil, errNoCopy
	}
	data, err := k.Store.Read(k.copyPath(c.Name), enroll.MaxEFIFile)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, hw.ErrUnfit):
		return nil, errNoCopy
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrUnread, err)
	}
	if !c.is(data) {
		return nil, fmt.Errorf("%w: it was changed", errNoCopy)
	}
	return data, nil
}

// is reports whether a content is the one that the entry has.
func (c *Copy) is(data []byte) bool {
	sum := sha256.Sum256(data)
	return c != nil && c.Size == int64(len(data)) && string(c.SHA256) == string(sum[:])
}

// entry describes a content.
func entry(name string, data []byte) Copy {
	sum := sha256.Sum256(data)
	return Copy{Name: name, Size: int64(len(data)), SHA256: sum[:]}
}

// writeIndex writes the index, after the copies that it names.
func (k *Keeper) writeIndex(x *Index) error {
	text, err := json.MarshalIndent(x, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the index of the ESP's copies: %w", err)
	}
	return k.Store.Keep(path.Join(k.Directory, indexFile), append(text, '\n'))
}
