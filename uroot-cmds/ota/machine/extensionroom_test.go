package machine

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/extension"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/initagent/bootdisk"
)

// A damaged file is fetched again, without a change of the one that is open.
func TestExtensionsDamaged(t *testing.T) {
	w := newExtended(t)
	if _, err := w.enable("vpn"); err != nil {
		t.Fatal(err)
	}
	vpn := &w.two.Extensions[0]
	damaged := bytes.Clone(vpn.File)
	damaged[70_000] ^= 1
	w.write(w.file(vpn), damaged)
	open, err := os.Open(w.path(w.file(vpn)))
	must(t, err)
	defer open.Close()
	out, err := w.enable("vpn")
	if err != nil || out.Fetched[0].There || out.Fetched[0].Result.Fetched > int64(len(vpn.Archive)/2) {
		t.Fatalf("%+v, %v", out, err)
	}
	w.holds(`"vpn"`, &w.one.Extensions[0], vpn)
	still := make([]byte, len(damaged))
	if _, err := open.ReadAt(still, 0); err != nil || !bytes.Equal(still, damaged) {
		t.Errorf("the open file changed, %v", err)
	}
}

// Where the UKIs cannot all be read, nothing is removed; and nothing that is not ours.
func TestExtensionsSweep(t *testing.T) {
	w := newExtended(t)
	if _, err := w.enable("vpn"); err != nil {
		t.Fatal(err)
	}
	directory := filepath.Join(stateDirectory, extension.Directory)
	stale := filepath.Join(directory, strings.Repeat("ab", 32))
	for _, ending := range []string{fileEnding, partEnding} {
		w.write(stale+ending, []byte("x"))
	}
	w.write(filepath.Join(directory, "notes.raw"), []byte("the owner's"))
	w.write("esp/EFI/Linux/test-os_1.efi", []byte("damaged"))
	out, err := w.m.DisableExtensions([]string{"vpn"})
	if err != nil || len(out.Warnings) != 1 || !strings.Contains(out.Warnings[0], "no file is removed") || w.read(stale+fileEnding) != "x" {
		t.Errorf("%+v, %v", out, err)
	}
	// Its UKI is lost, and the next start may write it again: its slot is named as before.
	must(t, os.Remove(w.path("esp/EFI/Linux/test-os_1.efi")))
	out, err = w.m.DisableExtensions([]string{"vpn"})
	if err != nil || len(out.Warnings) != 1 || !strings.Contains(out.Warnings[0], "slot b may hold a system whose boot file (UKI) is not on the EFI system partition") {
		t.Errorf("%+v, %v", out, err)
	}
	if w.read(w.file(&w.one.Extensions[0])) != string(w.one.Extensions[0].File) {
		t.Error("the fallback's extension is gone")
	}
	w.emptied()
	if out, err = w.m.DisableExtensions([]string{"vpn"}); err != nil || len(out.Warnings) > 0 || out.Freed == 0 {
		t.Errorf("%+v, %v", out, err)
	}
	for name, want := range map[string]bool{stale + fileEnding: false, stale + partEnding: false, filepath.Join(directory, "notes.raw"): true, w.file(&w.one.Extensions[0]): false, w.file(&w.two.Extensions[0]): true} {
		if _, err := os.Stat(w.path(name)); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// emptied is slot B as a fetch empties it.
func (w extendedWorld) emptied() {
	w.t.Helper()
	r, err := w.m.Running()
	must(w.t, err)
	u := &update{Machine: w.m, running: r, table: w.table()}
	u.disk, err = bootdisk.Disk(w.m.Hardware.Disks, w.m.Hardware.Firmware)
	must(w.t, err)
	must(w.t, u.rename())
}

// By path and from an archive of its own, and from what lies beside a release's.
func TestExtensionsFrom(t *testing.T) {
	w := newExtended(t)
	w.server.Close()
	for name, content := range map[string][]byte{
		"stick/2/vpn.tar.gz": w.two.Extensions[0].Archive, "stick/2/drivers.tar.gz": w.two.Extensions[1].Archive,
		"stick/3/3.tar.gz": w.three.Archive, "stick/3/vpn.tar.gz": w.three.Extensions[0].Archive, "stick/3/drivers.tar.gz": w.three.Extensions[1].Archive,
	} {
		w.write(name, content)
	}
	for _, name := range []string{"vpn", "drivers"} {
		out, err := w.m.EnableExtensions(t.Context(), []string{name}, Options{From: w.path("stick/2/" + name + ".tar.gz")})
		if err != nil {
			t.Fatalf("%+v, %v", out, err)
		}
		t.Log(out.Warnings) // the other slot's vpn is not in that archive
	}
	if _, err := w.m.EnableExtensions(t.Context(), []string{"vpn"}, Options{From: w.path("stick/3/3.tar.gz")}); err != nil {
		t.Errorf("one that is there: %v", err)
	}
	out, err := w.m.Fetch(t.Context(), Options{From: w.path("stick/3/3.tar.gz")})
	if err != nil || !out.Staged || len(out.Extensions) != 2 {
		t.Fatalf("%+v, %v", out, err)
	}
	w.complete()
}

// From a server that sends whole files only, the whole archive is read.
func TestExtensionsWithoutRanges(t *testing.T) {
	w := newExtended(t)
	w.noRanges = true
	vpn := &w.two.Extensions[0]
	out, err := w.enable("vpn")
	if err != nil || out.Fetched[0].Result.Fetched < int64(len(vpn.Archive)) {
		t.Fatalf("%+v, %v", out, err)
	}
	w.holds(`"vpn"`, &w.one.Extensions[0], vpn)
}

// While another ota is at work, nothing changes.
func TestExtensionsBusy(t *testing.T) {
	w := newExtended(t)
	r, err := w.m.Running()
	must(t, err)
	lock, err := w.m.lock(r)
	must(t, err)
	defer lock.Close()
	_, enable := w.enable("vpn")
	_, disable := w.m.DisableExtensions([]string{"vpn"})
	if !errors.Is(enable, ErrBusy) || !errors.Is(disable, ErrBusy) {
		t.Errorf("%v, %v", enable, disable)
	}
	if _, err := w.m.ListExtensions(); err != nil {
		t.Errorf("list: %v", err)
	}
}

// Too little room is said in numbers, before anything is fetched.
func TestExtensionsRoom(t *testing.T) {
	w := newExtended(t)
	r, err := w.m.Running()
	must(t, err)
	x, err := w.m.extensions(r)
	must(t, err)
	u := &update{Machine: w.m, running: r}
	e := x.extensionOf("vpn")
	e.ImageSize = layout.MaxSlot
	if err := u.roomFor(e, w.two.Head); err == nil || !strings.Contains(err.Error(), "MiB on the root partition, and ") {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.m.EnableExtensions(ctx, []string{"vpn"}, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := w.enable("nothing"); err == nil || !strings.Contains(err.Error(), "it has drivers, vpn") {
		t.Errorf("an unknown name: %v", err)
	}
}

// Before a slot is emptied for a release, what is there of its extensions counts, and what only
// the release in that slot has: an update needs no more room than it takes.
func TestExtensionsRoomAhead(t *testing.T) {
	w := newExtended(t)
	if _, err := w.enable("vpn"); err != nil {
		t.Fatal(err)
	}
	vpn1, vpn3 := &w.one.Extensions[0], &w.three.Extensions[0]
	half := len(vpn3.File) / 2 &^ 4095
	w.write(strings.TrimSuffix(w.file(vpn3), fileEnding)+partEnding, vpn3.File[:half])
	must(t, os.Truncate(w.path(strings.TrimSuffix(w.file(vpn3), fileEnding)+partEnding), int64(len(vpn3.File))))
	r, err := w.m.Running()
	must(t, err)
	x, err := w.m.extensions(r)
	must(t, err)
	u := &update{Machine: w.m, running: r}
	list := []contract.Extension{vpn3.Listed, w.three.Extensions[1].Listed}
	need, err := u.needAhead(list)
	must(t, err)
	if want := int64(len(vpn3.File) - half + len(w.three.Extensions[1].File)); need != want {
		t.Errorf("%d bytes are needed, want %d", need, want)
	}
	swept, err := u.sweptAhead(x, list)
	must(t, err)
	info, err := os.Stat(w.path(w.file(vpn1)))
	must(t, err)
	if swept != allocated(info) || swept == 0 {
		t.Errorf("%d bytes will be freed, want the %d of version 1's", swept, allocated(info))
	}
	if _, err := w.fetch(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(w.path(w.file(vpn1))); err == nil {
		t.Error("version 1's file is there still")
	}
	x.Unlisted = "one cannot be read"
	if swept, err := u.sweptAhead(x, list); err != nil || swept != 0 {
		t.Errorf("where nothing is removed, %d bytes will be freed, %v", swept, err)
	}
}

// Filled up in the middle by somebody else, it says what is full and what to do, nothing is enabled,
// and with room it goes on where it was. FAULTS 82
func TestExtensionsFullDisk(t *testing.T) {
	testkit.Root(t, "mount a small file system")
	w := newExtended(t)
	state, vpn := w.path(stateDirectory), &w.two.Extensions[0]
	must(t, unix.Mount("tmpfs", state, "tmpfs", 0, "mode=0755,size=40m"))
	t.Cleanup(func() { must(t, unix.Unmount(state, unix.MNT_DETACH)) })
	var once sync.Once
	w.onArchive = func(out http.ResponseWriter, _ *http.Request) http.ResponseWriter {
		if _, err := os.Stat(w.path(strings.TrimSuffix(w.file(vpn), fileEnding) + partEnding)); err == nil { // the room was looked at
			once.Do(func() {
				if err := unix.Mount("", state, "", unix.MS_REMOUNT, "size=400k"); err != nil {
					t.Error(err)
				}
			})
		}
		return out
	}
	_, err := w.enable("vpn")
	if err == nil || !strings.Contains(err.Error(), "no space left on device") || !strings.Contains(err.Error(), "the root partition is full") {
		t.Errorf("without room in the middle: %v", err)
	}
	if _, err := os.Stat(w.path(w.file(vpn))); err == nil || !strings.Contains(w.choice(), "no such file") {
		t.Errorf("its file: %v; the choice: %s", err, w.choice())
	}
	must(t, unix.Mount("", state, "", unix.MS_REMOUNT, "size=40m"))
	if out, err := w.enable("vpn"); err != nil || len(out.Warnings) > 0 {
		t.Errorf("with room: %+v, %v", out, err)
	}
	w.holds(`"vpn"`, &w.one.Extensions[0], vpn)
}
