package qemutests

import "strings"

const (
	// usualCost is that of a test of a few starts of the test system.
	usualCost = 40
	// firstOfAll is the cost of what others wait for.
	firstOfAll = 1 << 30
)

// costs are the seconds of processor time that the longest tests take, each with its
// subtests one by one, as boot.log says them: they only decide who goes first
// (see takeSlot).
var costs = map[string]int{
	"TestUpdate": 900,
	"TestDebian": 250,
}

// expected is what a test or subtest is expected to take, in seconds.
func expected(name string) int {
	top, _, _ := strings.Cut(name, "/")
	for _, n := range []string{name, top} {
		if cost, ok := costs[n]; ok {
			return cost
		}
	}
	return usualCost
}
