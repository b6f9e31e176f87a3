// Package layouttest makes partition tables of machines whose slots have grown, for tests.
package layouttest

import (
	"slices"
	"testing"

	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
)

// Divide returns the table of a machine with the slots divided into two extents each: the
// first has so many bytes of a system partition, or of a verity partition, and the second one
// lies in what the other slot's loses. So nothing that takes one for a run of bytes reads
// what was written.
func Divide(t testing.TB, table *gpt.Table, system, tree int64) *gpt.Table {
	t.Helper()
	out := *table
	out.Partitions = slices.Clone(table.Partitions)
	find := func(r layout.Role) gpt.Partition {
		p, err := layout.Find(table, r)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	for _, s := range layout.Slots {
		for first, bytes := range map[layout.Role]int64{s.System(): system, s.Verity(): tree} {
			other := s.Other().System()
			if first == s.Verity() {
				other = s.Other().Verity()
			}
			keep := uint64(bytes) / uint64(table.SectorSize)
			p, q := find(first), find(other)
			out.Partitions[slices.IndexFunc(out.Partitions, func(have gpt.Partition) bool { return have.Number == p.Number })].Last = p.First + keep - 1
			layout.Insert(&out, first.More(), gpt.GUID{9, byte(first)}, q.First+keep, q.Last)
		}
	}
	return &out
}
