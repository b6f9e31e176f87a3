package fat

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestAliases(t *testing.T) {
	for _, c := range []struct{ names, want string }{
		{"BOOTX64.EFI", "BOOTX64.EFI"},
		{"loader", "LOADER"},
		{"halogen_1.efi", "HALOGE~1.EFI"},
		{"debian_1.efi debian_2+3.efi debian_3.efi", "DEBIAN_1.EFI DEBIAN~1.EFI DEBIAN_3.EFI"},
		{"a+b A_B", "A_B~1 A_B"},
		{"entries.srel", "ENTRIE~1.SRE"},
		{"one.two.three", "ONE~1.THR"},
		{".hidden", "HIDDEN~1"},
		{"noextension", "NOEXTE~1"},
		{"longname-1.x longname-2.x LONGNA~1.X", "LONGNA~2.X LONGNA~3.X LONGNA~1.X"},
		{"größe", "GR__E~1"},
		{"x.html", "X~1.HTM"},
		{"[;=,]", "_____~1"},
	} {
		short, err := aliases(strings.Fields(c.names))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, s := range short {
			got = append(got, s.String())
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s became %s, want %s", c.names, got, c.want)
		}
	}
}

func TestAliasesOfManyNamesDiffer(t *testing.T) {
	var names []string
	for i := range 20_000 {
		names = append(names, "same beginning "+strings.Repeat("x", i%200)+string(rune(0x4e00+i)))
	}
	short, err := aliases(names)
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(short, func(a, b shortName) int { return strings.Compare(string(a[:]), string(b[:])) })
	if n := len(slices.Compact(short)); n != len(names) {
		t.Errorf("%d different short names for %d", n, len(names))
	}
	if slices.IndexFunc(short, func(s shortName) bool { return s.String() == "S~10000" || s.String() == "SA~10000" }) < 0 {
		t.Error("the number did not take room from the name")
	}
}

func TestDOSTime(t *testing.T) {
	for _, c := range []struct{ in, want time.Time }{
		{time.Date(2026, 11, 23, 4, 5, 7, 0, time.UTC), time.Date(2026, 11, 23, 4, 5, 6, 0, time.UTC)},
		{time.Date(2026, 1, 1, 0, 30, 0, 0, time.FixedZone("", 3600)), time.Date(2025, 12, 31, 23, 30, 0, 0, time.UTC)},
		{time.Unix(0, 0), time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC)},
		{time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2107, 12, 31, 23, 59, 58, 0, time.UTC)},
	} {
		date, clock, _ := dosTime(c.in)
		if got := goTime(date, clock); !got.Equal(c.want) {
			t.Errorf("%v became %v", c.in, got)
		}
	}
	if _, _, hundredths := dosTime(sampleTime); hundredths != 199 {
		t.Errorf("%d hundredths", hundredths)
	}
	if !goTime(0, 0).IsZero() {
		t.Error("a date that was not set is not the zero time")
	}
}

// The geometry of every size is one that the reader accepts, wastes less than
// a few sectors, and aligns its clusters.
func TestPlanGeometry(t *testing.T) {
	for _, sectorSize := range []int{512, 4096} {
		for size := int64(33 << 20); size < 40<<30; size += size/7 + 12345 {
			g, err := planGeometry(size, sectorSize)
			if err != nil {
				if sectorSize == 4096 && size < 260<<20 {
					continue
				}
				t.Fatalf("%d bytes in sectors of %d: %v", size, sectorSize, err)
			}
			end := g.cluster(firstCluster + g.clusters)
			if end > size || size-end >= g.clusterSize()+2*g.sectorSize*(g.clusterSectors+1) {
				t.Errorf("%d bytes: clusters end at %d", size, end)
			}
			if need := (int64(g.clusters) + 2) * 4; g.fatSectors*g.sectorSize < need || g.fatSectors*g.sectorSize > need+3*g.sectorSize {
				t.Errorf("%d bytes: FAT of %d sectors for %d clusters", size, g.fatSectors, g.clusters)
			}
			if at := g.cluster(firstCluster); at%4096 != 0 || at%g.clusterSize() != 0 {
				t.Errorf("%d bytes: clusters begin at %d", size, at)
			}
			if g.reserved < reservedSectors || g.reserved > 65535 || g.clusters > maxClusters {
				t.Errorf("%d bytes: %+v", size, g)
			}
		}
	}
}
