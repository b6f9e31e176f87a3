package release

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/pgp"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/builder/rootfs/rootfstest"
)

// extensionsOfTest are two, of which one changes with the version.
func extensionsOfTest(v contract.Version) map[string]rootfstest.Files {
	data := make([]byte, 400_000)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(data)
	return map[string]rootfstest.Files{
		"vpn":   {"usr/lib/vpn/data": data, "usr/lib/vpn/version": fmt.Append(nil, v)},
		"tools": {"opt/tools/tool": []byte("a tool\n")},
	}
}

// extended publishes releases with extensions, and returns the options of the last, with
// their builds.
func (w *world) extended(key, fingerprint string, versions ...contract.Version) (o Options, builds []string) {
	w.t.Helper()
	for _, v := range versions {
		w.extensions = extensionsOfTest(v)
		builds = append(builds, w.build(v, key, fingerprint))
		o = w.options(builds[len(builds)-1], key)
		w.publish(o)
	}
	return o, builds
}

func TestExtensions(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	fpr := w.key("release", "ed25519", password)
	o, _ := w.extended("release", fpr, 1)
	w.extensions = extensionsOfTest(2)
	o = w.options(w.build(2, "release", fpr), "release")
	var notes strings.Builder
	o.Note = func(format string, args ...any) { fmt.Fprintf(&notes, format+"\n", args...) }
	w.publish(o)
	var part float64
	_, rest, found := strings.Cut(notes.String(), "extension vpn from version 1: ")
	_, rest, _ = strings.Cut(rest, "(")
	if _, err := fmt.Sscanf(rest, "%f %%", &part); !found || err != nil || part < 0.1 || part > 20 {
		t.Errorf("machines fetch %f %% of an extension of which little has changed (%v):\n%s", part, err, notes.String())
	}
	dir := filepath.Join(directory(o), "2")
	key, err := pgp.ParseKey(mustRead(t, filepath.Join(w.dir, "release.pub")))
	if err != nil {
		t.Fatal(err)
	}
	said := ""
	note := func(format string, args ...any) { said += fmt.Sprintf(format+"\n", args...) }
	if err := Verify(t.Context(), Directory(directory(o)), VerifyOptions{Key: key, Now: now, Note: note}); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"extension vpn of release 2 is good", "extension tools of release 2 is good"} {
		if !strings.Contains(said, want) {
			t.Errorf("Verify does not say %q:\n%s", want, said)
		}
	}
	// Others' programs read them.
	for _, name := range []string{"vpn", "tools"} {
		to := t.TempDir()
		testkit.Run(t, "tar", "-C", to, "-xzf", filepath.Join(dir, name+".tar.gz"))
		if !bytes.Equal(mustRead(t, filepath.Join(to, name+".raw")), mustRead(t, filepath.Join(o.Build, name+".raw"))) {
			t.Errorf("tar unpacks another %s.raw", name)
		}
		testkit.Run(t, "fsck.erofs", filepath.Join(to, name+".raw"))
		w.gpg("--verify", filepath.Join(dir, name+".tar.gz.pgp"), filepath.Join(dir, name+".tar.gz"))
		w.gpg("--verify", filepath.Join(to, "release.json.pgp"), filepath.Join(to, "release.json"))
	}
	// Once more, and for a share.
	o.Rollout = Rollout{Limited: true, Percent: 10}
	w.publish(o)
	list, err := List(t.Context(), Directory(directory(o)), now)
	if err != nil || len(list) != 2 || fmt.Sprint(list[0].Extensions) != "[tools vpn]" || list[0].Problem != "" || !strings.HasSuffix(list[0].String(), "with tools, vpn") {
		t.Errorf("%+v, %v", list, err)
	}
}

