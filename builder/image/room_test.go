package image

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/boot/uki"
	"halogenos.internal/builder/room"
	"halogenos.internal/builder/rootfs/rootfstest"
)

// A build's disk has the ESP that was asked for, and its UKI says so, and what the
// smallest is that machines have from the builds before.
func TestESPSize(t *testing.T) {
	files := rootfstest.Minimal()
	previous := ""
	for i, c := range []struct {
		size, least int64
		past        []room.Release
	}{
		{1 << 30, 1 << 30, nil},
		{2 << 30, 1 << 30, nil},
		{2 << 30, 1 << 30, nil},
		{2 << 30, 512 << 20, []room.Release{{Version: 1, Slot: 16 << 20, ESP: 512 << 20}}},
		{2 << 30, 512 << 20, nil},
	} {
		o := options(t, files.Write(t, false))
		o.Config.ESPSize, o.Previous, o.Past, o.Version = c.size, previous, c.past, contract.Version(7+i)
		o.DiskSize = 4 << 30
		var said strings.Builder
		o.Progress = NewProgress(&said)
		r := mustBuild(t, o)
		previous = o.Out
		image, err := uki.Parse(read(t, o.Out, release.UKIFile))
		if err != nil {
			t.Fatal(err)
		}
		initrd, _ := image.Section(".initrd")
		if able := contract.AbilitiesFromInitrd(initrd); able.ESP() != c.size || able.SmallestESP() != c.least || r.Room.ESP != c.least {
			t.Errorf("build %d: %+v, %+v", i, able, r.Room)
		}
		if grows := i > 0; (r.Room.Past > 0) != grows || !strings.Contains(said.String(), "the system image takes ") {
			t.Errorf("build %d: %+v\n%s", i, r.Room, said.String())
		}
		f, err := os.Open(filepath.Join(o.Out, DiskFile))
		if err != nil {
			t.Fatal(err)
		}
		table, _, err := gpt.Read(f, uint64(o.DiskSize/512), 512)
		if err != nil {
			t.Fatal(err)
		}
		if _, size := table.Bytes(table.Partitions[0]); size != c.size {
			t.Errorf("build %d: the ESP has %d bytes", i, size)
		}
		if i == 0 {
			testkit.Run(t, "fsck.vfat", "-n", extract(t, f, table))
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}

// What installed machines have no room for is refused.
func TestPastRefused(t *testing.T) {
	o := options(t, rootfstest.Minimal().Write(t, false))
	o.Past = []room.Release{{Version: 3, Slot: 15 << 20, ESP: layout.ESPSize}}
	if _, err := Build(t.Context(), o); err == nil || !strings.Contains(err.Error(), "SlotSize is 16 MiB, but machines with release 3 have system partitions of 15 MiB") {
		t.Error(err)
	}
	o.Config.GrowSlots = true
	var said strings.Builder
	o.Progress = NewProgress(&said)
	o.Past = append(o.Past, room.Release{Version: 4, Slot: 15 << 20, ESP: layout.ESPSize, Grows: true})
	if _, err := Build(t.Context(), o); err != nil || !strings.Contains(said.String(), "1 of 2 releases before (50 %) cannot make their slots larger: 3. ") {
		t.Errorf("%v; it says %s", err, said.String())
	}
	o.Past[0].Slot = 17 << 20
	if _, err := Build(t.Context(), o); err == nil || !strings.Contains(err.Error(), "never smaller, so make it 17 MiB or more") {
		t.Error(err)
	}
	const uki, manager = 300 << 20, 200 << 10
	if err := fitsESP(uki, manager, 1<<30, 1<<30); err != nil {
		t.Error(err)
	}
	if err := fitsESP(uki, manager, 1<<30, layout.ESPSize); err == nil || !strings.Contains(err.Error(), "of 536.9 MB that machines have from an earlier release must hold two") || strings.Contains(err.Error(), "ESPSize") {
		t.Error(err)
	}
	if err := fitsESP(uki, manager, layout.ESPSize, layout.ESPSize); err == nil || !strings.Contains(err.Error(), "make ESPSize in [Image] larger") {
		t.Error(err)
	}
}
