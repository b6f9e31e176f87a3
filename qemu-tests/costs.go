package qemutests

import "strings"

const (
	// usualCost is that of a test of a few starts of the test system.
	usualCost = 40
	// firstOfAll is the cost of what others wait for.
	firstOfAll = 1 << 30
)

// costs are roughly the seconds of processor time that the longest tests take, each with
// its subtests one by one; boot.log says what they took. They only decide who goes first
// (see takeSlot).
var costs = map[string]int{
	"TestUpdate":              500,
	"TestNextUpdate":          450,
	"TestFreeSpace":           650,
	"TestDebian":              250,
	"TestTrialNeverBlessed":   120,
	"TestInstallerStick":      120,
	"TestTrialBlessed":        110,
	"TestNoTPMOptional":       90,
	"TestReset":               90,
	"TestRescue":              90,
	"TestPIN":                 90,
	"TestTrialHangs":          60,
	"TestTestOS":              60,
	"TestBuses":               80,
	"TestAcceptAgain":         70,
	"TestTrialSystemHangs":    70,
	"TestConsoleAsked/serial": 60,
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
