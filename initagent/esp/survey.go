package esp

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/layout"
)

// A survey is what the ESP has in the directories of ours, as far as it can be seen
// without reading a file.
type survey struct {
	sizes  map[string]int64  // of the files, by their path
	broken map[string]error  // files whose clusters are malformed
	shared map[string]string // files that have clusters of another one
	dirty  bool              // the file system was not unmounted
}

// chained is a file system that knows which clusters a file has.
type chained interface {
	Clusters(path string) ([]uint32, error)
}

// look surveys the ESP. A directory that cannot be read is an error: what it holds
// is not known, and must not be taken for lost.
func look(files fs.FS) (*survey, error) {
	s := &survey{sizes: map[string]int64{}, broken: map[string]error{}, shared: map[string]string{}}
	if d, ok := files.(interface{ Dirty() bool }); ok {
		s.dirty = d.Dirty()
	}
	var runs []run
	for _, directory := range directories {
		entries, err := fs.ReadDir(files, directory)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("look at the ESP: %w", err)
		}
		if len(entries) > maxFiles {
			return nil, fmt.Errorf("look at the ESP: %s has %d files, more than %d", directory, len(entries), maxFiles)
		}
		for _, e := range entries {
			info, err := e.Info()
			if err != nil || e.IsDir() {
				continue
			}
			name := canonical(path.Join(directory, e.Name()))
			s.sizes[name] = info.Size()
			runs = append(runs, s.follow(files, name)...)
		}
	}
	s.compare(runs)
	return s, nil
}

// A run is neighbouring clusters of a file.
type run struct {
	first, last uint32
	name        string
}

// follow looks at the clusters of one file.
func (s *survey) follow(files fs.FS, name string) (runs []run) {
	c, ok := files.(chained)
	if !ok {
		f, err := files.Open(name)
		if err != nil {
			s.broken[name] = err
			return nil
		}
		_ = f.Close() // nothing was written
		return nil
	}
	clusters, err := c.Clusters(name)
	if err != nil {
		s.broken[name] = err
		return nil
	}
	for _, at := range clusters {
		if n := len(runs); n > 0 && runs[n-1].last+1 == at {
			runs[n-1].last = at
			continue
		}
		runs = append(runs, run{at, at, name})
	}
	return runs
}

// compare finds the files that have a cluster together.
func (s *survey) compare(runs []run) {
	slices.SortFunc(runs, func(a, b run) int { return cmp.Compare(a.first, b.first) })
	var reaches run // of those before, the one that ends last
	for _, r := range runs {
		if reaches.name != "" && r.first <= reaches.last && r.name != reaches.name {
			s.shared[r.name], s.shared[reaches.name] = reaches.name, r.name
		}
		if reaches.name == "" || r.last > reaches.last {
			reaches = r
		}
	}
}

// canonical is the path of a file as we write it: FAT does not tell upper case
// from lower.
func canonical(name string) string {
	for _, fixed := range []string{layout.RemovableManager, layout.Manager, layout.LoaderConf} {
		if strings.EqualFold(name, fixed) {
			return fixed
		}
	}
	return name
}

// systems are the UKIs of ours, in the order in which the boot manager prefers
// them.
func (s *survey) systems(k *Keeper) (names []bls.Name) {
	for name := range s.sizes {
		if n, ok := k.system(name); ok {
			names = append(names, n)
		}
	}
	slices.SortFunc(names, bls.Compare)
	return names
}

// strays are what a cut has left of files of ours.
func (s *survey) strays(k *Keeper) (names []string) {
	for name := range s.sizes {
		if Stray(name) || k.Starts != nil && strings.HasSuffix(name, noteSuffix) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// noteSuffix ends the name of the note that signing in place keeps beside a file.
// Where the firmware enforces our keys, nothing is signed in place any more.
const noteSuffix = ".signing"

// doubles are the names that a version has besides the one that counts. A blessed
// one counts; or else the one with the least tries left, since tries never rise.
func (s *survey) doubles(k *Keeper) (extra []bls.Name) {
	kept := map[string]bls.Name{}
	for _, n := range s.systems(k) {
		version := n.Blessed().String()
		have, there := kept[version]
		switch {
		case !there:
			kept[version] = n
		case !have.Counted, n.Counted && n.Left >= have.Left:
			extra = append(extra, n)
		default:
			extra, kept[version] = append(extra, have), n
		}
	}
	return extra
}

// changes says in words what the index does not know, or what is not as it says.
func (k *Keeper) changes(s *survey, x *Index) (changes []string) {
	for _, c := range x.Copies {
		size, there := s.sizes[c.Name]
		switch {
		case !there:
			changes = append(changes, c.Name+" is gone")
		case size != c.Size:
			changes = append(changes, fmt.Sprintf("%s has %d bytes, it had %d", c.Name, size, c.Size))
		case s.broken[c.Name] != nil && !c.Damaged:
			changes = append(changes, fmt.Sprintf("%s cannot be read: %v", c.Name, s.broken[c.Name]))
		}
	}
	for name := range s.sizes {
		if k.guards(name) && x.get(name) == nil {
			changes = append(changes, "there is no copy of "+name)
		}
	}
	for _, name := range s.strays(k) {
		changes = append(changes, name+" was left behind")
	}
	for _, n := range s.doubles(k) {
		changes = append(changes, n.String()+" is there besides the one that counts")
	}
	for name, other := range s.shared {
		if name < other && !slices.Contains(x.Tangled, name) {
			changes = append(changes, fmt.Sprintf("%s and %s lie in the same place", name, other))
		}
	}
	slices.Sort(changes)
	return changes
}
