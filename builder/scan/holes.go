package scan

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// leastHole is the size in bytes of a hole that is passed over. A smaller one is read as
// the zeros that it stands for.
const leastHole = 1 << 20

// A part is what lies between two holes of a file, in bytes from its start.
type part struct{ start, end int64 }

// written returns the parts of a file that are not holes. A file system that does not
// know of holes says that there are none.
func written(f *os.File, size int64) []part {
	parts := []part{}
	for at := int64(0); at < size; {
		start, err := f.Seek(at, unix.SEEK_DATA)
		switch {
		case errors.Is(err, unix.ENXIO): // a hole up to the end
			start = size
		case err != nil:
			return []part{{0, size}}
		}
		end := size
		if start < size {
			if end, err = f.Seek(start, unix.SEEK_HOLE); err != nil {
				return []part{{0, size}}
			}
		}
		start, end = min(start, size), min(end, size)
		last := part{}
		if len(parts) > 0 {
			last = parts[len(parts)-1]
		}
		switch {
		case start-last.end >= leastHole && start < end:
			parts = append(parts, part{start, end})
		case start-last.end < leastHole && len(parts) > 0:
			parts[len(parts)-1].end = end
		case start-last.end < leastHole:
			parts = append(parts, part{0, end})
		}
		at = end
	}
	return parts
}

// parts searches a file that has holes. What it is, if it is an archive, is judged as a
// whole; its own bytes are searched part by part. No secret is split by that: each is
// shorter than a hole.
func (j *job) parts(name string, data []byte, parts []part) error {
	if len(parts) == 1 && parts[0] == (part{0, int64(len(data))}) || len(data) == 0 {
		return j.object(name, data, 0)
	}
	inside, err := j.archive(name, data, 0)
	if err != nil || inside == contents {
		return err
	}
	for _, p := range parts {
		before := j.findings
		j.findings = nil
		if err := j.ctx.Err(); err != nil {
			return err
		}
		err := j.own(name, data[p.start:p.end], 0, inside, false)
		for _, f := range j.findings {
			if f.File == name {
				f.Offset += p.start
			}
			before = append(before, f)
		}
		if j.findings = before; err != nil {
			return err
		}
	}
	return nil
}
