package release

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/pgp"
)

func (w *world) manage(o Options) Manage {
	return Manage{Directory: Directory(directory(o)), Key: o.Key, Now: o.Now, Note: w.t.Logf}
}

// FAULTS 112 (R15): listing, promoting, withdrawing and pruning, without a key where none
// is needed
func TestManage(t *testing.T) {
	w := newWorld(t)
	var o Options
	for v := contract.Version(1); v <= 4; v++ {
		o = w.options(w.build(v, "", ""), "")
		if v > 2 {
			o.Channel = manifest.Beta
		}
		w.publish(o)
	}
	m := w.manage(o)
	text := func() string { return string(mustRead(t, filepath.Join(directory(o), "manifest.env"))) }
	wants := func(name string, err error, want, then string) {
		t.Helper()
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
		if text() != then {
			t.Errorf("%s: manifest %q, want %q", name, text(), then)
		}
	}
	const begin = "STABLE=2\nBETA=4\nIMAGE=x86_64/test-os\n"
	ctx := t.Context()
	wants("an older one", Promote(ctx, m, 1, manifest.Stable, Rollout{}), "machines never go back", begin)
	wants("one that is not there", Promote(ctx, m, 9, manifest.Stable, Rollout{}), "no such file", begin)
	wants("no share", Promote(ctx, m, 3, manifest.Stable, Rollout{true, 101}), "101 percent", begin)
	wants("nothing to withdraw", Withdraw(ctx, m, 3, 0), "no channel names", begin)
	wants("something newer in its place", Withdraw(ctx, m, 2, 3), "not older than 2", begin)
	wants("for a share", Promote(ctx, m, 3, manifest.Stable, Rollout{true, 20}), "", "STABLE=3\nROLLOUT_STABLE=20\nBETA=4\nIMAGE=x86_64/test-os\n")
	wants("for all", Promote(ctx, m, 3, manifest.Stable, Rollout{}), "", "STABLE=3\nBETA=4\nIMAGE=x86_64/test-os\n")
	wants("beta's", Withdraw(ctx, m, 4, 0), "", "STABLE=3\nIMAGE=x86_64/test-os\nWITHDRAWN_BETA=4\n") // 3 would be stable's too
	if _, err := os.Lstat(filepath.Join(directory(o), "beta")); err == nil {
		t.Error("the link beta leads somewhere still")
	}
	wants("stable's", Withdraw(ctx, m, 3, 0), "", "STABLE=2\nIMAGE=x86_64/test-os\nWITHDRAWN_STABLE=3\nWITHDRAWN_BETA=4\n")
	wants("to a named one", Withdraw(ctx, m, 2, 1), "", "STABLE=1\nIMAGE=x86_64/test-os\nWITHDRAWN_STABLE=2,3\nWITHDRAWN_BETA=4\n")
	wants("the only one", Withdraw(ctx, m, 1, 0), "is the only one", "STABLE=1\nIMAGE=x86_64/test-os\nWITHDRAWN_STABLE=2,3\nWITHDRAWN_BETA=4\n")
	if err := w.verify(o); err != nil {
		t.Error(err)
	}
	list, err := List(ctx, m.Directory, now)
	if err != nil || len(list) != 4 || list[0].Version != 4 || len(list[3].Channels) != 1 || list[3].SignedBy != "not signed" || list[3].Size == 0 {
		t.Errorf("%+v, %v", list, err)
	}
	wants("all", Promote(ctx, m, 4, manifest.Stable, Rollout{}), "", "STABLE=4\nIMAGE=x86_64/test-os\nWITHDRAWN_STABLE=2,3\n")
	for _, c := range []struct {
		keep int
		dry  bool
		want string
	}{{0, false, "[]"}, {4, false, "[]"}, {3, true, "[1]"}, {3, false, "[1]"}, {1, false, "[2 3]"}, {1, false, "[]"}} {
		gone, err := Prune(ctx, m, c.keep, c.dry)
		if fmt.Sprint(gone) != c.want || (err != nil) != (c.keep == 0) {
			t.Errorf("keep %d: %v, %v, want %s", c.keep, gone, err, c.want)
		}
	}
	if err := w.verify(o); err != nil {
		t.Error(err)
	}
	if all, err := m.Directory.Versions(ctx); err != nil || fmt.Sprint(all) != "[4]" {
		t.Errorf("left %v, %v", all, err)
	}
	// What channels name stays, and what is newer.
	if err := os.Rename(filepath.Join(directory(o), "4"), filepath.Join(directory(o), "3")); err != nil {
		t.Fatal(err)
	}
	w.put(o, "manifest.env", "STABLE=3\nBETA=5\n")
	for _, v := range []string{"1", "2", "4", "5", "6"} {
		if err := os.Mkdir(filepath.Join(directory(o), v), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if gone, err := Prune(ctx, m, 1, true); err != nil || fmt.Sprint(gone) != "[1 2]" {
		t.Errorf("%v, %v", gone, err)
	}
	if list, err := List(ctx, m.Directory, now); err != nil || list[0].Problem != "its archive is not there" {
		t.Errorf("%+v, %v", list, err)
	}
}

// FAULTS 112 (R10): a manifest is renewed without a release, and the key with it
func TestRefresh(t *testing.T) {
	w := newWorld(t)
	w.gpgAt(now, "--quick-generate-key", "release@example.org", "ed25519", "sign", "2y")
	w.exportAt(now, "release")
	k, err := pgp.ParseKey(mustRead(t, filepath.Join(w.dir, "release.pub")))
	if err != nil {
		t.Fatal(err)
	}
	o := w.options(w.build(1, "release", k.Fingerprint().String()), "release")
	o.SignManifest, o.Lifetime = true, 48*time.Hour
	w.publish(o)
	dir := directory(o)
	m := w.manage(o)
	ctx := t.Context()
	if err := RefreshManifest(ctx, Manage{Directory: m.Directory, Now: now, Note: t.Logf}, Refresh{Lifetime: time.Hour}); err == nil || !strings.Contains(err.Error(), "name the key") {
		t.Errorf("without a key: %v", err)
	}
	m.Now = now.Add(40 * time.Hour)
	if err := RefreshManifest(ctx, m, Refresh{Lifetime: 48 * time.Hour}); err != nil {
		t.Fatal(err)
	}
	if text := string(mustRead(t, filepath.Join(dir, "manifest.env"))); text != "STABLE=1\nPUBKEY=release-key.pgp\nIMAGE=x86_64/test-os\nEXPIRES=2027-01-19T00:00:00Z\nSEQUENCE=20270115080001\n" {
		t.Errorf("manifest %q", text)
	}
	if err := Verify(ctx, Directory(dir), VerifyOptions{Now: m.Now, Note: t.Logf}); err != nil {
		t.Error(err)
	}
	m.Now = now.AddDate(1, 0, 0)
	if err := RefreshManifest(ctx, m, Refresh{}); err == nil || !strings.Contains(err.Error(), "say for how long") {
		t.Errorf("expired: %v", err)
	}
	// The key is renewed after it has expired, and signs again.
	late := at(3)
	w.gpgAt(late, "--quick-set-expire", k.Fingerprint().String(), "5y")
	w.exportAt(late, "release")
	renewed, err := pgp.ParseKey(mustRead(t, filepath.Join(w.dir, "release.pub")))
	if err != nil {
		t.Fatal(err)
	}
	m.Now = late
	if err := RefreshManifest(ctx, m, Refresh{Lifetime: -1}); err == nil || !strings.Contains(err.Error(), "expired on") {
		t.Errorf("with the expired key: %v", err)
	}
	w.key("other", "ed25519", password)
	other, err := pgp.ParseKey(mustRead(t, filepath.Join(w.dir, "other.pub")))
	if err != nil {
		t.Fatal(err)
	}
	if err := RefreshManifest(ctx, m, Refresh{Lifetime: -1, Public: other}); err == nil || !strings.Contains(err.Error(), "another key") {
		t.Errorf("another key: %v", err)
	}
	if err := RefreshManifest(ctx, m, Refresh{Lifetime: -1, Public: renewed}); err != nil {
		t.Fatal(err)
	}
	if err := Verify(ctx, Directory(dir), VerifyOptions{Key: k, Now: late, Note: t.Logf}); err != nil {
		t.Error(err)
	}
	if err := Withdraw(ctx, m, 1, 0); err == nil || !strings.Contains(err.Error(), "is the only one") {
		t.Errorf("withdrawn: %v", err)
	}
}
