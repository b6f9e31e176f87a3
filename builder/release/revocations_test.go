package release

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/manifest"
	description "halogenos.internal/boot/release"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/uki"
	"halogenos.internal/boot/uki/ukitest"
)

// A release brings entries for dbx in its signed description, and not those that would
// stop what it brings itself; nor to machines that do not know of them.
func TestRevocations(t *testing.T) {
	w := newWorld(t)
	public, err := ReadRevocations("../../boot/secureboot/testdata/DBXUpdate.bin")
	if err != nil || len(public) != 443 {
		t.Fatalf("%d entries, %v", len(public), err)
	}
	w.publish(w.options(w.build(1, "", ""), ""))
	o := w.options(w.build(2, "", ""), "")
	o.Revocations, o.Channel = public, manifest.Beta
	// A machine that was off meanwhile has a release that knows nothing of them.
	w.refused("no step before", o, "make one that does a step first")
	if err := SetStep(t.Context(), w.manage(o), 1, true); err != nil {
		t.Fatal(err)
	}
	r := w.publish(o)
	if err := SetStep(t.Context(), w.manage(o), 1, false); err == nil || !strings.Contains(err.Error(), "release 2 has entries for dbx") {
		t.Errorf("the step is taken back: %v", err)
	}
	server := Directory(filepath.Join(o.Server, "x86_64", "test-os"))
	p, err := readPublished(t.Context(), server, 2, nil, now)
	if err != nil || !p.release.DBX().Same(public) || !p.able.Revocations {
		t.Errorf("%+v, %v", p, err)
	}
	var said strings.Builder
	if err := Verify(t.Context(), server, VerifyOptions{Now: now, Note: func(format string, args ...any) { said.WriteString(format) }}); err != nil || !strings.Contains(said.String(), "brings") {
		t.Errorf("%v: %s", err, &said)
	}
	// By hand: the same archive.
	byHand, err := Archive(t.Context(), ArchiveOptions{Build: o.Build, Out: filepath.Join(w.dir, "hand"), Now: now, Revocations: public})
	if err != nil || string(mustRead(t, byHand.Archive)) != string(mustRead(t, r.Archive)) {
		t.Errorf("by hand it is another archive: %v", err)
	}
	// The same again moves a channel, and without the entries it is another release.
	stable := o
	stable.Channel, stable.Revocations = manifest.Stable, nil
	w.refused("without entries", stable, "with other content")
	stable.Revocations = public
	if again := w.publish(stable); again.New {
		t.Error("published again")
	}

	build, err := loadBuild(w.build(3, "", ""))
	if err != nil {
		t.Fatal(err)
	}
	image := mustRead(t, filepath.Join(build.dir, description.UKIFile))
	for name, program := range map[string][]byte{"uki.efi": image, "bootx64.efi": mustRead(t, filepath.Join(build.dir, "bootx64.efi"))} {
		digest, err := authenticode.Digest(program)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		next := w.options(build.dir, "")
		next.Revocations = append(public[:10:10], secureboot.Hash(public[0].Owner, digest))
		w.refused(name, next, "one is the hash of "+name)
	}

	// A fallback's UKI: machines leave it out as long as they have it.
	next := w.options(build.dir, "")
	first, _ := p.release.File(description.UKIFile)
	next.Revocations = secureboot.Database{secureboot.Hash(public[0].Owner, [32]byte(first.Authenticode))}
	said.Reset()
	next.Note = func(format string, args ...any) { said.WriteString(format) }
	w.publish(next)
	if !strings.Contains(said.String(), "which machines fall back to") {
		t.Errorf("published with the hash of the release before: %s", &said)
	}

	// The kernel in a UKI, which some stubs have the firmware load.
	kernel := ukitest.Stub("kernel")
	built, err := uki.Build(ukitest.Stub("257.1"), uki.Payload{Linux: kernel}.Sections())
	if err != nil {
		t.Fatal(err)
	}
	img, err := uki.Parse(built)
	if err != nil {
		t.Fatal(err)
	}
	digest, err := authenticode.Digest(kernel)
	if err != nil {
		t.Fatal(err)
	}
	named := &description.Release{Revocations: []description.Revocations{{Type: "sha256", Entries: []contract.Hex{digest[:]}}}}
	if err := stopsKernel(named, img); err == nil || !strings.Contains(err.Error(), "the hash of the kernel in uki.efi") {
		t.Errorf("the kernel's hash: %v", err)
	}

	if err := build.revoke(public); err != nil {
		t.Fatal(err)
	}
	if err := build.readBy(contract.Abilities{PolicyRecord: 2, NewSecret: 3}); err == nil || !strings.Contains(err.Error(), "make it a step") {
		t.Errorf("machines of before: %v", err)
	}
	bad := filepath.Join(w.dir, "dbx.txt")
	if err := os.WriteFile(bad, []byte("nothing\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadRevocations(bad); err == nil || !strings.Contains(err.Error(), bad+": line 1") {
		t.Errorf("a bad file: %v", err)
	}
}