// The distributor is told what machines lose that have an extension enabled.
func TestExtensionsThatChange(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.extended("", "", 1)
	w.extensions = map[string]rootfstest.Files{"vpn!": extensionsOfTest(2)["vpn"]}
	o := w.options(w.build(2, "", ""), "")
	var notes strings.Builder
	o.Note = func(format string, args ...any) { fmt.Fprintf(&notes, format+"\n", args...) }
	w.publish(o)
	for _, want := range []string{
		"WARNING: release 1 has the extension tools, and this one has none of that name: machines that have it enabled start without it\n",
		"extension vpn is essential from now on, and was not in release 1: ",
	} {
		if strings.Count(notes.String(), want) != 1 {
			t.Errorf("%q is not said once:\n%s", want, &notes)
		}
	}
	notes.Reset()
	w.extensions = map[string]rootfstest.Files{"vpn!": extensionsOfTest(3)["vpn"]}
	o.Build = w.build(3, "", "")
	w.publish(o)
	if strings.Contains(notes.String(), "tools") || strings.Contains(notes.String(), "essential") {
		t.Errorf("nothing has changed since release 2:\n%s", &notes)
	}
}

// Every way in which an extension on a server may not be the release's. FAULTS 111
func TestExtensionsDamaged(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	fpr := w.key("release", "ed25519", password)
	o, _ := w.extended("release", fpr, 1, 2, 3)
	root := directory(o)
	at := func(v, name string) string { return filepath.Join(root, v, name) }
	for _, c := range []struct {
		name, want string
		change     func(archive, signature []byte) ([]byte, []byte)
		listed     bool // who reads the head alone finds it, too
	}{
		{"missing", "no such file", func([]byte, []byte) ([]byte, []byte) { return nil, nil }, true},
		{"of the release before", "version is 2 in the extension's release.json, and 3 in the release's UKI", func([]byte, []byte) ([]byte, []byte) {
			return mustRead(t, at("2", "vpn.tar.gz")), mustRead(t, at("2", "vpn.tar.gz.pgp"))
		}, true},
		{"another extension", "name is tools in the extension's release.json, and vpn", func([]byte, []byte) ([]byte, []byte) {
			return mustRead(t, at("3", "tools.tar.gz")), mustRead(t, at("3", "tools.tar.gz.pgp"))
		}, true},
		{"the release itself", "describes a release, not a system extension", func([]byte, []byte) ([]byte, []byte) {
			return mustRead(t, at("3", "3.tar.gz")), mustRead(t, at("3", "3.tar.gz.pgp"))
		}, true},
		{"a flipped bit", "is not a release's archive", func(archive, signature []byte) ([]byte, []byte) {
			archive = bytes.Clone(archive)
			archive[5] ^= 1 // of the first member's date, which no reader looks at
			return archive, signature
		}, true},
		{"a flipped bit in the file", "vpn.raw", func(archive, signature []byte) ([]byte, []byte) {
			archive = bytes.Clone(archive)
			archive[len(archive)/2] ^= 1
			return archive, signature
		}, false},
		{"without a signature", "no such file", func(archive, _ []byte) ([]byte, []byte) { return archive, nil }, false},
		{"cut short", "EOF", func(archive, signature []byte) ([]byte, []byte) { return archive[:len(archive)/2], signature }, false},
	} {
		archive, signature := mustRead(t, at("3", "vpn.tar.gz")), mustRead(t, at("3", "vpn.tar.gz.pgp"))
		a, s := c.change(archive, signature)
		put(t, at("3", "vpn.tar.gz"), a)
		put(t, at("3", "vpn.tar.gz.pgp"), s)
		if err := w.verify(o); err == nil || !strings.Contains(err.Error(), "extension vpn of release 3") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: Verify: %v, want %q", c.name, err, c.want)
		}
		list, err := List(t.Context(), Directory(root), now)
		if err != nil || c.listed != (list[0].Problem != "") || c.listed && !strings.Contains(list[0].Problem, c.want) {
			t.Errorf("%s: List: %+v, %v, want %q", c.name, list, err, c.want)
		}
		if c.listed {
			w.refused(c.name, Options{Build: o.Build, Server: o.Server, Channel: o.Channel, Key: o.Key, Now: now, Note: t.Logf, Rollout: Rollout{Limited: true, Percent: 10}}, "extension vpn of release 3")
			if err := Promote(t.Context(), w.manage(o), 3, manifest.Beta, Rollout{}); err == nil || !strings.Contains(err.Error(), "extension vpn of release 3") {
				t.Errorf("%s: Promote: %v", c.name, err)
			}
		}
		put(t, at("3", "vpn.tar.gz"), archive)
		put(t, at("3", "vpn.tar.gz.pgp"), signature)
	}
	if err := w.verify(o); err != nil {
		t.Error(err)
	}
	// Who withdraws a release gets one that is whole in its place.
	if err := os.Remove(at("2", "tools.tar.gz")); err != nil {
		t.Fatal(err)
	}
	if err := Withdraw(t.Context(), w.manage(o), 3, 0); err != nil {
		t.Fatal(err)
	}
	if text := string(mustRead(t, filepath.Join(root, "manifest.env"))); !strings.HasPrefix(text, "STABLE=1\n") {
		t.Errorf("manifest %q", text)
	}
}

