package agent

import (
	"math/rand/v2"
	"slices"
	"testing"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/uki"
	"halogenos.internal/boot/uki/ukitest"
)

// BenchmarkStage is a whole boot that stages a release with a UKI of 50 MB, from
// initagent's start to the reboot, with an emulated TPM and disks in memory. The
// image's size does not matter: of the slot, staging reads the tree's root block.
func BenchmarkStage(b *testing.B) {
	m := provisionedMachine(b, pinned)
	r := newRelease(b, 2, 5, pinned)
	first, err := contract.Archive(r.contract)
	m.must(err)
	noise := make([]byte, 50<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(noise) // never fails
	r.uki, err = uki.Build(ukitest.Stub("257.13-1"), uki.Payload{
		OSRelease: []byte("ID=test\n"), Cmdline: []byte("quiet"), Linux: ukitest.Stub("kernel"), Initrd: append(first, noise...),
	}.Sections())
	m.must(err)
	m.fetch(r)
	fetched := m.world(true, nil)
	for b.Loop() {
		b.StopTimer()
		m.powerOn(fetched)
		m.said.Reset()
		b.StartTimer()
		if end := m.boot(); end != "reboot" || !slices.Contains(m.systems(), "test_2+3.efi") {
			b.Fatalf("ends in %s with %q:\n%s", end, m.systems(), m.said.String())
		}
	}
	b.ReportMetric(b.Elapsed().Seconds()/float64(b.N), "s/staging")
}

// BenchmarkEverySequence is TestEverySequence with a floor that rises twice.
func BenchmarkEverySequence(b *testing.B) {
	machines := knowing(b, 2, 5, 6, 7)
	states := 0
	for b.Loop() {
		x := explore(machines)
		if len(x.problems) > 0 {
			b.Fatal(x.problems[0])
		}
		states += x.states
	}
	b.ReportMetric(float64(states)/b.Elapsed().Seconds(), "states/s")
}
