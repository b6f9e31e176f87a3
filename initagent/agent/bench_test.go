package agent_test

import (
	"math/rand/v2"
	"slices"
	"testing"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/uki"
	"halogenos.internal/boot/uki/ukitest"
	"halogenos.internal/initagent/machinetest"
)

// BenchmarkStage is a whole boot that stages a release with a UKI of 50 MB, from
// initagent's start to the reboot, with an emulated TPM and disks in memory. The
// image's size does not matter: of the slot, staging reads the tree's root block.
func BenchmarkStage(b *testing.B) {
	m := machinetest.ProvisionedMachine(b, machinetest.Pinned)
	r := machinetest.NewRelease(b, 2, 5, machinetest.Pinned)
	first, err := contract.Archive(r.Contract)
	m.Must(err)
	noise := make([]byte, 50<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(noise) // never fails
	r.UKI, err = uki.Build(ukitest.Stub("257.13-1"), uki.Payload{
		OSRelease: []byte("ID=test\n"), Cmdline: []byte("quiet"), Linux: ukitest.Stub("kernel"), Initrd: append(first, noise...),
	}.Sections())
	m.Must(err)
	m.Fetch(r)
	fetched := m.World(true, nil)
	for b.Loop() {
		b.StopTimer()
		m.PowerOn(fetched)
		m.Said.Reset()
		b.StartTimer()
		if end := m.Boot(); end != "reboot" || !slices.Contains(m.Systems(), "test_2+3.efi") {
			b.Fatalf("ends in %s with %q:\n%s", end, m.Systems(), m.Said.String())
		}
	}
	b.ReportMetric(b.Elapsed().Seconds()/float64(b.N), "s/staging")
}

// BenchmarkEverySequence is TestEverySequence with a floor that rises twice.
func BenchmarkEverySequence(b *testing.B) {
	machines := machinetest.Knowing(b, 2, 5, 6, 7)
	states := 0
	for b.Loop() {
		x := machinetest.Explore(machines)
		if len(x.Problems) > 0 {
			b.Fatal(x.Problems[0])
		}
		states += x.States
	}
	b.ReportMetric(float64(states)/b.Elapsed().Seconds(), "states/s")
}
