package machine

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/growth"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/release"
	"halogenos.internal/uroot-cmds/ota/offer"
	"halogenos.internal/uroot-cmds/ota/otatest"
	"halogenos.internal/uroot-cmds/ota/when"
)

// larger does not fit what is free on the disk.
const larger = 16 * otatest.SlotSize

// wantsLarger has the server offer a release that needs larger slots.
func (w *world) wantsLarger() {
	w.site.Publish(otatest.Make(w.t, otatest.Spec{Version: 9, Key: w.key, Image: otatest.Image(50, 1, 0, 0), Change: func(r *release.Release) { r.SlotSize = larger }}), nil)
}

func (w *world) request() *growth.Request {
	w.t.Helper()
	text, err := os.ReadFile(w.path(filepath.Join(stateDirectory, growth.RequestName)))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	must(w.t, err)
	r, err := growth.ParseRequest(text)
	must(w.t, err)
	return r
}

// What a release needs is said with what it takes, and asked for by hand.
func TestGrow(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.wantsLarger()
	before := w.table()
	out, err := w.fetch()
	refused, is := errors.AsType[*offer.Refused](err)
	if !is || out.SlotSize != larger || !strings.Contains(refused.Reason, "the root partition") || !strings.Contains(refused.Reason, "version 1 in the other slot is given up") {
		t.Fatalf("%+v, %v", out, err)
	}
	if w.request() != nil {
		t.Error("a fetch has asked for larger slots, and Grow=auto is not set")
	}
	g, err := w.m.PlanGrowth(t.Context(), 0, 0, Options{})
	must(t, err)
	if g.SlotSize != larger || g.Now != otatest.SlotSize || g.Takes < 2*(larger-otatest.SlotSize) || g.Free == 0 || !slices.Equal(g.GivenUp, []contract.Version{1}) {
		t.Errorf("%+v", g)
	}
	if text := strings.Join(g.Lines(), "\n"); !strings.Contains(text, "no way back to version 1, until") {
		t.Errorf("it is said:\n%s", text)
	}
	must(t, w.m.AskGrowth(g))
	if r := w.request(); r == nil || *r != (growth.Request{Format: 1, SlotSize: larger, By: growth.ByOwner}) {
		t.Errorf("the request is %+v", r)
	}
	s, err := w.m.Status(t.Context())
	must(t, err)
	if s.Grown == nil || s.Grown.Request == nil {
		t.Errorf("the status says %+v", s.Grown)
	}
	// What was asked for waits for a restart, and is no failure of the fetch.
	if out, err := w.fetch(); err != nil || out.Verdict != offer.Later || !strings.Contains(out.Reason, "restart") {
		t.Errorf("%+v, %v", out, err)
	}
	w.m.Use = func(context.Context) when.Use { return when.Use{Now: time.Now(), Up: time.Hour, Idle: time.Hour} }
	w.conf("Server="+w.server.URL, "Restart=ask")
	if r, err := w.m.RestartWhenDue(t.Context()); err != nil || r.Due || !strings.Contains(r.Reason, "Restart=ask") {
		t.Errorf("%+v, %v", r, err)
	}
	must(t, w.m.CancelGrowth())
	if w.request() != nil {
		t.Error("the request is still there")
	}
	if err := w.m.CancelGrowth(); err == nil || !strings.Contains(err.Error(), "nothing was asked for") {
		t.Errorf("%v", err)
	}
	if w.ukis() != "test-os_1.efi test-os_2.efi" || !slices.Equal(before.Partitions, w.table().Partitions) {
		t.Errorf("the ESP has %s; only the boot changes anything", w.ukis())
	}
}

// With Grow=auto a fetch asks, once.
func TestGrowAuto(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.wantsLarger()
	w.conf("Server="+w.server.URL, "Grow=auto")
	if _, err := w.m.Check(t.Context(), Options{}); err == nil || w.request() != nil {
		t.Fatalf("a check has asked, or %v", err)
	}
	out, err := w.fetch()
	if err != nil || out.Verdict != offer.Later || !strings.Contains(out.Reason, "restart") {
		t.Fatalf("%+v, %v", out, err)
	}
	if r := w.request(); r == nil || r.SlotSize != larger || r.By != growth.ByPolicy {
		t.Fatalf("the request is %+v", r)
	}
	// The boot has refused: it is not asked each night.
	must(t, os.Remove(w.path(filepath.Join(stateDirectory, growth.RequestName))))
	text, err := growth.Outcome{SlotSize: larger, Reason: "no dm-snapshot", When: time.Unix(1, 0).UTC()}.Encode()
	must(t, err)
	w.write(filepath.Join(stateDirectory, growth.OutcomeName), text)
	if _, err := w.fetch(); err == nil || w.request() != nil {
		t.Errorf("%v; the request is %+v", err, w.request())
	}
}

// What the boot would refuse or put off is said before. FAULTS 116
func TestMayNotGrow(t *testing.T) {
	t.Parallel()
	for want, change := range map[string]func(w *world){
		"is on trial": func(w *world) {
			must(w.t, os.Rename(w.path("esp/EFI/Linux/test-os_2.efi"), w.path("esp/EFI/Linux/test-os_2+2-1.efi")))
		},
		"waits for the next start": func(w *world) {
			w.write(filepath.Join(stateDirectory, stagedFile), []byte(`{"format":1,"version":"3","slot":"b"}`))
		},
		"as large as that already": func(w *world) {
			g, err := layout.Grow(w.table(), larger, w.m.Random)
			must(w.t, err)
			w.writeTable(g.Table)
		},
	} {
		w := newWorld(t)
		change(w)
		g, err := w.m.PlanGrowth(t.Context(), larger, 0, Options{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v, %v; want %q", g, err, want)
		}
	}
	w := newWorld(t)
	if g, err := w.m.PlanGrowth(t.Context(), 0, 0, Options{}); err == nil || !strings.Contains(err.Error(), "no release that is offered needs larger slots") {
		t.Errorf("%+v, %v", g, err)
	}
	w.wantsLarger()
	if g, err := w.m.PlanGrowth(t.Context(), 0, 77, Options{}); err == nil || !strings.Contains(err.Error(), "version 77 is not what is offered") {
		t.Errorf("%+v, %v", g, err)
	}
	if g, err := w.m.PlanGrowth(t.Context(), layout.MaxSlot, 0, Options{}); err == nil || !strings.Contains(err.Error(), "MiB are missing") {
		t.Errorf("%+v, %v", g, err)
	}
}
