package patch

import "halogenos.internal/boot/blockindex"

// A Choice is the groups of patches that are fetched for a part of the image.
type Choice struct {
	Groups []*Group
	Bytes  int64 // of the groups
	Blocks int   // that they make
}

// Choose finds the groups that spare more bytes of the archive than they have, and notes in
// the plan which blocks they make. gap and limit are what the plan's Ranges is asked with.
func (t *Table) Choose(plan *blockindex.Plan, gap, limit int64) Choice {
	var c Choice
	before := plan.Cost(gap, limit).Fetched
	for i := range t.Groups {
		g := &t.Groups[i]
		blocks := g.Mark(plan, true)
		if blocks == 0 {
			continue
		}
		after := plan.Cost(gap, limit).Fetched
		if after+g.Size >= before {
			g.Mark(plan, false)
			continue
		}
		before = after
		c.Groups, c.Bytes, c.Blocks = append(c.Groups, g), c.Bytes+g.Size, c.Blocks+blocks
	}
	return c
}

// Mark notes in a plan that the group makes its blocks, or with on false that it does not,
// and returns how many of the plan's that changes.
func (g *Group) Mark(plan *blockindex.Plan, on bool) (blocks int) {
	for _, e := range g.Extents {
		blocks += plan.Patch(e.New, e.NewBlocks, on)
	}
	return blocks
}
