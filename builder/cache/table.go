package cache

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"slices"
	"sync"
)

// A Table is one entry with many small values. A file for each of them would take longer
// than what they save.
type Table struct {
	dir  *Dir
	kind string
	key  Key

	mu     sync.Mutex
	build  uint32 // counts the builds that have saved the table
	values map[Key]value
}

type value struct {
	used  uint32 // by which build
	bytes []byte
}

const (
	maxValue = 1<<16 - 1 // bytes
	maxTable = 8 << 20   // bytes; a value that nothing is to be said of takes 38 and less than 10 of its own
	maxAge   = 8         // builds without a use, after which a value goes
	record   = len(Key{}) + 4 + 2
)

// Table reads the table of a kind, which is empty where there is none.
func (d *Dir) Table(kind string) *Table {
	t := &Table{dir: d, kind: kind, key: d.KeyOf([]byte(kind))}
	if content, ok := d.Get(kind, t.key); ok {
		t.build, t.values, _ = parseTable(content)
	}
	if t.values == nil {
		t.values = make(map[Key]value)
	}
	t.build++
	return t
}

// Get returns the value of a key, and reports whether there is one.
func (t *Table) Get(key Key) ([]byte, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	v, ok := t.values[key]
	if ok {
		v.used = t.build
		t.values[key] = v
	}
	return v.bytes, ok
}

// Put gives a key a value, unless that is too long to be kept.
func (t *Table) Put(key Key, content []byte) {
	if len(content) > maxValue {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.values[key] = value{t.build, bytes.Clone(content)}
}

// Save keeps the table for the next build. What was not used for the most builds makes way.
// Of two builds at the same time, that which ends last leaves its values.
func (t *Table) Save() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.dir.Put(t.kind, t.key, t.encode())
}

// encode writes the number of the build, and the values: key, build that used it last,
// length, and bytes.
func (t *Table) encode() []byte {
	keys := make([]Key, 0, len(t.values))
	for key, v := range t.values {
		if t.build-v.used <= maxAge {
			keys = append(keys, key)
		}
	}
	slices.SortFunc(keys, func(a, b Key) int {
		return cmp.Or(cmp.Compare(t.values[b].used, t.values[a].used), bytes.Compare(a[:], b[:]))
	})
	out := binary.LittleEndian.AppendUint32(nil, t.build)
	for _, key := range keys {
		v := t.values[key]
		if len(out)+record+len(v.bytes) > maxTable {
			break
		}
		out = append(out, key[:]...)
		out = binary.LittleEndian.AppendUint32(out, v.used)
		out = binary.LittleEndian.AppendUint16(out, uint16(len(v.bytes)))
		out = append(out, v.bytes...)
	}
	return out
}

var errTable = errors.New("damaged table")

// parseTable reads what encode has written. The values lie in the content.
func parseTable(content []byte) (build uint32, values map[Key]value, err error) {
	if len(content) < 4 {
		return 0, nil, errTable
	}
	build, content = binary.LittleEndian.Uint32(content), content[4:]
	values = make(map[Key]value)
	for len(content) > 0 {
		if len(content) < record {
			return 0, nil, errTable
		}
		key, used := Key(content), binary.LittleEndian.Uint32(content[len(Key{}):])
		size := int(binary.LittleEndian.Uint16(content[record-2:]))
		if content = content[record:]; size > len(content) {
			return 0, nil, errTable
		}
		values[key], content = value{used, content[:size:size]}, content[size:]
	}
	return build, values, nil
}
