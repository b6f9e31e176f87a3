package fat

import (
	"fmt"
	"io"
	"io/fs"
)

// Clusters returns the clusters that a file or directory has, in their order. It
// reads the FAT and nothing of the content, so that it says for little whether a
// file can be read. A chain that is broken, or shorter than the file, is an error.
// A longer one is none: room can be reserved behind a file's end.
func (f *FS) Clusters(path string) ([]uint32, error) {
	i, err := f.lookup(path)
	if err == nil {
		var all []uint32
		if all, err = f.clusters(i); err == nil {
			return all, nil
		}
	}
	return nil, &fs.PathError{Op: "clusters", Path: path, Err: err}
}

func (f *FS) clusters(i *info) ([]uint32, error) {
	size := f.g.clusterSize()
	need := (i.size + size - 1) / size
	if i.cluster == 0 && need == 0 {
		return nil, nil // an empty file
	}
	c, err := f.chain(i.cluster)
	if err != nil {
		return nil, err
	}
	all := []uint32{i.cluster}
	for {
		if err := c.advance(); err == io.EOF {
			break
		} else if err != nil {
			return nil, err
		}
		all = append(all, c.cluster)
	}
	if int64(len(all)) < need {
		return nil, fmt.Errorf("it has %d clusters, its length needs %d", len(all), need)
	}
	return all, nil
}