func put(t *testing.T, file string, content []byte) {
	t.Helper()
	err := os.Remove(file)
	if content != nil {
		err = os.WriteFile(file, content, 0o644)
	} else if os.IsNotExist(err) {
		err = nil
	}
	if err != nil {
		t.Fatal(err)
	}
}

// FAULTS 111: a build whose extensions are not what its UKI lists is not published
func TestExtensionsOfBuilds(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	o, builds := w.extended("", "", 1, 2)
	if err := w.verify(o); err != nil {
		t.Error(err)
	}
	w.extensions = extensionsOfTest(3)
	o = w.options(w.build(3, "", ""), "")
	file := filepath.Join(o.Build, "vpn.raw")
	good := mustRead(t, file)
	for name, content := range map[string][]byte{
		"missing": nil, "of the release before": mustRead(t, filepath.Join(builds[1], "vpn.raw")), "longer": append(bytes.Clone(good), 0), "shorter": good[:len(good)-4096],
		"a flipped bit": append([]byte{1}, good[1:]...), "another tree": append(bytes.Clone(good[:len(good)-1]), 1),
	} {
		put(t, file, content)
		w.refused(name, o, "vpn")
	}
	put(t, file, good)
	w.publish(o)
	if err := w.verify(o); err != nil {
		t.Error(err)
	}
}

// FAULTS 112 (R14): by hand, with gpg
func TestExtensionsByHand(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	fpr := w.key("release", "ed25519", password)
	w.extensions = extensionsOfTest(7)
	root := filepath.Join(w.dir, "server", "x86_64", "test-os")
	a := ArchiveOptions{Build: w.build(7, "release", fpr), Out: filepath.Join(root, "7"), Now: now}
	r, err := Archive(t.Context(), a)
	if err != nil || len(r.Extensions) != 2 || r.Extensions[1].Extension != "vpn" || r.Extensions[1].Signed {
		t.Fatalf("%+v, %v", r, err)
	}
	for _, x := range append(r.Extensions, *r) {
		w.byHand(fpr, x.Description+".pgp", x.Description)
	}
	if r, err = Archive(t.Context(), a); err != nil || !r.Extensions[0].Signed {
		t.Fatalf("%+v, %v", r, err)
	}
	for _, x := range append(r.Extensions, *r) {
		w.byHand(fpr, x.Archive+".pgp", x.Archive)
	}
	put(t, filepath.Join(root, "manifest.env"), nil)
	if err := os.WriteFile(filepath.Join(root, "manifest.env"), []byte("STABLE=7\nPUBKEY=release.pub\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "release.pub"), mustRead(t, filepath.Join(w.dir, "release.pub")), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := w.verify(Options{Server: filepath.Join(w.dir, "server")}); err != nil {
		t.Error(err)
	}
}
