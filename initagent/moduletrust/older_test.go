package moduletrust_test

import (
	"bytes"
	"maps"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/bls"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/moduletrust"
	"halogenos.internal/initagent/rootpart"
)

// Root has kept the list of the moment in which the owner's yes was kept, and puts it back after
// that yes was taken back. The yes does not count once more.
func TestOlderYes(t *testing.T) {
	t.Parallel()
	der := machinetest.ModuleCertificate(t, "drivers")
	m := later(t, der)
	m.FullFor, m.Typed = "db", []string{"y"}
	m.Ends("system", "trust-modules FAILED")
	m.FullFor = ""
	older := bytes.Clone(m.RootFiles()[rootpart.ListFile])
	m.Typed = []string{"y"}
	m.Ends("system")
	trusts(m, der)
	m.RootFiles()[moduletrust.WishFile] = []byte(moduletrust.WishNo + "\n")
	m.Runs(2, "db has changed")
	trusts(m)
	m.Runs(2)

	m.RootFiles()[rootpart.ListFile] = older
	m.Typed = nil
	m.Ends("system", "nobody has answered")
	trusts(m)
	m.Runs(2)
	trusts(m)
}

// The distributor has replaced the key of the modules, and db has the new certificate alone. Root
// puts the list of before and the old system's UKI back: db does not get the old certificate, also
// where the owner says yes to the new one.
func TestOlderCertificate(t *testing.T) {
	t.Parallel()
	one, two := machinetest.ModuleCertificate(t, "one"), machinetest.ModuleCertificate(t, "two")
	for _, yes := range []bool{true, false} {
		m := later(t, one)
		m.Typed = []string{"y"}
		m.Ends("system")
		m.Runs(2)
		trusts(m, one)
		older, system := bytes.Clone(m.RootFiles()[rootpart.ListFile]), maps.Clone(m.Files())
		takes(m, 3, two)
		m.Typed = []string{"y"}
		m.Ends("system")
		takes(m, 4, two)
		m.Runs(4, "db has changed")
		m.Runs(4)
		trusts(m, two)

		m.RootFiles()[rootpart.ListFile] = older
		for _, name := range slices.Sorted(maps.Keys(system)) {
			if strings.HasPrefix(name, bls.Directory) && strings.Contains(name, "_2") {
				m.SetFile(name, system[name])
			}
		}
		m.Typed = []string{map[bool]string{true: "y", false: "n"}[yes]}
		m.Ends("system")
		if yes {
			trusts(m, two)
		} else {
			trusts(m)
		}
		m.Runs(4)
	}
}
