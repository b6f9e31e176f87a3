package patches

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"index/suffixarray"
	"io"
)

// suffixes sorts where the suffixes of data start. The standard library has the sorting
// (SA-IS, in linear time) and hands its result out in what Index.Write writes alone: a
// length, the data, and runs of varints, each after its size.
func suffixes(data []byte) ([]int32, error) {
	r, w := io.Pipe()
	defer r.Close()
	go func() { w.CloseWithError(suffixarray.New(data).Write(w)) }()
	in := bufio.NewReaderSize(r, 64<<10)
	if n, err := number(in); err != nil || n != int64(len(data)) {
		return nil, fmt.Errorf("sort suffixes: length %d, want %d: %w", n, len(data), err)
	}
	if _, err := in.Discard(len(data)); err != nil {
		return nil, fmt.Errorf("sort suffixes: %w", err)
	}
	all := make([]int32, 0, len(data))
	for len(all) < len(data) {
		size, err := number(in)
		if err != nil {
			return nil, fmt.Errorf("sort suffixes: %w", err)
		}
		run := bufio.NewReader(io.LimitReader(in, size-binary.MaxVarintLen64))
		for {
			n, err := binary.ReadUvarint(run)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil || n >= uint64(len(data)) || len(all) == len(data) {
				return nil, fmt.Errorf("sort suffixes: number %d of %d is %d: %w", len(all), len(data), n, err)
			}
			all = append(all, int32(n))
		}
	}
	return all, nil
}

// number reads a varint that takes as much room as the longest.
func number(r io.Reader) (int64, error) {
	var b [binary.MaxVarintLen64]byte
	_, err := io.ReadFull(r, b[:])
	n, _ := binary.Varint(b[:])
	return n, err
}

// matcher finds what of some bytes the old ones have.
type matcher struct {
	old    []byte
	sorted []int32
}

// longestMatch bounds a match in bytes, so that what repeats costs no more than that at each
// place: a longer one goes on with the next.
const longestMatch = 64 << 10

// longest returns where the old bytes have the longest start of b, and how long that is.
func (m *matcher) longest(b []byte) (at, length int) {
	b = b[:min(len(b), longestMatch)]
	low, high := 0, len(m.sorted)
	for low < high {
		mid := int(uint(low+high) / 2)
		if bytes.Compare(m.old[m.sorted[mid]:], b) < 0 {
			low = mid + 1
		} else {
			high = mid
		}
	}
	for _, i := range []int{low - 1, low} { // the longest is beside where b would be
		if i < 0 || i >= len(m.sorted) {
			continue
		}
		if n := same(m.old[m.sorted[i]:], b); n > length {
			at, length = int(m.sorted[i]), n
		}
	}
	return at, length
}

// same is how many bytes two slices have in common at their starts.
func same(a, b []byte) int {
	n := min(len(a), len(b))
	const step = 64
	i := 0
	for i+step <= n && string(a[i:i+step]) == string(b[i:i+step]) {
		i += step
	}
	for i < n && a[i] == b[i] {
		i++
	}
	return i
}
