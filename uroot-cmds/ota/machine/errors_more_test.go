package machine

import (
	"os"
	"testing"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/testkit"
)

// FAULTS 112: the most likely errors of who goes back, or tries again
func TestTellsBack(t *testing.T) {
	back := func(w *world) error {
		_, err := w.m.GiveUp("too loud")
		return err
	}
	for _, f := range []struct {
		what, thing, cure string
		change            func(w *world)
		do                func(w *world) error
	}{
		{"rollback: the other slot is empty", "slot b", "`ota fetch` fills it", func(w *world) { must(w.t, os.Remove(w.path("esp/EFI/Linux/test-os_1.efi"))) }, back},
		{"rollback: the other system has failed", "version 1", "`ota fetch` writes", func(w *world) { w.name("test-os_1.efi", "test-os_1+0-3.efi") }, back},
		{"rollback: the other system is not whole", "version 1", "`ota fetch` writes", func(w *world) {
			w.writeTable(layout.Rename(w.table(), layout.SlotB, layout.SystemUUID(w.one.Contract.Root()), w.table().Disk))
		}, back},
		{"rollback: the other system was replaced for good", "version 1", "`ota fetch` writes", func(w *world) {
			w.two.Contract.Epoch = 1
			w.boot(layout.SlotA, w.two)
		}, back},
		{"retry: a version that has not failed", "version 9", "`ota status`", func(*world) {}, func(w *world) error { return w.m.Retry(9, "") }},
	} {
		w := newWorld(t)
		f.change(w)
		err := f.do(w)
		if err == nil {
			t.Errorf("%s: no error", f.what)
			continue
		}
		testkit.Tells(t, testkit.Error{What: f.what, Thing: f.thing, Cure: f.cure}, err.Error())
	}
}
