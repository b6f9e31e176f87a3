package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/builder/inspect"
)

func TestReleaseCommandLines(t *testing.T) {
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{}, exitUsage, "want --build and --server"},
		{[]string{"--build", "b"}, exitUsage, "want --build and --server"},
		{[]string{"x"}, exitUsage, "unexpected argument"},
		{[]string{"--build", "b", "--server", "s", "--channel", "nightly"}, exitUsage, "--channel"},
		{[]string{"--build", "b", "--server", "s", "--rollout", "101"}, exitUsage, "--rollout"},
		{[]string{"--build", "b", "--server", "s", "--expires", "-1h"}, exitUsage, "--expires"},
		{[]string{"--build", "b", "--server", "s", "--pinned", "k"}, exitUsage, "--pinned does not go"},
		{[]string{"--build", "b", "--server", "s", "--key", "k", "--gpg"}, exitUsage, "in place of --key"},
		{[]string{"--verify", "s", "--build", "b"}, exitUsage, "--build does not go"},
		{[]string{"--build", t.TempDir(), "--server", "s"}, exitFailure, "release.json"},
		{[]string{"--verify", t.TempDir()}, exitFailure, "no manifest.env"},
		{[]string{"--verify", t.TempDir(), "--pinned", "/nowhere"}, exitFailure, "/nowhere"},
		{[]string{"--build", "b", "--server", "s", "--proxy", "http://p:1"}, exitUsage, "--proxy does not go"},
		{[]string{"--verify", "http://127.0.0.1:1/x86_64/os", "--ca", "/nowhere"}, exitFailure, "--ca: open /nowhere"},
		{[]string{"--verify", "http://127.0.0.1:1/x86_64/os", "--ca", os.DevNull}, exitFailure, "is empty"},
		{[]string{"--verify", "http://127.0.0.1:1/x86_64/os", "--proxy", "p:1"}, exitFailure, "neither none nor an address like http://"},
		{[]string{"step", "--server", "s"}, exitUsage, "one VERSION"},
		{[]string{"promote", "7", "--server", "s", "--remove"}, exitUsage, "--remove does not go with promote"},
		{[]string{"--verify", "https://"}, exitFailure, "not the http or https address"},
	} {
		code, stdout, stderr := run(t, nil, append([]string{"release"}, c.args...)...)
		if code != c.code || stdout != "" || !strings.Contains(stderr, c.want) {
			t.Errorf("release %q: exit code %d, stdout %q, stderr %q; want %d, %q", c.args, code, stdout, stderr, c.code, c.want)
		}
	}
}

func TestReleaseAndVerify(t *testing.T) {
	out, _, _ := build(t)
	root := filepath.Join(t.TempDir(), "www")
	code, stdout, stderr := run(t, nil, "release", "--build", out, "--server", root, "--json")
	var result struct {
		Archive string
		Size    int64
		New     bool
	}
	if err := json.Unmarshal([]byte(stdout), &result); code != exitOK || err != nil || !result.New || result.Archive != filepath.Join(root, "x86_64/test-os/7/7.tar.gz") {
		t.Fatalf("exit code %d, %s: %+v, %v", code, stderr, result, err)
	}
	if !strings.Contains(stderr, "WARNING: test-os is published unsigned") {
		t.Errorf("nothing said of the missing signature: %s", stderr)
	}
	code, stdout, stderr = run(t, nil, "inspect", result.Archive)
	for _, say := range []string{"release archive", "test-os 7 for x86_64", "uki.efi", "packed", "signature        none"} {
		if code != exitOK || !strings.Contains(stdout, say) {
			t.Errorf("inspect: exit code %d, no %q in %s%s", code, say, stdout, stderr)
		}
	}
	for _, name := range []string{"uki.efi", "release.json"} {
		var r inspect.Report
		code, stdout, stderr = run(t, nil, "inspect", filepath.Join(out, name), "--server", root, "--json")
		if err := json.Unmarshal([]byte(stdout), &r); code != exitOK || err != nil || r.Room == nil || r.Room.System.Room != 16<<20 || r.Room.UKI == nil || r.Room.ESP != 512<<20 {
			t.Errorf("%s: exit code %d, %v: %s%s", name, code, err, stdout, stderr)
		}
		if code, stdout, stderr = run(t, nil, "inspect", filepath.Join(out, name)); code != exitOK || !strings.Contains(stdout, "the system image takes ") {
			t.Errorf("%s: exit code %d, %s%s", name, code, stdout, stderr)
		}
	}
	if code, _, stderr = run(t, nil, "inspect", filepath.Join(out, "system.erofs"), "--server", root); code != exitFailure || !strings.Contains(stderr, "--server goes with") {
		t.Errorf("a system image: exit code %d, %s", code, stderr)
	}
	_, stdout, _ = build(t, "--server", root, "--json", "--version", "8")
	var built struct{ Room struct{ Past int } }
	if err := json.Unmarshal([]byte(stdout), &built); err != nil || built.Room.Past != 1 {
		t.Errorf("%v: %s", err, stdout)
	}
	web := httptest.NewServer(http.FileServer(http.Dir(root)))
	defer web.Close()
	for _, place := range []string{root, filepath.Dir(filepath.Dir(result.Archive)), web.URL + "/x86_64/test-os"} {
		code, stdout, stderr := run(t, nil, "release", "--verify", place)
		if code != exitOK || stdout != "" || !strings.Contains(stderr, "release 7, in stable, is good") {
			t.Errorf("%s: exit code %d, %q, %s", place, code, stdout, stderr)
		}
	}
	packed, err := os.ReadFile(result.Archive)
	if err != nil {
		t.Fatal(err)
	}
	packed[len(packed)/2] ^= 1
	if err := os.WriteFile(result.Archive, packed, 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := run(t, nil, "release", "--verify", root); code != exitFailure || !strings.Contains(stderr, "release 7, in stable: ") {
		t.Errorf("damaged: exit code %d, %s", code, stderr)
	}
}
