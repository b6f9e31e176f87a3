package release

import (
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/boot/pgp"
)

// Who has pinned a key learns from nobody else which release is today's.
func TestExpectPublishedWantsASignedManifest(t *testing.T) {
	w := newWorld(t)
	fpr := w.key("release", "ed25519", password)
	o := w.options(w.build(1, "release", fpr), "release")
	w.publish(o)
	key, err := pgp.ParseKey(mustRead(t, filepath.Join(w.dir, "release.pub")))
	if err != nil {
		t.Fatal(err)
	}
	server := Directory(directory(o))
	e := ExpectOptions{Channel: "stable", Key: key, Now: o.Now, Note: t.Logf}
	if _, err := ExpectPublished(t.Context(), server, e); err == nil || !strings.Contains(err.Error(), "is not signed") {
		t.Errorf("an unsigned manifest: %v", err)
	}
	e.Version = 1
	if _, err := ExpectPublished(t.Context(), server, e); err != nil {
		t.Errorf("a release that is named: %v", err)
	}
	if err := RefreshManifest(t.Context(), w.manage(o), Refresh{Sign: true}); err != nil {
		t.Fatal(err)
	}
	e.Version = 0
	if _, err := ExpectPublished(t.Context(), server, e); err != nil {
		t.Errorf("a signed manifest: %v", err)
	}
}
